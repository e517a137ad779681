"""Compute losses that learn from preferences: rankings for a reward model, pairs for a policy.

    ranking         mean over all pairs i ≻ j of a prompt of −log σ(r_i − r_j); ties are dropped,
                    every prompt weighs 1
    Plackett-Luce   Σ_i log Σ_{j not before i} exp r_j − r_i   (the likelihood of the whole order)
    DPO family      the same with the policy's implicit rewards r = β log π/π_ref
    KTO             of single responses

A ranking is `rank_BC`: 1 is best, equal ranks are ties. All C responses of a prompt sit in one row,
so that each is scored once and no response meets the model again in another batch (Ouyang et al.
2022, section 3.5). `ranking_loss` and `plackett_luce` share one contract: scores, ranks and mask of
shape (B, C) in, a `Mean` over prompts out.

Left out on purpose: a learned tie probability. Like the paper, pairs that the labeler could not
tell apart are dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from rlhf_jax.maths.masking import Mean, keep, mean

PairNorm = Literal["k_choose_2", "num_valid_pairs"]
RankingLoss = Literal["bradley_terry", "plackett_luce"]
ImplicitLoss = Literal["dpo", "ipo", "plackett_luce"]
PairNLL = Callable[[jax.Array], jax.Array]
_LOW = -1e30  # exp(-1e30) is 0, and unlike -inf it leaves rows without any real entry free of NaN


def bradley_terry_nll(difference: jax.Array) -> jax.Array:
    """Return −log σ(r_preferred − r_other), elementwise."""
    return jax.nn.softplus(-difference)


def smoothed_nll(difference: jax.Array, *, label_smoothing: float) -> jax.Array:
    """Return −(1−ε) log σ(Δ) − ε log σ(−Δ), for labels that are wrong with probability ε.

    The best Δ is log((1−ε)/ε).
    """
    right = jax.nn.softplus(-difference)
    wrong = jax.nn.softplus(difference)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def christiano_nll(
    difference: jax.Array, first_preferred: jax.Array | float = 1.0, *, lapse: float
) -> jax.Array:
    """Return the cross-entropy under a labeler who answers at random with probability ε.

        −μ log P − (1−μ) log(1−P),    P = (1−ε) σ(Δ) + ε/2

    μ = `first_preferred` is 1, 0 or ½ (Christiano et al. 2017, section 2.2.3; ε = 0.1 there). P
    stays in [ε/2, 1−ε/2], so that a confident wrong label stops pulling instead of pulling ever
    harder.
    """
    attentive = jnp.log1p(-lapse)
    guess = jnp.log(lapse / 2.0)
    first = jnp.logaddexp(attentive - jax.nn.softplus(-difference), guess)
    second = jnp.logaddexp(attentive - jax.nn.softplus(difference), guess)
    return -first_preferred * first - (1.0 - first_preferred) * second


def _pairs(
    score_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return r_i − r_j, and which pairs (i, j) are real with i ranked above j."""
    assert score_BC.shape == rank_BC.shape == mask_BC.shape
    real_BC = mask_BC != 0
    score_BC = keep(score_BC.astype(jnp.float32), mask_BC)
    difference_BCC = score_BC[:, :, None] - score_BC[:, None, :]
    preferred_BCC = rank_BC[:, :, None] < rank_BC[:, None, :]
    return difference_BCC, preferred_BCC & real_BC[:, :, None] & real_BC[:, None, :]


def ranking_loss(
    score_BC: jax.Array,
    rank_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    pair_norm: PairNorm,
    pair_nll: PairNLL = bradley_terry_nll,
) -> Mean:
    """Return the mean over prompts of (1/n) Σ_{i ≻ j} −log σ(r_i − r_j).

    Ouyang et al. 2022, equation 1. The paper divides by n = C(K, 2) with K the number of real
    responses ("k_choose_2"), which lets a prompt with ties weigh less; "num_valid_pairs" divides by
    the pairs really there. They agree where nothing is tied. A prompt without any pair has
    weight 0. `pair_nll` replaces −log σ, for lapses or label smoothing.

    Raises:
        ValueError: for another `pair_norm`.
    """
    difference_BCC, valid_BCC = _pairs(score_BC, rank_BC, mask_BC)
    total_B = jnp.sum(keep(pair_nll(difference_BCC), valid_BCC), axis=(1, 2))
    num_pairs_B = jnp.sum(valid_BCC.astype(jnp.float32), axis=(1, 2))
    if pair_norm == "k_choose_2":
        size_B = jnp.sum((mask_BC != 0).astype(jnp.float32), axis=-1)
        norm_B = size_B * (size_B - 1.0) / 2.0
    elif pair_norm == "num_valid_pairs":
        norm_B = num_pairs_B
    else:
        raise ValueError(
            f"pair_norm: got {pair_norm!r}, expected 'k_choose_2' or 'num_valid_pairs'"
        )
    return mean(total_B / jnp.maximum(norm_B, 1.0), num_pairs_B > 0)


