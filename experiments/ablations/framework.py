"""Define what an ablation is: runs, measurements of them, criteria and a figure.

    experiments/ablations/NAME.py    def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation

    GridRun        an ordinary experiment: a stage's config and its folder under the workdir
    Measurement    rows of results.csv about some runs, kept on disk until a run or argument changes
    Criterion      a sentence with a number in it, and a judge that reads the table of all rows
    figure         a matplotlib figure of the table in the paper's form, which shows every seed

Every row holds the `point` of its measurement (with `seed`) and a `status`: "complete", or what
diverged and when. `reproduce` carries an ablation out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.evaluation.checkpoints import CheckpointRef, find_checkpoint
from rlhf_jax.evaluation.table import Cache
from rlhf_jax.maths.statistics import Interval

Value = str | int | float
Row = dict[str, Value]
Options = dict[str, Any]  # of a function of matplotlib, or one that passes them on
COMPLETE = "complete"
DIVERGED_COLOUR = "#c22"
# The look of all figures, for `plt.rc_context`.
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


@dataclass(frozen=True)
class GridRun:
    """Name an experiment: a stage's config, and the folder under the workdir where it resumes."""

    folder: str
    config: Any  # a ConfigDict, as an experiment file returns it


@dataclass(frozen=True)
class Context:
    """Say where measurements work: the folders of runs, and a cache of what they share."""

    workdir: Path
    cache: Cache

    def folder(self, run: str) -> Path:
        """Return the path of a run's folder."""
        return self.workdir / run

    def checkpoint(self, run: str) -> CheckpointRef:
        """Find the last checkpoint of a run."""
        return find_checkpoint(self.workdir, str(self.folder(run)))


@dataclass(frozen=True)
class Measurement:
    """Describe rows of results.csv: `measure(context, **arguments)` returns them.

    It is called once for every state of the runs in `needs`, for other arguments, and for another
    text of `measure` itself. The functions that it calls are not part of that state: after mending
    one of those, delete what is kept in WORKDIR/NAME/measured.
    """

    name: str  # of its file: letters, digits and _.-
    point: Row  # columns of all its rows: seed, and where in the grid it stands
    needs: tuple[str, ...]  # folders of runs
    measure: Callable[..., list[Row]]
    arguments: Mapping[str, Any]


