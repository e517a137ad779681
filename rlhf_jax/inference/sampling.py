"""Sample responses from a language model: one prefill per prompt, then one token per step.

    hidden, cache = model(prompts)                          all prompts at once, left-padded
    1  repeat the cache num_samples times; or, of at most max_rows rows at once, fill those that are
       free as long as prompts wait
    2  until every row has emitted a stop token, or the response is full:
           token ~ softmax(sampling_logits(unembed(hidden)));  hidden, cache = model(token, cache)
    3  as soon as half of every device's rows have stopped, go on with the other half only

The plain version is the loop of line 2 over all rows. Line 1 with max_rows bounds the cache's
memory; line 3 spares the steps of rows that rest while the longest response is written. Neither
changes a result. The log-probability returned is that of the distribution really sampled from,
temperature and truncation included.

Left out on purpose: paged caches, speculative decoding.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.models import (
    Cache,
    LanguageModel,
    Params,
    apply,
    cast_for_compute,
    grow_cache,
    init_cache,
)
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain, gather_params, num_shards

# Rows of a device; every halving below that is one more loop to compile and saves little.
SMALLEST = 16


class Samples(NamedTuple):
    """Hold responses; row b·num_samples + n is sample n of prompt b.

    A stop token is kept and counts in `length_B`; after it come `pad_id` and log-probability 0.
    `stopped_B` is true iff a stop token was emitted within the response length.
    """

    tokens_BR: jax.Array
    logp_BR: jax.Array
    length_B: jax.Array
    stopped_B: jax.Array


class _State(NamedTuple):
    """Rows in the batch (B), what they have written among all N rows, and their cache."""

    step_B: jax.Array  # response tokens drawn so far
    row_B: jax.Array  # which of the N rows each one is
    token_B: jax.Array  # the last token drawn
    alive_B: jax.Array  # rows that have not stopped yet, and have room
    cache: Cache
    tokens_RN: jax.Array
    logp_RN: jax.Array
    length_N: jax.Array
    stopped_N: jax.Array


_STATIC = ("model", "spec", "response_length", "stop_tokens", "pad_id", "num_samples", "max_rows")


@partial(jax.jit, static_argnames=_STATIC)
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
    max_rows: int = 0,
) -> Samples:
    """Draw `num_samples` responses to every prompt, of `max_rows` > 0 at most so many at once.

    The result does not depend on `max_rows`. Prompts are left-padded: the last column of every row
    is a real token. Compiled once per combination of shapes, model, spec and the other keyword
    arguments.

    Raises:
        ValueError: a number is impossible; before anything compiles.
    """
    if response_length < 1 or num_samples < 1:
        numbers = f"response_length = {response_length}, num_samples = {num_samples}"
        raise ValueError(f"{numbers}: both must be at least 1.")
    if max_rows < 0:
        raise ValueError(f"max_rows = {max_rows}: expected a number, or 0 for all rows at once.")
    shape = prompt_mask_BP.shape
    if prompt_BP.shape != shape:
        raise ValueError(f"prompts have shape {prompt_BP.shape} but their mask has {shape}.")
    # Once, and not for every token: parameters in the dtype of the computation, on every device.
    params = gather_params(cast_for_compute(params, model.config))
    segments_BP = prompt_mask_BP.astype(jnp.int32)
    cache = init_cache(model.config, *prompt_BP.shape)
    hidden_BPD, cache = apply(model, params, prompt_BP, segments_BP, cache=cache, method="hidden")
    hidden_BD = hidden_BPD[:, -1]
    count = len(hidden_BD) * num_samples
    # The plain version has a key per step; one number per token drawn, all at once, costs less.
    uniform_RN = jax.random.uniform(key, (response_length, count))

    def draw(state: _State, hidden_BD: jax.Array) -> _State:
        logits_BV = apply(model, params, hidden_BD, method="unembed")
        logits_BV = decoding.sampling_logits(logits_BV, spec)
        token_B = decoding.inverse_cdf(uniform_RN[state.step_B, state.row_B], logits_BV)
        logp_B = decoding.log_prob(logits_BV, token_B)
        return _write(state, token_B, logp_B, jnp.asarray(stop_tokens, jnp.int32), pad_id)

    def step(state: _State) -> _State:
        segments_B1 = state.alive_B.astype(jnp.int32)[:, None]
        hidden_B1D, cache = apply(
            model, params, state.token_B[:, None], segments_B1, cache=state.cache, method="hidden"
        )
        return draw(state._replace(cache=cache), hidden_B1D[:, 0])

    shards = num_shards(len(hidden_BD), BATCH)
    rows = rows_at_once(count, max_rows, shards)
    begin = partial(_begin, rows, (response_length, count), pad_id)
    if rows < count:
        room = init_cache(model.config, rows, prompt_BP.shape[1] + response_length)
        state = begin(room._replace(length=jnp.zeros(rows, jnp.int32)), alive=False)
        state = _with_refills(_Prompts(hidden_BD, cache, num_samples, shards), state, step, draw)
    else:
        state = begin(grow_cache(cache, extra=response_length, repeats=num_samples), alive=True)
        state = draw(state, jnp.repeat(hidden_BD, num_samples, axis=0))

    # The plain version is one loop until no row is alive. A step costs what its rows cost, so when
    # half of every device's rows have stopped, the others go on in a loop over half the rows.
    sizes = _sizes(rows // shards)
    for size, smaller in zip(sizes, [*sizes[1:], 0], strict=True):

        def crowded(state: _State, smaller: int = smaller) -> jax.Array:
            return _most_alive(state, shards) > smaller

        state = jax.lax.while_loop(crowded, step, _shrink(state, shards, size))
    return Samples(state.tokens_RN.T, state.logp_RN.T, state.length_N, state.stopped_N)


def rows_at_once(count: int, max_rows: int, shards: int) -> int:
    """Return how many of `count` rows the cache holds: all, or `max_rows` rounded up to shards."""
    return min(-(-max_rows // shards) * shards, count) if max_rows else count


class _Prompts(NamedTuple):
    """All prompts as read: row n of N samples prompt n // num_samples."""

    hidden_BD: jax.Array  # of the last token
    cache: Cache
    num_samples: int
    shards: int


