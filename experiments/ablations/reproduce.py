"""Reproduce a paper's ablation: run its grid, measure, draw its figure, and say which of its claims hold here.

    python -m experiments.ablations.reproduce --list
    python -m experiments.ablations.reproduce gao_best_of_n --size=default --seeds=3 --workdir=runs/reproduce
    python -m experiments.ablations.reproduce gao_best_of_n --judge_again      its results.csv, after a change of figure or criteria
    python -m experiments.ablations.reproduce public_reward_scaling --config.models='("hf:FOLDER",)'      an ablation with a config
    python -m experiments.ablations.reproduce --table --workdir=runs/reproduce

    1  every config of experiments/ablations/NAME.py is built before anything runs
    2  runs in order: one that is complete is skipped, one that was interrupted continues, one that diverges is recorded
       (diverged.json) and measured at its last good checkpoint, and what would stand on it is not run
    3  measurements, each kept in WORKDIR/NAME/measured until its runs change
    4  WORKDIR/NAME/results.csv, figure.png, verdict.json; a criterion that fails is printed as failed

Base runs under WORKDIR/base are shared by all ablations of a workdir. The exit status is 0 whatever the verdict.
Left out on purpose: parallel runs; more than one machine.
"""

import argparse
import ast
import csv
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import math
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from ml_collections import ConfigDict

from experiments.ablations.framework import (
    COMPLETE,
    Ablation,
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    Value,
    seeds_shown,
)
from rlhf_jax import __version__, main
from rlhf_jax.evaluation.table import Cache, write_json
from rlhf_jax.training import checkpoints
from rlhf_jax.training.pretrained import read_meta
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory
from rlhf_jax.training.run import LABELS, claim, is_complete, locate

# The verdicts of a workdir's ablations as one Markdown table: what was claimed, what was measured, whether it held.
#
# Left out on purpose: ablations without a verdict.json. One that was not run has no row.
HEADER = "| ablation | paper, figure | claim | measured | | seeds |\n|---|---|---|---|---|---|"


def verdict_table(workdir: Path) -> str:
    """A line for every criterion of every ablation in `workdir`. Raises FileNotFoundError if it has none."""
    found = sorted(workdir.glob("*/verdict.json"))
    if not found:
        raise FileNotFoundError(
            f"{workdir}: no verdict.json in its folders; run an ablation with --workdir={workdir} first"
        )
    return "\n".join(
        [
            HEADER,
            *(
                line
                for path in found
                for line in _lines(path.parent.name, json.loads(path.read_text()))
            ),
        ]
    )


def _lines(name: str, verdict: Mapping[str, Any]) -> Iterator[str]:
    first = f"`{name}`, {verdict['size']}, {verdict['minutes']:g} min | {verdict['paper']}"
    for one in verdict["criteria"]:
        interval = "" if one["low"] is None else f" [{_number(one['low'])}, {_number(one['high'])}]"
        holds = "holds" if one["passed"] else "**fails**"
        yield f"| {first} | {one['name']}: {one['text']} | {_number(one['value'])}{interval} | {holds} | {one['num_seeds']} |"
        first = " | "  # said once


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


FOLDER = Path("experiments/ablations")


def names() -> list[str]:
    """The ablations there are; FileNotFoundError outside of the repository's root."""
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"{FOLDER}: no such folder here; run this from the root of the repository"
        )
    return sorted(
        path.stem for path in FOLDER.glob("*.py") if "\ndef get_ablation(" in path.read_text()
    )