class Table:
    """Hold rows of results.csv."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, **equal: Value) -> "Table":
        """Return the rows that have these values."""
        items = equal.items()
        return Table([row for row in self.rows if all(row.get(k) == v for k, v in items)])

    def having(self, *columns: str) -> "Table":
        """Return the rows with finite numbers in these columns; a diverged run may have none."""
        return Table([row for row in self.rows if all(_is_finite(row.get(c)) for c in columns)])

    def column(self, name: str) -> np.ndarray:
        """Return one number per row, NaN where a row has none."""
        return np.array([float(row.get(name, np.nan)) for row in self.rows])

    def values(self, name: str) -> list[Any]:
        """Return the different values of a column in the order in which they come."""
        return list(dict.fromkeys(row[name] for row in self.rows if name in row))

    def by(self, name: str) -> Iterator[tuple[Any, "Table"]]:
        """Iterate over the values of a column, each with its rows."""
        return ((value, self.where(**{name: value})) for value in self.values(name))

    def each_seed(self, measure: Callable[["Table"], float]) -> dict[Any, float]:
        """Return a number for every seed that has rows."""
        return {seed: float(measure(rows)) for seed, rows in self.by("seed")}

    def per_seed(self, measure: Callable[["Table"], float]) -> np.ndarray:
        """Return the same without the seeds; what is to be compared goes through `paired`."""
        return np.array(list(self.each_seed(measure).values()))

    def final(self, name: str) -> dict[Any, float]:
        """Return the last finite number of a column for every seed that has one."""
        return self.having(name).each_seed(lambda rows: rows.column(name)[-1])

    @property
    def diverged(self) -> list[str]:
        """What diverged, each once."""
        return [status for status in self.values("status") if status != COMPLETE]


def paired(first: Mapping[Any, float], second: Mapping[Any, float]) -> np.ndarray:
    """Return first − second of every seed that has both.

    Of a seed whose run diverged on one side neither number counts.

    Raises:
        ValueError: no seed has both sides.
    """
    gaps = np.array([first[seed] - second[seed] for seed in first if seed in second])
    gaps = gaps[np.isfinite(gaps)]
    if not gaps.size:
        raise ValueError("no seed has both sides of the comparison")
    return gaps


def require_two(gaps: np.ndarray) -> np.ndarray:
    """Return the same numbers if there are two or more.

    A single seed's interval reaches everything, so it would contradict no claim.

    Raises:
        ValueError: there is a single one.
    """
    if gaps.size < 2:
        raise ValueError("an interval over seeds needs two of them, none diverged")
    return gaps


def mean_of(values: Mapping[Any, float]) -> float:
    """Return the mean over seeds, NaN if there are none."""
    return float(np.mean(list(values.values()))) if values else float("nan")


def _is_finite(value: Value | None) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


class Finding(NamedTuple):
    """Hold what a judge finds: a value, its interval if it has one, and what to say about it."""

    passed: bool
    value: float
    detail: str = ""
    low: float | None = None
    high: float | None = None


def interval_finding(passed: bool, interval: Interval, detail: str = "") -> Finding:
    """Return a finding whose value is the mean of an interval."""
    return Finding(passed, interval.mean, detail, interval.low, interval.high)


@dataclass(frozen=True)
class Criterion:
    """State a claim that can fail; a judge that finds no number where it looks has failed it."""

    claim: str  # with its numbers
    judge: Callable[[Table], Finding]
    source: str = ""  # paper and figure, where they are not the ablation's


@dataclass
class Ablation:
    """Collect everything about a grid; `runs` are in an order in which parents come first."""

    paper: str  # Gao et al. 2022, Fig. 1
    seeds: tuple[int, ...]
    criteria: Sequence[Criterion]
    figure: Callable[[Table], Figure]
    notes: str = ""  # stands under the figure
    runs: dict[str, GridRun] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)

    def add_runs(self, *runs: GridRun) -> None:
        """Add runs to the grid, those that it has already only once.

        Raises:
            ValueError: a folder is to hold two different runs.
        """
        for run in runs:
            if self.runs.setdefault(run.folder, run).config != run.config:
                raise ValueError(f"two different runs are called {run.folder}")

    def add_measurement(
        self,
        name: str,
        point: Row,
        needs: tuple[str, ...],
        measure: Callable[..., list[Row]],
        /,
        **arguments: Any,
    ) -> None:
        """Add a measurement at a point of the grid."""
        self.measurements.append(Measurement(name, point, needs, measure, arguments))


# --- drawing --------------------------------------------------------------------------------------


def draw_seeds(
    axes: Axes,
    table: Table,
    x: str,
    y: str,
    *,
    colour: Any,
    label: str,
    mean: bool = True,
    style: str = "-",
) -> None:
    """Draw a thin line for every seed, a cross where it diverged, and a thick line for the mean.

    The mean is drawn at every x that all seeds have.
    """
    for seed, rows in table.by("seed"):
        points = rows.having(x, y)
        look: Options = {"alpha": 0.35, "label": "_"}
        if not mean:
            look = {"alpha": 0.9, "label": f"{label}, seed {seed}"}
        marker = "." if len(points) < 2 else None
        axes.plot(
            *(points.column(x), points.column(y), style),
            **{"color": colour, "lw": 1, "gid": f"seed {seed}", "marker": marker, **look},
        )
        if rows.diverged and len(points):
            end = points.column(x)[-1:], points.column(y)[-1:]
            axes.plot(*end, "x", color=DIVERGED_COLOUR, ms=9, mew=2)
    if mean:
        num_seeds = len(table.values("seed"))
        rows_at = table.having(x, y).by(x)
        common = [(k, rows.column(y).mean()) for k, rows in rows_at if len(rows) == num_seeds]
        line = np.array(sorted(common)).reshape(-1, 2).T
        axes.plot(*line, style, color=colour, lw=2, label=label)


def draw_point(axes: Axes, x: float, y: float, seed: Value, **look: Any) -> None:
    """Draw a dot for a seed."""
    axes.plot(x, y, gid=f"seed {seed}", **{"marker": "o", "ms": 4, "alpha": 0.6, "ls": "", **look})


def seeds_shown(part: Figure | Axes) -> set[str]:
    """Return the seeds that a figure or one of its panels shows, as text."""
    artists = part.findobj(lambda artist: str(artist.get_gid()).startswith("seed "))
    return {str(artist.get_gid()).removeprefix("seed ") for artist in artists}
