"""What one training run carries from step to step.

A `TrainState` is the parameters, the optimizer's state, the number of updates made, and `extras`: the few
arrays a stage must not lose between steps (a KL coefficient, running reward moments, an exponential average
of the weights). Random keys and the position in the data are not here: both are functions of the seed and the
step number.

Left out on purpose: the model and the optimizer, which are code and not state, and anything that is not an
array.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Step, parameters, optimizer state and extras; frozen, so a step returns a new one."""

    step: jax.Array
    params: Params
    opt_state: Any
    extras: dict[str, Any]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, extras: dict[str, Any] | None = None
) -> TrainState:
    """A state at step 0.

    It holds `params` themselves, not a copy: before donating the state to a jitted step, `mesh.place` it, or
    whoever else holds these parameters (a reference model) loses them.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), dict(extras or {}))


def apply_gradients(state: TrainState, grads: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """One optimizer update: θ ← θ + u(g), step ← step + 1; extras stay as they are."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return replace(state, step=state.step + 1, params=params, opt_state=opt_state)


def to_checkpoint(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """The two trees that are saved: the parameters, which a child stage loads alone, and everything else."""
    return state.params, {"step": state.step, "opt_state": state.opt_state, "extras": state.extras}


def from_checkpoint(params: Params, train: dict[str, Any]) -> TrainState:
    """The inverse of `to_checkpoint`."""
    return TrainState(train["step"], params, train["opt_state"], train["extras"])
