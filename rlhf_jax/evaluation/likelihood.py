"""Log-probabilities of given texts: the raw material of multiple choice, stereotypes, perplexity, KL and
scores.

Everything is padded to one shape per call and run in batches of `batch_size`, so that a set of questions
costs one compile for all checkpoints of the same architecture. Tokens of a context and of its continuation
are encoded apart and laid side by side; that equals encoding the joined text whenever the continuation starts
where a word starts.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.generate import Encoded, Generation, batch_rows
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.scoring import next_token_nll, response_logps, response_scores
from rlhf_jax.models.heads import LanguageModel, Params, ScalarModel

ROUND = 16  # lengths are rounded up to a multiple of this: few shapes, few compiles


class Continuation(NamedTuple):
    """Token ids of what is given, and of what is to be judged after it."""

    context: Sequence[int]
    ids: Sequence[int]


def continuation_logps(
    model: LanguageModel, params: Params, items: Sequence[Continuation], *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Σ_t log π(y_t | context, y_<t) of every continuation, and its number of tokens.

    Raises:
        ValueError: for an empty context or continuation, or one longer than the model's context.
    """
    tokens_NT, segments_NT, start_N = _pad(items, model.config.context_length)
    parts = [
        _continuation_logps(model, params, tokens_NT[rows], segments_NT[rows], start_N[rows])
        for rows in batch_rows(len(items), batch_size)
    ]
    logp_N = np.concatenate(jax.device_get(parts))[: len(items)].astype(np.float64)
    return logp_N, np.array([len(item.ids) for item in items])


@functools.partial(jax.jit, static_argnums=0)
def _continuation_logps(
    model: LanguageModel, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array, start_B: jax.Array
) -> jax.Array:
    nll_BT, valid_BT = next_token_nll(model, params, tokens_BT, segments_BT)
    judged_BT = valid_BT & (jnp.arange(tokens_BT.shape[1])[None, :] >= start_B[:, None])
    return -jnp.where(judged_BT, nll_BT, 0.0).sum(axis=1)


class Choices(NamedTuple):
    """What is given, as token ids, and the answers to choose from, as text."""

    context: Sequence[int]
    answers: Sequence[str]


def choice_logps(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[Choices],
    *,
    batch_size: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logp_C, length_C) of every question: summed log-probability and tokens of each answer."""
    answers = iter(tokenizer.encode_batch([text for item in questions for text in item.answers], special=False))
    items = [Continuation(item.context, next(answers)) for item in questions for _ in item.answers]
    logp_N, length_N = continuation_logps(model, params, items, batch_size=batch_size)
    ends = np.cumsum([len(item.answers) for item in questions])[:-1]
    return list(zip(np.split(logp_N, ends), np.split(length_N, ends), strict=True))


def _pad(items: Sequence[Continuation], context_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Right-padded tokens, segments, and the column at which each continuation starts."""
    longest = max(len(item.context) + len(item.ids) for item in items)
    if longest > context_length:
        raise ValueError(f"a text to be judged has {longest} tokens, the model's context is {context_length}")
    size = min(context_length, -(-longest // ROUND) * ROUND)
    tokens_NT, segments_NT = np.zeros((2, len(items), size), np.int32)
    for row, (context, ids) in enumerate(items):
        if not context or not ids:
            raise ValueError(f"text {row}: context has {len(context)} tokens and continuation {len(ids)}, expected some")
        tokens_NT[row, : len(context) + len(ids)] = [*context, *ids]
        segments_NT[row, : len(context) + len(ids)] = 1
    return tokens_NT, segments_NT, np.array([len(item.context) for item in items], np.int32)


def block_nll(
    model: LanguageModel, params: Params, tokens_NT: np.ndarray, segments_NT: np.ndarray, *, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Σ -log π(token t | before) of every row, and how many tokens were predicted in it."""
    parts = [_block_nll(model, params, tokens_NT[rows], segments_NT[rows]) for rows in batch_rows(len(tokens_NT), batch_size)]
    nll_N, count_N = (np.concatenate(part)[: len(tokens_NT)] for part in zip(*jax.device_get(parts), strict=True))
    return nll_N.astype(np.float64), count_N


@functools.partial(jax.jit, static_argnums=0)
def _block_nll(
    model: LanguageModel, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    nll_BT, valid_BT = next_token_nll(model, params, tokens_BT, segments_BT)
    return nll_BT.sum(axis=1), valid_BT.sum(axis=1)


def encode_responses(generations: Sequence[Generation], response_length: int) -> Encoded:
    """Responses as arrays, right-padded with zeros under a false mask."""
    tokens_NR = np.zeros((len(generations), response_length), np.int32)
    mask_NR = np.zeros((len(generations), response_length), bool)
    for row, generation in enumerate(generations):
        tokens_NR[row, : generation.length] = generation.ids
        mask_NR[row, : generation.length] = True
    return Encoded(tokens_NR, mask_NR)


def sequence_logps(
    model: LanguageModel,
    params: Params,
    prompts: Encoded,
    responses: Encoded,
    *,
    spec: SamplingSpec,
    batch_size: int,
) -> np.ndarray:
    """log π(y | x) of every response under the sampling distribution `spec`, which must not truncate."""
    parts = [
        _sequence_logps(model, params, *(x[rows] for x in (*prompts, *responses)), spec)
        for rows in batch_rows(len(prompts.tokens_NP), batch_size)
    ]
    return np.concatenate(jax.device_get(parts))[: len(prompts.tokens_NP)].astype(np.float64)


@functools.partial(jax.jit, static_argnums=(0, 6))
def _sequence_logps(
    model: LanguageModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
    spec: SamplingSpec,
) -> jax.Array:
    logp_BR, _ = response_logps(model, params, prompt_BP, prompt_mask_BP, response_BR, response_mask_BR, spec=spec)
    return logp_BR.sum(axis=1)


def scores(model: ScalarModel, params: Params, prompts: Encoded, responses: Encoded, *, batch_size: int) -> np.ndarray:
    """The reward model's score of every response."""
    parts = [
        _scores(model, params, *(x[rows] for x in (*prompts, *responses)))
        for rows in batch_rows(len(prompts.tokens_NP), batch_size)
    ]
    return np.concatenate(jax.device_get(parts))[: len(prompts.tokens_NP)].astype(np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _scores(
    model: ScalarModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
) -> jax.Array:
    return response_scores(model, params, prompt_BP, prompt_mask_BP, response_BR, response_mask_BR)
