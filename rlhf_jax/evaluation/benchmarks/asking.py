"""Plain text in front of a model: what it finds how likely, and how it goes on.

Context and answer are encoded as one text, because that is how a model has read all text before: some tokenizers begin
every text they are given with a space, and would put a second one into an answer encoded by itself. What is judged of an
answer begins at the first token in which any answer to the question departs from the context encoded alone. Where the
answer starts a new word, those are the answer's own tokens; where a token spans the border, all answers of one question
are still judged from the same column, after the same tokens.

In front of every text stands what a document's first token follows (`Tokenizer.start_ids`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import ROUND, Generation, complete
from rlhf_jax.evaluation.likelihood import Continuation, common_length, continuation_logps
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.models.heads import Params

T = TypeVar("T")


class Asked(NamedTuple):
    """A context, which may be empty, and the answers to choose from, each with the space before it."""

    context: str
    answers: Sequence[str]


class Told(NamedTuple):
    """Summed log-probability and number of tokens of each answer."""

    logp_C: np.ndarray
    length_C: np.ndarray


def continuations(tokenizer: Tokenizer, asked: Sequence[Asked]) -> list[list[Continuation]]:
    """The token ids of every answer to every question behind their common context."""
    texts = [one.context + answer for one in asked for answer in ("", *one.answers)]
    encoded = iter(tokenizer.encode_batch(texts, special=False))
    start, found = tokenizer.start_ids, []
    for one in asked:
        context, *whole = [next(encoded) for _ in range(1 + len(one.answers))]
        shared = min(common_length(context, ids) for ids in whole)
        found.append([Continuation([*start, *ids[:shared]], ids[shared:]) for ids in whole])
    return found


def answer_logps(
    one: LoadedModel, tokenizer: Tokenizer, asked: Sequence[Asked], *, batch_size: int
) -> list[Told | None]:
    """What the model says of every answer; None where one of a question's answers does not fit its context."""
    groups = continuations(tokenizer, asked)
    found = by_group(continuation_logps, one, groups, batch_size=batch_size)
    return [
        None if logp_C is None else Told(logp_C, np.array([len(item.ids) for item in group]))
        for logp_C, group in zip(found, groups, strict=True)
    ]


def by_group(
    measure: Callable[..., np.ndarray],
    one: tuple[Any, Params],
    groups: Sequence[list[Continuation]],
    *,
    batch_size: int,
) -> list[np.ndarray | None]:
    """`continuation_logps` or `scores` of every group; None where one of its texts does not fit the model's context."""
    length = one[0].config.context_length
    fits = [all(len(item.context) + len(item.ids) <= length for item in group) for group in groups]

    def split(kept: list[list[Continuation]]) -> list[np.ndarray]:
        flat = measure(*one, [item for group in kept for item in group], batch_size=batch_size)
        return np.split(flat, np.cumsum([len(group) for group in kept])[:-1])

    return of_kept(fits, groups, split)


def completions(
    one: LoadedModel,
    tokenizer: Tokenizer,
    contexts: Sequence[str],
    key: jax.Array,
    *,
    spec: SamplingSpec,
    response_length: int,
    num_samples: int,
    batch_size: int,
) -> list[list[Generation] | None]:
    """How the model continues plain texts; None where there is no room for `response_length` tokens after one.

    Raises:
        ValueError: if the model's context is no longer than `response_length`.
    """
    room = one.model.config.context_length - response_length
    if room < 1:
        raise ValueError(
            f"response_length={response_length}: the model's context is {one.model.config.context_length}"
        )
    start = tokenizer.start_ids
    ids = [[*start, *encoded] for encoded in tokenizer.encode_batch(contexts, special=False)]

    def draw(fitting: list[list[int]]) -> list[list[Generation]]:
        """Batches of similar lengths: what is padded, and its cache, is read again for every token drawn."""
        width_N = np.array([min(room, -(-len(row) // ROUND) * ROUND) for row in fitting])
        drawn: dict[int, list[Generation]] = {}
        for width in np.unique(width_N):
            members = np.flatnonzero(width_N == width)
            drawn |= zip(
                members.tolist(),
                complete(
                    *one,
                    tokenizer,
                    [fitting[n] for n in members],
                    jax.random.fold_in(key, int(width)),
                    spec=spec,
                    prompt_length=int(width),
                    response_length=response_length,
                    batch_size=batch_size,
                    num_samples=num_samples,
                ),
                strict=True,
            )
        return [drawn[n] for n in range(len(fitting))]

    return of_kept([len(row) <= room for row in ids], ids, draw)


def of_kept(keep: Sequence[bool], items: Sequence[T], of: Callable[[list[T]], Sequence]) -> list:
    """`of` the items that are to be kept, None in place of the others."""
    kept = [item for item, wanted in zip(items, keep, strict=True) if wanted]
    results = iter(of(kept) if kept else [])
    return [next(results) if wanted else None for wanted in keep]
