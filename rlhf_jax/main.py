"""Run one stage, or a pipeline of stages, from an experiment config.

    python -m rlhf_jax.main --config=experiments/menagerie/ppo.py --workdir=runs/ppo \
        --config.ppo.kl_coef=0.05
"""

import re
import sys
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags, logging

from rlhf_jax import options

if __name__ == "__main__":  # --help and slips in flags are answered before JAX is imported
    options.read(sys.argv, str(__doc__))

import rlhf_jax.menagerie.builders  # noqa: F401  TFDS knows Menagerie's data from here on
from rlhf_jax.config import build, plan_pipeline
from rlhf_jax.data.sources import remembering
from rlhf_jax.describe import describe_config, format_fields
from rlhf_jax.dry_run import describe_run
from rlhf_jax.evaluation import rules
from rlhf_jax.evaluation.classifier_judge import ClassifierJudge
from rlhf_jax.evaluation.judges import (
    FileJudge,
    FunctionJudge,
    Judge,
    JudgeSettings,
    RewardModelJudge,
    hugging_face_judge,
)
from rlhf_jax.evaluation.monitor import make_monitors
from rlhf_jax.evaluation.results import Suite
from rlhf_jax.menagerie import judges as menagerie
from rlhf_jax.menagerie.results import ToySuite
from rlhf_jax.stages import (
    benchmark,
    classify,
    evaluate,
    label,
    policy_gradient,
    ppo,
    preference,
    pretrain,
    reward,
    sft,
)
from rlhf_jax.stages.rewards import judge_names
from rlhf_jax.training import processes, trackers
from rlhf_jax.training.lock import locked
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory
from rlhf_jax.training.run import is_complete

STAGES: dict[str, Any] = {
    "pretrain": pretrain,
    "sft": sft,
    "label": label,
    "reward": reward,
    "ppo": ppo,
    "policy_gradient": policy_gradient,
    "preference": preference,
    "classify": classify,
    "evaluate": evaluate,
    "benchmark": benchmark,
}
# A judge is KIND:NAME in a config; a path in NAME that starts with ../ is relative to the workdir.
JUDGES: dict[str, Callable[[str, JudgeSettings], Judge]] = {
    "menagerie": menagerie.make_judge,  # menagerie/SIZE:labelers, ...:heldout, ...:gold
    "reward": RewardModelJudge,  # reward:CHECKPOINT
    "hf": hugging_face_judge,  # hf:FOLDER, a ...ForSequenceClassification with one label
    "classifier": ClassifierJudge,  # classifier:FOLDER?label=NAME&sign=-
    "function": FunctionJudge,  # function:FILE.py:NAME, function:package.module:NAME
    "file": FileJudge,  # file:COMPARISONS.jsonl
    "answer": rules.answer_judge,  # answer:number, answer:text, against metadata["answer"]
    "regex": rules.regex_judge,  # regex:PATTERN, somewhere in the response
    "format": rules.format_judge,  # format:think_answer, format:PATTERN of the whole response
    "length": rules.length_judge,  # length:WORDS
}
REWARDED = ("ppo", "policy_gradient")  # they maximise a sum of rewards
MONITORED = ("sft", "ppo", "policy_gradient", "preference")  # what they train is a policy
EVALUATIONS = ("evaluate", "benchmark")  # they run in one process and write evaluation.json


def run(config: Mapping[str, Any], workdir: str) -> None:
    """Run the stage, or the pipeline, that `config.stage` names in `workdir`."""
    if config["stage"] == "pipeline":
        run_pipeline(plan_pipeline(config), workdir)
        return
    with locked(Path(workdir)), remembering():
        _run_stage(config, workdir)


def _run_stage(config: Mapping[str, Any], workdir: str) -> None:
    stage, settings = config["stage"], build_settings(config)
    if processes.process_count() > 1 and stage in EVALUATIONS:
        raise ValueError(
            f"config.stage: {stage} runs in one process; train with {processes.process_count()}, "
            "then run it alone"
        )
    module = STAGES[stage]
    find_judge = partial(make_judge, workdir=Path(workdir))
    if stage == "label":
        module.run(settings, workdir, find_judge)
    elif stage in MONITORED:
        data_dir, seed = settings.data.data_dir, settings.seed
        monitors = make_monitors(settings.monitor, find_judge, data_dir, seed)
        if stage in REWARDED:  # judges on the host; reward models are read inside the stage
            judged = {n: find_judge(name) for n, name in judge_names(settings.rewards).items()}
            module.run(settings, workdir, monitors, judged)
        else:
            module.run(settings, workdir, monitors)
    elif stage == "evaluate":
        labelers = settings.evaluation.labelers_per_prompt
        find_judge = partial(find_judge, labelers_per_prompt=labelers, seed=settings.seed)
        judges = {name: find_judge(judge) for name, judge in settings.judges.items()}
        world = settings.world  # what only a toy world can measure joins the same table
        suite = Suite() if world is None else ToySuite(**vars(world))
        module.run(settings, workdir, judges=judges, suite=suite)
    else:
        module.run(settings, workdir)
    if stage in EVALUATIONS:
        trackers.track_results(workdir)


