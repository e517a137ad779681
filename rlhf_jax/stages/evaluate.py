"""Evaluate checkpoints side by side: are they preferred, are they better, and what did it cost?

    1  every checkpoint answers the same test prompts and reads the same validation documents, and
       is asked whatever the world can ask besides (`evaluation.measurements`); each measurement is
       kept in workdir/partial
    2  judges compare the responses; numbers get intervals (`evaluation.results`)
    3  evaluation.json, and a table in the terminal

Checkpoints, prompts and judges may be any. Who judges, and the suite of what is measured, is handed
in by `rlhf_jax.main`. A killed evaluation continues with the next measurement. The same seed gives
the same file.

Left out on purpose: several devices; human judges; public benchmarks, which are the stage
`benchmark`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    LoadedModel,
    check_names,
    describe,
    find_checkpoint,
    load_language_model,
    load_scalar_model,
    load_tokenizer_of,
    parents_first,
)
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.judges import Judge
from rlhf_jax.evaluation.measurements import (
    Context,
    Data,
    EvalSettings,
    Measurement,
    restore_responses,
    take_first,
)
from rlhf_jax.evaluation.results import Results, Suite, judge_all, side_by_side
from rlhf_jax.evaluation.table import Cache, Row, print_table, row_to_json, write_json
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.training.run import claim


@dataclass(frozen=True)
class DataConfig:
    """Test prompts, and the corpus on which the alignment tax is paid."""

    data_dir: str
    prompts: str
    documents: str | None  # None measures no loss
    mask_documents: bool  # as in pretraining
    prompt_length: int


@dataclass(frozen=True)
class Evaluation:
    """How much is measured."""

    num_prompts: int
    samples_per_prompt: int  # at least 2 with a reward model, whose accuracy is measured on pairs
    labelers_per_prompt: int  # of a judge that is a group of people
    response_length: int
    corpus_documents: int
    document_length: int  # tokens read at once
    batch_size: int
    num_bootstrap: int
    num_side_by_side: int


@dataclass(frozen=True)
class WorldConfig:
    """What can be asked in a toy world only; `rlhf_jax.main` makes a suite of it."""

    name: str
    toxicity_prompts: int  # of each tone
    toxicity_samples: int
    few_shot_questions: int  # of each number of examples


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads; a path that starts with ../ is relative to the workdir."""

    stage: Literal["evaluate"]
    seed: int
    checkpoints: dict[str, str]  # name -> run folder or checkpoint folder
    reference: str  # one of the names
    reward: str | None  # a reward model's folder
    judges: dict[str, str]  # what the table calls a judge -> KIND:NAME
    data: DataConfig
    sampling: SamplingSpec
    evaluation: Evaluation
    world: WorldConfig | None


def run(config: Config, workdir: str, *, judges: Mapping[str, Judge], suite: Suite) -> None:
    """Evaluate all checkpoints; write evaluation.json and print the table.

    `judges` are those that `config.judges` names, and `suite` says what is measured of every
    checkpoint.
    """
    folder = Path(workdir)
    _check(config)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = parents_first(
        {name: find_checkpoint(folder, path) for name, path in config.checkpoints.items()}
    )
    reward = find_checkpoint(folder, config.reward) if config.reward is not None else None
    _check_checkpoints(config, checkpoints, reward)
    claim(folder, config)
    context = _context(config, checkpoints[config.reference], reward, suite)
    _announce(config, folder, checkpoints, context)
    kept = Cache(folder / "partial")
    shared = _Shared(suite, context, checkpoints[config.reference], reward, kept)
    measured = {name: _measure(shared, name, ref) for name, ref in checkpoints.items()}
    bootstrap = Bootstrap(config.evaluation.num_bootstrap, config.seed)
    results = judge_all(context.prompts, config.reference, measured, judges, bootstrap)
    rows = [row for make in suite.rows.values() for row in make(results)]
    _report(config, folder, checkpoints, results, rows)


def _announce(
    config: Config, workdir: Path, checkpoints: Mapping[str, CheckpointRef], context: Context
) -> None:
    print(f"== evaluate: {workdir}")
    for name, checkpoint in checkpoints.items():
        mark = ", the reference" if name == config.reference else ""
        meta = checkpoint.meta
        print(f"   {name:12s} <- {checkpoint.path} (stage {meta.stage}, step {meta.step}{mark})")
    print(
        f"   {len(context.prompts)} test prompts x {config.evaluation.samples_per_prompt} "
        f"responses, {len(context.documents)} documents, seed {config.seed}",
        flush=True,
    )


# --- what takes part ------------------------------------------------------------------------------


def _check(config: Config) -> None:
    check_names(config.checkpoints, config.reference)
    evaluation = config.evaluation
    require(
        config.reward is None or evaluation.samples_per_prompt >= 2,
        f"evaluation.samples_per_prompt={evaluation.samples_per_prompt}: reward={config.reward!r} "
        "is rated by pairs of responses to one prompt, set it to 2 or more",
    )
    numbers = {"prompt_length": config.data.prompt_length, **asdict(evaluation)}
    if config.world is not None:
        numbers |= {name: n for name, n in asdict(config.world).items() if name != "name"}
    for name, number in numbers.items():
        least = 0 if name == "num_side_by_side" else 1
        require(number >= least, f"{name}={number}: must be positive")
    taken = {"text", "finished", "score"} & set(config.judges)
    require(
        not taken, f"judges: the name {min(taken, default='')!r} has another meaning, choose one"
    )