def load(name: str) -> Any:
    """The module of an ablation; ValueError for an unknown name, with the known ones."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        raise ValueError(
            f"no ablation is called {name!r}; {f'did you mean {close[0]!r}? ' if close else ''}"
            f"known: {', '.join(known)}"
        )
    return importlib.import_module(f"{FOLDER.as_posix().replace('/', '.')}.{name}")


def build_ablation(
    name: str, size: str, seeds: tuple[int, ...], changes: Sequence[str]
) -> Ablation:
    """The ablation, with its config changed by `--config.FIELD=VALUE`, if it has one.

    Raises:
        ValueError: for a flag of another form, an ablation without a config, an unknown field, or a value of another type.
    """
    module = load(name)
    for change in changes:
        if not change.startswith("--config.") or "=" not in change:
            raise ValueError(
                f"{change}: no such flag; expected --config.FIELD=VALUE, or see --help"
            )
    if not changes:
        return module.get_ablation(size, seeds)
    if not hasattr(module, "get_grid"):
        raise ValueError(f"{changes[0]}: {name} has no config; its grid is in {FOLDER}/{name}.py")
    config = module.get_grid(size)
    config.lock()
    for change in changes:
        field, _, text = change.removeprefix("--config.").partition("=")
        try:
            *groups, key = field.split(".")
            part = functools.reduce(lambda part, group: part[group], groups, config)
            part[key] = text if isinstance(part[key], str) else ast.literal_eval(text)
        except (KeyError, TypeError, ValueError, SyntaxError) as error:
            raise ValueError(f"{change}: {str(error).strip(chr(34))}") from None
    return module.get_ablation(size, seeds, config)


def reproduce(name: str, ablation: Ablation, workdir: Path, *, size: str) -> list[dict[str, Any]]:
    """Carry out an ablation and write its results; returns the verdicts."""
    check(ablation)
    folder = workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(folder / "minutes.jsonl")
    states: dict[str, str] = {}
    for number, run in enumerate(ablation.runs, start=1):
        print(f"-- {name}: run {number} of {len(ablation.runs)}: {run.folder}", flush=True)
        with clock.timing(run.folder):
            states[run.folder] = finish(run, workdir, states)
    bench = Bench(workdir, Cache(folder / "measured"))
    rows: list[Row] = []
    for one in ablation.measurements:
        with clock.timing(one.name):
            rows += measured(one, bench, states)
    write_csv(folder / "results.csv", rows)
    return conclude(name, ablation, Table(rows), folder, size=size)


def judge_again(name: str, ablation: Ablation, workdir: Path, *, size: str) -> list[dict[str, Any]]:
    """Figure and verdicts from the results.csv that is there; nothing is trained or measured.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it has other seeds than are asked for.
    """
    folder = workdir / name
    if not (folder / "results.csv").exists():
        raise FileNotFoundError(
            f"{folder}/results.csv: no such file; run {name} without --judge_again first"
        )
    table = Table(read_csv(folder / "results.csv"))
    if set(table.values("seed")) != set(ablation.seeds):
        found = table.values("seed")
        raise ValueError(
            f"{folder}/results.csv has seeds {found}, asked for {list(ablation.seeds)}; set --seeds"
        )
    return conclude(name, ablation, table, folder, size=size)


def conclude(
    name: str, ablation: Ablation, table: Table, folder: Path, *, size: str
) -> list[dict[str, Any]]:
    """Draw the figure, judge the criteria, write and print the verdict."""
    draw(ablation, table, folder / "figure.png", size=size)
    verdicts = [judged(criterion, table) for criterion in ablation.criteria]
    write_json(
        folder / "verdict.json",
        {
            "ablation": name,
            "paper": ablation.paper,
            "size": size,
            "seeds": list(ablation.seeds),
            "criteria": verdicts,
            "diverged": table.diverged,
            "minutes": round(Clock(folder / "minutes.jsonl").minutes(), 1),
            "version": __version__,
        },
        indent=1,
    )
    show(name, verdicts, table, folder)
    return verdicts


# --- before anything runs ---------------------------------------------------------------------------------------------


def check(ablation: Ablation) -> None:
    """Build every config; refuse two runs in one folder and a measurement of runs or seeds that are not in the grid."""
    folders = [run.folder for run in ablation.runs]
    for what, found in (
        ("run", folders),
        ("measurement", [one.name for one in ablation.measurements]),
    ):
        twice = sorted({one for one in found if found.count(one) > 1})
        if twice:
            raise ValueError(f"two {what}s are called {twice[0]}")
    for run in ablation.runs:
        try:
            _build(run)
        except ValueError as error:
            raise ValueError(f"{run.folder}: {error}") from None
    for one in ablation.measurements:
        absent = [folder for folder in one.needs if folder not in folders]
        if absent:
            raise ValueError(
                f"measurement {one.name} needs {absent[0]}, which is not among the runs"
            )
        if one.point.get("seed") not in ablation.seeds:
            raise ValueError(
                f"measurement {one.name}: seed {one.point.get('seed')!r} is not among {ablation.seeds}"
            )


def _build(run: GridRun) -> Any:
    return main.build_settings(run.config)


# --- runs -------------------------------------------------------------------------------------------------------------


def finish(run: GridRun, workdir: Path, states: Mapping[str, str]) -> str:
    """Bring a run to its end, if it is not there; returns "complete", or what diverged."""
    folder = workdir / run.folder
    note = folder / "diverged.json"
    if (folder / "config.json").exists():
        claim(folder, _build(run))  # what is there must be this run
    for parent in _parents(run):
        state = next(
            (state for one, state in states.items() if workdir / one == locate(folder, parent)),
            COMPLETE,
        )
        if state != COMPLETE:
            return f"not run: {state}"
    if note.exists():
        return str(json.loads(note.read_text())["status"])
    if is_complete(folder):
        _check_lineage(folder)
        return COMPLETE
    try:
        main.run(run.config, str(folder))
    except FloatingPointError as error:
        status = f"diverged: {run.folder}"
        write_json(note, {"status": status, "error": str(error)}, indent=1)
        print(f"   {status}: {error}", flush=True)
        return status
    return COMPLETE


def _parents(run: GridRun) -> list[str]:
    """Folders that a config names beside its own: where it starts from, what it is trained on, what it evaluates."""

    def inside(part: Any) -> Iterator[str]:
        if isinstance(part, str):
            yield from [part] if part.startswith("..") else []
        elif isinstance(part, Mapping | ConfigDict | list | tuple):
            for value in part if isinstance(part, list | tuple) else part.values():
                yield from inside(value)

    return list(inside(run.config))


def _check_lineage(folder: Path) -> None:
    """Refuse a complete run, or evaluation, whose parents have been trained anew since."""
    if (folder / LABELS).exists():
        labels = json.loads((folder / LABELS).read_text())
        made, entries = "has comparisons of", {"policy": labels["policy"]}
    elif checkpoints.latest_step(folder) is None:
        made, entries = (
            "is an evaluation of",
            json.loads((folder / "evaluation.json").read_text())["checkpoints"],
        )
    else:
        made, entries = "was trained from", read_meta(folder).lineage
    for role, entry in entries.items():
        parent = locate(folder, entry["path"])
        # Evaluations from before they noted fingerprints cannot be told.
        if (
            "fingerprint" in entry
            and parent.exists()
            and read_meta(parent).fingerprint != entry["fingerprint"]
        ):
            raise ValueError(
                f"{folder} {made} another {role} than {parent} holds now; delete one of them"
            )


# --- measurements -----------------------------------------------------------------------------------------------------


def measured(one: Measurement, bench: Bench, states: Mapping[str, str]) -> list[Row]:
    """The rows of a measurement; of diverged runs those that their last good checkpoints give, at least one."""
    bad = [states[folder] for folder in one.needs if states[folder] != COMPLETE]
    status = bad[0] if bad else COMPLETE
    states_of = {folder: _fingerprint(bench.folder(folder)) for folder in one.needs}
    if None in states_of.values():
        return [{**one.point, "status": status}]
    depends_on = {
        "settings": dict(one.settings),
        "version": __version__,
        "code": _source(one.rows),
        "runs": states_of,
    }
    data, kept = bench.cache.get(
        one.name, "rows", depends_on, lambda: {"rows": [_finite(row) for row in one.rows(bench)]}
    )
    print(f"   {one.name}: {len(data['rows'])} rows{' (kept)' if kept else ''}", flush=True)
    if not data["rows"] and not bad:
        raise ValueError(
            f"measurement {one.name} returned no row: a point of the grid would be missing"
        )
    return [{**one.point, "status": status, **row} for row in data["rows"] or [{}]]


def _source(rows: Any) -> str:
    """The text of the function that measures, so that a corrected one measures again; not of what it calls."""
    return hashlib.sha256(inspect.getsource(getattr(rows, "func", rows)).encode()).hexdigest()


def _finite(row: Row) -> Row:
    """The row without numbers that are none: JSON and CSV have no word for them, and a missing one reads as NaN."""
    return {
        name: value
        for name, value in row.items()
        if not isinstance(value, float) or math.isfinite(value)
    }


def _fingerprint(folder: Path) -> str | None:
    """What tells the state of a run from any other; None if there is nothing to measure."""
    if (folder / "evaluation.json").exists():
        return hashlib.sha256((folder / "evaluation.json").read_bytes()).hexdigest()
    return None if checkpoints.latest_step(folder) is None else str(read_meta(folder).fingerprint)


@dataclass(frozen=True)
class Clock:
    """Seconds of work, one line for everything done in any call, an interrupted one included."""

    path: Path

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Note how long the block took."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self.path.open("a") as file:
                file.write(
                    json.dumps({"what": what, "seconds": round(time.monotonic() - start, 2)}) + "\n"
                )

    def minutes(self) -> float:
        """All minutes so far."""
        return sum(json.loads(line)["seconds"] for line in self.path.read_text().splitlines()) / 60


# --- what is written --------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row; columns in the order in which they come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """The rows that `write_csv` wrote: numbers are numbers again, and what a row does not have is not in it."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: _value(text) for name, text in row.items() if text != ""}
            for row in csv.DictReader(file)
        ]


