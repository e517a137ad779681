"""Estimate numbers with their intervals and the number of observations behind them.

Several responses, raters or tokens of one prompt are not independent, so intervals resample prompts
(documents, questions), never single observations. With one yes-or-no observation per prompt that is
a proportion, and Wilson's interval is better close to 0 and 1. All intervals are 95 %.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_jax.maths import statistics


class Estimate(NamedTuple):
    """A value; None where there is no interval."""

    value: float
    low: float | None
    high: float | None
    n: int


class Bootstrap(NamedTuple):
    """How intervals are resampled."""

    num_resamples: int
    seed: int


def without_interval(value: float, n: int) -> Estimate:
    """Return a number that is counted or has no known spread."""
    return Estimate(float(value), None, None, n)


def _is_single(clusters_N: ArrayLike) -> bool:
    """Say whether there is one prompt alone, which tells nothing about the spread of others."""
    return np.unique(np.asarray(clusters_N)).size == 1


def by_prompt(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all values in one row, and the prompt (axis 0) of each as its cluster."""
    clusters_N = np.repeat(np.arange(len(values)), values.size // max(1, len(values)))
    return values.ravel(), clusters_N


def mean_by_prompt(values: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Return the mean (the `share` if all are true or false) with prompts (axis 0) as clusters."""
    estimator = share if values.dtype == bool else clustered_mean
    return estimator(*by_prompt(values), bootstrap)


def difference_by_prompt(a: np.ndarray, b: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Return the mean of a - b, (N, S) or (N, 1) each, with prompts (axis 0) as clusters."""
    return mean_by_prompt(np.subtract(a, b, dtype=np.float64), bootstrap)


def clustered_mean(values_N: ArrayLike, clusters_N: ArrayLike, bootstrap: Bootstrap) -> Estimate:
    """Return the mean with a percentile interval over clusters (`statistics.cluster_bootstrap`)."""
    values = np.asarray(values_N, np.float64)
    if _is_single(clusters_N):
        return without_interval(values.mean(), values.size)
    interval = statistics.cluster_bootstrap(
        values, clusters_N, num_resamples=bootstrap.num_resamples, seed=bootstrap.seed
    )
    return Estimate(interval.mean, interval.low, interval.high, values.size)


def share(hits_N: ArrayLike, clusters_N: ArrayLike, bootstrap: Bootstrap) -> Estimate:
    """Return the share of observations that are true.

    Its interval is Wilson's if every cluster has one observation, else the clustered bootstrap's.
    Clusters that all agree leave the bootstrap nothing to resample; Wilson's interval for as many
    observations as there are clusters stands in then.
    """
    hits = np.asarray(hits_N, np.float64)
    num_clusters = np.unique(np.asarray(clusters_N)).size
    if num_clusters == hits.size or hits.min() == hits.max():
        low, high = statistics.wilson(float(hits.mean()) * num_clusters, num_clusters)
        return Estimate(float(hits.mean()), low, high, hits.size)
    return clustered_mean(hits, clusters_N, bootstrap)


def ratio(totals_N: ArrayLike, weights_N: ArrayLike, bootstrap: Bootstrap) -> Estimate:
    """Return Σ totals / Σ weights, for means over tokens; rows are resampled, `n` is Σ weights."""
    totals = np.asarray(totals_N, np.float64)
    weights = np.asarray(weights_N, np.float64)
    if totals.size == 1:
        return without_interval(totals[0] / weights[0], int(weights[0]))
    rng = np.random.default_rng(bootstrap.seed)
    chances = np.full(totals.size, 1 / totals.size)
    counts = rng.multinomial(totals.size, chances, size=bootstrap.num_resamples)
    low, high = np.quantile((counts @ totals) / (counts @ weights), [0.025, 0.975])
    value = float(totals.sum() / weights.sum())
    return Estimate(value, float(low), float(high), int(weights.sum()))


def paired_difference(
    a_N: ArrayLike, b_N: ArrayLike, clusters_N: ArrayLike, bootstrap: Bootstrap
) -> Estimate:
    """Return the mean of a - b where observation i of both is about the same prompt."""
    if _is_single(clusters_N):
        difference = np.subtract(a_N, b_N, dtype=np.float64)
        return without_interval(difference.mean(), difference.size)
    interval = statistics.paired_difference(
        a_N, b_N, clusters_N, num_resamples=bootstrap.num_resamples, seed=bootstrap.seed
    )
    return Estimate(interval.mean, interval.low, interval.high, np.asarray(a_N).size)