def run_pipeline(stages: Mapping[str, Mapping[str, Any]], workdir: str) -> None:
    """Run named stages in order, each in a folder of `workdir`, and skip complete ones."""
    for name, config in stages.items():  # a mistake in the last is said before the first one runs
        build_settings(config, f"config.stages.{name}")
    for name, config in stages.items():
        folder = Path(workdir) / name
        if is_complete(folder):
            print(f"== {name}: complete, skipped ({folder})", flush=True)
        else:
            run(config, str(folder))


def build_settings(config: Mapping[str, Any], path: str = "config") -> Any:
    """Return the `Config` of the stage that a config names; ValueError if it does not fit."""
    if config["stage"] not in STAGES:
        known = ", ".join([*STAGES, "pipeline"])
        raise ValueError(f"{path}.stage: {config['stage']!r} is not one of {known}")
    settings = build(STAGES[config["stage"]].Config, config, path)
    for name in judge_names(settings.rewards).values() if config["stage"] in REWARDED else ():
        split_judge(name)
    return settings


def plan_stages(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the configs of the stages that a config names, by their paths in it."""
    if config["stage"] != "pipeline":
        return {"config": config}
    return {f"config.stages.{name}": stage for name, stage in plan_pipeline(config).items()}


def describe(config: Mapping[str, Any], given: Set[str]) -> str:
    """Return what every field of a config is; `given` has the paths that flags set."""
    texts = []
    for path, stage in plan_stages(config).items():
        build_settings(stage, path)
        fields = describe_config(STAGES[stage["stage"]].Config, stage, given, path)
        texts.append(format_fields(fields))
    return "\n\n".join(texts)


def dry_run(config: Mapping[str, Any], workdir: str) -> None:
    """Build and check all stages, print what they would do, and do nothing."""
    built = {path: build_settings(stage, path) for path, stage in plan_stages(config).items()}
    stages = {path.removeprefix("config").removeprefix(".stages."): c for path, c in built.items()}
    for line in describe_run(stages, Path(workdir)):
        print(line, flush=True)


def make_judge(name: str, workdir: Path, labelers_per_prompt: int = 1, seed: int = 0) -> Judge:
    """Return the judge that a config names; ValueError for an unknown kind."""
    kind, argument = split_judge(name)
    return JUDGES[kind](argument, JudgeSettings(workdir, labelers_per_prompt, seed))


def split_judge(name: str) -> tuple[str, str]:
    """Return kind and name of KIND:NAME; ValueError for an unknown kind."""
    parts = re.fullmatch(r"(\w+)[:/](.+)", name)
    if parts is None or parts[1] not in JUDGES:
        known = (
            "menagerie/SIZE:NAME, reward:CHECKPOINT, hf:FOLDER, classifier:FOLDER?label=NAME, "
            "function:FILE.py:NAME, file:COMPARISONS.jsonl, answer:number, answer:text, "
            "regex:PATTERN, format:NAME, length:WORDS"
        )
        raise ValueError(f"judge {name!r}: no such kind of judge, expected one of {known}")
    return parts[1], parts[2]


def main() -> None:
    """Do what the command line, which `options.read` has read, asks for."""
    logging.set_verbosity(logging.ERROR)  # TFDS warns about every folder that it is about to make
    retain_memory()
    enable_persistent_cache()
    try:
        if options.DESCRIBE.value:
            print(describe(options.CONFIG.value, options.given_fields()))
            return
        names = trackers.read_trackers(options.TRACK.value)
        # Innermost what explains a full disk: its errors have many types.
        with (
            processes.initialize(flags.FLAGS),
            trackers.tracked_by(names),
            processes.explained_endings(),
        ):
            start = dry_run if options.DRY_RUN.value else run
            start(options.CONFIG.value, str(options.WORKDIR.value))
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if options.TRACEBACK.value:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
