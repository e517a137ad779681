"""What an ablation is: runs, measurements of them, criteria, a figure. `apps.reproduce` carries it out.

    experiments/ablations/NAME.py     def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation

    Run            an ordinary experiment: a stage's config and its folder under the workdir; parents come first
    Measurement    rows of results.csv about some runs, kept on disk until one of the runs or the settings change
    Criterion      a sentence with a number in it, and a judge that reads the table of all rows
    figure         a matplotlib figure of the table in the paper's form, which shows every seed

Every row holds the `point` of its measurement (with `seed`) and a `status`: "complete", or what diverged and when.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.evaluation.table import Cache

Value = str | int | float
Row = dict[str, Value]
COMPLETE = "complete"
DIVERGED_COLOUR = "#c22"


@dataclass(frozen=True)
class GridRun:
    """An experiment: the config of a stage, and its folder relative to the workdir, where it resumes or is found complete."""

    folder: str
    config: Any  # a ConfigDict, as an experiment file returns it


@dataclass(frozen=True)
class Bench:
    """Where a measurement works: the folders of runs, and a place for what several measurements share."""

    workdir: Path
    cache: Cache

    def folder(self, run: str) -> Path:
        """A run's folder."""
        return self.workdir / run


@dataclass(frozen=True)
class Measurement:
    """`rows(bench)` is asked once for every state of the runs in `needs`; `settings` is all else that it depends on.

    Its own text is part of that state, the functions that it calls are not: after mending one of those, delete what is kept in
    WORKDIR/NAME/measured.
    """

    name: str  # of its file: letters, digits and _.-
    point: Row  # columns of all its rows: seed, and where in the grid it stands
    needs: tuple[str, ...]  # folders of runs
    settings: Mapping[str, Any]  # as JSON can hold it
    rows: Callable[[Bench], list[Row]]


class Table:
    """Rows of results.csv."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, **equal: Value) -> "Table":
        """The rows that have these values."""
        return Table(
            [
                row
                for row in self.rows
                if all(row.get(name) == value for name, value in equal.items())
            ]
        )

    def having(self, *columns: str) -> "Table":
        """The rows that have finite numbers in these columns; a diverged run may have none."""
        return Table(
            [row for row in self.rows if all(_is_finite(row.get(name)) for name in columns)]
        )

    def column(self, name: str) -> np.ndarray:
        """One number per row, NaN where a row has none."""
        return np.array([float(row.get(name, np.nan)) for row in self.rows])

    def values(self, name: str) -> list[Any]:
        """The different values of a column in the order in which they come."""
        return list(dict.fromkeys(row[name] for row in self.rows if name in row))

    def by(self, name: str) -> Iterator[tuple[Any, "Table"]]:
        """The rows of every value of a column."""
        return ((value, self.where(**{name: value})) for value in self.values(name))

    def each_seed(self, measure: Callable[["Table"], float]) -> dict[Any, float]:
        """A number for every seed that has rows."""
        return {seed: float(measure(part)) for seed, part in self.by("seed")}

    def per_seed(self, measure: Callable[["Table"], float]) -> np.ndarray:
        """The same without the seeds: what is to be compared with other runs goes through `paired`."""
        return np.array(list(self.each_seed(measure).values()))

    @property
    def diverged(self) -> list[str]:
        """What diverged, each once."""
        return [status for status in self.values("status") if status != COMPLETE]


def paired(first: Mapping[Any, float], second: Mapping[Any, float]) -> np.ndarray:
    """first − second of every seed that has both: of a seed whose run diverged on one side neither counts.

    Raises ValueError if there is no such seed.
    """
    gaps = np.array([first[seed] - second[seed] for seed in first if seed in second])
    gaps = gaps[np.isfinite(gaps)]
    if not gaps.size:
        raise ValueError("no seed has both sides of the comparison")
    return gaps


def several(gaps: np.ndarray) -> np.ndarray:
    """The same numbers if there are two of them: a single seed's interval reaches everything, and would not contradict a claim.

    Raises ValueError for a single one.
    """
    if gaps.size < 2:
        raise ValueError("an interval over seeds needs two of them, none diverged")
    return gaps


def _is_finite(value: Value | None) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


class Finding(NamedTuple):
    """What a judge found: a value with its interval (None where there is none), and what to say about it."""

    passed: bool
    value: float
    low: float | None
    high: float | None
    detail: str


@dataclass(frozen=True)
class Criterion:
    """A claim that can fail. A judge that finds no number where it looks could not measure it: that is a failure."""

    name: str  # E1.peak
    text: str  # with its numbers
    judge: Callable[[Table], Finding]


@dataclass(frozen=True)
class Ablation:
    """Everything about a grid; `runs` in an order in which parents come before children."""

    paper: str  # Gao et al. 2022, Fig. 1
    seeds: tuple[int, ...]
    runs: Sequence[GridRun]
    measurements: Sequence[Measurement]
    criteria: Sequence[Criterion]
    figure: Callable[[Table], Figure]
    notes: str = field(default="")  # stands under the figure


# --- drawing ------------------------------------------------------------------------------------------------------


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
    """A thin line for every seed, a cross where a run diverged, and a thick line for the mean where seeds share their x."""
    for seed, part in table.by("seed"):
        points = part.having(x, y)
        axes.plot(
            points.column(x),
            points.column(y),
            style,
            color=colour,
            alpha=0.35 if mean else 0.9,
            lw=1,
            gid=f"seed {seed}",
            marker="." if len(points) < 2 else None,
            label="_" if mean else f"{label}, seed {seed}",
        )
        if part.diverged and len(points):
            axes.plot(
                points.column(x)[-1:],
                points.column(y)[-1:],
                "x",
                color=DIVERGED_COLOUR,
                ms=9,
                mew=2,
            )
    if mean:
        common = [
            (value, part.having(y).column(y).mean()) for value, part in table.having(x, y).by(x)
        ]
        common = [
            pair
            for pair in common
            if len(table.having(x, y).where(**{x: pair[0]})) == len(table.values("seed"))
        ]
        axes.plot(
            *np.array(sorted(common)).reshape(-1, 2).T, style, color=colour, lw=2, label=label
        )


def mark_seed(artist: Any, seed: Value) -> None:
    """Say that an artist that `draw_seeds` did not draw shows a seed."""
    artist.set_gid(f"seed {seed}")


def seeds_shown(drawn: Figure | Axes) -> set[str]:
    """The seeds that a figure or one of its panels shows, as text."""
    found = drawn.findobj(lambda artist: str(artist.get_gid()).startswith("seed "))
    return {str(artist.get_gid()).removeprefix("seed ") for artist in found}
