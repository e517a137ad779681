"""Train the smallest language model, three arms with a known optimum, by the stages' functions.

    max_π  E_π[r] - β KL(π ‖ ρ)    π* ∝ ρ exp(r/β)                          (KL in the reward)
    max_π  E_π[r] - β KL(ρ ‖ π)    π_i = β ρ_i / (λ - r_i), λ: they sum to 1    (k3 in the loss)

One empty prompt, answers of one token out of three, arm i pays i. Policy, value and reward model
are real networks: the policy's logits are its last bias, the value is its head's bias, the reward
model scores arm i with i. tests/stages/test_algorithms.py holds every algorithm to the optimum;
colabs/ppo_details.ipynb draws the way there.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import brentq

from experiments.menagerie import ppo as ppo_experiment
from experiments.menagerie import rloo as rloo_experiment
from rlhf_jax.config import build
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.kl import categorical
from rlhf_jax.maths.returns import empty_moments
from rlhf_jax.models.config import gpt
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.stages import policy_gradient, ppo
from rlhf_jax.stages.rewards import Reward, start_moments
from rlhf_jax.stages.rollout import Networks, Parameters, read_samples
from rlhf_jax.training.updates import TrainState, init_state

EPISODES = 512  # per update
REWARD = jnp.arange(3.0)
REFERENCE = jnp.log(jnp.array([0.5, 0.3, 0.2]))
SHAPE = gpt(
    vocab_size=3,
    context_length=4,
    width=4,
    num_layers=1,
    num_heads=1,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
POLICY, SCALAR = LanguageModel(SHAPE), ScalarModel(SHAPE)
NETWORKS = Networks(policy=POLICY, rewards={"arm": SCALAR}, value=SCALAR)
GROUP_NETWORKS = NETWORKS._replace(value=None)
REWARDS = {"arm": Reward("reward:bandit", weight=1.0, clip=0.0, normalisation="none")}
# Probabilities after each update (U, 3), and the metrics of each update.
Play = tuple[jax.Array, dict[str, Any]]


# --- what is known --------------------------------------------------------------------------------


def objective(policy_A: jax.Array, *, beta: float) -> jax.Array:
    """Return E_π[r] - β KL(π ‖ ρ) of probabilities over the last axis."""
    return policy_A @ REWARD - beta * categorical(
        jnp.log(policy_A), jnp.broadcast_to(REFERENCE, policy_A.shape)
    )


def optimum(*, beta: float) -> jax.Array:
    """Return π* ∝ ρ exp(r/β), where `objective` is highest: β log Σ ρ exp(r/β)."""
    return jax.nn.softmax(REFERENCE + REWARD / beta)


def forward_optimum(*, beta: float) -> np.ndarray:
    """Return the policy with the highest E_π[r] - β KL(ρ ‖ π).

    On samples of π, the gradient of k3 in the loss is that of KL(ρ ‖ π).
    """
    rho, reward = np.exp(np.asarray(REFERENCE, np.float64)), np.asarray(REWARD, np.float64)
    lam = brentq(
        lambda x: float(np.sum(beta * rho / (x - reward))) - 1.0,
        reward.max() + 1e-9,
        reward.max() + beta + 1.0,
    )
    return np.asarray(beta * rho / (lam - reward))


# --- three networks -------------------------------------------------------------------------------


def bare(model: Any) -> Any:
    """Return parameters that are zero but for the embedding, whose rows are unit vectors."""
    params = jax.tree.map(jnp.zeros_like, init_params(model, jax.random.key(0)))
    params["trunk"]["embedding"] = jnp.eye(3, 4)
    return params


def tabular_policy() -> Any:
    """Return the parameters of a policy that is the reference."""
    params = bare(POLICY)
    params["trunk"]["final_norm"]["bias"] = jnp.append(REFERENCE, 0.0)
    return params


def arm_reward() -> Any:
    """Return the parameters of a reward model that scores arm i with i."""
    params = bare(SCALAR)
    params["trunk"]["final_norm"]["scale"] = jnp.ones(4)
    # LayerNorm of a unit vector is (e - 1/4) / sqrt(3)/4, and the kernel's mean is 0: arm i scores
    # i.
    params["head"]["kernel"] = np.sqrt(3) / 4 * jnp.array([[0.0], [1.0], [2.0], [-3.0]])
    return params


def arms(params: Any) -> jax.Array:
    """Return the policy's three probabilities."""
    return jax.nn.softmax(params["trunk"]["final_norm"]["bias"][:3])


