"""An evaluation without a toy world: own prompts, and a reward model and a function as judges."""

import json

import numpy as np
import pytest
from evaluation_support import Brevity, config, prompt, save_run, words

from rlhf_jax import main
from rlhf_jax.config import build
from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import write_jsonl
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_scalar_model
from rlhf_jax.evaluation.estimates import Estimate
from rlhf_jax.evaluation.judges import ScoreJudge
from rlhf_jax.evaluation.likelihood import score_responses
from rlhf_jax.evaluation.measurements import restore_responses
from rlhf_jax.evaluation.results import Suite
from rlhf_jax.evaluation.table import Row
from rlhf_jax.models import LanguageModel, ScalarModel
from rlhf_jax.stages import evaluate

PROMPTS = [
    prompt(text) for text in ("what is red?", "what?", "the fox is red.", "the bear", "blue owl")
]


class RewardModelJudge(ScoreJudge):
    """A reward model's folder as a judge."""

    description = "a reward model"

    def __init__(self, folder):
        self.reward = load_scalar_model(find_checkpoint(folder, str(folder)))

    def scores(self, prompts, responses):
        return score_responses(self.reward, words(), prompts, responses, batch_size=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two policies, a reward model, own prompts and own documents."""
    folder, shape = tmp_path_factory.mktemp("runs"), config(words().vocab_size)
    save_run(folder / "sft", "sft", LanguageModel(shape), words(), seed=0)
    save_run(folder / "ppo", "ppo", LanguageModel(shape), words(), seed=1)
    save_run(folder / "reward", "reward", ScalarModel(shape), words(), seed=2)
    write_jsonl(folder / "prompts" / "test.jsonl", PROMPTS)
    write_jsonl(folder / "documents" / "validation.jsonl", [Document("the fox is red.")] * 8)
    return folder


def plain_config(runs, **changes):
    """The config as an experiment file has it."""
    return {
        "stage": "evaluate",
        "seed": 0,
        "checkpoints": {"sft": "../sft", "ppo": "../ppo"},
        "reference": "sft",
        "reward": None,
        "fluency": None,
        "judges": {},
        "best_by": {},
        "data": {
            "data_dir": str(runs),
            "prompts": f"jsonl:{runs}/prompts",
            "prompt_splits": ("test",),
            "documents": None,
            "mask_documents": False,
            "prompt_length": 8,
        },
        "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "nucleus": "holtzman"},
        "evaluation": {
            "num_prompts": 5,
            "samples_per_prompt": 2,
            "best_of": 0,
            "reward_details": False,
            "labelers_per_prompt": 1,
            "response_length": 6,
            "corpus_documents": 8,
            "document_length": 16,
            "batch_size": 4,
            "num_bootstrap": 50,
            "num_side_by_side": 2,
        },
        "world": None,
    } | changes


def read(folder):
    result = json.loads((folder / "evaluation.json").read_text())
    return result, {row["metric"]: row for row in result["table"]}


def test_own_prompts_and_own_judges_make_a_table(runs, capsys):
    settings = build(
        evaluate.Config, plain_config(runs, judges={"brevity": "own:brevity", "model": "own:model"})
    )
    judges = {"brevity": Brevity(), "model": RewardModelJudge(runs / "reward")}
    evaluate.run(settings, str(runs / "own"), judges=judges, suite=Suite())
    result, rows = read(runs / "own")
    assert list(rows) == [
        "preferred to sft, brevity",
        "preferred to sft, brevity, length-controlled",
        "tied with sft, brevity",
        "preferred to sft, model",
        "preferred to sft, model, length-controlled",
        "tied with sft, model",
        "brevity",
        "brevity minus sft",
        "model",
        "model minus sft",
        "KL from sft",
        "response length",
        "response length in words",
        "finished",
        "distinct-1",
        "distinct-2",
        "distinct-3",
    ]
    # The win rate is that of the responses which were kept.
    kept = {
        name: restore_responses(
            json.loads((runs / "own" / "partial" / f"{name}-responses.json").read_text())["data"]
        )
        for name in ("sft", "ppo")
    }
    length = {name: Brevity().scores(PROMPTS, responses) for name, responses in kept.items()}
    wins = 0.5 + 0.5 * np.sign(length["ppo"] - length["sft"])
    assert rows["preferred to sft, brevity"]["values"]["ppo"]["value"] == pytest.approx(wins.mean())
    assert rows["preferred to sft, brevity"]["values"]["ppo"]["n"] == 10
    score = {name: judges["model"].scores(PROMPTS, responses) for name, responses in kept.items()}
    gain = (score["ppo"].mean() - score["sft"].mean()) / score["sft"].std()
    assert rows["model minus sft"]["values"]["ppo"]["value"] == pytest.approx(gain)
    assert set(result["samples"][0]["responses"]["ppo"]) == {
        "text",
        "finished",
        "score",
        "brevity",
        "model",
    }
    assert "preferred to sft, model" in capsys.readouterr().out


def test_documents_and_a_reward_model_add_their_rows(runs):
    data = plain_config(runs)["data"] | {"documents": f"jsonl:{runs}/documents"}
    main.run(plain_config(runs, data=data, reward="../reward"), str(runs / "more"))
    _, rows = read(runs / "more")
    assert list(rows) == [
        "pretraining loss",
        "KL from sft",
        "response length",
        "response length in words",
        "finished",
        "distinct-1",
        "distinct-2",
        "distinct-3",
        "score of the responses",
    ]
    assert rows["pretraining loss"]["values"]["sft"]["value"] > 0


def test_a_new_measurement_is_one_function_and_one_maker_of_rows(runs):
    def count_layers(loaded, context):
        return {"count": loaded.model.config.num_layers}

    def layer_rows(results):
        values = {
            name: Estimate(data["layers"]["count"], None, None, 1)
            for name, data in results.measured.items()
        }
        return [Row("Model", "layers", "", "none", "", values)]

    suite = Suite()
    suite.measurements = {**Suite.measurements, "layers": count_layers}
    suite.rows = {"layers": layer_rows}
    settings = build(evaluate.Config, plain_config(runs))
    evaluate.run(settings, str(runs / "counting"), judges={}, suite=suite)
    _, rows = read(runs / "counting")
    assert list(rows) == ["layers"]
    assert rows["layers"]["values"]["ppo"]["value"] == 1


def test_what_judges_say_is_kept_out_of_the_fields_of_a_sample(runs):
    settings = build(evaluate.Config, plain_config(runs, judges={"text": "own:text"}))
    with pytest.raises(ValueError, match="the name 'text' has another meaning"):
        evaluate.run(settings, str(runs / "refused"), judges={"text": Brevity()}, suite=Suite())
