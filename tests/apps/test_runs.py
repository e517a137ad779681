"""Run folders are read in any state, and what cannot be read is noted with file and remedy."""

import json
import math

import numpy as np
import pytest
from run_support import (
    EVALUATION,
    curve,
    parent,
    row,
    value,
    write_evaluation,
    write_labels,
    write_stage,
)

from rlhf_jax.apps import runs
from rlhf_jax.apps.runs import Notes


def read(folder):
    notes = Notes(folder, [])
    return runs.read_run(folder, notes), notes.sentences


def test_a_whole_run_has_no_notes(tmp_path):
    write_stage(tmp_path / "q" / "sft", "sft", curve("loss"))
    write_evaluation(tmp_path / "q" / "evaluate")
    workdirs, notes = read(tmp_path / "q")
    assert [workdir.name for workdir in workdirs] == ["sft", "evaluate"]
    assert notes == []


def test_comparisons_need_neither_curves_nor_checkpoints(tmp_path):
    write_stage(tmp_path / "q" / "sft", "sft", curve("loss"))
    write_labels(tmp_path / "q" / "label")
    write_stage(tmp_path / "q" / "reward", "reward", curve("loss"))
    workdirs, notes = read(tmp_path / "q")
    assert [workdir.name for workdir in workdirs] == ["sft", "label", "reward"]
    assert [workdir.is_labels for workdir in workdirs] == [False, True, False]
    assert list(runs.parents(workdirs[1])) == [("policy", parent("sft"))]
    assert notes == []
    (tmp_path / "q" / "label" / "label.json").unlink()
    workdirs, notes = read(tmp_path / "q")
    assert workdirs[1].is_labels
    assert list(runs.parents(workdirs[1])) == [("policy", {"path": "../sft"})]
    assert notes == ["q/label/label.json is missing: run the label stage again, it keeps its parts"]


def test_comparisons_of_a_policy_that_was_trained_anew_are_noted(tmp_path):
    write_stage(tmp_path / "q" / "sft", "sft", curve("loss"), fingerprint="new")
    write_labels(tmp_path / "q" / "label")
    (sentence,) = runs.stale(read(tmp_path / "q")[0])
    assert sentence.startswith("label: its policy (sft, step 4) has been trained anew since")
    assert sentence.endswith("run label again")


def test_the_comparisons_of_the_config_are_a_parent(tmp_path):
    write_stage(tmp_path / "reward", "reward", curve("loss"), lineage={"policy": parent("sft")})
    config = {"stage": "reward", "config": {"data": {"comparisons": "../label"}}}
    (tmp_path / "reward" / "config.json").write_text(json.dumps(config))
    (workdir,), _ = read(tmp_path / "reward")
    expected = [("policy", parent("sft")), ("comparisons", {"path": "../label"})]
    assert list(runs.parents(workdir)) == expected


def test_empty_folder_is_noted(tmp_path):
    (tmp_path / "q").mkdir()
    workdirs, notes = read(tmp_path / "q")
    assert workdirs == []
    assert notes == ["q holds no stage: give the --workdir of a stage, or the folder above several"]


def test_half_a_run_says_what_is_missing_and_what_to_do(tmp_path):
    (tmp_path / "q" / "sft").mkdir(parents=True)
    (tmp_path / "q" / "ppo").mkdir()
    (tmp_path / "q" / "ppo" / "config.json").write_text('{"stage": "ppo"}')
    (tmp_path / "q" / "evaluate").mkdir()
    (tmp_path / "q" / "evaluate" / "config.json").write_text('{"stage": "evaluate"}')
    assert sorted(read(tmp_path / "q")[1]) == [
        "q/evaluate/evaluation.json is missing: run the evaluate stage again, it keeps its parts",
        "q/ppo/checkpoints is missing: nothing has been saved yet; run the stage",
        "q/ppo/metrics.jsonl is missing: the stage has logged nothing yet; run it, or resume it",
        "q/sft is empty: run its stage",
    ]


