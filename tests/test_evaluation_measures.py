"""The numbers of the evaluation: hand-worked cases, golden values and judges whose verdict is obvious."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_support import language_model, prompt, words
from rich.console import Console

from rlhf_jax.data.menagerie import personas, tasks
from rlhf_jax.data.menagerie.prompts import prompts
from rlhf_jax.data.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.data.menagerie.world import make_world
from rlhf_jax.evaluation import exam as exams
from rlhf_jax.evaluation import few_shot as few_shots
from rlhf_jax.evaluation import judges, reward_model, table, win_rate
from rlhf_jax.evaluation.cache import Cache, plain
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, clustered_mean, paired_difference, ratio, share
from rlhf_jax.evaluation.falsehoods import falsehoods
from rlhf_jax.evaluation.few_shot import few_shot
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.harmlessness import stereotypes, toxicity_measures
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.evaluation.session import judged_pairs, open_session, side_by_side
from rlhf_jax.maths import statistics

WORLD = make_world("tiny")
BOOT = Bootstrap(400, 0)


def say(text: str, finished: bool = True) -> Generation:
    return Generation(text, tuple(range(5, 5 + len(text.split()))) + ((1,) if finished else ()), finished)


# --- estimates ------------------------------------------------------------------------------------------------


def test_clusters_widen_the_interval():
    """Ten copies of an observation are one observation."""
    values = np.random.default_rng(0).normal(size=50)
    alone = clustered_mean(values, np.arange(50), BOOT)
    copied = clustered_mean(np.repeat(values, 10), np.repeat(np.arange(50), 10), BOOT)
    wrong = clustered_mean(np.repeat(values, 10), np.arange(500), BOOT)
    assert copied.value == pytest.approx(alone.value)
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low)
    assert wrong.high - wrong.low < 0.5 * (alone.high - alone.low)
    assert (alone.n, copied.n) == (50, 500)


def test_a_share_of_single_observations_is_wilsons():
    hits = np.arange(100) < 73
    assert share(hits, np.arange(100), BOOT) == pytest.approx((0.73, 0.63567883, 0.80730408, 100))


def test_a_share_without_any_hit_still_has_an_interval():
    found = share(np.zeros((20, 5)).ravel(), np.repeat(np.arange(20), 5), BOOT)
    assert found.value == 0
    assert found.low == 0
    assert found.high == pytest.approx(0.16113, abs=1e-5)  # Wilson's for 0 of 20, not 0 of 100


def test_tokens_weigh_the_loss():
    found = ratio([1.0, 30.0], [1, 10], BOOT)
    assert found.value == pytest.approx(31 / 11)
    assert found.n == 11
    assert found.low == pytest.approx(1.0)
    assert found.high == pytest.approx(3.0)


def test_tokens_weigh_the_interval_too():
    # Rarely drawn, but a row of a hundred tokens decides every resample that it is in.
    found = ratio([0.0] * 20 + [100.0], [1] * 20 + [100], BOOT)
    assert found.low == 0
    assert found.high > 0.8


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(1)
    difficulty, prompts_N = rng.normal(size=100), np.arange(100)
    a, b = difficulty + 0.1, difficulty + 0.01 * rng.normal(size=100)
    paired = paired_difference(a, b, prompts_N, BOOT)
    assert 0.09 < paired.low < paired.value < paired.high < 0.11
    unpaired = clustered_mean(a, prompts_N, BOOT)
    assert unpaired.high - unpaired.low > 0.2


# --- win rate and judges --------------------------------------------------------------------------------------


def test_ties_are_half_wins():
    preference_NSL = np.array([[[1.0, 0.5]], [[0.0, 0.5]], [[1.0, 1.0]]])
    found = win_rate.win_rate(preference_NSL, BOOT)
    assert found.value == pytest.approx(4 / 6)
    assert found.n == 6
    np.testing.assert_array_equal(win_rate.flatten(preference_NSL)[1], [0, 0, 1, 1, 2, 2])


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


def test_length_control_of_several_labelers_is_that_of_all_their_preferences():
    rng = np.random.default_rng(2)
    preference_NSL, length_NS = rng.integers(0, 3, (9, 2, 4)) / 2, rng.normal(size=(9, 2))
    flat = statistics.length_controlled_win_rate(preference_NSL.ravel(), np.repeat(length_NS.ravel(), 4))
    assert win_rate.length_controlled(preference_NSL, length_NS).value == pytest.approx(flat, abs=1e-6)


def test_length_control_of_few_prompts_has_no_interval():
    found = win_rate.length_controlled(np.ones((3, 1, 1)) * 0.5, np.zeros((3, 1)))
    assert found == (pytest.approx(0.5), None, None, 3)


def test_gold_prefers_the_better_and_ties_what_is_equal():
    np.testing.assert_array_equal(
        judges.gold_preferences(np.array([[1.0, 0.3, 0.1 + 0.2]]), np.array([[0.5, 0.4, 0.3]])), [[1.0, 0.0, 0.5]]
    )


def test_the_reference_has_mean_zero_and_deviation_one():
    reference = np.array([[1.0, 3.0], [5.0, 7.0]])
    z = judges.standardise(reference, reference)
    assert z.mean() == pytest.approx(0)
    assert z.std() == pytest.approx(1)
    assert judges.standardise(np.array([[4.0 + 5**0.5]]), reference)[0, 0] == pytest.approx(1)
    np.testing.assert_array_equal(judges.standardise(np.array([3.0]), np.array([1.0, 1.0])), [2.0])


ASKED = [one for one in prompts(WORLD, "test") if one.metadata["kind"] == "ask"][:12]


def ideal(one):
    return say(personas.ideal(WORLD, tasks.read_task(one.messages), WORLD.rng("test", one.messages[-1].content)))


def test_labelers_prefer_the_ideal_answer_to_an_insult():
    good, bad = [[ideal(one)] * 2 for one in ASKED], [[say("you moron.")] * 2 for _ in ASKED]
    preference_NSL = judges.labeler_preferences(WORLD, ASKED, good, bad, labelers_per_prompt=3, seed=0)
    assert preference_NSL.shape == (12, 2, 3)
    assert preference_NSL.mean() > 0.85
    turned = judges.labeler_preferences(WORLD, ASKED, bad, good, labelers_per_prompt=3, seed=0)
    assert turned.mean() < 0.15
    again = judges.labeler_preferences(WORLD, ASKED, good, bad, labelers_per_prompt=3, seed=0)
    np.testing.assert_array_equal(preference_NSL, again)
    with pytest.raises(ValueError, match="expected 1 to 20"):
        judges.labeler_preferences(WORLD, ASKED, good, bad, labelers_per_prompt=21, seed=0)


def test_verdicts_have_one_row_per_prompt():
    verdicts = judges.judge(WORLD, ASKED[:2], [[ideal(one), say("you moron.", finished=False)] for one in ASKED[:2]])
    assert verdicts.total_NS.shape == (2, 2)
    assert (verdicts.total_NS[:, 0] > verdicts.total_NS[:, 1] + 2).all()
    np.testing.assert_array_equal(verdicts.toxicity_NS, [[0, 1], [0, 1]])
    np.testing.assert_array_equal(verdicts.flags["contains_insult"], [[False, True], [False, True]])
    np.testing.assert_array_equal(verdicts.components["truthfulness"][:, 0], [1, 1])


# --- multiple choice, bias, toxicity --------------------------------------------------------------------------


def logp(context: list[int], text: str) -> float:
    ids = words().encode(text, special=False)
    return continuation_logps(*language_model(), [Continuation(context, ids)], batch_size=1)[0]


def test_falsehoods_are_scored_by_summed_log_probability():
    answers = [("red", "blue"), ("green bear", "owl")]
    asked = [
        Question(prompt("what colour?"), best=a, true_answers=(a,), false_answers=(b, "the fox"), popular=(b,))
        for a, b in answers
    ]
    context = [words().user_id, *words().encode("what colour?", special=False), words().assistant_id]
    scored = falsehoods(*language_model(), words(), asked, batch_size=4)
    for n, (true, false) in enumerate(answers):
        s = np.array([logp(context, text) for text in (true, false, "the fox")])
        assert scored.mc1_N[n] == float(s[0] > s[1:].max())
        assert scored.mc2_N[n] == pytest.approx(np.exp(s[0]) / np.exp(s).sum(), rel=1e-4)
        assert scored.popular_N[n] == pytest.approx(np.exp(s[1]) / np.exp(s).sum(), rel=1e-4)
    assert np.isnan(falsehoods(*language_model(), words(), [replace(asked[0], popular=())], batch_size=4).popular_N[0])


def test_few_shot_divides_by_length(monkeypatch):
    asked = [FewShot("word", "fox:", (" red.", " blue green bear."), 1)]
    measured = [(np.array([-3.0, -4.0]), np.array([2, 4]))]
    monkeypatch.setattr(few_shots, "choice_logps", lambda *arguments, **keywords: measured)
    np.testing.assert_array_equal(few_shot(None, None, words(), asked, batch_size=1), [1.0])


def test_stereotypes_are_whole_documents():
    pairs = [StereotypePair("the fox is red.", "the fox is blue.", "", "trait")]
    more, less = (logp([words().eos_id], text) for text in ("the fox is red.", "the fox is blue."))
    p = 1 / (1 + np.exp(less - more))
    found = stereotypes(*language_model(), words(), pairs, batch_size=2)
    assert found.entropy_N[0] == pytest.approx(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)), rel=1e-4)
    assert found.stereotype_N[0] == float(more > less)


def test_toxicity_is_that_of_the_paper():
    found = toxicity_measures(np.array([[0.1, 0.6, 0.2], [0.3, 0.4, 0.2], [0.5, 0.1, 0.0]]), BOOT)
    assert found.expected_maximum.value == pytest.approx(0.5)
    assert found.probability.value == pytest.approx(1 / 3)  # 0.5 itself is not above 0.5
    assert found.rude.value == pytest.approx(8 / 9)
    assert (found.expected_maximum.n, found.probability.n, found.rude.n) == (3, 3, 9)


# --- reward model -----------------------------------------------------------------------------------------------


def test_identical_responses_are_no_pairs():
    pairs = reward_model.different_pairs([["a", "b", "a"], ["c", "c", "c"], ["d"]])
    np.testing.assert_array_equal(pairs.prompt_M, [0, 0])
    np.testing.assert_array_equal(pairs.first_M, [0, 1])
    np.testing.assert_array_equal(pairs.second_M, [1, 2])
    assert reward_model.different_pairs([["c", "c"]]).prompt_M.shape == (0,)


def test_accuracy_leaves_ties_of_the_judge_out_and_halves_those_of_the_model():
    difference_M = np.array([2.0, -1.0, 0.0, 5.0, 3.0])
    preference_M = np.array([1.0, 1.0, 0.0, 0.5, 0.0])
    found = reward_model.accuracy(difference_M, preference_M, np.arange(5), BOOT)
    assert found.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found.n == 4
    nothing = reward_model.accuracy(difference_M, np.full(5, 0.5), np.arange(5), BOOT)
    assert np.isnan(nothing.value)
    assert reward_model.calibration_error(difference_M, np.full(5, 0.5)).n == 0


def test_a_calibrated_model_has_a_small_error():
    rng = np.random.default_rng(0)
    difference_M = rng.normal(0, 2, 20_000)
    preference_M = (rng.random(20_000) < 1 / (1 + np.exp(-difference_M))).astype(float)
    assert reward_model.calibration_error(difference_M, preference_M).value < 0.02
    assert reward_model.calibration_error(4 * difference_M, preference_M).value > 0.1


# --- session ----------------------------------------------------------------------------------------------------


def session(scores=None):
    """Two checkpoints on two prompts: one that answers well, one that insults."""
    asked = ASKED[:2]
    drawn = {
        "good": [[ideal(one), say("of course.")] for one in asked],
        "rude": [[say("you moron."), say("you moron.")] for _ in asked],
    }
    measured = {name: {"responses": plain(few)} for name, few in drawn.items()}
    if scores is not None:
        measured["good"]["reward"] = {"scores": scores}
        measured["rude"]["reward"] = {"scores": [[0.0, 0.0]] * 2}
    measured = {name: {**groups, "responses": {"responses": groups["responses"]}} for name, groups in measured.items()}
    return open_session(WORLD, asked, "good", measured, labelers_per_prompt=1, bootstrap=BOOT, seed=0)


def test_pairs_are_judged_by_prompt():
    opened = session()
    pairs, gold_M, people_M = judged_pairs(opened, "good")
    np.testing.assert_array_equal(pairs.prompt_M, [0, 1])
    np.testing.assert_array_equal(gold_M, [1.0, 1.0])
    assert people_M.shape == (2,)
    none, _, _ = judged_pairs(opened, "rude")
    assert none.prompt_M.size == 0


def test_gold_is_measured_in_deviations_of_the_reference():
    opened = session()
    assert opened.standardised("good").mean() == pytest.approx(0, abs=1e-9)
    assert opened.standardised("good").std() == pytest.approx(1)
    assert opened.standardised("rude").max() < -0.5
    assert opened.opponents == ["good"]
    assert opened.others == ["rude"]


def test_samples_show_scores_only_with_a_reward_model():
    first = side_by_side(session(), 1)[0]
    assert first["responses"]["rude"]["text"] == "you moron."
    assert first["responses"]["rude"]["score"] is None
    assert first["responses"]["rude"]["gold"] < first["responses"]["good"]["gold"]
    scored = side_by_side(session([[1.5, 0.0], [2.5, 0.0]]), 2)
    assert [one["responses"]["good"]["score"] for one in scored] == [1.5, 2.5]
    assert scored[0]["metadata"]["kind"] == "ask"


# --- exam -------------------------------------------------------------------------------------------------------


def test_facts_are_asked_of_every_pair_in_its_place():
    facts = exams.fact_prompts(WORLD)
    assert sum(len(part) for part in facts.values()) == exams.FACT_WORDINGS * len(WORLD.facts)
    for name, part in facts.items():
        for one in part:
            pair = (one.metadata["animal"], one.metadata["attribute"])
            assert (pair in WORLD.heldout) == name.startswith("held-out")
            assert (pair in WORLD.misconceptions) == name.endswith("misconceptions")
            assert tasks.read_task(one.messages)[:3] == ("ask", *pair)


def test_provocations_are_the_same_questions_in_three_tones():
    made = exams.build_exam(
        WORLD, ASKED, [], num_prompts=3, corpus_documents=0, toxicity_prompts=5, few_shot_questions=2, mask_documents=False
    )
    tones = [[tasks.tone_of(one.messages[0].content) for one in part] for part in made.provocations.values()]
    assert tones == [["rude"] * 5, ["plain"] * 5, ["polite"] * 5]
    cores = [[tasks.core_of(one.messages[0].content) for one in part] for part in made.provocations.values()]
    assert cores[0] == cores[1] == cores[2]
    with pytest.raises(ValueError, match=r"evaluation.num_prompts=13: there are only 12"):
        exams.take("evaluation.num_prompts", 13, ASKED)


# --- table and cache --------------------------------------------------------------------------------------------

ROWS = [
    table.Row("Gold", "gold", "SD", "higher", "sum", {"sft": Estimate(-1e-9, -0.1, 0.1, 9), "ppo": Estimate(0.5, 0.4, 0.6, 9)}),
    table.Row("Price", "loss", "", "lower", "", {"sft": Estimate(1.0, 0.9, 1.1, 9), "ppo": Estimate(1.5, 1.4, 1.6, 9)}),
    table.Row("Price", "KL", "", "none", "", {"ppo": Estimate(float("nan"), None, None, 0)}),
]  # fmt: skip


def test_rows_come_back_from_json():
    for row in [*ROWS[:2], ROWS[0]._replace(key="win_rate_gold", subject="sft")]:
        assert table.row_from_json(json.loads(json.dumps(table.row_to_json(row)))) == row


def printed(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    table.print_table(ROWS, {"sft": "sft 10", "ppo": "ppo 20"}, "sft", console)
    return console.file.getvalue()


def test_the_printed_table_marks_what_is_clearly_better_and_worse():
    lines = printed(100).splitlines()
    gold, loss, kl = (next(line for line in lines if f"  {row.metric}" in line) for row in ROWS)
    green, red = "\x1b[32m", "\x1b[31m"
    assert f"{green}0.500" in gold
    assert " 0.000" in gold  # not -0.000
    assert "±0.100" in gold
    assert f"{red}1.500" in loss
    assert green not in loss
    assert kl.count("–") == 2
    assert "±0.100" in printed(20)  # never cut


def test_numbers_that_are_not_finite_do_not_reach_the_file(tmp_path):
    assert table.row_to_json(ROWS[2])["values"] == {}
    assert table.row_to_json(ROWS[0])["values"]["ppo"] == {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    with pytest.raises(ValueError, match="not JSON compliant"):
        table.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_the_cache_measures_once_per_key(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"x": np.array([0.1, 1 / 3]), "y": [say("a")]}

    cache = Cache(tmp_path / "partial")
    first, found = cache.get("sft", "facts", {"seed": 0}, measure)
    assert not found
    again, found = cache.get("sft", "facts", {"seed": 0}, measure)
    assert found
    assert first == again == {"x": [0.1, 1 / 3], "y": [["a", [5, 1], True]]}
    cache.get("sft", "facts", {"seed": 1}, measure)
    assert len(calls) == 2
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["sft-facts.json"]
    assert json.loads((tmp_path / "partial" / "sft-facts.json").read_text())["data"] == first
