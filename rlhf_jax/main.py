"""Run one stage, or a pipeline of stages, from an experiment config.

    python -m rlhf_jax.main --config=experiments/menagerie/ppo.py --workdir=runs/ppo \
        --config.ppo.kl_coef=0.05
"""

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import rlhf_jax.menagerie.builders  # noqa: F401  TFDS knows Menagerie's data from here on
from rlhf_jax.config import build, plan_pipeline
from rlhf_jax.data.sources import remembering
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

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment file with get_config().", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder continues it.")
_TRACK = flags.DEFINE_string(
    "track",
    ",".join(trackers.DEFAULT),
    f"Whom to tell besides metrics.jsonl: {', '.join(trackers.TRACKERS)}, or '' for nobody.",
)
flags.DEFINE_bool("traceback", False, "Show the Python traceback of an error.")
processes.define_flags()


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
    for config in stages.values():  # a mistake in the last stage is said before the first one runs
        build_settings(config)
    for name, config in stages.items():
        folder = Path(workdir) / name
        if is_complete(folder):
            print(f"== {name}: complete, skipped ({folder})", flush=True)
        else:
            run(config, str(folder))


def build_settings(config: Mapping[str, Any]) -> Any:
    """Return the `Config` of the stage that a config names; ValueError if it does not fit."""
    if config["stage"] not in STAGES:
        known = ", ".join([*STAGES, "pipeline"])
        raise ValueError(f"config.stage: {config['stage']!r} is not one of {known}")
    settings = build(STAGES[config["stage"]].Config, config)
    for name in judge_names(settings.rewards).values() if config["stage"] in REWARDED else ():
        split_judge(name)
    return settings


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


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.ERROR)  # TFDS warns about every folder that it is about to make
    retain_memory()
    enable_persistent_cache()
    try:
        names = trackers.read_trackers(_TRACK.value)
        # Innermost what explains a full disk: its errors have many types.
        with (
            processes.initialize(flags.FLAGS),
            trackers.tracked_by(names),
            processes.explained_endings(),
        ):
            run(_CONFIG.value, str(_WORKDIR.value))
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if flags.FLAGS["traceback"].value:
            raise
        sys.exit(f"error: {error}")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it, or in the config file, is one line.

    absl and ml_collections show the traceback of a config file that fails or is not there, and of a
    field that does not exist; here that takes --traceback, as everywhere.
    """
    try:
        rest = list(flags.FLAGS(argv))
        if _CONFIG.present:
            _CONFIG.value.get("stage")  # of a file that could not be read, the value is an error
        return rest
    except Exception as error:  # a config file may raise anything
        if "--traceback" in argv:
            raise
        sys.exit(f"error: {describe_flag_error(error)}")


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


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(_main, flags_parser=parse_flags)
