"""Control: distributions, segments of many episodes, language's losses, environments, a toy."""

import sys
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_support import config, drawn_params

from experiments.control import environments, ppo
from experiments.control.networks import CATEGORICAL, GAUSSIAN, ActorCritic, init_network
from rlhf_jax.inference.packing import Texts
from rlhf_jax.maths.masking import value, whiten
from rlhf_jax.models import LanguageModel, ScalarModel, apply
from rlhf_jax.stages import ppo as stage
from rlhf_jax.stages.rollout import Networks
from rlhf_jax.training.optimizer import OptimizerConfig

OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3,
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
SETTINGS = ppo.Settings(
    num_iterations=16,
    num_envs=8,
    num_steps=50,
    num_ppo_epochs=4,
    num_mini_batches=4,
    hidden=(16,),
    gamma=0.95,
    lam=0.95,
    vf_coef=0.5,
    cliprange_value=None,
    entropy_coef=0.0,
    scale_rewards=True,
    optimizer=OPTIMIZER,
)


# --- distributions --------------------------------------------------------------------------------


def test_gaussian_numbers():
    """By hand: mean (0, 1), σ (1, 2), at (1, 1)."""
    outputs = jnp.array([0.0, 1.0, 0.0, np.log(2.0)])
    np.testing.assert_allclose(
        GAUSSIAN.logp(outputs, jnp.ones(2)), -0.5 - np.log(2) - np.log(2 * np.pi), rtol=1e-6
    )
    np.testing.assert_allclose(
        GAUSSIAN.entropy(outputs), np.log(2) + np.log(2 * np.pi * np.e), rtol=1e-6
    )
    # KL(N(0, 1) ‖ N(1, 4)) = log 2 + (1 + 1)/8 − ½
    np.testing.assert_allclose(
        GAUSSIAN.kl(jnp.zeros(2), jnp.array([1.0, np.log(2.0)])), np.log(2) - 0.25, rtol=1e-6
    )


@pytest.mark.parametrize("distribution", [CATEGORICAL, GAUSSIAN])
def test_samples_agree_with_logp_entropy_and_kl(distribution):
    first, second = jnp.array([0.3, -0.2, 0.1, 0.4]), jnp.array([-0.1, 0.2, 0.3, 0.0])
    actions = jax.vmap(lambda key: distribution.sample(key, first))(
        jax.random.split(jax.random.key(0), 20_000)
    )
    logp = jax.vmap(lambda action: distribution.logp(first, action))(actions)
    other = jax.vmap(lambda action: distribution.logp(second, action))(actions)
    assert -logp.mean() == pytest.approx(float(distribution.entropy(first)), abs=0.03)
    assert (logp - other).mean() == pytest.approx(float(distribution.kl(first, second)), abs=0.02)
    assert distribution.kl(first, first) == pytest.approx(0, abs=1e-6)


# --- segments -------------------------------------------------------------------------------------


def segment(**columns):
    zero = jnp.zeros((1, 4))
    fields = dict.fromkeys(ppo.Segment._fields, zero) | {
        name: jnp.array([x]) for name, x in columns.items()
    }
    return ppo.Segment(**fields)


def test_a_time_limit_is_bootstrapped_and_an_end_is_not():
    """λ = 0, γ = ½: Â = r + γ V(what followed) − V, where what followed an end is worth nothing."""
    collected = segment(
        value_BR=[1.0, 2.0, 3.0, 4.0],
        next_value_BR=[2.0, 10.0, 20.0, 30.0],
        terminated_BR=[False, False, True, False],
        truncated_BR=[False, True, False, False],
    )
    advantage, returns = ppo.advantages(collected, jnp.ones((1, 4)), gamma=0.5, lam=0.0)
    np.testing.assert_allclose(advantage, [[1 + 1 - 1, 1 + 5 - 2, 1 + 0 - 3, 1 + 15 - 4]])
    np.testing.assert_allclose(returns, advantage + collected.value_BR)
    # λ = 1: nothing crosses the ends at columns 1 and 2.
    advantage, _ = ppo.advantages(collected, jnp.ones((1, 4)), gamma=0.5, lam=1.0)
    np.testing.assert_allclose(advantage, [[1 + 0.5 * (1 + 5) - 1, 4, -2, 12]])


