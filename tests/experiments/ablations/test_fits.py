"""Fits and intervals, against values worked by hand and SciPy."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from experiments.ablations.fits import (
    best_of_n,
    best_of_n_kl,
    best_of_n_peak,
    bootstrap_curve,
    fit_best_of_n,
    fit_floored_power_law,
    fit_line,
    fit_power_law,
    fit_rl,
    spearman,
    t_interval,
)


def test_t_interval_of_three_seeds():
    # mean 2, s = 1, t(2) = 4.302653: 2 ± 4.302653 / √3
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.484138, 2 + 2.484138), abs=1e-6)


def test_one_seed_has_no_finite_interval():
    assert t_interval([0.4]) == (0.4, -np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one"):
        t_interval([])


def test_spearman_by_hand_and_with_ties():
    # ranks 1 2 3 4 5 against 2 1 4 3 5: 1 - 6·(1+1+1+1+0)/(5·24) = 0.8
    assert spearman([1, 2, 3, 4, 5], [20, 10, 40, 30, 50]) == pytest.approx(0.8)
    x, y = [1, 2, 2, 3, 9], [5, 5, 1, 7, 8]
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman([1, 1], [1, 2]))


def test_line_through_four_points():
    # y = 1 + 2x with residuals ±1: SS = 4, slope error = √(4/2 / 5) = 0.632456, t = 2/0.632456
    line = fit_line([0, 1, 2, 3], [2, 2, 4, 8])
    assert (line.intercept, *line.slopes) == pytest.approx((1.0, 2.0))
    assert line.errors == pytest.approx([np.sqrt(4 / 2 / 5)])
    assert line.p_values == pytest.approx([stats.linregress([0, 1, 2, 3], [2, 2, 4, 8]).pvalue])
    assert line.r_squared == pytest.approx(1 - 4 / 24)


def test_plane_of_two_regressors_is_exact():
    x = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [2, 1.0]])
    line = fit_line(x, 3 + 0.5 * x[:, 0] - 2 * x[:, 1])
    assert (line.intercept, *line.slopes) == pytest.approx((3, 0.5, -2))
    assert (line.p_values < 1e-9).all()


def test_line_refuses_what_it_cannot_tell_apart():
    with pytest.raises(ValueError, match="got 2 points for 2 coefficients"):
        fit_line([0, 1], [0, 1])
    with pytest.raises(ValueError, match="not all alike"):
        fit_line([1, 1, 1], [0, 1, 2])


def test_a_floor_under_a_power_law_is_found():
    x = np.array([1, 2, 4, 8, 16, 32])
    fit = fit_floored_power_law(x, 0.8 + 0.6 * x**-0.5)
    assert fit == pytest.approx((0.8, 0.6, -0.5, 1.0), rel=1e-3)
    assert fit_power_law(x, 0.8 + 0.6 * x**-0.5).r_squared < 0.99
    with pytest.raises(ValueError, match="expected at least 4 of each, positive"):
        fit_floored_power_law([1, 2, 3], [3, 2, 1])


def test_power_law_recovers_its_exponent():
    x = np.array([8.0, 16, 32, 64])
    assert fit_power_law(x, 0.02 * x**1.93) == pytest.approx((0.02, 1.93, 1.0))
    with pytest.raises(ValueError, match="all positive"):
        fit_power_law([1, 2, 3], [1, 0, 2])


def test_bootstrap_of_a_fit_has_the_width_of_the_mean_s():
    # α is linear in the curve, so its bootstrap must be that of the prompts' own α
    rng = np.random.default_rng(0)
    d = np.array([0.5, 1.0, 1.5, 2.0])
    alpha_P = rng.normal(1.0, 0.5, 400)
    curve_PN = d * (alpha_P[:, None] - 0.3 * d)
    fit = bootstrap_curve(
        curve_PN, lambda curve_N: fit_best_of_n(d, curve_N).alpha, num_resamples=2000, seed=1
    )
    assert fit.mean == pytest.approx(alpha_P.mean())
    assert (fit.high - fit.low) / (2 * 1.96) == pytest.approx(alpha_P.std() / 20, rel=0.1)
    with pytest.raises(ValueError, match="prompts x points"):
        bootstrap_curve(d, np.mean, num_resamples=10, seed=0)


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
    np.testing.assert_allclose(best_of_n_kl(list(golden)), list(golden.values()), atol=1e-12)


def test_best_of_n_kl_is_an_upper_bound_for_discrete_scores():
    rank = np.arange(1, 1001) / 1000
    chosen = rank**16 - (rank - 1 / 1000) ** 16
    exact = np.sum(chosen * np.log(chosen * 1000))
    np.testing.assert_allclose(exact, 1.8350780080072981, rtol=1e-8)
    assert exact < best_of_n_kl(16)


PROXY, GOLD = [0.1, 0.5, 0.3, 0.9], [1.0, 2.0, 0.0, -1.0]


@pytest.mark.parametrize(("n", "expected"), [(1, 0.5), (2, 1 / 6), (3, -0.25), (4, -1.0)])
def test_best_of_n_golden(n, expected):
    np.testing.assert_allclose(best_of_n(PROXY, GOLD, n), expected, atol=1e-12)


def test_best_of_n_equals_all_subsets_with_ties_broken_evenly():
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, size=8).astype(float), rng.normal(size=8)
    for n in range(1, 9):
        best = []
        for subset in combinations(range(8), n):
            subset = np.array(subset)
            best.append(gold[subset[proxy[subset] == proxy[subset].max()]].mean())
        np.testing.assert_allclose(best_of_n(proxy, gold, n), np.mean(best), rtol=1e-9)
    with pytest.raises(ValueError, match="n = 9"):
        best_of_n(proxy, gold, 9)


def test_best_of_n_of_many_samples_does_not_overflow():
    uniform = np.linspace(0, 1, 60_000)
    np.testing.assert_allclose(best_of_n(uniform, uniform, 1000), 1000 / 1001, rtol=1e-4)
    np.testing.assert_allclose(best_of_n(uniform, np.ones(60_000), 1000), 1.0, rtol=1e-6)


def test_fits_recover_the_curve_they_assume():
    distance = np.linspace(0.3, 3.0, 20)
    fit = fit_best_of_n(distance, distance * (0.8 - 0.2 * distance))
    np.testing.assert_allclose(fit, (0.8, 0.2, 1.0))
    fit = fit_rl(distance, distance * (1.0 - 0.4 * np.log(distance)), min_distance=0.5)
    np.testing.assert_allclose(fit, (1.0, 0.4, 1.0))
    wrong_form = fit_rl(distance, distance * (0.8 - 0.2 * distance), min_distance=0.5)
    assert wrong_form.r_squared < 1.0
    with pytest.raises(ValueError, match="at least 3"):
        fit_rl(distance, distance, min_distance=2.9)


def test_the_peak_of_best_of_n_golden():
    np.testing.assert_allclose(best_of_n_peak(0.8, 0.2), (2.0, 0.8))
