"""Fits and intervals, against values worked by hand and SciPy."""

import numpy as np
import pytest
from scipy import stats

from experiments.ablations.fits import (
    bootstrap_curve,
    fit_floored_power_law,
    fit_line,
    fit_power_law,
    spearman,
    t_interval,
)
from rlhf_jax.maths.statistics import fit_best_of_n


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
    found = fit_floored_power_law(x, 0.8 + 0.6 * x**-0.5)
    assert found == pytest.approx((0.8, 0.6, -0.5, 1.0), rel=1e-3)
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
    found = bootstrap_curve(
        curve_PN, lambda curve_N: fit_best_of_n(d, curve_N).alpha, num_resamples=2000, seed=1
    )
    assert found.mean == pytest.approx(alpha_P.mean())
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(alpha_P.std() / 20, rel=0.1)
    with pytest.raises(ValueError, match="prompts x points"):
        bootstrap_curve(d, np.mean, num_resamples=10, seed=0)
