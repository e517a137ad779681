"""Evaluate checkpoints side by side: are they preferred, are they better, and what did it cost?

    1  every checkpoint answers the same test prompts and reads the same validation documents, and
       is asked whatever the world can ask besides (`evaluation.measurements`); each measurement is
       kept in workdir/partial
       controls (`evaluation.controls`) stand beside them: what the reference gives without training
    2  judges compare the responses; numbers get intervals (`evaluation.results`)
    3  evaluation.json and a table in the terminal; samples.jsonl with all responses

Checkpoints, prompts and judges may be any: each model has its own tokenizer, and a prompt that is
too long for one of them is left out for all. Where tokenizers differ, losses are per byte and KL is
of those checkpoints alone that have the reference's. Who judges, and the suite of what is measured,
is handed in by `rlhf_jax.main`. A killed evaluation continues with the next measurement. The same
seed gives the same file.

Left out on purpose: several devices; human judges; public benchmarks, which are the stage
`benchmark`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
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
from rlhf_jax.evaluation.controls import REWARD_MODEL, Chooser, Control, best_of, weighted_judges
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.generate import GenerationSettings
from rlhf_jax.evaluation.judges import Judge, ScoreJudge
from rlhf_jax.evaluation.measurements import (
    Context,
    EvalSettings,
    Measurement,
    RewardModel,
    SecondModel,
    restore_responses,
    take_first,
)
from rlhf_jax.evaluation.results import Suite, all_samples, judge_all, side_by_side
from rlhf_jax.evaluation.table import Cache, Data
from rlhf_jax.files import write_lines
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.run import claim


@dataclass(frozen=True)
class DataConfig:
    """Test prompts, and the corpus on which the alignment tax is paid."""

    data_dir: str
    prompts: str
    prompt_splits: tuple[str, ...]  # "test" as a rule; "train" is all of a single file
    documents: str | None  # None measures no loss
    mask_documents: bool  # as in pretraining
    prompt_length: int  # tokens of every model


@dataclass(frozen=True)
class Evaluation:
    """How much is measured."""

    num_prompts: int  # the first so many that fit; 0: all
    samples_per_prompt: int  # at least 2 with a reward model, whose accuracy is measured on pairs
    best_of: int  # samples of the reference, of which the best is a control; 0 leaves it out
    reward_details: bool  # its accuracy by kind of prompt, beside what needs no reward model
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
    checkpoints: dict[str, str]  # name -> run folder, checkpoint folder or hf:FOLDER
    reference: str  # one of the names
    reward: str | None  # a reward model, written alike
    fluency: str | None  # a second language model, whose perplexity of the responses is measured
    judges: dict[str, str]  # what the table calls a judge -> KIND:NAME
    # Judge -> weight: the sum of their scores chooses the best of n; {}: the reward model does.
    best_by: dict[str, float]
    data: DataConfig
    sampling: SamplingSpec
    evaluation: Evaluation
    world: WorldConfig | None


_MAY_BE_ZERO = ("num_prompts", "num_side_by_side", "best_of", "reward_details")


def run(config: Config, workdir: str, *, judges: Mapping[str, Judge], suite: Suite) -> None:
    """Evaluate all checkpoints; write evaluation.json and print the table.

    `judges` are those that `config.judges` names, and `suite` says what is measured of every
    checkpoint.
    """
    folder, reference = Path(workdir), config.reference
    _check(config)
    controls = _controls(config, judges, suite)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = find_checkpoints(folder, config.checkpoints)
    readers = {
        name: find_checkpoint(folder, path) if path is not None else None
        for name, path in (("reward", config.reward), ("fluency", config.fluency))
    }
    _check_checkpoints(config, checkpoints, readers)
    claim(folder, config)
    tokenizers = {name: load_tokenizer_of(ref) for name, ref in checkpoints.items()}
    announce(f"evaluate: {folder}", checkpoints, reference)
    context = _context(config, tokenizers, checkpoints[reference], readers, suite)
    print(
        f"   {len(context.prompts)} test prompts x {config.evaluation.samples_per_prompt} "
        f"responses, {len(context.documents)} documents, seed {config.seed}",
        flush=True,
    )
    kept = Cache(folder / "partial")
    left_out = () if config.evaluation.reward_details else ("likelihood",)
    chosen_by = {config.judges[name]: weight for name, weight in config.best_by.items()}
    shared = _Shared(suite, context, checkpoints[reference], readers, kept, left_out, chosen_by)
    measured = {}
    for name, ref in checkpoints.items():
        own = replace(shared, context=replace(context, tokenizer=tokenizers[name]))
        measured[name] = _measure(own, name, ref)
    answers = restore_responses(measured[reference]["responses"]) if controls else None
    shared = replace(shared, context=replace(context, responses=answers))
    measured |= {name: _measure_control(shared, name, make) for name, make in controls.items()}
    bootstrap = Bootstrap(config.evaluation.num_bootstrap, config.seed)
    first, origin = next(iter(checkpoints.items()))
    raw = first if origin.meta.stage == "pretrain" else None
    results = judge_all(context.prompts, reference, measured, judges, bootstrap, raw)
    write_lines(folder / "samples.jsonl", all_samples(results))
    rows = [row for make in suite.rows.values() for row in make(results)]
    samples = side_by_side(results, config.evaluation.num_side_by_side)
    findings = Findings(rows, samples, results.controls, suite.warnings(results))
    groups = dict.fromkeys(row.group for row in rows)
    details = suite.details(groups, reference)
    write_results(folder, checkpoints, findings, config, details)


# --- what takes part ------------------------------------------------------------------------------


def _check(config: Config) -> None:
    check_names(config.checkpoints, config.reference)
    evaluation = config.evaluation
    require(
        config.reward is None or evaluation.samples_per_prompt >= 2,
        f"evaluation.samples_per_prompt={evaluation.samples_per_prompt}: reward={config.reward!r} "
        "is rated by pairs of responses to one prompt, set it to 2 or more",
    )
    require(len(config.data.prompt_splits) > 0, "data.prompt_splits: none, name at least one")
    require(
        config.reward is not None or not evaluation.reward_details,
        "evaluation.reward_details=True: reward=None; name a reward model, or set it to False",
    )
    require(
        config.reward is not None or evaluation.best_of == 0 or bool(config.best_by),
        f"evaluation.best_of={evaluation.best_of}: reward=None, and nothing else chooses among "
        "responses; name a reward model, or judges in best_by, or set best_of to 0",
    )
    for name in config.best_by:
        known = ", ".join(config.judges)
        require(name in config.judges, f"best_by: {name!r} is no judge; judges has {known}")
    numbers = {"prompt_length": config.data.prompt_length, **asdict(evaluation)}
    if config.world is not None:
        others = ("name", "constant_suffix")
        numbers |= {name: n for name, n in asdict(config.world).items() if name not in others}
    for name, number in numbers.items():
        least = 0 if name in _MAY_BE_ZERO else 1
        require(number >= least, f"{name}={number}: must be positive")
    taken = min({"text", "finished", "score"} & set(config.judges), default=None)
    require(taken is None, f"judges: the name {taken!r} has another meaning, choose one")


def _check_checkpoints(
    config: Config,
    checkpoints: Mapping[str, CheckpointRef],
    readers: Mapping[str, CheckpointRef | None],
) -> None:
    """Require the right kinds, and room for prompts, responses and documents."""
    length = config.data.prompt_length + config.evaluation.response_length
    document = config.evaluation.document_length
    reads = config.data.documents is not None or config.world is not None
    others = {name: reader for name, reader in readers.items() if reader is not None}
    for name, checkpoint in {**checkpoints, **others}.items():
        path, meta = checkpoint.path, checkpoint.meta
        is_reward = checkpoint is readers["reward"]
        kind = CheckpointKind.SCALAR_MODEL if is_reward else CheckpointKind.LANGUAGE_MODEL
        limit = f"its context is {checkpoint.model.context_length}"
        require(
            meta.kind == kind,
            f"{name}: {path} is a {meta.kind} (stage {meta.stage}), expected a {kind}",
        )
        if checkpoint is readers["fluency"]:  # texts that are too long for it are counted
            continue
        require(
            length <= checkpoint.model.context_length,
            f"{name}: data.prompt_length + evaluation.response_length = {length}, {limit}",
        )
        require(
            is_reward or not reads or document <= checkpoint.model.context_length,
            f"{name}: evaluation.document_length={document}, {limit}",
        )


def _context(
    config: Config,
    tokenizers: Mapping[str, Tokenizer],
    reference: CheckpointRef,
    readers: Mapping[str, CheckpointRef | None],
    suite: Suite,
) -> Context:
    """Read the test prompts and documents, and bring all that measurements share."""
    data, evaluation = config.data, config.evaluation
    different = {tokenizer.fingerprint(): tokenizer for tokenizer in tokenizers.values()}
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
    length, reward, fluency = evaluation.document_length, readers["reward"], readers["fluency"]
    readable = dict(different)
    if reward is not None:
        readable.setdefault(reward.meta.tokenizer, load_tokenizer_of(reward))
    return Context(
        tokenizer=tokenizers[config.reference],
        settings=EvalSettings(config.seed, responses, length, data.mask_documents),
        prompts=_read_prompts(config, list(readable.values())),
        documents=documents,
        questions=suite.questions(list(different.values()), length),
        load_reference=cache(partial(load_language_model, reference)),
        load_reward=cache(partial(_load_reward, reward or reference)),
        load_second=cache(partial(_load_second, fluency or reference)),
    )


def _read_prompts(config: Config, tokenizers: Sequence[Tokenizer]) -> list[Prompt]:
    """Return the first test prompts that every tokenizer finds short enough."""
    data = config.data
    prompts = [
        prompt
        for split in data.prompt_splits
        for prompt in load(data.prompts, Prompt, split=split, data_dir=data.data_dir)
    ]
    for tokenizer in tokenizers:  # each reports what it leaves out
        prompts = fitting_prompts(prompts, tokenizer, prompt_length=data.prompt_length)
    count = config.evaluation.num_prompts or len(prompts)
    return take_first("evaluation.num_prompts", count, prompts)


def _load_reward(checkpoint: CheckpointRef) -> RewardModel:
    return RewardModel(*load_scalar_model(checkpoint), load_tokenizer_of(checkpoint))


def _load_second(checkpoint: CheckpointRef) -> SecondModel:
    return SecondModel(load_language_model(checkpoint), load_tokenizer_of(checkpoint))


# --- measuring ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shared:
    """What the measurements of all checkpoints share."""

    suite: Suite
    context: Context
    reference: CheckpointRef
    readers: Mapping[str, CheckpointRef | None]  # who else reads the responses, by measurement
    kept: Cache
    left_out: tuple[str, ...]  # measurements that the config does not ask for
    chosen_by: Mapping[str, float]  # the judges that choose the best of n; none: the reward model


def _measure(shared: _Shared, name: str, checkpoint: CheckpointRef) -> dict[str, Data]:
    """Make all measurements of a checkpoint, or take them from the cache."""
    context, is_reference = shared.context, checkpoint is shared.reference
    load_checkpoint: Callable[[], LoadedModel] = context.load_reference
    if not is_reference:
        load_checkpoint = cache(partial(load_language_model, checkpoint))
    same_tokens = checkpoint.meta.tokenizer == shared.reference.meta.tokenizer
    if not same_tokens:
        print(f"   {name:12s} {'divergence':24s} left out: not the reference's tokenizer")
    others = {"divergence": shared.reference if same_tokens and not is_reference else None}
    others |= shared.readers
    asked = repr(context)
    measured: dict[str, Data] = {}
    for group, function in shared.suite.measurements.items():
        other = others.get(group)
        is_asked = (group != "corpus" or context.documents) and group not in shared.left_out
        if not is_asked or (group in others and other is None):
            continue
        depends_on = _dependencies(asked, checkpoint, other)
        measure = partial(_load_and_measure, load_checkpoint, function, context)
        measured[group] = shared.kept.timed(name, group, depends_on, measure)
        if group == "responses":
            context = replace(context, responses=restore_responses(measured[group]))
    return measured


def _controls(config: Config, judges: Mapping[str, Judge], suite: Suite) -> dict[str, Control]:
    """Return by name what stands beside the checkpoints."""
    n = config.evaluation.best_of
    chooser = _chooser(config, judges)
    controls: dict[str, Control] = {f"best_of_{n}": partial(best_of, n, chooser)} if n > 0 else {}
    controls |= suite.controls
    taken = min(set(controls) & set(config.checkpoints), default=None)
    require(taken is None, f"checkpoints: the name {taken!r} is that of a control, choose another")
    return controls


def _chooser(config: Config, judges: Mapping[str, Judge]) -> Chooser:
    """Return who chooses the best of n."""
    if not config.best_by:
        return REWARD_MODEL
    scoring = {name: judge for name, judge in judges.items() if isinstance(judge, ScoreJudge)}
    for name in config.best_by:
        require(name in scoring, f"best_by: {name!r} ranks and gives no number; name one that does")
    return weighted_judges(scoring, config.best_by)


def _measure_control(shared: _Shared, name: str, control: Control) -> dict[str, Data]:
    """Measure what can be said of a control's answers; `shared` has the reference's answers."""
    context, suite = shared.context, shared.suite
    reference, asked, reward = shared.reference, repr(context), shared.readers["reward"]
    load_reference = context.load_reference
    answer = partial(_load_and_measure, load_reference, control, context)
    settings = {**_dependencies(asked, reference, reward), "chosen by": shared.chosen_by}
    measured = {"responses": shared.kept.timed(name, "responses", settings, answer)}
    answers = restore_responses(measured["responses"])
    context = replace(context, responses=answers)
    for group in suite.of_answers:
        if group in shared.readers and shared.readers[group] is None:
            continue
        settings = _dependencies(asked, reference, reward, shared.readers.get(group))
        settings["chosen by"] = shared.chosen_by
        measure = partial(_load_and_measure, load_reference, suite.measurements[group], context)
        measured[group] = shared.kept.timed(name, group, settings, measure)
    return measured


def _dependencies(asked: str, *models: CheckpointRef | None) -> dict[str, Any]:
    """Return what a measurement is kept for: another question, model or version measures anew."""
    metas = [model.meta for model in models if model is not None]
    # A tokenizer also says where a response stops and how a prompt looks.
    names = [[meta.fingerprint, meta.tokenizer] for meta in metas]
    return {"asked": asked, "models": names, "version": __version__}


def _load_and_measure(
    load_checkpoint: Callable[[], LoadedModel], function: Measurement, context: Context
) -> Data:
    return function(load_checkpoint(), context)
