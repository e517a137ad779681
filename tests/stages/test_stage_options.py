"""Settings that the tour does not use: selection by a reward model, the adaptive controller, a
tokenizer from a folder."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from run_files import beside, rows
from tests_support import load_experiment

from rlhf_jax import main
from rlhf_jax.apps.export import export
from rlhf_jax.data.records import Comparison, Message
from rlhf_jax.stages import reward
from rlhf_jax.training import checkpoints, pretrained


def plan_of(tour, stage):
    return json.loads(json.dumps(tour.plans[stage]))


def test_sft_selects_the_parameters_that_the_reward_model_prefers(tour, tmp_path):
    folder = beside(tour, tmp_path, "sft")
    plan = plan_of(tour, "sft")
    plan["init"]["reward"] = str(tour.workdir / "reward")
    plan["sft"] |= {"select": "reward", "eval_every": 4}
    main.run(plan, str(folder))
    scores = [row["validation/score"] for row in rows(folder) if "validation/score" in row]
    step = checkpoints.latest_step(folder)
    like = checkpoints.read_meta(folder)
    assert len(scores) >= 2
    assert set(like.lineage) == {"policy", "reward"}
    assert step == rows(folder)[-1]["step"]


def test_sft_by_reward_needs_a_reward_model(tour, tmp_path):
    plan = plan_of(tour, "sft")
    plan["sft"]["select"] = "reward"
    assert plan["init"]["reward"] is None
    with pytest.raises(ValueError, match=r"sft\.select=reward needs init\.reward"):
        main.run(plan, str(beside(tour, tmp_path, "sft")))


def test_scores_are_normalised_on_best_responses_where_no_demonstrations_are_named(tour, tmp_path):
    ranking = Comparison((Message("user", "hello"),), ("go away", "hi", "hey"), (3, 1, 2))
    assert [turn.content for turn in reward.best_responses([ranking])[0].messages] == [
        "hello",
        "hi",
    ]
    plan = plan_of(tour, "reward")
    plan["data"]["demonstrations"] = None  # not even a broken source of them would be read
    folder = beside(tour, tmp_path, "reward")
    main.run(plan, str(folder))
    last, named = rows(folder)[-1], rows(tour.workdir / "reward")[-1]
    assert last["rm/bias"] == pytest.approx(-last["rm/demonstrations_mean"])
    assert last["rm/demonstrations_mean"] != pytest.approx(named["rm/demonstrations_mean"])


@pytest.mark.parametrize("name", ["reward_hh", "reward_webgpt", "smollm2_reward_hh"])
def test_comparisons_of_ones_own_bring_no_other_data_set_along(name):
    config = load_experiment(f"experiments/public/{name}.py", "tiny")
    config.data.comparisons = "jsonl:mine.jsonl"
    others = {key: source for key, source in config.data.items() if key != "comparisons" and source}
    assert set(others) == {"data_dir"}


def test_adaptive_controller_ema_and_running_scores(tour, tmp_path):
    plan = plan_of(tour, "ppo")
    plan["ppo"] |= {
        "kl_controller": "adaptive",
        "kl_target": 0.5,
        "kl_horizon": 160,
        "ema_decay": 0.9,
        "whiten_rewards": True,
    }
    plan["rewards"]["reward"] |= {"normalisation": "running_std", "clip": 2.0}
    folder = beside(tour, tmp_path, "ppo")
    main.run(plan, str(folder))
    coefs = [row["objective/kl_coef"] for row in rows(folder)]
    # KL starts at 0, below the target: β falls by a fifth of n / horizon = 0.1, which is 2 % an
    # update.
    assert coefs[0] == pytest.approx(0.05)
    assert coefs[1] == pytest.approx(0.05 * 0.98, rel=1e-4)


def test_ppo_with_an_adaptive_penalty_for_moving(tour, tmp_path):
    plan = plan_of(tour, "ppo")
    plan["ppo"] |= {
        "policy_loss": "kl_adaptive",
        "kl_penalty_coef": 2.0,
        "kl_penalty_target": 1e6,
        "total_episodes": 32,
    }
    folder = beside(tour, tmp_path, "ppo")
    main.run(plan, str(folder))
    # Two tiny updates stay far below that target: the penalty's coefficient is halved after each.
    assert [row["policy/kl_penalty_coef"] for row in rows(folder)] == [1.0, 0.5]


def test_ppo_s_value_starts_from_a_pooled_head_that_was_trained_alone(tour, tmp_path):
    folder, plan = beside(tour, tmp_path, "reward"), plan_of(tour, "reward")
    plan["reward"] |= {"read_out": "pooled", "trained": "head", "normalise": "gain_and_bias"}
    main.run(plan, str(folder))
    assert abs(rows(folder)[-1]["rm/bias"]) > 0
    policy, _ = pretrained.load_model(tour.workdir / "sft")
    reward, meta = pretrained.load_model(folder)
    assert meta.model["read_out"] == "pooled"
    assert set(reward) == {"trunk", "read_out", "head"}
    jax.tree.map(np.testing.assert_array_equal, reward["trunk"], policy["trunk"])

    plan = plan_of(tour, "ppo")
    plan["rewards"]["reward"]["source"] = f"reward:{folder}"
    plan["ppo"]["total_episodes"] = 2 * plan["ppo"]["batch_size"]
    (tmp_path / "ppo_run").mkdir()
    ppo = beside(tour, tmp_path / "ppo_run", "ppo")
    main.run(plan, str(ppo))
    assert all(np.isfinite(row["loss/value"]) for row in rows(ppo) if "loss/value" in row)
    with pytest.raises(ValueError, match="only last_token has a place"):
        export(str(folder), tmp_path / "exported", max_shard_bytes=10**9)


def test_a_head_alone_and_adapters_are_not_trained_together(tour, tmp_path):
    plan = plan_of(tour, "reward")
    plan["reward"]["trained"] = "head"
    plan["lora"]["rank"] = 2
    with pytest.raises(ValueError, match=r"reward\.trained=head with lora\.rank=2"):
        main.run(plan, str(beside(tour, tmp_path, "reward")))


@pytest.mark.parametrize("name", ["online_dpo", "expert_iteration"])
def test_algorithms_that_choose_among_responses(tour, tmp_path, name):
    plan = load_experiment(f"experiments/menagerie/{name}.py", "tiny").to_dict()
    plan["data"]["data_dir"], plan["monitor"] = tour.plans["grpo"]["data"]["data_dir"], None
    plan["policy_gradient"] |= {"total_episodes": 32, "batch_size": 32}
    plan["optimizer"]["warmup_steps"] = 1
    folder = beside(tour, tmp_path, "grpo")
    main.run(plan, str(folder))
    (row,) = rows(folder)
    assert row["mismatch/logp_mean"] < 1e-5
    assert row["episode"] == 32
    assert ("rewards/margin" in row) == (name == "online_dpo")


def test_kto_on_the_collected_comparisons(tour, tmp_path):
    plan = load_experiment("experiments/menagerie/kto.py", "tiny").to_dict()
    plan["data"]["data_dir"], plan["monitor"] = tour.plans["grpo"]["data"]["data_dir"], None
    folder = beside(tour, tmp_path, "dpo")
    main.run(plan, str(folder))
    first = rows(folder)[0]
    # At the start π is π_ref: both values are 1 - σ(0).
    assert (first["loss"], first["rewards/reference_point"]) == (0.5, 0.0)
    assert {"validation/accuracy_heldout", "validation/accuracy_gold"} <= set(rows(folder)[-1])


def test_kto_on_single_replies_with_a_thumb(tour, tmp_path, capsys):
    thumbs = [
        {"prompt": f"tell me about {name}.", "completion": f"{name} are {what}.", "label": thumb}
        for name in ("owls", "foxes", "boars", "tavs", "mirps", "bears", "wolves", "hens")
        for what, thumb in (("red", True), ("dull", False), ("small", True))
    ]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thumbs))
    source = f"jsonl:{tmp_path}/thumbs.jsonl"
    plan = load_experiment("experiments/menagerie/kto.py", "tiny").to_dict()
    plan["monitor"] = None
    plan["data"] = {
        "data_dir": "",
        "comparisons": f"{source}?train=train[:16]&validation=train[16:]",
    }
    plan["preference"] |= {"batch_size": 8, "num_epochs": 2.0, "eval_every": 2}
    plan["optimizer"]["warmup_steps"] = 1
    folder = beside(tour, tmp_path, "dpo")
    main.run(plan, str(folder))
    first, *_, last = rows(folder)
    assert (first["loss"], first["rewards/reference_point"]) == (0.5, 0.0)
    assert last["step"] == 4
    assert 0 <= last["validation/accuracy_heldout"] <= 1
    assert last["loss"] < 0.5
    assert " train: 11 thumbs up, 5 down" in capsys.readouterr().out
    plan["preference"]["loss"] = "dpo"
    with pytest.raises(ValueError, match=r"a thumb train preference\.loss=kto alone"):
        main.run(plan, str(tmp_path / "dpo_of_thumbs"))


def test_a_second_round_ranks_the_new_policy_and_keeps_the_first_rankings(tour, tmp_path, capsys):
    for name in ("sft", "ppo", "label"):
        (tmp_path / name).symlink_to(tour.workdir / name)
    labels, plan = plan_of(tour, "label"), plan_of(tour, "reward")
    labels["init"]["policy"] = "../ppo"
    labels["label"] |= {"num_prompts": 16, "num_validation_prompts": 8}
    plan["data"] |= {"comparisons": "../label_2", "earlier": ["../label"]}
    main.run(labels, str(tmp_path / "label_2"))
    main.run(plan, str(tmp_path / "reward_2"))
    ranked_policy = json.loads((tmp_path / "label_2" / "label.json").read_text())["policy"]
    assert ranked_policy["fingerprint"] == checkpoints.read_meta(tour.workdir / "ppo").fingerprint
    assert (
        checkpoints.read_meta(tmp_path / "reward_2").lineage["policy"]["fingerprint"]
        == checkpoints.read_meta(tour.workdir / "sft").fingerprint
    )
    files = [
        folder / "comparisons" / "train" / "train.jsonl"
        for folder in (tmp_path / "label", tmp_path / "label_2")
    ]
    first, second = (
        [json.loads(line)["ranks"] for line in path.read_text().splitlines()] for path in files
    )
    assert 0 < len(second) <= 16
    untied = sum(len(set(ranks)) > 1 for ranks in first + second)
    assert f"epochs of {untied} rankings" in capsys.readouterr().out


def test_comparisons_of_a_stage_that_has_none(tour, tmp_path):
    (tmp_path / "sft").symlink_to(tour.workdir / "sft")
    for comparisons in ("../label", "../label?train=train[:5]"):
        plan = plan_of(tour, "dpo")
        plan["data"]["comparisons"] = comparisons
        with pytest.raises(
            FileNotFoundError,
            match=rf"data\.comparisons={re.escape(comparisons)}: no comparisons in "
            ".*/label/comparisons; run the label stage",
        ):
            main.run(plan, str(tmp_path / "dpo"))


def test_a_part_of_the_comparisons_and_other_judges(tour, tmp_path, capsys):
    """Options go to every source; the judges are those whose folders are there."""
    (tmp_path / "sft").symlink_to(tour.workdir / "sft")
    shutil.copytree(tour.workdir / "label", tmp_path / "label")
    comparisons = tmp_path / "label" / "comparisons"
    shutil.copytree(comparisons / "gold", comparisons / "oracle")
    plan = plan_of(tour, "dpo")
    plan["data"]["comparisons"] = "../label?train=train[:24]"
    main.run(plan, str(tmp_path / "dpo"))
    judges = {
        name.rpartition("_")[2]
        for name in rows(tmp_path / "dpo")[-1]
        if name.startswith("validation/accuracy_")
    }
    assert judges == {"heldout", "gold", "oracle"}
    lines = (tmp_path / "label/comparisons/train/train.jsonl").read_text().splitlines()[:24]
    untied = sum(len(set(json.loads(line)["ranks"])) > 1 for line in lines)
    assert f"epochs of {untied} rankings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": {"document_rows": 1}, "data": {"documents": None}}, r"needs data\.documents"),
        ({"sft": {"select": "reward"}, "data": {"prompts": None}}, r"needs data\.prompts"),
        (
            {"sft": {"select": "reward"}, "data": {"prompt_length": None}},
            r"needs data\.prompt_length",
        ),
        ({"sft": {"select": "reward", "response_length": None}}, r"needs sft\.response_length"),
    ],
)
def test_sft_says_which_absent_field_it_needs(tour, tmp_path, changes, message):
    plan = plan_of(tour, "sft")
    plan["init"]["reward"] = str(tour.workdir / "reward")
    for group, fields in changes.items():
        plan[group] |= fields
    with pytest.raises(ValueError, match=message):
        main.run(plan, str(beside(tour, tmp_path, "sft")))


def test_ppo_ptx_needs_documents(tour, tmp_path):
    plan = plan_of(tour, "ppo_ptx")
    plan["data"]["documents"] = None
    with pytest.raises(ValueError, match=r"ppo\.ptx_coef=1\.0 needs data\.documents"):
        main.run(plan, str(beside(tour, tmp_path, "ppo_ptx")))


def test_pretraining_with_a_tokenizer_from_a_folder(tour, tmp_path):
    plan = plan_of(tour, "pretrain")
    plan["tokenizer"] = {
        "kind": "folder",
        "vocab_size": None,
        "path": str(tour.workdir / "pretrain" / "tokenizer"),
    }
    main.run(plan, str(tmp_path / "pretrain"))
    theirs, mine = (
        checkpoints.read_meta(folder)
        for folder in (tour.workdir / "pretrain", tmp_path / "pretrain")
    )
    assert mine.tokenizer == theirs.tokenizer
    assert mine.fingerprint == theirs.fingerprint


def test_a_vocabulary_of_another_size_is_refused(tour, tmp_path):
    plan = plan_of(tour, "pretrain")
    plan["model"]["vocab_size"] = 500
    with pytest.raises(
        ValueError, match=r"model\.vocab_size=500, but the tokenizer has 512 tokens"
    ):
        main.run(plan, str(tmp_path / "pretrain"))


@pytest.mark.parametrize("preset", ["instructgpt", "openai_2019", "tldr_2024"])
def test_presets_run(tour, tmp_path, preset):
    plan = load_experiment(f"experiments/menagerie/ppo_{preset}.py", "tiny").to_dict()
    plan["data"]["data_dir"] = tour.plans["ppo"]["data"]["data_dir"]
    plan["ppo"]["total_episodes"] = 32
    folder = beside(tour, tmp_path, "ppo")
    main.run(plan, str(folder))
    table = rows(folder)
    assert abs(table[0]["objective/kl"]) < 1e-4
    assert all(row["mismatch/logp_mean"] < 1e-5 for row in table)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stage_starts_from_a_model_of_hugging_face(tour, tmp_path, rank):
    """An exported checkpoint is as good a parent as the checkpoint itself, also as the base of
    adapters."""
    export(str(tour.workdir / "pretrain"), tmp_path / "foreign", max_shard_bytes=10**9)
    losses = {}
    for name, parent in (
        ("own", str(tour.workdir / "pretrain")),
        ("hf", f"hf:{tmp_path / 'foreign'}"),
    ):
        plan = plan_of(tour, "sft")
        plan["init"]["policy"] = parent
        plan["lora"]["rank"] = rank
        main.run(plan, str(tmp_path / name))
        losses[name] = [row["loss"] for row in rows(tmp_path / name) if "loss" in row]
    assert losses["own"] == losses["hf"]
    mine, theirs = (pretrained.load_model(tmp_path / name)[0] for name in ("own", "hf"))
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, theirs)))
    assert checkpoints.read_meta(tmp_path / "hf").lineage["policy"]["stage"] == "huggingface"
