"""Run the one training loop that every training stage uses.

    resume from the workdir's newest checkpoint, or start at step 0
    for step in start … num_steps - 1:
        state, metrics = step_fn(state, step)          the device is now busy with this step
        fetch the metrics of the step before           so Python never keeps the device waiting
        stop if a loss or a gradient norm was not finite
        run the hooks that are due, write the row, save if it is time or if SIGTERM or Ctrl-C came

After `step_fn(state, step)` the run *is at* step + 1: rows, samples, hooks and checkpoints count
updates made. A step's metrics are on the disk before its checkpoint, and rows beyond the checkpoint
are dropped on resuming: if `step_fn` is a function of (state, step), a run that was killed anywhere
ends with the same bits and the same rows.

Left out on purpose: callbacks beyond hooks, averaging of metrics over steps.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models.heads import LanguageModel, Params
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import Meta
from rlhf_jax.training.metrics import CompileCounter, MetricsWriter, Number, Progress, to_number
from rlhf_jax.training.processes import stop_requested
from rlhf_jax.training.updates import TrainState

_GUARDED = frozenset({"loss", "grad_norm"})


class Hook(NamedTuple):
    """Call `run(state, step)` after every `every` updates and after the last.

    The numbers that it returns join the row of that step.
    """

    every: int
    run: Callable[[TrainState, int], Mapping[str, Number] | None]


class PolicyMonitor(NamedTuple):
    """Measure a policy while it trains; nothing that `measure` returns reaches a loss.

    `measure(model, params, tokenizer)` returns numbers for the row of the step; `headline` is the
    name of the one among them that the terminal's line shows.
    """

    every: int
    measure: Callable[[LanguageModel, Params, Tokenizer], Mapping[str, float]]
    headline: str


def policy_hooks(
    monitors: Sequence[PolicyMonitor],
    model: LanguageModel,
    tokenizer: Tokenizer,
    policy_of: Callable[[TrainState], Params],
) -> list[Hook]:
    """Return a hook for every monitor; `policy_of(state)` gives the parameters to measure."""

    def run(measure: Callable[..., Mapping[str, float]], state: TrainState, _: int) -> Any:
        return measure(model, policy_of(state), tokenizer)

    return [Hook(monitor.every, partial(run, monitor.measure)) for monitor in monitors]


def headlines(monitors: Sequence[PolicyMonitor]) -> tuple[str, ...]:
    """Return what the terminal's line shows of every monitor."""
    return tuple(monitor.headline for monitor in monitors)


@dataclass(frozen=True)
class LoopConfig:
    """Say how often the loop writes and saves, and what it does besides its steps.

    `headline` names the metrics on the terminal's line. `export(state)` returns the parameters that
    the next stage loads, where these are not `state.params`.
    """

    log_every: int
    save_every: int
    keep: int
    headline: tuple[str, ...] = ()
    hooks: tuple[Hook, ...] = ()
    export: Callable[[TrainState], Params] | None = None


