"""Few-shot multiple choice by GPT-3's protocol (Brown et al. 2020, section 2.4).

    context = K solved examples drawn at random for every question, then the question, up to where the answer starts
    choice  = argmax over choices c of
        summed             log P(c | context)
        per token          log P(c | context) / tokens of c
        against "Answer:"  log P(c | context) - log P(c | "Answer:")

A file has a JSON object a line: {"question": text, "choices": [text, ...], "answer": index from 0, or one of the choices}.
Examples come from a file of their own, the training set; a question is never its own example. Right is a choice whose
score is above all others': a tie is wrong, whereas argmax would favour the first.
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates
from rlhf_jax.evaluation.benchmarks import asking, reading
from rlhf_jax.evaluation.benchmarks.asking import Asked
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import Data, Measured, Row, estimates_of, kept_questions, left_out
from rlhf_jax.maths.benchmark_metrics import Normalisation, choice_scores

GROUP = "Few-shot multiple choice"
ANSWER = "Answer:"
METHODS: dict[Normalisation, str] = {
    "none": "summed",
    "token": "per token",
    "context": f'against "{ANSWER}"',
}


class Question(NamedTuple):
    """A question with choices; `answer` is the index of the right one."""

    text: str
    choices: tuple[str, ...]
    answer: int


def read(path: str) -> list[Question]:
    """The questions of a file.

    Raises:
        FileNotFoundError, ValueError: as `reading.read_jsonl`; and for a field that is missing or empty, fewer than two
            choices, two that are the same, or an answer that is none of them.
    """
    return [_question(placed) for placed in reading.read_jsonl(path)]


def _question(placed: reading.Located) -> Question:
    choices, answer = reading.field(placed, "choices"), reading.field(placed, "answer")
    if not isinstance(choices, list) or not all(
        isinstance(one, str) and one.strip() for one in choices
    ):
        raise ValueError(
            f"{placed.where}: choices: {choices!r}, expected a list of texts that are not empty"
        )
    stripped = tuple(one.strip() for one in choices)
    if len(set(stripped)) != len(stripped) or len(stripped) < 2:
        raise ValueError(
            f"{placed.where}: choices: {choices!r}, expected at least two, all different"
        )
    if isinstance(answer, str) and answer.strip() in stripped:
        answer = stripped.index(answer.strip())
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(stripped):
        raise ValueError(
            f"{placed.where}: answer: {answer!r}, expected a place from 0 to {len(stripped) - 1} or a choice"
        )
    return Question(reading.text(placed, "question"), stripped, answer)


def context(question: Question, examples: Sequence[Question], shots: int, seed: int) -> str:
    """`shots` examples drawn with `seed`, and the question.

    Raises:
        ValueError: if there are not so many other questions among the examples.
    """
    others = [one for one in examples if one.text != question.text]
    if shots > len(others):
        raise ValueError(
            f"multiple_choice.shots={shots}: only {len(others)} examples besides the question itself"
        )
    chosen = random.Random(seed).sample(others, shots)
    solved = "".join(
        f"Question: {one.text}\n{ANSWER} {one.choices[one.answer]}\n\n" for one in chosen
    )
    return f"{solved}Question: {question.text}\n{ANSWER}"


def measure(
    one: LoadedModel,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    examples: Sequence[Question],
    *,
    shots: int,
    batch_size: int,
    seed: int,
) -> Data:
    """Log-probabilities and lengths in tokens of all choices, after the context and after "Answer:" alone."""
    answers = [[" " + choice for choice in question.choices] for question in questions]
    contexts = [
        context(question, examples, shots, seed + 1_000_003 * n)
        for n, question in enumerate(questions)
    ]
    asked = [Asked(*pair) for pair in zip(contexts, answers, strict=True)]
    alone = [Asked(ANSWER, given) for given in answers]
    told = asking.answer_logps(one, tokenizer, [*asked, *alone], batch_size=batch_size)
    after, free = told[: len(questions)], told[len(questions) :]
    both = [
        None if one is None or other is None else (one, other)
        for one, other in zip(after, free, strict=True)
    ]
    return {
        "kept": kept_questions(both),
        "logps": [pair[0].logp_C for pair in both if pair],
        "lengths": [pair[0].length_C for pair in both if pair],
        "free": [pair[1].logp_C for pair in both if pair],
    }


def rows(
    questions: Sequence[Question], measured: Measured, bootstrap: Bootstrap, *, shots: int
) -> list[Row]:
    """Accuracy by each of the three scores."""
    made = []
    for normalisation in get_args(Normalisation):
        hits = {name: _hits(questions, data, normalisation) for name, data in measured.items()}
        text = f"right choice has the highest score: log-probability, {METHODS[normalisation]} (Brown et al. 2020, 2.4)"
        made.append(
            Row(
                GROUP,
                f"multiple choice, K = {shots}, {METHODS[normalisation]}",
                "",
                "higher",
                text,
                estimates_of(hits, estimates.share, bootstrap),
            )
        )
    return made + left_out(GROUP, measured, len(questions), "questions", after=f", K = {shots}")


def _hits(
    questions: Sequence[Question], data: Mapping[str, list], normalisation: Normalisation
) -> np.ndarray:
    hits = []
    for place, logp_C, length_C, free_C in zip(
        data["kept"], data["logps"], data["lengths"], data["free"], strict=True
    ):
        score_C = choice_scores(
            logp_C, normalisation=normalisation, length_C=length_C, context_free_logp_C=free_C
        )
        right = questions[place].answer
        hits.append(float(score_C[right] > np.delete(score_C, right).max()))
    return np.array(hits)
