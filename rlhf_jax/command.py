"""Call every program of the package by one name: rlhf-jax COMMAND ...

Nothing is imported before it is needed: `rlhf-jax --help` answers at once.
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rlhf_jax import __version__, shipped
from rlhf_jax.apps.arguments import read_chat, read_export, read_report


class Command(NamedTuple):
    """Say which module a command is, and what it does."""

    module: str
    help: str
    read: Callable[[Sequence[str]], object] | None = None  # its arguments, before it is imported
    needs_stage: str = ""  # the stage that the config must name, "" for any


TRAIN = "rlhf_jax.main"
COMMANDS: dict[str, Command] = {
    "train": Command(TRAIN, "run a stage, or a pipeline of stages, from a config"),
    "label": Command(TRAIN, "rank answers: a config of the stage label", needs_stage="label"),
    "evaluate": Command(
        TRAIN, "measure models: a config of the stage evaluate", needs_stage="evaluate"
    ),
    "chat": Command("rlhf_jax.apps.chat", "talk to a checkpoint in the terminal", read_chat),
    "report": Command("rlhf_jax.apps.report", "write an HTML page about a run", read_report),
    "export": Command("rlhf_jax.apps.export", "write a checkpoint for transformers", read_export),
    "lm_eval": Command("rlhf_jax.apps.lm_eval", "run lm-evaluation-harness on a checkpoint"),
    "plan": Command("experiments.scale.plan", "reckon memory and time of a run on many devices"),
}


def usage() -> str:
    """Return the list of commands, a line each."""
    lines = [f"  {name:9s} {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rlhf-jax COMMAND ...   (rlhf-jax COMMAND --help says more)",
            *lines,
            f"configs that came with this package: {shipped.folder()}",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 2 if there is none of that name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(usage())
        return 0 if arguments else 2
    if name == "--version":
        print(f"rlhf_jax {__version__}")
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"error: there is no command {name!r}: choose one of {known}", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # as `python -m` does: judges may be modules of yours
    return run(name, arguments[1:])


def run(name: str, arguments: Sequence[str]) -> int:
    """Run the module of a command with these arguments."""
    command = COMMANDS[name]
    shipped.register()
    if command.module == TRAIN:
        from rlhf_jax import options

        options.read([f"rlhf-jax {name}", *arguments], command.help)
        stage = options.CONFIG.value.get("stage")
        if command.needs_stage not in ("", stage):
            sys.exit(
                f"error: rlhf-jax {name} needs a config of the stage {command.needs_stage}, this "
                f"one is of {stage}: rlhf-jax train runs any"
            )
        return int(importlib.import_module(TRAIN).main() or 0)
    if command.read is not None:
        command.read(arguments)
    module = importlib.import_module(command.module)
    from rlhf_jax.training import processes

    processes.retain_memory()
    processes.enable_persistent_cache()
    return int(module.main(shipped.find_configs(arguments)) or 0)


if __name__ == "__main__":
    sys.exit(main())
