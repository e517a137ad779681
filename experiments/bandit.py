"""Train the smallest language model, three arms with a known optimum, by the stages' functions.

    max_π  E_π[r] - β KL(π ‖ ρ)    π* ∝ ρ exp(r/β)                          (KL in the reward)
    max_π  E_π[r] - β KL(ρ ‖ π)    π_i = β ρ_i / (λ - r_i), λ: they sum to 1    (k3 in the loss)

One empty prompt, answers of one token out of three, arm i pays i. Policy, value and reward model
are real networks: the policy's logits are its last bias, the value is its head's bias, the reward
model scores arm i with i. tests/stages/test_algorithms.py holds every algorithm to the optimum;
colabs/ppo_details.ipynb draws the way there.
"""

from collections.abc import Callable
from dataclasses import fields, replace
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
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.kl import categorical
from rlhf_jax.maths.returns import empty_moments
from rlhf_jax.models.config import gpt
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.stages import policy_gradient, ppo
from rlhf_jax.stages.rollout import Frozen, Models, RewardRules, make_rollout
from rlhf_jax.training.updates import TrainState, init_state

EPISODES = 512  # per update
REWARD = jnp.arange(3.0)
REFERENCE = jnp.log(jnp.array([0.5, 0.3, 0.2]))
SPEC = SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman")
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
Play = tuple[
    jax.Array, dict[str, Any]
]  # probabilities after each update (U, 3), metrics of each update


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


def prompts(count: int) -> dict[str, jax.Array]:
    """Return the one prompt `count` times."""
    return {
        "prompt_BP": jnp.zeros((count, 1), jnp.int32),
        "prompt_mask_BP": jnp.ones((count, 1), bool),
    }


def draw(params: Any, key: jax.Array) -> Samples:
    """Draw arms in the policy's proportions, as exact as their number allows, in any order."""
    uniform_B = (jnp.arange(EPISODES) + 0.5) / EPISODES
    token_B = jax.random.permutation(
        key, (uniform_B[:, None] > jnp.cumsum(arms(params))[None, :2]).sum(axis=1)
    )
    ones_B = jnp.ones(EPISODES, jnp.int32)
    return Samples(token_B[:, None], jnp.log(arms(params))[token_B][:, None], ones_B, ones_B > 0)


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
    """Train with PPO, whose value, rewards and advantages are the stage's.

    The learning rate falls to a fiftieth over as many steps as there are updates.
    """
    models = Models(POLICY, SCALAR, SCALAR)
    falling = optax.cosine_decay_schedule(learning_rate, updates, alpha=0.02)
    parts = {"policy": only("final_norm']['bias", falling), "value": only("head']['bias", falling)}
    optimizer = optax.multi_transform(parts, {"policy": "policy", "value": "value"})
    coefs = jnp.asarray(settings.kl_coef), jnp.asarray(settings.kl_penalty_coef)
    extras = {"controllers": ppo.Controllers(*coefs, empty_moments())}
    state = init_state({"policy": tabular_policy(), "value": bare(SCALAR)}, optimizer, extras)
    frozen, update = (
        Frozen(tabular_policy(), arm_reward()),
        ppo.make_update(models, optimizer, settings, SPEC),
    )
    rules = RewardRules(
        **{field.name: getattr(settings, field.name) for field in fields(RewardRules)}
    )

    def iterate(state: TrainState, key: jax.Array) -> tuple[TrainState, Play]:
        samples = draw(state.params["policy"], jax.random.fold_in(key, 0))
        rollout, _, metrics = make_rollout(
            models,
            state.params["value"],
            frozen,
            prompts(EPISODES),
            samples,
            coefs[0],
            empty_moments(),
            spec=SPEC,
            rules=rules,
        )
        state, more = update(state, (rollout, {}), jax.random.fold_in(key, 1))
        return state, (arms(state.params["policy"]), {**metrics, **more})

    return _play(iterate, state, updates)


def play_groups(
    settings: policy_gradient.PolicyGradient, *, updates: int, learning_rate: float
) -> Play:
    """Train with an algorithm without a value network."""
    models = policy_gradient.Models(POLICY, SCALAR)
    optimizer = only(
        "final_norm']['bias", optax.cosine_decay_schedule(learning_rate, updates, alpha=0.02)
    )
    moments = policy_gradient.Moments(empty_moments(), empty_moments())
    state = init_state(tabular_policy(), optimizer, {"moments": moments})
    frozen, update = (
        Frozen(tabular_policy(), arm_reward()),
        policy_gradient.make_update(POLICY, optimizer, settings, SPEC),
    )

    def iterate(state: TrainState, key: jax.Array) -> tuple[TrainState, Play]:
        samples = draw(state.params, jax.random.fold_in(key, 0))
        groups, moments, _, metrics = policy_gradient.judge_groups(
            models,
            frozen,
            prompts(settings.num_prompts),
            samples,
            state.extras["moments"],
            settings=settings,
            spec=SPEC,
        )
        state, more = update(state, groups, jax.random.fold_in(key, 1))
        return replace(state, extras={"moments": moments}), (
            arms(state.params),
            {**metrics, **more},
        )

    return _play(iterate, state, updates)


def _play(
    iterate: Callable[[TrainState, jax.Array], tuple[TrainState, Play]],
    state: TrainState,
    updates: int,
) -> Play:
    keys = jax.random.split(jax.random.key(0), updates)
    _, (policy_UA, metrics) = jax.jit(partial(jax.lax.scan, iterate))(state, keys)
    return policy_UA, metrics
