"""Rules say what a person would: the final number, the same text, a pattern, a form, a length."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax import main
from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.rules import final_number


def prompt(**metadata):
    return Prompt((Message("user", "How much is it?"),), metadata)


def score(judge, text, **metadata):
    response = Generation(text, (), finished=True)
    return main.make_judge(judge, Path()).scores([prompt(**metadata)], [[response]])[0, 0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("She has 3 apples and 4 pears, so 7.", 7),
        ("It costs $1,234.50.", "1234.50"),
        ("48/2 = <<48/2=24>>24 clips.\n#### 72", 72),
        ("#### 1,000,000 of 3 kinds", 1_000_000),  # behind the mark the first number counts
        ("#### 5 was wrong\n#### 6", 6),
        ("The answer is -5", -5),
        ("\u22125 degrees", -5),
        ("-$5", -5),
        ("$-5", -5),
        ("10-3", 3),  # a subtraction, not minus three
        ("(2)-3", 3),
        ("x=-3", -3),
        ("1,2,3", 3),  # a list
        ("12,3456", 3456),
        ("42.0", 42),
        (".5", "0.5"),
        ("COVID-19", 19),
        ("9" * 5000, Decimal("9" * 5000)),
        ("none", None),
        ("####", None),
    ],
)
def test_the_final_number(text, number):
    assert final_number(text) == (None if number is None else Decimal(number))


def test_answers_are_compared_with_the_prompts_metadata():
    solution = "Natalia sold 48/2 = 24 clips.\n#### 1,072"
    assert score("answer:number", "so she sold $1072 in all.", answer=solution) == 1
    assert score("answer:number", "so she sold 1073.", answer=solution) == 0
    assert score("answer:number", "I do not know", answer=solution) == 0
    assert score("answer:text", " The  Red\nfox", answer="the red fox ") == 1
    assert score("answer:text", "the red fox.", answer="the red fox") == 0


def test_patterns_forms_and_lengths():
    assert score("regex:\\bfox(es)?\\b", "two foxes ran") == 1
    assert score("regex:^fox", "the fox") == 0
    assert score("format:think_answer", "<think>a\nb</think>\n<answer>4</answer>\n") == 1
    assert score("format:think_answer", "<think>a</think> 4") == 0
    assert score("format:think", "<think>a</think> 4") == 1
    assert score("format:think", "<think>a</think> ") == 0
    assert score("format:\\d+ apples", "12 apples") == 1
    assert score("format:\\d+ apples", "12 apples or so") == 0
    assert [score("length:4", text) for text in ("a b c d", "a b", "", "a " * 8)] == [
        0,
        -0.5,
        -1,
        -1,
    ]


def test_many_responses_to_many_prompts():
    judge = main.make_judge("answer:number", Path())
    samples = [
        [Generation(text, (), finished=True) for text in row] for row in (("1", "2"), ("2", "2"))
    ]
    score_NS = judge.scores([prompt(answer="1"), prompt(answer="2")], samples)
    assert score_NS.tolist() == [[1, 0], [1, 1]]
    ranks = judge.rank(prompt(answer="7"), ["6", "7", "8"], np.random.default_rng(0))
    assert ranks == (2, 1, 2)
    assert judge.name == "answer_number"


@pytest.mark.parametrize(
    ("judge", "metadata", "message"),
    [
        ("answer:number", {}, r"prompt 'How much is it\?': its metadata is empty, expected the fi"),
        (
            "answer:text",
            {"gold": "4"},
            r"judge answer:text: .*metadata is gold, expected the field 'a",
        ),
        ("answer:number", {"answer": "four"}, "metadata.answer is 'four', which has no number"),
        ("answer:words", {}, "judge answer:words: expected answer:number or answer:text"),
        ("regex:(", {}, r"judge regex:\(: no regular expression: "),
        ("format:think_anser", {}, "expected one of think, think_answer, or a regular expression"),
        ("length:long", {}, "judge length:long: expected a number of words"),
        ("length:0", {}, "judge length:0: expected a number of words"),
    ],
)
def test_what_a_rule_cannot_judge(judge, metadata, message):
    with pytest.raises(ValueError, match=message) as error:
        score(judge, "4", **metadata)
    assert "\n" not in str(error.value)
