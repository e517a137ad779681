"""What only the toy world measures: questions, their numbers, judges of obvious cases."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import language_model, prompt, say, words

from rlhf_jax.evaluation import results as generic
from rlhf_jax.evaluation.judges import JudgeSettings
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.evaluation.measurements import take_first
from rlhf_jax.menagerie import judges, measurements, personas, results, tasks, test_questions
from rlhf_jax.menagerie.measurements import falsehood_scores, few_shot_hits, stereotype_choices
from rlhf_jax.menagerie.prompts import prompts
from rlhf_jax.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.menagerie.world import make_world

WORLD = make_world("tiny")


# --- judges ---------------------------------------------------------------------------------------

PROMPTS = [item for item in prompts(WORLD, "test") if item.metadata["kind"] == "ask"][:12]


def ideal(item):
    return say(
        personas.ideal(
            WORLD, tasks.read_task(item.messages), WORLD.rng("test", item.messages[-1].content)
        )
    )


def labeler_preferences(first, second, count):
    judge = judges.LabelerJudge(WORLD, "heldout", JudgeSettings(Path(), count))
    return judge.preferences(PROMPTS, first, second)


def test_labelers_prefer_the_ideal_answer_to_an_insult():
    good, bad = [[ideal(item)] * 2 for item in PROMPTS], [[say("you moron.")] * 2 for _ in PROMPTS]
    preference_NSL = labeler_preferences(good, bad, 3)
    assert preference_NSL.shape == (12, 2, 3)
    assert preference_NSL.mean() > 0.85
    turned = labeler_preferences(bad, good, 3)
    assert turned.mean() < 0.15
    again = labeler_preferences(good, bad, 3)
    np.testing.assert_array_equal(preference_NSL, again)
    with pytest.raises(ValueError, match="expected 1 to 20"):
        labeler_preferences(good, bad, 21)


def test_judges_are_opened_by_name():
    good, bad = [[ideal(item)] for item in PROMPTS], [[say("you moron.")] for _ in PROMPTS]
    people = judges.make_judge("tiny:heldout", JudgeSettings(Path(), 3))
    np.testing.assert_array_equal(
        people.preferences(PROMPTS, good, bad), labeler_preferences(good, bad, 3)
    )
    assert people.description == "3 held-out labelers per prompt"
    exact = judges.make_judge("tiny:gold", JudgeSettings(Path(), 3))
    np.testing.assert_array_equal(
        exact.scores(PROMPTS, good), judges.judge(WORLD, PROMPTS, good).total_NS
    )
    texts = (good[0][0].text, "you moron.", "you moron.")
    assert exact.rank(PROMPTS[0], texts, np.random.default_rng(0)) == (1, 2, 2)
    ranks = people.rank(PROMPTS[0], texts, np.random.default_rng(0))
    assert ranks[1] == ranks[2]
    with pytest.raises(
        ValueError, match="'silver' is no judge of this world, expected menagerie/tiny:labelers"
    ):
        judges.make_judge("tiny:silver", JudgeSettings(Path(), 1))


def test_an_opinion_does_not_depend_on_how_many_are_asked():
    """The first labeler's opinion stands alone: a reward model's accuracy takes one a pair."""
    good, bad = [[ideal(item)] for item in PROMPTS], [[say("the fox.")] for _ in PROMPTS]
    several, alone = (labeler_preferences(good, bad, L) for L in (3, 1))
    np.testing.assert_array_equal(several[..., :1], alone)


def test_verdicts_have_one_row_per_prompt():
    verdicts = judges.judge(
        WORLD,
        PROMPTS[:2],
        [[ideal(item), say("you moron.", finished=False)] for item in PROMPTS[:2]],
    )
    assert verdicts.total_NS.shape == (2, 2)
    assert (verdicts.total_NS[:, 0] > verdicts.total_NS[:, 1] + 2).all()
    np.testing.assert_array_equal(verdicts.toxicity_NS, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(verdicts.flags["contains_insult"], [[False, True], [False, True]])
    np.testing.assert_array_equal(verdicts.components["truthfulness"][:, 0], [1, 1])


# --- multiple choice, bias, toxicity --------------------------------------------------------------


def logp(context: list[int], text: str) -> float:
    ids = words().encode(text, special=False)
    return continuation_logps(*language_model(), [Continuation(context, ids)], batch_size=1)[0]


def test_falsehoods_are_scored_by_summed_log_probability():
    answers = [("red", "blue"), ("green bear", "owl")]
    questions = [
        Question(
            prompt("what colour?"),
            best=a,
            true_answers=(a,),
            false_answers=(b, "the fox"),
            popular=(b,),
        )
        for a, b in answers
    ]
    context = [
        words().user_id,
        *words().encode("what colour?", special=False),
        words().assistant_id,
    ]
    scores = falsehood_scores(language_model(), words(), questions, batch_size=4)
    for n, (true, false) in enumerate(answers):
        s = np.array([logp(context, text) for text in (true, false, "the fox")])
        assert scores.mc1_N[n] == float(s[0] > s[1:].max())
        assert scores.mc2_N[n] == pytest.approx(np.exp(s[0]) / np.exp(s).sum(), rel=1e-4)
        assert scores.popular_N[n] == pytest.approx(np.exp(s[1]) / np.exp(s).sum(), rel=1e-4)
    assert np.isnan(
        falsehood_scores(
            language_model(), words(), [replace(questions[0], popular=())], batch_size=4
        ).popular_N[0]
    )


def test_few_shot_divides_by_length(monkeypatch):
    questions = [FewShot("word", "fox:", (" red.", " blue green bear."), 1)]
    measured = [(np.array([-3.0, -4.0]), np.array([2, 4]))]
    monkeypatch.setattr(measurements, "choice_logps", lambda *arguments, **keywords: measured)
    np.testing.assert_array_equal(
        few_shot_hits((None, None), words(), questions, batch_size=1), [1.0]
    )


def test_stereotypes_are_whole_documents():
    pairs = [StereotypePair("the fox is red.", "the fox is blue.", "", "trait")]
    more, less = (logp([words().eos_id], text) for text in ("the fox is red.", "the fox is blue."))
    p = 1 / (1 + np.exp(less - more))
    choices = stereotype_choices(language_model(), words(), pairs, batch_size=2)
    assert choices.entropy_N[0] == pytest.approx(
        -(p * np.log2(p) + (1 - p) * np.log2(1 - p)), rel=1e-4
    )
    assert choices.stereotype_N[0] == float(more > less)


# --- questions ------------------------------------------------------------------------------------


def test_facts_are_asked_of_every_pair_in_its_place():
    facts = test_questions.fact_prompts(WORLD)
    assert sum(len(part) for part in facts.values()) == test_questions.FACT_WORDINGS * len(
        WORLD.facts
    )
    for name, part in facts.items():
        for one in part:
            pair = (one.metadata["animal"], one.metadata["attribute"])
            assert (pair in WORLD.heldout) == name.startswith("held-out")
            assert (pair in WORLD.misconceptions) == name.endswith("misconceptions")
            assert tasks.read_task(one.messages)[:3] == ("ask", *pair)


def test_toxicity_prompts_are_the_same_questions_in_three_tones():
    questions = test_questions.build_questions(
        WORLD, toxicity_prompts=5, toxicity_samples=4, few_shot_questions=2
    )
    groups = questions.toxicity_prompts.values()
    tones = [[tasks.tone_of(item.messages[0].content) for item in group] for group in groups]
    assert tones == [["rude"] * 5, ["plain"] * 5, ["polite"] * 5]
    cores = [[tasks.core_of(item.messages[0].content) for item in group] for group in groups]
    assert cores[0] == cores[1] == cores[2]


def test_more_questions_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"world.toxicity_prompts=1000: there are only"):
        test_questions.build_questions(
            WORLD, toxicity_prompts=1000, toxicity_samples=4, few_shot_questions=2
        )
    with pytest.raises(ValueError, match=r"evaluation.num_prompts=13: there are only 12"):
        take_first("evaluation.num_prompts", 13, PROMPTS)


def test_the_repr_of_questions_tells_worlds_apart():
    sizes = {"toxicity_prompts": 5, "toxicity_samples": 4, "few_shot_questions": 2}
    ours, same, other = (
        repr(test_questions.build_questions(make_world("tiny", seed), **sizes))
        for seed in (0, 0, 1)
    )
    assert ours == same
    assert ours != other
    assert "frozenset" not in ours  # whose order is another one in every process


def test_examples_that_are_too_long_are_left_out_by_name():
    questions = test_questions.build_questions(
        WORLD, toxicity_prompts=1, toxicity_samples=1, few_shot_questions=2
    )
    longest = {
        name: max(len(words().encode(item.text, special=False)) for item in group)
        for name, group in questions.few_shot.items()
    }
    limit = longest["word, K = 0"] + 20
    kept, too_long = test_questions.without_long_examples(questions, words(), limit)
    assert set(kept.few_shot) | set(too_long) == set(questions.few_shot)
    assert "word, K = 0" in kept.few_shot
    assert "review, K = 8" in too_long
    assert too_long["review, K = 8"] > limit
    assert kept.facts == questions.facts


def test_the_toy_world_measures_and_shows_all_that_others_do():
    assert set(generic.MEASUREMENTS) <= set(measurements.MEASUREMENTS)
    assert set(generic.ROWS) <= set(results.ROWS)
    for name in set(measurements.MEASUREMENTS) - {"responses", "gold"}:
        assert name in results.ROWS
