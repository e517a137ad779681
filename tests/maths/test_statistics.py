"""Intervals, calibration and length control, against golden values and brute force."""

import numpy as np
import pytest
from scipy.stats import binom

from rlhf_jax.maths import statistics


def test_wilson_golden_and_ends():
    np.testing.assert_allclose(statistics.wilson(73, 100), (0.6356788323205499, 0.8073041585042365))
    assert statistics.wilson(0, 10)[0] == 0.0
    np.testing.assert_allclose(statistics.wilson(10, 10)[1], 1.0)
    assert statistics.wilson(5, 10, confidence=0.5)[0] > statistics.wilson(5, 10)[0]
    with pytest.raises(ValueError, match="11 wins of 10"):
        statistics.wilson(11, 10)


def test_wilson_ends_are_where_the_score_test_just_rejects():
    for wins in (1, 18, 59, 33.5):
        for end in statistics.wilson(wins, 60):
            np.testing.assert_allclose(
                abs(wins / 60 - end) / np.sqrt(end * (1 - end) / 60), 1.959963984540054
            )


def test_wilson_covers_the_truth_as_often_as_it_says_on_average():
    intervals = np.array([statistics.wilson(wins, 60) for wins in range(61)])
    truth = np.linspace(0.05, 0.95, 181)[:, None]
    covered = (intervals[:, 0] <= truth) & (truth <= intervals[:, 1])
    coverage = np.sum(covered * binom.pmf(np.arange(61), 60, truth), axis=1)
    np.testing.assert_allclose(coverage.mean(), 0.95, atol=0.005)


def test_bootstrap_of_independent_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(size=400)
    interval = statistics.cluster_bootstrap(values, np.arange(400), num_resamples=4000, seed=1)
    half = 1.96 * values.std() / 20
    assert interval.mean == values.mean()
    expected = (values.mean() - half, values.mean() + half)
    np.testing.assert_allclose((interval.low, interval.high), expected, atol=0.01)


def test_bootstrap_does_not_count_copies_as_evidence():
    values = np.random.default_rng(0).normal(size=50)
    alone = statistics.cluster_bootstrap(values, np.arange(50), num_resamples=500, seed=1)
    copied = statistics.cluster_bootstrap(
        np.repeat(values, 8), np.repeat(np.arange(50), 8), num_resamples=500, seed=1
    )
    np.testing.assert_allclose(copied, alone)
    naive = statistics.cluster_bootstrap(
        np.repeat(values, 8), np.arange(400), num_resamples=500, seed=1
    )
    assert naive.high - naive.low < 0.5 * (alone.high - alone.low)


def test_bootstrap_weighs_clusters_by_their_size_and_depends_on_the_seed_alone():
    values, clusters = np.array([1.0, 1.0, 1.0, 5.0]), np.array(["a", "a", "a", "b"])
    first = statistics.cluster_bootstrap(values, clusters, num_resamples=200, seed=3)
    assert first == statistics.cluster_bootstrap(values, clusters, num_resamples=200, seed=3)
    assert first == (2.0, 1.0, 5.0)
    # Half of the resamples hold both clusters: their mean is (3 · 1 + 5) / 4, not (1 + 5) / 2.
    both = statistics.cluster_bootstrap(values, clusters, num_resamples=200, seed=3, confidence=0.2)
    assert both == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="clusters"):
        statistics.cluster_bootstrap(values, clusters[:3], num_resamples=10, seed=0)


def test_pairing_removes_what_prompts_have_in_common():
    rng = np.random.default_rng(0)
    prompt = rng.normal(scale=10.0, size=100)
    a, b = prompt + 0.3 + 0.1 * rng.normal(size=100), prompt + 0.1 * rng.normal(size=100)
    interval = statistics.paired_difference(a, b, np.arange(100), num_resamples=500, seed=0)
    assert 0.2 < interval.low < interval.mean < interval.high < 0.4


def test_length_controlled_win_rate_removes_the_effect_of_length():
    rng = np.random.default_rng(0)
    difference = rng.normal(20.0, 30.0, size=20_000)  # the policy is usually longer
    probability = 1 / (1 + np.exp(-(-0.4 + 1.5 * np.tanh(difference / difference.std()))))
    wins = rng.random(20_000) < probability
    assert wins.mean() > 0.5
    controlled = statistics.length_controlled_win_rate(wins, difference)
    np.testing.assert_allclose(controlled, 1 / (1 + np.exp(0.4)), atol=0.02)


def test_length_controlled_win_rate_without_a_length_difference_is_the_win_rate():
    wins = [1.0, 1.0, 0.5, 0.0]
    np.testing.assert_allclose(
        statistics.length_controlled_win_rate(wins, np.zeros(4)), 0.625, atol=1e-4
    )
    balanced = statistics.length_controlled_win_rate([1.0, 0.0, 1.0, 0.0], [5.0, -5.0, -5.0, 5.0])
    np.testing.assert_allclose(balanced, 0.5, atol=1e-4)
    separable = statistics.length_controlled_win_rate([1.0, 1.0], [3.0, -3.0])
    assert 0.99 < separable <= 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.length_controlled_win_rate([2.0], [1.0])


DIFFERENCE = [0.2, 0.4, 1.2, 1.5, -0.3, 2.5, -1.1, 0.1]
LABEL = [1, 0, 1, 1, 0, 1, 1, 0]


def test_calibration_golden():
    result = statistics.calibration(DIFFERENCE, LABEL, num_bins=5)
    np.testing.assert_allclose(
        (result.ece, result.brier, result.nll, result.accuracy),
        (0.128126494329658, 0.2091604000305201, 0.5926033538815508, 0.625),
    )
    np.testing.assert_array_equal(result.bin_count, [4, 0, 2, 1, 1])
    np.testing.assert_allclose(result.bin_accuracy, [0.5, np.nan, 0.5, 1.0, 1.0])


def test_calibration_does_not_depend_on_which_answer_comes_first():
    flipped = statistics.calibration(-np.array(DIFFERENCE), 1 - np.array(LABEL), num_bins=5)
    original = statistics.calibration(DIFFERENCE, LABEL, num_bins=5)
    for name in ("ece", "brier", "nll", "accuracy"):
        np.testing.assert_allclose(getattr(flipped, name), getattr(original, name))


def test_an_overconfident_model_is_less_calibrated_than_an_honest_one():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=20_000)
    label = rng.random(20_000) < 1 / (1 + np.exp(-honest))
    assert statistics.calibration(honest, label, num_bins=10).ece < 0.015
    assert statistics.calibration(3.0 * honest, label, num_bins=10).ece > 0.1
