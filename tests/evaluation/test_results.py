"""From responses to rows: judges of both kinds, units of the reference, texts side by side."""

import numpy as np
import pytest
from evaluation_support import Brevity, prompt, say

from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.judges import Judge
from rlhf_jax.evaluation.results import (
    ROWS,
    accuracy_rows,
    ask_both_ways,
    first_of_each_kind,
    judge_all,
    judge_pairs,
    side_by_side,
    standardise,
)
from rlhf_jax.evaluation.table import plain

PROMPTS = [prompt("what?", kind="ask"), prompt("where?", kind="find")]
RESPONSES = {
    "short": [[say("red"), say("red fox")], [say("blue", finished=False), say("blue")]],
    "long": [[say("the red fox"), say("the red fox")], [say("a blue owl or so"), say("owl")]],
}


class Colours(Judge):
    """Two people: the first prefers what names a colour, the second cannot tell."""

    description = "two people"

    def rank(self, prompt, responses, rng):
        raise NotImplementedError

    def preferences(self, prompts, first, second):
        def likes(sample):
            return sample.text.startswith(("red", "blue"))

        preference_NS = np.array(
            [
                [
                    0.5 + 0.5 * (likes(ours) - likes(theirs))
                    for ours, theirs in zip(*pair, strict=True)
                ]
                for pair in zip(first, second, strict=True)
            ]
        )
        return np.stack([preference_NS, np.full(preference_NS.shape, 0.5)], axis=-1)


def results(scores=None, judges=None):
    measured = {name: {"responses": {"responses": plain(R)}} for name, R in RESPONSES.items()}
    if scores is not None:
        for name in measured:
            measured[name]["reward"] = {"scores": scores[name]}
    judges = {"brevity": Brevity(), "people": Colours()} if judges is None else judges
    return judge_all(PROMPTS, "short", measured, judges, Bootstrap(100, 0))


def test_responses_come_back_as_they_were_drawn():
    assert results().responses == RESPONSES
    np.testing.assert_array_equal(results().of_responses("length")["short"], [[2, 3], [1, 2]])


def test_scores_are_measured_in_deviations_of_the_reference():
    z = results().standardised("brevity")
    assert z["short"].mean() == pytest.approx(0, abs=1e-9)
    assert z["short"].std() == pytest.approx(1)
    assert z["long"].mean() < -1
    assert results().unit == "SD of short"
    assert results().opponents == ["short"]
    assert results().others == ["long"]


def test_standardising_is_worked_by_hand():
    scores = {"reference": np.array([[1.0, 3.0], [5.0, 7.0]]), "other": np.array([[4.0 + 5**0.5]])}
    assert standardise(scores, "reference")["other"][0, 0] == pytest.approx(1)
    equal = {"reference": np.array([1.0, 1.0]), "other": np.array([3.0])}
    np.testing.assert_array_equal(standardise(equal, "reference")["other"], [2.0])


def test_people_stand_before_those_who_score():
    rows = ROWS["preferences"](results())
    assert [row.metric for row in rows] == [
        "preferred to short, people",
        "preferred to short, people, length-controlled",
        "tied with short, people",
        "preferred to short, brevity",
        "preferred to short, brevity, length-controlled",
        "tied with short, brevity",
    ]
    people, _, ties, brevity, *_ = rows
    assert (people.judge, brevity.judge) == ("people", "brevity")
    assert ties.values["long"].value == pytest.approx(4 / 8)  # the second person can never tell
    assert people.description == "two people; ties are half a win (Ouyang et al. 2022, Fig. 1)"
    assert brevity.description == "the shorter, the better; equal totals are half a win"
    # Of four pairs of answers people prefer three short ones, each with one vote of two, and tie in
    # the fourth.
    assert people.values["long"].value == pytest.approx((4 * 0.5 + 0 + 0 + 0 + 0) / 8)
    assert people.values["long"].n == 8
    assert brevity.values["long"].value == pytest.approx((0 + 0 + 0 + 1) / 4)
    assert set(people.values) == {"long"}
    assert (people.key, people.subject) == ("win_rate_labelers", "short")
    assert (brevity.key, brevity.subject) == ("win_rate_model", "short")


