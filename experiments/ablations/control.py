"""What the ablations on control environments share: PPO's settings of Schulman et al. 2017, Table 3, and a cache over seeds.

Departures from the paper: 8 copies of an environment take 128 steps each (1 x 2,048 there), minibatches of 256 (64 there) and
layers of 32 (64 there), so that it fits on a busy CPU; learning rate annealed to 0, and gradients clipped at 0.5, as OpenAI's
baselines do.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from experiments.ablations.framework import Bench
from experiments.control.environments import Environment, from_gymnax, point
from experiments.control.ppo import Agent, Settings, make_agent
from rlhf_jax.training.optimizer import OptimizerConfig


def settings(num_iterations: int, learning_rate: float) -> Settings:
    """PPO for `num_iterations` times 1,024 steps."""
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


def environment(name: str) -> Environment:
    """`point` is ours and needs nothing; any other name is gymnax's."""
    return point(50) if name == "point" else from_gymnax(name)


@cache
def agent_of(name: str, how: Settings) -> Agent:
    """An agent for that environment, the same object for the same arguments, so that its programs are compiled once."""
    return make_agent(environment(name), how)


def all_seeds(
    bench: Bench, name: str, depends_on: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What one vectorised run over all seeds gave: done by the first seed's measurement, read by the others."""
    return bench.cache.get("all", name, depends_on, measure)[0]
