"""Define the layers inside a block: linear, norm, rotary positions, attention, feed-forward.

Everything takes and returns float32; `compute_dtype` only decides how the operands of `linear` are
rounded. Attention runs in float32 unless it is fused (models/attention.py): sampler and scorer must
agree, and a bfloat16 cache is slow on CPU. Left out on purpose: quantised caches, caches that
forget what a window hides.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rlhf_jax.models.attention import fused_attention, plain_attention, write_slots
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain
from rlhf_jax.models.linear import linear


def _last_axis(x: jax.Array, ndim: int) -> jax.Array:
    """Shape a vector to meet the last axis of an array of `ndim` axes, in float32."""
    return x.astype(jnp.float32).reshape((1,) * (ndim - 1) + (-1,))


class Norm(nn.Module):
    """Normalise the last axis by LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019).

    "rmsnorm_plus_one", Gemma's, multiplies by 1 + scale.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        dtype = jnp.dtype(c.param_dtype)
        plus_one = c.norm == "rmsnorm_plus_one"
        init = nn.initializers.zeros if plus_one else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],), dtype)
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + c.norm_eps)
        x = x * (_last_axis(scale, x.ndim) + 1.0 if plus_one else _last_axis(scale, x.ndim))
        if c.norm == "layernorm" and c.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), dtype)
            x = x + _last_axis(bias, x.ndim)
        return x


class Linear(nn.Module):
    """Return x·kernel + bias, plus s·(x·A)·B where low-rank adapters lie beside the kernel.

    `residual` marks the projections that feed the residual stream (see `kernel_init`).
    """

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
        # Adapters are put beside the kernel by models/lora.py, never by `init`.
        if self.has_variable("params", "lora_a"):
            a: jax.Array = self.get_variable("params", "lora_a")
            b: jax.Array = self.get_variable("params", "lora_b")
            scale: jax.Array = self.get_variable("params", "lora_scale")
            y = y + scale * linear(linear(x, a, c.compute_dtype), b, c.compute_dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype)
            y = y + _last_axis(bias, y.ndim)
        return y


class Head(nn.Module):
    """Project to a few numbers in float32, with a kernel from N(0, std²) and bias zero."""

    config: TransformerConfig
    features: int
    std: float

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.config.param_dtype)
        shape = (hidden_BTD.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.std), shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), dtype)
        kernel, bias = kernel.astype(jnp.float32), bias.astype(jnp.float32)
        return jnp.matmul(hidden_BTD, kernel, precision="highest") + bias[None, None]


class Context(NamedTuple):
    """Tell a block about its rows: who sees whom, rotary angles, and where new keys go."""

    visible_BTS: jax.Array
    cos_BTK: jax.Array | None
    sin_BTK: jax.Array | None
    start: jax.Array | None  # first free cache slot; None without a cache
    segments_BT: jax.Array | None  # None where a window hides more than segments do