def test_a_judge_who_scores_has_a_mean_and_a_gain():
    mean, gain = ROWS["scores"](results())
    assert (mean.group, mean.metric, mean.unit) == ("Brevity", "brevity", "SD of short")
    assert mean.values["short"].value == pytest.approx(0, abs=1e-9)
    assert gain.metric == "brevity minus short"
    assert gain.values["long"].value == pytest.approx(mean.values["long"].value)
    assert ROWS["scores"](results(judges={"people": Colours()})) == []


def test_pairs_of_own_responses_are_judged_by_prompt():
    pairs, preferences = judge_pairs(results(), "short")
    np.testing.assert_array_equal(pairs.prompt_M, [0])  # the second prompt's two answers are equal
    np.testing.assert_array_equal(preferences["brevity"], [[1.0]])
    np.testing.assert_array_equal(preferences["people"], [[0.5, 0.5]])
    pairs, preferences = judge_pairs(results(), "long")
    np.testing.assert_array_equal(pairs.prompt_M, [1])
    np.testing.assert_array_equal(preferences["brevity"], [[0.0]])


def test_the_reward_model_is_held_against_every_judge():
    assert ROWS["reward"](results()) == []
    scores = {"short": [[1.0, 0.0], [0.0, 0.0]], "long": [[0.0, 0.0], [2.0, 1.0]]}
    rows = {row.metric: row for row in ROWS["reward"](results(scores))}
    assert list(rows) == [
        "score of the responses",
        "accuracy against brevity",
        "accuracy against people",
        "calibration error (ECE)",
        "two of people agree",
    ]
    assert rows["score of the responses"].values["long"].value == pytest.approx(0.75)
    assert rows["accuracy against brevity"].values["short"].value == 1.0
    assert rows["accuracy against brevity"].values["long"].value == 0.0
    assert np.isnan(rows["accuracy against people"].values["short"].value)
    assert "labelers' agreement" in rows["calibration error (ECE)"].description
    assert np.isnan(rows["two of people agree"].values["short"].value)  # the second cannot tell
    alone = ROWS["reward"](results(scores, {"brevity": Brevity()}))[-1]
    assert "the judge's agreement" in alone.description
    assert [row.metric for row in ROWS["reward"](results(scores, {}))] == ["score of the responses"]


def test_samples_show_scores_only_with_a_reward_model():
    first, second = side_by_side(results(), 2)
    assert first["prompt"] == "<|user|>what?"
    assert second["metadata"] == {"kind": "find"}
    short, long = (first["responses"][name] for name in ("short", "long"))
    assert short["text"] == "red"
    assert short["finished"]
    assert not second["responses"]["short"]["finished"]
    assert short["score"] is None
    assert short["brevity"] > long["brevity"]
    scores = {"short": [[1.5, 0.0], [2.5, 0.0]], "long": [[0.0, 0.0], [0.0, 0.0]]}
    samples = side_by_side(results(scores), 2)
    assert [sample["responses"]["short"]["score"] for sample in samples] == [1.5, 2.5]


def test_what_was_not_measured_has_no_rows():
    assert ROWS["corpus"](results()) == []
    (row,) = ROWS["divergence"](results())
    assert row.values == {}


def test_prompts_that_are_shown_are_the_first_of_every_kind():
    kinds = ["ask", "ask", "list", "ask", "harm", "list"]
    items = [prompt(str(n), kind=kind) for n, kind in enumerate(kinds)]
    assert first_of_each_kind(items, 4) == [0, 2, 4, 1]
    assert first_of_each_kind([prompt("a"), prompt("b"), prompt("c")], 2) == [0, 1]


def test_a_control_with_one_answer_meets_each_of_the_references():
    answers = {"responses": [[say("red")], [say("blue owl")]]}
    control = {**answers, "heading": "2 samples", "description": "best of 2", "kl_bound": 0.193}
    measured = {name: {"responses": {"responses": plain(R)}} for name, R in RESPONSES.items()}
    measured["best_of_2"] = {"responses": plain(control)}
    judges = {"brevity": Brevity(), "people": Colours()}
    found = judge_all(PROMPTS, "short", measured, judges, Bootstrap(100, 0))
    assert found.controls == {"best_of_2": {"heading": "2 samples", "description": "best of 2"}}
    assert found.successors == ["long"]
    people, _, _, brevity, *_ = ROWS["preferences"](found)
    # red ties with red and beats red fox; blue owl loses to blue twice.
    assert brevity.values["best_of_2"].value == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert people.values["best_of_2"].n == 8
    spread = np.std([-3, -7, -4, -4])
    _, gain = ROWS["scores"](found)
    assert gain.values["best_of_2"].value == pytest.approx((-5.5 + 4.5) / spread)
    (kl,) = ROWS["divergence"](found)
    assert kl.values["best_of_2"].value == 0.193
    assert kl.values["best_of_2"].low is None


