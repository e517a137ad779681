"""Check KL estimators against exact divergences, and both controllers against published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.maths import kl

P = np.array([0.5, 0.3, 0.2])
Q = np.array([0.2, 0.3, 0.5])
TRUE_KL = 0.27488721956224654


@pytest.mark.parametrize(
    ("name", "expected"),
    [("k1", 0.2748872195622465), ("k2", 0.29385604686146616), ("k3", 0.2748872195622465)],
)
def test_expected_estimates_golden(name, expected):
    estimates = kl.estimate(name, jnp.log(P), jnp.log(Q))
    np.testing.assert_allclose(np.sum(P * np.asarray(estimates)), expected, rtol=1e-5)


def test_k3_has_a_twelfth_of_the_variance_of_k1():
    for estimator, variance in ((kl.k1, 0.5121491102442696), (kl.k3, 0.0426002319952835)):
        estimates = np.asarray(estimator(jnp.log(P), jnp.log(Q)))
        np.testing.assert_allclose(np.sum(P * (estimates - TRUE_KL) ** 2), variance, rtol=1e-4)


def test_estimates_of_a_strong_disagreement():
    logp, ref_logp = jnp.full(3, -1.0), jnp.array([0.0, -15.0, -30.0])
    np.testing.assert_allclose(kl.k1(logp, ref_logp), [-1.0, 14.0, 29.0])
    np.testing.assert_allclose(kl.k2(logp, ref_logp), [0.5, 98.0, 420.5])
    np.testing.assert_allclose(kl.k3(logp, ref_logp), [0.7182818, 13.0, 28.0], rtol=1e-5)


def test_every_estimate_of_a_policy_against_itself_is_exactly_zero():
    logp = jnp.log(jax.random.uniform(jax.random.key(0), (4, 5)))
    for name in ("k1", "k2", "k3"):
        np.testing.assert_array_equal(kl.estimate(name, logp, logp), np.zeros((4, 5)))


def test_k3_keeps_its_digits_near_zero():
    # (r - 1) - log r is x²/2 for a small log-ratio x; formed naively in float32 it would be lost or
    # negative.
    x = 1e-3
    np.testing.assert_allclose(kl.k3(jnp.float32(0.0), jnp.float32(x)), x**2 / 2, rtol=1e-2)


def test_unknown_estimator_is_named():
    with pytest.raises(ValueError, match=r"'k4'.*\['k1', 'k2', 'k3'\]"):
        kl.estimate("k4", jnp.zeros(1), jnp.zeros(1))


def test_categorical_kl():
    np.testing.assert_allclose(kl.categorical(jnp.log(P), jnp.log(Q)), TRUE_KL, rtol=1e-6)
    np.testing.assert_allclose(
        kl.categorical(jnp.log(P) + 7.0, jnp.log(Q) - 3.0), TRUE_KL, rtol=1e-5
    )
    np.testing.assert_array_equal(kl.categorical(jnp.log(P), jnp.log(P)), 0.0)


def test_categorical_kl_ignores_impossible_tokens_in_value_and_gradient():
    logits, ref = jnp.array([0.3, -0.2, -jnp.inf]), jnp.array([0.1, 0.4, -jnp.inf])
    value, gradient = jax.value_and_grad(kl.categorical)(logits, ref)
    expected, expected_gradient = jax.value_and_grad(kl.categorical)(logits[:2], ref[:2])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, [*expected_gradient, 0.0], rtol=1e-5, atol=1e-8)


def test_gradient_of_k2_on_samples_is_the_gradient_of_the_kl_and_that_of_k3_is_not():
    logits, ref = jnp.array([0.5, -1.0, 0.2]), jnp.log(Q)

    def on_samples(estimator):
        def objective(x):
            logp = jax.nn.log_softmax(x)
            weights = jax.lax.stop_gradient(jnp.exp(logp))
            return jnp.sum(weights * estimator(logp, ref))

        return jax.grad(objective)(logits)

    exact = jax.grad(lambda x: kl.categorical(x, ref))(logits)
    np.testing.assert_allclose(on_samples(kl.k2), exact, atol=1e-6)
    assert np.abs(np.asarray(on_samples(kl.k3) - exact)).max() > 0.05


def test_ziegler_controller_golden_path():
    coefficient = jnp.float32(0.15)
    path = [
        (0.0, 0.148464),
        (3.0, 0.14694372864),
        (6.0, 0.14694372864),
        (6.6, 0.1476960805306368),
        (12.0, 0.1492084883952705),
        (30.0, 0.15073638331643807),
    ]
    for measured, expected in path:
        coefficient = kl.ziegler_update(
            coefficient, measured, target=6.0, horizon=10_000, num_episodes=512
        )
        np.testing.assert_allclose(coefficient, expected, rtol=1e-6)


def test_ppo2017_controller_golden_path():
    beta = jnp.float32(1.0)
    for measured, expected in [(0.005, 0.5), (0.008, 0.5), (0.01, 0.5), (0.014, 0.5), (0.02, 1.0)]:
        beta = kl.ppo2017_update(beta, measured, target=0.01)
        assert float(beta) == expected
