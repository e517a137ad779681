"""Measure how often one checkpoint's responses are preferred to another's.

    win rate = (wins + ½ ties) / comparisons, its interval resamples prompts

Longer answers please many judges, so the rate is also given as it would be for answers of equal
length: σ(θ) of P(preferred) = σ(θ + φ tanh(Δlength / std Δlength)) (Dubois et al. 2024,
length-controlled AlpacaEval).
"""

import numpy as np
from scipy import special, stats

from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, mean_by_prompt
from rlhf_jax.maths.statistics import length_controlled_win_rate

JACKKNIFE_GROUPS = 20


def score_preferences(first_NS: np.ndarray, second_NS: np.ndarray) -> np.ndarray:
    """Return 1 where the first score is higher, 0 where the second is, ½ if equal to 1e-6."""
    return 0.5 * (1.0 + np.sign(np.round(first_NS - second_NS, 6)))


def win_rate(preference_NSL: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Return the share of comparisons won, ties half, clustered by prompt (axis 0)."""
    return mean_by_prompt(preference_NSL, bootstrap)


def length_controlled(preference_NSL: np.ndarray, length_difference_NS: np.ndarray) -> Estimate:
    """Return the win rate at equal length.

    The interval is the delete-a-group jackknife over prompts on the scale of θ: prompt n is left
    out with all others of n mod 20, and t(19) se is laid off on both sides. No interval below 20
    prompts.
    """
    # Labelers of one pair share its lengths, so their mean preference gives the same fit in a
    # fraction of the time.
    preference_NS = preference_NSL.mean(axis=-1)
    num_prompts = len(preference_NSL)
    value = length_controlled_win_rate(preference_NS.ravel(), length_difference_NS.ravel())
    if num_prompts < JACKKNIFE_GROUPS:
        return Estimate(value, None, None, preference_NSL.size)
    group_N = np.arange(num_prompts) % JACKKNIFE_GROUPS
    left_out = [
        length_controlled_win_rate(
            preference_NS[group_N != group].ravel(), length_difference_NS[group_N != group].ravel()
        )
        for group in range(JACKKNIFE_GROUPS)
    ]
    theta = special.logit(np.clip(left_out, 1e-12, 1 - 1e-12))
    error = np.sqrt((JACKKNIFE_GROUPS - 1) * np.mean(np.square(theta - theta.mean())))
    half = stats.t.ppf(0.975, JACKKNIFE_GROUPS - 1) * error
    centre = special.logit(np.clip(value, 1e-12, 1 - 1e-12))
    low, high = special.expit([centre - half, centre + half])
    return Estimate(value, float(low), float(high), preference_NSL.size)
