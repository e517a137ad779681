"""The recipe with adapters: supervised, reward and PPO runs stand on one frozen base, hold adapters
alone, resume exactly."""

import json
import shutil

import jax
import numpy as np
import pytest
from run_files import Death, die_at, params_of, rows, same_bits

from rlhf_jax import main
from rlhf_jax.apps import chat, export
from rlhf_jax.config import build
from rlhf_jax.models.config import from_dict
from rlhf_jax.models.huggingface import save_pretrained
from rlhf_jax.models.huggingface.peft import load_peft
from rlhf_jax.models.lora import merge_adapters, partition
from rlhf_jax.training import checkpoints
from rlhf_jax.training.pretrained import load_model, read_tokenizer

LORA = {"rank": 2, "alpha": 4.0, "modules": ["query", "value", "down"]}
STAGES = ("sft", "reward", "ppo")


def plan_of(tour, stage):
    plan = json.loads(json.dumps(tour.plans[stage]))
    plan["lora"] = LORA
    if stage == "reward":
        # Adapters are on the trunk, and files of transformers have room for the last token's head.
        plan["reward"] |= {"trained": "all", "read_out": "last_token"}
    else:
        plan["monitor"] = None
    return plan


@pytest.fixture(scope="module")
def adapted(tour, tmp_path_factory):
    """Folders of sft, reward and ppo runs with adapters, beside the pretrained model."""
    folder = tmp_path_factory.mktemp("adapted")
    (folder / "pretrain").symlink_to(tour.workdir / "pretrain")
    labelled = tour.workdir / "label" / "comparisons"
    (folder / "comparisons").mkdir()
    for part, judge in (("train", "train"), ("validation", "heldout")):
        shutil.copy(labelled / judge / f"{part}.jsonl", folder / "comparisons" / f"{part}.jsonl")
    plans = {stage: plan_of(tour, stage) for stage in STAGES}
    plans["reward"]["data"]["comparisons"] = f"jsonl:{folder / 'comparisons'}"
    plans["ppo"]["ppo"]["total_episodes"] = 2 * plans["ppo"]["ppo"]["batch_size"]
    for stage, plan in plans.items():
        main.run(plan, str(folder / stage))
    return folder, plans


@pytest.mark.parametrize("stage", STAGES)
def test_only_adapters_and_heads_are_saved(tour, adapted, stage):
    folder, _ = adapted
    content = json.loads((checkpoints.resolve(folder / stage) / "meta" / "metadata").read_text())
    for item in ("params", "train"):
        matrices = {
            name for name, leaf in content["leaves"][item].items() if len(leaf["shape"]) == 2
        }
        assert matrices
        assert all(
            name.rsplit("/", 1)[-1] in ("lora_a", "lora_b") or "head/" in name for name in matrices
        ), item
    link = content["meta"]["extra"]["lora"]
    assert link["fingerprint"] == checkpoints.read_meta(tour.workdir / "pretrain").fingerprint
    assert (link["rank"], link["alpha"], link["modules"]) == (2, 4.0, LORA["modules"])


def test_all_four_models_of_ppo_share_one_base(tour, adapted):
    folder, _ = adapted
    bases = {}
    policy, reward = (
        load_model(folder / stage, bases=bases)[0]["trunk"]["block_0"]
        for stage in ("sft", "reward")
    )
    assert policy["mlp"]["up"]["kernel"] is reward["mlp"]["up"]["kernel"]
    assert policy["attention"]["query"]["kernel"] is reward["attention"]["query"]["kernel"]
    assert not np.array_equal(
        policy["attention"]["query"]["lora_b"], reward["attention"]["query"]["lora_b"]
    )
    plain = checkpoints.load_params(tour.workdir / "pretrain")[0]["trunk"]["block_0"]
    assert np.array_equal(policy["mlp"]["up"]["kernel"], plain["mlp"]["up"]["kernel"])


def test_training_moves_adapters_and_ppo_begins_at_its_reference(adapted):
    folder, _ = adapted
    sft, ppo = rows(folder / "sft"), rows(folder / "ppo")
    assert sft[-1]["validation/loss"] < sft[0]["validation/loss"]
    assert ppo[0]["mismatch/logp_mean"] < 1e-5
    assert abs(ppo[0]["objective/kl"]) < 1e-3
    assert not np.allclose(params_of(folder / "ppo")[1], params_of(folder / "sft")[1], atol=1e-7)


