"""Turn scores into advantages: missing-EOS penalty, token rewards, GAE, group baselines, moments.

Column r of every `_BR` array belongs to response token r. The episode of a response ends after its
last real token, whose value-to-come is 0: nothing is bootstrapped. A masked column is skipped as if
it were not there, so padding can neither carry nor discount anything.

Left out on purpose: whitening (`masking.whiten` does that, after the returns have been formed from
the unwhitened advantages), and clipping of scores.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.maths.masking import keep, last_true

EOSMode = Literal["replace", "subtract", "none"]
GroupStd = Literal["population", "sample", "none"]


def penalise_missing_eos(
    score_B: jax.Array, stopped_B: jax.Array, *, penalty: float, mode: EOSMode
) -> jax.Array:
    """Penalise responses that never stopped: −penalty ("replace") or score − penalty ("subtract").

    "replace" is OpenAI's rule (lm-human-preferences, and Huang et al. 2024, detail 23, with
    penalty 1), "subtract" TRL's; "none" leaves the score alone. `penalty` is a cost, positive in
    both, so that a config can switch modes without switching signs (OpenAI's own code writes the
    replaced score, −1).

    Raises:
        ValueError: for another mode.
    """
    penalised = {
        "replace": jnp.full_like(score_B, -penalty),
        "subtract": score_B - penalty,
        "none": score_B,
    }
    if mode not in penalised:
        raise ValueError(f"missing-EOS mode: got {mode!r}, expected one of {sorted(penalised)}")
    return jnp.where(stopped_B, score_B, penalised[mode])


def token_rewards(
    score_B: jax.Array, kl_BR: jax.Array, mask_BR: jax.Array, kl_coef: jax.Array | float
) -> jax.Array:
    """Return R_t = −β KL_t + 1[t is the last real token] · score.

    Ouyang et al. 2022, equation 2, paid out per token. Summed over a response this is
    score − β Σ KL_t. A response with no real token gets no reward at all.
    """
    real_BR = mask_BR != 0
    score_BR = jnp.broadcast_to(score_B[:, None], kl_BR.shape).astype(jnp.float32)
    penalty_BR = keep(kl_BR.astype(jnp.float32), mask_BR) * kl_coef
    return jnp.where(last_true(real_BR), score_BR, 0.0) - penalty_BR


def gae(
    reward_BR: jax.Array,
    value_BR: jax.Array,
    mask_BR: jax.Array,
    *,
    gamma: jax.Array | float,
    lam: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """Return generalised advantage estimates Â, and the returns Â + V that values should predict.

        δ_t = r_t + γ_t V_{t+1} − V_t        Â_t = δ_t + γ_t λ Â_{t+1}

    Schulman et al. 2016, equation 16. `gamma` and `lam` are scalars or broadcast to (B, R); γ_t
    discounts what follows token t. V after the last real token is 0. To bootstrap a truncated
    episode, add γ V_{T+1} to its last reward.
    """
    assert reward_BR.shape == value_BR.shape == mask_BR.shape
    real_BR = mask_BR != 0
    reward_BR = keep(reward_BR.astype(jnp.float32), mask_BR)
    value_BR = keep(value_BR.astype(jnp.float32), mask_BR)
    gamma_BR = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), reward_BR.shape)
    lam_BR = jnp.broadcast_to(jnp.asarray(lam, jnp.float32), reward_BR.shape)

    def step(
        carry: tuple[jax.Array, jax.Array], column: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_value_B, next_advantage_B = carry
        reward_B, value_B, gamma_B, lam_B, real_B = column
        delta_B = reward_B + gamma_B * next_value_B - value_B
        advantage_B = delta_B + gamma_B * lam_B * next_advantage_B
        carry = (
            jnp.where(real_B, value_B, next_value_B),
            jnp.where(real_B, advantage_B, next_advantage_B),
        )
        return carry, jnp.where(real_B, advantage_B, 0.0)

    zero_B = jnp.zeros_like(reward_BR[:, 0])
    columns = (reward_BR.T, value_BR.T, gamma_BR.T, lam_BR.T, real_BR.T)
    _, advantage_RB = jax.lax.scan(step, (zero_B, zero_B), columns, reverse=True)
    advantage_BR = advantage_RB.T
    return advantage_BR, keep(advantage_BR + value_BR, mask_BR)


def rloo(reward_BN: jax.Array) -> jax.Array:
    """Return leave-one-out advantages of a prompt's N samples, A_i = R_i − (1/(N−1)) Σ_{j≠i} R_j.

    Ahmadian et al. 2024. R is the reward of a whole response, KL penalty included.

    Raises:
        ValueError: for N = 1, which leaves nothing out.
    """
    num_samples = reward_BN.shape[-1]
    if num_samples < 2:
        raise ValueError(f"rloo needs at least 2 samples per prompt, got {num_samples}")
    others_BN = jnp.sum(reward_BN, axis=-1, keepdims=True) - reward_BN
    return reward_BN - others_BN / (num_samples - 1)


def grpo_advantages(reward_BN: jax.Array, *, std: GroupStd, eps: float) -> jax.Array:
    """Return group-relative advantages of a prompt's N samples, A_i = (R_i − mean) / (std + eps).

    Shao et al. 2024 (DeepSeekMath), section 4.1. `std` is "population", "sample" (N − 1, as in TRL
    with eps 1e-4) or "none" (Dr. GRPO: only the mean is taken off). A group of equal rewards has
    advantages 0.

    Raises:
        ValueError: for another `std`, or "sample" with N = 1.
    """
    num_samples = reward_BN.shape[-1]
    if std not in ("population", "sample", "none"):
        raise ValueError(f"grpo std: got {std!r}, expected 'population', 'sample' or 'none'")
    if std == "sample" and num_samples < 2:
        raise ValueError(
            f"grpo std 'sample' needs at least 2 samples per prompt, got {num_samples}"
        )
    centred_BN = reward_BN - jnp.mean(reward_BN, axis=-1, keepdims=True)
    if std == "none":
        return centred_BN
    scale_B1 = jnp.std(reward_BN, axis=-1, keepdims=True, ddof=1 if std == "sample" else 0) + eps
    return jnp.where(scale_B1 > 0, centred_BN / jnp.where(scale_B1 > 0, scale_B1, 1.0), 0.0)


class RunningMoments(NamedTuple):
    """Hold count, mean and Σ (x − mean)² of all numbers seen so far."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    mean: jax.Array
    m2: jax.Array


def empty_moments() -> RunningMoments:
    """Return the moments of no numbers."""
    return RunningMoments(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def update_moments(moments: RunningMoments, x: jax.Array) -> RunningMoments:
    """Add a batch of any shape in one step without losing precision.

    Chan, Golub and LeVeque 1979.
    """
    x = x.astype(jnp.float32)
    batch_mean = jnp.mean(x)
    count = moments.count + x.size
    shift = batch_mean - moments.mean
    between = jnp.square(shift) * moments.count * x.size / count
    return RunningMoments(
        count,
        moments.mean + shift * x.size / count,
        moments.m2 + jnp.sum(jnp.square(x - batch_mean)) + between,
    )


def moments_std(moments: RunningMoments) -> jax.Array:
    """Return the population standard deviation, or 1 while that is still 0.

    So it is always safe to divide by.
    """
    variance = moments.m2 / jnp.maximum(moments.count, 1.0)
    return jnp.where(variance > 0, jnp.sqrt(variance), 1.0)
