"""Win rates: ties, several labelers, and answers of unequal length."""

import numpy as np
import pytest

from rlhf_jax.evaluation import win_rate
from rlhf_jax.evaluation.estimates import Bootstrap, by_prompt
from rlhf_jax.maths import statistics

BOOT = Bootstrap(400, 0)


def test_ties_are_half_wins():
    preference_NSL = np.array([[[1.0, 0.5]], [[0.0, 0.5]], [[1.0, 1.0]]])
    rate = win_rate.win_rate(preference_NSL, BOOT)
    assert rate.value == pytest.approx(4 / 6)
    assert rate.n == 6
    np.testing.assert_array_equal(by_prompt(preference_NSL)[1], [0, 0, 1, 1, 2, 2])


def test_length_control_sees_through_a_judge_of_length():
    rng = np.random.default_rng(0)
    length_NS = rng.normal(2.0, 4.0, (400, 1))
    likes_length = (length_NS + rng.logistic(size=(400, 1)) > 0).astype(float)[..., None]
    assert win_rate.win_rate(likes_length, BOOT).value > 0.6
    fair = win_rate.length_controlled(likes_length, length_NS)
    assert fair.low < 0.5 < fair.high
    assert fair.high - fair.low < 0.3
    likes_us = (rng.random((400, 1, 1)) < 0.8).astype(float)
    assert win_rate.length_controlled(likes_us, length_NS).low > 0.7


def test_length_control_is_worked_by_hand():
    """Answers are as much longer as shorter, so two unknowns fit both rates exactly.

    4 of 5 longer answers win and 1 of 2 shorter ones: θ = (logit 4/5 + logit 1/2) / 2 = log 2, of
    which σ is 2/3. With 2 of 3 and 1 of 9 it is (log 2 - log 8) / 2 = -log 2: 1/3.
    """
    longer_NS = np.repeat([[7.0], [-7.0]], 90, axis=0)
    for wins, expected in (((72, 45), 2 / 3), ((60, 10), 1 / 3)):
        won = np.concatenate([np.arange(90) < count for count in wins]).astype(float)
        rate = win_rate.length_controlled(won[:, None, None], longer_NS)
        assert rate.value == pytest.approx(expected, abs=1e-4)
        assert rate.low < expected < rate.high


def test_length_control_of_several_labelers_is_that_of_all_their_preferences():
    rng = np.random.default_rng(2)
    preference_NSL, length_NS = rng.integers(0, 3, (9, 2, 4)) / 2, rng.normal(size=(9, 2))
    flat = statistics.length_controlled_win_rate(
        preference_NSL.ravel(), np.repeat(length_NS.ravel(), 4)
    )
    assert win_rate.length_controlled(preference_NSL, length_NS).value == pytest.approx(
        flat, abs=1e-6
    )


def test_length_control_of_few_prompts_has_no_interval():
    rate = win_rate.length_controlled(np.ones((3, 1, 1)) * 0.5, np.zeros((3, 1)))
    assert rate == (pytest.approx(0.5), None, None, 3)


def test_a_score_prefers_the_better_and_ties_what_is_equal():
    np.testing.assert_array_equal(
        win_rate.score_preferences(np.array([[1.0, 0.3, 0.1 + 0.2]]), np.array([[0.5, 0.4, 0.3]])),
        [[1.0, 0.0, 0.5]],
    )
