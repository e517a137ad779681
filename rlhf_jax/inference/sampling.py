"""Sampling responses from a language model: one prefill per prompt, then one token per step from a cache.

    hidden, cache = model(prompts)                          all prompts at once, left-padded
    repeat the cache num_samples times
    until every row has emitted a stop token, or the response is full:
        token ~ softmax(sampling_logits(unembed(hidden)));  hidden, cache = model(token, cache)

The log-probability returned is that of the distribution really sampled from, temperature and truncation
included. A row that stopped is padded and never written to again; a row that did not stop keeps exactly what
the policy produced.

Left out on purpose: refilling finished rows, paged caches, speculative decoding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.models import Cache, LanguageModel, Params, apply, cast_for_compute, grow_cache, init_cache


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
    step: jax.Array  # response tokens drawn so far
    token_B: jax.Array  # the last of them
    alive_B: jax.Array  # rows that have not stopped yet
    tokens_RB: jax.Array
    logp_RB: jax.Array
    length_B: jax.Array
    cache: Cache


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
    params = cast_for_compute(params, model.config)
    hidden_BD, cache = _prefill(model, params, prompt_BP, prompt_mask_BP, response_length, num_samples)
    batch = hidden_BD.shape[0]
    # One uniform number per token drawn; all of them at once cost less than a key per step.
    uniform_RB = jax.random.uniform(key, (response_length, batch))
    state = _State(
        step=jnp.zeros((), jnp.int32),
        token_B=jnp.zeros(batch, jnp.int32),
        alive_B=jnp.ones(batch, bool),
        tokens_RB=jnp.full((response_length, batch), pad_id, jnp.int32),
        logp_RB=jnp.zeros((response_length, batch), jnp.float32),
        length_B=jnp.zeros(batch, jnp.int32),
        cache=cache,
    )

    def draw(state: _State, hidden_BD: jax.Array) -> _State:
        logits_BV = apply(model, params, hidden_BD, method="unembed")
        logits_BV = decoding.sampling_logits(logits_BV, spec)
        return _emit(state, logits_BV, uniform_RB[state.step], stop_tokens, pad_id)

    def step(state: _State) -> _State:
        segments_B1 = state.alive_B.astype(jnp.int32)[:, None]
        hidden_B1D, cache = apply(model, params, state.token_B[:, None], segments_B1, cache=state.cache, method="hidden")
        return draw(state._replace(cache=cache), hidden_B1D[:, 0])

    def unfinished(state: _State) -> jax.Array:
        return (state.step < response_length) & state.alive_B.any()

    state = jax.lax.while_loop(unfinished, step, draw(state, hidden_BD))
    return Samples(state.tokens_RB.T, state.logp_RB.T, state.length_B, ~state.alive_B)


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
    return _State(
        step=state.step + 1,
        token_B=token_B,
        alive_B=alive_B,
        tokens_RB=state.tokens_RB.at[state.step].set(token_B),
        logp_RB=state.logp_RB.at[state.step].set(logp_B),
        length_B=state.length_B + state.alive_B.astype(jnp.int32),
        cache=state.cache,
    )
