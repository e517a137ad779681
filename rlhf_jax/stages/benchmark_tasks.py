"""From the benchmarks that a config names to what is asked of every checkpoint.

A `Task` is one measurement that is kept on disk, and the rows that are made of it. A benchmark whose path is empty is
one row that says so.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.config import require
from rlhf_jax.data.records import Comparison, Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.benchmarks import (
    crows_pairs,
    judged_wins,
    multiple_choice,
    plain_text,
    real_toxicity_prompts,
    reward_accuracy,
    truthfulqa,
)
from rlhf_jax.evaluation.benchmarks.real_toxicity_prompts import INSTRUCTIONS
from rlhf_jax.evaluation.benchmarks.toxicity_classifier import (
    Scorer,
    load_classifier,
    load_transformers_classifier,
)
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    find,
    load_language_model,
    load_scalar_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import Data, Row, format_conversation, not_run, side_by_side
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.training.pretrained import HUB


# The fields of every public benchmark, as an experiment file sets them; an empty path leaves a benchmark out.
@dataclass(frozen=True)
class TruthfulQA:
    """TruthfulQA.csv."""

    path: str
    close_answers: bool  # end every answer with a full stop, as the original script does
    response_length: int  # of free answers; 0 for multiple choice alone


@dataclass(frozen=True)
class CrowSPairs:
    """crows_pairs_anonymized.csv."""

    path: str
    instructions: tuple[str, ...]  # basic, respectful, biased


@dataclass(frozen=True)
class RealToxicityPrompts:
    """Files of original records, and who judges the continuations: a classifier, or a file of scores."""

    paths: tuple[str, ...]
    instructions: tuple[str, ...]
    samples_per_prompt: int
    response_length: int
    sampling: SamplingSpec
    classifier: str  # a folder with weights.npz and vocab.json, or hf:NAME, hf:FOLDER of a transformers sequence classifier
    label: str  # that means toxic, of a transformers classifier
    scores: str


@dataclass(frozen=True)
class Comparisons:
    """Rankings by people, for reward models."""

    source: str
    split: str
    subset_field: str  # of the metadata; "" for no subsets
    num_bins: int
    sections: dict[str, dict[str, float]]  # section -> subset -> weight; {} for none
    section_weights: dict[str, float]


@dataclass(frozen=True)
class WinRate:
    """Prompts, and the reward model that judges what checkpoints answer."""

    prompts: str
    split: str
    judge: str
    samples_per_prompt: int
    response_length: int
    sampling: SamplingSpec


@dataclass(frozen=True)
class MultipleChoice:
    """JSON lines of question, choices, answer; examples are the training set's."""

    path: str
    examples: str
    shots: tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """Plain text: `text:FILE`, or a source of documents."""

    source: str
    split: str
    window: int
    stride: int


@dataclass(frozen=True)
class Benchmarks:
    """What is run; an empty path or source leaves a benchmark out."""

    truthfulqa: TruthfulQA
    crows_pairs: CrowSPairs
    real_toxicity_prompts: RealToxicityPrompts
    comparisons: Comparisons
    win_rate: WinRate
    multiple_choice: MultipleChoice
    text: Text


@dataclass(frozen=True)
class How:
    """What all benchmarks share."""

    seed: int
    limit: int  # at most so many questions of each, drawn with the seed; 0 for all
    batch_size: int
    bootstrap: Bootstrap
    reference: str
    data_dir: str
    workdir: Path


class Loaded(NamedTuple):
    """A checkpoint's model and parameters, and its tokenizer."""

    model: Any
    tokenizer: Tokenizer

    @classmethod
    def of(cls, one: CheckpointRef) -> "Loaded":
        """Load a language model or reward model."""
        load_parameters = (
            load_scalar_model if one.meta.kind == "scalar_model" else load_language_model
        )
        return cls(load_parameters(one), load_tokenizer_of(one))


@dataclass(frozen=True)
class Task:
    """One measurement of every checkpoint of a kind. `depends_on` is all that its result depends on besides the checkpoint;
    `length` is how many tokens a model must be able to hold; `samples` picks texts to show, of a task that makes some.
    """

    name: str
    kind: str
    depends_on: Any
    length: int
    measure: Callable[[Loaded], Data]
    rows: Callable[[Mapping[str, Data]], list[Row]]
    samples: Callable[[Mapping[str, Data], int], list[dict[str, Any]]] = lambda measured, count: []


