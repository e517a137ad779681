"""The reward of a run is a sum: each part has its weight, clip, normalisation and metric, wherever
it is judged."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from run_files import Death, beside, die_at, rows, same_bits, without_times
from tests_support import load_experiment

from rlhf_jax import main
from rlhf_jax.config import build
from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.masking import value
from rlhf_jax.stages import ppo
from rlhf_jax.stages.rewards import (
    HostRewards,
    Reward,
    add_scores,
    check_rewards,
    own_rows,
    reward_metrics,
    shape_scores,
    start_moments,
)
from rlhf_jax.training import checkpoints, run
from rlhf_jax.training.mesh import make_mesh

FUNCTIONS = '''
def vowels(prompts, responses, metadata):
    """The share of vowels, and a little for prompts that are short."""
    assert len(prompts) == len(responses) == len(metadata)
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    assert all("kind" in entry for entry in metadata)
    return [
        sum(c in "aeiou" for c in text) / (1 + len(text)) + 0.1 * (len(prompt) == 1)
        for prompt, text in zip(prompts, responses)
    ]

def fails(prompts, responses, metadata):
    return [1.0 / ("?" not in prompt[-1]["content"]) for prompt in prompts]
'''


def reward(source, weight=1.0, clip=0.0, normalisation="none"):
    return {"source": source, "weight": weight, "clip": clip, "normalisation": normalisation}


def test_the_sum_by_hand():
    rewards = {
        "b": Reward("length:4", weight=0.5, clip=0.0, normalisation="none"),
        "a": Reward("reward:../reward", weight=-2.0, clip=1.0, normalisation="running_std"),
    }
    scores = {"a": jnp.array([1.0, 3.0, 5.0]), "b": jnp.array([10.0, 20.0, 60.0])}
    np.testing.assert_allclose(add_scores(rewards, scores), [3.0, 4.0, 20.0])
    # The standard deviation of 1, 3, 5 is √(8/3) = 1.633: 0.612, 1.837, 3.062, cut at 1.
    shaped, moments = shape_scores(rewards, scores, start_moments(rewards))
    np.testing.assert_allclose(shaped["a"], [0.6123724, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(shaped["b"], scores["b"])
    np.testing.assert_allclose(add_scores(rewards, shaped), [3.7752551, 8.0, 28.0], rtol=1e-6)
    assert (float(moments["a"].mean), float(moments["b"].mean)) == (3.0, 30.0)
    # Each has moments of its own: 1, 3, 5 and 9, 9, 9 have mean 6 and variance 61/6 + ...
    again, _ = shape_scores(rewards, {**scores, "a": jnp.full(3, 0.9)}, moments)
    deviation = np.std([1.0, 3.0, 5.0, 0.9, 0.9, 0.9])
    np.testing.assert_allclose(again["a"], np.full(3, 0.9 / deviation), rtol=1e-5)
    metrics = {name: float(value(metric)) for name, metric in reward_metrics(scores).items()}
    assert metrics == {"reward/a": 3.0, "reward/b": 30.0}


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ({}, "config.rewards: none"),
        ({"a/b": {}}, r"the name 'a/b' must consist of letters"),
        ({"a": {"weight": 0.0}}, r"rewards\.a\.weight=0\.0: expected a finite number other than 0"),
        ({"a": {"weight": float("nan")}}, r"weight=nan"),
        ({"a": {"clip": -1.0}}, r"rewards\.a\.clip=-1\.0: expected 0"),
    ],
)
def test_impossible_sums_are_refused(rewards, message):
    made = {name: Reward(**{**reward("length:4"), **fields}) for name, fields in rewards.items()}
    with pytest.raises(ValueError, match=message):
        check_rewards(made)


def test_a_value_network_from_no_reward_model_is_refused():
    config = load_experiment("experiments/menagerie/ppo.py", "tiny")
    with config.unlocked():
        config.rewards = {"number": reward("answer:number")}
    with pytest.raises(
        ValueError,
        match=r"init\.value=reward: there is no reward model .*\(answer:number\); use policy",
    ):
        ppo.check(build(ppo.Config, config), 1)


def test_every_response_is_judged_by_its_own_prompts_answer():
    """Prompts in the order of the batch, the responses to each side by side, padding left out."""
    tokenizer = train_words(["one", "two", "three"])
    prompts = [
        Prompt((Message("user", f"number {n}?"),), {"answer": word})
        for n, word in enumerate(("one", "two", "three"))
    ]
    words = ("three", "one", "two", "one")  # to prompt 2 twice, then to prompt 0 twice
    ids = [tokenizer.encode_batch([word], special=False)[0][0] for word in words]
    length_B = np.array([2, 2, 1, 2])
    tokens_BR = np.array([[i, tokenizer.eos_id, ids[1]] for i in ids], np.int32)
    samples = Samples(jnp.asarray(tokens_BR), jnp.zeros((4, 3)), length_B, length_B == 2)
    judges = {"right": main.make_judge("answer:text", Path())}
    for devices in (1, 4):
        host = HostRewards.of(judges, prompts, tokenizer, make_mesh(devices, 1, 1))
        scores = host.score(np.array([2, 0]), samples)
        assert scores["right"].tolist() == [1, 0, 0, 1]
        assert len(scores["right"].sharding.device_set) == devices
        assert own_rows(host.mesh, 4).all()
    assert HostRewards.of({}, prompts, tokenizer, host.mesh).score(np.array([2, 0]), samples) == {}


# --- runs -----------------------------------------------------------------------------------------


def plan_of(tour, stage, rewards, **changes):
    plan = json.loads(json.dumps(tour.plans[stage]))
    plan |= {"monitor": None, "rewards": rewards}
    plan["checkpoint"] |= {"save_every": 1, "sample_every": 1}
    group = "ppo" if stage == "ppo" else "policy_gradient"
    batch_size = plan[group]["batch_size"]
    plan[group] |= {"total_episodes": 3 * batch_size, **changes}
    if stage == "ppo":
        plan["init"]["value"] = "policy"
    return plan


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(FUNCTIONS)
    return f"function:{path}"


@pytest.fixture(scope="module")
def judged(tour, functions, tmp_path_factory):
    """PPO against a function and a rule, without a reward model: folder, plan."""
    rewards = {
        "vowels": reward(f"{functions}:vowels", 2.0, normalisation="running_std"),
        "short": reward("length:4", 0.5, clip=1.0),
    }
    plan = plan_of(tour, "ppo", rewards, missing_eos_mode="subtract")
    folder = beside(tour, tmp_path_factory.mktemp("judged"), "ppo")
    main.run(plan, str(folder))
    return folder, plan


def test_ppo_without_a_reward_model(judged):
    folder, _ = judged
    table = rows(folder)
    assert [row["step"] for row in table] == [1, 2, 3]
    for row in table:
        parts = 2.0 * row["reward/vowels"] + 0.5 * row["reward/short"]
        assert row["objective/scores"] == pytest.approx(parts, abs=1e-5)
        assert row["mismatch/logp_mean"] < 1e-5
    assert set(checkpoints.read_meta(folder).lineage) == {"policy"}
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        words = len(line["response"].split())
        assert line["rewards"]["short"] == pytest.approx(-abs(words - 4) / 4)
        vowels = sum(c in "aeiou" for c in line["response"]) / (1 + len(line["response"]))
        vowels += 0.1 * (line["prompt"].count("<|") == 2)  # one message, and the assistant's mark
        assert line["rewards"]["vowels"] == pytest.approx(vowels, abs=1e-6)
        expected = 2.0 * line["rewards"]["vowels"] + 0.5 * line["rewards"]["short"]
        assert line["score"] == pytest.approx(expected, abs=1e-5)


def test_killed_and_run_again_it_ends_with_the_same_bits(tour, judged, tmp_path, monkeypatch):
    folder, plan = judged
    again = beside(tour, tmp_path, "ppo")
    with monkeypatch.context() as patch:
        die_at(patch, 2)
        with pytest.raises(Death):
            main.run(plan, str(again))
    assert checkpoints.latest_step(again) == 2
    main.run(plan, str(again))
    assert same_bits(again, folder)
    assert [without_times(row) for row in rows(again)] == [
        without_times(row) for row in rows(folder)
    ]
    assert (again / "samples.jsonl").read_text() == (folder / "samples.jsonl").read_text()


def test_other_rewards_in_the_same_workdir_are_refused(judged):
    folder, plan = judged
    other = json.loads(json.dumps(plan))
    other["rewards"]["short"]["weight"] = 0.25
    with pytest.raises(ValueError, match=r"rewards\.short\.weight: 0\.5 -> 0\.25"):
        main.run(other, str(folder))


@pytest.mark.parametrize("name", ["grpo", "online_dpo", "expert_iteration"])
def test_groups_learn_from_a_sum_of_models_and_rules(tour, functions, tmp_path, name):
    rewards = {
        "vowels": reward(f"{functions}:vowels", 0.5),
        "model": reward("reward:../reward", 2.0),
    }
    plan = load_experiment(f"experiments/menagerie/{name}.py", "tiny").to_dict()
    plan["data"]["data_dir"], plan["monitor"] = tour.plans["grpo"]["data"]["data_dir"], None
    plan["policy_gradient"] |= {"total_episodes": 32, "batch_size": 32}
    plan["rewards"], plan["optimizer"]["warmup_steps"] = rewards, 1
    folder = beside(tour, tmp_path, "grpo")
    main.run(plan, str(folder))
    (row,) = rows(folder)
    parts = 0.5 * row["reward/vowels"] + 2.0 * row["reward/model"]
    assert row["objective/scores"] == pytest.approx(parts, abs=1e-5)
    assert set(checkpoints.read_meta(folder).lineage) == {"policy", "rewards.model"}


def test_a_judge_of_texts_reads_what_the_model_reads(tour, tmp_path):
    """hf:FOLDER is asked on the host about texts, reward:CHECKPOINT on the devices about ids."""
    from rlhf_jax.apps.export import export

    plan = json.loads(json.dumps(tour.plans["reward"]))
    plan["reward"] |= {"trained": "all", "read_out": "last_token"}
    trained = beside(tour, tmp_path, "reward")
    main.run(plan, str(trained))
    export(str(trained), tmp_path / "exported", max_shard_bytes=10**9)
    rewards = {
        "ids": reward(f"reward:{trained}"),
        "foreign_ids": reward(f"reward:hf:{tmp_path / 'exported'}"),
        "texts": reward(f"hf:{tmp_path / 'exported'}"),
    }
    plan = plan_of(tour, "grpo", rewards, total_episodes=16)
    main.run(plan, str(tmp_path / "grpo"))
    lines = (tmp_path / "grpo" / "samples.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        scores = line["rewards"]
        assert scores["foreign_ids"] == pytest.approx(scores["ids"], abs=1e-4)
        # A torn byte of this vocabulary decodes to a sign that is encoded otherwise.
        if "\ufffd" not in line["response"]:
            assert scores["texts"] == pytest.approx(scores["ids"], abs=1e-2)


# --- mistakes -------------------------------------------------------------------------------------


def test_a_reward_model_with_another_tokenizer_is_refused(tour, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "load_model", partial(with_other_tokenizer, run.load_model))
    plan = plan_of(tour, "grpo", {"model": reward("reward:../reward")})
    with pytest.raises(
        ValueError, match=r"rewards\.model\.source: .* different tokenizers .*; or name hf:FOLDER"
    ):
        main.run(plan, str(beside(tour, tmp_path, "grpo")))


def with_other_tokenizer(load_model, path, **options):
    params, meta = load_model(path, **options)
    is_reward = meta.stage == "reward"
    return params, replace(meta, tokenizer="another tokenizer") if is_reward else meta


def test_a_mistake_in_a_pipelines_last_reward_is_said_first(tour, tmp_path):
    plan = plan_of(tour, "grpo", {"number": reward("anwser:number")})
    with pytest.raises(ValueError, match=r"judge 'anwser:number': no such kind of judge"):
        main.run_pipeline({"sft": tour.plans["sft"], "grpo": plan}, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reward:../sft", r"config\.rewards\.bad\.source: \.\./sft is a language_model"),
        ("menagerie/tiny:labelers", r"config\.rewards\.bad\.source: .* gives no number"),
        ("answer:number", r"config\.rewards\.bad: judge answer:number: prompt .* its metadata is"),
        (
            "{}:fails",
            r"config\.rewards\.bad: judge function:.*: prompt \d+ \(.*\), response '.*': ZeroDiv",
        ),
        ("{}:absent", r"rewards\.py has no 'absent'; expected a function"),
    ],
)
def test_what_cannot_be_a_reward(tour, functions, tmp_path, source, message):
    plan = plan_of(tour, "grpo", {"bad": reward(source.format(functions))})
    with pytest.raises(ValueError, match=message) as error:
        main.run(plan, str(beside(tour, tmp_path, "grpo")))
    assert "\n" not in str(error.value)
