"""Run lm-evaluation-harness on a checkpoint: its own command line, which knows our models too.

    python -m rlhf_jax.apps.lm_eval --model_args checkpoint=runs/ppo --tasks truthfulqa_mc1
    python -m rlhf_jax.apps.lm_eval --model_args checkpoint=hf:FOLDER --tasks gsm8k \
        --apply_chat_template --batch_size 16 --gen_kwargs max_gen_toks=128

Every option is the harness' own (pip install 'rlhf_jax[lm_eval]'); `--model rlhf_jax` is put in
where it is missing. `lm_eval --model rlhf_jax` by itself cannot work: the harness knows only the
models in its own list and has no way to be told of others (lm-eval 0.4.13). From Python:

    import rlhf_jax.apps.lm_eval
    rlhf_jax.apps.lm_eval.register()
    lm_eval.simple_evaluate(model="rlhf_jax", model_args={"checkpoint": "runs/ppo"}, tasks=[…])

Model arguments: checkpoint, add_bos_token, max_length, batch_size (apps/harness_model.py). Tasks
download their data, except those of `--include_path FOLDER` with files of your own.
"""

import importlib.util
import sys
from collections.abc import Sequence

from rlhf_jax.training.processes import enable_persistent_cache, retain_memory

NAME = "rlhf_jax"
_COMMANDS = ("run", "ls", "validate")


def is_installed() -> bool:
    """Tell whether the harness is there."""
    return importlib.util.find_spec("lm_eval") is not None


def register() -> None:
    """Let the harness know the model `rlhf_jax`; twice does no harm.

    Raises:
        ValueError: the harness is not installed.
    """
    if not is_installed():
        raise ValueError("the package lm_eval is missing; pip install 'rlhf_jax[lm_eval]'")
    import lm_eval.models  # noqa: F401  its own models, which it would leave out otherwise
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="rlhf_jax.apps.harness_model:HarnessModel")


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the subcommand and the model where they are missing."""
    options = list(arguments)
    if not options or options[0] in ("-h", "--help"):
        return options
    command = options.pop(0) if options[0] in _COMMANDS else "run"
    chosen = any(word.split("=")[0] in ("--model", "-M", "--config", "-C") for word in options)
    model = ["--model", NAME] if command == "run" and not chosen else []
    return [command, *model, *options]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the harness, and return 2 if an argument could not be followed."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        sys.argv = ["lm_eval", *complete_arguments(arguments)]  # the harness reads no other
        cli_evaluate()
    except (ValueError, OSError) as error:
        print(f"lm_eval: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    retain_memory()
    enable_persistent_cache()
    sys.exit(main())