def _value(text: str) -> Value:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def draw(ablation: Ablation, table: Table, path: Path, *, size: str) -> None:
    """Save the figure with its seeds and divergences written under it.

    ValueError if it leaves out a seed, or one of its panels that shows seeds leaves out one that is whole; a seed of which
    everything diverged may stand under the figure alone.
    """
    figure = ablation.figure(table)
    some, whole = (
        {str(seed) for seed in seeds}
        for seeds in (table.where(status=COMPLETE).values("seed"), whole_seeds(table))
    )
    missing = some - seeds_shown(figure)
    for panel in figure.axes:
        missing |= (whole - seeds_shown(panel)) if seeds_shown(panel) else set()
    if missing:
        raise ValueError(
            f"the figure or a panel of it shows nothing of seed {', '.join(sorted(missing))}"
        )
    below = [
        f"{ablation.paper}; size {size}, seeds {', '.join(map(str, ablation.seeds))}. {ablation.notes}".strip()
    ]
    below += [f"{state} (× at the last point that it has)" for state in table.diverged]
    width = int(17 * figure.get_figwidth())  # characters of this size in so many inches
    figure.text(
        0.01,
        -0.01,
        "\n".join(textwrap.fill(line, width) for line in below),
        fontsize=7,
        va="top",
        color="#555",
    )
    figure.savefig(path, dpi=150, bbox_inches="tight")