def run_loop(
    workdir: str | Path,
    state: TrainState,
    step_fn: Callable[[TrainState, int], tuple[TrainState, Mapping[str, Any]]],
    meta: Meta,
    config: LoopConfig,
    writer: MetricsWriter | None = None,
) -> TrainState:
    """Train to `meta.num_steps` updates, from the newest checkpoint if there is one.

    `state` gives the structure and shardings to restore onto; `step_fn` may donate it. Metrics are
    scalars or `Mean` pairs; one called "tokens" counts those of the step and yields
    perf/tokens_per_s. Rows are written at step 1, every `log_every` steps, at the last step and
    whenever a hook returns numbers. `writer` is the one that `step_fn` or hooks use for samples.

    perf/compile_count is the number of XLA compilations in `step_fn` after its first call: where it
    grows, shapes or Python values change from step to step.

    Raises:
        ValueError: the workdir holds another run, or a number of the arguments is impossible.
        FloatingPointError: a metric with "loss" or "grad_norm" in its name is not finite; the row
            is written and the step is not saved.
        SystemExit: with status 143 after SIGTERM, once the step is saved.
        KeyboardInterrupt: after Ctrl-C, once the step is saved; after the second at once.
    """
    counts = {"num_steps": meta.num_steps}
    counts |= {"log_every": config.log_every, "save_every": config.save_every, "keep": config.keep}
    counts |= {f"hooks[{i}].every": hook.every for i, hook in enumerate(config.hooks)}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: must be >= 1")
    state, start = _resume(workdir, state, meta, config)
    with ExitStack() as stack:
        writer = writer or stack.enter_context(MetricsWriter(workdir))
        writer.truncate_after(start if start else -1)
        stop = stack.enter_context(_stop_signals())
        progress = Progress(meta.stage, start, meta.num_steps, config.headline)
        progress.begin()
        log = _Log(writer, progress, config.log_every)
        counter = CompileCounter()
        for step in range(start, meta.num_steps):
            with counter:
                state, metrics = step_fn(state, step)
            done = step + 1
            # Only now: the device has work while Python waits for the metrics of the step before.
            log.settle()
            log.expect(done, metrics, counter.after_first_call)
            hook_row = _run_hooks(config.hooks, state, done, meta.num_steps, log)
            # Read once: a signal between two readings would save a step without its row.
            stopping = bool(stop) if jax.process_count() == 1 else stop_requested(step)
            saving = stopping or done % config.save_every == 0 or done == meta.num_steps
            if hook_row or saving:
                log.settle(hook_row)
            if saving:
                with log.pause():
                    writer.flush()
                    trees = checkpoint_trees(state, config.export)
                    checkpoints.save(workdir, done, *trees, meta, keep=config.keep)
            if stopping:
                saved = (
                    f"Step {done} of {meta.num_steps} is saved in "
                    f"{checkpoints.checkpoint_folder(workdir, done)}; the same command with "
                    f"--workdir={workdir} continues from it."
                )
                if signal.SIGINT in stop:
                    raise KeyboardInterrupt(f"{meta.stage}: Ctrl-C. {saved}")
                print(f"\n{meta.stage}: SIGTERM. {saved}", file=sys.stderr, flush=True)
                raise SystemExit(143)  # 128 + SIGTERM, as a shell reports it
    return state


# --- checkpoints and resuming ---------------------------------------------------------------------


def checkpoint_trees(
    state: TrainState, export: Callable[[TrainState], Params] | None = None
) -> tuple[Params, dict[str, Any]]:
    """Return the two trees to save: parameters for the next stage, and the rest of the state.

    With `export` the trained parameters are part of the rest.
    """
    train = {"step": state.step, "opt_state": state.opt_state, "extras": state.extras}
    if export is None:
        return state.params, train
    return export(state), {**train, "params": state.params}


def state_from_trees(params: Params, train: Mapping[str, Any]) -> TrainState:
    """Return the state that two trees of a checkpoint hold: undo `checkpoint_trees`."""
    trained = train.get("params", params)
    return TrainState(train["step"], trained, train["opt_state"], train["extras"])


def _resume(
    workdir: str | Path, state: TrainState, meta: Meta, config: LoopConfig
) -> tuple[TrainState, int]:
    step = checkpoints.latest_step(workdir)
    if step is None:
        return state, 0
    saved = _identity(checkpoints.read_meta(workdir))
    for name, current in _identity(meta).items():
        if saved[name] != current:
            raise ValueError(
                f"{workdir} holds another run: its {name} is {saved[name]!r}, this run's is "
                f"{current!r}. Use the configuration that made it, or another workdir"
            )
    trees = checkpoint_trees(state, config.export)
    params, train, _ = checkpoints.restore(workdir, step, *trees)
    return state_from_trees(params, train), step


def _identity(meta: Meta) -> dict[str, Any]:
    """Return what a run that resumes must have in common with its checkpoint, as JSON reads it."""
    names = ("stage", "kind", "num_steps", "model", "tokenizer")
    # Not the parents' paths: a run may be resumed from another folder, but with the same bits.
    parents = {
        role: [entry[name] for name in checkpoints.SAME_PARENT]
        for role, entry in meta.lineage.items()
    }
    identity = {name: getattr(meta, name) for name in names} | {"lineage": parents}
    return dict(json.loads(json.dumps(identity)))


