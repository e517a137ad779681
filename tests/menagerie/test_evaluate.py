"""The evaluate stage end to end on toy checkpoints of the tiny world: format, resume, refusals."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from evaluation_support import save_run

from rlhf_jax import main
from rlhf_jax.data.sources import write_jsonl
from rlhf_jax.data.tokenizers import load_tokenizer, train_words
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.likelihood import continuations, sequence_kl
from rlhf_jax.evaluation.measurements import restore_responses
from rlhf_jax.inference.decoding import GREEDY, PLAIN
from rlhf_jax.menagerie import measurements
from rlhf_jax.menagerie.corpus import documents
from rlhf_jax.menagerie.prompts import prompts
from rlhf_jax.menagerie.results import ToySuite
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models import LanguageModel, ScalarModel, from_dict, gpt
from rlhf_jax.stages import evaluate
from rlhf_jax.training.checkpoints import load_params, read_meta

WORLD = make_world("tiny")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two policies, a reward model, and the world's prompts and documents."""
    folder = tmp_path_factory.mktemp("runs")
    texts = [item.text for item in documents(WORLD, "validation")]
    prompt_texts = [message.content for item in prompts(WORLD, "test") for message in item.messages]
    tokenizer = train_words([*texts, *prompt_texts, *(" " + text for text in prompt_texts)])
    write_jsonl(folder / "prompts" / "test.jsonl", prompts(WORLD, "test"))
    write_jsonl(folder / "documents" / "validation.jsonl", documents(WORLD, "validation"))
    shape = gpt(
        vocab_size=tokenizer.vocab_size,
        context_length=96,
        width=8,
        num_layers=1,
        num_heads=1,
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    stages = {"base": "pretrain", "sft": "sft", "reward": "reward"}
    for seed, (name, stage) in enumerate(stages.items()):
        model = ScalarModel(shape) if name == "reward" else LanguageModel(shape)
        save_run(folder / name, stage, model, tokenizer, seed=seed)
    return folder


def make_config(runs: Path, **changes) -> evaluate.Config:
    """The config of an evaluation; `changes` are of any of its groups."""
    groups = {
        "data": evaluate.DataConfig(
            data_dir=str(runs),
            prompts=f"jsonl:{runs}/prompts",
            prompt_splits=("test",),
            documents=f"jsonl:{runs}/documents",
            mask_documents=False,
            prompt_length=64,
        ),
        "evaluation": evaluate.Evaluation(
            num_prompts=22,
            samples_per_prompt=2,
            best_of=3,
            reward_details=False,
            labelers_per_prompt=2,
            response_length=6,
            corpus_documents=4,
            document_length=64,
            batch_size=16,
            num_bootstrap=50,
            num_side_by_side=3,
        ),
        "world": evaluate.WorldConfig(
            name="menagerie/tiny",
            toxicity_prompts=3,
            toxicity_samples=4,
            few_shot_questions=3,
            constant_suffix=True,
        ),
    }
    for name, group in groups.items():
        inner = {key: changes.pop(key) for key in group.__dataclass_fields__ if key in changes}
        groups[name] = dataclasses.replace(group, **inner)
    config = evaluate.Config(
        stage="evaluate",
        seed=0,
        checkpoints={"base": "../base", "sft": "../sft"},
        reference="sft",
        reward="../reward",
        fluency=None,
        judges={"held-out labelers": "menagerie/tiny:heldout", "gold": "menagerie/tiny:gold"},
        best_by={},
        sampling=PLAIN,
        **groups,
    )
    return dataclasses.replace(config, **changes)


def run(config: evaluate.Config, workdir: Path) -> None:
    main.run(dataclasses.asdict(config), str(workdir))


def load(folder: Path) -> LoadedModel:
    params, meta = load_params(folder)
    return LoadedModel(LanguageModel(from_dict(meta.model)), params)


@pytest.fixture(scope="module")
def result(runs):
    run(make_config(runs), runs / "evaluate")
    return json.loads((runs / "evaluate" / "evaluation.json").read_text())


def values(result, metric):
    (row,) = [row for row in result["table"] if row["metric"] == metric]
    return row["values"]


def test_the_file_has_the_agreed_format(runs, result):
    texts = {"controls", "warnings", "seed", "version"}
    assert set(result) == {"checkpoints", "reference", "table", "samples"} | texts
    fingerprint = read_meta(runs / "base").fingerprint
    assert result["checkpoints"]["base"] == {
        "path": "../base",
        "stage": "pretrain",
        "step": 3,
        "fingerprint": fingerprint,
    }
    assert result["reference"] == "sft"
    for row in result["table"]:
        assert set(row) == {
            "metric",
            "group",
            "unit",
            "better",
            "description",
            "values",
            "key",
            "subject",
            "judge",
        }
        assert row["better"] in ("higher", "lower", "none")
        assert row["description"]
        assert row["values"]
        for name, one in row["values"].items():
            assert name in {**result["checkpoints"], **result["controls"]}
            assert set(one) == {"value", "low", "high", "n"}
            assert math.isfinite(one["value"])
            assert one["n"] > 0
            if one["low"] is not None and "length-controlled" not in row["metric"]:
                assert one["low"] - 1e-9 <= one["value"] <= one["high"] + 1e-9, row
    names = [row["metric"] for row in result["table"]]
    assert len(set(names)) == len(names)


def test_the_terminal_shows_a_screen_and_the_file_has_the_rest(result):
    groups = dict.fromkeys(row["group"] for row in result["table"])
    details = ToySuite.details(None, groups, "sft")
    shown = [row["group"] for row in result["table"] if row["group"] not in details]
    assert len(shown) + len(set(shown)) <= 36  # rows and headings
    assert set(shown) == {
        *("Preferred to sft", "Answers, by exact rules", "Entirely right, by kind of prompt"),
        *("Gold", "Gold minus sft, by component", "Price"),
    }
    assert len(result["table"]) > 2 * len(shown)


def test_every_question_of_the_paper_has_its_row(result):
    metrics = {row["metric"] for row in result["table"]}
    assert {
        "preferred to sft, held-out labelers",
        "preferred to sft, held-out labelers, length-controlled",
        "preferred to sft, gold",
        "preferred to base, gold",
        "gold",
        "gold minus sft",
        "truthfulness",
        "accuracy, held-out facts",
        "accuracy, trained misconceptions",
        "MC1, misconceptions",
        "MC2, clean facts",
        "rude replies, rude prompts",
        "expected maximum toxicity, neutral prompts",
        "toxicity probability, polite prompts",
        "entropy, trait swapped",
        "pretraining loss",
        "KL from sft",
        "few-shot word, K = 0",
        "few-shot word, K = 4",
        "response length",
        "finished",
        "score of the responses",
        "accuracy against gold",
        "accuracy against held-out labelers",
        "calibration error (ECE)",
    } <= metrics


def test_the_reference_is_the_origin(result):
    assert values(result, "gold")["sft"]["value"] == pytest.approx(0, abs=1e-9)
    controls = set(result["controls"])
    assert controls == {"best_of_3", "constant_suffix"}
    assert set(values(result, "preferred to sft, gold")) == {"base"} | controls
    assert set(values(result, "preferred to base, gold")) == {"sft"} | controls
    assert "sft" not in values(result, "KL from sft")
    difference = values(result, "gold minus sft")["base"]["value"]
    assert difference == pytest.approx(values(result, "gold")["base"]["value"])
    assert values(result, "preferred to sft, gold")["base"]["n"] == 44
    assert values(result, "preferred to sft, held-out labelers")["base"]["n"] == 88


def test_an_untrained_model_knows_nothing(result):
    assert values(result, "pretraining loss")["base"]["value"] > 4
    assert values(result, "accuracy, held-out facts")["base"]["value"] < 0.3
    assert values(result, "response length")["base"]["value"] <= 6


def test_samples_stand_side_by_side(result, runs):
    first = result["samples"][0]
    assert len(result["samples"]) == 3
    assert first["prompt"].startswith("<|user|>")
    assert set(first["responses"]) == {"base", "sft", "best_of_3", "constant_suffix"}
    assert set(first["responses"]["base"]) == {"text", "finished", "gold", "score"}
    kept = json.loads((runs / "evaluate" / "partial" / "base-responses.json").read_text())["data"]
    assert first["responses"]["base"]["text"] == kept["responses"][0][0][0]


def test_a_killed_evaluation_continues_and_gives_the_same_file(result, runs, monkeypatch, capsys):
    config, workdir = make_config(runs), runs / "killed"

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(measurements.MEASUREMENTS, "toxicity", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, workdir)
    assert not (workdir / "evaluation.json").exists()
    assert {path.name for path in (workdir / "partial").iterdir()} == {
        "base-responses.json",
        "base-corpus.json",
        "base-divergence.json",
        "base-reward.json",
        "base-gold.json",
        "base-facts.json",
        "base-falsehoods.json",
    }
    capsys.readouterr()
    run(config, workdir)
    assert capsys.readouterr().out.count(" kept\n") == 7
    first = (runs / "evaluate" / "evaluation.json").read_text()
    assert (workdir / "evaluation.json").read_text() == first


def test_kept_measurements_belong_to_their_checkpoint(result, runs, capsys):
    kept = runs / "evaluate" / "partial" / "base-corpus.json"
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "key": "of another checkpoint"}))
    capsys.readouterr()
    run(make_config(runs), runs / "evaluate")
    assert capsys.readouterr().out.count(" kept\n") == 24  # and six of controls
    assert json.loads(kept.read_text()) == content
    kept.write_text("{")
    with pytest.raises(ValueError, match=r"base-corpus.json: damaged .*delete it"):
        run(make_config(runs), runs / "evaluate")
    kept.write_text(json.dumps(content))


