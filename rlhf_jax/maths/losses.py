"""Compute the losses of language modelling and of policy-gradient training.

    language model   −log softmax(logits)[target],  plus PaLM's log² Z
    PPO              max(−r A, −clip(r, 1 ± ε) A)   and   ½ max((V − R)², (V_clipped − R)²),
                     r = π/π_old
    PPO, KL penalty  −r A + β KL(π_old ‖ π)
    GRPO             PPO's policy term + β k3(π, π_ref), averaged per response first
    REINFORCE        −A Σ_t log π(token t)

Reducing functions return `Mean` pairs: divide (`masking.value`) only after micro-batches have been
merged. Losses are minimised. "Old" quantities, advantages and returns are data: they come from the
rollout, never from the parameters being trained, and no gradient flows into them.

Left out on purpose: model calls (see `inference.scoring`), and the weighting of losses against each
other.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.maths import kl
from rlhf_jax.maths.masking import Mean, keep, mean, value

Stats = dict[str, Mean]
Reduction = Literal["response_mean", "token_mean", "fixed_length"]


def cross_entropy(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Return −log softmax(logits)[target] of every token, in nats and float32."""
    logits_BTV = logits_BTV.astype(jnp.float32)
    target_BT = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BTV, axis=-1) - target_BT


def z_loss(logits_BTV: jax.Array) -> jax.Array:
    """Return log² Z of every token, Z being the normaliser of its softmax.

    Chowdhery et al. 2022, section 5, with weight 1e-4.
    """
    return jnp.square(jax.nn.logsumexp(logits_BTV.astype(jnp.float32), axis=-1))


def entropy(logits: jax.Array) -> jax.Array:
    """Return −Σ_v p_v log p_v over the last axis, in nats; a logit of −∞ contributes 0."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    possible = logp > -jnp.inf
    return -jnp.sum(
        jnp.where(possible, jnp.exp(logp) * jnp.where(possible, logp, 0.0), 0.0), axis=-1
    )


def _log_ratio(logp_BR: jax.Array, old_logp_BR: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Return log π/π_old, and 0 where masked: the garbage there may overflow when exponentiated."""
    old_logp_BR = jax.lax.stop_gradient(old_logp_BR)
    return keep(logp_BR.astype(jnp.float32) - old_logp_BR.astype(jnp.float32), mask_BR)


def _ratio_stats(log_ratio_BR: jax.Array, mask_BR: jax.Array) -> Stats:
    return {
        "approxkl": mean(0.5 * jnp.square(log_ratio_BR), mask_BR),
        "ratio": mean(jnp.exp(log_ratio_BR), mask_BR),
    }


def ppo_policy_loss(
    logp_BR: jax.Array,
    old_logp_BR: jax.Array,
    advantage_BR: jax.Array,
    mask_BR: jax.Array,
    *,
    cliprange: jax.Array | float,
    cliprange_high: float | None = None,
) -> tuple[Mean, Stats]:
    """Return PPO's clipped loss max(−r A, −clip(r, 1−ε, 1+ε) A), r = π/π_old, and its stats.

    Schulman et al. 2017, equation 7, negated. `cliprange` inf never clips. `cliprange_high`, if
    given, replaces ε above 1 ("clip-higher", Yu et al. 2025).

    Stats, means over real tokens: `approxkl` ½ (log r)²; `clipfrac`, tokens whose clip binds
    (OpenAI's lm-human-preferences, TRL); `ratio` r.
    """
    assert logp_BR.shape == old_logp_BR.shape == advantage_BR.shape == mask_BR.shape
    log_ratio_BR = _log_ratio(logp_BR, old_logp_BR, mask_BR)
    advantage_BR = keep(jax.lax.stop_gradient(advantage_BR).astype(jnp.float32), mask_BR)
    high = cliprange if cliprange_high is None else cliprange_high
    ratio_BR = jnp.exp(log_ratio_BR)
    free_BR = -advantage_BR * ratio_BR
    clipped_BR = -advantage_BR * jnp.clip(ratio_BR, 1.0 - cliprange, 1.0 + high)
    stats = {"clipfrac": mean(clipped_BR > free_BR, mask_BR), **_ratio_stats(log_ratio_BR, mask_BR)}
    return mean(jnp.maximum(free_BR, clipped_BR), mask_BR), stats


