"""Judges rank and prefer as worked out by hand, and refuse what cannot be."""

import json

import numpy as np
import pytest

from rlhf_jax import main
from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Comparison, Message, Prompt, to_dict
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.judges import (
    FileJudge,
    FunctionJudge,
    JudgeSettings,
    RewardModelJudge,
    ScoreJudge,
)
from rlhf_jax.inference.scoring import last_token_scores
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.prompts import prompts as menagerie_prompts
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models.config import from_dict
from rlhf_jax.models.heads import ScalarModel
from rlhf_jax.training.pretrained import load_model, read_tokenizer

WORLD = make_world("tiny")
QUESTION = Prompt((Message("user", "What does the cow eat?"),))
OTHER = Prompt((Message("user", "And the fox?"),), {"kind": "followup"})


def finished(*texts):
    return [[Generation(text, (), finished=True) for text in texts]]


class Length(ScoreJudge):
    name = "length"

    def scores(self, prompts, responses):
        return np.array([[len(r.text) for r in samples] for samples in responses], np.float64)


class Fixed(ScoreJudge):
    name = "fixed"

    def __init__(self, score_of):
        self.score_of = score_of

    def scores(self, prompts, responses):
        return np.array([[self.score_of[r.text] for r in samples] for samples in responses])


# --- scores ---------------------------------------------------------------------------------------


def test_ranks_count_the_better_ones_and_equal_scores_tie():
    judge = Fixed({"a": 1.0, "b": 3.0, "c": 3.0 + 1e-9, "d": -2.0})
    assert judge.rank(QUESTION, ["a", "b", "c", "d"], np.random.default_rng(0)) == (3, 1, 1, 4)


def test_all_ranks_are_those_of_every_prompt():
    prompts, responses = (
        [QUESTION, OTHER, QUESTION],
        [["a", "bbb"], ["cc", "c", "cccc"], ["d", "e"]],
    )
    rngs = [np.random.default_rng(n) for n in range(3)]
    judge = Length()
    assert judge.rank_all(prompts, responses, rngs) == [(2, 1), (2, 3, 1), (1, 1)]
    assert judge.rank_all(prompts, responses, rngs) == [
        judge.rank(prompt, texts, rng)
        for prompt, texts, rng in zip(prompts, responses, rngs, strict=True)
    ]


def test_preferences_are_signs_of_differences():
    first, second = finished("aa", "b", "c"), finished("a", "bb", "d")
    preference_NSL = Length().preferences([QUESTION], first, second)
    assert preference_NSL.tolist() == [[[1.0], [0.0], [0.5]]]


def test_a_score_judge_measures_its_score():
    assert Length().measure([QUESTION], finished("aa"))["score"].tolist() == [[2.0]]


# --- the embedded world ---------------------------------------------------------------------------


def test_gold_and_labelers_are_those_of_the_world(tmp_path):
    prompt = menagerie_prompts(WORLD, "validation")[0]
    texts = ["I do not know.", "Yes.", "No."]
    judge = main.make_judge("menagerie/tiny:gold", tmp_path)
    totals = [gold.judge(WORLD, prompt.messages, text, True).total for text in texts]
    assert judge.scores([prompt], finished(*texts)).tolist() == [totals]
    verdicts = judge.measure([prompt], [[Generation("You idiot", (), finished=False)]])
    assert set(verdicts) == {"total", "truthfulness", "rude"}
    for name, group in (("labelers", "train"), ("heldout", "heldout")):
        judge = main.make_judge(f"menagerie/tiny:{name}", tmp_path)
        assert (judge.name, isinstance(judge, ScoreJudge)) == (name, False)
        rng = np.random.default_rng(5)
        people = labelers.labelers(WORLD, group)
        person = people[int(rng.integers(len(people)))]
        ranks, _, _ = labelers.rank(WORLD, person, prompt.messages, texts, [True] * 3, rng)
        assert judge.rank(prompt, texts, np.random.default_rng(5)) == tuple(ranks)
        (opinions,) = judge.preferences([prompt], finished(*texts), finished(*texts[::-1]))
        assert opinions.shape == (3, 1)
        assert opinions[1] == 0.5  # a text against itself


# --- a reward model -------------------------------------------------------------------------------


