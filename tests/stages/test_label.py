"""The label stage: what it samples and who ranks it, kept through kills, and what it refuses."""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from run_files import Death, rows
from tests_support import ROOT

from rlhf_jax import main
from rlhf_jax.data.records import Comparison, Prompt, to_dict
from rlhf_jax.data.records import from_dict as record_from_dict
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, generate
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models import LanguageModel, from_dict
from rlhf_jax.stages import label
from rlhf_jax.stages.comparisons import comparison_sources
from rlhf_jax.training.checkpoints import load_params, read_meta
from rlhf_jax.training.pretrained import read_tokenizer
from rlhf_jax.training.run import is_complete

WORLD = make_world("tiny")


def plan_of(tour, **changes):
    """The tour's label stage with fewer prompts; `changes` are those of its group `label`."""
    plan = json.loads(json.dumps(tour.plans["label"]))
    plan["init"]["policy"] = str(tour.workdir / "sft")
    plan["label"] |= {"num_prompts": 6, "num_validation_prompts": 4, **changes}
    return plan


def files_of(folder):
    """Every file that the stage promises, by its path."""
    paths = [folder / "label.json", *sorted((folder / "comparisons").rglob("*"))]
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in paths
        if path.is_file() and path.name != "origin.json"
    }


def comparisons_of(folder, judge="train", split="train"):
    lines = (folder / "comparisons" / judge / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def collected(tour, tmp_path_factory):
    """A finished stage with few prompts."""
    folder = tmp_path_factory.mktemp("collected") / "label"
    main.run(plan_of(tour), str(folder))
    return folder


# --- what is collected ----------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation"])
def test_responses_and_ranks_are_those_of_the_documented_draws(tour, split):
    """Compare with the stage's recipe, written down once more from its parts."""
    config = tour.plans["label"]
    params, meta = load_params(tour.workdir / "sft")
    tokenizer = read_tokenizer(tour.workdir / "sft")
    prompts = load(
        config["data"]["prompts"], Prompt, split=split, data_dir=config["data"]["data_dir"]
    )
    count = config["label"]["num_prompts" if split == "train" else "num_validation_prompts"]
    order = np.random.default_rng((0, split == "train")).permutation(len(prompts))[:count]
    prompts = [prompts[n] for n in order]
    generations = generate(
        LanguageModel(from_dict(meta.model)),
        params,
        tokenizer,
        prompts,
        jax.random.fold_in(jax.random.key(0), 2 if split == "train" else 3),
        GenerationSettings(PLAIN, 64, response_length=40, batch_size=16, num_samples=9),
    )
    rng = np.random.default_rng((0, 4))
    texts = []
    for group in generations:
        kept = group[: rng.integers(4, 10)]
        texts.append(list(dict.fromkeys(g.text for g in kept if g.finished and g.text.strip())))
    judges = ("train",) if split == "train" else ("heldout", "gold")
    for judge in judges:
        expected = []
        for n, (prompt, responses) in enumerate(zip(prompts, texts, strict=True)):
            if len(responses) < 2:
                continue
            if judge == "gold":
                totals = [gold.judge(WORLD, prompt.messages, r, True).total for r in responses]
                ranks = [1 + sum(other > total for other in totals) for total in totals]
            else:
                rng = np.random.default_rng((0, n))
                people = labelers.labelers(WORLD, judge)
                person = people[rng.integers(len(people))]
                finished = [True] * len(responses)
                ranks = labelers.rank(WORLD, person, prompt.messages, responses, finished, rng)[0]
            expected.append(
                to_dict(
                    Comparison(prompt.messages, tuple(responses), tuple(ranks), prompt.metadata)
                )
            )
        assert comparisons_of(tour.workdir / "label", judge, split) == expected


def test_label_json_says_who_ranked_what_and_what_was_left_out(tour):
    folder = tour.workdir / "label"
    summary = json.loads((folder / "label.json").read_text())
    meta = read_meta(tour.workdir / "sft")
    assert summary["policy"] == {
        "path": "../sft",
        "stage": "sft",
        "step": meta.step,
        "fingerprint": meta.fingerprint,
    }
    assert summary["judges"] == {
        "train": "menagerie/tiny:labelers",
        "heldout": "menagerie/tiny:heldout",
        "gold": "menagerie/tiny:gold",
    }
    for split, count, judges in (("train", 48, ["train"]), ("validation", 16, ["heldout", "gold"])):
        counts = summary[split]
        assert counts["prompts"] == count
        assert sorted(counts["judges"]) == sorted(judges)
        for judge in judges:
            comparisons = comparisons_of(folder, judge, split)
            told = counts["judges"][judge]
            assert told["comparisons"] == len(comparisons)
            assert told["comparisons"] + sum(told["dropped"].values()) == count
            ranked = sum(len(comparison["responses"]) for comparison in comparisons)
            assert ranked <= counts["responses"]
        drawn = counts["responses"] + counts["unfinished"] + counts["repeated"]
        assert 4 * count <= drawn <= 9 * count
    assert is_complete(folder)


def test_a_finished_stage_is_not_run_again(tour, collected, capsys):
    before = files_of(collected)
    main.run(plan_of(tour), str(collected))
    assert "to rank" not in capsys.readouterr().out
    assert files_of(collected) == before


def test_candidates_that_do_not_count():
    texts = ["yes", " ", "", "no", "yes", "cut"]
    generations = [Generation(text, (), finished=text != "cut") for text in texts]
    assert label.different_texts(generations) == ["yes", "no"]


# --- judges ---------------------------------------------------------------------------------------


def test_a_reward_model_ranks(tour, collected, tmp_path):
    judge = f"reward:{tour.workdir / 'reward'}"
    main.run(plan_of(tour, train_judge=judge), str(tmp_path / "label"))
    scorer = main.make_judge(judge, tmp_path)
    for comparison in comparisons_of(tmp_path / "label"):
        prompt = load_prompt(comparison)
        responses = [[Generation(text, (), True) for text in comparison["responses"]]]
        score_C = np.round(scorer.scores([prompt], responses)[0], 6)
        assert comparison["ranks"] == [1 + int((score_C > score).sum()) for score in score_C]
    labelers_ranked = comparisons_of(collected)
    assert [c["responses"] for c in comparisons_of(tmp_path / "label")] == [
        c["responses"] for c in labelers_ranked
    ]


def load_prompt(comparison):
    return record_from_dict(Prompt, {"messages": comparison["messages"]})


def test_a_function_ranks(tour, tmp_path):
    (tmp_path / "rewards.py").write_text(
        "def brevity(prompts, responses, metadata):\n"
        "    return [-len(response) for response in responses]\n"
    )
    plan = plan_of(
        tour,
        train_judge="function:../rewards.py:brevity",
        validation_judges={"brevity": "function:../rewards.py:brevity"},
    )
    main.run(plan, str(tmp_path / "label"))
    for judge, split in (("train", "train"), ("brevity", "validation")):
        for comparison in comparisons_of(tmp_path / "label", judge, split):
            lengths = [len(text) for text in comparison["responses"]]
            assert comparison["ranks"] == [
                1 + sum(other < length for other in lengths) for length in lengths
            ]


def test_a_file_of_the_labelers_own_rankings_gives_the_same_bits(tour, collected, tmp_path):
    path = collected / "comparisons" / "train" / "train.jsonl"
    main.run(plan_of(tour, train_judge=f"file:{path}"), str(tmp_path / "label"))
    again = tmp_path / "label" / "comparisons" / "train" / "train.jsonl"
    assert again.read_bytes() == path.read_bytes()


def test_prompts_that_a_file_does_not_rank_are_dropped_and_counted(
    tour, collected, tmp_path, capsys
):
    first, second, *others = comparisons_of(collected)
    second["responses"][0] = "something else"
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(c) + "\n" for c in (second, *others)))
    main.run(plan_of(tour, train_judge="file:../people.jsonl"), str(tmp_path / "label"))
    assert [c["messages"] for c in comparisons_of(tmp_path / "label")] == [
        c["messages"] for c in others
    ]
    reason = "whose responses people does not rank"
    counts = json.loads((tmp_path / "label" / "label.json").read_text())["train"]["judges"]["train"]
    assert counts["dropped"][reason] == 2
    assert f"2 {reason}" in capsys.readouterr().out
    assert first not in comparisons_of(tmp_path / "label")


