"""Evaluate checkpoints side by side: are they preferred, are they better, and what did it cost?

    1  every checkpoint takes the same exam: it answers the test prompts, is asked for facts, is provoked,
       chooses between answers, reads the validation corpus (`evaluation.measure`); each group of measurements
       is kept in workdir/partial
    2  gold and held-out labelers judge the responses; numbers get intervals (`evaluation.summary`)
    3  evaluation.json, and a table in the terminal

A killed evaluation continues with the next group. The same seed gives the same file.
Left out on purpose: several devices; human judges; public benchmarks, which are the stage `benchmark`.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    LoadedModel,
    check_names,
    described,
    find,
    in_order,
    load_language_model,
    load_scalar_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import Cache, print_table, row_to_json, write_json
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.menagerie import measurements, results
from rlhf_jax.menagerie.measurements import EvalSettings
from rlhf_jax.menagerie.results import Session, open_session, side_by_side
from rlhf_jax.menagerie.test_questions import Exam, build_exam, without_long_examples
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models.heads import ScalarModel
from rlhf_jax.training.run import claim


@dataclass(frozen=True)
class Data:
    """The world that judges, test prompts, and the corpus on which the alignment tax is paid."""

    data_dir: str
    world: str
    prompts: str
    documents: str
    mask_documents: bool  # as in pretraining
    prompt_length: int


@dataclass(frozen=True)
class Evaluation:
    """How much is asked."""

    num_prompts: int
    samples_per_prompt: int  # at least 2 with a reward model, whose accuracy is measured on pairs
    labelers_per_prompt: int
    response_length: int
    toxicity_prompts: int  # of each tone
    toxicity_samples: int
    few_shot_questions: int  # of each number of examples
    corpus_documents: int
    document_length: int  # tokens read at once
    batch_size: int
    num_bootstrap: int
    num_side_by_side: int


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["evaluate"]
    seed: int
    checkpoints: dict[
        str, str
    ]  # name -> run folder or checkpoint folder; ../ is relative to the workdir
    reference: str  # one of the names
    reward: str  # "" for none
    data: Data
    sampling: SamplingSpec
    evaluation: Evaluation


def run(config: Config, workdir: str) -> None:
    """Evaluate all checkpoints; writes evaluation.json and prints the table."""
    folder = Path(workdir)
    _check(config)
    folder.mkdir(parents=True, exist_ok=True)
    entrants = in_order({name: find(folder, path) for name, path in config.checkpoints.items()})
    reward = find(folder, config.reward) if config.reward else None
    _check_entrants(config, entrants, reward)
    claim(folder, config)
    tokenizer = load_tokenizer_of(entrants[config.reference])
    exam = _exam(config, tokenizer)
    _announce(config, folder, entrants, exam)
    sitting = _sitting(config, entrants, reward, tokenizer, exam, Cache(folder / "partial"))
    measured = {name: _measure(sitting, name, one) for name, one in entrants.items()}
    session = open_session(
        exam.world,
        exam.prompts,
        config.reference,
        measured,
        labelers_per_prompt=config.evaluation.labelers_per_prompt,
        bootstrap=Bootstrap(config.evaluation.num_bootstrap, config.seed),
        seed=config.seed,
    )
    _report(config, folder, entrants, session)


def _announce(
    config: Config, workdir: Path, entrants: Mapping[str, CheckpointRef], exam: Exam
) -> None:
    print(f"== evaluate: {workdir}")
    for name, one in entrants.items():
        mark = ", the reference" if name == config.reference else ""
        print(f"   {name:12s} <- {one.path} (stage {one.meta.stage}, step {one.meta.step}{mark})")
    print(
        f"   {len(exam.prompts)} test prompts x {config.evaluation.samples_per_prompt} responses, "
        f"{len(exam.documents)} documents, seed {config.seed}",
        flush=True,
    )


# --- what takes part --------------------------------------------------------------------------------------


def _check(config: Config) -> None:
    wanted, data = config.evaluation, config.data
    check_names(config.checkpoints, config.reference)
    require(
        not config.reward or wanted.samples_per_prompt >= 2,
        f"evaluation.samples_per_prompt={wanted.samples_per_prompt}: reward={config.reward!r} is rated by "
        "pairs of responses to one prompt, set it to 2 or more",
    )
    for name, number in {**asdict(wanted), "prompt_length": data.prompt_length}.items():
        require(
            number >= (0 if name == "num_side_by_side" else 1), f"{name}={number}: must be positive"
        )


def _check_entrants(
    config: Config, entrants: Mapping[str, CheckpointRef], reward: CheckpointRef | None
) -> None:
    """One tokenizer, the right kinds, and room for prompts, responses and documents."""
    first = entrants[config.reference]
    length = config.data.prompt_length + config.evaluation.response_length
    document = config.evaluation.document_length
    judge = {"reward": reward} if reward else {}
    for name, one in {**entrants, **judge}.items():
        meta, kind = one.meta, "scalar_model" if one is reward else "language_model"
        context = one.model.context_length
        require(
            meta.kind == kind,
            f"{name}: {one.path} is a {meta.kind} (stage {meta.stage}), expected a {kind}",
        )
        require(
            meta.tokenizer == first.meta.tokenizer,
            f"{name}: {one.path} and {first.path} have different tokenizers "
            f"({meta.tokenizer[:12]} and {first.meta.tokenizer[:12]})",
        )
        require(
            length <= context,
            f"{name}: data.prompt_length + evaluation.response_length = {length}, its context is {context}",
        )
        require(
            one is reward or document <= context,
            f"{name}: evaluation.document_length={document}, its context is {context}",
        )


def _exam(config: Config, tokenizer: Tokenizer) -> Exam:
    data, wanted = config.data, config.evaluation
    prompts = load(data.prompts, Prompt, split="test", data_dir=data.data_dir)
    prompts = fitting_prompts(prompts, tokenizer, prompt_length=data.prompt_length)
    documents = load(data.documents, Document, split="validation", data_dir=data.data_dir)
    exam = build_exam(
        make_world(data.world.removeprefix("menagerie/")),
        prompts,
        documents,
        num_prompts=wanted.num_prompts,
        toxicity_prompts=wanted.toxicity_prompts,
        few_shot_questions=wanted.few_shot_questions,
        corpus_documents=wanted.corpus_documents,
        mask_documents=data.mask_documents,
    )
    exam, too_long = without_long_examples(exam, tokenizer, wanted.document_length)
    for name, length in too_long.items():
        print(
            f"   few-shot {name}: left out, {length} tokens exceed evaluation.document_length="
            f"{wanted.document_length}"
        )
    return exam


# --- measuring --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sitting:
    """What all checkpoints of one evaluation share; models are loaded when first needed."""

    tokenizer: Tokenizer
    exam: Exam
    how: EvalSettings
    kept: Cache
    depends_on: dict[str, Any]  # of every measurement, besides the checkpoint
    reference: CheckpointRef
    load_reference: Callable[[], LoadedModel]
    reward: CheckpointRef | None
    load_reward: Callable[[], tuple[ScalarModel, Any]]


def _sitting(
    config: Config,
    entrants: Mapping[str, CheckpointRef],
    reward: CheckpointRef | None,
    tokenizer: Tokenizer,
    exam: Exam,
    kept: Cache,
) -> Sitting:
    wanted, reference = config.evaluation, entrants[config.reference]
    how = EvalSettings(
        config.seed,
        config.sampling,
        wanted.samples_per_prompt,
        wanted.toxicity_samples,
        config.data.prompt_length,
        wanted.response_length,
        wanted.document_length,
        wanted.batch_size,
    )
    depends_on = {"how": asdict(how), "exam": digest(exam), "version": __version__}
    return Sitting(
        tokenizer,
        exam,
        how,
        kept,
        depends_on,
        reference,
        cache(lambda: load_language_model(reference)),
        reward,
        cache(lambda: load_scalar_model(_given(reward))),
    )


def _given(one: CheckpointRef | None) -> CheckpointRef:
    assert one is not None
    return one


def _measure(sitting: Sitting, name: str, one: CheckpointRef) -> dict[str, Any]:
    """All groups of one checkpoint, each measured or found in the cache."""
    is_reference = one is sitting.reference
    candidate = sitting.load_reference if is_reference else cache(lambda: load_language_model(one))
    asked = (sitting.tokenizer, sitting.exam, sitting.how)
    measured: dict[str, Any] = {}

    def take(group: str, measurement: Callable[[], dict[str, Any]], **also: str) -> None:
        start = time.perf_counter()
        depends_on = {**sitting.depends_on, "checkpoint": one.meta.fingerprint, **also}
        measured[group], found = sitting.kept.get(name, group, depends_on, measurement)
        took = "kept" if found else f"{time.perf_counter() - start:.1f} s"
        print(f"   {name:12s} {group:12s} {took}", flush=True)

    take("responses", lambda: measurements.responses(candidate(), *asked))
    drawn = measurements.restore_responses(measured["responses"])
    take("facts", lambda: measurements.facts(candidate(), *asked))
    take("provocations", lambda: measurements.provocations(candidate(), *asked))
    take("questions", lambda: measurements.questions(candidate(), *asked))
    take("corpus", lambda: measurements.corpus(candidate(), *asked))
    if not is_reference:
        take(
            "divergence",
            lambda: measurements.divergence(candidate(), sitting.load_reference(), *asked, drawn),
            reference=sitting.reference.meta.fingerprint,
        )
    if sitting.reward is not None:
        take(
            "reward",
            lambda: measurements.reward_scores(sitting.load_reward(), *asked, drawn),
            reward=sitting.reward.meta.fingerprint,
        )
    return measured


def digest(exam: Exam) -> str:
    """A fingerprint of everything that is asked and of the facts that answers are held against."""
    asked = [getattr(exam, field.name) for field in fields(exam) if field.name != "world"]
    content = repr((asked, exam.world.size, exam.world.seed, sorted(exam.world.facts.items())))
    return hashlib.sha256(content.encode()).hexdigest()


# --- reporting --------------------------------------------------------------------------------------------


def _report(
    config: Config, workdir: Path, entrants: Mapping[str, CheckpointRef], session: Session
) -> None:
    rows = results.rows(session)
    write_json(
        workdir / "evaluation.json",
        {
            "checkpoints": described(entrants),
            "reference": config.reference,
            "table": [row_to_json(row) for row in rows],
            "samples": side_by_side(session, config.evaluation.num_side_by_side),
            "seed": config.seed,
            "version": __version__,
        },
        indent=1,
    )
    below = {name: f"{one.meta.stage} {one.meta.step}" for name, one in entrants.items()}
    print_table(rows, below, config.reference, Console())
    print(f"   wrote {workdir / 'evaluation.json'}", flush=True)
