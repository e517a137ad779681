"""Ask few-shot multiple-choice questions by GPT-3's protocol (Brown et al. 2020, section 2.4).

    context = K solved examples drawn at random for every question, then the question, up to where
              the answer starts
    choice  = argmax over choices c of
        summed             log P(c | context)
        per token          log P(c | context) / tokens of c
        against "Answer:"  log P(c | context) - log P(c | "Answer:")

A file has a JSON object a line: {"question": text, "choices": [text, ...], "answer": index from 0,
or one of the choices}. Examples come from a file of their own, the training set; a question is
never its own example. Right is a choice whose score is above all others': a tie is wrong, whereas
argmax would favour the first.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from rlhf_jax.data.public import rows as fields
from rlhf_jax.data.public.rows import Row as FileRow
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Measured, Metric
from rlhf_jax.evaluation.benchmarks.files import read_jsonl, text
from rlhf_jax.evaluation.benchmarks.questions import AnswerChoices, answer_logps
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import Data, Row
from rlhf_jax.maths.benchmark_metrics import Normalisation, choice_scores

ANSWER = "Answer:"
METHODS: dict[str, Normalisation] = {
    "summed": "none",
    "per token": "token",
    f'against "{ANSWER}"': "context",
}


class Question(NamedTuple):
    """Hold a question with its choices; `answer` is the index of the right one."""

    text: str
    choices: tuple[str, ...]
    answer: int


def read(path: str) -> list[Question]:
    """Read the questions of a file.

    Raises:
        FileNotFoundError, ValueError: as `read_jsonl`; and for a field that is missing or empty,
            fewer than two choices, two that are the same, or an answer that is none of them.
    """
    return read_jsonl(path, _read_question)


def _read_question(row: FileRow) -> Question:
    choices = fields.field(row, "choices")
    answer = fields.field(row, "answer")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError(f"choices: {choices!r}, expected a list of texts that are not empty")
    texts = tuple(choice.strip() for choice in choices)
    if len(set(texts)) != len(texts) or len(texts) < 2:
        raise ValueError(f"choices: {choices!r}, expected at least two, all different")
    if isinstance(answer, str) and answer.strip() in texts:
        answer = texts.index(answer.strip())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(texts):
        expected = f"a place from 0 to {len(texts) - 1} or a choice"
        raise ValueError(f"answer: {answer!r}, expected {expected}")
    return Question(text(row, "question"), texts, answer)


@dataclass(frozen=True)
class MultipleChoice(Benchmark):
    """Score the choices of every question after a number (`shots`) of solved examples."""

    group: ClassVar[str] = "Few-shot multiple choice"
    questions: Sequence[Question]
    examples: Sequence[Question]
    shots: int
    seed: int

    @property
    def name(self) -> str:
        return f"multiple-choice-{self.shots}"

    def context(self, number: int) -> str:
        """Return the examples drawn for the question of this number, and the question.

        Raises:
            ValueError: if there are not so many other questions among the examples.
        """
        question = self.questions[number]
        others = [example for example in self.examples if example.text != question.text]
        if self.shots > len(others):
            found = f"only {len(others)} examples besides the question itself"
            raise ValueError(f"multiple_choice.shots={self.shots}: {found}")
        chosen = random.Random(self.seed + 1_000_003 * number).sample(others, self.shots)
        examples_text = "".join(
            f"Question: {example.text}\n{ANSWER} {example.choices[example.answer]}\n\n"
            for example in chosen
        )
        return f"{examples_text}Question: {question.text}\n{ANSWER}"

    def measure(self, model: LoadedModel, tokenizer: Tokenizer, *, batch_size: int) -> Data:
        """Return log-probabilities and tokens of all choices, after the context and "Answer:"."""
        answers = [[" " + choice for choice in question.choices] for question in self.questions]
        in_context = [AnswerChoices(self.context(n), texts) for n, texts in enumerate(answers)]
        context_free = [AnswerChoices(ANSWER, texts) for texts in answers]
        both = [*in_context, *context_free]
        logps = answer_logps(model, tokenizer, both, batch_size=batch_size)
        numbers = [n for n in range(len(answers)) if n in logps and n + len(answers) in logps]
        return {
            "kept": numbers,
            "logps": [logps[n].logp_C for n in numbers],
            "lengths": [logps[n].length_C for n in numbers],
            "free": [logps[n + len(answers)].logp_C for n in numbers],
        }

    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return the accuracy by each of the three scores."""
        text = "right choice has the highest score: log-probability, {} (Brown et al. 2020, 2.4)"
        metrics = {method: Metric("higher", text.format(method)) for method in METHODS}
        hits = {
            name: {method: self.hits(data, how) for method, how in METHODS.items()}
            for name, data in measurements.items()
        }
        shots = f", K = {self.shots}"
        rows = self.score_rows(metrics, hits, bootstrap, f"multiple choice{shots}, {{}}")
        return rows + self.left_out(measurements, self.questions, "questions", after=shots)

    def hits(self, data: Data, normalisation: Normalisation) -> np.ndarray:
        """Return for every kept question whether the right choice alone scores highest."""
        hits = []
        logps = zip(data["logps"], data["lengths"], data["free"], strict=True)
        for number, (logp_C, length_C, free_C) in zip(data["kept"], logps, strict=True):
            score_C = choice_scores(
                logp_C, normalisation=normalisation, length_C=length_C, context_free_logp_C=free_C
            )
            right = self.questions[number].answer
            hits.append(score_C[right] > np.delete(score_C, right).max())
        return np.array(hits)
