"""Check losses of rankings and of the DPO family: golden values and invariances."""

from functools import partial
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.maths import masking, preference

SCORE = jnp.array([[2.0, 1.0, 0.5, -1.0]])
RANK = jnp.array([[1, 2, 2, 4]])
REAL = jnp.ones((1, 4), bool)


def ranking(score, rank=RANK, mask=REAL, pair_norm="num_valid_pairs", **options):
    return masking.value(preference.ranking_loss(score, rank, mask, pair_norm=pair_norm, **options))


def test_all_pairs_of_four_golden():
    value, gradient = jax.value_and_grad(ranking)(SCORE)
    np.testing.assert_allclose(value, 0.17832072122008844, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.09975856, 0.0299477, 0.0, 0.06981086]], atol=1e-6)
    np.testing.assert_allclose(
        ranking(SCORE, pair_norm="k_choose_2"), 0.14860060101674036, rtol=1e-6
    )
    accuracy = preference.ranking_accuracy(SCORE, RANK, REAL)
    assert (float(accuracy.total), float(accuracy.weight)) == (5.0, 5.0)


def test_k_answers_without_ties_make_k_choose_2_pairs():
    rank = jnp.tile(jnp.arange(9)[None], (6, 1))
    mask = masking.length_mask(jnp.arange(4, 10), 9)

    def num_pairs(rank_C, mask_C):
        return preference.ranking_accuracy(jnp.zeros((1, 9)), rank_C[None], mask_C[None]).weight

    np.testing.assert_array_equal(jax.vmap(num_pairs)(rank, mask), [6, 10, 15, 21, 28, 36])
    for pair_norm in ("k_choose_2", "num_valid_pairs"):
        equal_scores = ranking(jnp.zeros((6, 9)), rank, mask, pair_norm=pair_norm)
        np.testing.assert_allclose(equal_scores, np.log(2), rtol=1e-6)


def test_ranking_loss_equals_a_python_loop_over_pairs():
    rng = np.random.default_rng(0)
    score, rank = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(1, 4, size=(6, 5))
    mask = np.arange(5)[None] < np.array([5, 4, 3, 2, 1, 0])[:, None]
    losses, pairs = [], []
    for b in range(6):
        differences = []
        for i, j in combinations(np.flatnonzero(mask[b]), 2):
            better, worse = (i, j) if rank[b, i] < rank[b, j] else (j, i)
            if rank[b, i] != rank[b, j]:
                differences.append(score[b, better] - score[b, worse])
        pairs += differences
        if differences:
            losses.append(np.mean(np.log1p(np.exp(-np.array(differences)))))
    arguments = jnp.asarray(score), jnp.asarray(rank), jnp.asarray(mask)
    pair = preference.ranking_loss(*arguments, pair_norm="num_valid_pairs")
    np.testing.assert_allclose([pair.total, pair.weight], [np.sum(losses), len(losses)], rtol=1e-5)
    accuracy = preference.ranking_accuracy(*arguments)
    np.testing.assert_array_equal(
        [accuracy.total, accuracy.weight], [np.sum(np.array(pairs) > 0), len(pairs)]
    )


def test_ranking_loss_is_invariant_to_a_shift_and_to_the_order_of_responses():
    for pair_norm in ("k_choose_2", "num_valid_pairs"):
        loss = partial(ranking, pair_norm=pair_norm)
        np.testing.assert_allclose(loss(SCORE + 5.0), loss(SCORE), rtol=1e-6)
        order = jnp.array([2, 0, 3, 1])
        np.testing.assert_allclose(loss(SCORE[:, order], RANK[:, order]), loss(SCORE), rtol=1e-6)


def test_a_prompt_without_pairs_weighs_nothing():
    score = jnp.concatenate([SCORE, SCORE, SCORE])
    rank = jnp.array([[1, 2, 2, 4], [3, 3, 3, 3], [1, 2, 3, 4]])
    mask = jnp.array([[True] * 4, [True] * 4, [True, False, False, False]])
    for pair_norm in ("k_choose_2", "num_valid_pairs"):
        pair = preference.ranking_loss(score, rank, mask, pair_norm=pair_norm)
        assert float(pair.weight) == 1.0
        np.testing.assert_allclose(
            masking.value(pair), ranking(SCORE, pair_norm=pair_norm), rtol=1e-6
        )


