"""How often one checkpoint's responses are preferred to another's.

    win rate = (wins + ½ ties) / comparisons, its interval resamples prompts

Longer answers please many judges, so the rate is also given as it would be for answers of equal length: σ(θ)
of P(preferred) = σ(θ + φ tanh(Δlength / std Δlength)) (Dubois et al. 2024, length-controlled AlpacaEval).
"""

import numpy as np
from scipy import special, stats

from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, clustered_mean
from rlhf_jax.maths.statistics import length_controlled_win_rate

JACKKNIFE_GROUPS = 20


def score_preferences(first_NS: np.ndarray, second_NS: np.ndarray) -> np.ndarray:
    """Return 1 where the first score is higher, 0 where the second is, ½ where they are equal to six decimals."""
    return 0.5 * (1.0 + np.sign(np.round(first_NS - second_NS, 6)))


def flatten(preference_NSL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All preferences in one row, with the prompt of each as its cluster."""
    clusters = np.broadcast_to(np.arange(len(preference_NSL))[:, None, None], preference_NSL.shape)
    return preference_NSL.ravel(), clusters.ravel()


def win_rate(preference_NSL: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Share of comparisons won, ties half, with an interval clustered by prompt (axis 0)."""
    return clustered_mean(*flatten(preference_NSL), bootstrap)


def length_controlled(preference_NSL: np.ndarray, length_difference_NS: np.ndarray) -> Estimate:
    """Win rate at equal length.

    The interval is the delete-a-group jackknife over prompts on the scale of θ: prompt n is left out with all
    others of n mod 20, and t(19) se is laid off on both sides. No interval below 20 prompts.
    """
    # Labelers of one pair share its lengths, so their mean preference gives the same fit in a fraction of the time.
    preference_NS, num_prompts = preference_NSL.mean(axis=-1), len(preference_NSL)
    value = length_controlled_win_rate(preference_NS.ravel(), length_difference_NS.ravel())
    if num_prompts < JACKKNIFE_GROUPS:
        return Estimate(value, None, None, preference_NSL.size)
    kept_GN = (
        np.arange(num_prompts)[None] % JACKKNIFE_GROUPS != np.arange(JACKKNIFE_GROUPS)[:, None]
    )
    left_out = [
        length_controlled_win_rate(
            preference_NS[kept_N].ravel(), length_difference_NS[kept_N].ravel()
        )
        for kept_N in kept_GN
    ]
    theta = special.logit(np.clip(left_out, 1e-12, 1 - 1e-12))
    error = np.sqrt((JACKKNIFE_GROUPS - 1) * np.mean(np.square(theta - theta.mean())))
    half = stats.t.ppf(0.975, JACKKNIFE_GROUPS - 1) * error
    centre = special.logit(np.clip(value, 1e-12, 1 - 1e-12))
    low, high = special.expit([centre - half, centre + half])
    return Estimate(value, float(low), float(high), preference_NSL.size)
