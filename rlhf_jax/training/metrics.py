"""Write what a run says about itself while it runs.

    WORKDIR/metrics.jsonl   one row per logged step: {"step": 120, "loss": 0.53, …}; NaN, Infinity
            samples.jsonl   {"step": 120, "prompt": …, "response": …, …}
            tensorboard/    the same numbers, unless --track leaves them out

`step` is the number of updates made. A run that resumes from step n drops every row beyond n and a
half-written last line, so the files are those of a run that was never interrupted.

Whoever is told is a `Writer`. The two files are always written; TensorBoard, wandb and trackio are
those that `--track` names (training/trackers.py).
"""

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from rlhf_jax.files import write_text
from rlhf_jax.maths.masking import Mean
from rlhf_jax.training.processes import is_main_process

PathLike = str | Path
Number = int | float
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"


class Writer:
    """Take in what a run says about itself; a subclass overrides what it has a use for.

    The order of calls is `describe`, `truncate_after`, then rows and `flush` as they come, `close`.
    """

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Take in what is known before the first step: config, lineage, model, workdir."""

    def truncate_after(self, step: int) -> None:
        """Forget the rows of later steps: the run resumes from this one."""

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Take in one row of metrics."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in rows of prompts, responses, scores: whatever JSON can hold."""

    def results(self, content: Mapping[str, Any]) -> None:
        """Take in what evaluation.json holds."""

    def flush(self) -> None:
        """Bring every row to the disk, or on its way."""

    def close(self, *, failed: bool = False) -> None:
        """Flush and let go of files; `failed` if an error ends the run."""


class JsonlWriter(Writer):
    """Append rows to metrics.jsonl and samples.jsonl; nothing is created before the first row."""

    def __init__(self, workdir: PathLike) -> None:
        self.workdir = Path(workdir)
        self._files: dict[str, TextIO] = {}

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        self._append(METRICS, {"step": step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            self._append(SAMPLES, {"step": step, **row})

    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps and a half-written last line."""
        self.close()
        for name in (METRICS, SAMPLES):
            path = self.workdir / name
            if path.exists():
                kept = (row for row in read_rows(path) if row["step"] <= step)
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in kept]
                write_text(path, "".join(lines))

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self, *, failed: bool = False) -> None:
        del failed
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            self.workdir.mkdir(parents=True, exist_ok=True)
            self._files[name] = (self.workdir / name).open("a", encoding="utf-8")
        self._files[name].write(json.dumps(row, ensure_ascii=False) + "\n")
        self._files[name].flush()


class TensorBoardWriter(Writer):
    """Write the metrics to WORKDIR/tensorboard."""

    def __init__(self, workdir: PathLike) -> None:
        self._folder = Path(workdir) / "tensorboard"
        self._board: Any = None
        self._purge_step: int | None = None

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        if self._board is None:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._folder), purge_step=self._purge_step)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def truncate_after(self, step: int) -> None:
        """Tell TensorBoard, when it opens next, to forget the rows of later steps."""
        self.close()
        self._purge_step = step + 1

    def flush(self) -> None:
        if self._board is not None:
            self._board.flush()

    def close(self, *, failed: bool = False) -> None:
        del failed
        if self._board is not None:
            self._board.close()
            self._board = None


class MetricsWriter:
    """Tell the two files of a workdir and then all other writers; use as a context manager.

    Without `others` that is TensorBoard. Of several processes only the first writes.
    """

    def __init__(self, workdir: PathLike, others: Sequence[Writer] | None = None) -> None:
        self.workdir = Path(workdir)
        others = [TensorBoardWriter(workdir)] if others is None else others
        # The files first: what the others lack can be read there.
        self._writers = [JsonlWriter(workdir), *others] if is_main_process() else []

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Say what is known before the first step."""
        for writer in self._writers:
            writer.describe(facts)

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        """Append one row of metrics."""
        for writer in self._writers:
            writer.write(step, metrics)

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows of prompts, responses, scores: whatever JSON can hold."""
        listed = list(rows)
        for writer in self._writers:
            writer.samples(step, listed)

    def results(self, content: Mapping[str, Any]) -> None:
        """Say what an evaluation found."""
        for writer in self._writers:
            writer.results(content)

    def truncate_after(self, step: int) -> None:
        """Drop the rows of later steps and a half-written last line."""
        for writer in self._writers:
            writer.truncate_after(step)

    def flush(self) -> None:
        """Bring every row to the disk; before saving: no checkpoint is ahead of its rows."""
        for writer in self._writers:
            writer.flush()

    def close(self, *, failed: bool = False) -> None:
        """Flush and close."""
        for writer in self._writers:
            writer.close(failed=failed)

    def __enter__(self) -> "MetricsWriter":
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close, whatever happened."""
        self.close(failed=kind is not None)


def read_rows(path: PathLike) -> list[dict[str, Any]]:
    """Read a metrics.jsonl or samples.jsonl, without a last line that is still being written.

    Raises:
        ValueError: names `file:line` of any other line that is not a row.
    """
    # Bytes: the last line may end inside a character.
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error}); delete the line") from error
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(
                f"{path}:{number}: expected an object with a 'step', got {line[:80]!r}; "
                "delete the line"
            )
        rows.append(row)
    return rows