def _check_checkpoints(
    config: Config, checkpoints: Mapping[str, CheckpointRef], reward: CheckpointRef | None
) -> None:
    """Require one tokenizer, the right kinds, and room for prompts, responses and documents."""
    first = checkpoints[config.reference]
    length = config.data.prompt_length + config.evaluation.response_length
    document = config.evaluation.document_length
    for name, checkpoint in {**checkpoints, **({"reward": reward} if reward else {})}.items():
        meta = checkpoint.meta
        kind = "scalar_model" if checkpoint is reward else "language_model"
        limit = checkpoint.model.context_length
        require(
            meta.kind == kind,
            f"{name}: {checkpoint.path} is a {meta.kind} (stage {meta.stage}), expected a {kind}",
        )
        require(
            meta.tokenizer == first.meta.tokenizer,
            f"{name}: {checkpoint.path} and {first.path} have different tokenizers "
            f"({meta.tokenizer[:12]} and {first.meta.tokenizer[:12]})",
        )
        require(
            length <= limit,
            f"{name}: data.prompt_length + evaluation.response_length = {length}, "
            f"its context is {limit}",
        )
        require(
            checkpoint is reward or document <= limit,
            f"{name}: evaluation.document_length={document}, its context is {limit}",
        )


def _context(
    config: Config, reference: CheckpointRef, reward: CheckpointRef | None, suite: Suite
) -> Context:
    """Read the test prompts and documents, and bring all that measurements share."""
    data, evaluation = config.data, config.evaluation
    tokenizer = load_tokenizer_of(reference)
    prompts = load(data.prompts, Prompt, split="test", data_dir=data.data_dir)
    prompts = fitting_prompts(prompts, tokenizer, prompt_length=data.prompt_length)
    documents: list[Document] = []
    if data.documents is not None:
        corpus = load(data.documents, Document, split="validation", data_dir=data.data_dir)
        documents = take_first("evaluation.corpus_documents", evaluation.corpus_documents, corpus)
    return Context(
        tokenizer=tokenizer,
        settings=EvalSettings(
            seed=config.seed,
            sampling=config.sampling,
            samples_per_prompt=evaluation.samples_per_prompt,
            prompt_length=data.prompt_length,
            response_length=evaluation.response_length,
            document_length=evaluation.document_length,
            batch_size=evaluation.batch_size,
        ),
        prompts=take_first("evaluation.num_prompts", evaluation.num_prompts, prompts),
        documents=documents,
        mask_documents=data.mask_documents,
        questions=suite.questions(tokenizer, evaluation.document_length),
        load_reference=cache(partial(load_language_model, reference)),
        load_reward=cache(partial(load_scalar_model, reward or reference)),
    )


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What the measurements of all checkpoints share."""

    suite: Suite
    context: Context
    reference: CheckpointRef
    reward: CheckpointRef | None
    kept: Cache


def _measure(shared: _Shared, name: str, checkpoint: CheckpointRef) -> dict[str, Data]:
    """Make all measurements of a checkpoint, or take them from the cache."""
    context, is_reference = shared.context, checkpoint is shared.reference
    load_checkpoint: Callable[[], LoadedModel] = context.load_reference
    if not is_reference:
        load_checkpoint = cache(partial(load_language_model, checkpoint))
    others = {"divergence": None if is_reference else shared.reference, "reward": shared.reward}
    asked = repr(context)
    measured: dict[str, Data] = {}
    for group, function in shared.suite.measurements.items():
        other = others.get(group)
        if (group in others and other is None) or (group == "corpus" and not context.documents):
            continue
        start = time.perf_counter()
        depends_on = {
            "asked": asked,
            "checkpoint": checkpoint.meta.fingerprint,
            "other": other.meta.fingerprint if other else None,
            "version": __version__,
        }
        measure = partial(_load_and_measure, load_checkpoint, function, context)
        measured[group], was_kept = shared.kept.get(name, group, depends_on, measure)
        took = "kept" if was_kept else f"{time.perf_counter() - start:.1f} s"
        print(f"   {name:12s} {group:12s} {took}", flush=True)
        if group == "responses":
            context = replace(context, responses=restore_responses(measured[group]))
    return measured


def _load_and_measure(
    load_checkpoint: Callable[[], LoadedModel], function: Measurement, context: Context
) -> Data:
    return function(load_checkpoint(), context)


# --- reporting ------------------------------------------------------------------------------------


def _report(
    config: Config,
    workdir: Path,
    checkpoints: Mapping[str, CheckpointRef],
    results: Results,
    rows: Sequence[Row],
) -> None:
    """Write evaluation.json and print its table."""
    content: dict[str, Any] = {
        "checkpoints": describe(checkpoints),
        "reference": config.reference,
        "table": [row_to_json(row) for row in rows],
        "samples": side_by_side(results, config.evaluation.num_side_by_side),
        "seed": config.seed,
        "version": __version__,
    }
    write_json(workdir / "evaluation.json", content, indent=1)
    below = {name: f"{ref.meta.stage} {ref.meta.step}" for name, ref in checkpoints.items()}
    print_table(rows, below, config.reference, Console())
    print(f"   wrote {workdir / 'evaluation.json'}", flush=True)