def rope_rates(config: TransformerConfig, *, local: bool) -> jax.Array:
    """Return radians per position, base^(-2i/K) for the i-th of K/2 pairs of features.

    They are stretched by `rope_scaling`. Source: Su et al. 2021; LLaMA 3.1's scaling and YaRN
    (Peng et al. 2023, section 3.2) divide slow pairs by s, keep fast ones, and blend between: by
    the turns of a pair in the original context, or by its index.
    """
    width = config.rotary_width
    own_base = local and config.rope_base_local > 0
    base = config.rope_base_local if own_base else config.rope_base
    rate = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if own_base or not config.rope_scaling:
        return rate
    if len(config.rope_scaling) == 1:
        return rate / config.rope_scaling[0]
    if len(config.rope_scaling) == 5:
        factor, fast, slow, original_context, _ = config.rope_scaling

        def index_of(turns: float) -> float:
            """Return which pair turns so often in the original context."""
            return width * math.log(original_context / (2 * math.pi * turns)) / (2 * math.log(base))

        first = max(math.floor(index_of(fast)), 0)
        last = min(math.ceil(index_of(slow)), width - 1)
        # 0.001 where both are the same pair, as in transformers.
        divided = jnp.clip((jnp.arange(width // 2) - first) / ((last - first) or 0.001), 0.0, 1.0)
        return rate * (1.0 - divided + divided / factor)
    factor, low, high, original_context = config.rope_scaling
    turns = original_context * rate / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return rate * (kept + (1.0 - kept) / factor)


def rope_length(config: TransformerConfig, *, local: bool) -> float:
    """Return what cosines and sines are multiplied by: YaRN's attention factor, else 1."""
    own_base = local and config.rope_base_local > 0
    return config.rope_scaling[4] if len(config.rope_scaling) == 5 and not own_base else 1.0


def rope_angles(
    positions_BT: jax.Array, rate: jax.Array, length: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Return cosines and sines of position·rate times `length`, one column per pair of features.

    Feature i is paired with feature i + K/2, as in GPT-NeoX and the released LLaMA weights for
    Transformers, not with its neighbour.
    """
    angle = positions_BT.astype(jnp.float32)[..., None] * rate[None, None, :]
    if length == 1.0:
        return jnp.cos(angle), jnp.sin(angle)
    return length * jnp.cos(angle), length * jnp.sin(angle)


def rotate(x_BTHK: jax.Array, cos_BTK: jax.Array, sin_BTK: jax.Array) -> jax.Array:
    """Rotate every pair of features by its angle; features beyond the angles stay."""
    rotary, rest = jnp.split(x_BTHK, [2 * cos_BTK.shape[-1]], axis=-1)
    first, second = jnp.split(rotary, 2, axis=-1)
    cos = cos_BTK[:, :, None, :]
    sin = sin_BTK[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


class Attention(nn.Module):
    """Attend causally with grouped key/value heads: softmax(softcap(q·kᵀ/√K))·v, in float32.

    Source: Vaswani et al. 2017, equation 1; Shazeer 2019 (one key/value head); Ainslie et al. 2023
    (groups). Returns what is mixed, and the keys and values: the cache's where there is one.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, context: Context, cache: tuple[jax.Array, jax.Array] | None
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        c = self.config
        batch, time, _ = x_BTD.shape

        def project(name: str, heads: int, *, positional: bool) -> jax.Array:
            y = Linear(c, heads * c.head_width, c.qkv_bias, name=name)(x_BTD)
            y = y.reshape(batch, time, heads, c.head_width)
            y_BTHK = constrain(y, BATCH, WHOLE, TENSOR, WHOLE)
            if positional and c.qk_norm:
                y_BTHK = Norm(c, name=f"{name}_norm")(y_BTHK)
            if positional and context.cos_BTK is not None and context.sin_BTK is not None:
                y_BTHK = rotate(y_BTHK, context.cos_BTK, context.sin_BTK)
            return y_BTHK.swapaxes(1, 2)

        queries_BHTK = project("query", c.num_heads, positional=True)
        keys_BGSK = project("key", c.num_kv_heads, positional=True)
        values_BGSK = project("value", c.num_kv_heads, positional=False)
        if cache is not None and context.start is not None:
            cached_keys, cached_values = cache
            keys_BGSK = write_slots(cached_keys, keys_BGSK, context.start, axis=2)
            values_BGSK = write_slots(cached_values, values_BGSK, context.start, axis=2)

        operands = (queries_BHTK, keys_BGSK, values_BGSK, context.visible_BTS)
        scale = c.query_scale or c.head_width**-0.5
        if c.attention == "fused" and cache is None:
            mixed_BHTK = fused_attention(
                *operands, context.segments_BT, scale=scale, dtype=c.compute_dtype
            )
        else:
            mixed_BHTK = plain_attention(*operands, scale=scale, cap=c.attention_softcap)
        mixed_BTF = mixed_BHTK.swapaxes(1, 2).reshape(batch, time, -1)
        mixed_BTF = constrain(mixed_BTF, BATCH, WHOLE, TENSOR)
        out_BTD = Linear(c, c.width, c.use_bias, residual=True, name="out")(mixed_BTF)
        return out_BTD, (keys_BGSK, values_BGSK)


class FeedForward(nn.Module):
    """Project twice around a GELU, or as down(act(gate(x)) ⊙ up(x)) (Shazeer 2020)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        up_BTF = Linear(c, c.ffw_width, c.use_bias, name="up")(x_BTD)
        if c.gated:
            gate_BTF = Linear(c, c.ffw_width, c.use_bias, name="gate")(x_BTD)
            if c.activation == "swiglu":
                gate_BTF = jax.nn.silu(gate_BTF)
            else:
                gate_BTF = jax.nn.gelu(gate_BTF, approximate=True)
            hidden_BTF = up_BTF * gate_BTF
        else:
            hidden_BTF = jax.nn.gelu(up_BTF, approximate=c.activation == "gelu_tanh")
        hidden_BTF = constrain(hidden_BTF, BATCH, WHOLE, TENSOR)
        return Linear(c, c.width, c.use_bias, residual=True, name="down")(hidden_BTF)