class FirstSeen(Judge):
    """Prefer what is shown first, except that nothing beats an owl."""

    sees_order = True

    def rank(self, prompt, responses, rng):
        raise NotImplementedError

    def preferences(self, prompts, first, second):
        rows = [
            [[0.0 if "owl" in theirs.text else 1.0] for ours, theirs in zip(*pair, strict=True)]
            for pair in zip(first, second, strict=True)
        ]
        return np.array(rows)


def test_a_judge_who_reads_in_order_is_asked_in_both():
    pair = (RESPONSES["long"], RESPONSES["short"])
    opinions = ask_both_ways(FirstSeen(), PROMPTS, *pair)
    # Between red foxes the first wins, whichever it is; both owls of the second prompt win twice.
    np.testing.assert_array_equal(opinions.preference_NSL[..., 0], [[0.5, 0.5], [1.0, 1.0]])
    np.testing.assert_array_equal(opinions.consistent_NSL[..., 0], [[False, False], [True, True]])
    assert ask_both_ways(Colours(), PROMPTS, *pair).consistent_NSL is None
    rows = {row.metric: row for row in ROWS["preferences"](results(judges={"first": FirstSeen()}))}
    assert rows["preferred to short, first"].values["long"].value == 0.75
    assert rows["tied with short, first"].values["long"].value == 0.5
    consistent = rows["same verdict in both orders, against short, first"]
    assert consistent.values["long"].value == 0.5
    assert not [metric for metric in _titles(results()) if "both orders" in metric]


def _titles(found):
    return [row.metric for row in ROWS["preferences"](found)]


class Pair(Judge):
    """Two people who agree on the red fox alone."""

    description = "a pair"

    def rank(self, prompt, responses, rng):
        raise NotImplementedError

    def preferences(self, prompts, first, second):
        votes = [[0.0, 0.0] if prompt == PROMPTS[0] else [1.0, 0.0] for prompt in prompts]
        return np.array(votes)[:, None, :]


def test_two_people_agree_where_both_decide():
    scores = {"short": [[1.0, 0.0], [0.0, 0.0]], "long": [[0.0, 0.0], [2.0, 1.0]]}
    rows = {row.metric: row for row in ROWS["reward"](results(scores, {"two": Pair()}))}
    agreement = rows["two of two agree"].values
    assert (agreement["short"].value, agreement["long"].value) == (1.0, 0.0)
    row = rows["accuracy against two"]
    assert (row.key, row.subject, row.judge) == ("reward_accuracy", "reward model", "two")
    assert (row.values["short"].value, row.values["long"].value) == (0.0, 1.0)


def test_what_needs_no_reward_model_is_worked_by_hand():
    assert accuracy_rows(results()) == []
    scores = {"short": [[1.0, 0.0], [0.0, 0.0]], "long": [[0.0, 0.0], [1.0, 2.0]]}
    found = results(scores, {"brevity": Brevity()})
    # The longer answer is likelier in sum; a token on average it is not: -3/3 < -1/2, -8/6 < -1/2.
    logp = {"short": [[-1.0, -3.0], [0.0, 0.0]], "long": [[0.0, 0.0], [-8.0, -1.0]]}
    for name, data in found.measured.items():
        data["likelihood"] = {"logp": logp[name]}
    rows = {row.metric: row for row in accuracy_rows(found)}
    assert rows["mean log-probability against brevity"].values["short"].value == 1.0
    assert rows["log-probability against brevity, ask"].values["short"].value == 1.0
    assert rows["reward model against brevity, ask"].values["short"].value == 1.0
    assert rows["reward model against brevity, find"].values["long"].value == 1.0
    assert rows["reward model against brevity, find"].values["short"].n == 0  # equal answers
    assert rows["the shorter against brevity"].values["long"].value == 1.0
    subject = rows["the shorter against brevity, find"].subject
    assert subject == "the shorter/find"


def test_judges_of_one_key_are_told_apart_in_every_row_of_wins():
    judges = {"terse": Brevity(), "brief": Brevity()}
    rows = ROWS["preferences"](results(judges=judges))
    assert [row.judge for row in rows if row.key == "win_rate_model"] == ["terse", "brief"]