def to_number(value: Any) -> Number:
    """Convert a fetched metric, a number or a `Mean` (0 when its weight is 0), to a Python number.

    float32 becomes the shortest decimal that reads back the same: 0.1, not 0.10000000149.
    """
    if isinstance(value, Mean):
        total, weight = float(value.total), float(value.weight)
        return to_number(np.float32(total / weight if weight != 0 else 0.0))
    array = np.asarray(value)
    if array.shape != ():
        raise ValueError(f"a metric must be a scalar or a Mean, got shape {array.shape}")
    if isinstance(value, bool | int | float):
        return value
    if array.dtype.kind in "iub":
        return int(array)
    return float(str(array.astype(np.float32)))


@dataclass
class Progress:
    """Show one line: step, rate, time left, and the metrics of a `headline` that is not empty.

    A terminal's line is rewritten in place. A file or a pipe gets a line after ten seconds, later
    whenever a tenth of the time so far has passed again, ten minutes at most. The rate and the time
    left count from the first row on, because what comes before it is mostly compiling.
    """

    name: str
    start: int
    num_steps: int
    headline: Sequence[str]
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    _began: float | None = field(init=False, default=None)  # when the first row came
    _printed: float = field(init=False, default=-math.inf)

    def begin(self) -> None:
        """Say that the first step compiles."""
        if self.headline and is_main_process() and self.start < self.num_steps:
            self._show(f"{self.name} {self.start}/{self.num_steps} compiling ...", last=False)

    def update(self, step: int, row: Mapping[str, Number]) -> None:
        """Show a row that was just written."""
        if not self.headline or not is_main_process():
            return
        now = time.monotonic()
        if self._began is None:
            self._began, self.start = now, step
        elapsed, last = now - self._began, step == self.num_steps
        pause = min(max(10.0, elapsed / 10), 600.0)
        if not self.stream.isatty() and not last and now - self._printed < pause:
            return
        self._printed = now
        self._show(self.line(step, row, elapsed), last=last)

    def _show(self, text: str, *, last: bool) -> None:
        if self.stream.isatty():
            width = shutil.get_terminal_size().columns - 1  # what wraps cannot be rewritten
            text = f"\r\x1b[K{text[:width]}" + ("\n" if last else "")
        else:
            text += "\n"
        self.stream.write(text)
        self.stream.flush()

    def line(self, step: int, row: Mapping[str, Number], seconds: float) -> str:
        """Format `sft 120/500 24% 3.1 steps/s, 2:03 left, loss 0.531`; the rate includes pauses."""
        done = step - self.start
        rate = done / seconds if seconds > 0 else 0.0
        left = (self.num_steps - step) / rate if rate > 0 else math.inf
        text = f"{self.name} {step}/{self.num_steps} {100 * step // self.num_steps}%"
        parts = [f"{text} {rate:.3g} steps/s" if rate > 0 else text]
        parts += [f"{clock(left)} left"] if 0 < left < math.inf else []
        parts += [f"{name} {row[name]:.4g}" for name in self.headline if name in row]
        return ", ".join(parts)


def clock(seconds: float) -> str:
    """Format seconds as minutes:seconds, or hours:minutes:seconds."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


_compilations = 0  # of this process since `_listen`, disk-cache hits included


@cache  # once and for ever: jax cannot unlisten
def _listen() -> None:
    def on_event(event: str, duration_secs: float, **kwargs: str | int) -> None:
        global _compilations
        del duration_secs, kwargs
        _compilations += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(on_event)


class CompileCounter:
    """Count compilations inside its `with` blocks, except the first, which has to compile."""

    def __init__(self) -> None:
        _listen()
        self.after_first_call = 0
        self._calls = 0

    def __enter__(self) -> None:
        """Start counting."""
        self._before = _compilations

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        self._calls += 1
        if self._calls > 1:
            self.after_first_call += _compilations - self._before
