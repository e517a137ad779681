"""Read the command line of a training run before anything heavy is imported.

    --config=FILE.py[:ARGUMENT] --workdir=FOLDER [--config.FIELD=VALUE ...]
    --describe    print every field, its value, where that came from and what it means
    --dry_run     check everything, print sizes and arithmetic, and stop before any work

A mistake is one line with the remedy; --traceback shows where it was noticed.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from rlhf_jax import shipped

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file with get_config().", lock_config=True
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder continues it.")
TRACK = flags.DEFINE_string(
    "track",
    "tensorboard",
    "Whom to tell besides metrics.jsonl: tensorboard, wandb, trackio, or '' for nobody.",
)
DESCRIBE = flags.DEFINE_bool("describe", False, "Print every field and what it means, and stop.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check all, print sizes, stop before any work.")
TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the Python traceback of an error.")
flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where no launcher says it.")
flags.DEFINE_integer("num_processes", 0, "Number of processes, where no launcher says it.")
flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")
flags.DEFINE_integer("heartbeat_seconds", 60, "A process silent for so long ends the run.")


def read(argv: Sequence[str], about: str) -> None:
    """Parse the command line and check what can be checked at the door.

    Ends the process for --help, whose text begins with `about`, and for a mistake in flags, in the
    config file or in the workdir.
    """
    if {"--help", "-h", "-help", "--helpfull", "-?"} & set(argv[1:]):
        print(f"{about.strip()}\n\n{flags.FLAGS.module_help(sys.modules[__name__])}")
        raise SystemExit(0)
    # ml_collections reads the overrides of fields from here.
    sys.argv = [argv[0], *shipped.find_configs(argv[1:])]
    shipped.register()
    try:
        rest = flags.FLAGS(sys.argv)
        if len(rest) > 1:
            raise ValueError(f"unexpected arguments: {' '.join(rest[1:])}; a flag begins with --")
        if CONFIG.value is None:
            raise ValueError("--config is missing: name an experiment file, --config=FILE.py")
        CONFIG.value.get("stage")  # of a file that could not be read, the value is an error
        if not DESCRIBE.value:
            check_workdir(WORKDIR.value)
    except Exception as error:  # a config file may raise anything
        if "--traceback" in argv:
            raise
        sys.exit(f"error: {describe_flag_error(error)}")


def given_fields() -> set[str]:
    """Return the paths of the fields that flags set, as config.ppo.kl_coef."""
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    return {f"config.{name}" for name in overrides}


def check_workdir(workdir: str | None) -> None:
    """Refuse a folder in which nothing can be written, without making it.

    Raises:
        ValueError: none is named, it is a file, lies in one, or may not be written.
    """
    if workdir is None or not workdir.strip():
        state = "missing" if workdir is None else "empty"
        raise ValueError(f"--workdir is {state}: name the run's folder, --workdir=runs/NAME")
    if "\0" in workdir:
        raise ValueError("--workdir: a path cannot hold the character 0; take another name")
    folder = Path(workdir).absolute()
    try:
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not nearest.is_dir():
            kind = "a link to nowhere" if nearest.is_symlink() else "a file, not a folder"
            raise ValueError(f"--workdir={workdir}: {nearest} is {kind}; name another folder")
    except OSError as error:  # too long a name
        raise ValueError(f"--workdir={workdir[:80]}: {error.strerror}; take another name") from None
    too_long = [part for part in folder.parts if len(os.fsencode(part)) > 255]
    if too_long:
        raise ValueError(
            f"--workdir: the name {too_long[0][:40]}... has {len(too_long[0])} characters; take "
            "one of at most 255"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(
            f"--workdir={workdir}: {nearest} may not be written by you; name another folder, or "
            f"change its rights (chmod u+rwx {nearest})"
        )


def describe_flag_error(error: Exception) -> str:
    """Return what a user has to know of an error while flags and config are read, in one line."""
    cause: Any = error
    while isinstance(cause, KeyError | AttributeError) and cause.args:
        cause = cause.args[0]  # ml_collections wraps one in the other
    lines = [line.strip() for line in str(cause).strip().splitlines()]
    if isinstance(error, KeyError | AttributeError):
        return f"config: no such field: {'; '.join(lines)}"
    if isinstance(error, OSError):
        return f"config: {lines[-1]}"  # the first ones say in which ways it was looked for
    if "Traceback" in str(cause):
        return re.sub(r"^ValueError: ", "", lines[-1])
    if isinstance(error, flags.Error | ValueError):
        return "; ".join(lines)
    return f"config: {type(error).__name__}: {'; '.join(lines)}"