def test_equal_scores_count_as_wrong():
    assert float(preference.ranking_accuracy(jnp.zeros((1, 4)), RANK, REAL).total) == 0.0


def test_unknown_pair_norm_is_named():
    with pytest.raises(ValueError, match="'mean'"):
        ranking(SCORE, pair_norm="mean")


def test_christiano_golden():
    difference = jnp.array([0.0, 1.0, 5.0, -5.0])
    nll = preference.christiano_nll(difference, lapse=0.1)
    np.testing.assert_allclose(nll, [0.69314718, 0.34537797, 0.05765408, 2.88198286], rtol=1e-6)
    np.testing.assert_allclose(np.exp(-nll), [0.5, 0.70795272, 0.94397643, 0.05602357], rtol=1e-6)
    other = preference.christiano_nll(difference, 0.0, lapse=0.1)
    np.testing.assert_allclose(
        other, [0.69314718, -np.log(1 - 0.70795272), nll[3], nll[2]], rtol=1e-5
    )
    halves = 0.5 * (nll + other)
    np.testing.assert_allclose(
        preference.christiano_nll(difference, 0.5, lapse=0.1), halves, rtol=1e-6
    )


def test_lapses_stop_the_pull_of_confident_wrong_labels():
    def pull(difference, lapse):
        return float(jax.grad(lambda x: preference.christiano_nll(x, lapse=lapse))(difference))

    np.testing.assert_allclose(pull(-20.0, 0.0), -1.0, rtol=1e-6)
    assert abs(pull(-20.0, 0.1)) < 1e-6
    difference = jnp.array([-3.0, 0.0, 40.0, -90.0])
    np.testing.assert_allclose(
        preference.christiano_nll(difference, lapse=0.0),
        preference.bradley_terry_nll(difference),
        rtol=1e-5,
    )


def test_lapses_inside_a_ranking():
    nll = partial(preference.christiano_nll, lapse=0.1)
    value = ranking(SCORE, pair_nll=nll)
    differences = jnp.array([1.0, 1.5, 3.0, 2.0, 1.5])
    np.testing.assert_allclose(value, jnp.mean(nll(differences)), rtol=1e-6)


def test_label_smoothing_has_its_optimum_at_the_log_odds():
    gap = np.log(0.9 / 0.1)
    slope = jax.grad(lambda x: preference.smoothed_nll(x, label_smoothing=0.1))
    np.testing.assert_allclose(gap, 2.197, atol=1e-3)
    np.testing.assert_allclose(slope(gap), 0.0, atol=1e-6)
    assert float(slope(gap - 0.1)) < 0 < float(slope(gap + 0.1))


BEST_OF = jnp.array([[0.2, 1.0, -0.3, 0.1]])


def test_plackett_luce_of_a_best_response_among_ties_is_a_softmax():
    """Of a winner alone it is −log softmax(r)[best] (Ziegler et al. 2019).

    The three losers share a denominator.
    """
    nll = masking.value(preference.plackett_luce(BEST_OF, jnp.array([[2, 1, 2, 2]]), REAL))
    losers = jnp.array([0.2, -0.3, 0.1])
    shared = 3 * jax.nn.logsumexp(losers) - losers.sum()
    np.testing.assert_allclose(nll - shared, 0.7553848146038677, rtol=1e-5)


def test_plackett_luce_golden():
    pair = preference.plackett_luce(BEST_OF, jnp.array([[1, 2, 3, 4]]), REAL)
    oracle = sum(
        np.log(np.sum(np.exp(np.asarray(BEST_OF)[0, k:]))) - np.asarray(BEST_OF)[0, k]
        for k in range(4)
    )
    np.testing.assert_allclose(masking.value(pair), oracle, rtol=1e-6)
    golden = preference.plackett_luce(SCORE, jnp.array([[1, 2, 3, 4]]), REAL)
    np.testing.assert_allclose(masking.value(golden), 1.251552095710599, rtol=1e-6)


