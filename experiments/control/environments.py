"""Define what a control environment is: two pure functions and four facts about them.

    reset(key) -> (state, observation)
    step(key, state, action) -> Step      which has already begun a new episode where one ended

`from_gymnax` makes one of any environment of the gymnax library with flat observations; `point` is
a toy without any dependency. Whether an episode ended by itself or ran out of time matters: after a
time limit there was a future, and its value is bootstrapped from `final_observation`; after an end
there was none.

Left out on purpose: rendering, pixels, and environments of our own worth a paper.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Step(NamedTuple):
    """Hold a transition; where it ends, `observation` and `state` are the next episode's."""

    state: Any
    observation: jax.Array
    reward: jax.Array
    terminated: jax.Array  # ended: nothing follows
    truncated: jax.Array  # ran out of time
    final_observation: jax.Array  # what the action led to, before any reset


class Environment(NamedTuple):
    """Hold the pure functions of an environment, and the sizes that a policy needs."""

    name: str
    reset: Callable[[jax.Array], tuple[Any, jax.Array]]
    step: Callable[[jax.Array, Any, jax.Array], Step]
    num_observations: int
    num_actions: int
    continuous: bool  # else the action is an integer below num_actions


def from_gymnax(name: str) -> Environment:
    """Make an environment of gymnax (Lange 2022).

    Continuous actions are clipped to their range here and nowhere else.

    Raises:
        ModuleNotFoundError: gymnax is not installed.
        ValueError: the name is unknown, or observations are not flat.
    """
    try:
        import gymnax
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"environment {name!r} needs gymnax: pip install 'rlhf_jax[control]'"
        ) from error
    if name not in gymnax.registered_envs:
        raise ValueError(f"environment: got {name!r}, gymnax knows {gymnax.registered_envs}")
    env, params = gymnax.make(name)
    action, shape = env.action_space(params), env.observation_space(params).shape
    if len(shape) != 1:
        raise ValueError(
            f"environment {name!r} has observations of shape {shape}; only flat ones can be used"
        )
    continuous = hasattr(action, "low")

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        observation, state = env.reset(key, params)
        return state, observation

    def step(key: jax.Array, state: Any, chosen: jax.Array) -> Step:
        if continuous:
            low, high = (jnp.broadcast_to(x, chosen.shape) for x in (action.low, action.high))
            chosen = jnp.clip(chosen, low, high)
        observation, state, reward, terminated, truncated, info = env.step(
            key, state, chosen, params
        )
        final = info["final_observation"]
        return Step(state, observation, jnp.float32(reward), terminated, truncated, final)

    num_actions = action.shape[0] if continuous else action.n
    return Environment(name, reset, step, shape[0], num_actions, continuous)


def point(num_steps: int) -> Environment:
    """Make a point on a line with a motor, to be kept at the origin for `num_steps` steps of 0.1.

    v ← v + 0.1 clip(a, ±1),   x ← x + 0.1 v,   reward −(x² + 0.1 v²)

    x is uniform in ±1 and v = 0 at the start.
    """

    def observe(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        return state[0]

    def reset(key: jax.Array) -> tuple[Any, jax.Array]:
        start = jnp.array([1.0, 0.0]) * jax.random.uniform(key, minval=-1.0, maxval=1.0)
        state = (start, jnp.zeros((), jnp.int32))
        return state, observe(state)

    def step(key: jax.Array, state: Any, action: jax.Array) -> Step:
        (x, v), time = state
        v = v + 0.1 * jnp.clip(action[0], -1.0, 1.0)
        moved = jnp.stack([x + 0.1 * v, v]), time + 1
        truncated = moved[1] >= num_steps
        fresh, _ = reset(key)
        following = jax.tree.map(lambda new, old: jnp.where(truncated, new, old), fresh, moved)
        reward = -(jnp.square(moved[0][0]) + 0.1 * jnp.square(v))
        return Step(
            following, observe(following), reward, jnp.zeros((), bool), truncated, observe(moved)
        )

    return Environment("point", reset, step, 2, 1, True)
