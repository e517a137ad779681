"""Set up what the ablations on control environments share: PPO's settings, and a cache over seeds.

The settings are those of Schulman et al. 2017, Table 3. Departures from the paper: 8 copies of an
environment take 128 steps each (1 x 2,048 there), minibatches of 256 (64 there) and layers of 32
(64 there), so that it fits on a busy CPU; learning rate annealed to 0, and gradients clipped at
0.5, as OpenAI's baselines do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.ablations.framework import Context
from experiments.control.environments import from_gymnax, point
from experiments.control.ppo import Agent, Settings, make_agent
from rlhf_jax.training.optimizer import OptimizerConfig


def ppo_settings(num_iterations: int, learning_rate: float) -> Settings:
    """Return PPO for `num_iterations` times 1,024 steps."""
    optimizer = OptimizerConfig(
        learning_rate=learning_rate,
        schedule="linear",
        warmup_steps=0,
        warmup_init_fraction=1.0,
        final_fraction=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-5,
        adam_style="torch",
        weight_decay=0.0,
        max_grad_norm=0.5,
    )
    return Settings(
        num_iterations=num_iterations,
        num_envs=8,
        num_steps=128,
        num_ppo_epochs=10,
        num_mini_batches=4,
        hidden=(32, 32),
        gamma=0.99,
        lam=0.95,
        vf_coef=0.5,
        cliprange_value=None,
        entropy_coef=0.0,
        scale_rewards=True,
        optimizer=optimizer,
    )


@cache
def cached_agent(environment: str, settings: Settings) -> Agent:
    """Return an agent, the same for the same arguments, so that it is compiled once.

    Environment `point` is ours and needs nothing; any other name is gymnax's.
    """
    env = point(50) if environment == "point" else from_gymnax(environment)
    return make_agent(env, settings)


def measure_all_seeds(
    context: Context,
    name: str,
    measure: Callable[[jax.Array], Mapping[str, Any]],
    seed: int,
    seeds: Sequence[int],
    **depends_on: Any,
) -> dict[str, Any]:
    """Return a seed's part of one vectorised run over all seeds.

    The first seed's measurement does the work, `measure(keys)` with arrays whose first axis is
    seeds; the others read it. What is not finite is None.
    """

    def measure_seeds() -> dict[str, Any]:
        keys = jnp.stack([jax.random.key(seed) for seed in seeds])
        return {name: _finite(np.asarray(x).tolist()) for name, x in measure(keys).items()}

    depends_on = {"seeds": list(seeds)} | {
        name: asdict(value) if hasattr(value, "__dataclass_fields__") else value
        for name, value in depends_on.items()
    }
    columns, _ = context.cache.get("all", name, depends_on, measure_seeds)
    return {name: values[seeds.index(seed)] for name, values in columns.items()}


def _finite(numbers: Any) -> Any:
    if isinstance(numbers, list):
        return [_finite(number) for number in numbers]
    return numbers if np.isfinite(numbers) else None
