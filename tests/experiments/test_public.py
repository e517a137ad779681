"""Experiments on public data: sources can hold what the stage asks for, and fixtures run."""

import csv
import json
import re
from pathlib import Path

import pytest
from tests_support import ROOT, load_experiment

from experiments.ablations import reproduce
from rlhf_jax import main
from rlhf_jax.config import build
from rlhf_jax.data.public.shapes import SHAPES
from rlhf_jax.data.records import Comparison, Demonstration, Document, LabelledText, Prompt
from rlhf_jax.data.sources import Source
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.stages import benchmark
from rlhf_jax.stages.benchmark_tasks import Selection, make_benchmarks
from rlhf_jax.training.metrics import read_rows

# benchmarks.py names files of questions, not sources of records.
FILES = sorted(
    path.name
    for path in Path(ROOT, "experiments/public").glob("*_*.py")
    if path.name != "__init__.py"
)
FIELDS = {
    "comparisons": Comparison,
    "demonstrations": Demonstration,
    "documents": Document,
    "texts": LabelledText,
    "prompts": Prompt,
}


@pytest.mark.parametrize("name", FILES)
def test_sources_are_known_and_hold_the_records(name):
    data = load_experiment(f"experiments/public/{name}", "default").data
    named = {field: data[field] for field in FIELDS if data.get(field)}
    assert named
    for field, source in named.items():
        place = Source.parse(source)
        assert FIELDS[field] in SHAPES[place.shape].converters
        assert place.split("train") != place.split("validation")


