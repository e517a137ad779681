"""Experiments on data of one's own: every file is four facts away from a run, and nothing else is
read than what those name."""

import json
import re
from pathlib import Path

import pytest
from tests_support import ROOT, load_experiment

from rlhf_jax import main
from rlhf_jax.apps.export import export
from rlhf_jax.config import build
from rlhf_jax.training.metrics import read_rows
from rlhf_jax.training.pretrained import count_params

FILES = sorted(
    path.name
    for path in Path(ROOT, "experiments/yours").glob("*.py")
    if "choose(text)" in path.read_text() and "def get_config" in path.read_text()
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
        ("model=hf:nowhere", "hf:nowhere: no such folder"),
    ],
)
def test_a_slip_in_the_facts_is_named(text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        load_experiment(PIPELINE, text)


def test_the_pipeline_trains_and_compares(folder, tmp_path):
    config = load_experiment(PIPELINE, facts(folder, "demonstrations", "comparisons", "prompts"))
    stages = config.stages
    stages.ppo.ppo.update({"total_episodes": 8, "batch_size": 4, "num_micro_batches": 1})
    for name in ("sft", "reward"):
        stages[name][name].update({"batch_size": 4, "num_epochs": 1.0})
    for name in ("sft", "reward", "ppo"):
        stages[name].mesh.data = 1
    main.run(config, str(tmp_path))
    assert list(config.order) == ["sft", "reward", "ppo", "evaluate"]
    assert read_rows(tmp_path / "reward/metrics.jsonl")[-1]["validation/accuracy_heldout"] >= 0.0
    assert "reward/reward" in read_rows(tmp_path / "ppo/metrics.jsonl")[-1]
    results = json.loads((tmp_path / "evaluate/evaluation.json").read_text())
    assert set(results["checkpoints"]) == {"model", "sft", "ppo"}


def test_without_demonstrations_there_is_no_fine_tuning(folder):
    config = load_experiment(PIPELINE, facts(folder, "comparisons", "prompts"))
    assert list(config.order) == ["reward", "ppo", "evaluate"]
    assert config.stages.reward.init.policy == config.stages.ppo.init.policy == f"hf:{folder}/model"
