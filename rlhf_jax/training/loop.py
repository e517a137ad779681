"""The one training loop, used by every training stage.

    resume from the workdir's newest checkpoint, or start at step 0
    for step in start … num_steps - 1:
        state, metrics = step_fn(state, step)          the device is now busy with this step
        fetch the metrics of the step before           so Python never keeps the device waiting
        stop if a loss or a gradient norm was not finite
        run the hooks that are due, write the row, save if it is time or if SIGTERM came

After the call `step_fn(state, step)` the run *is at* step + 1: rows, samples, hooks and checkpoints count
updates made. Metrics of a step are on the disk before its checkpoint is, and rows beyond the checkpoint are
dropped on resuming. If `step_fn` is a function of (state, step), a run that was killed anywhere therefore
ends with the same bits and the same rows.

Left out on purpose: callbacks beyond hooks, averaging of metrics over steps.
"""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import jax

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models.heads import LanguageModel, Params
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import Meta
from rlhf_jax.training.metrics import CompileCounter, MetricsWriter, Number, Progress, to_number
from rlhf_jax.training.processes import stop_requested

State = TypeVar("State")
_GUARDED = ("loss", "grad_norm")


class Hook(NamedTuple):
    """`run(state, step)` after every `every` updates and after the last; its numbers join that step's row."""

    every: int
    run: Callable[[Any, int], Mapping[str, Number] | None]


class PolicyMonitor(NamedTuple):
    """Measure a policy while it trains; nothing that `measure` returns reaches a loss.

    `measure(model, params, tokenizer)` returns numbers for the row of the step.
    """

    every: int
    measure: Callable[[LanguageModel, Params, Tokenizer], Mapping[str, float]]


def policy_hooks(
    monitors: Sequence[PolicyMonitor],
    model: LanguageModel,
    tokenizer: Tokenizer,
    policy_of: Callable[[Any], Params],
) -> list[Hook]:
    """Return a hook for every monitor; `policy_of(state)` gives the parameters to measure."""
    return [
        Hook(monitor.every, partial(_measure_policy, monitor, model, tokenizer, policy_of))
        for monitor in monitors
    ]


def _measure_policy(
    monitor: PolicyMonitor,
    model: LanguageModel,
    tokenizer: Tokenizer,
    policy_of: Callable[[Any], Params],
    state: Any,
    step: int,
) -> Mapping[str, float]:
    del step  # the row names it
    return monitor.measure(model, policy_of(state), tokenizer)


class Best(NamedTuple):
    """Also save, and keep, the step at which a hook's `metric` was best so far; `mode` is "max" or "min"."""

    metric: str
    mode: str


def run_loop(
    *,
    workdir: str | Path,
    state: State,
    step_fn: Callable[[State, int], tuple[State, Mapping[str, Any]]],
    num_steps: int,
    log_every: int,
    save_every: int,
    keep: int,
    to_checkpoint: Callable[[State], tuple[Any, Any]],
    from_checkpoint: Callable[[Any, Any], State],
    meta: Meta,
    hooks: Sequence[Hook] = (),
    headline: Sequence[str] = (),
    writer: MetricsWriter | None = None,
    best: Best | None = None,
) -> State:
    """Train to `num_steps` updates, from the newest checkpoint if there is one; return the last state.

    `state` gives the structure and shardings to restore onto; it may be donated by `step_fn`. Metrics are
    scalars or `Mean` pairs. A metric called "tokens" is the number processed in that step and yields
    perf/tokens_per_s. Rows are written at step 1, every `log_every` steps, at the last step and whenever a
    hook returns numbers. Pass the `writer` that `step_fn` or hooks use for samples, or none.

    perf/compile_count is the number of XLA compilations in `step_fn` after its first call: 0 is healthy, and
    a count that grows means that shapes or Python values change from step to step.

    Raises ValueError when the workdir holds another run; FloatingPointError at the first non-finite metric
    with "loss" or "grad_norm" in its name, after writing its row and without saving; SystemExit(143) after
    SIGTERM, once the step is saved.
    """
    _check_arguments(meta, num_steps, log_every, save_every, keep, hooks, best)
    state, start, meta = _resume(workdir, state, to_checkpoint, from_checkpoint, meta)
    with ExitStack() as stack:
        writer = writer or stack.enter_context(MetricsWriter(workdir))
        writer.truncate_after(start if start else -1)
        stop = stack.enter_context(_sigterm())
        log = _Log(
            workdir, writer, Progress(meta.stage, start, num_steps, headline), log_every, num_steps
        )
        counter = CompileCounter()
        for step in range(start, num_steps):
            with counter:
                state, metrics = step_fn(state, step)
            done = step + 1
            log.settle()
            log.expect(done, metrics, counter.after_first_call)
            extra = _run_hooks(hooks, state, done, num_steps, log)
            meta, improved = _update_best(meta, best, done, extra)
            # Read once: a signal between two readings would save a step without its row.
            stopping = stop.is_set() if jax.process_count() == 1 else stop_requested(step)
            saving = improved or stopping or done % save_every == 0 or done == num_steps
            if extra or saving:
                log.settle(extra)
            if saving:
                with log.pause():
                    writer.flush()
                    checkpoints.save(workdir, done, *to_checkpoint(state), meta, keep=keep)
            if stopping and done < num_steps:
                _exit_after_sigterm(workdir, meta, done)
    if best is not None and not meta.best:
        raise ValueError(
            f"best.metric = {best.metric!r} was returned by no hook: name one that a hook returns"
        )
    return state


