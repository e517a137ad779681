"""Run one stage, or a pipeline of stages, from an experiment config.

python -m rlhf_jax.main --config=experiments/menagerie/ppo.py --workdir=runs/ppo --config.ppo.kl_coef=0.05
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import rlhf_jax.menagerie.builders  # noqa: F401 (TFDS knows the builders once they are imported)
from rlhf_jax.config import build
from rlhf_jax.stages import (
    benchmark,
    classify,
    evaluate,
    policy_gradient,
    ppo,
    preference,
    pretrain,
    reward,
    sft,
)
from rlhf_jax.training import processes
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory
from rlhf_jax.training.run import is_complete


# A pipeline config: named stage configs in the order in which they run, one seed for all.
#
# Every stage gets the folder WORKDIR/NAME; stages name each other's folders as ../NAME.
def plan_pipeline(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The stage configs in order, each with the pipeline's seed.

    Raises:
      ValueError: an unknown key, a stage without the field `stage`, or `order` and `stages` that do not name the same stages.
    """
    known = {"stage", "seed", "order", "stages"}
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(
            f"config.{unknown[0]}: no such field of a pipeline; known fields: {', '.join(sorted(known))}"
        )
    order, stages = list(config["order"]), config["stages"]
    absent = [name for name in order if name not in stages]
    if absent:
        raise ValueError(
            f"config.order names {', '.join(absent)}, but config.stages has {', '.join(stages)}"
        )
    plans = {}
    for name in order:
        stage = {**_plain(stages[name]), "seed": config["seed"]}
        if "stage" not in stage:
            raise ValueError(f"config.stages.{name}: the field `stage` is missing")
        plans[name] = stage
    return plans


def _plain(tree: Any) -> Any:
    return tree.to_dict() if hasattr(tree, "to_dict") else dict(tree)


_MODULES = (pretrain, sft, reward, ppo, policy_gradient, preference, evaluate, benchmark, classify)
STAGES: dict[str, Any] = {module.__name__.rpartition(".")[2]: module for module in _MODULES}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder continues it.")


def run(config: Mapping[str, Any], workdir: str) -> None:
    """Run what `config.stage` names in `workdir`."""
    stage = config["stage"]
    if stage == "pipeline":
        run_pipeline(plan_pipeline(config), workdir)
        return
    if stage not in STAGES:
        raise ValueError(
            f"config.stage: {stage!r} is not one of {', '.join([*STAGES, 'pipeline'])}"
        )
    if processes.process_count() > 1 and stage in ("evaluate", "benchmark"):
        raise ValueError(
            f"config.stage: {stage} runs in one process; train with {processes.process_count()}, then run it alone"
        )
    module = STAGES[stage]
    module.run(build(module.Config, config), workdir)


def run_pipeline(stages: Mapping[str, Mapping[str, Any]], workdir: str) -> None:
    """Run named stages in order, each in its own folder under `workdir`, skipping those that are complete."""
    for config in stages.values():  # a mistake in the last stage is said before the first one runs
        build(STAGES[config["stage"]].Config, config)
    for name, config in stages.items():
        folder = Path(workdir) / name
        if is_complete(folder):
            print(f"== {name}: complete, skipped ({folder})", flush=True)
            continue
        run(config, str(folder))


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)  # TFDS warns about every folder that it is about to make
    retain_memory()
    enable_persistent_cache()
    try:
        with processes.initialize(flags.FLAGS):
            run(_CONFIG.value, str(_WORKDIR.value))
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if flags.FLAGS["traceback"].value:
            raise
        sys.exit(f"error: {error}")


processes.define_flags()
flags.DEFINE_bool("traceback", False, "Show the Python traceback of an error.")

if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_main)
