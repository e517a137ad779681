"""Fit lines and curves through few points, with intervals.

    mean over seeds    Student's t: three runs are three observations, whatever each averages over
    monotone?          Spearman's rank correlation
    power law          log y = log a + b log x; its slope alone is the growth of a cost
                       log (y - c) = log a + b log x: what is left above a floor c (Henighan et al.
                       2020, eq. 1.1)
    plane              y = a + Σ b_k x_k with a p-value for each b_k = 0 (Stiennon 2020, Fig. 6)
    curve of prompts   bootstrap of anything computed from the prompts' mean curve
    best of n          KL = log n − (n−1)/n, and gold for every n from one pool of samples
    Gao et al. 2022    gold against d = √KL: d (α − β d) for best of n, d (α − β log d) for RL

NumPy and SciPy in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from rlhf_jax.maths.statistics import Interval


def t_interval(values: ArrayLike, *, confidence: float = 0.95) -> Interval:
    """Return the mean of independent observations, one per seed, with Student's interval.

    A single one has an infinite interval.
    """
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"t_interval: got {x.shape} values, expected at least one")
    if x.size == 1:
        return Interval(float(x[0]), -np.inf, np.inf)
    half = stats.t.ppf(0.5 + confidence / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half))


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return the correlation of ranks, equal values at their mean; NaN if a side is constant."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.size < 2:
        raise ValueError(
            f"spearman: got {x.shape} and {y.shape} values, expected as many of each, at least 2"
        )
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


class Line(NamedTuple):
    """Hold y = intercept + Σ slopes · x with each slope's error and p(slope = 0)."""

    intercept: float
    slopes: np.ndarray
    errors: np.ndarray
    p_values: np.ndarray
    r_squared: float


def fit_line(x_NK: ArrayLike, y_N: ArrayLike) -> Line:
    """Fit a line or plane by least squares, with Student's two-sided p-values.

    Raises:
        ValueError: there are no more points than coefficients, or they are all alike.
    """
    y = np.asarray(y_N, np.float64)
    x = np.asarray(x_NK, np.float64).reshape(y.size, -1)
    design = np.column_stack([np.ones(y.size), x])
    freedom = y.size - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            f"fit_line: got {y.size} points for {design.shape[1]} coefficients, expected more, "
            "not all alike"
        )
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    residual = np.sum(np.square(y - design @ coefficients))
    errors = np.sqrt(residual / freedom * np.diag(np.linalg.inv(design.T @ design)))
    with np.errstate(divide="ignore", invalid="ignore"):
        p_values = 2 * stats.t.sf(np.abs(coefficients / errors), freedom)
        r_squared = 1 - residual / np.sum(np.square(y - y.mean()))
    return Line(
        float(coefficients[0]), coefficients[1:], errors[1:], p_values[1:], float(r_squared)
    )


class PowerLaw(NamedTuple):
    """Hold y = scale · x^exponent, fitted in logarithms."""

    scale: float
    exponent: float
    r_squared: float


def fit_power_law(x: ArrayLike, y: ArrayLike) -> PowerLaw:
    """Fit log y on log x by least squares; the exponent is the log-log slope.

    Raises:
        ValueError: there are fewer than 3 points, or one is not positive.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.size < 3 or min(x.min(), y.min()) <= 0:
        raise ValueError(
            f"fit_power_law: got {x.shape} and {y.shape} values, expected at least 3 of each, all "
            "positive"
        )
    line = fit_line(np.log(x), np.log(y))
    return PowerLaw(float(np.exp(line.intercept)), float(line.slopes[0]), line.r_squared)


class FlooredPowerLaw(NamedTuple):
    """Hold y = floor + scale · x^exponent; R² is that of log (y − floor)."""

    floor: float
    scale: float
    exponent: float
    r_squared: float


def fit_floored_power_law(x: ArrayLike, y: ArrayLike) -> FlooredPowerLaw:
    """Fit log (y − floor) on log x, with the floor in [0, min y) that explains most.

    The floor of a loss is the entropy of what is predicted.

    Raises:
        ValueError: there are fewer than 4 points, or one is not positive.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.size < 4 or min(x.min(), y.min()) <= 0:
        raise ValueError(
            f"fit_floored_power_law: got {x.shape} and {y.shape} values, expected at least 4 of "
            "each, positive"
        )

    def unexplained(share: float) -> float:
        return 1 - fit_power_law(x, y - share * y.min()).r_squared

    best = optimize.minimize_scalar(unexplained, bounds=(0, 1 - 1e-6), method="bounded").x
    floor = float(best) * float(y.min())
    law = fit_power_law(x, y - floor)
    return FlooredPowerLaw(floor, law.scale, law.exponent, law.r_squared)


