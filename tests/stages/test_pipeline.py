"""The whole recipe at tiny size: every stage runs, links to its parent, leaves what it promises,
and resumes exactly."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from run_files import PARENTS, Death, beside, die_at, params_of, rows, same_bits, without_times
from tests_support import ROOT
from tour import config_classes

from rlhf_jax import main
from rlhf_jax.config import build
from rlhf_jax.training import checkpoints
from rlhf_jax.training.run import is_complete

TRAINED = ("pretrain", "sft", "reward", "ppo", "ppo_ptx", "classify", "grpo", "dpo")


@pytest.mark.parametrize("stage", TRAINED)
def test_every_stage_finishes_and_leaves_its_files(tour, stage):
    folder = tour.workdir / stage
    assert is_complete(folder)
    for name in ("config.json", "metrics.jsonl", "tokenizer/tokenizer.json"):
        assert (folder / name).exists(), name
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "corpus" / "train").exists() == (
        stage in ("pretrain", "sft", "ppo_ptx")
    )  # those that read documents


@pytest.mark.parametrize("stage", TRAINED)
def test_lineage_names_the_parents_as_they_are(tour, stage):
    meta = checkpoints.read_meta(tour.workdir / stage)
    by_stage = {entry["stage"]: entry["fingerprint"] for entry in meta.lineage.values()}
    assert by_stage == {
        name: checkpoints.read_meta(tour.workdir / name).fingerprint for name in PARENTS[stage]
    }


@pytest.mark.parametrize("stage", TRAINED)
def test_rows_have_no_gaps_and_nothing_recompiles(tour, stage):
    table = rows(tour.workdir / stage)
    steps = [row["step"] for row in table]
    assert steps == sorted(set(steps))
    assert steps[-1] == checkpoints.latest_step(tour.workdir / stage)
    if stage != "reward":  # its last step is another program: the normalisation
        # Longer or shorter rollouts and rankings may need their programs for another number of
        # packed rows, once.
        assert table[-1]["perf/compile_count"] <= (
            2 if stage in ("ppo", "ppo_ptx", "grpo", "dpo") else 0
        )


def test_pretraining_and_sft_learn(tour):
    for stage in ("pretrain", "sft"):
        table = rows(tour.workdir / stage)
        assert table[-1]["loss"] < table[0]["loss"]


def test_ppo_starts_at_the_reference_and_agrees_with_its_sampler(tour):
    for stage in ("ppo", "ppo_ptx"):
        first = rows(tour.workdir / stage)[0]
        assert abs(first["objective/kl"]) < 1e-4
        assert all(row["mismatch/logp_mean"] < 1e-5 for row in rows(tour.workdir / stage))


def test_reward_model_scores_demonstrations_zero(tour):
    last = rows(tour.workdir / "reward")[-1]
    assert last["rm/bias"] == pytest.approx(-last["rm/demonstrations_mean"], abs=1e-6)


def test_comparisons_rank_four_to_nine_answers(tour):
    lines = (
        (tour.workdir / "label" / "comparisons" / "train" / "train.jsonl").read_text().splitlines()
    )
    sizes = [len(json.loads(line)["responses"]) for line in lines]
    assert max(sizes) > 4
    assert max(sizes) <= 9


def test_evaluation_has_every_checkpoint(tour):
    found = json.loads((tour.workdir / "evaluate" / "evaluation.json").read_text())
    assert set(found["checkpoints"]) == {"base", "sft", "ppo", "ppo_ptx"}
    assert found["table"]


def test_every_config_field_is_read(tour):
    unread = {
        f"{cls.__module__.split('.')[-1]}.{cls.__name__}.{field.name}"
        for cls in config_classes()
        if not cls.__module__.endswith(
            ("benchmark", "benchmark_tasks")
        )  # tests/stages/test_benchmark.py runs that stage
        for field in dataclasses.fields(cls)
        if field.name not in tour.fields_read[f"{cls.__module__}.{cls.__name__}"]
    }
    assert unread == {
        # What only other settings of the same stage read: the adaptive controller, KTO, a tokenizer
        # from a folder. tests/stages/test_stage_options.py runs those.
        "ppo.PPO.kl_target",
        "ppo.PPO.kl_horizon",
        "pretrain.TokenizerConfig.path",
        "preference.Preference.better_weight",
        "preference.Preference.worse_weight",
        # Adapters are off: tests/stages/test_lora_stages.py runs with them.
        "lora.LoraConfig.alpha",
        "lora.LoraConfig.modules",
        # Read by `main`, which chooses the stage by it, and by `claim`, which the recorder does not
        # watch.
        "evaluate.Config.stage",
    }


def test_complete_stages_are_skipped(tour, capsys):
    began = time.monotonic()
    main.run_pipeline(tour.plans, str(tour.workdir))
    assert time.monotonic() - began < 5
    assert capsys.readouterr().out.count("complete, skipped") == len(tour.plans)


# --- killing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", TRAINED)
def test_killed_anywhere_it_ends_with_the_same_bits(tour, tmp_path, monkeypatch, stage):
    folder, last = beside(tour, tmp_path, stage), checkpoints.latest_step(tour.workdir / stage)
    plan = {
        **tour.plans[stage],
        "checkpoint": {**tour.plans[stage]["checkpoint"], "save_every": max(1, last // 3)},
    }
    for death in (0, last // 2, last - 1):
        with monkeypatch.context() as patch:
            die_at(patch, death)
            with pytest.raises(Death):
                main.run(plan, str(folder))
    main.run(plan, str(folder))
    assert same_bits(folder, tour.workdir / stage)
    table = [without_times(row) for row in rows(folder)]
    assert table == [without_times(row) for row in rows(tour.workdir / stage)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_real_signals_in_ppo(tour, tmp_path, how):
    folder = beside(tour, tmp_path, "ppo_ptx")
    plan = {
        **tour.plans["ppo_ptx"],
        "checkpoint": {**tour.plans["ppo_ptx"]["checkpoint"], "save_every": 1},
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    code = (
        "import json, sys, jax; jax.config.update('jax_platforms', 'cpu'); "
        "from rlhf_jax import main; "
        "main.run(json.load(open(sys.argv[1])), sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json"), str(folder)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 120
    while (
        checkpoints.latest_step(folder) is None
        and process.poll() is None
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    process.send_signal(how)
    said = process.communicate()[0]
    if how is signal.SIGTERM and process.returncode != 0:
        assert process.returncode == 143, said
        assert "continues from it" in said
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert same_bits(folder, tour.workdir / "ppo_ptx")


# --- what does not fit ----------------------------------------------------------------------------


def test_another_config_in_the_same_folder_is_refused(tour):
    plan = json.loads(json.dumps(tour.plans["ppo"]))
    plan["ppo"]["kl_coef"] = 0.7
    with pytest.raises(
        ValueError, match=r"begun with another config:\n +ppo\.kl_coef: 0\.05 -> 0\.7"
    ):
        main.run(plan, str(tour.workdir / "ppo"))


def test_a_parent_is_run_as_the_mesh_says(tour, tmp_path):
    folder = beside(tour, tmp_path, "sft")
    plan = json.loads(json.dumps(tour.plans["sft"]))
    plan["mesh"] |= {
        "compute_dtype": "bfloat16",
        "remat": "block",
        "scan_layers": "yes",
        "attention": "fused",
    }
    main.run(plan, str(folder))
    model = checkpoints.load_params(folder)[1].model
    found = tuple(model[name] for name in ("compute_dtype", "remat", "scan_layers", "attention"))
    assert found == ("bfloat16", "block", True, "fused")
    with pytest.raises(
        ValueError,
        match=r"begun with another config:\n +mesh\.compute_dtype: 'bfloat16' -> 'as_trained'",
    ):
        main.run({**plan, "mesh": tour.plans["sft"]["mesh"]}, str(folder))


def test_a_changed_parent_is_refused(tour, tmp_path):
    folder = beside(tour, tmp_path, "sft")
    shutil.copytree(tour.workdir / "sft", folder)
    shutil.rmtree(folder / "checkpoints")
    step = checkpoints.latest_step(tour.workdir / "sft")
    (folder / "checkpoints").mkdir()
    shutil.copytree(
        checkpoints.checkpoint_folder(tour.workdir / "sft", step),
        folder / "checkpoints" / str(step),
    )
    (tmp_path / "pretrain").unlink()
    shutil.copytree(
        tour.workdir / "sft", tmp_path / "pretrain"
    )  # another language model where the parent was
    with pytest.raises(ValueError, match=r"was begun from policy \.\./pretrain .* now holds"):
        main.run(tour.plans["sft"], str(folder))


def test_a_parent_of_the_wrong_kind_is_refused(tour, tmp_path):
    plan = json.loads(json.dumps(tour.plans["ppo"]))
    plan["rewards"]["reward"]["source"] = f"reward:{tour.workdir / 'sft'}"
    plan["init"]["policy"] = str(tour.workdir / "sft")
    with pytest.raises(
        ValueError,
        match=r"rewards\.reward\.source: .* is a language_model .* expected a scalar_model",
    ):
        main.run(plan, str(tmp_path / "ppo"))


def test_a_missing_parent_says_how_to_make_it(tour, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"no checkpoint at .*pretrain.*train the model first: .*--workdir=.*pretrain",
    ):
        main.run(tour.plans["sft"], str(tmp_path / "sft"))


def test_a_response_longer_than_the_context_is_refused(tour, tmp_path):
    plan = json.loads(json.dumps(tour.plans["ppo"]))
    plan["init"] = {"policy": str(tour.workdir / "sft"), "value": "reward"}
    plan["rewards"]["reward"]["source"] = f"reward:{tour.workdir / 'reward'}"
    plan["ppo"]["response_length"] = 500
    with pytest.raises(ValueError, match=r"= 564 exceeds the policy's context of 128; shorten"):
        main.run(plan, str(tmp_path / "ppo"))


def test_a_mistake_in_the_last_stage_is_said_before_the_first_runs(tour, tmp_path):
    plans = json.loads(json.dumps(tour.plans))
    plans["evaluate"]["referense"] = "sft"
    with pytest.raises(
        ValueError, match=r"config\.stages\.evaluate\.referense: .*did you mean 'reference'"
    ):
        main.run_pipeline(plans, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_ppo_on_many_devices_equals_one(tour, tmp_path, axes):
    folder = beside(tour, tmp_path, "ppo_ptx")
    plan = json.loads(json.dumps(tour.plans["ppo_ptx"]))
    plan["mesh"] |= {
        **dict(zip(("data", "fsdp", "tensor"), axes, strict=True)),
        "fsdp_min_size": 256,
    }
    plan["ppo"]["ptx_batch_size"] = 8
    plan["ppo"]["total_episodes"] = 16
    single = {**plan, "mesh": {**plan["mesh"], "data": 1, "fsdp": 1, "tensor": 1}}
    main.run(build_plain(single), str(tmp_path / "single"))
    main.run(build_plain(plan), str(folder))
    for a, b in zip(params_of(tmp_path / "single"), params_of(folder), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_groups_on_many_devices_equal_one(tour, tmp_path):
    plan = json.loads(json.dumps(tour.plans["grpo"]))
    plan["policy_gradient"] |= {"batch_size": 64, "total_episodes": 64}
    # A judge on the host beside the reward model on the devices.
    short = {"source": "length:4", "weight": 0.1, "clip": 0.0, "normalisation": "running_std"}
    plan["rewards"]["short"] = short
    for name, axes in (
        ("one", {"data": 1, "fsdp": 1, "tensor": 1}),
        ("many", {"data": 2, "fsdp": 2, "tensor": 2}),
    ):
        (tmp_path / name).mkdir()
        folder = beside(tour, tmp_path / name, "grpo")
        main.run(
            build_plain({**plan, "mesh": {**plan["mesh"], **axes, "fsdp_min_size": 256}}),
            str(folder),
        )
    for a, b in zip(
        params_of(tmp_path / "one" / "grpo"), params_of(tmp_path / "many" / "grpo"), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6)


def build_plain(plan):
    build(main.STAGES[plan["stage"]].Config, plan)
    return plan
