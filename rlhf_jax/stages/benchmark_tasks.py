"""Make benchmarks of the config: read and check their files, and choose the questions.

A new benchmark needs a config here, a function that makes it, and an entry in `BENCHMARKS`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.config import require
from rlhf_jax.data.records import Comparison, Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.benchmarks import (
    crows_pairs,
    judged_wins,
    multiple_choice,
    plain_text,
    reward_accuracy,
    truthfulqa,
)
from rlhf_jax.evaluation.benchmarks import real_toxicity_prompts as rtp
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark, not_run
from rlhf_jax.evaluation.benchmarks.questions import INSTRUCTIONS, ResponseSettings
from rlhf_jax.evaluation.benchmarks.toxicity_classifier import (
    load_transformers_classifier,
    load_word_classifier,
)
from rlhf_jax.evaluation.checkpoints import find_checkpoint
from rlhf_jax.evaluation.table import Row
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.pretrained import is_foreign


@dataclass(frozen=True)
class TruthfulQAConfig:
    """Name TruthfulQA.csv."""

    path: str
    close_answers: bool  # end every answer with a full stop, as the original script does
    free_answers: bool  # the model's own answers too, besides multiple choice
    response_length: int  # of free answers


@dataclass(frozen=True)
class CrowSPairsConfig:
    """Name crows_pairs_anonymized.csv."""

    path: str
    instructions: tuple[str, ...]  # basic, respectful, biased


@dataclass(frozen=True)
class RealToxicityPromptsConfig:
    """Name files of original records, and what judges continuations: a classifier or a file."""

    paths: tuple[str, ...]
    instructions: tuple[str, ...]
    samples_per_prompt: int
    response_length: int
    sampling: SamplingSpec
    # A folder with weights.npz and vocab.json, or hf:FOLDER, hub:ORG/NAME of transformers.
    classifier: str | None
    label: str | None  # the one that means toxic, of a classifier of transformers
    scores: str | None


@dataclass(frozen=True)
class ComparisonsConfig:
    """Name rankings by people, for reward models."""

    source: str
    split: str
    subset_field: str | None  # of the metadata
    num_bins: int
    sections: dict[str, dict[str, float]]  # section -> subset -> weight
    section_weights: dict[str, float]


@dataclass(frozen=True)
class WinRateConfig:
    """Name prompts, and the reward model that judges what checkpoints answer."""

    prompts: str
    split: str
    judge: str
    samples_per_prompt: int
    response_length: int
    sampling: SamplingSpec


@dataclass(frozen=True)
class MultipleChoiceConfig:
    """Name JSON lines of question, choices, answer; examples are the training set's."""

    path: str
    examples: str | None
    shots: tuple[int, ...]


@dataclass(frozen=True)
class TextConfig:
    """Name plain text: `text:FILE`, or a source of documents."""

    source: str
    split: str
    window: int
    stride: int


@dataclass(frozen=True)
class BenchmarksConfig:
    """Say which benchmarks are run, in the order of the table; None leaves one out."""

    truthfulqa: TruthfulQAConfig | None
    crows_pairs: CrowSPairsConfig | None
    real_toxicity_prompts: RealToxicityPromptsConfig | None
    comparisons: ComparisonsConfig | None
    win_rate: WinRateConfig | None
    multiple_choice: MultipleChoiceConfig | None
    text: TextConfig | None


@dataclass(frozen=True)
class Selection:
    """Say which questions are asked and of whom, for all benchmarks."""

    seed: int
    limit: int | None  # at most so many questions of each benchmark, drawn with the seed
    reference: str
    data_dir: str
    workdir: Path

    def choose(self, items: Sequence[Any], what: str) -> list[Any]:
        """Return the chosen items; repeated ones are counted and kept, as in published numbers."""
        numbers = list(range(len(items)))
        if self.limit is not None and self.limit < len(items):
            numbers = sorted(random.Random(self.seed).sample(numbers, self.limit))
        num_repeated = len(numbers) - len({repr(items[number]) for number in numbers})
        repeated = f", of which {num_repeated} repeat another" if num_repeated else ""
        print(f"   {what}: {len(numbers)} of {len(items)}{repeated}", flush=True)
        return [items[number] for number in numbers]

    def responses(self, config: RealToxicityPromptsConfig | WinRateConfig) -> ResponseSettings:
        """Return how responses to prompts are sampled."""
        count = config.samples_per_prompt
        return ResponseSettings(config.sampling, config.response_length, count, self.seed)