def _check_arguments(
    meta: Meta,
    num_steps: int,
    log_every: int,
    save_every: int,
    keep: int,
    hooks: Sequence[Hook],
    best: Best | None,
) -> None:
    counts = {
        "num_steps": num_steps,
        "log_every": log_every,
        "save_every": save_every,
        "keep": keep,
    }
    counts |= {f"hooks[{i}].every": hook.every for i, hook in enumerate(hooks)}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} = {value}: must be >= 1")
    if meta.num_steps != num_steps:
        raise ValueError(
            f"meta.num_steps = {meta.num_steps} but num_steps = {num_steps}: they must be the same"
        )
    if best is not None and best.mode not in ("max", "min"):
        raise ValueError(f"best.mode = {best.mode!r}: must be 'max' or 'min'")


# --- resuming -----------------------------------------------------------------------------------------------


def _resume(
    workdir: str | Path,
    state: State,
    to_checkpoint: Callable[[State], tuple[Any, Any]],
    from_checkpoint: Callable[[Any, Any], State],
    meta: Meta,
) -> tuple[State, int, Meta]:
    step = checkpoints.latest_step(workdir)
    if step is None:
        return state, 0, meta
    _check_same_run(
        workdir, checkpoints.read_meta(checkpoints.checkpoint_folder(workdir, step)), meta
    )
    params, train, saved = checkpoints.restore(workdir, step, *to_checkpoint(state))
    return from_checkpoint(params, train), step, replace(meta, best=saved.best)


def _check_same_run(workdir: str | Path, saved: Meta, meta: Meta) -> None:
    for name in ("stage", "kind", "num_steps", "model", "tokenizer"):
        _require_same(workdir, name, getattr(saved, name), getattr(meta, name))
    _require_same(workdir, "lineage", _parents(saved), _parents(meta))


def _parents(meta: Meta) -> dict[str, Any]:
    # Not the path: a run may be resumed from another folder, but its parents must be the same bits.
    return {
        role: [entry[k] for k in ("stage", "step", "fingerprint")]
        for role, entry in meta.lineage.items()
    }


def _require_same(workdir: str | Path, name: str, saved: object, mine: object) -> None:
    mine = json.loads(json.dumps(mine))  # as `saved` was: a tuple becomes a list
    if saved != mine:
        raise ValueError(
            f"{workdir} holds another run: its {name} is {saved!r}, this run's is {mine!r}. "
            "Use the configuration that made it, or another workdir"
        )


# --- hooks, best step, SIGTERM ------------------------------------------------------------------------------


def _run_hooks(
    hooks: Sequence[Hook], state: Any, step: int, num_steps: int, log: "_Log"
) -> dict[str, Number]:
    extra: dict[str, Number] = {}
    for hook in hooks:
        if step % hook.every == 0 or step == num_steps:
            with log.pause():
                found = {
                    name: to_number(value) for name, value in (hook.run(state, step) or {}).items()
                }
            _check_disjoint(extra, found, "two hooks")
            extra |= found
    return extra


