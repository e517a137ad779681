"""Sampling responses from a language model: one prefill per prompt, then one token per step from a cache.

    hidden, cache = model(prompts)                          all prompts at once, left-padded
    repeat the cache num_samples times
    until every row has emitted a stop token, or the response is full:
        token ~ softmax(sampling_logits(unembed(hidden)));  hidden, cache = model(token, cache)
        as soon as half of the rows have stopped (of every device's rows), go on with the other half only

The log-probability returned is that of the distribution really sampled from, temperature and truncation
included. A row that stopped is padded and never written to again; a row that did not stop keeps exactly what
the policy produced.

Left out on purpose: new prompts in the place of finished rows, paged caches, speculative decoding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.models import Cache, LanguageModel, Params, apply, cast_for_compute, grow_cache, init_cache
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain, gathered, num_shards

SMALLEST = 16  # rows of a device; every halving below that is one more loop to compile and saves little


class Samples(NamedTuple):
    """Responses; row b·num_samples + n is sample n of prompt b.

    A stop token is kept and counts in `length_B`; after it come `pad_id` and log-probability 0. `stopped_B`
    is true iff a stop token was emitted within the response length.
    """

    tokens_BR: jax.Array
    logp_BR: jax.Array
    length_B: jax.Array
    stopped_B: jax.Array


class _State(NamedTuple):
    """Rows still in the batch (B), what they have written among all N rows, and their cache."""

    step: jax.Array  # response tokens drawn so far
    row_B: jax.Array  # which of the N rows each one is
    token_B: jax.Array  # the last token drawn
    alive_B: jax.Array  # rows that have not stopped yet
    cache: Cache
    tokens_RN: jax.Array
    logp_RN: jax.Array
    length_N: jax.Array
    stopped_N: jax.Array


def sample(
    model: LanguageModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    key: jax.Array,
    *,
    spec: SamplingSpec,
    response_length: int,
    stop_tokens: tuple[int, ...],
    pad_id: int,
    num_samples: int = 1,
) -> Samples:
    """Draw `num_samples` responses to every prompt.

    Prompts are left-padded: the last column of every row is a real token. Compiled once per combination of
    shapes, model, spec and the other keyword arguments. Raises ValueError for impossible lengths before
    compiling.
    """
    if response_length < 1 or num_samples < 1:
        raise ValueError(f"response_length = {response_length}, num_samples = {num_samples}: both must be at least 1.")
    if prompt_BP.shape != prompt_mask_BP.shape:
        raise ValueError(f"prompts have shape {prompt_BP.shape} but their mask has {prompt_mask_BP.shape}.")
    return _sample(
        model,
        params,
        prompt_BP,
        prompt_mask_BP,
        key,
        spec,
        response_length,
        tuple(stop_tokens),
        pad_id,
        num_samples,
    )


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8, 9))
def _sample(
    model: LanguageModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    key: jax.Array,
    spec: SamplingSpec,
    response_length: int,
    stop_tokens: tuple[int, ...],
    pad_id: int,
    num_samples: int,
) -> Samples:
    params = gathered(cast_for_compute(params, model.config))  # once, not for every token
    hidden_BD, cache = _prefill(model, params, prompt_BP, prompt_mask_BP, response_length, num_samples)
    count = hidden_BD.shape[0]
    # One uniform number per token drawn; all of them at once cost less than a key per step.
    uniform_RN = jax.random.uniform(key, (response_length, count))
    state = _State(
        step=jnp.zeros((), jnp.int32),
        row_B=jnp.arange(count),
        token_B=jnp.zeros(count, jnp.int32),
        alive_B=jnp.ones(count, bool),
        cache=cache,
        tokens_RN=jnp.full((response_length, count), pad_id, jnp.int32),
        logp_RN=jnp.zeros((response_length, count), jnp.float32),
        length_N=jnp.zeros(count, jnp.int32),
        stopped_N=jnp.zeros(count, bool),
    )

    def draw(state: _State, hidden_BD: jax.Array) -> _State:
        logits_BV = apply(model, params, hidden_BD, method="unembed")
        logits_BV = decoding.sampling_logits(logits_BV, spec)
        return _emit(state, logits_BV, uniform_RN[state.step, state.row_B], stop_tokens, pad_id)

    def step(state: _State) -> _State:
        segments_B1 = state.alive_B.astype(jnp.int32)[:, None]
        hidden_B1D, cache = apply(model, params, state.token_B[:, None], segments_B1, cache=state.cache, method="hidden")
        return draw(state._replace(cache=cache), hidden_B1D[:, 0])

    state = draw(state, hidden_BD)
    shards = num_shards(count, BATCH)
    sizes = _sizes(count // shards)
    for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):

        def crowded(state: _State, smaller: int = smaller) -> jax.Array:
            alive_S = state.alive_B.reshape(shards, -1).sum(axis=1)
            return (state.step < response_length) & (alive_S.max() > smaller)

        state = jax.lax.while_loop(crowded, step, _shrink(state, shards, size))
    return Samples(state.tokens_RN.T, state.logp_RN.T, state.length_N, state.stopped_N)


def _sizes(count: int) -> list[int]:
    """The sizes that a device's rows go through: halved down to `SMALLEST`."""
    sizes = [count]
    while sizes[-1] >= 2 * SMALLEST:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _shrink(state: _State, shards: int, size: int) -> _State:
    """Keep `size` rows of each of the batch's shards, among them all that are alive; no row changes its device."""
    if shards * size == len(state.row_B):
        return state
    kept_SK = jnp.argsort(~state.alive_B.reshape(shards, -1), axis=1, stable=True)[:, :size]

    def keep(x_B: jax.Array, *rest: tuple[str, ...]) -> jax.Array:
        x_SN = constrain(x_B.reshape(shards, -1, *x_B.shape[1:]), BATCH, WHOLE, *rest)
        kept = jax.vmap(lambda x_N, kept_K: x_N[kept_K])(x_SN, kept_SK)
        return constrain(kept.reshape(shards * size, *x_B.shape[1:]), BATCH, *rest)

    kept = {name: keep(getattr(state, name)) for name in ("row_B", "token_B", "alive_B")}
    keys, values = (tuple(keep(x_BHSK, TENSOR, WHOLE, WHOLE) for x_BHSK in part) for part in state.cache[:2])
    segments_BS = keep(state.cache.segments_BS, WHOLE)
    return state._replace(cache=Cache(keys, values, segments_BS, state.cache.length), **kept)