def test_a_reward_model_reads_the_end_of_the_turn(tour):
    judge = main.make_judge("reward:../reward", tour.workdir / "label")
    assert judge.name == "reward"
    params, meta = load_model(tour.workdir / "reward")
    model, tokenizer = ScalarModel(from_dict(meta.model)), read_tokenizer(tour.workdir / "reward")
    (rendered,) = render_batch(tokenizer, [QUESTION.messages], generation_prompt=True)
    responses = [[Generation("It eats grass.", (), True), Generation("It eats", (), False)]]
    expected = []
    for response, end in zip(responses[0], ([tokenizer.turn_end_id], []), strict=True):
        (ids,) = tokenizer.encode_batch([response.text], special=False)
        tokens = np.array([[*rendered.ids, *ids, *end]], np.int32)
        expected.append(float(last_token_scores(model, params, tokens, np.ones_like(tokens))[0]))
    score_NS = judge.scores([QUESTION], responses)
    np.testing.assert_allclose(score_NS, [expected], atol=1e-5)


def test_a_response_beyond_the_context_is_refused(tour):
    judge = RewardModelJudge("../reward", JudgeSettings(tour.workdir / "label"))
    with pytest.raises(ValueError, match=r"judge reward:\.\./reward: text 0 has .* context is 128"):
        judge.scores([QUESTION], finished("so " * 200))


def test_a_reward_model_that_is_none(tour, tmp_path):
    with pytest.raises(
        ValueError, match=r"judge reward:\.\./sft: .* is a language_model \(stage sft"
    ):
        main.make_judge("reward:../sft", tour.workdir / "label")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*absent"):
        main.make_judge("reward:../absent", tmp_path / "label")


# --- a function -----------------------------------------------------------------------------------


@pytest.fixture
def rewards(tmp_path):
    (tmp_path / "rewards.py").write_text(
        "LIMIT = 3\n"
        "def words(prompts, responses, metadata):\n"
        "    user = {'role': 'user', 'content': 'What does the cow eat?'}\n"
        "    assert [prompt[-1] for prompt in prompts] == [user] * len(responses)\n"
        "    assert metadata == [{}] * len(responses)\n"
        "    return [len(response.split()) for response in responses]\n"
        "def nan(prompts, responses, metadata):\n    return [1.0, float('nan')]\n"
        "def text(prompts, responses, metadata):\n    return [1.0, 'good']\n"
        "def digits(prompts, responses, metadata):\n    return [1.0, '2']\n"
        "def number(prompts, responses, metadata):\n    return 3\n"
        "def short(prompts, responses, metadata):\n    return [1.0]\n"
        "def string(prompts, responses, metadata):\n    return 'ab'\n"
        "def fails(prompts, responses, metadata):\n"
        "    return [{'a': 1.0}[text] for text in responses]\n"
        "def together(prompts, responses, metadata):\n"
        "    if len(responses) > 1:\n        raise RuntimeError('no\\nbatches')\n"
        "    return [1.0]\n"
    )
    return tmp_path / "rewards.py"


def test_a_function_of_a_file(rewards):
    for location in (f"function:{rewards}:words", "function:../rewards.py:words"):
        judge = main.make_judge(location, rewards.parent / "label")
        assert judge.name == "words"
        assert judge.rank(QUESTION, ["a b", "c", "d e f"], np.random.default_rng(0)) == (2, 3, 1)


