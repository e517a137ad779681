"""Tell trackers what a run writes into its folder: TensorBoard, wandb, trackio.

    python -m rlhf_jax.main --track=wandb,trackio …    whom to tell besides metrics.jsonl
    --track=tensorboard (the default), --track= (nobody)

    wandb      WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY, … as always; files in WORKDIR/wandb
    trackio    a local database by default; TRACKIO_DIR, TRACKIO_SPACE_ID, TRACKIO_PROJECT

What they get: config, lineage (paths, steps and fingerprints of the parents), every row of metrics,
the rows of samples.jsonl as a table, and of an evaluation every number, the table and the samples.

metrics.jsonl and samples.jsonl are the truth, a tracker follows them: WORKDIR/tracking/NAME.json
keeps the id of its run and the last steps it was told. A run that resumes continues the same run
there: steps that it computes again are not told twice, and what the tracker missed (it failed, or
was named only now) is read from the files first. A tracker that fails says so once and is told no
more; the training goes on. What a tracker still held in memory when the process was killed outright
is missing there, at most a second or so of rows: nothing tells what arrived, and a gap is better
than steps told twice.

Left out on purpose: code, gradients, checkpoints as artifacts.
"""

import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from rlhf_jax.files import json_checksum, write_json
from rlhf_jax.training.metrics import (
    METRICS,
    SAMPLES,
    MetricsWriter,
    Number,
    PathLike,
    TensorBoardWriter,
    Writer,
    read_rows,
)

PROJECT = "rlhf_jax"  # where the environment names none
FOLDER = "tracking"  # in the workdir
_NEVER = -1  # the step of a tracker that was told nothing

# --- following ------------------------------------------------------------------------------------


class Follower(Writer):
    """Tell a tracker each step once, over all processes that ever work on a run.

    `make(run_id, workdir, num_calls)` returns the writer of one run of the tracker, told that often
    before; it opens the run when that is described. A ValueError then is the user's to mend; every
    other error is a warning.
    """

    def __init__(
        self, name: str, make: Callable[[str, Path, int], Writer], workdir: PathLike
    ) -> None:
        self.name = name
        self._make = make
        self._workdir = Path(workdir)
        self._path = self._workdir / FOLDER / f"{name}.json"
        self._progress: dict[str, Any] = {}
        self._progress_before: dict[str, Any] = {}  # by earlier processes
        self._tracker: Writer | None = None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Open the tracker's run, a new one or that of this workdir."""
        nothing = {METRICS: _NEVER, SAMPLES: _NEVER, "results": None, "calls": 0}
        self._progress = {"id": secrets.token_hex(4), **nothing, **self._read()}
        self._progress_before = dict(self._progress)
        self._remember()
        self._tracker = self._make(self._progress["id"], self._workdir, self._progress["calls"])
        try:
            self._tracker.describe(facts)
        except ValueError:
            self._tracker = None
            raise
        except Exception as error:
            self._give_up(error)

    def truncate_after(self, step: int) -> None:
        """Tell what the files hold up to this step and the tracker was not told."""
        for row in self._missed(METRICS, step):
            self.write(row["step"], {name: row[name] for name in row if name != "step"})
        for number, rows in groupby(self._missed(SAMPLES, step), lambda row: row["step"]):
            self.samples(
                number, [{name: row[name] for name in row if name != "step"} for row in rows]
            )

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        self._tell_once(METRICS, step, lambda tracker: tracker.write(step, metrics))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._tell_once(SAMPLES, step, lambda tracker: tracker.samples(step, rows))

    def results(self, content: Mapping[str, Any]) -> None:
        """Tell results, unless these were told before."""
        checksum = json_checksum(content)
        if self._tracker is not None and self._progress["results"] != checksum:
            self._tell_and_note({"results": checksum}, lambda tracker: tracker.results(content))

    def flush(self) -> None:
        self._tell(lambda tracker: tracker.flush())

    def close(self, *, failed: bool = False) -> None:
        self._tell(lambda tracker: tracker.close(failed=failed))
        self._tracker = None

    def _missed(self, file: str, step: int) -> list[dict[str, Any]]:
        path = self._workdir / file
        if self._tracker is None or not path.exists():
            return []
        return [row for row in read_rows(path) if self._progress[file] < row["step"] <= step]

    def _tell_once(self, file: str, step: int, action: Callable[[Writer], None]) -> None:
        if self._tracker is not None and step > self._progress_before[file]:
            self._tell_and_note({file: max(self._progress[file], step)}, action)

    def _tell_and_note(self, news: Mapping[str, Any], action: Callable[[Writer], None]) -> None:
        before = self._progress
        # Noted first: a process that dies in between leaves a gap, never a step told twice.
        self._progress = {**before, **news, "calls": before["calls"] + 1}
        self._remember()
        if not self._tell(action):
            self._progress = before
            self._remember()

    def _tell(self, action: Callable[[Writer], None]) -> bool:
        if self._tracker is None:
            return False
        try:
            action(self._tracker)
        # A tracker may raise anything, and none of it may end a run.
        except Exception as error:
            self._give_up(error)
        return self._tracker is not None

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        reason = (str(error).splitlines() or [""])[0][:200]
        print(
            f"\nwarning: {self.name} failed ({type(error).__name__}: {reason}) and is told no more "
            f"by this process; {self._workdir / METRICS} stays whole, and the same command tells "
            "the rest when it continues this run",
            file=sys.stderr,
            flush=True,
        )

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            return dict(json.loads(self._path.read_text()))
        except ValueError as error:
            raise ValueError(
                f"{self._path}: {error}; delete it, and {self.name} gets a new run"
            ) from error

    def _remember(self) -> None:
        write_json(self._path, self._progress)


