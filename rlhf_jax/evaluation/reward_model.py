"""Measure whether a reward model agrees with the judges, and whether it knows how sure it is.

    pairs         all pairs of different responses to one prompt that the judge does not find equal
    accuracy      share of pairs whose better response has the higher score; equal scores count half
    calibration   ECE of σ(Δscore): mean gap of confidence and accuracy over bins (Guo et al. 2017)

Identical responses are dropped: their scores are equal, so they would count as errors of a perfect
model.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation.estimates import (
    Bootstrap,
    Estimate,
    clustered_mean,
    share,
    without_interval,
)
from rlhf_jax.maths import statistics

NUM_BINS = 10
UNDECIDED = Estimate(float("nan"), None, None, 0)  # what is said without a decided pair


class Pairs(NamedTuple):
    """Pairs of responses: which prompt, and which two samples of it, the earlier one first."""

    prompt_M: np.ndarray
    first_M: np.ndarray
    second_M: np.ndarray

    def values(self, value_NS: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of the first and of the second response of every pair, of a table."""
        first, second = (
            [value_NS[n][s] for n, s in zip(self.prompt_M, sample_M, strict=True)]
            for sample_M in (self.first_M, self.second_M)
        )
        return np.array(first, np.float64), np.array(second, np.float64)


def different_pairs(texts: Sequence[Sequence[str]]) -> Pairs:
    """Return all pairs of samples of one prompt whose texts differ."""
    pairs = [
        (n, i, j)
        for n, samples in enumerate(texts)
        for i in range(len(samples))
        for j in range(i + 1, len(samples))
        if samples[i] != samples[j]
    ]
    return Pairs(*np.array(pairs, np.int64).reshape(-1, 3).T)


def accuracy(
    difference_M: np.ndarray, preference_M: np.ndarray, prompt_M: np.ndarray, bootstrap: Bootstrap
) -> Estimate:
    """Return the share of decided pairs, clustered by prompt, that the score orders as the judge.

    `difference_M` is score of first minus score of second, `preference_M` the judge's 1, 0 or ½;
    ties (½) are left out. NaN without a decided pair.
    """
    decided = preference_M != 0.5
    if not decided.any():
        return UNDECIDED
    signs = np.sign(difference_M[decided]) * np.sign(preference_M[decided] - 0.5)
    hits = 0.5 * (1 + signs)
    # Where all agree there is nothing to resample, and yet no certainty: `share` knows.
    unanimous = hits.min() == hits.max() != 0.5
    average = share if unanimous else clustered_mean
    return average(hits, prompt_M[decided], bootstrap)


def calibration_error(difference_M: np.ndarray, preference_M: np.ndarray) -> Estimate:
    """Return the ECE over ten bins of confidence σ(|Δscore|) in [½, 1] of decided pairs.

    It is too high for few pairs.
    """
    decided = preference_M != 0.5
    if not decided.any():
        return UNDECIDED
    difference_M, preference_M = difference_M[decided], preference_M[decided]
    measured = statistics.calibration(difference_M, preference_M, num_bins=NUM_BINS)
    return without_interval(measured.ece, int(decided.sum()))
