"""Losses that learn from preferences: rankings for a reward model, pairs for a policy (the DPO family).

    ranking         mean over all pairs i ≻ j of a prompt of −log σ(r_i − r_j); ties dropped; prompts weigh 1
    best of C       −log softmax(r)[best]                               (Ziegler et al. 2019)
    Plackett-Luce   Σ_i log Σ_{j not before i} exp r_j − r_i            (the likelihood of the whole order)
    DPO family      the same with the policy's implicit rewards r = β log π/π_ref; KTO: of single responses

A ranking is `rank_BC`: 1 is best, equal ranks are ties. All C responses of a prompt sit in one row, so that
each is scored once and no response meets the model again in another batch (Ouyang et al. 2022, section 3.5).

Left out on purpose: a learned tie probability. Like the paper, pairs that the labeler could not tell apart
are dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from rlhf_jax.maths.masking import Mean, keep, mean

PairNorm = Literal["k_choose_2", "num_valid_pairs"]
PairNLL = Callable[[jax.Array], jax.Array]


def bradley_terry_nll(difference: jax.Array) -> jax.Array:
    """−log σ(r_preferred − r_other), elementwise."""
    return jax.nn.softplus(-difference)


def smoothed_nll(difference: jax.Array, *, label_smoothing: float) -> jax.Array:
    """−(1−ε) log σ(Δ) − ε log σ(−Δ): labels are wrong with probability ε; the best Δ is log((1−ε)/ε)."""
    right, wrong = jax.nn.softplus(-difference), jax.nn.softplus(difference)
    return (1.0 - label_smoothing) * right + label_smoothing * wrong


def christiano_nll(
    difference: jax.Array, first_preferred: jax.Array | float = 1.0, *, lapse: float
) -> jax.Array:
    """Cross-entropy under a labeler who answers at random with probability ε: P = (1−ε) σ(Δ) + ε/2.

    −μ log P − (1−μ) log(1−P), μ = `first_preferred` 1, 0 or ½ (Christiano et al. 2017, section 2.2.3; ε =
    0.1 there). P stays in [ε/2, 1−ε/2], so that a confident wrong label stops pulling instead of pulling
    ever harder.
    """
    attentive, guess = jnp.log1p(-lapse), jnp.log(lapse / 2.0)
    first = jnp.logaddexp(attentive - jax.nn.softplus(-difference), guess)
    second = jnp.logaddexp(attentive - jax.nn.softplus(difference), guess)
    return -first_preferred * first - (1.0 - first_preferred) * second


def _pairs(
    score_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """r_i − r_j, and which (i, j) are real with i ranked above j."""
    assert score_BC.shape == rank_BC.shape == mask_BC.shape
    real_BC = mask_BC != 0
    score_BC = keep(score_BC.astype(jnp.float32), mask_BC)
    preferred_BCC = rank_BC[:, :, None] < rank_BC[:, None, :]
    return (
        score_BC[:, :, None] - score_BC[:, None, :],
        preferred_BCC & real_BC[:, :, None] & real_BC[:, None, :],
    )


def ranking_loss(
    score_BC: jax.Array,
    rank_BC: jax.Array,
    mask_BC: jax.Array,
    *,
    pair_norm: PairNorm,
    pair_nll: PairNLL = bradley_terry_nll,
    margin_BCC: jax.Array | None = None,
) -> Mean:
    """Mean over prompts of (1/n) Σ_{i ≻ j} −log σ(r_i − r_j − m_ij) (Ouyang et al. 2022, equation 1).

    The paper divides by n = C(K, 2) with K the number of real responses ("k_choose_2"), which lets a prompt
    with ties weigh less; "num_valid_pairs" divides by the pairs really there. They agree where nothing is
    tied. A prompt without any pair has weight 0. `pair_nll` replaces −log σ, for lapses or label smoothing;
    `margin_BCC` asks for r_i ≥ r_j + m_ij (Touvron et al. 2023, equation 2). Raises ValueError for another
    `pair_norm`.
    """
    difference_BCC, valid_BCC = _pairs(score_BC, rank_BC, mask_BC)
    if margin_BCC is not None:
        difference_BCC = difference_BCC - keep(margin_BCC, valid_BCC)
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


def ranking_accuracy(score_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array) -> Mean:
    """Share of untied pairs whose preferred response scores strictly higher: over pairs, not prompts."""
    difference_BCC, valid_BCC = _pairs(score_BC, rank_BC, mask_BC)
    return mean(difference_BCC > 0, valid_BCC)


def best_of_ce(score_BC: jax.Array, best_B: jax.Array, mask_BC: jax.Array) -> Mean:
    """−log softmax(r)[best] over real responses, averaged over prompts (Ziegler et al. 2019, equation 1)."""
    real_BC = mask_BC != 0
    score_BC = _only_real(score_BC, real_BC)
    chosen_B = jnp.take_along_axis(score_BC, best_B[:, None], axis=-1)[:, 0]
    return mean(jax.nn.logsumexp(score_BC, axis=-1) - chosen_B, jnp.any(real_BC, axis=-1))


def plackett_luce(score_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array) -> Mean:
    """Σ_i [log Σ_{j: rank_j ≥ rank_i} exp r_j − r_i], averaged over prompts.

    The likelihood of choosing the best, then the next best of the rest, and so on (Plackett 1975).
    Tied responses share one denominator that holds all of them (Breslow's rule). Prompts with fewer than two
    real responses have weight 0.
    """
    real_BC = mask_BC != 0
    score_BC = _only_real(score_BC, real_BC)
    remaining_BCC = (rank_BC[:, None, :] >= rank_BC[:, :, None]) & real_BC[:, None, :]
    rest_BC = jax.nn.logsumexp(jnp.where(remaining_BCC, score_BC[:, None, :], _LOW), axis=-1)
    nll_B = jnp.sum(keep(rest_BC - score_BC, mask_BC), axis=-1)
    return mean(nll_B, jnp.sum(real_BC, axis=-1) > 1)


_LOW = -1e30  # exp(-1e30) is 0, and unlike -inf it leaves rows without any real entry free of NaN


def _only_real(score_BC: jax.Array, real_BC: jax.Array) -> jax.Array:
    return jnp.where(real_BC, score_BC.astype(jnp.float32), _LOW)


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
    """The ranking loss of a policy's implicit rewards r = β log π/π_ref, which makes the policy its own reward model.

        dpo    −log σ(r_i − r_j)                      Rafailov et al. 2023, equation 7; with `label_smoothing` cDPO
        ipo    ((r_i − r_j)/β − 1/(2β))²              Azar et al. 2023, equation 17: pulls the gap to a finite value

    Over all pairs i ≻ j of a prompt, as `ranking_loss`; C = 2 is the papers' case. Log-probabilities are sums over a
    response's tokens, not averages. Stats, means over pairs: `chosen_reward`, `rejected_reward`, their `margin`, and
    `accuracy` (strict: 0 at initialisation, where all rewards are 0). Raises ValueError for another `loss`.
    """
    if loss not in ("dpo", "ipo"):
        raise ValueError(f"preference loss: got {loss!r}, expected 'dpo' or 'ipo'")

    def ipo_nll(difference: jax.Array) -> jax.Array:
        return jnp.square(difference / beta - 1.0 / (2.0 * beta))

    pair_nll = ipo_nll if loss == "ipo" else partial(smoothed_nll, label_smoothing=label_smoothing)
    nll = ranking_loss(reward_BC, rank_BC, mask_BC, pair_norm=pair_norm, pair_nll=pair_nll)
    difference_BCC, valid_BCC = _pairs(reward_BC, rank_BC, mask_BC)
    first_BCC = jnp.broadcast_to(keep(reward_BC, mask_BC)[:, :, None], valid_BCC.shape)
    return nll, {
        "chosen_reward": mean(first_BCC, valid_BCC),
        "rejected_reward": mean(first_BCC - difference_BCC, valid_BCC),
        "margin": mean(difference_BCC, valid_BCC),
        "accuracy": ranking_accuracy(reward_BC, rank_BC, mask_BC),
    }


def majority(rank_BC: jax.Array, mask_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which responses are ranked above more of their prompt's others than below, and which the other way round.

    Of a pair these are the preferred and the other response; in the middle of a ranking a response may be neither.
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
    """λ_D (1 − σ(r − z)) of desirable and λ_U (1 − σ(z − r)) of undesirable responses (Ethayarajh et al. 2024, equation 8).

    r = β log π/π_ref; z = β max(0, KL estimate), through which no gradient flows. No pairs: every response counts alone.
    """
    gain_BC = keep(reward_BC, better_BC | worse_BC) - jax.lax.stop_gradient(reference_point)
    loss_BC = jnp.where(
        better_BC, better_weight * jax.nn.sigmoid(-gain_BC), worse_weight * jax.nn.sigmoid(gain_BC)
    )
    return mean(loss_BC, better_BC | worse_BC)
