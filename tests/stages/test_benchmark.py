"""The benchmark stage end to end on toy checkpoints and hand-written files."""

import dataclasses
import json

import numpy as np
import pytest
from evaluation_support import WORDS, config, drawn_params
from tests_support import load_experiment

from experiments.public import benchmarks
from rlhf_jax import main
from rlhf_jax.apps import report
from rlhf_jax.config import build
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.evaluation.benchmarks import truthfulqa
from rlhf_jax.evaluation.benchmarks.questions import INSTRUCTIONS
from rlhf_jax.evaluation.benchmarks.toxicity_classifier import SHAPES
from rlhf_jax.models import LanguageModel, ScalarModel, to_dict
from rlhf_jax.stages import benchmark
from rlhf_jax.training.checkpoints import Meta, save

TRUTHFUL = """\
Type,Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers,Source
A,Animals,what colour is the fox ?,red,blue,red; is red,blue; green,x
A,Plants,what is the owl ?,blue,green,blue,green; red,x
"""
CROWS = """,sent_more,sent_less,stereo_antistereo,bias_type
0,the fox is red .,the owl is red .,stereo,animals
1,the bear is blue .,the owl is blue .,antistereo,animals
"""


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {
    "truthful.csv": TRUTHFUL,
    "crows.csv": CROWS,
    "toxicity.jsonl": lines(
        *(
            {"challenging": n == 0, "prompt": {"text": text, "toxicity": level}}
            for n, (text, level) in enumerate(
                [("you dolt", 0.9), ("the owl is", 0.1), ("the fox is", None)]
            )
        )
    ),
    "comparisons.jsonl": lines(
        *(
            {
                "messages": [{"role": "user", "content": "what colour ?"}],
                "responses": ["red", "blue", "you moron"],
                "ranks": ranks,
                "metadata": {"kind": kind},
            }
            for ranks, kind in (([1, 2, 3], "x"), ([2, 1, 2], "y"))
        )
    ),
    "prompts.jsonl": lines(
        *({"prompt": f"what is the {animal} ?"} for animal in ("fox", "owl", "fox"))
    ),
    "choices.jsonl": lines(
        *(
            {"question": f"the {animal} is", "choices": ["red", "blue", "green"], "answer": n}
            for n, animal in enumerate(("fox", "owl", "bear"))
        )
    ),
    "text.txt": "the fox is red . " * 40,
}


# Multiple choice of TruthfulQA alone.
ABSENT = {
    **{f"benchmarks.{name}": None for name in benchmarks.NAMES if name != "truthfulqa"},
    "benchmarks.truthfulqa.free_answers": False,
}