def tasks(config: Benchmarks, how: How) -> tuple[list[Task], list[Row]]:
    """Everything that is asked, and a row for each benchmark that is not run.

    Raises:
        FileNotFoundError, ValueError: for whatever is wrong with a file or field, before any model is loaded.
    """
    parts: dict[str, tuple[Any, str, Callable[..., Iterator[Task]]]] = {
        truthfulqa.GROUP: (config.truthfulqa, "path", _truthfulqa),
        crows_pairs.GROUP: (config.crows_pairs, "path", _crows_pairs),
        real_toxicity_prompts.GROUP: (
            config.real_toxicity_prompts,
            "paths",
            _real_toxicity_prompts,
        ),
        reward_accuracy.GROUP: (config.comparisons, "source", _comparisons),
        judged_wins.GROUP: (config.win_rate, "prompts", _win_rate),
        multiple_choice.GROUP: (config.multiple_choice, "path", _multiple_choice),
        plain_text.GROUP: (config.text, "source", _text),
    }
    asked: list[Task] = []
    absent: list[Row] = []
    for group, (part, field, make) in parts.items():
        if getattr(part, field):
            asked += make(part, how)
        else:
            absent.append(not_run(group, f"its {field} is empty in the config"))
    return asked, absent


def _some(items: Sequence[Any], how: How, what: str) -> list[Any]:
    """All items, or `limit` of them drawn with the seed; repeated ones are counted and kept, as in published numbers."""
    drawn = list(range(len(items)))
    if how.limit and how.limit < len(items):
        drawn = sorted(random.Random(how.seed).sample(drawn, how.limit))
    repeated = len(drawn) - len({repr(items[n]) for n in drawn})
    print(
        f"   {what}: {len(drawn)} of {len(items)}{f', of which {repeated} repeat another' if repeated else ''}",
        flush=True,
    )
    return [items[n] for n in drawn]


def digest(*asked: Any) -> str:
    """A fingerprint of what is asked."""
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _truthfulqa(config: TruthfulQA, how: How) -> Iterator[Task]:
    questions = _some(
        truthfulqa.read(config.path, close=config.close_answers), how, "TruthfulQA questions"
    )
    yield Task(
        "truthfulqa",
        "language_model",
        digest(questions),
        2,
        lambda one: truthfulqa.measure(
            one.model, one.tokenizer, questions, batch_size=how.batch_size
        ),
        lambda measured: truthfulqa.rows(questions, measured, how.bootstrap),
    )
    if config.response_length:
        yield Task(
            "truthfulqa-answers",
            "language_model",
            digest(questions, config.response_length),
            config.response_length + 1,
            lambda one: truthfulqa.answer(
                one.model,
                one.tokenizer,
                questions,
                response_length=config.response_length,
                batch_size=how.batch_size,
            ),
            lambda measured: truthfulqa.answer_rows(questions, measured, how.bootstrap),
            side_by_side(
                truthfulqa.GROUP,
                [question.text for question in questions],
                lambda data, n: {"text": data["texts"][n]},
            ),
        )


def _check_instructions(field: str, instructions: Sequence[str]) -> None:
    known = ", ".join(INSTRUCTIONS)
    unknown = [name for name in instructions if name not in INSTRUCTIONS]
    require(
        bool(instructions) and not unknown,
        f"{field}.instructions={list(instructions)}: expected some of {known}",
    )


def _crows_pairs(config: CrowSPairs, how: How) -> Iterator[Task]:
    _check_instructions("crows_pairs", config.instructions)
    pairs = _some(crows_pairs.read(config.path), how, "CrowS-Pairs pairs")
    for instruction in config.instructions:
        yield _crows_pairs_after(instruction, pairs, how)


def _crows_pairs_after(instruction: str, pairs: list[crows_pairs.Pair], how: How) -> Task:
    return Task(
        f"crows-pairs-{instruction}",
        "language_model",
        digest(pairs, instruction),
        2,
        lambda one: crows_pairs.measure(
            one.model, one.tokenizer, pairs, instruction=instruction, batch_size=how.batch_size
        ),
        lambda measured: crows_pairs.rows(pairs, measured, how.bootstrap, instruction=instruction),
    )


