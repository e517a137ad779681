"""Reproduce a paper's ablation: run its grid, measure, draw its figure, and judge its claims.

    python -m experiments.ablations.reproduce --list
    python -m experiments.ablations.reproduce gao_best_of_n --size=default --seeds=3 \
        --workdir=runs/reproduce
    python -m experiments.ablations.reproduce gao_best_of_n --judge_again
    python -m experiments.ablations.reproduce public_reward_scaling \
        --config.models='("hf:FOLDER",)'
    python -m experiments.ablations.reproduce --table --workdir=runs/reproduce

    1  every config of experiments/ablations/NAME.py is built before anything runs
    2  runs in order: one that is complete is skipped, one that was interrupted continues, one that
       diverges is recorded (diverged.json) and measured at its last good checkpoint, and what would
       stand on it is not run
    3  measurements, each kept in WORKDIR/NAME/measured until its runs change
    4  WORKDIR/NAME/results.csv, figure.png, verdict.json; a criterion that fails is printed as
       failed. --judge_again does this step alone, after a change of figure or criteria

Base runs under WORKDIR/base are shared by all ablations of a workdir. The exit status is 0 whatever
the verdict. Left out on purpose: parallel runs; more than one machine.
"""

import argparse
import ast
import csv
import dataclasses
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
import matplotlib.pyplot as plt
from ml_collections import ConfigDict

from experiments.ablations.framework import (
    COMPLETE,
    STYLE,
    Ablation,
    Context,
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
from rlhf_jax.evaluation.table import Cache
from rlhf_jax.files import write_json
from rlhf_jax.stages.rewards import CHECKPOINT
from rlhf_jax.training import checkpoints
from rlhf_jax.training.pretrained import read_meta
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory
from rlhf_jax.training.run import LABELS, claim, is_complete, locate

FOLDER = Path("experiments/ablations")
Verdict = dict[str, Any]  # of a criterion, as JSON


def names() -> list[str]:
    """Return the names of all ablations.

    Raises:
        FileNotFoundError: this is not the root of the repository.
    """
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"{FOLDER}: no such folder here; run this from the root of the repository"
        )
    files = FOLDER.glob("*.py")
    return sorted(path.stem for path in files if "\ndef get_ablation(" in path.read_text())


def load(name: str) -> Any:
    """Import the module of an ablation.

    Raises:
        ValueError: the name is unknown; lists the known ones.
    """
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no ablation is called {name!r}; {hint}known: {', '.join(known)}")
    return importlib.import_module(f"{FOLDER.as_posix().replace('/', '.')}.{name}")


