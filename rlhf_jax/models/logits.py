"""Read logits a few columns at a time where all of them would not fit.

The logits (B, T, V) of a batch are the largest array of a step by far, and what is read from them
is a few numbers per column. Of logits with more than `MOST_LOGITS` elements on a device a few
columns at a time are made, read and (backwards) made again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.models.layout import BATCH, TENSOR, map_shards, num_shards

# 128 MB in float32: making logits again costs a quarter of the output projection.
MOST_LOGITS = 1 << 25


def by_columns(
    read: Callable[..., tuple[jax.Array, ...]], params: Any, vocab_size: int, *columns: jax.Array
) -> tuple[jax.Array, ...]:
    """Call `read(params, hidden_BUD, target_BU)`, which makes logits of its columns, in parts.

    The plain version is `read(params, *columns)`; here logits are made for as many columns at a
    time as keep those of a device within `MOST_LOGITS`.
    """
    batch, time = columns[0].shape[:2]
    shards = num_shards(batch, BATCH) * num_shards(vocab_size, TENSOR)
    parts = min(-(-batch * time * vocab_size // (shards * MOST_LOGITS)), time)
    if parts <= 1:
        return read(params, *columns)
    width = -(-time // parts)

    def split(x_BT: jax.Array) -> jax.Array:
        x_BT = jnp.pad(x_BT, ((0, 0), (0, parts * width - time)) + ((0, 0),) * (x_BT.ndim - 2))
        return jnp.moveaxis(x_BT.reshape(len(x_BT), parts, width, *x_BT.shape[2:]), 1, 0)

    def read_parts(params: Any, *columns: jax.Array) -> tuple[jax.Array, ...]:
        parts_of_columns = tuple(map(split, columns))
        results = jax.lax.map(lambda part: jax.checkpoint(read)(params, *part), parts_of_columns)
        return tuple(jnp.moveaxis(x, 0, 1).reshape(-1, parts * width)[:, :time] for x in results)

    return map_shards(read_parts, params, *columns)


def log_z_and_chosen(logits_BUV: jax.Array, target_BU: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return log Z = log Σ exp of the logits, and the target's logit; log p = chosen - log Z."""
    log_z_BU = jax.nn.logsumexp(logits_BUV, axis=-1)
    chosen_BU = jnp.take_along_axis(logits_BUV, target_BU[..., None], axis=-1)[..., 0]
    return log_z_BU, chosen_BU