# --- the trackers ---------------------------------------------------------------------------------


class WandbWriter(Writer):
    """Write to one run of wandb. Its x-axis is our step: rows and samples come in any order."""

    def __init__(self, run_id: str, workdir: Path, num_calls: int) -> None:
        self._id = run_id
        self._workdir = workdir
        self._num_calls = num_calls
        self._run: Any = None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Open the run; ValueError without a login."""
        import wandb

        group, name = _names(self._workdir)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=self._id,
                resume="allow",
                name=f"{group}/{name}",
                group=group,
                job_type=facts["stage"],
                dir=os.environ.get("WANDB_DIR", str(self._workdir)),
                reinit="finish_previous",
            )
        except wandb.errors.UsageError as error:
            raise ValueError(
                f"--track=wandb: {error}; run `wandb login`, or set WANDB_MODE=offline"
            ) from error
        self._run.config.update(dict(facts), allow_val_change=True)
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        self._log({"step": step, **metrics})

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._log({"step": step, "samples": _wandb_table(rows)})

    def results(self, content: Mapping[str, Any]) -> None:
        tables = {name: _wandb_table(rows) for name, rows in result_tables(content).items()}
        self._log({"step": 0, **tables})
        self._run.summary.update(result_numbers(content))

    def close(self, *, failed: bool = False) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None

    def _log(self, row: dict[str, Any]) -> None:
        # wandb's own step counts calls. It would start again at 0 in each offline process, and the
        # files of two such processes would overwrite each other when they are synchronised.
        self._run.log(row, step=self._num_calls)
        self._num_calls += 1


def _wandb_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns, data = table_columns(rows)
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


class TrackioWriter(Writer):
    """Write to one run of trackio, which continues a run of the same name."""

    def __init__(self, run_id: str, workdir: Path, num_calls: int) -> None:
        del num_calls
        self._id = run_id
        self._workdir = workdir
        self._run: Any = None

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Open the run."""
        import trackio

        group, name = _names(self._workdir)
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{group}-{name}-{self._id}",
            group=group,
            config=dict(facts),
            resume="allow",
            embed=False,
        )

    def write(self, step: int, metrics: Mapping[str, Number]) -> None:
        self._run.log(dict(metrics), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._run.log({"samples": _trackio_table(rows)}, step=step)

    def results(self, content: Mapping[str, Any]) -> None:
        tables = {name: _trackio_table(rows) for name, rows in result_tables(content).items()}
        self._run.log({**result_numbers(content), **tables}, step=0)

    def close(self, *, failed: bool = False) -> None:
        del failed
        if self._run is not None:
            import trackio

            trackio.finish()
            self._run = None


def _trackio_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    import trackio

    columns, data = table_columns(rows)
    return trackio.Table(columns=columns, data=data)


def _names(workdir: Path) -> tuple[str, str]:
    """Return the group of a run and its own name: the last two folders of its path."""
    path = workdir.absolute()
    return path.parent.name or PROJECT, path.name


# --- tables ---------------------------------------------------------------------------------------


def table_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and the data of rows; what is nested gets a column of its own, a/b."""
    flat = [_flatten(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    return columns, [[row.get(name) for name in columns] for row in flat]


def _flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{inner}": item for inner, item in _flatten(value).items()}
        else:
            flat[name] = value if isinstance(value, str | int | float | None) else json.dumps(value)
    return flat


def result_numbers(content: Mapping[str, Any]) -> dict[str, Number]:
    """Return every value of an evaluation's table under GROUP/METRIC/CHECKPOINT."""
    return {
        f"{row['group']}/{row['metric']}/{name}": estimate["value"]
        for row in content["table"]
        for name, estimate in row["values"].items()
        if estimate["value"] is not None
    }


def result_tables(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return an evaluation's table, its samples and its checkpoints as rows."""
    names = ("group", "metric", "unit", "better", "description")
    rows = [
        {**{key: row[key] for key in names}, "checkpoint": name, **estimate}
        for row in content["table"]
        for name, estimate in row["values"].items()
    ]
    checkpoints = [{"name": name, **facts} for name, facts in content["checkpoints"].items()]
    tables = {"results": rows, "samples": list(content["samples"]), "checkpoints": checkpoints}
    return {f"evaluation/{name}": table for name, table in tables.items() if table}


# --- whom to tell ---------------------------------------------------------------------------------

TRACKERS: dict[str, Callable[[Path], Writer]] = {
    "tensorboard": TensorBoardWriter,
    "wandb": partial(Follower, "wandb", WandbWriter),
    "trackio": partial(Follower, "trackio", TrackioWriter),
}
DEFAULT = ("tensorboard",)
# Where the rows of this process go besides the workdir's files. Of the process, as its devices are:
# no stage depends on it, and a run may be continued with other trackers.
_names_now: ContextVar[tuple[str, ...]] = ContextVar("trackers", default=DEFAULT)


def read_trackers(text: str) -> tuple[str, ...]:
    """Return the trackers that --track names.

    Raises:
        ValueError: one is unknown, or its package is missing.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"--track: {name!r} is not one of {', '.join(TRACKERS)}")
        if name not in DEFAULT and not _is_installed(name):
            raise ValueError(
                f"--track={name}: the package {name} is missing; pip install 'rlhf_jax[{name}]', "
                "or leave it out"
            )
    return names


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    # A folder of this name without code, such as wandb leaves its files in, counts as a package.
    return spec is not None and spec.origin is not None


@contextmanager
def tracked_by(names: Sequence[str]) -> Iterator[None]:
    """Let the runs in here tell these trackers."""
    token = _names_now.set(tuple(names))
    try:
        yield
    finally:
        _names_now.reset(token)


def open_writer(workdir: PathLike) -> MetricsWriter:
    """Return the writer of a run in `workdir`, which tells the trackers of this process too."""
    return MetricsWriter(workdir, [TRACKERS[name](Path(workdir)) for name in _names_now.get()])


def track_results(workdir: PathLike) -> None:
    """Tell the trackers what is in a workdir's evaluation.json."""
    facts = json.loads((Path(workdir) / "config.json").read_text())
    content = json.loads((Path(workdir) / "evaluation.json").read_text())
    with open_writer(workdir) as writer:
        writer.describe({**facts, "workdir": str(workdir), "lineage": content["checkpoints"]})
        writer.results(content)