def build_ablation(
    name: str, size: str, seeds: tuple[int, ...], changes: Sequence[str]
) -> Ablation:
    """Build an ablation, with its config changed by `--config.FIELD=VALUE` if it has one.

    Raises:
        ValueError: a flag has another form, the ablation has no config, or a field is unknown or
            of another type.
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
            is_text = part.get_type(key) is str  # also of a field that is None so far
            part[key] = text if is_text else ast.literal_eval(text)
        except (AttributeError, KeyError, TypeError, ValueError, SyntaxError) as error:
            raise ValueError(f"{change}: {str(error).strip(chr(34))}") from None
    return module.get_ablation(size, seeds, config)


def reproduce(name: str, ablation: Ablation, workdir: Path, *, size: str) -> list[Verdict]:
    """Carry out an ablation, write its results and return the verdicts."""
    check(ablation)
    folder = workdir / name
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(folder / "minutes.jsonl")
    states: dict[str, str] = {}
    for number, run in enumerate(ablation.runs.values(), start=1):
        print(f"-- {name}: run {number} of {len(ablation.runs)}: {run.folder}", flush=True)
        with clock.timing(run.folder):
            states[run.folder] = finish(run, workdir, states)
    context = Context(workdir, Cache(folder / "measured"))
    rows: list[Row] = []
    for measurement in ablation.measurements:
        with clock.timing(measurement.name):
            rows += measure(measurement, context, states)
    write_csv(folder / "results.csv", rows)
    return conclude(name, ablation, Table(rows), folder, size=size)


def judge_again(name: str, ablation: Ablation, workdir: Path, *, size: str) -> list[Verdict]:
    """Draw and judge the results.csv that is there; nothing is trained or measured.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it has other seeds than are asked for.
    """
    folder = workdir / name
    if not (folder / "results.csv").exists():
        raise FileNotFoundError(
            f"{folder}/results.csv: no such file; run {name} without --judge_again first"
        )
    table = Table(read_csv(folder / "results.csv"))
    seeds = table.values("seed")
    if set(seeds) != set(ablation.seeds):
        raise ValueError(
            f"{folder}/results.csv has seeds {seeds}, asked for {list(ablation.seeds)}; set --seeds"
        )
    return conclude(name, ablation, table, folder, size=size)


def conclude(
    name: str, ablation: Ablation, table: Table, folder: Path, *, size: str
) -> list[Verdict]:
    """Draw the figure, judge the criteria, write and print the verdicts."""
    draw(ablation, table, folder / "figure.png", size=size)
    verdicts = [judge(criterion, table) for criterion in ablation.criteria]
    content = {
        "ablation": name,
        "paper": ablation.paper,
        "size": size,
        "seeds": list(ablation.seeds),
        "criteria": verdicts,
        "diverged": table.diverged,
        "minutes": round(Clock(folder / "minutes.jsonl").minutes(), 1),
        "version": __version__,
    }
    write_json(folder / "verdict.json", content, indent=1)
    show(name, verdicts, table, folder)
    return verdicts


# --- before anything runs -------------------------------------------------------------------------


def check(ablation: Ablation) -> None:
    """Build every config and check that measurements have names, runs and seeds of the grid.

    Raises:
        ValueError: two measurements have one name, a run or a seed is not in the grid, or a config
            is wrong.
    """
    measured = [measurement.name for measurement in ablation.measurements]
    if twice := sorted({name for name in measured if measured.count(name) > 1}):
        raise ValueError(f"two measurements are called {twice[0]}")
    for run in ablation.runs.values():
        try:
            main.build_settings(run.config)
        except ValueError as error:
            raise ValueError(f"{run.folder}: {error}") from None
    for measurement in ablation.measurements:
        absent = [folder for folder in measurement.needs if folder not in ablation.runs]
        if absent:
            raise ValueError(
                f"measurement {measurement.name} needs {absent[0]}, which is not among the runs"
            )
        seed = measurement.point.get("seed")
        if seed not in ablation.seeds:
            raise ValueError(
                f"measurement {measurement.name}: seed {seed!r} is not among {ablation.seeds}"
            )


# --- runs -----------------------------------------------------------------------------------------


def finish(run: GridRun, workdir: Path, states: Mapping[str, str]) -> str:
    """Bring a run to its end if it is not there; return "complete", or what diverged."""
    folder = workdir / run.folder
    note = folder / "diverged.json"
    if (folder / "config.json").exists():
        claim(folder, main.build_settings(run.config))  # what is there must be this run
    state_of = {workdir / name: state for name, state in states.items()}
    for parent in _parents(run.config):
        state = state_of.get(locate(folder, parent), COMPLETE)
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


def _parents(config: Any) -> Iterator[str]:
    """Yield the folders that a config names beside its own: parents, data, what it evaluates."""
    if isinstance(config, str):
        path = config.removeprefix(CHECKPOINT)
        if path.startswith(".."):
            yield path
    elif isinstance(config, Mapping | ConfigDict | list | tuple):
        for part in config if isinstance(config, list | tuple) else config.values():
            yield from _parents(part)


def _check_lineage(folder: Path) -> None:
    """Refuse a complete run whose parents have been trained anew since."""
    if (folder / LABELS).exists():
        relation = "has comparisons of"
        lineage = {"policy": json.loads((folder / LABELS).read_text())["policy"]}
    elif checkpoints.latest_step(folder) is None:
        relation = "is an evaluation of"
        lineage = json.loads((folder / "evaluation.json").read_text())["checkpoints"]
    else:
        relation, lineage = "was trained from", read_meta(folder).lineage
    for role, entry in lineage.items():
        parent = locate(folder, entry["path"])
        if parent.exists() and read_meta(parent).fingerprint != entry["fingerprint"]:
            raise ValueError(
                f"{folder} {relation} another {role} than {parent} holds now; delete one of them"
            )


# --- measurements ---------------------------------------------------------------------------------


def measure(measurement: Measurement, context: Context, states: Mapping[str, str]) -> list[Row]:
    """Return the rows of a measurement, kept ones if nothing has changed.

    Of diverged runs they are those that the last good checkpoints give, at least one.
    """
    name, needs = measurement.name, measurement.needs
    status = next((states[run] for run in needs if states[run] != COMPLETE), COMPLETE)
    fingerprints = {run: _fingerprint(context.folder(run)) for run in needs}
    if None in fingerprints.values():
        return [{**measurement.point, "status": status}]
    source = inspect.getsource(measurement.measure)
    depends_on = {
        "arguments": json.loads(json.dumps(measurement.arguments, default=dataclasses.asdict)),
        "version": __version__,
        "code": hashlib.sha256(source.encode()).hexdigest(),
        "runs": fingerprints,
    }

    def take() -> dict[str, Any]:
        rows = measurement.measure(context, **measurement.arguments)
        return {"rows": [_finite(row) for row in rows]}

    data, kept = context.cache.get(name, "rows", depends_on, take)
    print(f"   {name}: {len(data['rows'])} rows{' (kept)' if kept else ''}", flush=True)
    if not data["rows"] and status == COMPLETE:
        raise ValueError(
            f"measurement {name} returned no row: a point of the grid would be missing"
        )
    return [{**measurement.point, "status": status, **row} for row in data["rows"] or [{}]]


def _finite(row: Row) -> Row:
    """Return the row without NaN and infinity, for which JSON and CSV have no word."""
    return {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}


def _fingerprint(folder: Path) -> str | None:
    """Return what tells the state of a run from others; None if there is nothing to measure."""
    if (folder / "evaluation.json").exists():
        return hashlib.sha256((folder / "evaluation.json").read_bytes()).hexdigest()
    return None if checkpoints.latest_step(folder) is None else str(read_meta(folder).fingerprint)


@dataclass(frozen=True)
class Clock:
    """Keep seconds of work, a line for everything done in any call, interrupted ones included."""

    path: Path

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        """Note how long the block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            line = {"what": what, "seconds": round(time.monotonic() - start, 2)}
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def minutes(self) -> float:
        """Return all minutes so far."""
        return sum(json.loads(line)["seconds"] for line in self.path.read_text().splitlines()) / 60


