"""Measure the peers on the standard works, taking turns with this package, and print the ratios.

    python -m benchmarks.compare [--peer=torch|tunix] [--works=generate,sft,reward,ppo]
                                 [--sizes=S512,S50k,M] [--dtypes=float32] [--repeats=5]

Every peer lives in an environment of its own, ~/.cache/rlhf_jax/peers/<peer>, made on the first
call from its requirements in benchmarks/peers; nothing of it is imported here. A ratio is the
peer's median seconds over this package's, in the same turns. What a peer lacks is named and left
out.
"""

import statistics
import subprocess
import sys
import venv
from itertools import product
from pathlib import Path
from typing import NamedTuple

from benchmarks.run import LOGS, describe_machine, package_worker, spread, take_turns, works_parser
from benchmarks.worker import ROOT, Worker

CACHE = Path.home() / ".cache" / "rlhf_jax" / "peers"


class Peer(NamedTuple):
    """Say what benchmarks/peers/<peer>_works.py can measure, on <peer>_requirements.txt."""

    works: tuple[str, ...]
    sizes: tuple[str, ...]


PEERS = {
    "torch": Peer(("generate", "sft", "reward", "ppo"), ("S512", "S50k", "M")),
    "tunix": Peer(("sft", "ppo"), ("S512", "S50k")),
}


def peer_python(name: str) -> Path:
    """Return a peer's Python, made if it is not there or was made from other requirements."""
    folder = CACHE / name
    requirements = ROOT / "benchmarks" / "peers" / f"{name}_requirements.txt"
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return python


def peer_worker(name: str, python: Path, work: str, size: str, dtype: str) -> Worker:
    """Start a process of a peer."""
    command = [
        str(python),
        "-m",
        f"benchmarks.peers.{name}_works",
        f"--work={work}",
        f"--size={size}",
        f"--dtype={dtype}",
    ]
    quiet = {
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return Worker(command, quiet, LOGS / f"{name}-{work}-{size}-{dtype}.log")


def main() -> None:
    """Measure and print."""
    parser = works_parser(__doc__)
    parser.add_argument("--peer", choices=PEERS, default="torch")
    parser.add_argument("--python", type=Path, help="the peer's Python, if it is installed already")
    args = parser.parse_args()
    python = args.python or peer_python(args.peer)
    print(
        describe_machine(),
        "| work | peer, s | here, s | ratio | peak MiB, peer / here |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    for size, dtype, work in product(args.sizes, args.dtypes, args.works):
        if work not in PEERS[args.peer].works or size not in PEERS[args.peer].sizes:
            print(f"{work} {size} {dtype}: {args.peer} lacks it", file=sys.stderr)
            continue
        workers = {
            "peer": peer_worker(args.peer, python, work, size, dtype),
            "package": package_worker(work, size, dtype),
        }
        measured = take_turns(workers, args.repeats)
        if len(measured) < 2:
            print(f"{work} {size} {dtype}: not measured, see above", file=sys.stderr)
            continue
        seconds = {name: [run["seconds"] for run in work.runs] for name, work in measured.items()}
        ratio = statistics.median(seconds["peer"]) / statistics.median(seconds["package"])
        peaks = [f"{measured[name].facts['peak_mib']:,.0f}" for name in workers]
        cells = [
            f"{work} {size} {dtype}",
            spread(seconds["peer"]),
            spread(seconds["package"]),
            f"{ratio:.2f}",
            " / ".join(peaks),
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