def test_rewardbench_has_its_published_sections(tmp_path):
    config = load_experiment("experiments/public/rewardbench.py", "tiny")
    assert Source.parse(config.benchmarks.comparisons.source).shape == "reward_bench"
    names = [name for part in config.benchmarks.comparisons.sections.values() for name in part]
    answers = {"chosen": "yes", "chosen_model": "m", "rejected": "no", "rejected_model": "m"}
    rows = [
        {"prompt": f"{name}?", **answers, "subset": name, "id": n} for n, name in enumerate(names)
    ]
    (tmp_path / "filtered.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config.benchmarks.comparisons.source = f"reward_bench@jsonl:{tmp_path}/{{split}}.jsonl"
    built = build(benchmark.Config, config)
    selection = Selection(0, built.limit, "reward", "", tmp_path)
    (rankings,), _ = make_benchmarks(built.benchmarks, selection)
    scores = [
        [0.0, 1.0] if name in ("math-prm", "xstest-should-refuse", "mt-bench-easy") else [1.0, 0.0]
        for name in names
    ]
    made = {
        row.metric: row.values
        for row in rankings.rows(
            {"reward": {"kept": list(range(len(names))), "scores": scores}}, Bootstrap(10, 0)
        )
    }
    sections = {"Chat": 1 - 28 / 358, "Chat Hard": 1.0, "Safety": 1 - 250 / 740, "Reasoning": 0.5}
    assert {name: made[f"section {name}"]["reward"].value for name in sections} == pytest.approx(
        sections
    )
    assert made["all sections"]["reward"].value == pytest.approx(sum(sections.values()) / 4)
    assert len(names) == 23


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A model pretrained on a fixture, and fixtures in the formats of the public data."""
    work = tmp_path_factory.mktemp("public")
    speeches = [
        f"KING {i}:\nMy horse number {i} is {'red' if i % 2 else 'white'} and old."
        for i in range(200)
    ]
    (work / "input.txt").write_text("\n\n".join(speeches))
    answer = [
        {
            "instruction": f"Which is {i}?",
            "context": "",
            "response": f"It is {i}.",
            "category": "qa",
        }
        for i in range(99)
    ]
    (work / "dolly.jsonl").write_text(
        "\n".join(map(json.dumps, [*answer, answer[0] | {"response": ""}]))
    )
    question = {f"prediction {k}": f"{'so ' * k}done" for k in (1, 2, 3, 4)} | {
        "passages": [],
        "preference": [1] * 6,
    }
    rows = [question | {"question": f"Why {i}?"} for i in range(40)]
    rows += [
        question | {"question": "?", "preference": answers}
        for answers in ([0] * 6, [1, 2, 1, 1, 1, 1])
    ]
    for split in ("train", "dev"):
        (work / f"{split}_feedback.json").write_text(json.dumps(rows))
    documents = f"blocks:{work}/input.txt?train=train[:50%]&validation=train[50%:]"
    run(work, "pretrain_text", "pretrain", "documents", documents)
    return work


def run(work, experiment, stage, field, source):
    config = load_experiment(f"experiments/public/{experiment}.py", "tiny")
    if stage == "pretrain":
        config.model.vocab_size = config.tokenizer.vocab_size = (
            300  # the fixture has not more pairs to merge
        )
    else:
        config.init.policy = "../pretrain"
    for name in (field, "demonstrations"):
        if name in config.data:
            config.data[name] = source
    main.run(config.to_dict(), str(work / stage))
    return list(read_rows(work / stage / "metrics.jsonl"))


def test_demonstrations_run(work, capsys):
    source = f"dolly@jsonl:{work}/dolly.jsonl?by=prompt&train=train[:50%]&validation=train[50%:]"
    rows = run(work, "sft_dolly", "sft", "demonstrations", source)
    assert rows[-1]["validation/loss"] < rows[0]["validation/loss"]
    assert "1 of 100 records dropped: 1 with an empty response" in capsys.readouterr().out


def test_rankings_of_four_run(work, capsys):
    source = f"qa_feedback_closed@json:{work}/{{split}}_feedback.json?validation=dev"
    rows = run(work, "reward_qa_feedback", "reward", "comparisons", source)
    assert rows[-1]["validation/accuracy_heldout"] >= 0.5
    output = capsys.readouterr().out
    assert "1 of 42 records dropped: 1 with answers that no ranking agrees with" in output
    assert "rankings: 1 of 41 records dropped: 1 with all responses tied" in output


def test_an_ablation_of_other_peoples_models_and_data_by_flags(work, capsys):
    source = f"qa_feedback_closed@json:{work}/{{split}}_feedback.json?validation=dev"
    changes = [
        "--config.models=('../../../pretrain',)",
        "--config.run.lora.rank=0",
        "--config.run.reward.max_candidates=4",
        "--config.run.reward.row_length=128",
        f"--config.run.data.comparisons={source}",
        f"--config.run.data.demonstrations={source}",
    ]
    command = ["public_reward_scaling", "--size=tiny", "--seeds=2", f"--workdir={work}"]
    assert reproduce.command([*command, *changes]) == 0
    rows = list(
        csv.DictReader((work / "public_reward_scaling/results.csv").read_text().splitlines())
    )
    assert [(row["seed"], row["model"], row["rankings"]) for row in rows] == [
        (seed, "../../../pretrain", count) for seed in "01" for count in ("16", "32")
    ]
    assert all(0 <= float(row["heldout"]) <= 1 for row in rows)
    output = capsys.readouterr().out
    assert "epochs of 16 rankings" in output
    failed = [line for line in output.splitlines() if "FAILED" in line and "with the model" in line]
    assert [line.split()[1] for line in failed] == ["–"]  # of one size


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["public_reward_scaling", "--config.run.reward.max_candidate=4"], "max_candidate"),
        (["public_reward_scaling", "--config.rankings=(16"], r"--config.rankings=\(16: "),
        (["public_reward_scaling", "--config.rankings=16"], r"--config.rankings=16: .*type"),
        (
            ["public_reward_scaling", "--sizes=tiny"],
            "--sizes=tiny: no such flag; expected --config.FIELD=VALUE",
        ),
        (["gao_rl", "--sizes=tiny"], "--sizes=tiny: no such flag"),
        (
            ["gao_rl", "--config.models=()"],
            "gao_rl has no config; its grid is in experiments/ablations/gao_rl.py",
        ),
    ],
)
def test_flags_that_cannot_be_are_refused(flags, message, tmp_path, capsys):
    assert reproduce.command([*flags, f"--workdir={tmp_path}"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