def whole_seeds(table: Table) -> list[Any]:
    """The seeds of which nothing diverged."""
    return [seed for seed, part in table.by("seed") if not part.diverged]


def judged(criterion: Criterion, table: Table) -> dict[str, Any]:
    """A criterion's verdict as JSON; one that cannot be measured has failed. `num_seeds` counts the whole ones."""
    try:
        found = criterion.judge(table)
    except (ValueError, LookupError, TypeError, StopIteration, ZeroDivisionError) as error:
        # Too few points, or none where one was looked for: a cell of the grid diverged in every seed.
        found = Finding(
            False, math.nan, None, None, f"could not be measured: {error or type(error).__name__}"
        )
    plain = {
        name: None if isinstance(x, float) and math.isnan(x) else x
        for name, x in found._asdict().items()
    }
    return {
        "name": criterion.name,
        "text": criterion.text,
        **plain,
        "passed": bool(found.passed),
        "num_seeds": len(whole_seeds(table)),
    }


def show(name: str, verdicts: Sequence[Mapping[str, Any]], table: Table, folder: Path) -> None:
    """Print the verdict."""
    print(f"== {name}: {len(table)} rows, {folder}/results.csv, figure.png, verdict.json")
    for one in verdicts:
        value = "not measured" if one["value"] is None else f"{one['value']:.3g}"
        interval = "" if one["low"] is None else f" [{one['low']:.3g}, {one['high']:.3g}]"
        print(
            f"   {'passed' if one['passed'] else 'FAILED'}  {one['name']:14s} {value}{interval}  {one['text']}"
        )
        if one["detail"]:
            print(f"           {one['detail']}")
    for state in table.diverged:
        print(f"   {state}")
    sys.stdout.flush()


def describe(name: str) -> str:
    """The first line of an ablation's notebook."""
    return (load(name).__doc__ or "").strip().splitlines()[0]


def command(argv: Sequence[str] | None = None) -> int:
    """Reproduce one ablation, or list them; status 2 if that cannot be done."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablations.reproduce",
        description="Reproduce a paper's ablation.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", help="an ablation, see --list")
    parser.add_argument("--list", action="store_true", help="list the ablations")
    parser.add_argument(
        "--judge_again",
        action="store_true",
        help="only draw and judge the results.csv that is there",
    )
    parser.add_argument(
        "--table", action="store_true", help="print the verdicts of the workdir as a Markdown table"
    )
    parser.add_argument(
        "--size", default="default", help="tiny, default or large (default %(default)s)"
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds 0, 1, ... (default %(default)s)"
    )
    parser.add_argument("--workdir", default="runs/reproduce", help="(default %(default)s)")
    arguments, changes = parser.parse_known_args(argv)
    if changes and (arguments.list or arguments.table or not arguments.name):
        parser.error(f"unrecognized arguments: {' '.join(changes)}")
    retain_memory()
    enable_persistent_cache()
    matplotlib.use("Agg")
    try:
        if arguments.table:
            print(verdict_table(Path(arguments.workdir)))
            return 0
        if arguments.list or not arguments.name:
            print("\n".join(f"{name:24s} {describe(name)}" for name in names()))
            return 0
        if arguments.seeds < 1:
            raise ValueError(f"--seeds={arguments.seeds}: expected 1 or more")
        ablation = build_ablation(
            arguments.name, arguments.size, tuple(range(arguments.seeds)), changes
        )
        carry_out = judge_again if arguments.judge_again else reproduce
        carry_out(arguments.name, ablation, Path(arguments.workdir), size=arguments.size)
    except (
        ValueError,
        OSError,
        ImportError,
    ) as error:  # the last: an extra that only some ablations need
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command())