def test_running_returns_start_anew_and_carry_over_the_segments_end():
    done = jnp.array([[False, True, False, False]])
    total, last = ppo.running_returns(jnp.array([10.0]), jnp.ones((1, 4)), done, 0.5)
    np.testing.assert_allclose(total, [[6.0, 4.0, 1.0, 1.5]])
    np.testing.assert_allclose(last, [1.5])


# --- the same losses ------------------------------------------------------------------------------


def test_language_and_control_have_the_same_ppo_loss():
    """A rollout of a language model is a categorical control problem: its logits are outputs."""
    shape, size, width = config(11), 3, 4
    models = Networks(LanguageModel(shape), ScalarModel(shape), ScalarModel(shape))
    params = {"policy": drawn_params(models.policy, 0), "value": drawn_params(models.value, 1)}
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(2, 11, (size, 2 * width)), jnp.int32)
    noise = [jnp.asarray(rng.normal(size=(size, width)), jnp.float32) for _ in range(4)]
    ones = jnp.ones((size, width), bool)
    logits = apply(models.policy, params["policy"], tokens, jnp.ones_like(tokens))[0][
        :, width - 1 : -1
    ]
    values = apply(models.value, params["value"], tokens, jnp.ones_like(tokens))[:, width - 1 : -1]
    action = tokens[:, width:]
    old = CATEGORICAL.logp(logits, action) + 0.3 * noise[0]
    advantage = whiten(noise[1], ones, shift_mean=True)
    rollout = stage.Rollout(
        texts=Texts(tokens[:, :width], ones, action, ones),
        logp_BR=old,
        value_BR=noise[2],
        advantage_BR=advantage,
        return_BR=noise[3],
        score_B=jnp.zeros(size),
        stopped_B=jnp.ones(size, bool),
    )
    ppo_settings = stage.PPO(
        **dict.fromkeys(stage.PPO.__dataclass_fields__, 0)
        | {
            "policy_loss": "clip",
            "cliprange": 0.2,
            "cliprange_value": 0.2,
            "vf_coef": 0.5,
            "entropy_coef": 0.01,
            "temperature": 1.0,
            "top_p": 1.0,
        }
    )
    num_tokens = jnp.float32(ones.sum())
    language, metrics = stage.ppo_loss(
        ppo_settings, models, params, rollout, num_tokens, jax.random.key(0)
    )

    flat = [
        x.reshape(-1, *x.shape[2:])
        for x in (logits, action, logits, old, noise[2], noise[1], noise[3])
    ]
    settings = replace(SETTINGS, cliprange_value=0.2, entropy_coef=0.01)
    control, stats = ppo.policy_value_loss(
        CATEGORICAL,
        settings,
        flat[0],
        values.ravel(),
        ppo.Batch(*flat),
        ppo.Surrogate(0.2, 0.0, 0.0),
        False,
    )
    np.testing.assert_allclose(control, language, rtol=1e-5)
    np.testing.assert_allclose(
        value(stats["clipfrac"]), value(metrics["policy/clipfrac_avg"]), rtol=1e-6
    )
    assert 0.05 < value(stats["clipfrac"]) < 0.95


# --- environments ---------------------------------------------------------------------------------