def _real_toxicity_prompts(config: RealToxicityPrompts, how: How) -> Iterator[Task]:
    _check_instructions("real_toxicity_prompts", config.instructions)
    require(
        not (config.classifier and config.scores),
        "real_toxicity_prompts: classifier and scores are both set, expected at most one judge",
    )
    read = [real_toxicity_prompts.read(path) for path in config.paths]
    unscored = sum(count for _, count in read)
    prompts = _some(
        [prompt for found, _ in read for prompt in found],
        how,
        f"RealToxicityPrompts prompts ({unscored} left out without a score)",
    )
    judge = None
    if config.classifier:
        judge = real_toxicity_prompts.by_classifier(_classifier(config))
    elif config.scores:
        judge = real_toxicity_prompts.by_file(config.scores)
    for instruction in config.instructions:
        yield _real_toxicity_after(instruction, prompts, judge, config, how)


def _classifier(config: RealToxicityPrompts) -> Scorer:
    foreign = config.classifier.startswith(HUB)
    require(
        foreign == bool(config.label),
        f"real_toxicity_prompts: classifier={config.classifier!r} with label={config.label!r}: a transformers classifier "
        f"({HUB}...) needs the label that means toxic, a classifier of words has none",
    )
    return (
        load_transformers_classifier(config.classifier, config.label)
        if foreign
        else load_classifier(config.classifier)
    )


def _real_toxicity_after(
    instruction: str,
    prompts: list[real_toxicity_prompts.ToxicityPrompt],
    judge: real_toxicity_prompts.Judge | None,
    config: RealToxicityPrompts,
    how: How,
) -> Task:
    def measure(one: Loaded) -> Data:
        return real_toxicity_prompts.measure(
            one.model,
            one.tokenizer,
            prompts,
            instruction=instruction,
            spec=config.sampling,
            response_length=config.response_length,
            samples_per_prompt=config.samples_per_prompt,
            batch_size=how.batch_size,
            seed=how.seed,
        )

    def rows(measured: Mapping[str, Data]) -> list[Row]:
        folder = how.workdir / "continuations"
        for name, data in measured.items():
            real_toxicity_prompts.write(folder / f"{name}-{instruction}.jsonl", prompts, data)
        if judge is None:
            why = "no judge: set classifier, or have the files in the folder continuations of this run scored and set scores"
            return [not_run(real_toxicity_prompts.GROUP, why, after=f", {instruction} instruction")]
        toxicity = {
            name: real_toxicity_prompts.toxicities(prompts, data, judge)
            for name, data in measured.items()
        }
        who = (
            config.classifier
            if config.label
            else "a classifier of words"
            if config.classifier
            else "the scores of a file"
        )
        said = f"judged by {who}"
        return real_toxicity_prompts.rows(
            prompts, measured, toxicity, how.bootstrap, instruction=instruction, judge=said
        )

    asked = digest(
        prompts,
        instruction,
        config.sampling,
        config.response_length,
        config.samples_per_prompt,
        how.seed,
    )
    shown = side_by_side(
        f"{real_toxicity_prompts.GROUP}, {instruction}",
        [INSTRUCTIONS[instruction] + prompt.text for prompt in prompts],
        lambda data, n: {"text": data["texts"][n][0]},
    )
    return Task(
        f"real-toxicity-{instruction}",
        "language_model",
        asked,
        config.response_length + 1,
        measure,
        rows,
        shown,
    )


def _comparisons(config: Comparisons, how: How) -> Iterator[Task]:
    _check_sections(config)
    found = load(config.source, Comparison, split=config.split, data_dir=how.data_dir)
    comparisons = _some(found, how, "comparisons")
    subsets = reward_accuracy.subset_names(comparisons, config.subset_field)
    yield Task(
        "comparisons",
        "scalar_model",
        digest(comparisons),
        2,
        lambda one: reward_accuracy.measure(
            one.model, one.tokenizer, comparisons, batch_size=how.batch_size
        ),
        lambda measured: reward_accuracy.rows(
            comparisons,
            measured,
            how.bootstrap,
            subsets=subsets,
            num_bins=config.num_bins,
            sections=config.sections,
            section_weights=config.section_weights,
        ),
    )


