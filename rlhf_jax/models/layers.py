"""The layers inside a block: linear, norm, rotary positions, attention, feed-forward.

Everything takes and returns float32; `compute_dtype` only decides how the operands of `linear` are rounded.
Attention runs in float32 unless it is fused (models/attention.py): sampler and scorer must agree, and a bfloat16 cache is slow
on CPU. Left out on purpose: quantised caches, caches that forget what a window hides.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhf_jax.models import attention
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x: jax.Array, kernel: jax.Array, dtype: str, transposed: bool = False) -> jax.Array:
    """x·kernel, or x·kernelᵀ, over the last axis of x: operands rounded to `dtype`, result float32.

    The gradient is the textbook one. It is written out because the barrier in it stops XLA from fusing the
    backward pass of a neighbouring norm into a transposing copy of an operand, which costs a fifth of a
    training step on CPU; and because the gradient of a kernel that was transposed outside would be a product
    that XLA's CPU backend does not have for bfloat16 operands.
    """
    return _product(x.astype(dtype), kernel.astype(dtype), (x.ndim - 1,), (int(transposed),))


def _product(
    a: jax.Array, b: jax.Array, axes_a: tuple[int, ...], axes_b: tuple[int, ...]
) -> jax.Array:
    return jax.lax.dot_general(
        a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=jnp.float32
    )


def _linear_forward(
    x: jax.Array, kernel: jax.Array, dtype: str, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, kernel, dtype, transposed), (x.astype(dtype), kernel)


def _linear_backward(
    dtype: str, transposed: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    x, dy = jax.lax.optimization_barrier((x, dy.astype(dtype)))
    rows = tuple(range(x.ndim - 1))
    dx = _product(dy, kernel.astype(dtype), (dy.ndim - 1,), (int(not transposed),))
    d_kernel = _product(dy, x, rows, rows) if transposed else _product(x, dy, rows, rows)
    return dx, d_kernel.astype(kernel.dtype)


linear.defvjp(_linear_forward, _linear_backward)


def _last_axis(x: jax.Array, ndim: int) -> jax.Array:
    """A vector shaped to meet the last axis of an array of `ndim` axes."""
    return x.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis; Gemma's scale is 1 + scale."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        plus_one = c.norm == "rmsnorm_plus_one"
        start = nn.initializers.zeros if plus_one else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],), jnp.dtype(c.param_dtype))
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + c.norm_eps)
        x = x * (_last_axis(scale, x.ndim) + 1.0 if plus_one else _last_axis(scale, x.ndim))
        if c.norm == "layernorm" and c.use_bias:
            bias = self.param(
                "bias", nn.initializers.zeros, (x.shape[-1],), jnp.dtype(c.param_dtype)
            )
            x = x + _last_axis(bias, x.ndim)
        return x


class Linear(nn.Module):
    """x·kernel + bias; `residual` marks the projections that feed the residual stream (see `kernel_init`)."""

    config: TransformerConfig
    features: int
    use_bias: bool
    residual: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        std = x.shape[-1] ** -0.5 if c.kernel_init == "fan_in" else 0.02
        if self.residual and c.kernel_init == "gpt2":
            std *= (2 * c.num_layers) ** -0.5
        dtype = jnp.dtype(c.param_dtype)
        kernel = self.param(
            "kernel", nn.initializers.normal(std), (x.shape[-1], self.features), dtype
        )
        y = linear(x, kernel, c.compute_dtype)
        if c.remat == "dots":
            y = checkpoint_name(y, "linear")  # what the policy of models/transformer.py keeps
        if self.has_variable(
            "params", "lora_a"
        ):  # put beside the kernel by models/lora.py, never by `init`
            lora: dict[str, jax.Array] = {
                name: self.get_variable("params", f"lora_{name}") for name in ("a", "b", "scale")
            }
            y = y + lora["scale"] * linear(
                linear(x, lora["a"], c.compute_dtype), lora["b"], c.compute_dtype
            )
        if self.use_bias:
            y = y + _last_axis(
                self.param("bias", nn.initializers.zeros, (self.features,), dtype), y.ndim
            )
        return y


class Context(NamedTuple):
    """What a block needs to know about the rows: who sees whom, rotary angles, and where new keys go."""

    visible_BTS: jax.Array
    cos_BTK: jax.Array | None
    sin_BTK: jax.Array | None
    start: jax.Array | None  # first free cache slot; None without a cache
    segments_BT: jax.Array | None  # None where a window hides more than segments do


def rope_rates(config: TransformerConfig, *, local: bool) -> jax.Array:
    """Radians per position, base^(-2i/K) for the i-th of K/2 pairs of features, stretched by `rope_scaling`.

    Source: Su et al. 2021; LLaMA 3.1's scaling divides slow pairs by s, keeps fast ones, and blends between.
    """
    width, own_base = config.rotary_width, local and config.rope_base_local > 0
    base = config.rope_base_local if own_base else config.rope_base
    rate = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if own_base or not config.rope_scaling:
        return rate
    if len(config.rope_scaling) == 1:
        return rate / config.rope_scaling[0]
    factor, low, high, original_context = config.rope_scaling
    turns = original_context * rate / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return rate * (kept + (1.0 - kept) / factor)


def rope_angles(positions_BT: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of position·rate, one column per pair of features.

    Feature i is paired with feature i + K/2, as in GPT-NeoX and the released LLaMA weights for Transformers,
    not with its neighbour.
    """
    angle = positions_BT.astype(jnp.float32)[..., None] * rate[None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTHK: jax.Array, cos_BTK: jax.Array, sin_BTK: jax.Array) -> jax.Array:
    """Turn every pair of features by its angle; features beyond the angles stay."""
    turning, still = jnp.split(x_BTHK, [2 * cos_BTK.shape[-1]], axis=-1)
    first, second = jnp.split(turning, 2, axis=-1)
    cos, sin = cos_BTK[:, :, None, :], sin_BTK[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, still], axis=-1)