def test_plackett_luce_of_a_pair_is_bradley_terry_and_ties_share_their_denominator():
    mask = jnp.ones((1, 2), bool)
    score = jnp.array([[0.3, 1.1]])
    pair = preference.plackett_luce(score, jnp.array([[2, 1]]), mask)
    np.testing.assert_allclose(
        masking.value(pair), ranking(score, jnp.array([[2, 1]]), mask), rtol=1e-6
    )
    tied = masking.value(preference.plackett_luce(score, jnp.array([[1, 1]]), mask))
    np.testing.assert_allclose(tied, 2 * np.log(np.exp(0.3) + np.exp(1.1)) - 1.4, rtol=1e-6)


SHARED = {
    "ranking": lambda score, mask: preference.ranking_loss(
        score, jnp.tile(jnp.array([[1, 2, 2, 4]]), (3, 1)), mask, pair_norm="k_choose_2"
    ),
    "plackett_luce": lambda score, mask: preference.plackett_luce(
        score, jnp.tile(jnp.array([[1, 2, 2, 4]]), (3, 1)), mask
    ),
}


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("garbage", [1e30, np.nan])
def test_masked_responses_change_nothing_and_get_no_gradient(name, garbage):
    score = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    mask = np.arange(4)[None] < np.array([4, 2, 0])[:, None]

    def loss(x):
        return masking.value(SHARED[name](x, jnp.asarray(mask)))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(score))
    dirty = jnp.asarray(np.where(mask, score, np.float32(garbage)))
    dirty_value, dirty_gradient = jax.value_and_grad(loss)(dirty)
    np.testing.assert_array_equal(dirty_value, value)
    np.testing.assert_array_equal(dirty_gradient, gradient)
    np.testing.assert_array_equal(np.asarray(gradient)[~mask], 0.0)
    assert np.abs(np.asarray(gradient)).max() > 0


# log π and log π_ref of a chosen and a rejected response.
LOGP, REFERENCE = jnp.array([[-10.0, -12.0]]), jnp.array([[-11.0, -11.5]])


def implicit(
    logp_BC,
    ref_logp_BC=REFERENCE,
    *,
    loss="dpo",
    beta=0.1,
    label_smoothing=0.0,
    rank=(1, 2),
    mask_BC=None,
):
    rank_BC = jnp.broadcast_to(jnp.array(rank), logp_BC.shape)
    mask_BC = jnp.ones(logp_BC.shape, bool) if mask_BC is None else mask_BC
    return preference.implicit_loss(
        beta * (logp_BC - ref_logp_BC),
        rank_BC,
        mask_BC,
        loss=loss,
        beta=beta,
        label_smoothing=label_smoothing,
        pair_norm="num_valid_pairs",
    )


def test_dpo_golden():
    def loss(logp, label_smoothing):
        pair, stats = implicit(logp, label_smoothing=label_smoothing)
        return masking.value(pair), stats

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(LOGP, 0.0)
    np.testing.assert_allclose(value, 0.6209570477895321, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-0.04625701546562505, 0.04625701546562505]], rtol=1e-5)
    numbers = {name: float(masking.value(pair)) for name, pair in stats.items()}
    expected = {"chosen_reward": 0.1, "rejected_reward": -0.05, "margin": 0.15, "accuracy": 1.0}
    assert numbers == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(loss(LOGP, 0.1)[0], 0.6359570477895321, rtol=1e-6)
    swapped, _ = implicit(LOGP[:, ::-1], REFERENCE[:, ::-1], rank=(2, 1))
    np.testing.assert_allclose(masking.value(swapped), value, rtol=1e-6)


def test_ipo_golden():
    np.testing.assert_allclose(masking.value(implicit(LOGP, loss="ipo")[0]), 12.25, rtol=1e-6)
    with pytest.raises(ValueError, match="got 'ppo', expected one of 'dpo', 'ipo', 'plackett"):
        implicit(LOGP, loss="ppo")


