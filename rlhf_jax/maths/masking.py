"""Sum, average, whiten and locate the real entries of partly masked arrays.

A mean over real entries is kept as the pair (total, weight) until it is written down, because the
pairs of micro-batches, devices and log steps can be added while their quotients cannot. A mask is
boolean, or holds non-negative weights; an entry with weight 0 never changes a result, whatever it
holds (even NaN), and receives gradient 0.

Left out on purpose: masked medians, maxima and anything else that does not add up over
micro-batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Mean(NamedTuple):
    """Hold a weighted mean that is not divided yet: Σ w·x and Σ w, both float32 scalars."""

    total: jax.Array
    weight: jax.Array


def keep(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Replace masked entries by 0, before anything non-linear can turn them into NaN.

    Zeroing the *result* of, say, `exp` is not enough: the derivative of a masked inf is
    0 · inf = NaN.
    """
    assert x.shape == mask.shape, f"x {x.shape} and mask {mask.shape} differ"
    return jnp.where(mask != 0, x, jnp.zeros_like(x))


def mean(x: jax.Array, mask: jax.Array) -> Mean:
    """Return the pair (Σ mask·x, Σ mask), summed in float32 over all axes."""
    weight = mask.astype(jnp.float32)
    return Mean(jnp.sum(keep(x, mask).astype(jnp.float32) * weight), jnp.sum(weight))


def value(pair: Mean) -> jax.Array:
    """Divide total by weight; where the weight is 0, return 0 with gradient 0."""
    empty = pair.weight == 0
    return jnp.where(empty, 0.0, pair.total / jnp.where(empty, 1.0, pair.weight))


def merge(a: Mean, b: Mean) -> Mean:
    """Return the mean over the entries of both pairs."""
    return Mean(a.total + b.total, a.weight + b.weight)


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool) -> jax.Array:
    """Scale real entries to unit variance: (x − μ) / √(σ² + 1e-8), plus μ unless `shift_mean`.

    μ and σ² are taken over all real entries together and σ² is the population variance, as in
    OpenAI's lm-human-preferences (an unbiased variance gives other numbers on small batches).
    Masked entries become 0. OpenAI whitens advantages with `shift_mean=True` and, where it whitens
    them at all, rewards with False.
    """
    x = keep(x, mask).astype(jnp.float32)
    mu = value(mean(x, mask))
    variance = value(mean(jnp.square(x - mu), mask))
    whitened = (x - mu) * jax.lax.rsqrt(variance + 1e-8)
    return keep(whitened if shift_mean else whitened + mu, mask)


def length_mask(length_B: jax.Array, size: int) -> jax.Array:
    """Return a bool_BT that is True in the first `length` of `size` columns of every row."""
    column_BT = jax.lax.broadcasted_iota(jnp.int32, (*length_B.shape, size), length_B.ndim)
    return column_BT < length_B[..., None]


def last_true(x_BT: jax.Array) -> jax.Array:
    """Return a bool_BT that is True only at the last True of every row."""
    later_or_here_BT = jax.lax.cumsum(x_BT.astype(jnp.int32), axis=x_BT.ndim - 1, reverse=True)
    return x_BT & (later_or_here_BT == 1)


def positions(segments_BT: jax.Array) -> jax.Array:
    """Count, for every token, the earlier tokens of its own segment; 0 at padding.

    Segment ids are 0 at padding and do not decrease from one real token of a row to the next.
    Padding may lie anywhere, inside a segment too, and moves no position. Takes O(T).
    """
    axis = segments_BT.ndim - 1
    real_BT = segments_BT > 0
    earlier_BT = jnp.cumsum(real_BT, axis=axis, dtype=jnp.int32) - real_BT
    highest_BT = jax.lax.cummax(segments_BT, axis=axis)
    before_BT = jnp.concatenate(
        [jnp.zeros_like(highest_BT[..., :1]), highest_BT[..., :-1]], axis=axis
    )
    starts_BT = segments_BT > before_BT
    # `earlier` never decreases, so a running maximum carries its value at the latest start to the
    # right. The plain version compares all pairs of tokens, in O(T²).
    start_BT = jax.lax.cummax(jnp.where(starts_BT, earlier_BT, 0), axis=axis)
    return jnp.where(real_BT, earlier_BT - start_BT, 0).astype(jnp.int32)
