"""Measure this package on the four standard works.

    python -m benchmarks.run [--works=generate,sft,reward,ppo,ragged] [--sizes=S512,S50k,M]
                             [--dtypes=float32,bfloat16]
    python -m benchmarks.run --sizes=G124M,G1.3B --dtypes=bfloat16                  on a GPU

Every work is a process of its own (its peak memory is its own), and the works of one size take
turns, so that foreign load hits all of them alike. Prints medians [min..max] and the share of the
matmul ceiling measured in the same turns; with --first also the seconds from the start of a fresh
process to the end of its first PPO iteration, compile cache empty and filled.
"""

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.worker import Worker
from benchmarks.works import PPO_PHASES

LOGS = Path(tempfile.gettempdir()) / "rlhf_jax_benchmarks"


class Measured(NamedTuple):
    """Hold one work's answers, run by run, and its facts."""

    runs: list[dict[str, float]]
    facts: dict[str, Any]


def package_worker(
    work: str, size: str, dtype: str, environment: Mapping[str, str] | None = None
) -> Worker:
    """Start a process of this package."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.works",
        f"--work={work}",
        f"--size={size}",
        f"--dtype={dtype}",
    ]
    return Worker(command, dict(environment or {}), LOGS / f"{work}-{size}-{dtype}.log")


def take_turns(workers: Mapping[str, Worker], repeats: int) -> dict[str, Measured]:
    """Warm every worker up by one run, then let each run once in every round.

    A worker that fails is reported and left out.
    """
    alive = dict(workers)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(repeats + 1):
        for name in list(alive):
            try:
                answer = alive[name].ask("go")
            except RuntimeError as error:
                print(f"{name}: {error}", file=sys.stderr)
                del alive[name]
                continue
            if turn:
                runs[name].append(answer)
    return {name: Measured(runs[name], worker.end()) for name, worker in alive.items()}


def spread(values: Iterable[float], digits: int = 3) -> str:
    """Return "median [min..max]" with so many significant digits."""
    values = list(values)
    median, low, high = (
        f"{value:.{digits}g}" if value < 1000 else f"{value:,.0f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{low}..{high}]"


def first_iteration(size: str, dtype: str) -> tuple[float, float]:
    """Return the seconds to the end of a process' first PPO iteration, cache empty and filled."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            worker = package_worker("ppo", size, dtype, {"JAX_COMPILATION_CACHE_DIR": folder})
            seconds.append(worker.seconds_to_first())
            worker.end()
    return seconds[0], seconds[1]


def describe_machine() -> str:
    """Return date, CPU, cores and versions as one line."""
    model = platform.processor()
    if Path("/proc/cpuinfo").exists():
        cpu = dict(
            line.split(":", 1) for line in subprocess.getoutput("lscpu").splitlines() if ":" in line
        )
        model = (
            f"{cpu['Model name'].strip()} family {cpu['CPU family'].strip()} "
            f"model {cpu['Model'].strip()}, {cpu['CPU(s)'].strip()} cores"
        )
    return f"{datetime.date.today()}, {model}, Python {platform.python_version()}"


def rows(measured: Mapping[str, Measured], ceiling: str) -> list[str]:
    """Return a Markdown row for every work, the ceiling last."""
    machine = measured[ceiling]
    peaks = [machine.facts["flops"] / run["seconds"] / 1e9 for run in machine.runs]
    lines = [
        row(name, work, statistics.median(peaks))
        for name, work in measured.items()
        if name != ceiling
    ]
    copies = spread(run["bandwidth"] for run in machine.runs)
    speed = f"matrix product {spread(peaks)} GFLOP/s; copy {copies} GB/s"
    return [*lines, f"| *{ceiling}* | | {speed} | | | |"]


def row(name: str, work: Measured, peak: float) -> str:
    """Return the row of one work; `peak` is the ceiling in GFLOP/s."""
    runs = work.runs
    facts = work.facts
    seconds = [run["seconds"] for run in runs]
    speed = spread(run.get("tokens", facts["units"]) / run["seconds"] for run in runs)
    achieved = facts["flops"] / statistics.median(seconds) / 1e9
    share = "–" if "ragged" in name else f"{achieved:.0f} ({achieved / peak:.0%})"
    phases = [
        f"{statistics.median(run[phase] for run in runs):.3g}"
        for phase in PPO_PHASES
        if phase in runs[0]
    ]
    cells = [
        name,
        spread(seconds),
        f"{speed} {facts['unit']}/s",
        share,
        f"{facts['peak_mib']:,.0f}",
        " / ".join(phases),
    ]
    return f"| {' | '.join(cells)} |"


def works_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the flags that say what to measure and how often."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("works", "generate,sft,reward,ppo"),
        ("sizes", "S512,S50k,M"),
        ("dtypes", "float32"),
    ):
        parser.add_argument(f"--{name}", default=default, type=lambda text: text.split(","))
    parser.add_argument("--repeats", type=int, default=5)
    return parser


HEAD = [
    "| work | seconds | speed | GFLOP/s (of ceiling) | peak MiB | PPO: generate / score / update |",
    "|---|---|---|---|---|---|",
]


def main() -> None:
    """Measure and print; `--out` also writes every single run."""
    parser = works_parser(__doc__)
    parser.add_argument(
        "--first", action="store_true", help="also time the first PPO iteration of fresh processes"
    )
    parser.add_argument("--out", type=Path, help="JSON lines of every run")
    args = parser.parse_args()
    print(describe_machine(), *HEAD, sep="\n", flush=True)
    for size, dtype in product(args.sizes, args.dtypes):
        ceiling = f"ceilings {size} {dtype}"
        workers = {
            f"{work} {size} {dtype}": package_worker(work, size, dtype)
            for work in ["ceilings", *args.works]
        }
        measured = take_turns(workers, args.repeats)
        print(*rows(measured, ceiling), sep="\n", flush=True)
        if args.first:
            cold, warm = first_iteration(size, dtype)
            print(
                f"| first PPO iteration {size} {dtype} | {cold:.3g} cold, {warm:.3g} warm "
                "| | | | |",
                flush=True,
            )
        if args.out:
            with args.out.open("a") as file:
                for name, work in measured.items():
                    line = {"work": name, "facts": work.facts, "runs": work.runs}
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
