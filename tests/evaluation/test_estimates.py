"""Intervals: hand-worked cases, and what resampling prompts instead of observations changes."""

import numpy as np
import pytest

from rlhf_jax.evaluation.estimates import (
    Bootstrap,
    by_prompt,
    clustered_mean,
    paired_difference,
    ratio,
    share,
)

BOOT = Bootstrap(400, 0)


def test_clusters_widen_the_interval():
    """Ten copies of an observation are one observation."""
    values = np.random.default_rng(0).normal(size=50)
    alone = clustered_mean(values, np.arange(50), BOOT)
    copied = clustered_mean(np.repeat(values, 10), np.repeat(np.arange(50), 10), BOOT)
    wrong = clustered_mean(np.repeat(values, 10), np.arange(500), BOOT)
    assert copied.value == pytest.approx(alone.value)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low)
    assert wrong.high - wrong.low < 0.5 * (alone.high - alone.low)
    assert (alone.n, copied.n) == (50, 500)


def test_a_share_of_single_observations_is_wilsons():
    hits = np.arange(100) < 73
    assert share(hits, np.arange(100), BOOT) == pytest.approx((0.73, 0.63567883, 0.80730408, 100))


def test_a_share_without_any_hit_still_has_an_interval():
    estimate = share(np.zeros((20, 5)).ravel(), np.repeat(np.arange(20), 5), BOOT)
    assert estimate.value == 0
    assert estimate.low == 0
    assert estimate.high == pytest.approx(0.16113, abs=1e-5)  # Wilson's for 0 of 20, not 0 of 100


def test_tokens_weigh_the_loss():
    estimate = ratio([1.0, 30.0], [1, 10], BOOT)
    assert estimate.value == pytest.approx(31 / 11)
    assert estimate.n == 11
    assert estimate.low == pytest.approx(1.0)
    assert estimate.high == pytest.approx(3.0)


def test_tokens_weigh_the_interval_too():
    # Rarely drawn, but a row of a hundred tokens decides every resample that it is in.
    estimate = ratio([0.0] * 20 + [100.0], [1] * 20 + [100], BOOT)
    assert estimate.low == 0
    assert estimate.high > 0.8


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(1)
    difficulty, prompts_N = rng.normal(size=100), np.arange(100)
    a, b = difficulty + 0.1, difficulty + 0.01 * rng.normal(size=100)
    paired = paired_difference(a, b, prompts_N, BOOT)
    assert 0.09 < paired.low < paired.value < paired.high < 0.11
    unpaired = clustered_mean(a, prompts_N, BOOT)
    assert unpaired.high - unpaired.low > 0.2


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 2), (3,)])
def test_values_of_a_prompt_are_one_cluster(shape):
    values, clusters = by_prompt(np.arange(np.prod(shape)).reshape(shape))
    np.testing.assert_array_equal(values, np.arange(np.prod(shape)))
    np.testing.assert_array_equal(clusters, np.arange(np.prod(shape)) // (np.prod(shape) // 3))


def test_a_single_prompt_has_no_interval():
    """Resampling one prompt gives the same mean every time: a width of 0 would be a claim."""
    values, clusters = np.array([0.0, 1.0, 2.0]), np.zeros(3, int)
    bootstrap = Bootstrap(100, 0)
    measured = [
        clustered_mean(values, clusters, bootstrap),
        paired_difference(values, np.zeros(3), clusters, bootstrap),
        ratio([3.0], [3.0], bootstrap),
    ]
    assert [(one.value, one.low, one.high, one.n) for one in measured] == [(1.0, None, None, 3)] * 3
