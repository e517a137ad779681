"""Compute what may be concluded from finitely many judgements: intervals and calibration.

    win rate        (wins + ½ ties) / n, with a Wilson interval or a bootstrap over prompts; also as
                    if both answers were equally long
    calibration     does σ(Δr) say how often the preferred response has the higher score?

NumPy and SciPy in float64: nothing here is differentiated or runs on an accelerator.

Left out on purpose: ratings of many players (Bradley-Terry, Elo) and agreement of raters (Cohen's
and Fleiss' κ, Krippendorff's α), which nothing here needs yet.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special


class Interval(NamedTuple):
    """Hold a mean with the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def wilson(wins: float, n: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of the proportion wins/n, inside [0, 1] (Wilson 1927).

    A tie is half a win.

    Raises:
        ValueError: unless 0 ≤ wins ≤ n and n > 0.
    """
    if n <= 0 or not 0 <= wins <= n:
        raise ValueError(f"wilson: got {wins} wins of {n}, expected 0 <= wins <= n and n > 0")
    z = special.ndtri(0.5 + confidence / 2)
    p = wins / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def cluster_bootstrap(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean of `values` with a percentile interval over resampled clusters.

    Whole clusters are drawn with replacement. Samples and raters of one prompt are not independent:
    make the prompt the cluster.

    Raises:
        ValueError: the two arrays differ in length or are empty.
    """
    values = np.asarray(values, np.float64)
    clusters = np.asarray(clusters)
    if values.shape != clusters.shape or values.size == 0:
        raise ValueError(
            f"cluster_bootstrap: got {values.shape} values and {clusters.shape} clusters"
        )
    _, member = np.unique(clusters, return_inverse=True)
    total = np.bincount(member, values)
    size = np.bincount(member)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(size.size, np.full(size.size, 1 / size.size), size=num_resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile((counts @ total) / (counts @ size), [tail, 1 - tail])
    return Interval(float(values.mean()), float(low), float(high))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: ArrayLike,
    *,
    num_resamples: int,
    seed: int,
    confidence: float = 0.95,
) -> Interval:
    """Return the mean of a − b for two policies judged on the same prompts, with its interval.

    The bootstrap keeps each pair together.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return cluster_bootstrap(
        difference, clusters, num_resamples=num_resamples, seed=seed, confidence=confidence
    )


def length_controlled_win_rate(preference: ArrayLike, length_difference: ArrayLike) -> float:
    """Return the win rate that the judge would give if both answers were equally long.

        P(preferred) = σ(θ + φ tanh(Δlength / std Δlength)),   win rate = σ(θ)

    As in AlpacaEval 2 (Dubois et al. 2024), without their term for how hard each instruction is.
    `preference` is 1, 0 or ½ for a tie, or a probability; lengths in any unit. A ridge of 1e-6
    keeps separable data finite.

    Raises:
        ValueError: the arrays differ in length or are empty, or a preference is outside [0, 1].
    """
    y = np.asarray(preference, np.float64)
    difference = np.asarray(length_difference, np.float64)
    if y.shape != difference.shape or y.size == 0 or y.min() < 0 or y.max() > 1:
        raise ValueError(
            f"length_controlled_win_rate: got {y.shape} preferences and {difference.shape} "
            "lengths, expected as many of each, preferences between 0 and 1"
        )
    spread = difference.std()
    design = np.stack(
        [np.ones_like(y), np.tanh(difference / spread) if spread > 0 else np.zeros_like(y)]
    )

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logit = weights @ design
        nll = np.mean(np.logaddexp(0.0, logit) - y * logit) + 0.5e-6 * weights @ weights
        return nll, design @ (special.expit(logit) - y) / y.size + 1e-6 * weights

    return float(special.expit(optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS").x[0]))


class Calibration(NamedTuple):
    """Describe how well σ(Δr) predicts preferences.

    The bins divide the confidence σ(|Δr|) ∈ [½, 1] evenly.
    """

    ece: float
    brier: float
    nll: float
    accuracy: float
    bin_confidence: np.ndarray
    bin_accuracy: np.ndarray
    bin_count: np.ndarray


def calibration(difference: ArrayLike, label: ArrayLike, *, num_bins: int) -> Calibration:
    """Return the calibration of a reward model on pairs of responses a and b.

        ECE = Σ_bins count/n · |accuracy − mean confidence|

    `difference` is r_a − r_b, `label` is 1 where a was preferred, else 0. Brier and NLL are those
    of P(a) = σ(Δr). Empty bins hold NaN.
    """
    difference = np.asarray(difference, np.float64)
    label = np.asarray(label, np.float64)
    probability = special.expit(difference)
    confidence = special.expit(np.abs(difference))
    correct = np.where(label > 0.5, difference > 0, difference < 0).astype(np.float64)
    member = np.minimum(((confidence - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
    count = np.bincount(member, minlength=num_bins)
    size = np.where(count == 0, np.nan, count)
    bin_confidence = np.bincount(member, confidence, minlength=num_bins) / size
    bin_accuracy = np.bincount(member, correct, minlength=num_bins) / size
    return Calibration(
        ece=float(np.nansum(count * np.abs(bin_accuracy - bin_confidence)) / label.size),
        brier=float(np.mean(np.square(probability - label))),
        nll=float(np.mean(np.logaddexp(0.0, difference) - label * difference)),
        accuracy=float(correct.mean()),
        bin_confidence=bin_confidence,
        bin_accuracy=bin_accuracy,
        bin_count=count,
    )