def test_plackett_luce_of_implicit_rewards():
    """Of a pair it is DPO (Rafailov et al. 2023, appendix A.3); stats are over pairs."""
    (pair, stats), (ranked, ranked_stats) = (
        implicit(LOGP, loss=loss) for loss in ("dpo", "plackett_luce")
    )
    np.testing.assert_allclose(masking.value(ranked), masking.value(pair), rtol=1e-6)
    assert ranked_stats == stats
    four, reference = SCORE - 3.0, jnp.zeros((1, 4)) - 3.0
    ranked, _ = implicit(four, reference, loss="plackett_luce", beta=1.0, rank=(1, 2, 3, 4))
    np.testing.assert_allclose(masking.value(ranked), 1.251552095710599, rtol=1e-6)


def test_dpo_starts_at_log_two():
    pair, stats = implicit(REFERENCE)
    np.testing.assert_allclose(masking.value(pair), np.log(2), rtol=1e-7)
    assert (
        float(masking.value(stats["chosen_reward"]))
        == float(masking.value(stats["accuracy"]))
        == 0.0
    )


def test_dpo_ignores_what_is_masked():
    padded, mask = (
        jnp.concatenate([x, jnp.full((1, 1), y)], axis=1)
        for x, y in ((LOGP, jnp.nan), (LOGP == LOGP, False))
    )
    reference = jnp.concatenate([REFERENCE, jnp.zeros((1, 1))], axis=1)

    def loss(logp):
        return masking.value(implicit(logp, reference, rank=(1, 2, 0), mask_BC=mask)[0])

    value, gradient = jax.value_and_grad(loss)(padded)
    np.testing.assert_allclose(value, 0.6209570477895321, rtol=1e-6)
    np.testing.assert_allclose(
        gradient, [[-0.04625701546562505, 0.04625701546562505, 0.0]], rtol=1e-5
    )


def test_dpo_with_infinitely_many_pairs_reaches_the_regularised_optimum():
    """Labels P(i ≻ j) = σ(r_i − r_j): DPO's minimum is RL's optimum π* ∝ ρ exp(r/β)."""
    reference, reward = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.array([0.0, 1.0, 2.0])
    pairs = jnp.array([(i, j) for i in range(3) for j in range(3) if i != j])
    weights = jax.nn.sigmoid(reward[pairs[:, 0]] - reward[pairs[:, 1]])

    def loss(theta):
        logp = jax.nn.log_softmax(theta)

        def pair_loss(pair):
            return implicit(logp[pair][None], reference[pair][None], beta=0.5)[0].total

        return jnp.sum(weights * jax.vmap(pair_loss)(pairs)) / weights.sum()

    descend = jax.jit(
        lambda x: jax.lax.fori_loop(0, 3000, lambda _, y: y - 2.0 * jax.grad(loss)(y), x)
    )
    policy = jax.nn.softmax(descend(reference))
    np.testing.assert_allclose(policy, [0.03666671, 0.16255943, 0.80077385], atol=1e-3)


def test_majority_of_a_ranking_with_a_tie():
    rank, mask = (
        jnp.array([[1, 2, 2, 3, 0], [2, 1, 0, 0, 0]]),
        jnp.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], bool),
    )
    better, worse = preference.majority(rank, mask)
    np.testing.assert_array_equal(better, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    np.testing.assert_array_equal(worse, [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0]])


def test_kto_by_hand():
    reward, better, worse = (
        jnp.array([[0.7, -0.2, jnp.nan]]),
        jnp.array([[1, 0, 0]]) > 0,
        jnp.array([[0, 1, 0]]) > 0,
    )

    def loss(reward, point):
        return masking.value(
            preference.kto_loss(reward, better, worse, point, better_weight=1.5, worse_weight=1.0)
        )

    # 1.5 (1 - σ(0.7 - 0.2)) and 1 - σ(0.2 + 0.2)
    expected = (1.5 / (1 + np.exp(0.5)) + 1 / (1 + np.exp(0.4))) / 2
    value, (gradient, through_point) = jax.value_and_grad(loss, argnums=(0, 1))(
        reward, jnp.asarray(0.2)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert gradient[0, 0] < 0 < gradient[0, 1]
    assert gradient[0, 2] == through_point == 0.0
