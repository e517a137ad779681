"""Distributions of actions, as functions of the numbers a policy network puts out.

    categorical   logits (…, A)                         action: an integer
    Gaussian      mean and log σ side by side (…, 2A)   action: A independent numbers

Both are the same four functions, so that one loop serves discrete and continuous actions.

Left out on purpose: squashed Gaussians. Actions are clipped by the environment only, and their log-probabilities are those of
what was drawn (Schulman et al. 2017; OpenAI baselines).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.maths import kl, losses


class Distribution(NamedTuple):
    """What PPO asks of a distribution; `outputs` are the policy network's numbers."""

    sample: Callable[[jax.Array, jax.Array], jax.Array]  # key, outputs -> action
    logp: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, action -> log-probability
    entropy: Callable[[jax.Array], jax.Array]  # outputs -> nats
    kl: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, other outputs -> KL(first ‖ second), nats


def _categorical_logp(logits: jax.Array, action: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


CATEGORICAL = Distribution(jax.random.categorical, _categorical_logp, losses.entropy, kl.categorical)


def _gaussian_sample(key: jax.Array, outputs: jax.Array) -> jax.Array:
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def _gaussian_logp(outputs: jax.Array, action: jax.Array) -> jax.Array:
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    z = (action - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * jnp.square(z) + log_std + 0.5 * jnp.log(2 * jnp.pi), axis=-1)


def _gaussian_entropy(outputs: jax.Array) -> jax.Array:
    log_std = jnp.split(outputs, 2, axis=-1)[1]
    return jnp.sum(log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e), axis=-1)


def _gaussian_kl(outputs: jax.Array, other: jax.Array) -> jax.Array:
    (mean, log_std), (other_mean, other_log_std) = (jnp.split(x, 2, axis=-1) for x in (outputs, other))
    scaled = jnp.exp(2 * (log_std - other_log_std)) + jnp.square((mean - other_mean) * jnp.exp(-other_log_std))
    return jnp.sum(other_log_std - log_std + 0.5 * (scaled - 1.0), axis=-1)


GAUSSIAN = Distribution(_gaussian_sample, _gaussian_logp, _gaussian_entropy, _gaussian_kl)