def plackett_luce(score_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array) -> Mean:
    """Return the mean over prompts of Σ_i [log Σ_{j: rank_j ≥ rank_i} exp r_j − r_i].

    This is −log of the likelihood of choosing the best response, then the next best of the rest,
    and so on (Plackett 1975); of two responses it is `ranking_loss`. Tied responses share one
    denominator that holds all of them (Breslow's rule). Prompts with fewer than two real responses
    have weight 0.
    """
    assert score_BC.shape == rank_BC.shape == mask_BC.shape
    real_BC = mask_BC != 0
    score_BC = jnp.where(real_BC, score_BC.astype(jnp.float32), _LOW)
    remaining_BCC = (rank_BC[:, None, :] >= rank_BC[:, :, None]) & real_BC[:, None, :]
    rest_BC = jax.nn.logsumexp(jnp.where(remaining_BCC, score_BC[:, None, :], _LOW), axis=-1)
    nll_B = jnp.sum(keep(rest_BC - score_BC, mask_BC), axis=-1)
    return mean(nll_B, jnp.sum(real_BC, axis=-1) > 1)


def ranking_accuracy(score_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array) -> Mean:
    """Return the share of untied pairs, not prompts, whose preferred response scores higher."""
    difference_BCC, valid_BCC = _pairs(score_BC, rank_BC, mask_BC)
    return mean(difference_BCC > 0, valid_BCC)


def implicit_loss(
    reward_BC: jax.Array,
    rank_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    loss: str,
    beta: float,
    label_smoothing: float,
    pair_norm: PairNorm,
) -> tuple[Mean, dict[str, Mean]]:
    """Return the ranking loss of a policy's implicit rewards r = β log π/π_ref, and its stats.

        dpo             −log σ(r_i − r_j)             Rafailov et al. 2023, equation 7; with
                                                      `label_smoothing` cDPO
        ipo             ((r_i − r_j)/β − 1/(2β))²     Azar et al. 2023, equation 17: pulls the gap
                                                      to a finite value
        plackett_luce   `plackett_luce` of r          Rafailov et al. 2023, appendix A.3

    The first two are over all pairs i ≻ j of a prompt, as `ranking_loss`; C = 2 is the papers'
    case. The last uses neither `label_smoothing` nor `pair_norm`. Log-probabilities are sums over a
    response's tokens, not averages. Stats, means over pairs: `chosen_reward`, `rejected_reward`,
    their `margin`, and `accuracy` (strict: 0 at initialisation, where all rewards are 0).

    Raises:
        ValueError: for another `loss`.
    """

    def ipo_nll(difference: jax.Array) -> jax.Array:
        return jnp.square(difference / beta - 1.0 / (2.0 * beta))

    if loss == "plackett_luce":
        nll = plackett_luce(reward_BC, rank_BC, mask_BC)
    elif loss in ("dpo", "ipo"):
        smoothed = partial(smoothed_nll, label_smoothing=label_smoothing)
        pair_nll = ipo_nll if loss == "ipo" else smoothed
        nll = ranking_loss(reward_BC, rank_BC, mask_BC, pair_norm=pair_norm, pair_nll=pair_nll)
    else:
        names = ", ".join(map(repr, get_args(ImplicitLoss)))
        raise ValueError(f"preference loss: got {loss!r}, expected one of {names}")
    difference_BCC, valid_BCC = _pairs(reward_BC, rank_BC, mask_BC)
    first_BCC = jnp.broadcast_to(keep(reward_BC, mask_BC)[:, :, None], valid_BCC.shape)
    return nll, {
        "chosen_reward": mean(first_BCC, valid_BCC),
        "rejected_reward": mean(first_BCC - difference_BCC, valid_BCC),
        "margin": mean(difference_BCC, valid_BCC),
        "accuracy": ranking_accuracy(reward_BC, rank_BC, mask_BC),
    }


def majority(rank_BC: jax.Array, mask_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which responses beat more of their prompt's others than they lose to, and vice versa.

    Of a pair these are the preferred and the other response; in the middle of a ranking a response
    may be neither.
    """
    _, above_BCC = _pairs(jnp.zeros(rank_BC.shape), rank_BC, mask_BC)
    surplus_BC = above_BCC.sum(axis=2) - above_BCC.sum(axis=1)
    return surplus_BC > 0, surplus_BC < 0


def kto_loss(
    reward_BC: jax.Array,
    better_BC: jax.Array,
    worse_BC: jax.Array,
    reference_point: jax.Array,
    *,
    better_weight: float,
    worse_weight: float,
) -> Mean:
    """Return KTO's loss, in which every response counts alone.

        λ_D (1 − σ(r − z)) of desirable, λ_U (1 − σ(z − r)) of undesirable responses

    Ethayarajh et al. 2024, equation 8. r = β log π/π_ref; z = β max(0, KL estimate), through which
    no gradient flows.
    """
    gain_BC = keep(reward_BC, better_BC | worse_BC) - jax.lax.stop_gradient(reference_point)
    loss_BC = jnp.where(
        better_BC, better_weight * jax.nn.sigmoid(-gain_BC), worse_weight * jax.nn.sigmoid(gain_BC)
    )
    return mean(loss_BC, better_BC | worse_BC)