def test_a_function_of_a_module(tmp_path):
    judge = FunctionJudge("operator:contains", JudgeSettings(tmp_path))
    assert judge.name == "contains"
    with pytest.raises(ValueError, match=r"cannot import no\.such: No module named 'no'"):
        FunctionJudge("no.such:name", JudgeSettings(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"prompt 1 \('And the fox\?'\), response 'b': returned nan, expected a finite"),
        ("text", r"prompt 1 .*: returned 'good', expected a finite number"),
        ("digits", r"prompt 1 .*: returned '2', expected a finite number"),
        ("number", r"returned 3 for 2 responses, expected a list of as many numbers"),
        ("short", r"returned \[1\.0\] for 2 responses, expected a list of as many numbers"),
        ("string", r"returned 'ab' for 2 responses, expected a list of as many numbers"),
        ("fails", r"prompt 1 \('And the fox\?'\), response 'b': KeyError: 'b'"),
        ("together", r"prompt 0 .*, response 'a': RuntimeError: no batches"),
    ],
)
def test_what_a_function_may_not_return(rewards, name, message):
    judge = FunctionJudge(f"{rewards}:{name}", JudgeSettings(rewards))
    with pytest.raises(ValueError, match=message) as error:
        judge.scores([QUESTION, OTHER], [*finished("a"), *finished("b")])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("location", "error", "message"),
    [
        ("{}/absent.py:words", FileNotFoundError, "no file .*absent.py"),
        ("{}/rewards.py:word", ValueError, "has no 'word'; expected a function"),
        ("{}/rewards.py:LIMIT", ValueError, "has 'LIMIT', which is no function"),
        ("{}/broken.py:words", ValueError, "broken.py fails: SyntaxError"),
        ("words", ValueError, r"expected function:FILE\.py:NAME or function:package\.module:NAME"),
    ],
)
def test_functions_that_are_not_there(rewards, location, error, message):
    (rewards.parent / "broken.py").write_text("def words(:\n")
    place = location.format(rewards.parent)
    with pytest.raises(error, match=f"judge function:.*{message}") as raised:
        main.make_judge(f"function:{place}", rewards.parent)
    assert "\n" not in str(raised.value)


# --- a file ---------------------------------------------------------------------------------------


@pytest.fixture
def rankings(tmp_path):
    comparisons = [
        Comparison(QUESTION.messages, ("a", "b", "c"), (4, 2, 4)),
        Comparison(QUESTION.messages, ("a", "d"), (2, 1)),
    ]
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(to_dict(one)) + "\n" for one in comparisons))
    return path


def test_a_file_ranks_what_one_line_ranks(rankings):
    judge = main.make_judge("file:../rankings.jsonl", rankings.parent / "label")
    assert (judge.name, type(judge)) == ("rankings", FileJudge)
    rng = np.random.default_rng(0)
    assert judge.rank(QUESTION, ["c", "b", "a"], rng) == (2, 1, 2)
    assert judge.rank(QUESTION, ["b", "c"], rng) == (1, 2)
    assert judge.rank(QUESTION, ["d", "a"], rng) == (1, 2)
    assert judge.rank(QUESTION, ["a", "b", "d"], rng) is None  # never ranked together
    assert judge.rank(QUESTION, ["a", "e"], rng) is None
    assert judge.rank(OTHER, ["a", "b"], rng) is None
    assert judge.rank_all([QUESTION, OTHER], [["b", "a"], ["b", "a"]], [rng, rng]) == [(1, 2), None]


def test_a_file_prefers_as_it_ranks(rankings):
    judge = FileJudge(str(rankings), JudgeSettings(rankings.parent))
    first, second = finished("b", "a", "a"), finished("a", "d", "c")
    assert judge.preferences([QUESTION], first, second).tolist() == [[[1.0], [0.0], [0.5]]]
    with pytest.raises(
        ValueError, match=r"judge file:.*no line ranks both 'b' and 'd' after 'What"
    ):
        judge.preferences([QUESTION], finished("b"), finished("d"))


def test_a_line_that_is_no_comparison_is_named(rankings):
    rankings.write_text(rankings.read_text() + '{"messages": []}\n')
    with pytest.raises(ValueError, match=r"rankings\.jsonl:3: "):
        main.make_judge(f"file:{rankings}", rankings.parent)
    with pytest.raises(FileNotFoundError, match=r"absent\.jsonl"):
        main.make_judge("file:absent.jsonl", rankings.parent)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rewrad:../reward", "gold", "", "menagerie", "reward:"])
def test_an_unknown_kind_names_those_that_there_are(name, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"judge '.*': no such kind of judge, expected one of menagerie/SIZE:NAME, reward:",
    ):
        main.make_judge(name, tmp_path)


def test_an_unknown_judge_of_the_world(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"judge menagerie/tiny:goldd: 'goldd' .*, expected .*menagerie/tiny:heldout, menag",
    ):
        main.make_judge("menagerie/tiny:goldd", tmp_path)
    with pytest.raises(ValueError, match="unknown Menagerie size 'huge'"):
        main.make_judge("menagerie/huge:gold", tmp_path)