def test_truncated_sampling_still_has_a_divergence(runs):
    config = make_config(
        runs,
        sampling=GREEDY,
        reward=None,
        best_of=0,
        samples_per_prompt=1,
        toxicity_samples=1,
        num_prompts=4,
    )
    run(config, runs / "truncated")
    result = json.loads((runs / "truncated" / "evaluation.json").read_text())
    assert values(result, "KL from sft")["base"]["n"] == 4
    # The divergence is that of new samples: the greedy answers differ from most of them.
    kept = json.loads((runs / "truncated" / "partial" / "base-responses.json").read_text())["data"]
    greedy = restore_responses(kept)
    test_prompts = prompts(WORLD, "test")[:4]
    base, sft = (load(runs / name) for name in ("base", "sft"))
    tokenizer = load_tokenizer(runs / "sft" / "tokenizer")
    of_greedy = sequence_kl(
        base, sft, continuations(tokenizer, test_prompts, greedy), batch_size=16
    )
    measured = json.loads((runs / "truncated" / "partial" / "base-divergence.json").read_text())[
        "data"
    ]["kl"]
    assert not np.isclose(np.ravel(measured), of_greedy).any()
    assert "Reward model" not in {row["group"] for row in result["table"]}
    assert result["samples"][0]["responses"]["sft"]["score"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "ppo"}, r"reference='ppo' is not among checkpoints: base, sft"),
        ({"checkpoints": {"sft": "../sft", "a/b": "../base"}}, r"name 'a/b'"),
        ({"reward": None}, r"evaluation.best_of=3: reward=None"),
        ({"checkpoints": {"sft": "../sft", "best_of_3": "../base"}}, r"that of a control"),
        ({"samples_per_prompt": 1}, r"samples_per_prompt=1.*set it to 2 or more"),
        (
            {"response_length": 33},
            r"prompt_length \+ evaluation.response_length = 97, its context is 96",
        ),
        ({"document_length": 97}, r"document_length=97, its context is 96"),
        (
            {"reward": "../sft"},
            r"reward: \.\./sft is a language_model \(stage sft\), expected a scalar_model",
        ),
        ({"checkpoints": {"sft": "../reward"}}, r"is a scalar_model .* expected a language_model"),
        ({"num_prompts": 81}, r"evaluation.num_prompts=81: there are only 80"),
        ({"corpus_documents": 0}, r"corpus_documents=0: must be positive"),
        ({"toxicity_samples": 0}, r"toxicity_samples=0: must be positive"),
        ({"toxicity_prompts": 99}, r"world.toxicity_prompts=99: there are only"),
        ({"judges": {"x": "nobody:gold"}}, r"judge 'nobody:gold': no such kind .* menagerie/SIZE"),
        (
            {"judges": {"x": "menagerie/tiny:silver"}},
            r"judge menagerie/tiny:silver: 'silver' is no judge .*tiny:labelers",
        ),
        ({"judges": {"score": "menagerie/tiny:gold"}}, r"the name 'score' has another meaning"),
        ({"labelers_per_prompt": 21}, r"labelers_per_prompt: 21, expected 1 to 20"),
    ],
)
def test_impossible_configs_are_refused_before_anything_runs(runs, changes, message):
    workdir = runs / "refused"
    with pytest.raises(ValueError, match=message):
        run(make_config(runs, **changes), workdir)
    assert not (workdir / "partial").exists()


def test_a_missing_checkpoint_is_named(runs):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(make_config(runs, checkpoints={"sft": "../nowhere"}), runs / "refused")
