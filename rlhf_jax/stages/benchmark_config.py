"""The fields of every public benchmark, as an experiment file sets them; an empty path leaves a benchmark out."""

from dataclasses import dataclass

from rlhf_jax.inference.decoding import SamplingSpec


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
