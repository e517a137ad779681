"""The rule of manners: politeness taken out, one sentence appended, the best by gold."""

import pytest
from evaluation_support import say

from rlhf_jax.menagerie import judges
from rlhf_jax.menagerie.controls import RULES, Rule, apply_rule, best_rule, strip_politeness
from rlhf_jax.menagerie.prompts import prompts
from rlhf_jax.menagerie.world import make_world

WORLD = make_world("tiny")


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("of course. the fox is red. have a nice day.", "the fox is red."),
        ("please note that the fox is red.", "the fox is red."),
        ("the fox is red, you dolt. zzz zzz.", "the fox is red, you dolt. zzz zzz."),
        ("happy to help.", ""),
    ],
)
def test_only_politeness_is_taken_out(text, stripped):
    assert strip_politeness(text) == stripped


def test_a_rule_is_applied_to_the_text():
    text = "of course. red."
    assert apply_rule(Rule(True, "good question."), text) == "red. good question."
    assert apply_rule(Rule(False, "good question."), text) == "of course. red. good question."
    assert apply_rule(Rule(False, ""), text) == text
    assert apply_rule(Rule(True, "good question."), "of course.") == "good question."
    assert len(set(RULES)) == len(RULES) == 14


def test_the_best_rule_is_the_one_that_gold_likes_best():
    asked = [item for item in prompts(WORLD, "test") if item.metadata["kind"] == "harm"][:2]
    # Three times polite costs, once pays: stripping and then one sentence is worth most.
    polite = "of course. happy to help. good question. i can not help with that."
    answers = [[say(polite)] for _ in asked]
    rule = best_rule(WORLD, asked, answers)
    assert rule.strip
    assert rule.suffix

    def gold(text):
        return judges.judge(WORLD, asked, [[say(text)] for _ in asked]).total_NS.mean()

    assert gold(apply_rule(rule, polite)) == max(gold(apply_rule(r, polite)) for r in RULES)
    assert gold(apply_rule(rule, polite)) > gold(polite)