def test_half_written_last_line_is_left_out_and_noted(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    with (tmp_path / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    workdirs, notes = read(tmp_path / "sft")
    assert list(workdirs[0].metrics["loss"]) == [1, 2, 3, 4]
    assert len(notes) == 1
    assert notes[0].startswith("sft/metrics.jsonl line 5 is half-written and left out: resum")


def test_broken_lines_are_counted_by_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = b'{"step": 1, "loss": 2}\nnonsense\n[1]\n{"step": 2, "loss": 1}\n\xff\xfe\n'
    path.write_bytes(lines + b"[" * 10**5 + b"\n")
    notes = Notes(tmp_path, [])
    assert [entry["step"] for entry in runs.read_rows(path, notes)] == [1, 2]
    expected = "has 4 lines that are no JSON objects, left out (line 2, 3, 5, 6): repair"
    assert [expected in sentence for sentence in notes.sentences] == [True]


def test_unreadable_file_is_noted(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    (tmp_path / "sft" / "metrics.jsonl").unlink()
    (tmp_path / "sft" / "metrics.jsonl").mkdir()
    assert [note.split(" (")[0] for note in read(tmp_path / "sft")[1]] == [
        "sft/metrics.jsonl is a folder: the stage has logged nothing yet; run it, or resume it"
    ]


def test_unfinished_and_broken_checkpoints_do_not_count(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    (tmp_path / "sft" / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir()
    (tmp_path / "sft" / "checkpoints" / "²").mkdir()
    (tmp_path / "sft" / "checkpoints" / "6").mkdir()
    workdirs, notes = read(tmp_path / "sft")
    assert list(workdirs[0].metas) == [4]
    assert len(notes) == 1
    assert notes[0].startswith("sft/checkpoints/6/meta cannot be read: delete")


def test_strange_values_in_metrics_are_gaps_not_crashes(tmp_path):
    rows = [
        {"step": 1, "loss": math.nan, "name": "x", "flag": True, "big": 10**400, "list": [1]},
        {"step": 2, "loss": math.inf, "none": None, "late": 3},
        {"step": "3", "loss": 1.0},
        {"loss": 1.0},
        {"step": 4, "loss": -1e300},
        {"step": 4, "loss": 2.0},
    ]
    write_stage(tmp_path / "sft", "sft", rows)
    metrics = read(tmp_path / "sft")[0][0].metrics
    assert list(metrics["loss"]) == [1, 2, 4]
    assert np.isnan([metrics["loss"][1], metrics["loss"][2]]).all()
    assert metrics["loss"][4] == 2.0
    assert set(metrics) == {"loss", "big", "late"}


def test_parents_are_found_after_a_move_and_beside_the_child(tmp_path):
    write_stage(tmp_path / "q" / "sft", "sft", curve("loss"))
    near = {"policy": {"path": "../sft"}}
    write_stage(tmp_path / "q" / "ppo", "ppo", curve("objective/kl"), lineage=near)
    workdirs, _ = read(tmp_path / "q")
    sft, ppo = workdirs
    assert runs.find(workdirs, "../sft", ppo) is sft
    assert runs.find(workdirs, "elsewhere/q/sft/checkpoints/4", ppo) is sft
    assert runs.find(workdirs, "elsewhere/other", ppo) is None
    assert runs.find(workdirs, "", ppo) is None
    assert runs.find(workdirs, "a\0b", ppo) is None


def test_parents_of_a_run_without_checkpoint_come_from_its_config(tmp_path):
    (tmp_path / "ppo").mkdir()
    config = {"stage": "ppo", "config": {"init": {"policy": "../sft", "value": ""}}}
    (tmp_path / "ppo" / "config.json").write_text(json.dumps(config))
    workdirs, _ = read(tmp_path / "ppo")
    assert list(runs.parents(workdirs[0])) == [("policy", {"path": "../sft"})]


def test_retrained_parent_is_noted(tmp_path):
    write_stage(tmp_path / "q" / "pretrain", "pretrain", curve("loss"), fingerprint="new")
    lineage = {"policy": parent("pretrain", "old")}
    write_stage(tmp_path / "q" / "sft", "sft", curve("loss"), lineage=lineage)
    (sentence,) = runs.stale(read(tmp_path / "q")[0])
    assert sentence.startswith("sft: its policy (pretrain, step 4) has been trained anew since")
    assert sentence.endswith("run sft again")


def read_evaluation(folder, content):
    write_evaluation(folder / "evaluate", content)
    notes = Notes(folder, [])
    workdir = runs.read_workdir(folder / "evaluate", notes)
    return runs.read_evaluation(workdir, notes), notes.sentences


@pytest.mark.parametrize(
    "broken",
    [
        7,
        {"metric": "x"},
        row("y", "higher", {"sft": {"value": None}}),
        row("y", "higher", {"sft": {"value": math.nan, "low": None, "high": None, "n": 1}}),
        row("y", "higher", {"sft": {"value": 1.0, "low": "0", "high": None, "n": 1}}),
        row("y", "higher", {"sft": {"value": 10**400, "low": None, "high": None, "n": 1}}),
        row("y", "higher", {"sft": {"value": 1.0, "low": None, "high": None}}),
        row("y", "upwards", {"sft": value(1.0)}),
        row("y", "higher", {"sft": value(1.0)}, unit=None),
    ],
)
def test_rows_that_are_not_as_agreed_are_noted_and_left_out(tmp_path, broken):
    table = [*EVALUATION["table"], broken]
    evaluation, notes = read_evaluation(tmp_path, EVALUATION | {"table": table})
    assert [r.metric for r in evaluation.rows][1:] == ["gold", "rude", "length"]
    assert len(notes) == 1
    assert (
        "evaluation.json has 1 rows of 5 that are not as agreed: run the evaluation again"
        in notes[0]
    )


def test_unknown_reference_and_missing_table_are_noted(tmp_path):
    content = EVALUATION | {"table": None, "reference": "base"}
    evaluation, notes = read_evaluation(tmp_path, content)
    assert evaluation.rows == []
    assert ["has no table" in notes[0], "'base' that is not among its checkpoints" in notes[1]] == [
        True
    ] * 2


def test_rows_of_files_from_before_keys_are_read(tmp_path):
    old = {
        name: part
        for name, part in EVALUATION["table"][0].items()
        if name not in ("key", "subject")
    }
    later = EVALUATION["table"][0] | {"key": "of a later version"}
    evaluation, notes = read_evaluation(tmp_path, EVALUATION | {"table": [old, later]})
    assert [(r.key, r.subject) for r in evaluation.rows] == [("", ""), ("", "sft")]
    assert notes == []


def test_checkpoints_are_in_the_order_of_the_pipeline(tmp_path):
    names = {name: {} for name in ("mine", "ppo", "base", "sft")} | {"other": {"stage": "reward"}}
    evaluation, _ = read_evaluation(tmp_path, EVALUATION | {"checkpoints": names})
    assert list(evaluation.checkpoints) == ["base", "sft", "other", "ppo", "mine"]


def names_of(tmp_path, checkpoints):
    for name in ("pretrain", "sft"):
        write_stage(tmp_path / "q" / name, name, curve("loss"))
    content = EVALUATION | {"checkpoints": checkpoints, "table": [], "reference": ""}
    write_evaluation(tmp_path / "q" / "evaluate", content)
    workdirs, _ = read(tmp_path / "q")
    evaluation = runs.read_evaluation(workdirs[-1], Notes(tmp_path / "q", []))
    return [runs.model_names(workdirs, [evaluation])[workdir.path] for workdir in workdirs[:2]]


@pytest.mark.parametrize(
    ("checkpoints", "names"),
    [
        ({"base": {"path": "../pretrain"}}, ["base", "sft"]),
        (
            {"early": {"path": "../sft"}, "late": {"path": "../sft/checkpoints/4"}},
            ["pretrain", "sft"],
        ),
        ({"sft": {"path": "../pretrain"}}, ["pretrain", "sft"]),
        ({"base": {"path": 3}, "mine": {}}, ["pretrain", "sft"]),
    ],
)
def test_a_model_has_the_evaluations_name_if_there_is_exactly_one(tmp_path, checkpoints, names):
    assert names_of(tmp_path, checkpoints) == names
