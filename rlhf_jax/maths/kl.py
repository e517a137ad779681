"""Measure the KL divergence between a policy π and its reference ρ, and adapt its coefficient.

With x ~ π and ratio r = ρ(x)/π(x) (Schulman, "Approximating KL divergence", 2020):

    k1 = −log r            unbiased, can be negative for a single token
    k2 = (log r)² / 2      biased, never negative
    k3 = (r − 1) − log r   unbiased, never negative, low variance

All are in nats per token. Their sum over a response estimates KL(π ‖ ρ) of the whole response.

Left out on purpose: clamps of the estimates. A log-ratio large enough to need one is a bug
elsewhere.
"""

import jax
import jax.numpy as jnp


def k1(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Return log π − log ρ, the estimate that is unbiased but may be negative."""
    return logp.astype(jnp.float32) - ref_logp.astype(jnp.float32)


def k2(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Return ½ (log π − log ρ)².

    Its *gradient* on samples of π is an unbiased gradient of KL(π ‖ ρ).
    """
    return 0.5 * jnp.square(k1(logp, ref_logp))


def k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Return ρ/π − 1 − log ρ/π.

    Unbiased as a value; its gradient is not that of KL(π ‖ ρ).
    """
    difference = k1(logp, ref_logp)
    return jnp.expm1(-difference) + difference


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def estimate(name: str, logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """Return the estimate called "k1", "k2" or "k3".

    Raises:
        ValueError: for any other name.
    """
    if name not in ESTIMATORS:
        raise ValueError(f"kl estimator: got {name!r}, expected one of {sorted(ESTIMATORS)}")
    return ESTIMATORS[name](logp, ref_logp)


def categorical(logits: jax.Array, ref_logits: jax.Array) -> jax.Array:
    """Return the exact KL(π ‖ ρ) = Σ_v π_v (log π_v − log ρ_v) over the last axis, in nats.

    A token that π cannot emit (logit −∞) contributes 0. PPO's KL penalty wants KL(π_old ‖ π): pass
    the old logits first.
    """
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    ref_logp = jax.nn.log_softmax(ref_logits.astype(jnp.float32))
    possible = logp > -jnp.inf
    difference = jnp.where(possible, logp, 0.0) - jnp.where(possible, ref_logp, 0.0)
    return jnp.sum(jnp.where(possible, jnp.exp(logp), 0.0) * difference, axis=-1)


def ziegler_update(
    kl_coef: jax.Array | float,
    kl: jax.Array | float,
    *,
    target: float,
    horizon: float,
    num_episodes: int,
) -> jax.Array:
    """Adapt the KL coefficient in proportion to its error (Ziegler et al. 2019, section 2.2).

        β ← β (1 + clip(KL/target − 1, −0.2, 0.2) · num_episodes/horizon)

    `kl` is the mean over the batch's episodes of the KL summed over a response; `horizon` counts
    episodes. The paper writes a gain K_β = 0.1; its code, which we follow, has
    num_episodes/horizon (0.0512 for a batch of 512). The new β is for the next batch: a batch is
    rewarded with the β from before its own update.
    """
    error = jnp.clip(jnp.asarray(kl, jnp.float32) / target - 1.0, -0.2, 0.2)
    return jnp.asarray(kl_coef, jnp.float32) * (1.0 + error * num_episodes / horizon)


def ppo2017_update(
    beta: jax.Array | float, kl: jax.Array | float, *, target: jax.Array | float
) -> jax.Array:
    """Halve or double the penalty's coefficient (Schulman et al. 2017, section 4).

        β ← β/2 if KL < target/1.5, 2β if KL > 1.5·target, else β

    `kl` is the mean per-token KL(π_old ‖ π) after the policy update.
    """
    beta = jnp.asarray(beta, jnp.float32)
    kl = jnp.asarray(kl, jnp.float32)
    return jnp.where(kl < target / 1.5, beta / 2.0, jnp.where(kl > target * 1.5, beta * 2.0, beta))