def make_benchmarks(
    config: BenchmarksConfig, selection: Selection
) -> tuple[list[Benchmark], list[Row]]:
    """Return all measurements that are made, and a row for each benchmark that is not run.

    Raises:
        FileNotFoundError, ValueError: for whatever is wrong with a file or field, before any model
            is loaded.
    """
    benchmarks: list[Benchmark] = []
    absent_rows = []
    for name, benchmark_config in vars(config).items():
        group, make = BENCHMARKS[name]
        if benchmark_config is None:
            absent_rows.append(not_run(group, f"benchmarks.{name} is None in the config"))
        else:
            benchmarks += make(benchmark_config, selection)
    return benchmarks, absent_rows


def make_truthfulqa(config: TruthfulQAConfig, selection: Selection) -> list[Benchmark]:
    """Read the questions; free answers are a measurement of their own."""
    read = truthfulqa.read(config.path, close=config.close_answers)
    questions = selection.choose(read, "TruthfulQA questions")
    benchmarks: list[Benchmark] = [truthfulqa.TruthfulQA(questions)]
    if config.free_answers:
        length = config.response_length
        require(length >= 1, f"truthfulqa.response_length={length}: must be positive")
        benchmarks.append(truthfulqa.TruthfulQAAnswers(questions, length))
    return benchmarks


def make_crows_pairs(config: CrowSPairsConfig, selection: Selection) -> list[Benchmark]:
    """Read the pairs, for one measurement after every instruction."""
    _check_instructions("crows_pairs", config.instructions)
    pairs = selection.choose(crows_pairs.read(config.path), "CrowS-Pairs pairs")
    return [crows_pairs.CrowSPairs(pairs, instruction) for instruction in config.instructions]


def make_real_toxicity_prompts(
    config: RealToxicityPromptsConfig, selection: Selection
) -> list[Benchmark]:
    """Read the prompts and load the judge, for one measurement after every instruction."""
    _check_instructions("real_toxicity_prompts", config.instructions)
    files = [rtp.read(path) for path in config.paths]
    records = [prompt for prompts, _ in files for prompt in prompts]
    unscored = f"{sum(count for _, count in files)} left out without a score"
    prompts = selection.choose(records, f"RealToxicityPrompts prompts ({unscored})")
    judge, how = _toxicity_judge(config), selection.responses(config)
    return [rtp.RealToxicityPrompts(prompts, text, how, judge) for text in config.instructions]


def _check_instructions(field: str, instructions: Sequence[str]) -> None:
    known = bool(instructions) and set(instructions) <= set(INSTRUCTIONS)
    message = f"{field}.instructions={list(instructions)}: expected some of"
    require(known, f"{message} {', '.join(INSTRUCTIONS)}")


def _toxicity_judge(config: RealToxicityPromptsConfig) -> rtp.ToxicityJudge | None:
    require(
        config.classifier is None or config.scores is None,
        "real_toxicity_prompts: classifier and scores are both set, expected at most one judge",
    )
    if config.scores is not None:
        return rtp.FileJudge.read(config.scores)
    if config.classifier is None:
        return None
    foreign = is_foreign(config.classifier)
    require(
        foreign == (config.label is not None),
        f"real_toxicity_prompts: classifier={config.classifier!r} with label={config.label!r}: a "
        f"transformers classifier (hf:, hub:) needs the label that means toxic, a classifier of "
        "words has none",
    )
    if config.label is None:
        words = load_word_classifier(config.classifier)
        return rtp.ClassifierJudge(words, "judged by a classifier of words")
    classifier = load_transformers_classifier(config.classifier, config.label)
    return rtp.ClassifierJudge(classifier, f"judged by {config.classifier}")