def _begin(
    rows: int, shape_RN: tuple[int, int], pad_id: int, cache: Cache, *, alive: bool
) -> _State:
    """Return the state before the first token of any row."""
    return _State(
        step_B=jnp.zeros(rows, jnp.int32),
        row_B=jnp.arange(rows),
        token_B=jnp.zeros(rows, jnp.int32),
        alive_B=jnp.full(rows, alive),
        cache=cache,
        tokens_RN=jnp.full(shape_RN, pad_id, jnp.int32),
        logp_RN=jnp.zeros(shape_RN, jnp.float32),
        length_N=jnp.zeros(shape_RN[1], jnp.int32),
        stopped_N=jnp.zeros(shape_RN[1], bool),
    )


def _with_refills(
    prompts: _Prompts,
    state: _State,
    step: Callable[[_State], _State],
    draw: Callable[[_State, jax.Array], _State],
) -> _State:
    """Decode until no prompt waits.

    The plain version reads the next prompts when all rows have stopped, or one whenever a row has.
    The former leaves rows idle, the latter stops all rows for one; here the next prompts take all
    free rows whenever a quarter of a device's rows is free.
    """
    per_shard = len(prompts.hidden_BD) * prompts.num_samples // prompts.shards
    rows = len(state.row_B) // prompts.shards
    enough = rows - max(1, rows // 4)

    def busy(state: _State) -> jax.Array:
        return _most_alive(state, prompts.shards) > enough

    def turn(carry: tuple[jax.Array, _State]) -> tuple[jax.Array, _State]:
        next_S, state = carry
        next_S, taken_B, state = _refill(prompts, next_S, state)
        hidden_BD = prompts.hidden_BD[state.row_B // prompts.num_samples]
        first = draw(state._replace(alive_B=taken_B), hidden_BD)
        # Rows that were decoding keep their place: the draw above was not theirs.
        alive_B = jnp.where(taken_B, first.alive_B, state.alive_B)
        token_B = jnp.where(taken_B, first.token_B, state.token_B)
        state = first._replace(alive_B=alive_B, token_B=token_B)
        return next_S, jax.lax.while_loop(busy, step, state)

    waiting = (jnp.zeros(prompts.shards, jnp.int32), state)
    return jax.lax.while_loop(lambda carry: (carry[0] < per_shard).any(), turn, waiting)[1]


def _refill(
    prompts: _Prompts, next_S: jax.Array, state: _State
) -> tuple[jax.Array, jax.Array, _State]:
    """Let the waiting rows of every shard, from `next_S` on, take its free rows."""
    shards = prompts.shards
    per_shard = len(prompts.hidden_BD) * prompts.num_samples // shards
    free_SB = ~state.alive_B.reshape(shards, -1)
    order_SB = next_S[:, None] + jnp.cumsum(free_SB, axis=1) - 1
    taken_SB = free_SB & (order_SB < per_shard)
    taken_B = taken_SB.reshape(-1)
    waiting_SB = order_SB + per_shard * jnp.arange(shards)[:, None]
    row_B = jnp.where(taken_B, waiting_SB.reshape(-1), state.row_B)
    prompt_SB = jnp.where(taken_SB, order_SB, 0) // prompts.num_samples

    def fill(old_B: jax.Array, new_B: jax.Array) -> jax.Array:
        return jnp.where(taken_B.reshape(-1, *[1] * (old_B.ndim - 1)), new_B, old_B)

    response_length = len(state.tokens_RN)
    new = grow_cache(_cache_of(prompts.cache, prompt_SB), extra=response_length, repeats=1)
    new = new._replace(length=jnp.full_like(taken_B, new.length, jnp.int32))
    cache = jax.tree.map(fill, state.cache, new)
    state = state._replace(cache=cache, row_B=row_B, step_B=jnp.where(taken_B, 0, state.step_B))
    return next_S + taken_SB.sum(axis=1), taken_B, state


def _most_alive(state: _State, shards: int) -> jax.Array:
    """Return the largest number of living rows of a shard."""
    return state.alive_B.reshape(shards, -1).sum(axis=1).max()


def _sizes(count: int) -> list[int]:
    """List the sizes that a device's rows go through: halved down to `SMALLEST`."""
    sizes = [count]
    while sizes[-1] >= 2 * SMALLEST:
        sizes.append(-(-sizes[-1] // 2))
    return sizes


def _shrink(state: _State, shards: int, size: int) -> _State:
    """Keep `size` rows of each shard, among them all that are alive; no row changes its device."""
    if shards * size == len(state.row_B):
        return state
    kept_SK = jnp.argsort(~state.alive_B.reshape(shards, -1), axis=1, stable=True)[:, :size]
    names = ("step_B", "row_B", "token_B", "alive_B")
    kept = {name: _of_shards(getattr(state, name), kept_SK) for name in names}
    return state._replace(cache=_cache_of(state.cache, kept_SK), **kept)


def _of_shards(x_N: jax.Array, kept_SK: jax.Array, *rest: tuple[str, ...]) -> jax.Array:
    """Pick rows by their numbers within each shard; `rest` is how the other axes are split."""
    shards, kept = kept_SK.shape
    x_SN = constrain(x_N.reshape(shards, -1, *x_N.shape[1:]), BATCH, WHOLE, *rest)
    kept_SN = jax.vmap(lambda x_N, kept_K: x_N[kept_K])(x_SN, kept_SK)
    return constrain(kept_SN.reshape(shards * kept, *x_N.shape[1:]), BATCH, *rest)


def _cache_of(cache: Cache, kept_SK: jax.Array) -> Cache:
    """Pick the cache of rows by their numbers within each shard."""

    def pick(layers: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(_of_shards(x_BGSK, kept_SK, TENSOR, WHOLE, WHOLE) for x_BGSK in layers)

    length = _of_shards(cache.length, kept_SK) if cache.length.ndim else cache.length
    segments_BS = _of_shards(cache.segments_BS, kept_SK, WHOLE)
    return Cache(pick(cache.keys), pick(cache.values), segments_BS, length)


def _write(
    state: _State, token_B: jax.Array, logp_B: jax.Array, stop_tokens: jax.Array, pad_id: int
) -> _State:
    """Write down one drawn token per living row."""
    living_B = state.alive_B
    ended_B = living_B & jnp.isin(token_B, stop_tokens)
    room, num_rows = state.tokens_RN.shape
    # Rows that rest have a number beyond the last, which mode="drop" leaves out.
    row_B = jnp.where(living_B, state.row_B, num_rows)
    return state._replace(
        step_B=state.step_B + living_B,
        token_B=jnp.where(living_B, token_B, pad_id),
        alive_B=living_B & ~ended_B & (state.step_B + 1 < room),
        tokens_RN=state.tokens_RN.at[state.step_B, row_B].set(token_B, mode="drop"),
        logp_RN=state.logp_RN.at[state.step_B, row_B].set(logp_B, mode="drop"),
        length_N=state.length_N.at[row_B].add(1, mode="drop"),
        stopped_N=state.stopped_N.at[row_B].max(ended_B, mode="drop"),
    )