def test_a_file_that_ranks_nothing_is_an_error(tour, tmp_path):
    comparison = {
        "messages": [{"role": "user", "content": "?"}],
        "responses": ["a", "b"],
        "ranks": [1, 2],
    }
    (tmp_path / "people.jsonl").write_text(json.dumps(comparison) + "\n")
    with pytest.raises(
        ValueError,
        match=r"train prompts ranked by people: 6 of 6 records dropped: .*nothing is left",
    ):
        main.run(plan_of(tour, train_judge="file:../people.jsonl"), str(tmp_path / "label"))
    assert not is_complete(tmp_path / "label")


def test_without_validation_judges_there_are_training_comparisons_alone(tour, tmp_path, capsys):
    plan = plan_of(tour, validation_judges={}, num_prompts=8)
    main.run(plan, str(tmp_path / "label"))
    assert "validation: " not in capsys.readouterr().out
    folders = [path for path in (tmp_path / "label" / "comparisons").iterdir() if path.is_dir()]
    assert [folder.name for folder in folders] == ["train"]
    reward = json.loads(json.dumps(tour.plans["reward"]))
    reward["init"]["policy"], reward["optimizer"]["warmup_steps"] = str(tour.workdir / "sft"), 0
    main.run(reward, str(tmp_path / "reward"))
    names = {name for row in rows(tmp_path / "reward") for name in row}
    assert "rm/accuracy" in names
    assert not [name for name in names if name.startswith("validation/")]


