"""The loop: a run killed anywhere ends with the same bits and the same rows as one that was not.

Run as a script (`python test_loop.py WORKDIR`) this file trains the toy problem slowly enough to be
killed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.maths.masking import Mean
from rlhf_jax.training import checkpoints, loop
from rlhf_jax.training.checkpoints import (
    CheckpointKind,
    Meta,
    all_steps,
    latest_step,
    load_params,
    read_meta,
)
from rlhf_jax.training.loop import Hook, LoopConfig, PolicyMonitor, policy_hooks, run_loop
from rlhf_jax.training.metrics import MetricsWriter, read_rows
from rlhf_jax.training.optimizer import ema_update, global_norm
from rlhf_jax.training.updates import apply_gradients, init_state

NUM_STEPS = 12
OPTIMIZER = optax.adam(0.05)
TARGET = np.linspace(-1.0, 1.0, 6).astype(np.float32)


@jax.jit
def update(state, x_B6):
    def loss_fn(params):
        error_B = x_B6 @ (params["w"] - TARGET) + params["b"]
        return jnp.mean(jnp.square(error_B))

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    state = apply_gradients(state, grads, OPTIMIZER)
    extras = {"ema": ema_update(state.extras["ema"], state.params, decay=0.9)}
    size = x_B6.shape[0]
    metrics = {
        "loss": Mean(loss * size, jnp.float32(size)),
        "grad_norm": global_norm(grads),
        "tokens": jnp.int32(x_B6.size),
    }
    return replace(state, extras=extras), metrics


def step_fn(state, step):
    return update(state, np.random.default_rng([7, step]).normal(size=(8, 6)).astype(np.float32))


def toy_state():
    params = {"w": jnp.zeros(6), "b": jnp.zeros(())}
    return init_state(params, OPTIMIZER, {"ema": jax.tree.map(jnp.copy, params)})


def distance(state, step):
    return {"validation/distance": float(np.abs(np.asarray(state.params["w"]) - TARGET).sum())}


CONFIG = LoopConfig(log_every=3, save_every=4, keep=2, hooks=(Hook(5, distance),))


def toy_meta(*, num_steps=NUM_STEPS, model=None):
    return Meta(
        stage="toy",
        kind=CheckpointKind.SCALAR_MODEL,
        num_steps=num_steps,
        model=model or {"width": 6},
        tokenizer="",
        lineage={},
    )


def train(workdir, *, step_fn=step_fn, writer=None, meta=None, num_steps=NUM_STEPS, **changes):
    """Train the toy problem; `changes` are of the loop's config."""
    return run_loop(
        workdir,
        toy_state(),
        step_fn,
        meta or toy_meta(num_steps=num_steps),
        replace(CONFIG, **changes),
        writer,
    )


def rows_of(workdir):
    """Rows without what differs from run to run."""
    rows = read_rows(workdir / "metrics.jsonl")
    return [
        {name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows
    ]


def assert_same_bits(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), actual, expected)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The run that nobody interrupts: its workdir, last state and rows."""
    workdir = tmp_path_factory.mktemp("reference")
    state = train(workdir)
    return workdir, state, rows_of(workdir)


def test_a_run_equals_the_plain_for_loop(reference):
    _, state, _ = reference
    plain = toy_state()
    for step in range(NUM_STEPS):
        plain, _ = step_fn(plain, step)
    assert_same_bits(state, plain)


def test_rows_checkpoints_and_meta_of_an_uninterrupted_run(reference):
    workdir, state, rows = reference
    assert [row["step"] for row in rows] == [
        1,
        3,
        5,
        6,
        9,
        10,
        12,
    ]  # first, every 3, hooks every 5, last
    assert [row["step"] for row in rows if "validation/distance" in row] == [5, 10, 12]
    assert rows[-1]["tokens"] == 48
    assert np.float32(rows[-1]["loss"]) < np.float32(rows[0]["loss"])
    last = read_rows(workdir / "metrics.jsonl")[-1]
    assert last["perf/compile_count"] == 0
    assert last["perf/tokens_per_s"] == pytest.approx(48 * last["perf/steps_per_s"])
    assert all_steps(workdir) == [8, 12]
    params, meta = load_params(workdir)
    assert_same_bits(params, state.params)
    assert meta.complete
    assert meta.step == 12
    assert not read_meta(workdir / "checkpoints" / "8").complete


def test_the_last_step_has_a_row_whatever_log_every(tmp_path):
    train(tmp_path, num_steps=2, log_every=5, hooks=())
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]


def test_the_row_of_a_step_holds_that_steps_metrics(reference):
    _, _, rows = reference
    state = toy_state()
    for step in range(3):
        state, metrics = step_fn(state, step)
    assert np.float32(rows[1]["grad_norm"]) == metrics["grad_norm"]
    assert rows[1]["loss"] == pytest.approx(float(metrics["loss"].total) / 8, rel=1e-6)


def test_a_finished_run_is_returned_without_training(reference):
    def never(state, step):
        raise AssertionError(step)

    workdir, state, rows = reference
    assert_same_bits(train(workdir, step_fn=never), state)
    assert rows_of(workdir) == rows


def test_monitors_measure_the_policy_and_their_numbers_join_the_rows(reference, tmp_path):
    def measure(model, params, tokenizer):
        assert (model, tokenizer) == ("model", "tokenizer")
        return {"gold": float(params["b"])}

    monitors = [PolicyMonitor(4, measure, "own/score")]
    hooks = policy_hooks(monitors, "model", "tokenizer", lambda state: state.params)
    state = train(tmp_path, hooks=hooks)
    assert_same_bits(state, reference[1])
    rows = [row for row in rows_of(tmp_path) if "gold" in row]
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert rows[-1]["gold"] == float(state.params["b"])


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is tidied up."""