def only(name: str, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adam on the leaves called `name`; nothing else moves."""

    def label(path: Any, _: Any) -> str:
        return "train" if name in jax.tree_util.keystr(path) else "keep"

    parts = {"train": optax.adam(schedule), "keep": optax.set_to_zero()}
    return optax.multi_transform(parts, partial(jax.tree_util.tree_map_with_path, label))


def draw(params: Any, key: jax.Array) -> tuple[Texts, Samples]:
    """Draw arms in the policy's proportions, as exact as their number allows, in any order."""
    uniform_B = (jnp.arange(EPISODES) + 0.5) / EPISODES
    arm_B = (uniform_B[:, None] > jnp.cumsum(arms(params))[None, :2]).sum(axis=1)
    token_B = jax.random.permutation(key, arm_B)
    ones_B = jnp.ones(EPISODES, jnp.int32)
    samples = Samples(
        tokens_BR=token_B[:, None],
        logp_BR=jnp.log(arms(params))[token_B][:, None],
        length_B=ones_B,
        stopped_B=ones_B > 0,
    )
    texts = Texts(
        prompt_BP=jnp.zeros((EPISODES, 1), jnp.int32),
        prompt_mask_BP=jnp.ones((EPISODES, 1), bool),
        response_BR=samples.tokens_BR,
        mask_BR=jnp.ones((EPISODES, 1), bool),
    )
    return texts, samples


# --- algorithms -----------------------------------------------------------------------------------


def ppo_settings(**changes: Any) -> ppo.PPO:
    """Return PPO's settings at the bandit's size: one minibatch, advantages as they are."""
    config = build(ppo.Config, ppo_experiment.get_config("tiny").to_dict()).ppo
    return replace(
        config, batch_size=EPISODES, num_mini_batches=1, **{"whiten_advantages": "none", **changes}
    )


def group_settings(
    experiment: Any = rloo_experiment, **changes: Any
) -> policy_gradient.PolicyGradient:
    """Return the settings of a policy-gradient experiment at the bandit's size."""
    config = build(policy_gradient.Config, experiment.get_config("tiny").to_dict()).policy_gradient
    return replace(config, batch_size=EPISODES, num_mini_batches=1, **changes)


def play_ppo(settings: ppo.PPO, *, updates: int, learning_rate: float) -> Play:
    """Train with PPO; the learning rate falls to a fiftieth over as many steps as updates."""
    falling = optax.cosine_decay_schedule(learning_rate, updates, alpha=0.02)
    parts = {"policy": only("final_norm']['bias", falling), "value": only("head']['bias", falling)}
    optimizer = optax.multi_transform(parts, {"policy": "policy", "value": "value"})
    start = ppo.Controllers(
        jnp.asarray(settings.kl_coef), jnp.asarray(settings.kl_penalty_coef), start_moments(REWARDS)
    )
    trained = {"policy": tabular_policy(), "value": bare(SCALAR)}
    state = init_state(trained, optimizer, {"controllers": start})

    def iterate(state: TrainState, key: jax.Array) -> tuple[TrainState, Play]:
        policy = state.params["policy"]
        texts, samples = draw(policy, jax.random.fold_in(key, 0))
        rewards = {"arm": arm_reward()}
        params = Parameters(policy, tabular_policy(), rewards, state.params["value"])
        readings = read_samples(NETWORKS, settings.spec, params, texts)
        collected = ppo.collect(settings, REWARDS, texts, samples, readings, start)
        data = ppo.UpdateData(collected.rollout, blocks={}, frozen={})
        state, metrics = ppo.update(
            settings, NETWORKS, optimizer, state, data, jax.random.fold_in(key, 1)
        )
        return state, (arms(state.params["policy"]), {**collected.metrics, **metrics})

    return _play(iterate, state, updates)


def play_groups(
    settings: policy_gradient.PolicyGradient, *, updates: int, learning_rate: float
) -> Play:
    """Learn a policy by an algorithm without a value network, as `play_ppo` does."""
    falling = optax.cosine_decay_schedule(learning_rate, updates, alpha=0.02)
    optimizer = only("final_norm']['bias", falling)
    moments = policy_gradient.Moments(start_moments(REWARDS), empty_moments())
    state = init_state(tabular_policy(), optimizer, {"moments": moments})

    def iterate(state: TrainState, key: jax.Array) -> tuple[TrainState, Play]:
        texts, samples = draw(state.params, jax.random.fold_in(key, 0))
        params = Parameters(state.params, tabular_policy(), {"arm": arm_reward()})
        readings = read_samples(GROUP_NETWORKS, settings.spec, params, texts)
        groups, moments, _, metrics = policy_gradient.collect(
            settings, REWARDS, texts, samples, readings, state.extras["moments"]
        )
        data = policy_gradient.UpdateData(groups, frozen={})
        state, update_metrics = policy_gradient.update(
            settings, POLICY, optimizer, state, data, jax.random.fold_in(key, 1)
        )
        state = replace(state, extras={"moments": moments})
        return state, (arms(state.params), {**metrics, **update_metrics})

    return _play(iterate, state, updates)


def _play(
    iterate: Callable[[TrainState, jax.Array], tuple[TrainState, Play]],
    state: TrainState,
    updates: int,
) -> Play:
    keys = jax.random.split(jax.random.key(0), updates)
    _, (policy_UA, metrics) = jax.jit(partial(jax.lax.scan, iterate))(state, keys)
    return policy_UA, metrics