# --- killing --------------------------------------------------------------------------------------


def die_at_call(monkeypatch, module, name, number, *, after=False):
    """Die at the call number `number` of a function, before or after it has done its work."""
    honest, calls = getattr(module, name), []

    def mortal(*args, **kwargs):
        calls.append(name)
        if len(calls) == number and not after:
            raise Death
        result = honest(*args, **kwargs)
        if len(calls) == number:
            raise Death
        return result

    monkeypatch.setattr(module, name, mortal)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("generate", 1),
        ("write_jsonl", 1),  # train
        ("write_json", 2),  # counts of train; the first is origin.json
        ("generate", 2),
        ("write_jsonl", 2),  # the first validation judge
        ("write_jsonl", 3),  # the second
        ("write_json", 3),
        ("write_json", 4),  # label.json
    ],
)
def test_killed_anywhere_it_ends_with_the_same_bits(
    tour, collected, tmp_path, monkeypatch, name, number, after
):
    folder = tmp_path / "label"
    with monkeypatch.context() as patch:
        die_at_call(patch, label, name, number, after=after)
        with pytest.raises(Death):
            main.run(plan_of(tour), str(folder))
    assert is_complete(folder) == (name == "write_json" and number == 4 and after)
    main.run(plan_of(tour), str(folder))
    assert files_of(folder) == files_of(collected)


def test_what_is_there_is_not_sampled_again(tour, collected, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "label"
    with monkeypatch.context() as patch:
        die_at_call(patch, label, "generate", 2)
        with pytest.raises(Death):
            main.run(plan_of(tour), str(folder))
    capsys.readouterr()
    main.run(plan_of(tour), str(folder))
    said = capsys.readouterr().out
    assert "validation: 4 prompts" in said
    assert "train: 6 prompts" not in said


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"label": {"temperature": 0.9}},
        {"label": {"train_judge": "menagerie/tiny:gold"}},
        {"data": {"prompt_length": 60}},
    ],
    ids=str,
)
def test_what_another_config_has_begun_is_collected_anew(
    tour, tmp_path, monkeypatch, capsys, change
):
    plan, other = plan_of(tour), plan_of(tour)
    for key, value in change.items():
        other[key] = {**other[key], **value} if isinstance(value, dict) else value
    with monkeypatch.context() as patch:
        die_at_call(patch, label, "generate", 2)
        with pytest.raises(Death):
            main.run(other, str(tmp_path / "label"))
    main.run(plan, str(tmp_path / "label"))
    assert "made by another policy or config, collected anew" in capsys.readouterr().out
    main.run(plan, str(tmp_path / "fresh"))
    assert files_of(tmp_path / "label") == files_of(tmp_path / "fresh")