# --- hooks and signals ----------------------------------------------------------------------------


def _run_hooks(
    hooks: Sequence[Hook], state: TrainState, step: int, num_steps: int, log: "_Log"
) -> dict[str, Number]:
    row: dict[str, Number] = {}
    for hook in hooks:
        if step % hook.every == 0 or step == num_steps:
            with log.pause():
                metrics = hook.run(state, step) or {}
                numbers = {name: to_number(value) for name, value in metrics.items()}
            row = _merge(row, numbers, "two hooks")
    return row


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that SIGTERM and the first Ctrl-C join, in the main thread.

    Only that may install handlers. The second Ctrl-C finds the handler that was there before.
    """
    received: list[int] = []
    # Several processes must stop after the same step: `stop_requested` asks their coordinator.
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield received
        return

    def handler(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
            words = b"\nCtrl-C: this step is finished and saved; press it again to stop at once\n"
            os.write(2, words)  # print may be in the middle of a line of its own

    numbers = [signal.SIGTERM, signal.SIGINT]
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, previous[number])


# --- rows -----------------------------------------------------------------------------------------


@dataclass
class _Log:
    """Make a step's metrics a row once the device has them, one step late; time the steps."""

    _writer: MetricsWriter
    _progress: Progress
    _log_every: int
    _pending: tuple[int, Mapping[str, Any], int] | None = None
    _mark: float | None = None  # set when the first step is over: compiling is not speed
    _steps: int = 0
    _tokens: int = 0

    def expect(self, step: int, metrics: Mapping[str, Any], compile_count: int) -> None:
        self._pending = (step, metrics, compile_count)

    def settle(self, hook_row: Mapping[str, Number] | None = None) -> None:
        """Wait for the expected metrics, check them, and write the row if it is due."""
        if self._pending is None:
            return
        step, metrics, compile_count = self._pending
        self._pending = None
        row = {name: to_number(value) for name, value in jax.device_get(dict(metrics)).items()}
        row = _merge(row, hook_row or {}, "the step and a hook")
        guarded = [name for name in row if not _GUARDED.isdisjoint(name.split("/"))]
        bad = [name for name in guarded if not math.isfinite(row[name])]
        speed = self._tick(int(row.get("tokens", 0)))
        if hook_row or bad or step in (1, self._progress.num_steps) or step % self._log_every == 0:
            row |= speed | {"perf/compile_count": compile_count}
            self._steps = 0
            self._tokens = 0
            self._mark = time.monotonic()
            self._writer.write(step, row)
            self._progress.update(step, row)
        if bad:
            self._writer.flush()
            values = {name: row[name] for name in bad}
            raise FloatingPointError(_non_finite_message(self._writer.workdir, step, values))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time in here (hooks, saving), but not what the device has to compute."""
        if self._pending is not None:
            jax.block_until_ready(self._pending[1])
        began = time.monotonic()
        yield
        if self._mark is not None:
            self._mark += time.monotonic() - began

    def _tick(self, tokens: int) -> dict[str, Number]:
        if self._mark is None:
            self._mark = time.monotonic()
            return {}
        self._steps += 1
        self._tokens += tokens
        seconds = max(time.monotonic() - self._mark, 1e-9)
        speed = {"perf/steps_per_s": self._steps / seconds}
        return speed | ({"perf/tokens_per_s": self._tokens / seconds} if self._tokens else {})


def _merge(a: dict[str, Number], b: Mapping[str, Number], sources: str) -> dict[str, Number]:
    if both := sorted(set(a) & set(b)):
        raise ValueError(f"metrics {both} come from {sources}: rename one")
    return {**a, **b}


def _non_finite_message(workdir: Path, step: int, values: Mapping[str, Number]) -> str:
    last = checkpoints.latest_step(workdir)
    kept = f"the last good checkpoint is step {last}" if last else "there is no checkpoint yet"
    return (
        f"step {step}: {', '.join(f'{name} = {value}' for name, value in values.items())}. "
        f"Nothing of this step was saved; {kept}; the row is in {workdir / 'metrics.jsonl'}. "
        "Lower learning_rate or max_grad_norm, or lengthen the warm-up"
    )