def dies_on_call(function, call):
    calls = 0

    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("call", [1, 4, 5, 6, 9, 12])
def test_killed_in_a_step_and_resumed(reference, tmp_path, call):
    with pytest.raises(Killed):
        train(tmp_path, step_fn=dies_on_call(step_fn, call))
    assert_same_bits(train(tmp_path), reference[1])
    assert rows_of(tmp_path) == reference[2]


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (checkpoints, "save", 2),  # before a checkpoint is written, its row already being there
        (checkpoints, "_prune", 2),  # after it is written
        (MetricsWriter, "write", 3),
        (MetricsWriter, "flush", 3),
        (loop, "_run_hooks", 10),
    ],
)
def test_killed_around_saving_and_writing_and_resumed(
    reference, tmp_path, monkeypatch, owner, name, call
):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies_on_call(getattr(owner, name), call))
        with pytest.raises(Killed):
            train(tmp_path)
    assert_same_bits(train(tmp_path), reference[1])
    assert rows_of(tmp_path) == reference[2]


def test_killed_while_writing_a_row(reference, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, step_fn=dies_on_call(step_fn, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')
    assert_same_bits(train(tmp_path), reference[1])
    assert rows_of(tmp_path) == reference[2]


def wait_for_rows(workdir, count, process):
    deadline = time.monotonic() + 60
    path = workdir / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def launch(workdir):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, __file__, str(workdir)], env=environment, stderr=subprocess.PIPE
    )


