"""Trackers follow a run's files: nothing twice, nothing lost, and nobody's failure ends a run."""

import importlib.util
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from run_files import beside

from rlhf_jax import main, options
from rlhf_jax.training import trackers
from rlhf_jax.training.metrics import MetricsWriter, Writer, read_rows
from rlhf_jax.training.trackers import (
    Follower,
    open_writer,
    read_trackers,
    result_numbers,
    result_tables,
    table_columns,
    track_results,
    tracked_by,
)

FACTS = {"stage": "ppo", "config": {"seed": 0}, "lineage": {"policy": {"fingerprint": "ab"}}}
CONTENT = {
    "checkpoints": {"sft": {"path": "../sft", "step": 3, "fingerprint": "ab"}},
    "table": [
        {
            "group": "Answers",
            "metric": "right",
            "unit": "",
            "better": "higher",
            "description": "as asked",
            "values": {"sft": {"value": 0.25, "low": 0.2, "high": 0.3, "n": 40}},
        }
    ],
    "samples": [{"prompt": "p", "responses": {"sft": {"text": "r", "finished": True}}}],
}


class Recorder(Writer):
    """A tracker in memory, which raises at the calls that `fails_at` counts."""

    def __init__(self, fails_at=(), opening_error=None):
        self.calls = []
        self.opened = []
        self.fails_at = fails_at
        self.opening_error = opening_error
        self.count = 0

    def make(self, run_id, workdir, num_calls):
        self.opened.append((run_id, num_calls))
        return self

    def describe(self, facts):
        if self.opening_error is not None:
            raise self.opening_error
        self.facts = facts

    def write(self, step, metrics):
        self._take("metrics", step, metrics)

    def samples(self, step, rows):
        self._take("samples", step, rows)

    def results(self, content):
        self._take("results", 0, content)

    def close(self, *, failed=False):
        self.calls.append(("close", failed))

    def _take(self, kind, step, content):
        self.count += 1
        if self.count in self.fails_at:
            raise ConnectionError("no route\nto host")
        self.calls.append((kind, step, content))

    def steps(self, kind="metrics"):
        return [call[1] for call in self.calls if call[0] == kind]


def train(workdir, recorder, steps, resumed_from=-1):
    """What a run writes: samples of a step before its row, as the loop does."""
    with MetricsWriter(workdir, [Follower("recorder", recorder.make, workdir)]) as writer:
        writer.describe(FACTS)
        writer.truncate_after(resumed_from)
        for step in steps:
            writer.samples(step, [{"prompt": "p", "response": f"r{step}"}])
            writer.write(step, {"loss": 1.0 / step})


def test_a_resumed_run_continues_the_same_run_and_tells_no_step_twice(tmp_path):
    recorder = Recorder()
    train(tmp_path, recorder, range(1, 6))
    train(tmp_path, recorder, range(4, 8), resumed_from=3)  # 4 and 5 are computed again
    assert recorder.steps() == recorder.steps("samples") == [1, 2, 3, 4, 5, 6, 7]
    (first, calls), (second, later_calls) = recorder.opened
    assert first == second
    assert (calls, later_calls) == (0, 10)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == list(range(1, 8))


def test_a_run_that_dies_while_it_tells_a_step_does_not_tell_it_again(tmp_path):
    recorder = Recorder()

    def die(step, metrics):
        recorder.calls.append(("metrics", step, metrics))
        raise KeyboardInterrupt

    recorder.write = die
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, recorder, [1, 2])
    del recorder.write
    train(tmp_path, recorder, [1, 2])
    assert recorder.steps() == [1, 2]
    assert ("close", True) in recorder.calls


def test_a_tracker_named_later_is_told_what_the_files_hold(tmp_path):
    with MetricsWriter(tmp_path, []) as writer:
        for step in (1, 2, 3):
            writer.samples(step, [{"response": f"r{step}"}, {"response": "other"}])
            writer.write(step, {"loss": 1.0 / step})
    recorder = Recorder()
    train(tmp_path, recorder, [3, 4], resumed_from=2)
    assert recorder.steps() == [1, 2, 3, 4]
    assert recorder.calls[0] == ("metrics", 1, {"loss": 1.0})
    assert ("samples", 2, [{"response": "r2"}, {"response": "other"}]) in recorder.calls


def test_a_tracker_that_fails_warns_once_and_is_told_the_rest_when_the_run_goes_on(
    tmp_path, capsys
):
    recorder = Recorder(fails_at=[4])  # the row of step 2
    train(tmp_path, recorder, [1, 2, 3])
    said = capsys.readouterr().err
    assert said.count("warning: recorder failed (ConnectionError: no route)") == 1
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert recorder.steps() == [1]
    train(tmp_path, recorder, [4], resumed_from=3)
    assert recorder.steps() == [1, 2, 3, 4]
    assert recorder.steps("samples") == [1, 2, 3, 4]