# --- what is written ------------------------------------------------------------------------------


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per row; columns in the order in which they come."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """Read what `write_csv` wrote: numbers are numbers, and empty cells are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [{name: _value(text) for name, text in line.items() if text != ""} for line in lines]


def _value(text: str) -> Value:
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def draw(ablation: Ablation, table: Table, path: Path, *, size: str) -> None:
    """Save the figure with its seeds and divergences written under it.

    Raises:
        ValueError: it leaves out a seed, or a panel that shows seeds leaves out one that is whole;
            a seed of which everything diverged may stand under the figure alone.
    """
    with plt.rc_context(STYLE):
        figure = ablation.figure(table)
    present = {str(seed) for seed in table.where(status=COMPLETE).values("seed")}
    whole = {str(seed) for seed in whole_seeds(table)}
    missing = present - seeds_shown(figure)
    for panel in figure.axes:
        missing |= (whole - seeds_shown(panel)) if seeds_shown(panel) else set()
    if missing:
        raise ValueError(
            f"the figure or a panel of it shows nothing of seed {', '.join(sorted(missing))}"
        )
    seeds = ", ".join(map(str, ablation.seeds))
    below = [f"{ablation.paper}; size {size}, seeds {seeds}. {ablation.notes}".strip()]
    below += [f"{state} (× at the last point that it has)" for state in table.diverged]
    width = int(17 * figure.get_figwidth())  # characters of this size in so many inches
    text = "\n".join(textwrap.fill(line, width) for line in below)
    figure.text(0.01, -0.01, text, fontsize=7, va="top", color="#555")
    figure.savefig(path, dpi=150, bbox_inches="tight")


def whole_seeds(table: Table) -> list[Any]:
    """Return the seeds of which nothing diverged."""
    return [seed for seed, rows in table.by("seed") if not rows.diverged]


def judge(criterion: Criterion, table: Table) -> Verdict:
    """Judge a criterion; one that cannot be measured has failed. `num_seeds` counts whole ones."""
    try:
        finding = criterion.judge(table)
    except (ValueError, LookupError, TypeError, StopIteration, ZeroDivisionError) as error:
        # Too few points, or none where one was looked for: a cell diverged in every seed.
        reason = f"could not be measured: {error or type(error).__name__}"
        finding = Finding(False, math.nan, reason)
    numbers = {name: getattr(finding, name) for name in ("value", "low", "high")}
    return {
        "source": criterion.source,
        "claim": criterion.claim,
        "passed": bool(finding.passed),
        "detail": finding.detail,
        **{k: None if isinstance(x, float) and math.isnan(x) else x for k, x in numbers.items()},
        "num_seeds": len(whole_seeds(table)),
    }


