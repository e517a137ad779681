"""Monitors give the same numbers every time, under the judge's name, and none if not asked."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from run_files import beside, rows, same_bits

from rlhf_jax import main
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.evaluation.judges import JudgeSettings, ScoreJudge
from rlhf_jax.evaluation.monitor import make_monitors
from rlhf_jax.menagerie.judges import make_judge
from rlhf_jax.models import LanguageModel, from_dict
from rlhf_jax.training.checkpoints import load_params
from rlhf_jax.training.loop import headlines
from rlhf_jax.training.run import MonitorConfig

CONFIG = MonitorConfig(
    judge="menagerie/tiny:gold",
    prompts="tfds:menagerie_prompts/tiny",
    num_prompts=6,
    every=3,
    prompt_length=64,
    response_length=6,
    batch_size=4,
)


class Brevity(ScoreJudge):
    name = "brevity"

    def scores(self, prompts, responses):
        return np.array(
            [[-len(response.text) for response in samples] for samples in responses], np.float64
        )


def find_judge(name):
    return make_judge(name.removeprefix("menagerie/"), JudgeSettings(Path()))


@pytest.fixture(scope="module")
def policy(tour):
    params, meta = load_params(tour.workdir / "sft")
    tokenizer = load_tokenizer(tour.workdir / "sft" / "tokenizer")
    return LanguageModel(from_dict(meta.model)), params, tokenizer


@pytest.fixture
def data_dir(tour):
    return tour.plans["sft"]["data"]["data_dir"]


def test_gold_gives_its_five_numbers_and_the_same_every_time(policy, data_dir):
    (monitor,) = make_monitors(CONFIG, find_judge, data_dir, seed=3)
    assert monitor.every == 3
    assert monitor.headline == "judge/gold"
    numbers = monitor.measure(*policy)
    assert set(numbers) == {
        "judge/gold",
        "gold/truthfulness",
        "gold/rude",
        "gold/length",
        "gold/finished",
    }
    assert numbers == monitor.measure(*policy)
    assert numbers["judge/gold"] < 0
    assert 0 < numbers["gold/length"] <= 6
    (other_seed,) = make_monitors(CONFIG, find_judge, data_dir, seed=4)
    assert other_seed.measure(*policy) != numbers


def test_a_score_judge_gives_its_score_under_its_name(policy, data_dir):
    (monitor,) = make_monitors(CONFIG, lambda name: Brevity(), data_dir, seed=3)
    numbers = monitor.measure(*policy)
    assert set(numbers) == {"judge/brevity", "brevity/length", "brevity/finished"}
    assert headlines([monitor]) == (monitor.headline,) == ("judge/brevity",)
    assert numbers["judge/brevity"] < 0


def test_prompts_that_are_too_long_are_left_out_and_said_once(policy, data_dir, capsys):
    prompts = load(CONFIG.prompts, Prompt, split="validation", data_dir=data_dir)
    config = dataclasses.replace(CONFIG, prompt_length=24, num_prompts=len(prompts))
    (monitor,) = make_monitors(config, lambda name: Brevity(), data_dir, seed=3)
    monitor.measure(*policy)
    monitor.measure(*policy)
    assert capsys.readouterr().out.count("records dropped") == 1


def refuse(name):
    raise AssertionError(f"{name} is not needed")


@pytest.mark.parametrize("config", [None, dataclasses.replace(CONFIG, every=0)])
def test_nothing_is_watched_where_nothing_is_asked_for(config):
    assert make_monitors(config, refuse, "nowhere", seed=0) == ()


def test_judges_without_a_score_cannot_watch():
    config = dataclasses.replace(CONFIG, judge="menagerie/tiny:heldout")
    with pytest.raises(ValueError, match=r"monitor\.judge=menagerie/tiny:heldout ranks .*reward:"):
        make_monitors(config, find_judge, "nowhere", seed=0)


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match=r"monitor\.every=-1: expected 0 \(never\) or more"):
        make_monitors(dataclasses.replace(CONFIG, every=-1), refuse, "nowhere", seed=0)


def test_a_run_without_a_monitor_has_the_same_parameters_and_no_gold(tour, tmp_path):
    """What a monitor measures reaches no loss."""
    folder = beside(tour, tmp_path, "sft")
    main.run({**tour.plans["sft"], "monitor": None}, str(folder))
    assert same_bits(folder, tour.workdir / "sft")
    assert not [name for row in rows(folder) for name in row if name.startswith("gold/")]
    assert [name for row in rows(tour.workdir / "sft") for name in row if name == "judge/gold"]


def test_a_function_watches_a_run(tour, tmp_path, capsys):
    (tmp_path / "rewards.py").write_text(
        "def words(prompts, responses, metadata):\n"
        "    return [len(response.split()) for response in responses]\n"
    )
    plan = {**tour.plans["sft"]}
    plan["monitor"] = {**plan["monitor"], "judge": f"function:{tmp_path}/rewards.py:words"}
    folder = beside(tour, tmp_path, "sft")
    main.run(plan, str(folder))
    names = {name for row in rows(folder) for name in row}
    numbers = {name for name in names if "words" in name.split("/")}
    assert numbers == {"judge/words", "words/length", "words/finished"}
    assert ", judge/words " in capsys.readouterr().err  # on the terminal's line
