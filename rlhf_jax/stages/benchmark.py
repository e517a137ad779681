"""Public benchmarks of any checkpoints, side by side.

    1  every file is read and checked, before any model is loaded (`stages.benchmark_tasks`)
    2  every checkpoint takes every benchmark that is for its kind; each measurement is kept in workdir/partial, with the
       log-probabilities and texts that its numbers are made of (`evaluation.benchmarks`)
    3  evaluation.json in the form that the report reads, and a table in the terminal

A killed run continues with the next measurement. Checkpoints may have different tokenizers and contexts: each is asked with
its own, and what does not fit is counted in a row of the table.
Left out on purpose: several devices; downloads: paths are the user's own copies of the files.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.evaluation.benchmarks import crows_pairs, reward_accuracy, truthfulqa
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    check_names,
    describe,
    find_checkpoint,
    parents_first,
)
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import Cache, Row, print_table, row_to_json, write_json
from rlhf_jax.stages.benchmark_tasks import Benchmarks, How, Loaded, Task, tasks
from rlhf_jax.training.run import claim

# Too many rows for a terminal; they are in evaluation.json.
DETAILS = (truthfulqa.BY_CATEGORY, crows_pairs.BY_TYPE, reward_accuracy.RELIABILITY)


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["benchmark"]
    seed: int
    checkpoints: dict[
        str, str
    ]  # name -> run folder or checkpoint folder; language models and reward models
    reference: str  # one of the names
    data_dir: str
    limit: int
    batch_size: int
    num_bootstrap: int
    num_side_by_side: int  # texts of each benchmark that go to evaluation.json beside each other
    benchmarks: Benchmarks


def run(config: Config, workdir: str) -> None:
    """Take all benchmarks; writes evaluation.json and prints the table."""
    folder = Path(workdir)
    check_names(config.checkpoints, config.reference)
    require(
        config.limit >= 0, f"limit={config.limit}: must be 0, for all, or the number of questions"
    )
    require(
        config.num_side_by_side >= 0,
        f"num_side_by_side={config.num_side_by_side}: must be 0, for none, or more",
    )
    for name, number in {
        "batch_size": config.batch_size,
        "num_bootstrap": config.num_bootstrap,
    }.items():
        require(number >= 1, f"{name}={number}: must be positive")
    folder.mkdir(parents=True, exist_ok=True)
    entrants = parents_first(
        {name: find_checkpoint(folder, path) for name, path in config.checkpoints.items()}
    )
    print(f"== benchmark: {folder}")
    for name, one in entrants.items():
        print(f"   {name:12s} <- {one.path} (stage {one.meta.stage}, step {one.meta.step})")
    how = How(
        config.seed,
        config.limit,
        config.batch_size,
        Bootstrap(config.num_bootstrap, config.seed),
        config.reference,
        config.data_dir,
        folder,
    )
    asked, absent = tasks(config.benchmarks, how)
    _check_entrants(config, entrants, asked)
    claim(folder, config)
    measured = _measure(entrants, asked, Cache(folder / "partial"))
    rows = [row for task in asked for row in task.rows(measured[task.name])]
    samples = [
        sample
        for task in asked
        for sample in task.samples(measured[task.name], config.num_side_by_side)
    ]
    _report(config, folder, entrants, [*rows, *absent], samples)


def _check_entrants(
    config: Config, entrants: Mapping[str, CheckpointRef], asked: Sequence[Task]
) -> None:
    """Somebody to take every benchmark, and room for what cannot be left out."""
    require(bool(asked), "benchmarks: every path is empty, expected at least one benchmark to run")
    for task in asked:
        able = {name: one for name, one in entrants.items() if one.meta.kind == task.kind}
        require(
            bool(able),
            f"{task.name}: none of the checkpoints is a {task.kind}; add one, or empty the benchmark's path",
        )
        require(
            task.name != "win-rate" or config.reference in able,
            f"reference={config.reference!r}: win_rate compares language models with it, and it is none",
        )
        for name, one in able.items():
            room = one.model.context_length
            require(
                task.length <= room,
                f"{task.name}: needs {task.length} tokens, the context of {name} is {room}",
            )


def _measure(
    entrants: Mapping[str, CheckpointRef], asked: Sequence[Task], kept: Cache
) -> dict[str, dict[str, Any]]:
    """Measurements by task and checkpoint; one checkpoint's parameters are in memory at a time."""
    measured: dict[str, dict[str, Any]] = {task.name: {} for task in asked}
    for name, one in entrants.items():
        load = cache(partial(Loaded.of, one))
        for task in asked:
            if task.kind != one.meta.kind:
                continue
            start = time.perf_counter()
            depends_on = {
                "asked": task.depends_on,
                "checkpoint": one.meta.fingerprint,
                "tokenizer": one.meta.tokenizer,
                "version": __version__,
            }
            measure = partial(_measure_with, task, load)
            data, found = kept.get(name, task.name, depends_on, measure)
            measured[task.name][name] = data
            took = "kept" if found else f"{time.perf_counter() - start:.1f} s"
            print(f"   {name:12s} {task.name:24s} {took}", flush=True)
    return measured


def _measure_with(task: Task, load: Callable[[], Loaded]) -> dict[str, Any]:
    return task.measure(load())


def _report(
    config: Config,
    workdir: Path,
    entrants: Mapping[str, CheckpointRef],
    rows: Sequence[Row],
    samples: list[Any],
) -> None:
    groups = list(dict.fromkeys(row.group for row in rows))
    rows = sorted(rows, key=lambda row: groups.index(row.group))
    write_json(
        workdir / "evaluation.json",
        {
            "checkpoints": describe(entrants),
            "reference": config.reference,
            "table": [row_to_json(row) for row in rows],
            "samples": samples,
            "seed": config.seed,
            "version": __version__,
        },
        indent=1,
    )
    below = {name: f"{one.meta.stage} {one.meta.step}" for name, one in entrants.items()}
    shown = [row for row in rows if row.group not in DETAILS]
    print_table(shown, below, config.reference, Console())
    for row in shown:
        if not row.values:
            print(f"   {row.metric}: {row.description}")
    print(
        f"   wrote {workdir / 'evaluation.json'}, with {len(rows) - len(shown)} rows of details more",
        flush=True,
    )