def _measured(verdict: Verdict) -> str:
    """Return the value of a verdict and its interval."""
    value, low, high = (
        "–" if verdict[name] is None else f"{verdict[name]:.3g}"
        for name in ("value", "low", "high")
    )
    return value if verdict["low"] is None else f"{value} [{low}, {high}]"


def show(name: str, verdicts: Sequence[Verdict], table: Table, folder: Path) -> None:
    """Print the verdicts."""
    print(f"== {name}: {len(table)} rows, {folder}/results.csv, figure.png, verdict.json")
    for verdict in verdicts:
        passed = "passed" if verdict["passed"] else "FAILED"
        print(f"   {passed}  {_measured(verdict):24s} {verdict['claim']}")
        if verdict["detail"]:
            print(f"           {verdict['detail']}")
    for state in table.diverged:
        print(f"   {state}")
    sys.stdout.flush()


HEADER = "| ablation | paper, figure | claim | measured | | seeds |\n|---|---|---|---|---|---|"


def verdict_table(workdir: Path) -> str:
    """Return a Markdown line for every criterion of every ablation with a verdict in `workdir`.

    Raises:
        FileNotFoundError: there is no verdict.
    """
    paths = sorted(workdir.glob("*/verdict.json"))
    if not paths:
        raise FileNotFoundError(
            f"{workdir}: no verdict.json in its folders; run an ablation with --workdir={workdir} "
            "first"
        )
    lines = [HEADER]
    for path in paths:
        content = json.loads(path.read_text())
        title = f"`{path.parent.name}`, {content['size']}, {content['minutes']:g} min"
        for verdict in content["criteria"]:
            source = verdict["source"] or (content["paper"] if title else "")
            holds = "holds" if verdict["passed"] else "**fails**"
            cells = (title, source, verdict["claim"], _measured(verdict), holds)
            lines.append(f"| {' | '.join(cells)} | {verdict['num_seeds']} |")
            title = ""  # said once
    return "\n".join(lines)


def describe(name: str) -> str:
    """Return the first line of an ablation's notebook, and its paper."""
    module = load(name)
    title = (module.__doc__ or "").strip().splitlines()[0]
    return f"{title} {module.get_ablation('tiny', (0,)).paper}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablations.reproduce",
        description="Reproduce a paper's ablation.",
        allow_abbrev=False,
    )
    again = "only draw and judge the results.csv that is there"
    table = "print the verdicts of the workdir as a Markdown table"
    size = "tiny, default or large (default %(default)s)"
    seeds = "seeds 0, 1, ... (default %(default)s)"
    parser.add_argument("name", nargs="?", help="an ablation, see --list")
    parser.add_argument("--list", action="store_true", help="list the ablations")
    parser.add_argument("--judge_again", action="store_true", help=again)
    parser.add_argument("--table", action="store_true", help=table)
    parser.add_argument("--size", default="default", help=size)
    parser.add_argument("--seeds", type=int, default=3, help=seeds)
    parser.add_argument("--workdir", default="runs/reproduce", help="(default %(default)s)")
    return parser


def command(argv: Sequence[str] | None = None) -> int:
    """Reproduce one ablation, or list them; return status 2 if that cannot be done."""
    parser = _parser()
    arguments, changes = parser.parse_known_args(argv)
    if changes and (arguments.list or arguments.table or not arguments.name):
        parser.error(f"unrecognized arguments: {' '.join(changes)}")
    retain_memory()
    enable_persistent_cache()
    matplotlib.use("Agg")
    name, size, workdir = arguments.name, arguments.size, Path(arguments.workdir)
    try:
        if arguments.table:
            print(verdict_table(workdir))
        elif arguments.list or not name:
            print("\n".join(f"{ablation:28s} {describe(ablation)}" for ablation in names()))
        elif arguments.seeds < 1:
            raise ValueError(f"--seeds={arguments.seeds}: expected 1 or more")
        else:
            ablation = build_ablation(name, size, tuple(range(arguments.seeds)), changes)
            carry_out = judge_again if arguments.judge_again else reproduce
            carry_out(name, ablation, workdir, size=size)
    # ImportError: an extra that only some ablations need.
    except (ValueError, OSError, ImportError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command())