def bootstrap_curve(
    curve_PN: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic of the prompts' mean curve, with a percentile interval over prompts."""
    curve_PN = np.asarray(curve_PN, np.float64)
    if curve_PN.ndim != 2 or len(curve_PN) == 0:
        raise ValueError(f"bootstrap_curve: got {curve_PN.shape} values, expected prompts x points")
    size = len(curve_PN)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(size, np.full(size, 1 / size), size=num_resamples) / size
    tail = (1 - confidence) / 2
    low, high = np.quantile(
        [statistic(curve_N) for curve_N in weights @ curve_PN], [tail, 1 - tail]
    )
    return Interval(float(statistic(curve_PN.mean(axis=0))), float(low), float(high))


def best_of_n_kl(n: ArrayLike) -> np.ndarray:
    """Return KL(best of n ‖ policy) = log n − (n−1)/n in nats.

    It is an upper bound if scores can be equal.
    """
    n = np.asarray(n, np.float64)
    return np.log(n) - (n - 1) / n


def best_of_n(proxy: ArrayLike, reward: ArrayLike, n: int) -> float:
    """Return the expected `reward` of the sample with the highest `proxy` among n of a pool of N.

        Σ_i C(i−1, n−1) / C(N, n) · reward of the i-th lowest proxy

    Unbiased, and uses all N samples for every n (Nakano et al. 2021, appendix I). Ties in the proxy
    are broken evenly.

    Raises:
        ValueError: unless 1 ≤ n ≤ N and there are as many rewards as proxies.
    """
    proxy = np.asarray(proxy, np.float64)
    reward = np.asarray(reward, np.float64)
    size = proxy.size
    if proxy.shape != reward.shape or not 1 <= n <= size:
        raise ValueError(
            f"best_of_n: got n = {n}, {proxy.shape} proxies, {reward.shape} rewards; "
            "need 1 <= n <= N"
        )
    position = np.arange(n, size + 1)
    log_weight = _log_binomial(position - 1, n - 1) - _log_binomial(np.array(size), n)
    weight = np.concatenate([np.zeros(n - 1), np.exp(log_weight)])
    levels, level = np.unique(proxy, return_inverse=True)
    sorted_level = np.sort(level)
    share = np.bincount(sorted_level, weight, minlength=levels.size) / np.bincount(level)
    return float(np.sum(share[level] * reward))


def _log_binomial(n: np.ndarray, k: int) -> np.ndarray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)


class OveroptimisationFit(NamedTuple):
    """Hold the coefficients of one of Gao's curves and the share of variance that it explains."""

    alpha: float
    beta: float
    r_squared: float


def _fit_curve(
    distance: np.ndarray, penalty: np.ndarray, reward: np.ndarray
) -> OveroptimisationFit:
    if distance.size < 3:
        raise ValueError(f"fit: got {distance.size} points, need at least 3 for two coefficients")
    design = np.stack([distance, -distance * penalty], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(design, reward, rcond=None)
    residual = np.sum(np.square(reward - design @ np.array([alpha, beta])))
    return OveroptimisationFit(
        float(alpha), float(beta), float(1 - residual / np.sum(np.square(reward - reward.mean())))
    )


def fit_best_of_n(distance: ArrayLike, reward: ArrayLike) -> OveroptimisationFit:
    """Fit R = d (α − β d), d = √KL, R = 0 at d = 0, by least squares (Gao et al. 2022)."""
    distance = np.asarray(distance, np.float64)
    reward = np.asarray(reward, np.float64)
    return _fit_curve(distance, distance, reward)


def fit_rl(distance: ArrayLike, reward: ArrayLike, *, min_distance: float) -> OveroptimisationFit:
    """Fit R = d (α − β log d) by least squares on d ≥ `min_distance` > 0 (Gao et al. 2022).

    The slope at 0 is infinite.
    """
    distance = np.asarray(distance, np.float64)
    reward = np.asarray(reward, np.float64)
    used = distance >= min_distance
    return _fit_curve(distance[used], np.log(distance[used]), reward[used])


def best_of_n_peak(alpha: float, beta: float) -> tuple[float, float]:
    """Return where d (α − β d) is highest, d* = α/2β, and how high: α²/4β."""
    return alpha / (2 * beta), alpha**2 / (4 * beta)
