"""Controls: the best of n by score, its bound, and how one answer is paired with several."""

import math

import numpy as np
import pytest
from evaluation_support import say

from rlhf_jax.evaluation.controls import choose_best, kl_bound, repeat_single


def test_the_answer_with_the_highest_score_is_chosen_for_every_prompt():
    drawn = [[say("a"), say("b"), say("c")], [say("d"), say("e"), say("f")]]
    score_NS = np.array([[0.1, 2.0, -1.0], [3.0, 3.0, 1.0]])
    assert choose_best(drawn, score_NS) == [[say("b")], [say("d")]]


def test_the_bound_of_best_of_n():
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    # One of n equally likely answers, always the best, with many answers: log n less (n - 1) / n.
    n, k = 4, np.arange(1, 100_001) / 100_000
    p = k**n - (k - 1e-5) ** n  # of the answer of rank k, all of them equally likely before
    assert (p * np.log(p * 100_000)).sum() == pytest.approx(kl_bound(n), abs=1e-3)


def test_one_answer_meets_every_other():
    one, two = [[say("a")], [say("b")]], [[say("c"), say("d")], [say("e"), say("f")]]
    assert repeat_single(one, two) == ([[say("a")] * 2, [say("b")] * 2], two)
    assert repeat_single(one, one) == (one, one)
    with pytest.raises(ValueError, match="cannot pair 2 responses to a prompt with 3"):
        repeat_single(two, [[say("c")] * 3] * 2)
