"""The sums of yours/verifiable.py: nothing that is asked was read, and the control pays as much."""

import json

import pytest
from tests_support import load_experiment

from experiments.yours import sums
from rlhf_jax import main
from rlhf_jax.training.metrics import read_rows


def test_what_is_asked_stands_in_no_document(tmp_path):
    sums.main([f"--to={tmp_path}"])

    def read(name):
        return [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]

    asked = {split: sums.questions()[split] for split in ("train", "validation", "test")}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values())) == 10_000
    for split, pairs in asked.items():
        prompts = read(f"prompts/{split}")
        assert [prompt["messages"][0]["content"] for prompt in prompts] == [
            f"{a}+{b}" for a, b in pairs
        ]
        assert [int(prompt["metadata"]["answer"]) for prompt in prompts] == [
            a + b for a, b in pairs
        ]
    right, trained = 0, set(asked["train"])
    documents = read("documents/train")
    for document in documents:
        question, answer = document["text"].removeprefix("<|user|>").split("<|assistant|>")
        first, second = map(int, question.split("+"))
        assert (first, second) in trained
        right += first + second == int(answer)
    assert abs(right / len(documents) - sums.RIGHT) < 0.01


def test_shuffled_scores_pay_as_much_and_say_nothing():
    responses = [str(n) for n in range(400)]
    metadata = [{"answer": str(n if n % 4 == 0 else n + 1)} for n in range(400)]
    scores = sums.shuffled([], responses, metadata)
    assert sum(scores) == 100
    assert scores == sums.shuffled([], responses, metadata)
    assert 10 < sum(scores[::4]) < 40  # a quarter of the right ones would be 25


@pytest.mark.parametrize("stage", ["grpo_shuffled", "ppo"])
def test_it_runs_on_any_model(tour, tmp_path, monkeypatch, stage):
    sums.main([f"--to={tmp_path / 'runs/data/sums'}"])
    monkeypatch.chdir(tmp_path)
    plan = main.plan_pipeline(load_experiment("experiments/yours/verifiable.py", "tiny"))[stage]
    plan["init"]["policy"] = str(tour.workdir / "sft")
    main.run(plan, str(tmp_path / stage))
    last = list(read_rows(tmp_path / stage / "metrics.jsonl"))[-1]
    assert last["judge/answer_number"] == 0  # a model that knows nothing
    assert last["objective/scores"] == last["reward/answer"]