class Attention(nn.Module):
    """Causal attention with grouped key/value heads: softmax(softcap(q·kᵀ/√K))·v, in float32.

    Source: Vaswani et al. 2017, equation 1; Shazeer 2019 (one key/value head); Ainslie et al. 2023 (groups).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        c = self.config
        batch, time, _ = x_BTD.shape

        def project(name: str, heads: int, *, turn: bool) -> jax.Array:
            y = Linear(c, heads * c.head_width, c.qkv_bias, name=name)(x_BTD)
            y_BTHK = constrain(
                y.reshape(batch, time, heads, c.head_width), BATCH, WHOLE, TENSOR, WHOLE
            )
            if turn and c.qk_norm:
                y_BTHK = Norm(c, name=f"{name}_norm")(y_BTHK)
            if turn and context.cos_BTK is not None and context.sin_BTK is not None:
                y_BTHK = rotate(y_BTHK, context.cos_BTK, context.sin_BTK)
            return y_BTHK.swapaxes(1, 2)

        queries = project("query", c.num_heads, turn=True)
        keys_BGSK = project("key", c.num_kv_heads, turn=True)
        values_BGSK = project("value", c.num_kv_heads, turn=False)
        if cache is not None and context.start is not None:
            keys_BGSK, values_BGSK = (
                attention.put(old, new, context.start, axis=2)
                for old, new in zip(cache, (keys_BGSK, values_BGSK), strict=True)
            )

        scale = c.query_scale or c.head_width**-0.5
        if c.attention == "fused" and cache is None:
            mixed_BHTK = attention.fused(
                queries,
                keys_BGSK,
                values_BGSK,
                context.visible_BTS,
                context.segments_BT,
                scale=scale,
                dtype=c.compute_dtype,
            )
        else:
            mixed_BHTK = attention.plain(
                queries,
                keys_BGSK,
                values_BGSK,
                context.visible_BTS,
                scale=scale,
                cap=c.attention_softcap,
            )
        mixed_BTF = constrain(
            mixed_BHTK.swapaxes(1, 2).reshape(batch, time, -1), BATCH, WHOLE, TENSOR
        )
        out_BTD = Linear(c, c.width, c.use_bias, residual=True, name="out")(mixed_BTF)
        return out_BTD, (keys_BGSK, values_BGSK)


class FeedForward(nn.Module):
    """Two projections around a GELU, or three around a gate: down(act(gate(x)) ⊙ up(x)) (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        up_BTF = Linear(c, c.ffw_width, c.use_bias, name="up")(x_BTD)
        if c.gated:
            gate_BTF = Linear(c, c.ffw_width, c.use_bias, name="gate")(x_BTD)
            swish = c.activation == "swiglu"
            up_BTF = up_BTF * (
                jax.nn.silu(gate_BTF) if swish else jax.nn.gelu(gate_BTF, approximate=True)
            )
        else:
            up_BTF = jax.nn.gelu(up_BTF, approximate=c.activation == "gelu_tanh")
        return Linear(c, c.width, c.use_bias, residual=True, name="down")(
            constrain(up_BTF, BATCH, WHOLE, TENSOR)
        )
