"""Damage the files of a killed run at random, and see that it ends with the same bits or says why.

    python tests/faults/random_faults.py --number=1000 --seed=0

A fault is survived if the same command then ends with the bits and the rows of a run that nobody
touched, or if it is refused in words that name a file or folder of the run. Anything else is
printed with its number, and `--only=NUMBER` repeats it.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # what pytest's settings and tests/conftest.py do there
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root), str(root / "tests" / "support")]

from run_files import rows, same_bits, without_times
from tour import tiny_plans

from rlhf_jax import main
from rlhf_jax.training.lock import LOCK


class Runs(NamedTuple):
    finished: Path
    killed: Path  # at step 3 of 4, with the checkpoint of step 2
    plan: dict[str, Any]


def make_runs(folder: Path) -> Runs:
    """Train four steps, and take away what a kill after the third would have."""
    plan = tiny_plans(folder / "data")["pretrain"]
    plan["pretrain"] |= {"num_steps": 4, "eval_every": 4}
    plan["optimizer"]["warmup_steps"] = 1
    plan["checkpoint"] |= {"save_every": 2, "keep": 2, "log_every": 1}
    finished, killed = folder / "finished", folder / "killed"
    main.run(plan, str(finished))
    shutil.copytree(finished, killed)
    shutil.rmtree(killed / "checkpoints" / "4")
    log = killed / "metrics.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]) + b'{"step": 4, "lo')
    return Runs(finished, killed, plan)


# --- faults ---------------------------------------------------------------------------------------


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def empty(path: Path, rng: random.Random) -> None:
    del rng
    path.write_bytes(b"")


def zero(path: Path, rng: random.Random) -> None:
    del rng
    path.write_bytes(bytes(path.stat().st_size))


def lengthen(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(rng.randbytes(rng.randrange(1, 99)))


def delete(path: Path, rng: random.Random) -> None:
    del rng
    path.unlink()


def delete_folder(path: Path, rng: random.Random) -> None:
    del rng
    shutil.rmtree(path.parent)


def leave_unfinished(path: Path, rng: random.Random) -> None:
    path.with_name(path.name + ".unfinished").write_bytes(rng.randbytes(9))


def rename_checkpoint(path: Path, rng: random.Random) -> None:
    root = next(part for part in path.parents if (part / "checkpoints").is_dir()) / "checkpoints"
    names = ["3", "15", "007", "２", "²", "2.deleted", "2.orbax-checkpoint-tmp-1"]
    (root / "2").rename(root / rng.choice(names))


def leave_lock(path: Path, rng: random.Random) -> None:
    folder = next(part for part in path.parents if (part / "checkpoints").is_dir())
    (folder / LOCK).write_bytes(rng.choice([b"", b"{", b'{"pid": 1}', rng.randbytes(30)]))


FAULTS: tuple[Callable[[Path, random.Random], None], ...] = (
    *(cut, cut, flip, flip, empty, zero, lengthen, delete, delete_folder),
    *(leave_unfinished, rename_checkpoint, leave_lock),
)


def try_fault(runs: Runs, folder: Path, number: int) -> tuple[str, str]:
    """Return how fault `number` ended ("same bits", "refused" or "broken"), and what it was."""
    rng = random.Random(number)
    workdir = folder / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(runs.killed, workdir)
    paths = sorted(path for path in workdir.rglob("*") if path.is_file())
    path, fault = rng.choice(paths), rng.choice(FAULTS)
    fault(path, rng)
    what = f"{number}: {fault.__name__} {path.relative_to(workdir)}"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            main.run(runs.plan, str(workdir))
    except (ValueError, FileNotFoundError) as error:
        named = str(workdir) in str(error)
        return ("refused" if named else "broken"), f"{what}: {type(error).__name__}: {error}"
    except Exception as error:
        return "broken", f"{what}: {type(error).__name__}: {error}"
    log = [[without_times(row) for row in rows(run)] for run in (workdir, runs.finished)]
    if not same_bits(workdir, runs.finished):
        return "broken", f"{what}: other bits"
    is_log = path.name == "metrics.jsonl"  # its earlier rows have no copy
    if not is_log and log[0] != log[1]:
        return "broken", f"{what}: other rows"
    return "same bits", what


def run_all(numbers: range | list[int], folder: Path) -> tuple[Counter[str], list[str]]:
    """Return how many faults ended how, and a line for every broken one."""
    runs = make_runs(folder)
    counts: Counter[str] = Counter()
    broken = []
    for number in numbers:
        ending, line = try_fault(runs, folder, number)
        counts[ending] += 1
        broken += [line] if ending == "broken" else []
    return counts, broken


def _main() -> int:
    parser = argparse.ArgumentParser(description="Damage a killed run at random.")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    first = arguments.seed * 1_000_000
    numbers = range(first, first + arguments.number)
    with tempfile.TemporaryDirectory() as folder:
        only = arguments.only
        counts, broken = run_all(numbers if only is None else [only], Path(folder))
    print(json.dumps(counts, indent=1), *broken, sep="\n")
    return len(broken) > 0


if __name__ == "__main__":
    sys.exit(_main())