def ppo_kl_penalty_loss(
    logp_BR: jax.Array,
    old_logp_BR: jax.Array,
    kl_BR: jax.Array,
    advantage_BR: jax.Array,
    mask_BR: jax.Array,
    *,
    beta: jax.Array | float,
) -> tuple[Mean, Stats]:
    """Return PPO's loss with a KL penalty in place of the clip, −r A + β KL(π_old ‖ π).

    Schulman et al. 2017, equation 8, negated. `kl_BR` must be differentiable in the policy, finite
    where masked, and point from old to new: `kl.categorical(old_logits, logits)`, or on the sampled
    tokens `kl.k3(old_logp, logp)` (π_old sampled them, so that is unbiased). Feed the mean of the
    stat `kl`, measured after the last epoch, to `kl.ppo2017_update`.
    """
    log_ratio_BR = _log_ratio(logp_BR, old_logp_BR, mask_BR)
    advantage_BR = keep(jax.lax.stop_gradient(advantage_BR).astype(jnp.float32), mask_BR)
    loss_BR = -advantage_BR * jnp.exp(log_ratio_BR) + beta * kl_BR
    stats = {"kl": mean(kl_BR, mask_BR), **_ratio_stats(log_ratio_BR, mask_BR)}
    return mean(loss_BR, mask_BR), stats


def ppo_value_loss(
    value_BR: jax.Array,
    old_value_BR: jax.Array,
    return_BR: jax.Array,
    mask_BR: jax.Array,
    *,
    cliprange_value: float | None,
) -> tuple[Mean, Stats]:
    """Return PPO's clipped loss of a value function, and its stats.

        ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)

    and ½ (V − R)² if `cliprange_value` is None. The clip and the ½ are OpenAI baselines'; Schulman
    et al. 2017 (equation 9) has neither. Stats: `error` (V − R)²; `clipfrac`, tokens whose clip
    binds; `value` V.
    """
    assert value_BR.shape == old_value_BR.shape == return_BR.shape == mask_BR.shape
    value_BR = keep(value_BR.astype(jnp.float32), mask_BR)
    old_value_BR = keep(jax.lax.stop_gradient(old_value_BR).astype(jnp.float32), mask_BR)
    return_BR = keep(jax.lax.stop_gradient(return_BR).astype(jnp.float32), mask_BR)
    error_BR = jnp.square(value_BR - return_BR)
    clipped_error_BR = error_BR
    if cliprange_value is not None:
        move_BR = jnp.clip(value_BR - old_value_BR, -cliprange_value, cliprange_value)
        clipped_error_BR = jnp.square(old_value_BR + move_BR - return_BR)
    stats = {
        "error": mean(error_BR, mask_BR),
        "clipfrac": mean(clipped_error_BR > error_BR, mask_BR),
        "value": mean(value_BR, mask_BR),
    }
    return mean(0.5 * jnp.maximum(error_BR, clipped_error_BR), mask_BR), stats


def explained_variance(value_BR: jax.Array, return_BR: jax.Array, mask_BR: jax.Array) -> jax.Array:
    """Return 1 − var(R − V) / var(R) over real tokens.

    It is 1 for perfect values, and 0 for constant values or constant R.
    """

    def variance(x_BR: jax.Array) -> jax.Array:
        x_BR = keep(x_BR.astype(jnp.float32), mask_BR)
        return value(mean(jnp.square(x_BR - value(mean(x_BR, mask_BR))), mask_BR))

    total = variance(return_BR)
    unexplained = variance(return_BR - value_BR)
    return jnp.where(total > 0, 1.0 - unexplained / jnp.where(total > 0, total, 1.0), 0.0)


