"""Check rewards and advantages against hand-worked values, RLAX's, NeMo-RL's and plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.maths import returns

REWARD = jnp.array([[-0.1, 0.0, 0.2, 1.0]])
VALUE = jnp.array([[0.5, 0.4, 0.3, 0.6]])
REAL = jnp.ones((1, 4), bool)


def gae_oracle(reward, value, mask, gamma, lam):
    """GAE as a Python loop over the real tokens of each row."""
    advantage = np.zeros(reward.shape)
    for b in range(reward.shape[0]):
        next_value = next_advantage = 0.0
        for t in reversed(range(reward.shape[1])):
            if mask[b, t]:
                delta = reward[b, t] + gamma * next_value - value[b, t]
                next_advantage = advantage[b, t] = delta + gamma * lam * next_advantage
                next_value = value[b, t]
    return advantage, np.where(mask, advantage + value, 0.0)


@pytest.mark.parametrize(
    ("gamma", "lam", "advantage", "target"),
    [
        (1.0, 0.95, [0.4992, 0.736, 0.88, 0.4], [0.9992, 1.136, 1.18, 1.0]),
        (1.0, 1.0, [0.6, 0.8, 0.9, 0.4], [1.1, 1.2, 1.2, 1.0]),
        (1.0, 0.0, [-0.2, -0.1, 0.5, 0.4], [0.3, 0.3, 0.8, 1.0]),
        (0.99, 0.95, [0.46885543, 0.7154231, 0.8702, 0.4], [0.96885543, 1.1154231, 1.1702, 1.0]),
    ],
)
def test_gae_golden(gamma, lam, advantage, target):
    advantage_BR, return_BR = returns.gae(REWARD, VALUE, REAL, gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantage_BR, [advantage], atol=1e-6)
    np.testing.assert_allclose(return_BR, [target], atol=1e-6)


def test_last_return_is_the_last_reward_because_nothing_is_bootstrapped():
    advantage_BR, return_BR = returns.gae(REWARD, VALUE, REAL, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(return_BR[:, -1], REWARD[:, -1])
    np.testing.assert_allclose(advantage_BR[:, -1], REWARD[:, -1] - VALUE[:, -1])


@pytest.mark.parametrize(
    ("lam", "expected"),
    [
        (1.0, [[-1.45118, -4.4557, 2.5396, 0.5249, -0.49], [3.0, 2.0, 1.0, 0.0, -4.9]]),
        (0.7, [[-0.676979, -5.248167, 2.4846, 0.6704, -0.49], [2.2899, 1.73, 1.0, 0.0, -4.9]]),
        (0.4, [[0.56731, -6.042, 2.3431, 0.815, -0.49], [1.725, 1.46, 1.0, 0.0, -4.9]]),
    ],
)
def test_gae_with_a_discount_per_step_and_a_bootstrapped_end(lam, expected):
    """RLAX's multistep test; its last value, a bootstrap, is here γ V in the last reward."""
    reward = np.array([[0, 0, 1, 0, -0.5], [0, 0, 0, 0, 1]], np.float32)
    value = np.array([[1, 4, -3, -2, -1, -1], [-3, -2, -1, 0, 5, -1]], np.float32)
    gamma = np.array([[0.99] * 5, [0.9, 0.9, 0.9, 0.0, 0.9]], np.float32)
    reward[:, -1] += gamma[:, -1] * value[:, -1]
    mask = jnp.ones((2, 5), bool)
    advantage, _ = returns.gae(
        jnp.asarray(reward), jnp.asarray(value[:, :-1]), mask, gamma=gamma, lam=lam
    )
    np.testing.assert_allclose(advantage, expected, atol=1e-3)


def test_gae_with_lambda_zero_is_the_temporal_difference():
    advantage, _ = returns.gae(
        jnp.array([[0.0, 0.0, 5.0]]),
        jnp.array([[1.0, 2.0, 3.0]]),
        jnp.ones((1, 3), bool),
        gamma=1.0,
        lam=0.0,
    )
    np.testing.assert_allclose(advantage, [[1.0, 1.0, 2.0]])


def test_gae_equals_a_python_loop():
    reward, value = np.asarray(jax.random.normal(jax.random.key(0), (2, 20, 40)))
    mask = np.ones((20, 40), bool)
    result = returns.gae(
        jnp.asarray(reward), jnp.asarray(value), jnp.asarray(mask), gamma=1.0, lam=0.95
    )
    for ours, oracle in zip(result, gae_oracle(reward, value, mask, 1.0, 0.95), strict=True):
        np.testing.assert_allclose(ours, oracle, atol=1e-4)


@pytest.mark.parametrize("garbage", [1e30, np.nan])
def test_gae_skips_masked_columns(garbage):
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 6, 9)).astype(np.float32)
    mask = rng.random((6, 9)) < 0.6
    mask[0] = False
    dirty_reward, dirty_value = (
        jnp.asarray(np.where(mask, x, np.float32(garbage))) for x in (reward, value)
    )
    result = returns.gae(dirty_reward, dirty_value, jnp.asarray(mask), gamma=0.9, lam=0.8)
    for ours, oracle in zip(result, gae_oracle(reward, value, mask, 0.9, 0.8), strict=True):
        np.testing.assert_allclose(ours, oracle, atol=1e-5)


