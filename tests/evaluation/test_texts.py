"""Counts that depend on nobody's tokenizer, worked by hand."""

import math

import numpy as np
import pytest
from evaluation_support import prompt

from rlhf_jax.evaluation.texts import count_bytes, count_words, distinct, prompts_by_kind


def test_bytes_and_words():
    assert (count_bytes("a é"), count_words("a  é\n b")) == (4, 3)
    assert count_words("") == 0


def test_distinct_n_counts_different_n_grams():
    texts = ["the red fox", "the red owl", ""]
    assert distinct(texts, 1) == pytest.approx(4 / 6)
    assert distinct(texts, 2) == pytest.approx(3 / 4)  # the red, red fox, the red, red owl
    assert distinct(texts, 3) == 1.0
    assert math.isnan(distinct(["one", ""], 2))


def test_kinds_come_in_order_and_only_where_there_are_several():
    prompts = [prompt("a", kind="x"), prompt("b"), prompt("c", kind="y"), prompt("d", kind="y")]
    kinds = prompts_by_kind(prompts, 9)
    assert list(kinds) == ["x", "y"]
    np.testing.assert_array_equal(kinds["y"], [False, False, True, True])
    assert prompts_by_kind(prompts[:2], 9) == {}
    assert prompts_by_kind([prompt("a"), prompt("b")], 9) == {}
    more = [*prompts, prompt("e", kind="z"), prompt("f", kind="z"), prompt("g", kind="z")]
    assert list(prompts_by_kind(more, 2)) == ["y", "z"]