def make_comparisons(config: ComparisonsConfig, selection: Selection) -> list[Benchmark]:
    """Read the rankings and check the weights of their sections."""
    weights = {"comparisons.section_weights": config.section_weights}
    weights |= {f"comparisons.sections.{name}": part for name, part in config.sections.items()}
    require(config.num_bins >= 1, f"comparisons.num_bins={config.num_bins}: must be positive")
    require(
        set(config.sections) == set(config.section_weights),
        f"comparisons.section_weights has {', '.join(config.section_weights) or 'nothing'}, "
        f"comparisons.sections {', '.join(config.sections) or 'nothing'}: give every section its "
        "weight",
    )
    for name, part in weights.items():
        require(
            not config.sections or (min(part.values(), default=0) >= 0 and sum(part.values()) > 0),
            f"{name}={part}: weights must not be negative, and some positive",
        )
    records = load(config.source, Comparison, split=config.split, data_dir=selection.data_dir)
    comparisons = selection.choose(records, "comparisons")
    subsets = reward_accuracy.subset_names(comparisons, config.subset_field)
    sections = (config.sections, config.section_weights)
    return [reward_accuracy.RewardAccuracy(comparisons, config.num_bins, subsets, *sections)]


def make_win_rate(config: WinRateConfig, selection: Selection) -> list[Benchmark]:
    """Return the win-rate benchmark of a config: find its judge and read its prompts."""
    judge = find_checkpoint(selection.workdir, config.judge)
    kind = judge.meta.kind
    expected = "expected a scalar_model"
    require(
        kind == CheckpointKind.SCALAR_MODEL,
        f"win_rate.judge: {config.judge} is a {kind}, {expected}",
    )
    records = load(config.prompts, Prompt, split=config.split, data_dir=selection.data_dir)
    # Rankings give a prompt once for each; asked again it would count as another one in the
    # intervals.
    different = list({prompt.messages: prompt for prompt in records}.values())
    prompts = selection.choose(different, "different prompts for win rates")
    settings = selection.responses(config)
    return [judged_wins.JudgedWins(prompts, settings, judge, selection.reference)]


def make_multiple_choice(config: MultipleChoiceConfig, selection: Selection) -> list[Benchmark]:
    """Read questions and examples, for one measurement after every number of examples."""
    questions = selection.choose(multiple_choice.read(config.path), "multiple-choice questions")
    shots = f"multiple_choice.shots={list(config.shots)}"
    require(bool(config.shots) and min(config.shots) >= 0, f"{shots}: expected 0 or more")
    require(
        config.examples is not None or not max(config.shots),
        f"{shots}: examples is None, give a file of them or shots of [0]",
    )
    examples = [] if config.examples is None else multiple_choice.read(config.examples)
    benchmarks = [
        multiple_choice.MultipleChoice(questions, examples, number, selection.seed)
        for number in config.shots
    ]
    for benchmark in benchmarks:
        for number in range(len(questions)):
            benchmark.context(number)  # raises if the examples are too few
    return list(benchmarks)


def make_text(config: TextConfig, selection: Selection) -> list[Benchmark]:
    """Read the documents; a text file is one."""
    window, stride = config.window, config.stride
    plain_text.split_windows([0, 0], window=window, stride=stride)  # raises for impossible ones
    kind, _, path = config.source.partition(":")
    if kind == "text":
        documents = plain_text.read(path)
    else:
        records = load(config.source, Document, split=config.split, data_dir=selection.data_dir)
        documents = selection.choose(records, "documents of plain text")
    return [plain_text.PlainText(documents, window, stride)]


# The group in the table, and the function that makes the benchmark of its config, by the field of
# `BenchmarksConfig`.
BENCHMARKS: dict[str, tuple[str, Callable[[Any, Selection], list[Benchmark]]]] = {
    "truthfulqa": (truthfulqa.GROUP, make_truthfulqa),
    "crows_pairs": (crows_pairs.CrowSPairs.group, make_crows_pairs),
    "real_toxicity_prompts": (rtp.RealToxicityPrompts.group, make_real_toxicity_prompts),
    "comparisons": (reward_accuracy.RewardAccuracy.group, make_comparisons),
    "win_rate": (judged_wins.JudgedWins.group, make_win_rate),
    "multiple_choice": (multiple_choice.MultipleChoice.group, make_multiple_choice),
    "text": (plain_text.PlainText.group, make_text),
}
