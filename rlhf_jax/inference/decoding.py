"""Decoding rules as pure functions of logits: greedy, temperature, top-k, nucleus, and drawing a token.

    logits  ->  /temperature  ->  top-k  ->  nucleus  ->  softmax  =  the distribution really sampled from

`SamplingSpec` names the distribution and travels to sampler and scorer alike, so that both speak of the same
one. Excluded tokens get the finite logit `EXCLUDED`, whose probability is exactly 0 and whose entropy term is
0, not NaN.

Left out on purpose: beam search, repetition penalties, min-p.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

EXCLUDED = -1e30
_ONE = 0x3F800000  # the bits of 1.0


@dataclass(frozen=True)
class SamplingSpec:
    """A sampling distribution over next tokens, derived from logits.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1.0 are off. `nucleus` says what happens to the token
    that crosses `top_p`: "holtzman" keeps it, "openai" drops it. Raises ValueError naming the field.
    """

    temperature: float
    top_k: int
    top_p: float
    nucleus: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < math.inf:
            raise ValueError(
                f"sampling.temperature = {self.temperature}: expected 0 (greedy) or a positive number."
            )
        if self.top_k < 0:
            raise ValueError(
                f"sampling.top_k = {self.top_k}: expected 0 (off) or the number of tokens to keep."
            )
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"sampling.top_p = {self.top_p}: expected 0 <= top_p <= 1 (1 is off).")
        if self.nucleus not in ("holtzman", "openai"):
            raise ValueError(f"sampling.nucleus = {self.nucleus!r}: expected holtzman or openai.")


GREEDY = SamplingSpec(temperature=0.0, top_k=0, top_p=1.0, nucleus="holtzman")
PLAIN = SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman")


def truncates(spec: SamplingSpec) -> bool:
    """Whether some tokens that the model finds possible cannot be sampled: top-k, nucleus, or greedy."""
    return spec.temperature == 0.0 or spec.top_k > 0 or spec.top_p < 1.0


def greedy(logits_BV: jax.Array) -> jax.Array:
    """The likeliest token; the first of them when tied."""
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)


def top_k_filter(logits: jax.Array, k: int) -> jax.Array:
    """Keep logits that are at least the k-th largest; ties with the k-th may keep more than k."""
    k = min(k, logits.shape[-1])
    threshold = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < threshold, EXCLUDED, logits)


def nucleus_filter(logits: jax.Array, p: float, *, nucleus: str) -> jax.Array:
    """Keep the likeliest tokens up to cumulative probability p, at least one, and ties with the last kept.

    "holtzman" (Holtzman et al. 2020): the smallest set with mass >= p, so the token that crosses p stays.
    "openai" (the released GPT-2 sampling code): the largest set with mass <= p, so it goes.

    Without sorting: the weight of the token that crosses, the largest u with Σ_{w >= u} w >= p Σ w, is found by bisection of
    its bits, whose order is that of floats between 0 and 1.
    """
    fixed = jax.lax.stop_gradient(logits)
    weight = jnp.exp(fixed - fixed.max(-1, keepdims=True)).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(weight, jnp.int32)
    target = p * weight.sum(-1, keepdims=True)

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) // 2
        mass = jnp.where(bits >= middle, weight, 0.0).sum(-1, keepdims=True)
        enough = mass >= target if nucleus == "holtzman" else mass > target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    beyond = jnp.full(target.shape, _ONE + 1, jnp.int32)  # no weight is so large
    crossing, _ = jax.lax.fori_loop(0, _ONE.bit_length(), halve, (jnp.zeros_like(beyond), beyond))
    kept = bits >= crossing
    if nucleus == "openai":
        above = jnp.where(bits > crossing, weight, 0.0).sum(-1, keepdims=True)
        fits = (
            above + jax.lax.bitcast_convert_type(crossing, jnp.float32) <= target
        )  # one of several that tie
        kept &= (bits > crossing) | fits | (above == 0)
    return jnp.where(kept, logits, EXCLUDED)


def sampling_logits(logits: jax.Array, spec: SamplingSpec) -> jax.Array:
    """Unnormalised log-probabilities of the distribution that `spec` really samples from."""
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
    """log softmax(logits)[token], float32, without keeping the whole log-softmax."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of softmax(logits) in nats: log Z - Σ p·logit."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return log_z - jnp.sum(jnp.exp(logits - log_z[..., None]) * logits, axis=-1)


def categorical(key: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """One token per row from softmax(logits), with one random number a row instead of one a token."""
    return inverse_cdf(jax.random.uniform(key, logits_BV.shape[:1]), logits_BV)


def inverse_cdf(uniform_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
    """The token whose interval of the cumulative distribution holds the uniform number of its row.

    The search has two levels, first a block of about √V tokens, then a token of it, because a cumulative sum
    over the whole vocabulary is slow. A token of probability 0 is never returned; rounding moves an interval
    by about 1e-7.
    """
    batch, vocab = logits_BV.shape
    width = 1 << math.ceil(math.log2(vocab) / 2)
    weight_BV = jnp.exp(logits_BV - logits_BV.max(-1, keepdims=True))
    weight_BNW = jnp.pad(weight_BV, ((0, 0), (0, -vocab % width))).reshape(batch, -1, width)
    block_BN = weight_BNW.sum(-1)
    target_B = uniform_B * block_BN.sum(-1)
    block_B, before_B = _find(block_BN, target_B)
    inside_BW = jnp.take_along_axis(weight_BNW, block_B[:, None, None], axis=1)[:, 0]
    token_B, _ = _find(inside_BW, target_B - before_B)
    return (block_B * width + token_B).astype(jnp.int32)


def _find(weight_BN: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First column of positive weight at which the running sum exceeds the target, and the sum before it."""
    size = weight_BN.shape[1]
    # A product with a triangle is the fastest running sum; "highest" keeps GPUs from rounding to TF32.
    sum_BN = jnp.matmul(
        weight_BN, jnp.triu(jnp.ones((size, size), weight_BN.dtype)), precision="highest"
    )
    positive_BN = weight_BN > 0
    beyond_BN = positive_BN & (sum_BN > target_B[:, None])
    # Rounding can leave the target at or above the total; then the last possible column is meant.
    last_B = size - 1 - jnp.argmax(positive_BN[:, ::-1], axis=-1)
    found_B = jnp.where(beyond_BN.any(-1), jnp.argmax(beyond_BN, axis=-1), last_B)
    before_BN = sum_BN - weight_BN
    return found_B, jnp.take_along_axis(before_BN, found_B[:, None], axis=-1)[:, 0]