def test_what_the_user_can_mend_ends_a_run_before_its_first_step_and_nothing_else_does(
    tmp_path, capsys
):
    train(tmp_path / "a", Recorder(opening_error=OSError("offline")), [1])
    assert "recorder failed (OSError: offline)" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "a" / "metrics.jsonl")) == 1
    with pytest.raises(ValueError, match="log in"):
        train(tmp_path / "b", Recorder(opening_error=ValueError("log in")), [1])
    assert not (tmp_path / "b" / "metrics.jsonl").exists()


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_jax.training.metrics.is_main_process", lambda: False)
    recorder = Recorder()
    train(tmp_path, recorder, [1, 2])
    assert recorder.calls == recorder.opened == []
    assert list(tmp_path.iterdir()) == []


def test_results_are_told_once(tmp_path):
    recorder = Recorder()
    for content in (CONTENT, CONTENT, {**CONTENT, "seed": 1}):
        with MetricsWriter(tmp_path, [Follower("recorder", recorder.make, tmp_path)]) as writer:
            writer.describe(FACTS)
            writer.results(content)
    assert recorder.steps("results") == [0, 0]


def test_a_damaged_note_is_an_error_that_names_it(tmp_path):
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "recorder.json").write_text("{")
    with pytest.raises(ValueError, match=r"recorder\.json: .*delete it"):
        train(tmp_path, Recorder(), [1])


def test_tables_have_a_column_for_everything_that_any_row_holds():
    rows = [{"prompt": "p", "reward": {"length": 1.0}}, {"prompt": "q", "ids": [1, 2]}]
    assert table_columns(rows) == (
        ["prompt", "reward/length", "ids"],
        [["p", 1.0, None], ["q", None, "[1, 2]"]],
    )


def test_an_evaluation_is_numbers_and_three_tables():
    assert result_numbers(CONTENT) == {"Answers/right/sft": 0.25}
    tables = result_tables(CONTENT)
    assert list(tables) == [f"evaluation/{name}" for name in ("results", "samples", "checkpoints")]
    (row,) = tables["evaluation/results"]
    assert (row["metric"], row["checkpoint"], row["value"], row["n"]) == ("right", "sft", 0.25, 40)
    assert tables["evaluation/checkpoints"][0]["fingerprint"] == "ab"


# --- whom to tell ---------------------------------------------------------------------------------


def test_the_names_of_the_flag(monkeypatch):
    assert read_trackers("tensorboard") == ("tensorboard",)
    assert read_trackers("") == ()
    with pytest.raises(ValueError, match=r"--track: 'wandbb' is not one of tensorboard, wandb"):
        read_trackers("tensorboard,wandbb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"trackio is missing; pip install 'rlhf_jax\[trackio\]'"):
        read_trackers("trackio")


def test_a_folder_that_wandb_left_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ValueError, match="wandb is missing"):
        read_trackers("wandb")


def test_the_command_refuses_an_unknown_tracker_in_one_line(tmp_path):
    command = [sys.executable, "-m", "rlhf_jax.main", f"--workdir={tmp_path / 'run'}"]
    command += ["--config=experiments/menagerie/pretrain.py:tiny", "--track=wandbb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --track: 'wandbb' is not one of")
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_told_by_default_and_left_out_on_demand(tmp_path):
    for names, expected in ((None, True), ((), False)):
        workdir = tmp_path / str(expected)
        with tracked_by(trackers.DEFAULT if names is None else names), open_writer(workdir) as w:
            w.write(1, {"loss": 1.0})
        assert (workdir / "tensorboard").exists() == expected
        assert len(read_rows(workdir / "metrics.jsonl")) == 1


def test_a_stage_tells_config_lineage_rows_and_samples(tour, tmp_path, monkeypatch):
    """The tiny PPO of the tour, of which a second process runs the second half."""
    recorder = Recorder()
    make = {"recorder": lambda workdir: Follower("recorder", recorder.make, workdir)}
    monkeypatch.setattr(trackers, "TRACKERS", make)
    plan = json.loads(json.dumps(tour.plans["ppo"]))
    folder = beside(tour, tmp_path, "ppo")
    plan["checkpoint"] |= {"log_every": 1, "sample_every": 1}
    with tracked_by(["recorder"]):
        main.run(plan, str(folder))
        told = list(recorder.calls)
        main.run(plan, str(folder))  # complete: nothing is left to tell
    assert recorder.calls == [*told, ("close", False)]
    rows = read_rows(folder / "metrics.jsonl")
    assert recorder.steps() == [row["step"] for row in rows]
    assert set(recorder.steps("samples")) == {
        row["step"] for row in read_rows(folder / "samples.jsonl")
    }
    assert recorder.facts["config"]["ppo"] == json.loads(json.dumps(plan["ppo"]))
    lineage = recorder.facts["lineage"]
    assert all(len(entry["fingerprint"]) == 8 for entry in lineage.values())
    assert lineage["policy"]["path"] == plan["init"]["policy"]


