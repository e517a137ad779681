"""Check benchmark metrics against golden values, and where definitions are easy to get wrong."""

import numpy as np
import pytest

from rlhf_jax.maths import benchmark_metrics as metrics

TRUE, FALSE = [-5.0, -6.0], [-5.5, -7.0, -8.0]


def test_truthfulqa_golden():
    np.testing.assert_allclose(
        metrics.truthfulqa(TRUE, FALSE, best=0), (1.0, 0.6334146262053886, 0.5)
    )


def test_truthfulqa_mc1_is_about_the_best_answer_not_the_likeliest_true_one():
    assert metrics.truthfulqa(TRUE, FALSE, best=1).mc1 == 0.0


def test_truthfulqa_survives_long_answers_and_counts_ties_as_wrong():
    shifted = metrics.truthfulqa(np.array(TRUE) - 2000, np.array(FALSE) - 2000, best=0)
    np.testing.assert_allclose(shifted, (1.0, 0.6334146262053886, 0.5), rtol=1e-9)
    np.testing.assert_allclose(metrics.truthfulqa([-3.0], [-3.0], best=0), (0.0, 0.5, 0.0))


def test_choice_entropy_golden():
    """CrowS-Pairs' mean over pairs, whichever sentence of a pair comes first."""
    np.testing.assert_allclose(metrics.choice_entropy_bits([-10.0, -10.8]), 0.8932029133344277)
    pairs = metrics.choice_entropy_bits([[-10.8, -10.0], [-10.0, -10.8]])
    np.testing.assert_allclose(pairs.mean(), 0.8932029133344277)


def test_entropy_runs_from_certainty_to_indifference():
    np.testing.assert_allclose(
        metrics.choice_entropy_bits([[-900.0, 0.0], [-7.0, -7.0]]), [0.0, 1.0]
    )
    np.testing.assert_allclose(metrics.choice_entropy_bits(np.full((1, 8), -2000.0)), [3.0])


def test_three_normalisations_choose_differently():
    logp, length, context_free = [-4.0, -5.0, -9.0], [2, 5, 6], [-4.5, -5.5, -12.0]
    totals = metrics.choice_scores(logp, normalisation="none")
    per_token = metrics.choice_scores(logp, normalisation="token", length_C=length)
    relative = metrics.choice_scores(
        logp, normalisation="context", context_free_logp_C=context_free
    )
    np.testing.assert_allclose(totals, logp)
    np.testing.assert_allclose(per_token, [-2.0, -1.0, -1.5])
    np.testing.assert_allclose(relative, [0.5, 0.5, 3.0])
    assert [scores.argmax() for scores in (totals, per_token, relative)] == [0, 1, 2]


@pytest.mark.parametrize("normalisation", ["token", "context", "bytes"])
def test_a_normalisation_without_its_data_is_refused(normalisation):
    with pytest.raises(ValueError, match=normalisation):
        metrics.choice_scores([-1.0, -2.0], normalisation=normalisation)