def reinforce_loss(logp_BR: jax.Array, advantage_B: jax.Array, mask_BR: jax.Array) -> Mean:
    """Return −A_i Σ_t log π(token t), averaged over responses i.

    This is REINFORCE, and RLOO with `returns.rloo`. The whole response is one action (Ahmadian et
    al. 2024): log-probabilities are summed, not averaged.
    """
    logp_B = jnp.sum(keep(logp_BR.astype(jnp.float32), mask_BR), axis=-1)
    return mean(-jax.lax.stop_gradient(advantage_B) * logp_B, _response_weight(mask_BR))


def _response_weight(mask_BR: jax.Array) -> jax.Array:
    """Return 1 for a response with real tokens, else 0; of a weighted mask, its tokens' weight."""
    return jnp.max(mask_BR.astype(jnp.float32), axis=-1)


def reduce_tokens(x_BR: jax.Array, mask_BR: jax.Array, *, reduction: Reduction) -> Mean:
    """Average a per-token loss over a batch of responses in one of three ways.

        "response_mean"   over the tokens of each response, then over responses (GRPO: the tokens
                          of a long response weigh less)
        "token_mean"      over all tokens (PPO, DAPO)
        "fixed_length"    Σ over tokens / R, then over responses (Dr. GRPO)

    Raises:
        ValueError: for another name.
    """
    if reduction == "token_mean":
        return mean(x_BR, mask_BR)
    total_B = jnp.sum(keep(x_BR, mask_BR), axis=-1)
    length_B = jnp.sum((mask_BR != 0).astype(jnp.float32), axis=-1)
    if reduction == "response_mean":
        return mean(total_B / jnp.maximum(length_B, 1.0), _response_weight(mask_BR))
    if reduction == "fixed_length":
        return mean(total_B / x_BR.shape[-1], _response_weight(mask_BR))
    raise ValueError(
        f"reduction: got {reduction!r}, expected 'response_mean', 'token_mean' or 'fixed_length'"
    )


def grpo_loss(
    logp_BR: jax.Array,
    old_logp_BR: jax.Array,
    ref_logp_BR: jax.Array,
    advantage_B: jax.Array,
    mask_BR: jax.Array,
    *,
    cliprange: float,
    kl_coef: float,
    reduction: Reduction,
    cliprange_high: float | None = None,
) -> tuple[Mean, Stats]:
    """Return GRPO's loss, PPO's with one advantage for all tokens of a response and a KL term.

        max(−r A, −clip(r) A) + β k3(π, π_ref)

    Shao et al. 2024 (DeepSeekMath), equation 3, negated. The KL is in the loss, not in the reward.
    Stats: those of `ppo_policy_loss`, and `kl` (k3 to the reference).
    """
    log_ratio_BR = _log_ratio(logp_BR, old_logp_BR, mask_BR)
    advantage_BR = jnp.broadcast_to(
        jax.lax.stop_gradient(advantage_B)[:, None], logp_BR.shape
    ).astype(jnp.float32)
    high = cliprange if cliprange_high is None else cliprange_high
    ratio_BR = jnp.exp(log_ratio_BR)
    free_BR = -advantage_BR * ratio_BR
    clipped_BR = -advantage_BR * jnp.clip(ratio_BR, 1.0 - cliprange, 1.0 + high)
    loss_BR = jnp.maximum(free_BR, clipped_BR)
    kl_BR = kl.k3(keep(logp_BR, mask_BR), keep(jax.lax.stop_gradient(ref_logp_BR), mask_BR))
    loss = reduce_tokens(loss_BR + kl_coef * kl_BR, mask_BR, reduction=reduction)
    return loss, {
        "kl": mean(kl_BR, mask_BR),
        "clipfrac": mean(clipped_BR > free_BR, mask_BR),
        **_ratio_stats(log_ratio_BR, mask_BR),
    }