def test_gae_does_not_depend_on_how_much_padding_follows():
    padded = [jnp.pad(x, ((0, 0), (0, 3)), constant_values=7) for x in (REWARD, VALUE)]
    mask = jnp.pad(REAL, ((0, 0), (0, 3)))
    for short, long in zip(
        returns.gae(REWARD, VALUE, REAL, gamma=0.99, lam=0.95),
        returns.gae(*padded, mask, gamma=0.99, lam=0.95),
        strict=True,
    ):
        np.testing.assert_array_equal(long, jnp.pad(short, ((0, 0), (0, 3))))


def test_gae_without_values_at_lambda_one_is_the_discounted_return():
    reward, mask = jnp.array([[1.0, 2.0, 4.0]]), jnp.ones((1, 3), bool)
    advantage, target = returns.gae(reward, jnp.zeros_like(reward), mask, gamma=0.5, lam=1.0)
    np.testing.assert_allclose(advantage, [[3.0, 4.0, 4.0]])
    np.testing.assert_array_equal(target, advantage)


def test_token_rewards_golden():
    logp, ref_logp = jnp.array([[-1.0, -2.0, -0.5]]), jnp.array([[-1.2, -1.5, -0.9]])
    reward = returns.token_rewards(jnp.array([0.7]), logp - ref_logp, jnp.ones((1, 3), bool), 0.15)
    np.testing.assert_allclose(reward, [[-0.03, 0.075, 0.64]], atol=1e-7)
    np.testing.assert_allclose(jnp.sum(logp - ref_logp), 0.1, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(reward), 0.7 - 0.15 * 0.1, atol=1e-6)


def test_token_rewards_pay_the_score_once_on_the_last_real_token():
    mask = jnp.array([[True, True, False], [True, True, True], [False, False, False]])
    kl = jnp.where(mask, 2.0, jnp.nan)
    reward = returns.token_rewards(jnp.array([5.0, 6.0, 7.0]), kl, mask, 0.5)
    np.testing.assert_array_equal(reward, [[-1.0, 4.0, 0.0], [-1.0, -1.0, 5.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("replace", [0.5, -1.0, -1.0]), ("subtract", [0.5, 1.5, -4.0]), ("none", [0.5, 2.5, -3.0])],
)
def test_missing_eos(mode, expected):
    score, stopped = jnp.array([0.5, 2.5, -3.0]), jnp.array([True, False, False])
    np.testing.assert_allclose(
        returns.penalise_missing_eos(score, stopped, penalty=1.0, mode=mode), expected
    )


def test_unknown_modes_are_named():
    with pytest.raises(ValueError, match="'drop'"):
        returns.penalise_missing_eos(jnp.ones(1), jnp.ones(1, bool), penalty=1.0, mode="drop")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'biased'"):
        returns.grpo_advantages(jnp.ones((1, 2)), std="biased", eps=0.0)  # type: ignore[arg-type]


GROUP = jnp.array([[1.0, 0.0, 0.5, 2.0]])


def test_rloo_golden():
    np.testing.assert_allclose(
        returns.rloo(GROUP), [[0.16666667, -1.16666667, -0.5, 1.5]], atol=1e-6
    )


def test_rloo_identities():
    reward = jax.random.normal(jax.random.key(0), (5, 3))
    advantage = returns.rloo(reward)
    np.testing.assert_allclose(jnp.sum(advantage, axis=-1), np.zeros(5), atol=1e-5)
    np.testing.assert_allclose(
        advantage, 3 / 2 * (reward - jnp.mean(reward, axis=-1, keepdims=True)), atol=1e-5
    )
    np.testing.assert_allclose(returns.rloo(jnp.array([[3.0, 1.0]])), [[2.0, -2.0]])
    with pytest.raises(ValueError, match="at least 2"):
        returns.rloo(jnp.ones((4, 1)))


@pytest.mark.parametrize(
    ("std", "expected"),
    [
        ("population", [0.16903085, -1.18321596, -0.50709255, 1.52127766]),
        ("sample", [0.14638501, -1.02469508, -0.43915503, 1.3174651]),
        ("none", [0.125, -0.875, -0.375, 1.125]),
    ],
)
def test_grpo_golden(std, expected):
    np.testing.assert_allclose(
        returns.grpo_advantages(GROUP, std=std, eps=0.0), [expected], atol=1e-6
    )


def test_grpo_of_equal_rewards_is_zero_and_eps_damps():
    for eps in (0.0, 1e-4):
        np.testing.assert_array_equal(
            returns.grpo_advantages(jnp.full((1, 4), 3.0), std="sample", eps=eps), np.zeros((1, 4))
        )
    damped = returns.grpo_advantages(jnp.array([[1.0, -1.0]]), std="population", eps=1.0)
    np.testing.assert_allclose(damped, [[0.5, -0.5]])
    with pytest.raises(ValueError, match="at least 2"):
        returns.grpo_advantages(jnp.ones((4, 1)), std="sample", eps=0.0)


def test_running_moments_equal_those_of_all_numbers_at_once():
    batches = [100.0 + 3.0 * np.random.default_rng(n).normal(size=(n + 1, 7)) for n in range(6)]
    moments = returns.empty_moments()
    assert float(returns.moments_std(moments)) == 1.0
    for batch in batches:
        moments = returns.update_moments(moments, jnp.asarray(batch, jnp.float32))
    everything = np.concatenate(batches)
    assert float(moments.count) == everything.size
    np.testing.assert_allclose(moments.mean, everything.mean(), rtol=1e-6)
    np.testing.assert_allclose(returns.moments_std(moments), everything.std(), rtol=1e-4)


def test_std_of_a_single_number_is_safe_to_divide_by():
    moments = returns.update_moments(returns.empty_moments(), jnp.array([5.0]))
    assert float(returns.moments_std(moments)) == 1.0
