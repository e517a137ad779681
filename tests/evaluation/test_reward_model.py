"""Agreement of a reward model with judges: pairs, ties, calibration."""

import numpy as np
import pytest

from rlhf_jax.evaluation import reward_model
from rlhf_jax.evaluation.estimates import Bootstrap

BOOT = Bootstrap(400, 0)


def test_identical_responses_are_no_pairs():
    pairs = reward_model.different_pairs([["a", "b", "a"], ["c", "c", "c"], ["d"]])
    np.testing.assert_array_equal(pairs.prompt_M, [0, 0])
    np.testing.assert_array_equal(pairs.first_M, [0, 1])
    np.testing.assert_array_equal(pairs.second_M, [1, 2])
    assert reward_model.different_pairs([["c", "c"]]).prompt_M.shape == (0,)


def test_accuracy_leaves_ties_of_the_judge_out_and_halves_those_of_the_model():
    difference_M = np.array([2.0, -1.0, 0.0, 5.0, 3.0])
    preference_M = np.array([1.0, 1.0, 0.0, 0.5, 0.0])
    accuracy = reward_model.accuracy(difference_M, preference_M, np.arange(5), BOOT)
    assert accuracy.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert accuracy.n == 4
    undecided = reward_model.accuracy(difference_M, np.full(5, 0.5), np.arange(5), BOOT)
    assert np.isnan(undecided.value)
    assert reward_model.calibration_error(difference_M, np.full(5, 0.5)).n == 0


def test_a_calibrated_model_has_a_small_error():
    rng = np.random.default_rng(0)
    difference_M = rng.normal(0, 2, 20_000)
    preference_M = (rng.random(20_000) < 1 / (1 + np.exp(-difference_M))).astype(float)
    assert reward_model.calibration_error(difference_M, preference_M).value < 0.02
    assert reward_model.calibration_error(4 * difference_M, preference_M).value > 0.1


def test_few_prompts_that_all_agree_are_no_certainty():
    """Three hits of three: Wilson's interval reaches down to 0.44, a resampled one has no width."""
    measured = reward_model.accuracy(
        np.ones(6), np.ones(6), np.repeat(np.arange(3), 2), Bootstrap(50, 0)
    )
    assert measured.value == 1.0
    assert measured.low == pytest.approx(0.4385, abs=1e-4)
