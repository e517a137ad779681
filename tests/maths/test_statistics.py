"""Intervals, ratings, calibration and over-optimisation curves, against golden values and brute force."""

from itertools import combinations

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


def test_sign_test():
    np.testing.assert_allclose(
        statistics.sign_test([2, 2, 2, 2, 2, 1], [1, 1, 1, 1, 1, 1]), 2 / 2**5
    )
    assert statistics.sign_test([1.0], [1.0]) == 1.0


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


WINS = [[0, 7, 9], [3, 0, 6], [1, 4, 0]]


def test_bradley_terry_and_elo_golden():
    strengths = statistics.bradley_terry(WINS, prior=0.0)
    np.testing.assert_allclose(strengths, [0.94360585, -0.1601607, -0.78344515], atol=1e-7)
    elo = statistics.elo_ratings(strengths, mean=0.0)
    np.testing.assert_allclose(elo, [163.921125, -27.822763, -136.098363], atol=1e-4)
    np.testing.assert_allclose(statistics.elo_ratings(strengths, mean=1000.0), elo + 1000.0)


def test_bradley_terry_expects_as_many_wins_as_there_were():
    rng = np.random.default_rng(0)
    wins = rng.integers(1, 9, size=(5, 5)) * (1 - np.eye(5))
    strengths = statistics.bradley_terry(wins, prior=0.0)
    expected = (wins + wins.T) / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.testing.assert_allclose(expected.sum(axis=1), wins.sum(axis=1), rtol=1e-6)


def test_bradley_terry_of_an_unbeaten_player_needs_a_prior():
    unbeaten = [[0, 5, 5], [0, 0, 2], [0, 3, 0]]
    with pytest.raises(ValueError, match="prior > 0"):
        statistics.bradley_terry(unbeaten, prior=0.0)
    strengths = statistics.bradley_terry(unbeaten, prior=1.0)
    assert np.isfinite(strengths).all()
    assert strengths.argmax() == 0


def test_elo_update_golden():
    np.testing.assert_allclose(statistics.elo_expected(1500, 1600), 0.35993500019711494)
    ratings = statistics.elo_update(1500, 1600, 1.0, k=32)
    np.testing.assert_allclose(ratings, (1520.4820799936924, 1579.5179200063076))


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


def test_temperature_of_an_overconfident_model():
    rng = np.random.default_rng(0)
    honest = rng.normal(size=20_000)
    label = rng.random(20_000) < 1 / (1 + np.exp(-honest))
    np.testing.assert_allclose(statistics.fit_temperature(3.0 * honest, label), 3.0, rtol=0.05)
    soft = statistics.fit_temperature(3.0 * honest, 1 / (1 + np.exp(-honest)))
    np.testing.assert_allclose(soft, 3.0, rtol=1e-4)
    # At its temperature a model is calibrated.
    assert statistics.calibration(honest, label, num_bins=10).ece < 0.015
    assert statistics.calibration(3.0 * honest, label, num_bins=10).ece > 0.1


def test_agreement_and_kappa_golden():
    a, b = [1, 1, 0, 1, 0, 0, 1, 1, 0, 1], [1, 0, 0, 1, 0, 1, 1, 1, 0, 0]
    np.testing.assert_allclose(statistics.agreement(a, b), 0.7)
    np.testing.assert_allclose(statistics.cohen_kappa(a, b), 0.4)
    assert statistics.cohen_kappa(["x", "y"], ["x", "y"]) == 1.0
    assert np.isnan(statistics.cohen_kappa([1, 1], [1, 1]))


def test_best_of_n_kl_golden():
    golden = {
        1: 0.0,
        2: 0.1931471805599453,
        4: 0.6362943611198906,
        8: 1.2044415416798357,
        16: 1.8350887222397811,
        32: 2.4969859027997265,
        63: 3.1590077422645484,
        64: 3.1745080833596715,
        128: 3.859842763919617,
        256: 4.549083694479562,
        512: 5.240277750039508,
        1000: 5.908755278982137,
        60000: 10.002116507870905,
    }
    np.testing.assert_allclose(
        statistics.best_of_n_kl(list(golden)), list(golden.values()), atol=1e-12
    )


def test_best_of_n_kl_is_an_upper_bound_for_discrete_scores():
    rank = np.arange(1, 1001) / 1000
    chosen = rank**16 - (rank - 1 / 1000) ** 16
    exact = np.sum(chosen * np.log(chosen * 1000))
    np.testing.assert_allclose(exact, 1.8350780080072981, rtol=1e-8)
    assert exact < statistics.best_of_n_kl(16)


PROXY, GOLD = [0.1, 0.5, 0.3, 0.9], [1.0, 2.0, 0.0, -1.0]


@pytest.mark.parametrize(("n", "expected"), [(1, 0.5), (2, 1 / 6), (3, -0.25), (4, -1.0)])
def test_best_of_n_golden(n, expected):
    np.testing.assert_allclose(statistics.best_of_n(PROXY, GOLD, n), expected, atol=1e-12)


def test_best_of_n_equals_all_subsets_with_ties_broken_evenly():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, size=8).astype(float), rng.normal(size=8)
    for n in range(1, 9):
        best = []
        for subset in combinations(range(8), n):
            subset = np.array(subset)
            best.append(gold[subset[proxy[subset] == proxy[subset].max()]].mean())
        np.testing.assert_allclose(statistics.best_of_n(proxy, gold, n), np.mean(best), rtol=1e-9)
    with pytest.raises(ValueError, match="n = 9"):
        statistics.best_of_n(proxy, gold, 9)


def test_best_of_n_of_many_samples_does_not_overflow():
    uniform = np.linspace(0, 1, 60_000)
    np.testing.assert_allclose(statistics.best_of_n(uniform, uniform, 1000), 1000 / 1001, rtol=1e-4)
    np.testing.assert_allclose(statistics.best_of_n(uniform, np.ones(60_000), 1000), 1.0, rtol=1e-6)


def test_fits_recover_the_curve_they_assume():
    distance = np.linspace(0.3, 3.0, 20)
    fit = statistics.fit_best_of_n(distance, distance * (0.8 - 0.2 * distance))
    np.testing.assert_allclose(fit, (0.8, 0.2, 1.0))
    fit = statistics.fit_rl(distance, distance * (1.0 - 0.4 * np.log(distance)), min_distance=0.5)
    np.testing.assert_allclose(fit, (1.0, 0.4, 1.0))
    wrong_form = statistics.fit_rl(distance, distance * (0.8 - 0.2 * distance), min_distance=0.5)
    assert wrong_form.r_squared < 1.0
    with pytest.raises(ValueError, match="at least 3"):
        statistics.fit_rl(distance, distance, min_distance=2.9)


def test_peaks_golden():
    np.testing.assert_allclose(statistics.best_of_n_peak(0.8, 0.2), (2.0, 0.8))
    np.testing.assert_allclose(
        statistics.rl_peak(1.0, 0.4), (4.4816890703380645, 1.7926756281352259)
    )
    distance, height = statistics.rl_peak(1.0, 0.4)
    around = statistics.rl_reward([0.99 * distance, distance, 1.01 * distance], 1.0, 0.4, rounds=1)
    np.testing.assert_allclose(around[1], height)
    assert around.argmax() == 1


def test_iterated_rlhf_golden():
    for rounds, expected in ((1, 1.6816652535982681), (4, 3.3452184869421364)):
        np.testing.assert_allclose(statistics.rl_reward(3.0, 1.0, 0.4, rounds=rounds), expected)