def test_an_evaluation_tells_its_checkpoints_as_lineage(tmp_path, monkeypatch):
    recorder = Recorder()
    make = {"recorder": lambda workdir: Follower("recorder", recorder.make, workdir)}
    monkeypatch.setattr(trackers, "TRACKERS", make)
    (tmp_path / "config.json").write_text(json.dumps({"stage": "evaluate", "config": {}}))
    (tmp_path / "evaluation.json").write_text(json.dumps(CONTENT))
    with tracked_by(["recorder"]):
        track_results(tmp_path)
    assert recorder.calls == [("results", 0, CONTENT), ("close", False)]
    assert recorder.facts["lineage"] == CONTENT["checkpoints"]


# --- the packages themselves ----------------------------------------------------------------------


def twice_and_results(name: str, workdir: Path) -> None:
    """A killed and resumed run, and an evaluation, told to a tracker in one process each."""
    script = f"""
import json
from rlhf_jax.training.trackers import open_writer, read_trackers, tracked_by
facts, content = json.loads({json.dumps(json.dumps([FACTS, CONTENT]))})
with tracked_by(read_trackers({name!r})):
    for resumed_from, last in ((-1, 3), (2, 4)):
        with open_writer({str(workdir)!r}) as writer:
            writer.describe(facts)
            writer.truncate_after(resumed_from)
            for step in range(max(resumed_from, 0) + 1, last + 1):
                writer.samples(step + 1, [{{"response": f"r{{step}}", "score": None}}])
                writer.write(step, {{"loss": step / 8, "nan": float("nan")}})
            writer.results(content)
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_wandb_offline(tmp_path, monkeypatch):
    proto = pytest.importorskip(
        "wandb.proto.wandb_internal_pb2", reason="needs pip install 'rlhf_jax[wandb]'"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    twice_and_results("wandb", tmp_path / "runs" / "ppo")
    files = sorted((tmp_path / "runs" / "ppo" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    records = [record for file in files for record in wandb_records(proto, file)]
    assert {record.run.run_id for record in records if record.HasField("run")} == {
        json.loads((tmp_path / "runs/ppo/tracking/wandb.json").read_text())["id"]
    }
    config = {u.key: u.value_json for r in records if r.HasField("config") for u in r.config.update}
    assert json.loads(config["lineage"]) == FACTS["lineage"]
    history = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    assert [(row["step"], row["loss"]) for row in history if "loss" in row] == [
        (str(step), f"{step / 8}") for step in (1, 2, 3, 4)
    ]
    assert [row["step"] for row in history if "samples/path" in row] == ["2", "3", "4", "5"]
    # Two offline processes do not overwrite each other's rows.
    assert [int(row["_step"]) for row in history] == list(range(9))
    assert any("evaluation/results/path" in row for row in history)


def wandb_records(proto, path):
    """Read a .wandb file: blocks of 32 KiB of records in LevelDB's log format."""
    data, position, body = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        body += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = proto.Record()
            record.ParseFromString(body)
            yield record
            body = b""


def test_wandb_without_a_login_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("wandb.proto", reason="needs pip install 'rlhf_jax[wandb]'")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    script = (
        "from rlhf_jax.training.trackers import open_writer, tracked_by\n"
        f"with tracked_by(['wandb']), open_writer({str(tmp_path / 'run')!r}) as writer:\n"
        "    writer.describe({'stage': 'ppo'})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: --track=wandb: ")
    assert "set WANDB_MODE=offline" in last


def test_trackio_in_a_local_folder(tmp_path, monkeypatch):
    if not trackers._is_installed("trackio"):
        pytest.skip("needs pip install 'rlhf_jax[trackio]'")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    twice_and_results("trackio", tmp_path / "runs" / "ppo")
    script = (
        "import json, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = trackio.Api().runs('rlhf_jax')\n"
        "rows = SQLiteStorage.get_logs('rlhf_jax', run.name)\n"
        "print(json.dumps([run.name, run.config, rows]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    name, config, rows = json.loads(done.stdout.splitlines()[-1])
    run_id = json.loads((tmp_path / "runs/ppo/tracking/trackio.json").read_text())["id"]
    assert name == f"runs-ppo-{run_id}"
    assert config["lineage"] == FACTS["lineage"]
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [
        (step, step / 8) for step in (1, 2, 3, 4)
    ]
    tables = [row["samples"]["_value"] for row in rows if "samples" in row]
    assert [table[0]["response"] for table in tables] == ["r1", "r2", "r3", "r4"]
    assert [row["Answers/right/sft"] for row in rows if "Answers/right/sft" in row] == [0.25]


def test_the_default_of_the_command_is_tensorboard():
    assert options.TRACK.default == "tensorboard"
