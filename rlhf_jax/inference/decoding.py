"""Turn logits into the distribution that is sampled from, and draw tokens from it.

    logits  ->  /temperature  ->  top-k  ->  nucleus  ->  softmax  =  what is sampled from

`SamplingSpec` names the distribution for sampler and scorer alike. Excluded tokens get the finite
logit `EXCLUDED`, whose probability is exactly 0 and whose entropy term is 0, not NaN.

Left out on purpose: beam search, repetition penalties, min-p.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

EXCLUDED = -1e30
Nucleus = Literal["holtzman", "openai"]
_BITS_OF_ONE = 0x3F800000  # 1.0 in float32


@dataclass(frozen=True)
class SamplingSpec:
    """Name a distribution over next tokens that is derived from logits.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1.0 are off. `nucleus` says what happens to the
    token that crosses `top_p`: "holtzman" keeps it, "openai" drops it.

    Raises:
        ValueError: names the field that has an impossible value.
    """

    temperature: float
    top_k: int
    top_p: float
    nucleus: Nucleus

    def __post_init__(self) -> None:
        rules = {
            "temperature": (0.0 <= self.temperature < math.inf, "0 (greedy) or positive"),
            "top_k": (self.top_k >= 0, "0 (off) or the number of tokens to keep"),
            "top_p": (0.0 <= self.top_p <= 1.0, "0 <= top_p <= 1 (1 is off)"),
            "nucleus": (self.nucleus in get_args(Nucleus), "holtzman or openai"),
        }
        for name, (holds, expected) in rules.items():
            if not holds:
                raise ValueError(f"sampling.{name} = {getattr(self, name)!r}: expected {expected}.")


GREEDY = SamplingSpec(temperature=0.0, top_k=0, top_p=1.0, nucleus="holtzman")
PLAIN = SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman")


def truncates(spec: SamplingSpec) -> bool:
    """Tell whether some tokens that the model finds possible are never sampled."""
    return spec.temperature == 0.0 or spec.top_k > 0 or spec.top_p < 1.0


def top_k_filter(logits: jax.Array, k: int) -> jax.Array:
    """Keep logits that are at least the k-th largest; ties with the k-th may keep more than k."""
    k = min(k, logits.shape[-1])
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, EXCLUDED, logits)


def nucleus_filter(logits: jax.Array, p: float, *, nucleus: Nucleus) -> jax.Array:
    """Keep the likeliest tokens up to cumulative probability p, at least one, and ties.

    "holtzman" (Holtzman et al. 2020): the smallest set with mass >= p, so the token that crosses p
    stays. "openai" (the released GPT-2 sampling code): the largest set with mass <= p, so it goes.
    """
    fixed = jax.lax.stop_gradient(logits)
    weight = jnp.exp(fixed - fixed.max(-1, keepdims=True)).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(weight, jnp.int32)
    target = p * weight.sum(-1, keepdims=True)

    # The plain version sorts the vocabulary, sums along it, and keeps what comes before p is
    # reached. Sorting is by far the slowest part of a sampling step, so this one looks for the
    # weight at which sorting would cut, the largest u with Σ_{w >= u} w >= p Σ w, by bisection: 30
    # sums over the vocabulary. It halves the bits of u, because those of floats in [0, 1] are
    # ordered as the floats.
    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) // 2
        mass = jnp.where(bits >= middle, weight, 0.0).sum(-1, keepdims=True)
        enough = mass >= target if nucleus == "holtzman" else mass > target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    beyond = jnp.full(target.shape, _BITS_OF_ONE + 1, jnp.int32)  # no weight is so large
    ends = (jnp.zeros_like(beyond), beyond)
    crossing, _ = jax.lax.fori_loop(0, _BITS_OF_ONE.bit_length(), halve, ends)
    kept = bits >= crossing
    if nucleus == "openai":
        above = jnp.where(bits > crossing, weight, 0.0).sum(-1, keepdims=True)
        # The mass with one of the tokens that cross, of which several may tie.
        fits = above + jax.lax.bitcast_convert_type(crossing, jnp.float32) <= target
        kept &= (bits > crossing) | fits | (above == 0)
    return jnp.where(kept, logits, EXCLUDED)


def sampling_logits(logits: jax.Array, spec: SamplingSpec) -> jax.Array:
    """Return unnormalised log-probabilities of the distribution that `spec` samples from."""
    if spec.temperature == 0.0:
        chosen = jnp.argmax(logits, axis=-1)[..., None]
        vocabulary = jax.lax.broadcasted_iota(chosen.dtype, logits.shape, logits.ndim - 1)
        return jnp.where(vocabulary == chosen, 0.0, EXCLUDED)
    if spec.temperature != 1.0:
        logits = logits / spec.temperature
    if spec.top_k > 0:
        logits = top_k_filter(logits, spec.top_k)
    if spec.top_p < 1.0:
        logits = nucleus_filter(logits, spec.top_p, nucleus=spec.nucleus)
    return logits


def log_prob(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return log softmax(logits)[token], float32, without keeping the whole log-softmax."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """Return the entropy of softmax(logits) in nats: log Z - Σ p·logit."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - jnp.sum(jnp.exp(logits - log_z[..., None]) * logits, axis=-1)


def inverse_cdf(uniform_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """Return the token whose interval of the cumulative distribution holds the uniform number.

    A token of probability 0 is never returned; rounding moves an interval by about 1e-7.
    """
    batch, vocab = logits_BV.shape
    # The plain version is argmax(cumsum(softmax(logits)) > uniform). A cumulative sum over the
    # vocabulary is slow: this one looks for a block of about √V tokens, then for the token in it.
    width = 1 << math.ceil(math.log2(vocab) / 2)
    weight_BV = jnp.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    weight_BNW = jnp.pad(weight_BV, ((0, 0), (0, -vocab % width))).reshape(batch, -1, width)
    block_BN = weight_BNW.sum(-1)
    target_B = uniform_B * block_BN.sum(-1)
    block_B, before_B = _first_beyond(block_BN, target_B)
    inside_BW = jnp.take_along_axis(weight_BNW, block_B[:, None, None], axis=1)[:, 0]
    token_B, _ = _first_beyond(inside_BW, target_B - before_B)
    return (block_B * width + token_B).astype(jnp.int32)


def _first_beyond(weight_BN: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the first possible column whose running sum exceeds the target, and the sum before."""
    size = weight_BN.shape[1]
    # jnp.cumsum(weight_BN, axis=1) as a product with a triangle, which is faster; "highest" keeps
    # GPUs from rounding to TF32.
    triangle = jnp.triu(jnp.ones((size, size), weight_BN.dtype))
    sum_BN = jnp.matmul(weight_BN, triangle, precision="highest")
    positive_BN = weight_BN > 0
    beyond_BN = positive_BN & (sum_BN > target_B[:, None])
    # Rounding can leave the target at or above the total; then the last possible column is meant.
    last_B = size - 1 - jnp.argmax(positive_BN[:, ::-1], axis=-1)
    column_B = jnp.where(beyond_BN.any(-1), jnp.argmax(beyond_BN, axis=-1), last_B)
    before_BN = sum_BN - weight_BN
    return column_B, jnp.take_along_axis(before_BN, column_B[:, None], axis=-1)[:, 0]
