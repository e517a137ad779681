"""Rows, samples, truncation on resuming, numbers, progress, and the count of compilations."""

import io
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.maths.masking import Mean
from rlhf_jax.training.metrics import CompileCounter, MetricsWriter, Progress, read_rows, to_number


def test_rows_and_samples_are_written_as_they_come(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        assert not (tmp_path / "run").exists()  # nothing before the first row
        writer.write(1, {"loss": 0.5, "objective/kl": 0.1})
        writer.samples(
            1, [{"prompt": "où?", "response": "là", "score": 1.0}, {"prompt": "b", "response": "c"}]
        )
        text = (tmp_path / "run" / "metrics.jsonl").read_text()  # visible before closing
        assert text == '{"step": 1, "loss": 0.5, "objective/kl": 0.1}\n'
    assert read_rows(tmp_path / "run" / "samples.jsonl")[0] == {
        "step": 1,
        "prompt": "où?",
        "response": "là",
        "score": 1.0,
    }
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_truncating_drops_later_rows_and_a_half_written_line(tmp_path):
    for name in ("metrics.jsonl", "samples.jsonl"):
        rows = "".join(json.dumps({"step": step, "x": step}) + "\n" for step in (1, 2, 2, 3))
        (tmp_path / name).write_text(rows + '{"step": 4, "x"')
    with MetricsWriter(tmp_path) as writer:
        writer.samples(7, [{"x": 7}])  # a writer that is already open
        (tmp_path / "samples.jsonl").write_text(rows + '{"step": 4, "x"')
        writer.truncate_after(2)
        writer.write(3, {"x": 30})
        writer.samples(3, [{"x": 31}])
    assert [row["x"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 2, 30]
    assert [row["x"] for row in read_rows(tmp_path / "samples.jsonl")] == [1, 2, 2, 31]
    assert not list(tmp_path.glob("*.tmp"))


def tensorboard_events(path):
    from tensorboardX.proto.event_pb2 import Event

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_is_told_to_forget_the_steps_after_the_checkpoint(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.truncate_after(2)
        writer.write(3, {"loss": 0.25})
    events = tensorboard_events(next((tmp_path / "tensorboard").iterdir()))
    assert [event.step for event in events if event.HasField("session_log")] == [3]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(3, "loss", 0.25)]


def test_truncating_an_empty_workdir_creates_nothing(tmp_path):
    with MetricsWriter(tmp_path / "run") as writer:
        writer.truncate_after(-1)
    assert not (tmp_path / "run").exists()


def test_the_terminated_part_of_a_line_that_is_complete_json_but_has_no_newline_is_dropped(
    tmp_path,
):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_broken_lines_are_errors_with_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        read_rows(path)
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: expected an object with a 'step'"):
        read_rows(path)


def test_non_finite_values_survive_the_round_trip(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"loss": float("nan"), "x": float("inf")})
    row = read_rows(tmp_path / "metrics.jsonl")[0]
    assert np.isnan(row["loss"])
    assert row["x"] == float("inf")


def test_numbers():
    assert to_number(Mean(np.float32(3.0), np.float32(4.0))) == 0.75
    assert to_number(Mean(np.float32(0.0), np.float32(0.0))) == 0.0
    assert to_number(np.float32(0.1)) == 0.1
    assert to_number(jnp.bfloat16(0.5)) == 0.5
    assert to_number(np.int64(2**53 + 1)) == 2**53 + 1
    assert to_number(0.1 + 0.2) == 0.1 + 0.2
    assert type(to_number(np.int32(3))) is int
    assert np.isnan(to_number(np.float32("nan")))
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        to_number(np.zeros(2))


def test_float32_numbers_read_back_as_the_same_float32():
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    assert all(np.float32(to_number(value)) == value for value in values)


def test_the_progress_line():
    progress = Progress("ppo", 100, 500, ["objective/kl", "absent"], io.StringIO())
    assert progress.line(200, {"objective/kl": 1.23456}, 50.0) == (
        "ppo 200/500 40% 2 steps/s, 2:30 left, objective/kl 1.235"
    )
    assert "1:06:40 left" in Progress("ppo", 0, 5000, ["x"], io.StringIO()).line(1000, {}, 1000.0)
    assert "left" not in progress.line(500, {}, 200.0)


def test_progress_in_a_pipe_is_sparse_and_on_a_terminal_is_one_line():
    pipe = io.StringIO()
    progress = Progress("sft", 0, 3, ["loss"], pipe)
    for step in (1, 2, 3):
        progress.update(step, {"loss": 1.0 / step})
    lines = pipe.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"]  # the first, and the last
    assert lines[1].endswith("loss 0.3333")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    progress = Progress("sft", 0, 3, ["loss"], terminal)
    for step in (1, 2, 3):
        progress.update(step, {"loss": 1.0})
    assert terminal.getvalue().count("\r") == 3
    assert terminal.getvalue().count("\n") == 1

    quiet = io.StringIO()
    Progress("sft", 0, 3, [], quiet).update(3, {"loss": 1.0})
    assert quiet.getvalue() == ""


def test_the_rate_counts_from_the_first_row_on(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress("sft", 0, 400, ["loss"], stream)
    progress.begin()
    for seconds, step in ((60, 1), (20, 101), (5, 126), (75, 400)):  # a minute of compiling
        now[0] += seconds
        progress.update(step, {"loss": 0.5})
    assert stream.getvalue().splitlines() == [
        "sft 0/400 compiling ...",
        "sft 1/400 0%, loss 0.5",
        "sft 101/400 25% 5 steps/s, 1:00 left, loss 0.5",
        "sft 400/400 100% 3.99 steps/s, loss 0.5",
    ]


def test_a_log_file_gets_few_lines_of_a_long_run(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress("sft", 0, 3601, ["loss"], stream)
    for step in range(1, 3601):
        progress.update(step, {"loss": 1.0})
        now[0] += 1.0
    assert 20 < len(stream.getvalue().splitlines()) < 50  # of an hour


def test_a_line_never_wraps_in_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    progress = Progress("sft", 0, 3, ["loss", "validation/loss"], stream)
    progress.update(1, {"loss": 1.0, "validation/loss": 2.0})
    assert stream.getvalue() == "\r\x1b[Ksft 1/3 33%, loss 1, validati"


def test_compilations_after_the_first_call_are_counted():
    double = jax.jit(lambda x: 2 * x + 17)
    inputs = {size: np.ones(size, np.float32) for size in (3, 4, 5)}
    counter = CompileCounter()
    counts = []
    for size in (3, 3, 4, 4, 5):
        with counter:
            double(inputs[size])
        counts.append(counter.after_first_call)
    assert counts == [0, 0, 1, 1, 2]


def test_compilations_between_the_blocks_are_not_counted():
    triple = jax.jit(lambda x: 3 * x + 19)
    counter = CompileCounter()
    for size in (3, 4):
        triple(np.ones(size, np.float32))
        with counter:
            triple(np.ones(size, np.float32))
    assert counter.after_first_call == 0