def test_another_config_of_a_finished_stage_is_refused(tour, collected):
    before = files_of(collected)
    with pytest.raises(
        ValueError, match=r"begun with another config:\n +label\.temperature: 1\.0 -> 0\.7"
    ):
        main.run(plan_of(tour, temperature=0.7), str(collected))
    assert files_of(collected) == before


def test_another_policy_under_a_finished_stage_is_refused(tour, tmp_path):
    (tmp_path / "sft").symlink_to(tour.workdir / "sft")
    plan = plan_of(tour)
    plan["init"]["policy"] = "../sft"
    main.run(plan, str(tmp_path / "label"))
    before = files_of(tmp_path / "label")
    (tmp_path / "sft").unlink()
    shutil.copytree(tour.workdir / "ppo", tmp_path / "sft")
    with pytest.raises(
        ValueError, match=r"has comparisons of \.\./sft at step \d+ .*, but \.\./sft now holds step"
    ):
        main.run(plan, str(tmp_path / "label"))
    assert files_of(tmp_path / "label") == before


def test_two_processes_collect_what_one_does(tour, collected, tmp_path):
    plan = plan_of(tour)
    plan["mesh"] |= {"data": 2, "fsdp": 2, "fsdp_min_size": 256}
    (tmp_path / "plans.json").write_text(json.dumps({str(tmp_path / "label"): plan}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, str(ROOT / "tests" / "support" / "hosts_worker.py"), port, "2"]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(tmp_path / "plans.json")],
            cwd=ROOT,
            env=environment | {"PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    assert files_of(tmp_path / "label") == files_of(collected)
    assert ("6 prompts" in said[0], "6 prompts" in said[1]) == (True, False)  # process 0 speaks


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_candidates": 1}, r"label\.min_candidates=1 must be between 2 and label\.max_cand"),
        ({"min_candidates": 8, "max_candidates": 7}, r"label\.min_candidates=8 must be between"),
        ({"response_length": 100}, r"= 164 exceeds the policy's context of 128; shorten"),
        ({"train_judge": "rewrad:../reward"}, r"judge 'rewrad:\.\./reward': no such kind"),
        ({"validation_judges": {"train": "menagerie/tiny:gold"}}, r"'train' becomes a folder"),
        ({"validation_judges": {"a/b": "menagerie/tiny:gold"}}, r"'a/b' becomes a folder"),
        ({"validation_judges": {"gold": 3}}, r"label\.validation_judges\.gold: expected str"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_sampled(
    tour, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(label, "generate", None)
    with pytest.raises(ValueError, match=message):
        main.run(plan_of(tour, **changes), str(tmp_path / "label"))


def test_a_reward_model_has_no_responses(tour, tmp_path):
    plan = plan_of(tour)
    plan["init"]["policy"] = str(tour.workdir / "reward")
    with pytest.raises(ValueError, match=r"init\.policy: .* is a scalar_model .* a language_model"):
        main.run(plan, str(tmp_path / "label"))


@pytest.mark.parametrize("judge", ["train", "gold"])
def test_altered_comparisons_are_noticed_by_who_reads_them_and_by_who_goes_on(
    tour, collected, tmp_path, judge
):
    shutil.copytree(collected, tmp_path / "label")
    folder = tmp_path / "label" / "comparisons"
    assert comparison_sources("../label", tmp_path / "reward")["train"] == f"jsonl:{folder}/train"
    path = next(file for file in (folder / judge).iterdir())
    path.write_text(path.read_text().replace("a", "b", 1))
    (tmp_path / "label" / "label.json").unlink()
    message = rf"{judge}/{path.name} was written as .*; delete .*; changed on purpose, .* jsonl:"
    with pytest.raises(ValueError, match=message):
        comparison_sources("../label", tmp_path / "reward")
    with pytest.raises(ValueError, match=message):
        main.run(plan_of(tour), str(tmp_path / "label"))
