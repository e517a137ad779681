"""Evaluate checkpoints side by side: are they preferred, are they better, and what did it cost?

    1  every checkpoint answers the same test prompts and reads the same validation documents, and
       is asked whatever the world can ask besides (`evaluation.measurements`); each measurement is
       kept in workdir/partial
       controls (`evaluation.controls`) stand beside them: what the reference gives without training
    2  judges compare the responses; numbers get intervals (`evaluation.results`)
    3  evaluation.json, and a table in the terminal

Checkpoints, prompts and judges may be any. Who judges, and the suite of what is measured, is handed
in by `rlhf_jax.main`. A killed evaluation continues with the next measurement. The same seed gives
the same file.

Left out on purpose: several devices; human judges; public benchmarks, which are the stage
`benchmark`.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    Findings,
    LoadedModel,
    announce,
    check_names,
    find_checkpoint,
    find_checkpoints,
    load_language_model,
    load_scalar_model,
    load_tokenizer_of,
    write_results,
)
from rlhf_jax.evaluation.controls import Control, best_of
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.generate import GenerationSettings
from rlhf_jax.evaluation.judges import Judge
from rlhf_jax.evaluation.measurements import (
    Context,
    EvalSettings,
    Measurement,
    restore_responses,
    take_first,
)
from rlhf_jax.evaluation.results import Suite, judge_all, side_by_side
from rlhf_jax.evaluation.table import Cache, Data
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.training.checkpoints import CheckpointKind
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
    best_of: int  # samples of the reference, of which the reward model chooses; 0 leaves it out
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
    constant_suffix: bool  # the reference's answers after one rule of manners, as a control


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
    folder, reference = Path(workdir), config.reference
    _check(config)
    controls = _controls(config, suite)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = find_checkpoints(folder, config.checkpoints)
    reward = find_checkpoint(folder, config.reward) if config.reward is not None else None
    _check_checkpoints(config, checkpoints, reward)
    claim(folder, config)
    context = _context(config, checkpoints[reference], reward, suite)
    announce(f"evaluate: {folder}", checkpoints, reference)
    print(
        f"   {len(context.prompts)} test prompts x {config.evaluation.samples_per_prompt} "
        f"responses, {len(context.documents)} documents, seed {config.seed}",
        flush=True,
    )
    shared = _Shared(suite, context, checkpoints[reference], reward, Cache(folder / "partial"))
    measured = {name: _measure(shared, name, ref) for name, ref in checkpoints.items()}
    answers = restore_responses(measured[reference]["responses"]) if controls else None
    shared = replace(shared, context=replace(context, responses=answers))
    measured |= {name: _measure_control(shared, name, make) for name, make in controls.items()}
    bootstrap = Bootstrap(config.evaluation.num_bootstrap, config.seed)
    results = judge_all(context.prompts, reference, measured, judges, bootstrap)
    rows = [row for make in suite.rows.values() for row in make(results)]
    samples = side_by_side(results, config.evaluation.num_side_by_side)
    findings = Findings(rows, samples, results.controls, suite.warnings(results))
    write_results(folder, checkpoints, findings, config)


# --- what takes part ------------------------------------------------------------------------------


def _check(config: Config) -> None:
    check_names(config.checkpoints, config.reference)
    evaluation = config.evaluation
    require(
        config.reward is None or evaluation.samples_per_prompt >= 2,
        f"evaluation.samples_per_prompt={evaluation.samples_per_prompt}: reward={config.reward!r} "
        "is rated by pairs of responses to one prompt, set it to 2 or more",
    )
    require(
        config.reward is not None or evaluation.best_of == 0,
        f"evaluation.best_of={evaluation.best_of}: reward=None, and nothing else chooses among "
        "responses; name a reward model, or set best_of to 0",
    )
    numbers = {"prompt_length": config.data.prompt_length, **asdict(evaluation)}
    if config.world is not None:
        others = ("name", "constant_suffix")
        numbers |= {name: n for name, n in asdict(config.world).items() if name not in others}
    for name, number in numbers.items():
        least = 0 if name in ("num_side_by_side", "best_of") else 1
        require(number >= least, f"{name}={number}: must be positive")
    taken = min({"text", "finished", "score"} & set(config.judges), default=None)
    require(taken is None, f"judges: the name {taken!r} has another meaning, choose one")


def _check_checkpoints(
    config: Config, checkpoints: Mapping[str, CheckpointRef], reward: CheckpointRef | None
) -> None:
    """Require one tokenizer, the right kinds, and room for prompts, responses and documents."""
    first = checkpoints[config.reference]
    length = config.data.prompt_length + config.evaluation.response_length
    document = config.evaluation.document_length
    for name, checkpoint in {**checkpoints, **({"reward": reward} if reward else {})}.items():
        path, meta = checkpoint.path, checkpoint.meta
        is_reward = checkpoint is reward
        kind = CheckpointKind.SCALAR_MODEL if is_reward else CheckpointKind.LANGUAGE_MODEL
        limit = f"its context is {checkpoint.model.context_length}"
        require(
            meta.kind == kind,
            f"{name}: {path} is a {meta.kind} (stage {meta.stage}), expected a {kind}",
        )
        require(
            meta.tokenizer == first.meta.tokenizer,
            f"{name}: {path} and {first.path} have different tokenizers "
            f"({meta.tokenizer[:12]} and {first.meta.tokenizer[:12]})",
        )
        require(
            length <= checkpoint.model.context_length,
            f"{name}: data.prompt_length + evaluation.response_length = {length}, {limit}",
        )
        require(
            checkpoint is reward or document <= checkpoint.model.context_length,
            f"{name}: evaluation.document_length={document}, {limit}",
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
    responses = GenerationSettings(
        config.sampling,
        data.prompt_length,
        evaluation.response_length,
        evaluation.batch_size,
        evaluation.samples_per_prompt,
    )
    length = evaluation.document_length
    return Context(
        tokenizer=tokenizer,
        settings=EvalSettings(config.seed, responses, length, data.mask_documents),
        prompts=take_first("evaluation.num_prompts", evaluation.num_prompts, prompts),
        documents=documents,
        questions=suite.questions(tokenizer, length),
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
        depends_on = _dependencies(asked, checkpoint, other)
        measure = partial(_load_and_measure, load_checkpoint, function, context)
        measured[group] = shared.kept.timed(name, group, depends_on, measure)
        if group == "responses":
            context = replace(context, responses=restore_responses(measured[group]))
    return measured


def _controls(config: Config, suite: Suite) -> dict[str, Control]:
    """Return by name what stands beside the checkpoints."""
    n = config.evaluation.best_of
    controls: dict[str, Control] = {f"best_of_{n}": partial(best_of, n)} if n > 0 else {}
    controls |= suite.controls
    taken = min(set(controls) & set(config.checkpoints), default=None)
    require(taken is None, f"checkpoints: the name {taken!r} is that of a control, choose another")
    return controls


def _measure_control(shared: _Shared, name: str, control: Control) -> dict[str, Data]:
    """Measure what can be said of a control's answers; `shared` has the reference's answers."""
    context, suite = shared.context, shared.suite
    settings = _dependencies(repr(context), shared.reference, shared.reward)
    load_reference = context.load_reference
    answer = partial(_load_and_measure, load_reference, control, context)
    measured = {"responses": shared.kept.timed(name, "responses", settings, answer)}
    answers = restore_responses(measured["responses"])
    context = replace(context, responses=answers)
    for group in suite.of_answers:
        if group == "reward" and shared.reward is None:
            continue
        measure = partial(_load_and_measure, load_reference, suite.measurements[group], context)
        measured[group] = shared.kept.timed(name, group, settings, measure)
    return measured


def _dependencies(
    asked: str, checkpoint: CheckpointRef, other: CheckpointRef | None
) -> dict[str, str | None]:
    """Return what a measurement is kept for: another question, model or version measures anew."""
    return {
        "asked": asked,
        "checkpoint": checkpoint.meta.fingerprint,
        "version": __version__,
        "other": other.meta.fingerprint if other else None,
    }


def _load_and_measure(
    load_checkpoint: Callable[[], LoadedModel], function: Measurement, context: Context
) -> Data:
    return function(load_checkpoint(), context)
