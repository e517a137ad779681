"""Take public benchmarks with any checkpoints, side by side.

    1  every file is read and checked, before any model is loaded (`stages.benchmark_tasks`)
    2  every checkpoint takes every benchmark that is for its kind; each measurement is kept in
       workdir/partial, with the log-probabilities and texts that its numbers are made of
       (`evaluation.benchmarks`)
    3  evaluation.json in the form that the report reads, and a table in the terminal

A killed run continues with the next measurement. Checkpoints may have different tokenizers and
contexts: each is asked with its own, and what does not fit is counted in a row of the table.

Left out on purpose: several devices; downloads: paths are the user's own copies of the files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.benchmarks import crows_pairs, reward_accuracy, truthfulqa
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark
from rlhf_jax.evaluation.benchmarks.judged_wins import JudgedWins
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    Findings,
    announce,
    check_names,
    find_checkpoints,
    load_language_model,
    load_scalar_model,
    load_tokenizer_of,
    write_results,
)
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import Cache, Data
from rlhf_jax.stages.benchmark_tasks import BenchmarksConfig, Selection, make_benchmarks
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.run import claim

# Too many rows for a terminal; they are in evaluation.json.
DETAILS = (truthfulqa.BY_CATEGORY, crows_pairs.BY_TYPE, reward_accuracy.RELIABILITY)


@dataclass(frozen=True)
class Config:
    """Hold exactly what this stage reads."""

    stage: Literal["benchmark"]
    seed: int
    # Name -> run folder or checkpoint folder, of language models and reward models.
    checkpoints: dict[str, str]
    reference: str  # one of the names
    data_dir: str
    limit: int | None  # at most so many questions of each benchmark
    batch_size: int
    num_bootstrap: int
    num_side_by_side: int  # texts of each benchmark that evaluation.json has beside each other
    benchmarks: BenchmarksConfig


def run(config: Config, workdir: str) -> None:
    """Take all benchmarks; write evaluation.json and print the table."""
    folder = Path(workdir)
    _check_config(config)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = find_checkpoints(folder, config.checkpoints)
    announce(f"benchmark: {folder}", checkpoints, config.reference)
    selection = Selection(config.seed, config.limit, config.reference, config.data_dir, folder)
    benchmarks, rows_not_run = make_benchmarks(config.benchmarks, selection)
    _check_checkpoints(checkpoints, benchmarks)
    claim(folder, config)
    measurements = _measure(checkpoints, benchmarks, Cache(folder / "partial"), config.batch_size)
    bootstrap = Bootstrap(config.num_bootstrap, config.seed)
    rows, samples = [], []
    for benchmark in benchmarks:
        data = measurements[benchmark.name]
        benchmark.export(data, folder)
        rows += benchmark.rows(data, bootstrap)
        samples += benchmark.samples(data, config.num_side_by_side)
    rows += rows_not_run
    groups = list(dict.fromkeys(row.group for row in rows))  # the rows of each stand together
    rows.sort(key=lambda row: groups.index(row.group))
    write_results(folder, checkpoints, Findings(rows, samples), config, DETAILS)
    for row in rows:
        if not row.values and row.group not in DETAILS:
            print(f"   {row.metric}: {row.description}", flush=True)


def _check_config(config: Config) -> None:
    check_names(config.checkpoints, config.reference)
    limit, side_by_side = config.limit, config.num_side_by_side
    positive = "must be positive"
    require(limit is None or limit >= 1, f"limit={limit}: {positive}, or None for all questions")
    require(side_by_side >= 0, f"num_side_by_side={side_by_side}: must be 0, for none, or more")
    require(config.batch_size >= 1, f"batch_size={config.batch_size}: {positive}")
    require(config.num_bootstrap >= 1, f"num_bootstrap={config.num_bootstrap}: {positive}")


def _check_checkpoints(
    checkpoints: Mapping[str, CheckpointRef], benchmarks: Sequence[Benchmark]
) -> None:
    """Check that every benchmark has a checkpoint, with room for what cannot be left out."""
    require(
        bool(benchmarks),
        "benchmarks: all are None, expected at least one; name some behind the experiment file: "
        "--config=experiments/public/benchmarks.py:truthfulqa,crows_pairs",
    )
    for benchmark in benchmarks:
        able = {name: ref for name, ref in checkpoints.items() if ref.meta.kind == benchmark.kind}
        require(
            bool(able),
            f"{benchmark.name}: none of the checkpoints is a {benchmark.kind}; "
            "add one, or leave the benchmark out",
        )
        require(
            not isinstance(benchmark, JudgedWins) or benchmark.reference in able,
            f"reference={getattr(benchmark, 'reference', '')!r}: win_rate compares language models "
            "with it, and it is none",
        )
        for name, checkpoint in able.items():
            length = checkpoint.model.context_length
            needs = f"{benchmark.name}: needs {benchmark.min_context} tokens"
            require(benchmark.min_context <= length, f"{needs}, the context of {name} is {length}")


def _load(checkpoint: CheckpointRef) -> tuple[Any, Tokenizer]:
    is_scalar = checkpoint.meta.kind == CheckpointKind.SCALAR_MODEL
    model = load_scalar_model(checkpoint) if is_scalar else load_language_model(checkpoint)
    return model, load_tokenizer_of(checkpoint)


def _measure(
    checkpoints: Mapping[str, CheckpointRef],
    benchmarks: Sequence[Benchmark],
    kept: Cache,
    batch_size: int,
) -> dict[str, dict[str, Data]]:
    """Return data by benchmark and checkpoint, with one checkpoint in memory at a time."""
    measurements: dict[str, dict[str, Data]] = {benchmark.name: {} for benchmark in benchmarks}
    for name, checkpoint in checkpoints.items():
        # Loaded at the first measurement that is not kept, and once for all of them.
        load = cache(partial(_load, checkpoint))
        settings = {
            "checkpoint": checkpoint.meta.fingerprint,
            "tokenizer": checkpoint.meta.tokenizer,
            "version": __version__,
        }
        for benchmark in benchmarks:
            if benchmark.kind == checkpoint.meta.kind:
                depends_on = {**settings, "benchmark": benchmark.depends_on}
                measure = partial(_measure_with, benchmark, load, batch_size)
                data = kept.timed(name, benchmark.name, depends_on, measure)
                measurements[benchmark.name][name] = data
    return measurements


def _measure_with(
    benchmark: Benchmark, load: Callable[[], tuple[Any, Tokenizer]], batch_size: int
) -> Data:
    return benchmark.measure(*load(), batch_size=batch_size)
