"""Compute scaled dot-product attention, written out or by the kernel of the machine.

    plain    every weight is an array; in float32; anything that a configuration may ask for, and
             caches
    fused    T x S weights are never in memory. GPU: cuDNN's flash attention
             (`jax.nn.dot_product_attention`); TPU: the Pallas kernel that JAX ships; elsewhere
             XLA's. Operands are rounded to the compute dtype: cuDNN takes 16 bits only

A sampler always decodes with plain attention, so with fused attention a policy's update sees
log-probabilities that differ from the sampler's by the rounding of its operands; ppo reports this
as mismatch/logp_mean.

Source: Vaswani et al. 2017, equation 1; Dao et al. 2022 for what the kernels do.
Left out on purpose: fused decoding from caches, attention dropout.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rlhf_jax.models.layout import BATCH, TENSOR, partition_spec

# Finite, so that a row without any key (padding) has a finite softmax and a finite gradient.
MASKED = -1e30
_TPU_BLOCK = 128  # columns; the TPU kernel takes multiples of it


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """Return c·tanh(x/c): about x where x is small, never beyond ±c; a cap of 0 is off.

    Gemma Team 2024, section 2.
    """
    return cap * jnp.tanh(x / cap) if cap else x


def plain_attention(
    queries_BHTK: jax.Array,
    keys_BGSK: jax.Array,
    values_BGSK: jax.Array,
    visible_BTS: jax.Array,
    *,
    scale: float,
    cap: float,
) -> jax.Array:
    """Return mixed_BHTK = softmax(cap(scale · q kᵀ)) v.

    Each of G keys and values serves H / G neighbouring queries. The textbook is

        weight_BGMTS = softmax(where(visible, cap(scale · einsum("BGMTK,BGSK->BGMTS", q, k)), −∞))
        mixed_BGMTK = einsum("BGMTS,BGSK->BGMTK", weight, v)
    """
    batch, heads, time, width = queries_BHTK.shape
    groups, size = keys_BGSK.shape[1:3]
    # The M query heads of a group stand one after the other (Q = M·T): with four axes the products
    # are plain batched matrix products, whose gradients cost XLA half as much on CPU as with five.
    queries_BGQK = queries_BHTK.reshape(batch, groups, -1, width)
    logit_BGQS = softcap(jnp.einsum("BGQK,BGSK->BGQS", queries_BGQK * scale, keys_BGSK), cap)
    logit_BGMTS = jnp.where(
        visible_BTS[:, None, None], logit_BGQS.reshape(batch, groups, -1, time, size), MASKED
    )
    # A softmax without its denominator; its maximum needs no gradient.
    highest_BGMT1 = jax.lax.stop_gradient(logit_BGMTS.max(-1, keepdims=True))
    weight_BGQS = jnp.exp(logit_BGMTS - highest_BGMT1).reshape(logit_BGQS.shape)
    # Divided by the sum of the weights only here, where an array has K columns and not S: forward
    # and backward pass over the weights once less each, a tenth of a small model's step on CPU.
    mixed_BGQK = jnp.einsum("BGQS,BGSK->BGQK", weight_BGQS, values_BGSK) / weight_BGQS.sum(
        -1, keepdims=True
    )
    return mixed_BGQK.reshape(batch, heads, time, width)


def write_slots(cached: jax.Array, new: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """Return `cached` with `new` written from slot `start` of an axis on.

    `start` is a scalar, or holds a slot for every row.
    """
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis)
    write_row = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis - 1)
    return jax.vmap(write_row)(cached, new, start)


def fused_attention(
    queries_BHTK: jax.Array,
    keys_BGTK: jax.Array,
    values_BGTK: jax.Array,
    visible_BTS: jax.Array,
    segments_BT: jax.Array | None,
    *,
    scale: float,
    dtype: str,
) -> jax.Array:
    """Return what `plain_attention` does of whole rows, computed by the backend's kernel.

    What padding sees is not defined. `segments_BT` says what `visible_BTS` does; it is None where
    there is a window besides, which the TPU's kernel does not have.
    """
    backend = jax.default_backend()
    operands = (queries_BHTK, keys_BGTK, values_BGTK)
    if backend == "tpu" and segments_BT is None:
        return plain_attention(*operands, visible_BTS, scale=scale, cap=0.0)
    q, k, v = (x.astype(dtype) for x in operands)
    if backend == "tpu" and segments_BT is not None:
        return tpu_flash_attention(q, k, v, segments_BT, scale=scale).astype(jnp.float32)
    q_BTHK, k_BSGK, v_BSGK = (x.swapaxes(1, 2) for x in (q, k, v))
    cudnn = backend == "gpu" and dtype != "float32"
    mixed_BTHK = jax.nn.dot_product_attention(
        q_BTHK,
        k_BSGK,
        v_BSGK,
        mask=visible_BTS[:, None],
        scale=scale,
        implementation="cudnn" if cudnn else "xla",
    )
    return mixed_BTHK.swapaxes(1, 2).astype(jnp.float32)


def tpu_flash_attention(
    queries_BHTK: jax.Array,
    keys_BGTK: jax.Array,
    values_BGTK: jax.Array,
    segments_BT: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """Run JAX's flash attention for TPU on every device's own rows and heads."""
    from jax.experimental.pallas.ops.tpu import flash_attention as pallas

    # The kernel wants as many keys as queries, and columns in multiples of its block.
    time = queries_BHTK.shape[2]
    group = queries_BHTK.shape[1] // keys_BGTK.shape[1]
    padding = -time % _TPU_BLOCK
    segments_BT = jnp.pad(segments_BT, ((0, 0), (0, padding)))
    operands_BHTK = (
        queries_BHTK,
        jnp.repeat(keys_BGTK, group, axis=1),
        jnp.repeat(values_BGTK, group, axis=1),
    )
    padded = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in operands_BHTK)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> jax.Array:
        ids = pallas.SegmentIds(segments, segments)
        return pallas.flash_attention(q, k, v, segment_ids=ids, causal=True, sm_scale=scale)

    # The compiler does not split a kernel over devices, so the map over shards is written out,
    # without the check of what varies: JAX's kernel does not say it of its results.
    heads = partition_spec(queries_BHTK.shape[:2], BATCH, TENSOR)
    run: Callable[..., jax.Array] = attend
    if any(heads):
        rows = PartitionSpec(heads[0])
        run = jax.shard_map(
            attend, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
        )
    return run(*padded, segments_BT)[:, :, :time]