def _prefill(
    model: LanguageModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_length: int,
    num_samples: int,
) -> tuple[jax.Array, Cache]:
    """Read the prompts; the hidden state of their last token and a cache with room for the response."""
    cache = init_cache(model.config, *prompt_BP.shape)
    segments_BP = prompt_mask_BP.astype(jnp.int32)
    hidden_BPD, cache = apply(model, params, prompt_BP, segments_BP, cache=cache, method="hidden")
    hidden_BD = jnp.repeat(hidden_BPD[:, -1], num_samples, axis=0)
    return hidden_BD, grow_cache(cache, extra=response_length, repeats=num_samples)


def _emit(state: _State, logits_BV: jax.Array, uniform_B: jax.Array, stop_tokens: tuple[int, ...], pad_id: int) -> _State:
    """Draw one token per living row and write it down."""
    drawn_B = decoding.inverse_cdf(uniform_B, logits_BV)
    logp_B = jnp.where(state.alive_B, decoding.log_prob(logits_BV, drawn_B), 0.0)
    token_B = jnp.where(state.alive_B, drawn_B, pad_id)
    alive_B = state.alive_B
    for stop in stop_tokens:
        alive_B = alive_B & (drawn_B != stop)
    return state._replace(
        step=state.step + 1,
        token_B=token_B,
        alive_B=alive_B,
        tokens_RN=state.tokens_RN.at[state.step, state.row_B].set(token_B),
        logp_RN=state.logp_RN.at[state.step, state.row_B].set(logp_B),
        length_N=state.length_N.at[state.row_B].add(state.alive_B.astype(jnp.int32)),
        stopped_N=state.stopped_N.at[state.row_B].set(~alive_B),
    )
