"""Text of models and strangers is safe to show, and numbers have as many digits as they deserve."""

import math

import pytest

from rlhf_jax.apps import text


def test_printable_takes_control_away_and_leaves_words():
    hostile = "a\x1b[31mred\x1b[0m\x07b\x1b]0;title\x07c\x9b1md\r\ne\rf\tg"
    assert text.printable(hostile) == "aredbc1md\ne\nf\tg"
    hidden = "safe\u202egnp.exe\u2066\u200f\U000e0041\ud800"
    assert text.printable(hidden) == "safegnp.exe"
    assert text.printable("naïve 你好 👩‍👩‍👧 \x1bword") == "naïve 你好 👩‍👩‍👧 word"


def test_turns_split_at_role_markers():
    conversation = "<|user|>hi<|assistant|>yes<|eos|><|user|>a<|assistant|>"
    expected = [("user", "hi"), ("assistant", "yes"), ("user", "a")]
    assert text.split_turns(conversation) == expected
    assert text.split_turns("plain <|pad|>words") == [("", "plain words")]
    assert text.split_turns("") == []


def test_cuts_are_counted():
    assert text.shorten("abcdef", 4) == "abcd… [2 more characters]"
    assert text.shorten("abcd", 4) == "abcd"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.0, "0"),
        (1234.5, "1,234"),
        (0.012345, "0.0123"),
        (-2.5, "−2.5"),
        (1e-7, "1e−7"),
        (2.5e9, "2.5e9"),
        (100.0, "100"),
        (math.nan, "not finite"),
    ],
)
def test_numbers(number, shown):
    assert text.format_number(number) == shown
