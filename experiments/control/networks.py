"""Define small networks for control, and the distributions of actions that they put out.

A policy and a value function share nothing; a reward predictor is the same perceptron. Orthogonal
kernels, biases zero; gain √2 in hidden layers, 0.01 at the policy's end so that it starts nearly
uniform, 1 at the ends of value and reward (details 2 and 13 of Huang et al. 2022, "The 37
implementation details of PPO").

    categorical   logits (…, A)                         action: an integer
    Gaussian      mean and log σ side by side (…, 2A)   action: A independent numbers

Left out on purpose: convolutions and recurrence; squashed Gaussians. Actions are clipped by the
environment only, and their log-probabilities are those of what was drawn (Schulman et al. 2017;
OpenAI baselines).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.maths import kl, losses

Params = Any


class Distribution(NamedTuple):
    """Name what PPO asks of a distribution; `outputs` are the policy network's numbers."""

    sample: Callable[[jax.Array, jax.Array], jax.Array]  # key, outputs -> action
    logp: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, action -> log-probability
    entropy: Callable[[jax.Array], jax.Array]  # outputs -> nats
    kl: Callable[[jax.Array, jax.Array], jax.Array]  # outputs, others -> KL(first ‖ second), nats


def _categorical_logp(logits: jax.Array, action: jax.Array) -> jax.Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


CATEGORICAL = Distribution(
    jax.random.categorical, _categorical_logp, losses.entropy, kl.categorical
)


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
    mean, log_std = jnp.split(outputs, 2, axis=-1)
    other_mean, other_log_std = jnp.split(other, 2, axis=-1)
    scaled = jnp.exp(2 * (log_std - other_log_std))
    scaled += jnp.square((mean - other_mean) * jnp.exp(-other_log_std))
    return jnp.sum(other_log_std - log_std + 0.5 * (scaled - 1.0), axis=-1)


GAUSSIAN = Distribution(_gaussian_sample, _gaussian_logp, _gaussian_entropy, _gaussian_kl)


class MLP(nn.Module):
    """Apply dense layers with tanh between them: (…, inputs) -> (…, outputs)."""

    hidden: tuple[int, ...]
    outputs: int
    gain: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = jnp.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.gain))(x)


class ActorCritic(nn.Module):
    """Put out the numbers of a distribution and a value; a Gaussian's log σ is a parameter."""

    hidden: tuple[int, ...]
    num_actions: int
    gaussian: bool

    @nn.compact
    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = MLP(self.hidden, self.num_actions, 0.01, name="policy")(observation)
        if self.gaussian:
            log_std_A = self.param("log_std", nn.initializers.zeros, (self.num_actions,))
            shape = (1,) * (outputs.ndim - 1) + (self.num_actions,)
            log_std = jnp.broadcast_to(log_std_A.reshape(shape), outputs.shape)
            outputs = jnp.concatenate([outputs, log_std], axis=-1)
        return outputs, MLP(self.hidden, 1, 1.0, name="value")(observation)[..., 0]


def init_network(network: nn.Module, key: jax.Array, num_inputs: int) -> Params:
    """Return fresh parameters of one of these networks."""
    return network.init(key, jnp.zeros((1, num_inputs)))["params"]
