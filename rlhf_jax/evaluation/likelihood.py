"""What models say of given texts: the raw material of multiple choice, stereotypes, perplexity, KL and reward scores.

    every text is a context and a continuation, laid side by side and padded on the right
    what all contexts begin with, if it is long (instructions, examples), is read once, into a cache
    sort by length; pad each to the next multiple of 16; run batches of one length

So all questions of all kinds share a handful of shapes and compiles, whatever the checkpoint. Context and continuation are
encoded apart; that equals encoding the joined text whenever the continuation starts where a word starts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.batching import batch_rows, run_batches
from rlhf_jax.inference.scoring import last_token_scores, next_token_nll
from rlhf_jax.models import Cache, LanguageModel, Params, ScalarModel, apply, grow_cache, init_cache

BUCKET = 16
SHARED_FROM = 64  # tokens that contexts must have in common before a cache is worth its programs


class Continuation(NamedTuple):
    """Token ids of what is given, and of what is to be judged after it."""

    context: Sequence[int]
    ids: Sequence[int]


class Choices(NamedTuple):
    """What is given, as token ids, and the answers to choose from, as text."""

    context: Sequence[int]
    answers: Sequence[str]


def continuation_logps(
    model: LanguageModel, params: Params, items: Sequence[Continuation], *, batch_size: int
) -> np.ndarray:
    """Σ_t log π(y_t | context, y_<t) of every continuation.

    Raises:
        ValueError: for an empty context or continuation, or a text longer than the model's context.
    """
    context_length = model.config.context_length
    _check(items, context_length)
    prefix, cache = _shared([item.context for item in items]), None
    if prefix:
        cache = _read(model, params, jnp.asarray([prefix], jnp.int32))
        items = [Continuation(item.context[len(prefix) :], item.ids) for item in items]
    compute = functools.partial(_continuation_logps, model, params, cache)
    return _by_length(compute, items, batch_size, context_length - len(prefix), "log-probabilities")


def _shared(contexts: Sequence[Sequence[int]]) -> Sequence[int]:
    """What contexts begin with in common, at least one token less than each: a multiple of `BUCKET`; empty if it is short."""
    first, last = (
        min(map(tuple, contexts)),
        max(map(tuple, contexts)),
    )  # all others lie between, and begin with it too
    common = min(common_length(first, last), min(map(len, contexts)) - 1)
    return first[: common // BUCKET * BUCKET] if common >= SHARED_FROM else ()


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts have in common from the beginning."""
    differ = (number for number, (one, other) in enumerate(zip(a, b, strict=False)) if one != other)
    return next(differ, min(len(a), len(b)))


@functools.partial(jax.jit, static_argnums=0)
def _read(model: LanguageModel, params: Params, tokens_1S: jax.Array) -> Cache | None:
    """A cache that holds one row of tokens."""
    cache = init_cache(model.config, *tokens_1S.shape)
    return apply(model, params, tokens_1S, jnp.ones_like(tokens_1S), cache=cache, method="hidden")[
        1
    ]


@functools.partial(jax.jit, static_argnums=0)
def _continuation_logps(
    model: LanguageModel,
    params: Params,
    cache: Cache | None,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    start_B: jax.Array,
) -> jax.Array:
    if cache is not None:
        cache = grow_cache(cache, extra=tokens_BT.shape[1], repeats=len(tokens_BT))
    nll_BT, valid_BT = next_token_nll(model, params, tokens_BT, segments_BT, cache=cache)
    judged_BT = valid_BT & (jnp.arange(tokens_BT.shape[1])[None, :] >= start_B[:, None])
    return -jnp.where(judged_BT, nll_BT, 0.0).sum(axis=1)


def scores(
    model: ScalarModel, params: Params, items: Sequence[Continuation], *, batch_size: int
) -> np.ndarray:
    """The reward model's score of every continuation, read at its last token."""
    _check(items, model.config.context_length)
    return _by_length(
        functools.partial(_scores, model, params),
        items,
        batch_size,
        model.config.context_length,
        "scores",
    )


