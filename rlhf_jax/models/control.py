"""Small multilayer perceptrons for control: a policy and a value function that share nothing, and a reward predictor.

Orthogonal kernels, biases zero; gain √2 in hidden layers, 0.01 at the policy's end so that it starts nearly uniform, 1 at
the ends of value and reward (details 2 and 13 of Huang et al. 2022, "The 37 implementation details of PPO").

Left out on purpose: convolutions and recurrence; these are for environments that show their whole state.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Params = Any


class MLP(nn.Module):
    """Dense layers with tanh between them: (…, inputs) -> (…, outputs)."""

    hidden: tuple[int, ...]
    outputs: int
    gain: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in self.hidden:
            x = jnp.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.gain))(x)


class ActorCritic(nn.Module):
    """Numbers for `maths.distributions` and a value; a Gaussian's log σ is a parameter of its own, starting at 0."""

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
    """Fresh parameters of one of these networks."""
    return network.init(key, jnp.zeros((1, num_inputs)))["params"]