def test_real_signals_at_random_moments(tmp_path):
    """kill -9, then SIGTERM, then in peace; against the same run in this process."""
    expected = train(tmp_path / "expected", num_steps=60)
    workdir, rng = tmp_path / "run", np.random.default_rng()

    process = launch(workdir)
    wait_for_rows(workdir, int(rng.integers(3, 9)), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()

    process = launch(workdir)
    written = (
        len(read_rows(workdir / "metrics.jsonl")) if (workdir / "metrics.jsonl").exists() else 0
    )
    wait_for_rows(workdir, written + int(rng.integers(1, 9)), process)
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 143, message
    stopped = latest_step(workdir)
    assert (
        f"toy: SIGTERM. Step {stopped} of 60 is saved in {workdir}/checkpoints/{stopped}" in message
    )
    assert f"--workdir={workdir} continues" in message

    assert_same_bits(train(workdir, num_steps=60), expected)
    assert rows_of(workdir) == rows_of(tmp_path / "expected")


def test_sigterm_finishes_the_step_saves_and_restores_the_old_handler(reference, tmp_path, capsys):
    def terminated(state, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(state, step)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path, step_fn=terminated)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert latest_step(tmp_path) == 7
    assert "Step 7 of 12 is saved" in capsys.readouterr().err
    assert_same_bits(train(tmp_path), reference[1])
    assert rows_of(tmp_path) == reference[2]


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_finishes_the_step_and_saves_and_the_second_stops_at_once(
    reference, tmp_path, presses
):
    """A press once lost the steps since the last checkpoint."""

    def interrupted(state, step):
        for _ in range(presses if step == 6 else 0):
            signal.raise_signal(signal.SIGINT)
        return step_fn(state, step)

    before = signal.getsignal(signal.SIGINT)
    saved = "toy: Ctrl-C. Step 7 of 12 is saved" if presses == 1 else "^$"
    with pytest.raises(KeyboardInterrupt, match=saved):
        train(tmp_path, step_fn=interrupted)
    assert signal.getsignal(signal.SIGINT) is before
    assert latest_step(tmp_path) == (7 if presses == 1 else 4)
    assert_same_bits(train(tmp_path), reference[1])
    assert rows_of(tmp_path) == reference[2]


def test_in_another_thread_signals_are_left_alone(tmp_path):
    seen = []
    before = signal.getsignal(signal.SIGTERM)

    def noting(state, step):
        seen.append(signal.getsignal(signal.SIGTERM))
        return step_fn(state, step)

    def work():
        train(tmp_path, num_steps=1, step_fn=noting)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("name", ["loss", "ptx/loss", "loss/policy_avg", "policy/grad_norm"])
def test_a_non_finite_loss_stops_the_run_after_its_row_and_before_any_checkpoint(tmp_path, name):
    def diverging(state, step):
        state, metrics = step_fn(state, step)
        return state, {"other": metrics["loss"], name: jnp.where(step == 7, jnp.nan, 1.0)}

    with pytest.raises(
        FloatingPointError, match=rf"step 8: {name} = nan.*last good checkpoint is step 4"
    ):
        train(tmp_path, step_fn=diverging)
    assert rows_of(tmp_path)[-1]["step"] == 8
    assert np.isnan(rows_of(tmp_path)[-1][name])
    assert all_steps(tmp_path) == [4]


def test_other_metrics_may_be_non_finite(tmp_path):
    def odd(state, step):
        return step_fn(state, step)[0], {"val/var_explained": jnp.float32(jnp.nan)}

    train(tmp_path, num_steps=2, step_fn=odd)
    assert latest_step(tmp_path) == 2


def test_recompiling_steps_are_counted(tmp_path):
    def growing(state, step):
        return update(state, np.zeros((2 + step, 6), np.float32))

    train(tmp_path, num_steps=4, log_every=1, step_fn=growing)
    counts = [row["perf/compile_count"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert counts == [0, 1, 2, 3]


def test_metrics_are_fetched_one_step_late_and_at_the_end(tmp_path, monkeypatch):
    events = []
    honest = loop.jax.device_get
    monkeypatch.setattr(loop.jax, "device_get", lambda x: (events.append("fetch"), honest(x))[1])
    numbers = {"loss": np.float32(1)}

    def noted(state, step):
        events.append(f"step {step}")
        return state, numbers

    train(tmp_path, num_steps=3, save_every=10, hooks=(), step_fn=noted)
    assert events[:6] == ["step 0", "step 1", "fetch", "step 2", "fetch", "fetch"]


def test_time_in_hooks_is_not_training_time(tmp_path):
    def steady(state, step):
        time.sleep(0.005)
        return step_fn(state, step)

    hooks = (Hook(1, lambda state, step: time.sleep(0.3)),)
    train(tmp_path, num_steps=3, save_every=10, hooks=hooks, step_fn=steady)
    assert (
        read_rows(tmp_path / "metrics.jsonl")[-1]["perf/steps_per_s"] > 5
    )  # 3.3 if the hook counted


def test_a_model_that_json_changes_is_still_the_same_model(tmp_path):
    def meta(stop):
        return toy_meta(num_steps=1, model={"stop": stop})

    train(tmp_path, meta=meta((1, 2)))
    train(tmp_path, meta=meta((1, 2)))
    with pytest.raises(ValueError, match=r"\[1, 2\].*\[1, 3\]"):
        train(tmp_path, meta=meta((1, 3)))


def test_samples_go_through_the_writer_and_are_cut_with_the_rows(tmp_path):
    def run(kill_at):
        with MetricsWriter(tmp_path) as writer:

            def sampling(state, step):
                writer.samples(step + 1, [{"prompt": "p", "response": str(step)}])
                return step_fn(state, step)

            fn = dies_on_call(sampling, kill_at) if kill_at else sampling
            train(tmp_path, num_steps=6, step_fn=fn, writer=writer)

    with pytest.raises(Killed):
        run(6)
    run(None)
    rows = read_rows(tmp_path / "samples.jsonl")
    assert [(row["step"], row["response"]) for row in rows] == [(n + 1, str(n)) for n in range(6)]


def test_exported_parameters_are_what_the_next_stage_loads_and_training_resumes_without_them(
    reference, tmp_path
):
    def average(state):
        return state.extras["ema"]

    with pytest.raises(Killed):
        train(tmp_path, step_fn=dies_on_call(step_fn, 8), export=average)
    state = train(tmp_path, export=average)
    assert_same_bits(state, reference[1])
    assert_same_bits(load_params(tmp_path)[0], state.extras["ema"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"width": 7}}, r"its model is \{'width': 6\}, this run's is \{'width': 7\}"),
        ({"stage": "ppo"}, r"its stage is 'toy', this run's is 'ppo'"),
        (
            {"lineage": {"init": {"path": "x", "stage": "sft", "step": 1, "fingerprint": "f"}}},
            "its lineage is",
        ),
    ],
)
def test_a_workdir_of_another_run_is_refused(reference, change, message):
    workdir, _, _ = reference
    meta = replace(read_meta(workdir), **change)
    with pytest.raises(ValueError, match=message):
        train(workdir, meta=meta)


def test_another_length_is_refused(reference):
    with pytest.raises(ValueError, match=r"its num_steps is 12, this run's is 20"):
        train(reference[0], num_steps=20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_every": 0}, "log_every = 0"),
        ({"hooks": (Hook(0, distance),)}, r"hooks\[0\].every = 0"),
        ({"num_steps": 0}, "num_steps = 0"),
        (
            {"hooks": (Hook(1, lambda state, step: {"loss": 1.0}),)},
            r"metrics \['loss'\] come from the step and a",
        ),
        ({"hooks": (Hook(1, distance), Hook(1, distance))}, r"distance'\] come from two hooks"),
    ],
)
def test_impossible_arguments_are_errors(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **change)


def slow_step(state, step):
    time.sleep(0.02)
    return step_fn(state, step)


if __name__ == "__main__":
    train(Path(sys.argv[1]), num_steps=60, step_fn=slow_step)