def make_checkpoint(folder, shape, tokenizer, seed):
    reward = folder.name == "reward"
    meta = Meta(
        stage=folder.name,
        kind="scalar_model" if reward else "language_model",
        num_steps=3,
        model=to_dict(shape),
        tokenizer=tokenizer.fingerprint(),
        lineage={},
    )
    params = drawn_params(ScalarModel(shape) if reward else LanguageModel(shape), seed)
    save(folder, 3, params, {"step": 3}, meta, keep=1)
    tokenizer.save(folder / "tokenizer")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three policies (one with a short context), a reward model, all files and a classifier."""
    folder = tmp_path_factory.mktemp("runs")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    everything = " ".join([WORDS, truthfulqa.PRIMER, "Q: Question\nA:", *INSTRUCTIONS.values()])
    tokenizer = train_words([everything, " " + everything])
    lengths = {"base": 256, "sft": 256, "short": 64, "reward": 256}
    for seed, (name, length) in enumerate(lengths.items()):
        make_checkpoint(
            folder / name, config(tokenizer.vocab_size, context_length=length), tokenizer, seed
        )
    rng, sizes = np.random.default_rng(0), {"V": 3, "E": 3, "G": 8, "H": 2, "D": 4, "F": 3, "K": 2}
    (folder / "judge").mkdir()
    weights = {
        name: rng.normal(size=[sizes[axis] for axis in axes]).astype(np.float32)
        for name, axes in SHAPES.items()
    }
    np.savez(folder / "judge" / "weights.npz", **weights)
    (folder / "judge" / "vocab.json").write_text('[null, "dolt", "moron"]')
    return folder


def make_config(runs, **changes):
    """The shipped experiment, tiny, with the paths of the fixture; `changes` by dotted name."""
    wanted = {
        "checkpoints": {"base": "../base", "sft": "../sft", "reward": "../reward"},
        "benchmarks.truthfulqa.path": f"{runs}/truthful.csv",
        "benchmarks.crows_pairs.path": f"{runs}/crows.csv",
        "benchmarks.real_toxicity_prompts.paths": (f"{runs}/toxicity.jsonl",),
        "benchmarks.real_toxicity_prompts.instructions": ("basic",),
        "benchmarks.real_toxicity_prompts.classifier": f"{runs}/judge",
        "benchmarks.comparisons.source": f"jsonl:{runs}/comparisons.jsonl",
        "benchmarks.comparisons.split": "train",
        "benchmarks.comparisons.subset_field": "kind",
        "benchmarks.comparisons.sections": {"all": {"x": 1.0, "y": 1.0}},
        "benchmarks.comparisons.section_weights": {"all": 1.0},
        "benchmarks.win_rate.prompts": f"jsonl:{runs}/prompts.jsonl",
        "benchmarks.win_rate.split": "train",
        "benchmarks.multiple_choice.path": f"{runs}/choices.jsonl",
        "benchmarks.multiple_choice.examples": f"{runs}/choices.jsonl",
        "benchmarks.multiple_choice.shots": (2,),
        "benchmarks.text.source": f"text:{runs}/text.txt",
        **changes,
    }
    argument = ",".join(["tiny", *benchmarks.NAMES])
    tree = load_experiment("experiments/public/benchmarks.py", argument).to_dict()
    # What leaves a whole benchmark out comes last.
    for name, value in sorted(wanted.items(), key=lambda item: item[1] is None):
        *path, last = name.split(".")
        part = tree
        for step in path:
            part = part[step]
        part[last] = value
    return build(benchmark.Config, tree)


@pytest.fixture(scope="module")
def result(runs):
    benchmark.run(make_config(runs), str(runs / "out"))
    return json.loads((runs / "out" / "evaluation.json").read_text())


def values(result, metric):
    (row,) = [row for row in result["table"] if row["metric"] == metric]
    return row["values"]


def test_texts_stand_side_by_side(result, runs):
    by = {
        name: [entry for entry in result["samples"] if entry["metadata"]["benchmark"] == name]
        for name in (
            "TruthfulQA (original)",
            "RealToxicityPrompts, basic",
            "Preferred by a reward model",
        )
    }
    assert [len(samples) for samples in by.values()] == [2, 2, 2]
    assert sum(map(len, by.values())) == len(result["samples"])
    kept = {name: runs / "out/partial" / f"{name}-win-rate.json" for name in ("base", "sft")}
    answers = {name: json.loads(path.read_text())["data"] for name, path in kept.items()}
    assert {len(data["answers"]) for data in answers.values()} == {2}, (
        "a prompt that comes twice is asked once"
    )
    for n, sample in enumerate(by["Preferred by a reward model"]):
        assert sample["prompt"] == f"<|user|>what is the {('fox', 'owl')[n]} ?"
        assert set(sample["responses"]) == {"base", "sft"}
        for name, reply in sample["responses"].items():
            text, finished = answers[name]["answers"][n][0]
            assert reply == {
                "text": text,
                "finished": finished,
                "score": answers[name]["scores"][n][0],
            }


def test_every_benchmark_has_its_rows_and_every_checkpoint_its_column(result):
    metrics = [row["metric"] for row in result["table"]]
    assert len(set(metrics)) == len(metrics)
    for metric in (
        "TruthfulQA MC1",
        "TruthfulQA MC2, Plants",
        "TruthfulQA binary choice",
        "TruthfulQA BLEU max",
        "CrowS-Pairs entropy, respectful instruction",
        "CrowS-Pairs stereotypes preferred, animals",
        "expected maximum toxicity, challenging prompts",
        "multiple choice, K = 2, per token",
        "bits per byte",
        "preferred to sft by the judge",
        "accuracy on ranked pairs",
        "section all",
    ):
        estimates = values(result, metric)
        assert estimates, metric
        assert all(
            set(entry) == {"value", "low", "high", "n"} and entry["n"] > 0
            for entry in estimates.values()
        )
    assert set(values(result, "accuracy on ranked pairs")) == {"reward"}
    assert set(values(result, "perplexity")) == {"base", "sft"}
    assert list(dict.fromkeys(row["group"] for row in result["table"])) == [
        group
        for n, group in enumerate(row["group"] for row in result["table"])
        if n == 0 or result["table"][n - 1]["group"] != group
    ]


def test_programs_find_win_rates_and_reliability_by_key_and_subject(result):
    subjects = {}
    for row in result["table"]:
        subjects.setdefault(row["key"], []).append(row["subject"])
    bins = [f"confidence {0.5 + n / 20:.2f} to {0.55 + n / 20:.2f}" for n in range(10)]
    assert subjects["win_rate_model"] == ["sft"]
    assert subjects["reliability_accuracy"] == subjects["reliability_confidence"] == bins


def test_what_a_short_context_cannot_hold_is_counted(result, runs):
    benchmark.run(
        make_config(runs, **ABSENT, checkpoints={"short": "../short", "sft": "../sft"}),
        str(runs / "short_run"),
    )
    short = json.loads((runs / "short_run" / "evaluation.json").read_text())
    assert set(values(short, "TruthfulQA MC1")) == {"sft"}
    left_out = values(short, "TruthfulQA (original): questions left out")
    assert {name: entry["value"] for name, entry in left_out.items()} == {"short": 2, "sft": 0}
    assert values(short, "TruthfulQA MC2")["sft"] == values(result, "TruthfulQA MC2")["sft"]


def test_the_numbers_are_those_of_the_kept_log_probabilities(result, runs):
    kept = json.loads((runs / "out" / "partial" / "sft-truthfulqa.json").read_text())["data"]
    first, second = (
        np.exp(np.array(entry)) for entry in kept["logps"]
    )  # red, is red, blue, green; blue | blue, green, red; green
    mc2 = [first[:2].sum() / first[:4].sum(), second[:1].sum() / second[:3].sum()]
    assert values(result, "TruthfulQA MC2")["sft"]["value"] == pytest.approx(np.mean(mc2))
    mc1 = [first[0] > max(first[2:4]), second[0] > max(second[1:3])]
    assert values(result, "TruthfulQA MC1")["sft"]["value"] == np.mean(mc1)


def test_a_second_run_measures_nothing_and_gives_the_same_file(result, runs, capsys):
    before = (runs / "out" / "evaluation.json").read_text()
    benchmark.run(make_config(runs), str(runs / "out"))
    printed = capsys.readouterr().out
    assert printed.count(" kept\n") == 19  # 9 of each policy, 1 of the reward model
    assert "RealToxicityPrompts prompts (1 left out without a score): 2 of 2" in printed
    assert (runs / "out" / "evaluation.json").read_text() == before


def test_the_report_shows_it(result, runs):
    assert report.main([str(runs / "out"), f"--output={runs / 'report.html'}"]) == 0
    page = (runs / "report.html").read_text()
    drawn = (
        'aria-label="preferred to sft: base"',
        'aria-label="accuracy of reward over its confidence"',
    )
    for text in ("TruthfulQA MC1", "Preferred by a reward model", "left out", *drawn):
        assert text in page


def test_a_benchmark_without_a_path_is_not_run_and_the_table_says_so(runs, capsys):
    benchmark.run(make_config(runs, **ABSENT), str(runs / "few"))
    result = json.loads((runs / "few" / "evaluation.json").read_text())
    absent = {row["metric"]: row["description"] for row in result["table"] if not row["values"]}
    assert absent["CrowS-Pairs: not run"] == "benchmarks.crows_pairs is None in the config"
    assert len([name for name in absent if name.endswith(": not run")]) == 6
    out = capsys.readouterr().out
    assert "Plain text: not run: benchmarks.text is None in the config" in out


def test_scores_of_a_judge_elsewhere_take_two_runs(runs):
    only = {
        **{f"benchmarks.{name}": None for name in benchmarks.NAMES},
        "benchmarks.real_toxicity_prompts.classifier": None,
    }
    del only["benchmarks.real_toxicity_prompts"]
    benchmark.run(make_config(runs, **only), str(runs / "scored"))
    assert "no judge" in (runs / "scored" / "evaluation.json").read_text()
    rows = []
    for path in sorted((runs / "scored" / "continuations").iterdir()):
        for row in map(json.loads, path.read_text().splitlines()):
            rows.append(
                {
                    **row,
                    "generations": [{**entry, "toxicity": 0.75} for entry in row["generations"]],
                }
            )
    (runs / "scores.jsonl").write_text(lines(*rows))
    benchmark.run(
        make_config(
            runs, **only, **{"benchmarks.real_toxicity_prompts.scores": f"{runs}/scores.jsonl"}
        ),
        str(runs / "scored"),
    )
    result = json.loads((runs / "scored" / "evaluation.json").read_text())
    estimates = values(result, "expected maximum toxicity, toxic prompts")
    assert {name: entry["value"] in (0.0, 0.75) for name, entry in estimates.items()} == {
        "base": True,
        "sft": True,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "ppo"}, r"reference='ppo' is not among checkpoints: base, sft, reward"),
        ({"reference": "reward"}, r"reference='reward': win_rate compares language models"),
        (
            {"checkpoints": {"sft": "../sft"}},
            r"comparisons: none of the checkpoints is a scalar_model",
        ),
        (
            {"benchmarks.win_rate.judge": "../sft"},
            r"win_rate.judge: \.\./sft is a language_model, expected a scalar_model",
        ),
        ({"benchmarks.text.window": 257}, r"text: needs 257 tokens, the context of sft is 256"),
        ({"benchmarks.text.stride": 32}, r"stride=32: expected 1 to window - 1 = 31"),
        (
            {"benchmarks.crows_pairs.instructions": ("rude",)},
            r"crows_pairs.instructions=\['rude'\]: expected some of basic",
        ),
        ({"benchmarks.real_toxicity_prompts.scores": "x"}, r"classifier and scores are both set"),
        (
            {"benchmarks.real_toxicity_prompts.label": "toxic"},
            r"label='toxic': .* a classifier of words has none",
        ),
        (
            {"benchmarks.real_toxicity_prompts.classifier": "hf:judge"},
            r"label=None: .* needs the label that means",
        ),
        (
            {"benchmarks.comparisons.section_weights": {}},
            r"section_weights has nothing, comparisons.sections all",
        ),
        (
            {"benchmarks.comparisons.sections": {"all": {"x": -1.0}}},
            r"sections.all=.*must not be negative",
        ),
        ({"benchmarks.multiple_choice.examples": None}, r"shots=\[2\]: examples is None"),
        ({"benchmarks.multiple_choice.shots": (3,)}, r"shots=3: only 2 examples"),
        ({"benchmarks.truthfulqa.path": "nowhere.csv"}, r"nowhere.csv: no such file"),
        ({"batch_size": 0}, r"batch_size=0: must be positive"),
        ({"limit": 0}, r"limit=0: must be positive, or None"),
        ({"benchmarks.truthfulqa.response_length": 0}, r"truthfulqa.response_length=0: must be"),
        ({"benchmarks.crows_pairs.path": None}, r"benchmarks.crows_pairs.path: expected str, got"),
        ({f"benchmarks.{name}": None for name in benchmarks.NAMES}, r"benchmarks: all are None"),
    ],
)
def test_impossible_configs_are_refused_before_anything_is_loaded(runs, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        benchmark.run(make_config(runs, **changes), str(runs / "refused"))
    assert not (runs / "refused" / "partial").exists()


def test_a_limit_draws_with_the_seed(runs, capsys):
    config = make_config(runs, **ABSENT)
    benchmark.run(dataclasses.replace(config, limit=1), str(runs / "limited"))
    assert "TruthfulQA questions: 1 of 2" in capsys.readouterr().out
    result = json.loads((runs / "limited" / "evaluation.json").read_text())
    assert values(result, "TruthfulQA MC1")["sft"]["n"] == 1


def test_repeated_questions_are_counted(runs, tmp_path, capsys):
    twice = tmp_path / "twice.csv"
    header, *rows = (runs / "truthful.csv").read_text().splitlines()
    twice.write_text("\n".join([header, *rows, rows[0]]))
    benchmark.run(
        make_config(runs, **ABSENT, **{"benchmarks.truthfulqa.path": str(twice)}),
        str(runs / "twice"),
    )
    assert "TruthfulQA questions: 3 of 3, of which 1 repeat another\n" in capsys.readouterr().out


def test_an_experiment_has_the_benchmarks_that_are_named():
    config = benchmarks.get_config("tiny,text,truthfulqa")
    named = [name for name in benchmarks.NAMES if config.benchmarks[name] is not None]
    assert named == ["truthfulqa", "text"]
    assert (config.limit, benchmarks.get_config("text").limit) == (8, None)
    with pytest.raises(ValueError, match=r"'truthful', expected a size .* some of truthfulqa"):
        benchmarks.get_config("tiny,truthful")


def test_the_stage_has_its_command():
    assert main.STAGES["benchmark"] is benchmark
