"""Find the experiment files, in a checkout or in the installed package, from any folder.

In a checkout they lie beside the package, in a wheel inside it (setup.py puts them there), and in
both cases Python knows them as `experiments`, because they import each other by that name.
"""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent
NAME = "experiments"


def folder() -> Path:
    """Return the folder of the experiment files that came with this package."""
    checkout = _PACKAGE.parent / NAME
    return checkout if (checkout / "menagerie").is_dir() else _PACKAGE / NAME


def register() -> None:
    """Let Python find `experiments` wherever it was started; modules of a folder there join it."""
    if NAME in sys.modules or not folder().is_dir():
        return
    places = [str(folder())]
    if Path(NAME).is_dir() and not Path(NAME).samefile(folder()):
        places.append(str(Path(NAME).absolute()))
    spec = importlib.util.spec_from_file_location(
        NAME, folder() / "__init__.py", submodule_search_locations=places
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


def find_config(config: str) -> str:
    """Return a config's path as it can be opened from here; what stands behind a colon stays.

    A path is taken as it is where there is such a file, else one that begins with experiments/ is
    that of the package.
    """
    path, colon, argument = config.partition(":")
    parts = Path(path).parts
    if Path(path).exists() or parts[:1] != (NAME,):
        return config
    ours = folder().joinpath(*parts[1:])
    return f"{ours}{colon}{argument}" if ours.exists() else config


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Return a command line whose --config can be opened from here."""
    located = list(arguments)
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            located[i] = f"{flag}={find_config(value)}"
        elif argument in ("--config", "-config") and i + 1 < len(located):
            located[i + 1] = find_config(arguments[i + 1])
    return located