def _update_best(
    meta: Meta, best: Best | None, step: int, extra: Mapping[str, Number]
) -> tuple[Meta, bool]:
    if best is None or best.metric not in extra:
        return meta, False
    value = extra[best.metric]
    sign = 1 if best.mode == "max" else -1
    if math.isnan(value) or (meta.best and sign * value <= sign * meta.best["value"]):
        return meta, False
    return replace(meta, best={"step": step, "metric": best.metric, "value": value}), True


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, if this is the main thread: only that may install handlers."""
    event = threading.Event()
    # Several processes must stop after the same step: their coordinator has a handler of its own (`stop_requested`).
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield event
        return

    def handler(number: int, frame: FrameType | None) -> None:
        del number, frame
        event.set()

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit_after_sigterm(workdir: str | Path, meta: Meta, step: int) -> None:
    print(
        f"\n{meta.stage}: SIGTERM. Step {step} of {meta.num_steps} is saved in "
        f"{checkpoints.checkpoint_folder(workdir, step)}; "
        f"the same command with --workdir={workdir} continues from it.",
        file=sys.stderr,
        flush=True,
    )
    raise SystemExit(143)  # 128 + SIGTERM, what a shell reports for a process that the signal ended


# --- rows ---------------------------------------------------------------------------------------------------


class _Log:
    """Makes a step's metrics a row once the device has them, one step late; times steps, not pauses."""

    def __init__(
        self,
        workdir: str | Path,
        writer: MetricsWriter,
        progress: Progress,
        log_every: int,
        num_steps: int,
    ) -> None:
        self._workdir, self._writer, self._progress = workdir, writer, progress
        self._log_every, self._num_steps = log_every, num_steps
        self._pending: tuple[int, Mapping[str, Any], int] | None = None
        self._mark: float | None = None  # set when the first step is over: compiling is not speed
        self._steps = self._tokens = 0

    def expect(self, step: int, metrics: Mapping[str, Any], compile_count: int) -> None:
        self._pending = (step, metrics, compile_count)

    def settle(self, extra: Mapping[str, Number] | None = None) -> None:
        """Wait for the expected metrics, check them, and write the row if it is due."""
        if self._pending is None:
            return
        (step, metrics, compile_count), self._pending = self._pending, None
        row = {name: to_number(value) for name, value in jax.device_get(dict(metrics)).items()}
        _check_disjoint(row, extra or {}, "the step and a hook")
        row |= extra or {}
        bad = [name for name in row if _is_guarded(name) and not math.isfinite(row[name])]
        speed = self._tick(int(row.get("tokens", 0)))
        if extra or bad or step in (1, self._num_steps) or step % self._log_every == 0:
            row |= speed | {"perf/compile_count": compile_count}
            self._steps, self._tokens, self._mark = 0, 0, time.monotonic()
            self._writer.write(step, row)
            self._progress.update(step, row)
        if bad:
            self._writer.flush()
            raise FloatingPointError(_non_finite_message(self._workdir, step, bad, row))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Time in here (hooks, saving) is not training; what the device still has to compute is."""
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


def _check_disjoint(one: Mapping[str, Number], other: Mapping[str, Number], who: str) -> None:
    if both := sorted(set(one) & set(other)):
        raise ValueError(f"metrics {both} come from {who}: rename one")


def _is_guarded(name: str) -> bool:
    return any(part in _GUARDED for part in name.split("/"))


def _non_finite_message(
    workdir: str | Path, step: int, bad: Sequence[str], row: Mapping[str, Number]
) -> str:
    last = checkpoints.latest_step(workdir)
    kept = (
        f"the last good checkpoint is step {last}"
        if last is not None
        else "there is no checkpoint yet"
    )
    values = ", ".join(f"{name} = {row[name]}" for name in bad)
    return (
        f"step {step}: {values}. Nothing of this step was saved; {kept}; "
        f"the row is in {Path(workdir) / 'metrics.jsonl'}. "
        "Lower learning_rate or max_grad_norm, or lengthen the warm-up"
    )