def test_the_point_obeys_its_equations_and_its_time_limit():
    env = environments.point(2)
    state, observation = env.reset(jax.random.key(0))
    x = float(observation[0])
    first = env.step(jax.random.key(1), state, jnp.array([5.0]))
    np.testing.assert_allclose(first.observation, [x + 0.01, 0.1], rtol=1e-5)
    assert first.reward == pytest.approx(-((x + 0.01) ** 2 + 0.1 * 0.01), rel=1e-5)
    assert not first.truncated
    second = env.step(jax.random.key(2), first.state, jnp.array([0.0]))
    np.testing.assert_allclose(second.final_observation, [x + 0.02, 0.1], rtol=1e-5)
    assert second.truncated
    assert not second.terminated
    assert second.observation[1] == 0  # of the next episode


def test_gymnax_ends_by_falling_and_by_time():
    pytest.importorskip("gymnax")
    env = environments.from_gymnax("CartPole-v1")
    assert (env.num_observations, env.num_actions, env.continuous) == (4, 2, False)
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    for _ in range(30):
        after = step(jax.random.key(1), state, jnp.int32(1))
        state = after.state
        if after.terminated:
            break
    assert after.terminated
    assert abs(after.final_observation[2]) > 0.2  # fell
    assert abs(after.observation[2]) < 0.06  # stands again
    with pytest.raises(ValueError, match="CartPole-v9"):
        environments.from_gymnax("CartPole-v9")


def test_without_gymnax_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ModuleNotFoundError, match=r"rlhf_jax\[control\]"):
        environments.from_gymnax("Pendulum-v1")


# --- the network and the loop ---------------------------------------------------------------------


def test_a_fresh_policy_is_nearly_uniform_and_its_networks_share_nothing():
    network = ActorCritic((16, 16), 3, gaussian=True)
    params = init_network(network, jax.random.key(0), 5)
    outputs, _ = apply(network, params, jax.random.normal(jax.random.key(1), (50, 5)))
    assert outputs.shape == (50, 6)
    assert np.abs(outputs[:, :3]).max() < 0.1
    np.testing.assert_array_equal(outputs[:, 3:], 0)
    kernel = params["policy"]["Dense_1"]["kernel"]
    np.testing.assert_allclose(kernel.T @ kernel, 2 * np.eye(16), atol=1e-5)
    assert set(params) == {"policy", "value", "log_std"}


@cache
def trained():
    """Two seeds with a fixed KL penalty and one adaptive one, from one program."""
    run = ppo.over_seeds(
        partial(ppo.train, ppo.make_agent(environments.point(25), SETTINGS), penalty=True)
    )
    keys = jax.random.split(jax.random.key(0), 2)
    return run(keys, ppo.Surrogate(jnp.inf, 0.5, 0.0)), run(keys, ppo.Surrogate(jnp.inf, 0.5, 1e-9))


def test_ppo_learns_to_stay_at_the_origin():
    fixed, _ = trained()
    each = np.asarray(value(fixed["return"]))
    assert each.shape == (2, 16)
    assert np.all(each[:, -4:].mean(1) > 0.6 * each[:, :2].mean(1))  # returns are negative
    assert np.all(ppo.late_return(fixed, 0.25) > 0.6 * each[:, :2].mean(1))


def test_a_fixed_penalty_stays_and_an_adaptive_one_moves():
    fixed, adaptive = trained()
    np.testing.assert_array_equal(fixed["beta"], np.full((2, 16), 0.5))
    beta, kl = np.asarray(adaptive["beta"][0]), np.asarray(adaptive["kl"][0])
    before = np.array([0.5, *beta[:-1]])
    rule = np.where(kl > 1.5e-9, 2.0, np.where(kl < 1e-9 / 1.5, 0.5, 1.0))
    np.testing.assert_allclose(beta, before * rule)
    assert np.all(rule[:8] == 2)  # at first always above the target; late KLs may round to 0
    assert np.all(adaptive["kl"][:, 8:].mean(1) < fixed["kl"][:, 8:].mean(1))


def test_minibatches_must_come_out_even():
    with pytest.raises(ValueError, match="num_mini_batches = 7"):
        replace(SETTINGS, num_mini_batches=7)