@functools.partial(jax.jit, static_argnums=0)
def _scores(
    model: ScalarModel,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    start_B: jax.Array,
) -> jax.Array:
    return last_token_scores(model, params, tokens_BT, segments_BT)


def choice_logps(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[Choices],
    *,
    batch_size: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logp_C, length_C) of every question: summed log-probability and tokens of each answer."""
    answers = iter(
        tokenizer.encode_batch([text for item in questions for text in item.answers], special=False)
    )
    items = [Continuation(item.context, next(answers)) for item in questions for _ in item.answers]
    logp_N = continuation_logps(model, params, items, batch_size=batch_size)
    length_N = np.array([len(item.ids) for item in items])
    ends = np.cumsum([len(item.answers) for item in questions])[:-1]
    return list(zip(np.split(logp_N, ends), np.split(length_N, ends), strict=True))


def block_nll(
    model: LanguageModel,
    params: Params,
    tokens_NT: np.ndarray,
    segments_NT: np.ndarray,
    *,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Σ -log π(token t | before) of every row, and how many tokens were predicted in it."""
    parts = run_batches(
        lambda rows: _block_nll(model, params, tokens_NT[rows], segments_NT[rows]),
        batch_rows(len(tokens_NT), batch_size),
        "losses",
    )
    nll_N, count_N = (np.concatenate(part)[: len(tokens_NT)] for part in zip(*parts, strict=True))
    return nll_N.astype(np.float64), count_N


@functools.partial(jax.jit, static_argnums=0)
def _block_nll(
    model: LanguageModel, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    nll_BT, valid_BT = next_token_nll(model, params, tokens_BT, segments_BT)
    return nll_BT.sum(axis=1), valid_BT.sum(axis=1)


def _by_length(
    compute: Callable[..., jax.Array],
    items: Sequence[Continuation],
    batch_size: int,
    context_length: int,
    what: str,
) -> np.ndarray:
    """One number per item, in the order of the items; `compute` sees equal items once, and in a batch items of about a length.

    The longest come first: what does not fit into the memory fails at once. A batch is padded to its longest item, rounded
    up, so that few shapes are compiled.
    """
    keys = [(tuple(item.context), tuple(item.ids)) for item in items]
    once = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(once) < len(items):  # arguments that stand in many pairs
        values = _by_length(
            compute, [Continuation(*key) for key in once], batch_size, context_length, what
        )
        return values[[once[key] for key in keys]]
    length_N = np.array([len(item.context) + len(item.ids) for item in items])
    longest_first_N = np.argsort(-length_N, kind="stable")
    batches = [longest_first_N[rows] for rows in batch_rows(len(items), batch_size)]

    def padded(members: np.ndarray) -> jax.Array:
        size = min(-(-int(length_N[members[0]]) // BUCKET) * BUCKET, context_length)
        return compute(*_pad([items[n] for n in members], size))

    computed = run_batches(padded, batches, what)
    result_N = np.empty(len(items))
    result_N[np.concatenate(batches)] = np.concatenate(computed)
    return result_N


def _check(items: Sequence[Continuation], context_length: int) -> None:
    for number, (context, ids) in enumerate(items):
        if not context or not ids:
            raise ValueError(
                f"text {number}: context has {len(context)} tokens and continuation {len(ids)}, expected some"
            )
        if len(context) + len(ids) > context_length:
            raise ValueError(
                f"text {number} has {len(context)} + {len(ids)} tokens, the model's context is {context_length}"
            )


def _pad(items: Sequence[Continuation], size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded tokens, segments, and the column at which each continuation starts."""
    tokens_BT, segments_BT = np.zeros((2, len(items), size), np.int32)
    for row, (context, ids) in enumerate(items):
        tokens_BT[row, : len(context) + len(ids)] = [*context, *ids]
        segments_BT[row, : len(context) + len(ids)] = 1
    return tokens_BT, segments_BT, np.array([len(item.context) for item in items], np.int32)