@pytest.mark.parametrize("stage", ["grpo", "dpo"])
def test_the_other_algorithms_train_adapters_too(tour, adapted, tmp_path, stage):
    folder, _ = adapted
    for name in ("pretrain", "sft", "reward"):
        (tmp_path / name).symlink_to((folder / name).resolve())
    plan = plan_of(tour, stage)
    if stage == "grpo":
        plan["policy_gradient"]["total_episodes"] = plan["policy_gradient"]["batch_size"]
    else:
        plan["data"]["comparisons"] = f"jsonl:{folder / 'comparisons'}"
        plan["preference"]["num_epochs"] = 0.17  # one update
        plan["optimizer"]["warmup_steps"] = 1
    main.run(plan, str(tmp_path / stage))
    link = checkpoints.read_meta(tmp_path / stage).extra["lora"]
    assert link["fingerprint"] == checkpoints.read_meta(tour.workdir / "pretrain").fingerprint
    (row,) = rows(tmp_path / stage)
    if stage == "grpo":
        assert row["mismatch/logp_mean"] < 1e-5
        assert abs(row["objective/kl"]) < 1e-3
    else:
        assert row["loss"] == pytest.approx(np.log(2), abs=1e-6)  # adapters begin at the reference


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_killed_and_run_again_it_ends_with_the_same_bits(adapted, tmp_path, monkeypatch, stage):
    folder, plans = adapted
    for name in ("pretrain", "sft", "reward"):
        if name != stage:
            (tmp_path / name).symlink_to((folder / name).resolve())
    plan = {**plans[stage], "checkpoint": {**plans[stage]["checkpoint"], "save_every": 1}}
    with monkeypatch.context() as patch:
        die_at(patch, checkpoints.latest_step(folder / stage) - 1)
        with pytest.raises(Death):
            main.run(plan, str(tmp_path / stage))
    main.run(plan, str(tmp_path / stage))
    assert same_bits(tmp_path / stage, folder / stage)


def test_sharded_equals_single(adapted, tmp_path):
    folder, plans = adapted
    for name in ("pretrain", "sft", "reward"):
        (tmp_path / name).symlink_to((folder / name).resolve())
    mesh = {**plans["ppo"]["mesh"], "data": 2, "fsdp": 4, "fsdp_min_size": 64}
    main.run({**plans["ppo"], "mesh": mesh}, str(tmp_path / "ppo"))
    for a, b in zip(params_of(tmp_path / "ppo"), params_of(folder / "ppo"), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_other_adapters_than_the_parents_are_refused_and_rank_zero_merges(adapted, tmp_path):
    folder, plans = adapted
    plan = json.loads(json.dumps(plans["ppo"]))
    plan["init"] = {"policy": str(folder / "sft"), "value": "reward"}
    plan["rewards"]["reward"]["source"] = f"reward:{folder / 'reward'}"
    with pytest.raises(ValueError, match=r"rank 3, alpha 4, .*the parent's adapters have rank 2"):
        main.run({**plan, "lora": {**LORA, "rank": 3}}, str(tmp_path / "a"))
    full = json.loads(json.dumps(plans["sft"]))
    full["init"]["policy"], full["lora"] = str(folder / "sft"), {**LORA, "rank": 0}
    main.run(full, str(tmp_path / "full"))
    params, meta = checkpoints.load_params(tmp_path / "full")
    assert "lora" not in meta.extra
    assert jax.tree.structure(params) == jax.tree.structure(
        checkpoints.load_params(folder / "pretrain")[0]
    )


def test_chat_reads_adapters(adapted):
    folder, _ = adapted
    loaded = chat.load(folder / "ppo", kind="language_model", option="--checkpoint")
    assert loaded.params["trunk"]["block_0"]["attention"]["query"]["lora_a"].shape[1] == 2
    assert build(main.STAGES["ppo"].Config, adapted[1]["ppo"]).lora.scale == 2.0


@pytest.mark.parametrize("stage", ["ppo", "reward"])
def test_exported_weights_have_the_adapters_in_them(adapted, tmp_path, stage):
    folder, _ = adapted
    assert export.main([f"--checkpoint={folder / stage}", f"--to={tmp_path / 'merged'}"]) == 0
    params, meta = load_model(folder / stage)
    again, again_meta = load_model(f"hf:{tmp_path / 'merged'}")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        again,
        dict(merge_adapters(params)),
    )
    assert again_meta.kind == meta.kind
    base = params["trunk"]["block_0"]["attention"]["query"]["kernel"]
    assert not np.allclose(
        again["trunk"]["block_0"]["attention"]["query"]["kernel"], base, atol=1e-5
    )
    with pytest.raises(
        ValueError, match=r"lora_a.*parameters have no place in the files; merge adapters"
    ):
        save_pretrained(
            tmp_path / "x",
            from_dict(meta.model),
            params,
            kind=meta.kind,
            token_ids={},
            max_shard_bytes=10**9,
        )


def test_adapters_are_exported_alone(tour, adapted, tmp_path, capsys):
    folder, _ = adapted
    arguments = ["--adapters_of=some/base", f"--to={tmp_path / 'alone'}"]
    assert export.main([f"--checkpoint={folder / 'ppo'}", *arguments]) == 0
    params, meta = load_model(folder / "ppo")
    trained, config = load_peft(tmp_path / "alone", from_dict(meta.model))
    jax.tree.map(np.testing.assert_array_equal, trained, partition(params)[1])
    assert (config.rank, config.alpha) == (2, 4.0)
    assert (
        json.loads((tmp_path / "alone/adapter_config.json").read_text())["base_model_name_or_path"]
        == "some/base"
    )
    assert read_tokenizer(f"hf:{tmp_path / 'alone'}").fingerprint() == meta.tokenizer
    assert export.main([f"--checkpoint={folder / 'ppo'}", *arguments]) == 2
    assert export.main([f"--checkpoint={tour.workdir / 'pretrain'}", *arguments]) == 2
    said = capsys.readouterr().err
    assert "has adapter_config.json already" in said
    assert "has no adapters" in said