def _check_sections(config: Comparisons) -> None:
    weights = {"comparisons.section_weights": config.section_weights}
    weights |= {f"comparisons.sections.{name}": part for name, part in config.sections.items()}
    require(config.num_bins >= 1, f"comparisons.num_bins={config.num_bins}: must be positive")
    require(
        set(config.sections) == set(config.section_weights),
        f"comparisons.section_weights has {', '.join(config.section_weights) or 'nothing'}, "
        f"comparisons.sections {', '.join(config.sections) or 'nothing'}: give every section its weight",
    )
    for name, part in weights.items():
        require(
            not config.sections or (min(part.values(), default=0) >= 0 and sum(part.values()) > 0),
            f"{name}={part}: weights must not be negative, and some positive",
        )


def _win_rate(config: WinRate, how: How) -> Iterator[Task]:
    judge = find(how.workdir, config.judge)
    kind = judge.meta.kind
    require(
        kind == "scalar_model",
        f"win_rate.judge: {config.judge} is a {kind}, expected a scalar_model",
    )
    found = load(config.prompts, Prompt, split=config.split, data_dir=how.data_dir)
    # Rankings give a prompt once for each; asked again it would count as another one in the intervals.
    different = list({prompt.messages: prompt for prompt in found}.values())
    prompts = _some(different, how, "different prompts for win rates")
    opened = cache(lambda: Loaded.of(judge))

    def measure(one: Loaded) -> Data:
        answers = judged_wins.measure(
            one.model,
            one.tokenizer,
            prompts,
            spec=config.sampling,
            response_length=config.response_length,
            samples_per_prompt=config.samples_per_prompt,
            batch_size=how.batch_size,
            seed=how.seed,
        )
        scored = judged_wins.score(
            opened().model, opened().tokenizer, prompts, answers, batch_size=how.batch_size
        )
        return {**scored, "answers": answers["answers"]}

    def first(data: Data, n: int) -> dict[str, Any]:
        text, finished = data["answers"][n][0]
        return {"text": text, "finished": finished, "score": data["scores"][n][0]}

    yield Task(
        "win-rate",
        "language_model",
        digest(
            prompts,
            config.sampling,
            config.response_length,
            config.samples_per_prompt,
            how.seed,
            judge.meta.fingerprint,
        ),
        config.response_length + 1,
        measure,
        lambda measured: judged_wins.rows(prompts, measured, how.reference, how.bootstrap),
        side_by_side(
            judged_wins.GROUP, [format_conversation(prompt.messages) for prompt in prompts], first
        ),
    )


def _multiple_choice(config: MultipleChoice, how: How) -> Iterator[Task]:
    questions = _some(multiple_choice.read(config.path), how, "multiple-choice questions")
    require(
        bool(config.shots) and min(config.shots) >= 0,
        f"multiple_choice.shots={list(config.shots)}: expected 0 or more",
    )
    require(
        bool(config.examples) or not max(config.shots),
        f"multiple_choice.shots={list(config.shots)}: examples is empty, give a file of them or shots of [0]",
    )
    examples = multiple_choice.read(config.examples) if config.examples else []
    for shots in config.shots:
        yield _multiple_choice_after(shots, questions, examples, how)


def _multiple_choice_after(
    shots: int,
    questions: list[multiple_choice.Question],
    examples: list[multiple_choice.Question],
    how: How,
) -> Task:
    for question in questions:
        multiple_choice.context(
            question, examples, shots, how.seed
        )  # complains before any model is loaded
    return Task(
        f"multiple-choice-{shots}",
        "language_model",
        digest(questions, examples, shots, how.seed),
        2,
        lambda one: multiple_choice.measure(
            one.model,
            one.tokenizer,
            questions,
            examples,
            shots=shots,
            batch_size=how.batch_size,
            seed=how.seed,
        ),
        lambda measured: multiple_choice.rows(questions, measured, how.bootstrap, shots=shots),
    )


def _text(config: Text, how: How) -> Iterator[Task]:
    plain_text.windows([0, 0], window=config.window, stride=config.stride)
    kind, _, name = config.source.partition(":")
    if kind == "text":
        documents = plain_text.read(name)
    else:
        found = load(config.source, Document, split=config.split, data_dir=how.data_dir)
        documents = _some(found, how, "documents of plain text")
    yield Task(
        "text",
        "language_model",
        digest(documents, config.window, config.stride),
        config.window,
        lambda one: plain_text.measure(
            one.model,
            one.tokenizer,
            documents,
            window=config.window,
            stride=config.stride,
            batch_size=how.batch_size,
        ),
        lambda measured: plain_text.rows(
            documents, measured, how.bootstrap, window=config.window, stride=config.stride
        ),
    )
