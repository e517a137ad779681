"""Experiments on data of one's own: every file is four facts away from a run, and nothing else is
read than what those name."""

import json
import re
from pathlib import Path

import pytest
from tests_support import ROOT, load_experiment

from experiments.yours.facts import hold_out
from rlhf_jax import main
from rlhf_jax.apps.export import export
from rlhf_jax.config import build
from rlhf_jax.training.metrics import read_rows
from rlhf_jax.training.pretrained import count_params

FILES = sorted(
    path.name
    for path in Path(ROOT, "experiments/yours").glob("*.py")
    if "choose(text" in path.read_text() and "def get_config" in path.read_text()
)
PIPELINE = "experiments/yours/pipeline.py"


@pytest.fixture(scope="module")
def folder(tour, tmp_path_factory):
    """A model as others give it, and twenty rows of everything."""
    folder = tmp_path_factory.mktemp("yours")
    export(str(tour.workdir / "sft"), folder / "model", max_shard_bytes=10**9)
    asks = [f"what is the colour of the fox {n}?" for n in range(20)]
    rows = {
        "demonstrations": [{"prompt": ask, "completion": "the fox is red."} for ask in asks],
        "comparisons": [{"prompt": ask, "chosen": "red.", "rejected": "go away."} for ask in asks],
        "prompts": [{"prompt": ask} for ask in asks],
    }
    for name, items in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
    return folder


def facts(folder, *names):
    sources = [f"{name}=jsonl:{folder}/{name}.jsonl" for name in names]
    return " ".join([f"model=hf:{folder}/model", *sources, "prompt_length=48 response_length=8"])


def test_there_is_a_file_for_every_wish():
    assert set(FILES) == {
        *("sft.py", "reward.py", "dpo.py", "kto.py", "ppo.py", "grpo.py", "evaluate.py"),
        "pipeline.py",
    }


@pytest.mark.parametrize("name", FILES)
def test_is_short_and_builds_from_facts_alone(name, folder, capsys):
    assert len(Path(ROOT, "experiments/yours", name).read_text().splitlines()) <= 40
    text = facts(folder, "demonstrations", "comparisons", "prompts")
    config = load_experiment(f"experiments/yours/{name}", text)
    stages = main.plan_pipeline(config) if config.stage == "pipeline" else {"": config}
    for stage in stages.values():
        build(main.STAGES[stage["stage"]].Config, stage)
        named = re.findall(r"\b(?:hub|tfds|hf|menagerie)[:/]\S+", json.dumps(dict(stage["data"])))
        assert named == [], "data that nobody has named"
    number = f"{count_params(f'hf:{folder}/model'):,} parameters"
    assert f"{number}, so all parameters are trained; learning rates: SFT 0.001" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle=hf:x", "'modle=hf:x' behind the path, expected some of model=... demonstrations="),
        ("prompt_length=long", "'prompt_length=long' behind the path, expected a number of tokens"),
        (
            "model=hf:nowhere comparisons=jsonl:experiments/yours/examples/comparisons.jsonl?"
            "train=train[:4]&validation=train[4:] "
            "prompts=lines:experiments/yours/examples/prompts.txt?train=train[:4]&test=train[4:]",
            "hf:nowhere: no such folder",
        ),
    ],
)
def test_a_slip_in_the_facts_is_named(text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        load_experiment(PIPELINE, text)


def test_the_pipeline_trains_and_compares(folder, tmp_path):
    config = load_experiment(PIPELINE, facts(folder, "demonstrations", "comparisons", "prompts"))
    stages = config.stages
    # Of 20 rows 18 or so are left to train on: batches are as large as that allows.
    assert (stages.sft.sft.batch_size, stages.reward.reward.batch_size) == (16, 16)
    assert (stages.ppo.ppo.batch_size, stages.ppo.ppo.num_micro_batches) == (16, 2)
    stages.ppo.ppo.total_episodes = 2 * 16
    stages.sft.sft.num_epochs = 1.0
    for name in ("sft", "reward", "ppo"):
        stages[name].mesh.data = 1
    main.run(config, str(tmp_path))
    assert list(config.order) == ["sft", "reward", "ppo", "evaluate"]
    assert read_rows(tmp_path / "reward/metrics.jsonl")[-1]["validation/accuracy_heldout"] >= 0.0
    assert "reward/reward" in read_rows(tmp_path / "ppo/metrics.jsonl")[-1]
    results = json.loads((tmp_path / "evaluate/evaluation.json").read_text())
    assert set(results["checkpoints"]) == {"model", "sft", "ppo"}


@pytest.mark.parametrize("name", ["dpo", "kto", "grpo"])
def test_other_ways_run_as_shipped(name, folder, tour, tmp_path):
    config = load_experiment(
        f"experiments/yours/{name}.py", facts(folder, "comparisons", "prompts")
    )
    config.mesh.data = 1
    if name == "grpo":
        config.policy_gradient.total_episodes = 32
        config.rewards.reward.source = "regex:fox"
    main.run(config.to_dict(), str(tmp_path / name))
    assert read_rows(tmp_path / name / "metrics.jsonl")


def test_thumbs_need_no_second_answer(folder, tmp_path):
    rows = [{"prompt": f"is it {n}?", "completion": "yes.", "label": n % 2 == 0} for n in range(20)]
    path = tmp_path / "thumbs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"{facts(folder)} comparisons=jsonl:{path}"
    config = load_experiment("experiments/yours/kto.py", text)
    config.mesh.data = 1
    main.run(config.to_dict(), str(tmp_path / "kto"))
    assert read_rows(tmp_path / "kto/metrics.jsonl")


def test_what_is_needed_and_held_out_is_said_before_anything_runs(folder, tmp_path):
    with pytest.raises(ValueError, match=r"config: no prompts; write prompts=jsonl:FILE behind"):
        load_experiment(PIPELINE, facts(folder, "comparisons"))
    (tmp_path / "few.jsonl").write_text('{"prompt": "who?"}\n{"prompt": "what?"}\n')
    parts = "?train=train[:2]&test=train[2:]"
    with pytest.raises(ValueError, match=r"none of 2 prompts is held out: add rows, or say which"):
        load_experiment(
            PIPELINE, f"{facts(folder, 'comparisons')} prompts=jsonl:{tmp_path}/few.jsonl{parts}"
        )


def test_a_folder_keeps_its_own_parts(tmp_path):
    assert hold_out(f"jsonl:{tmp_path}") == f"jsonl:{tmp_path}"
    assert hold_out("jsonl:a.jsonl").startswith("jsonl:a.jsonl?by=prompt&train=train[:90%]")
    assert hold_out("jsonl:a.jsonl?train=train[:5]") == "jsonl:a.jsonl?train=train[:5]"
    assert hold_out("") == ""


def test_without_demonstrations_there_is_no_fine_tuning(folder):
    config = load_experiment(PIPELINE, facts(folder, "comparisons", "prompts"))
    assert list(config.order) == ["reward", "ppo", "evaluate"]
    assert config.stages.reward.init.policy == config.stages.ppo.init.policy == f"hf:{folder}/model"
