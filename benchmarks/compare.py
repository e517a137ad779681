"""Measure the peers on the standard works, taking turns with this package, and print the ratios.

    python -m benchmarks.compare [--works=generate,sft,reward,ppo] [--sizes=S512,S50k,M] [--dtypes=float32] [--repeats=5]

The peers live in an environment of their own, ~/.cache/rlhf_jax/peers, made on the first call from
benchmarks/peers/requirements.txt; nothing of it is imported here. A ratio is the peer's median seconds over ours, in the same
turns.
"""

import statistics
import subprocess
import sys
import venv
from itertools import product
from pathlib import Path

from benchmarks.run import LOGS, describe_machine, ours, spread, take_turns, works_parser
from benchmarks.worker import ROOT, Worker

CACHE = Path.home() / ".cache" / "rlhf_jax" / "peers"
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "requirements.txt"


def environment() -> Path:
    """The peers' Python; made and filled if it is not there, or was filled from other requirements."""
    python, stamp = CACHE / "bin" / "python", CACHE / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
        venv.create(CACHE, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", REQUIREMENTS], check=True)
        stamp.write_text(REQUIREMENTS.read_text())
    return python


def peer(python: Path, work: str, size: str, dtype: str) -> Worker:
    """A process of the peers."""
    command = [str(python), "-m", "benchmarks.peers.torch_works", f"--work={work}", f"--size={size}", f"--dtype={dtype}"]
    quiet = {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return Worker(command, quiet, LOGS / f"torch-{work}-{size}-{dtype}.log")


def main() -> None:
    """Measure and print."""
    parser = works_parser(__doc__)
    parser.add_argument("--python", type=Path, help="the peers' Python, if they are installed already")
    args = parser.parse_args()
    python = args.python or environment()
    print(describe_machine(), "| work | peer, s | ours, s | ratio | peak MiB, peer / ours |", "|---|---|---|---|---|", sep="\n")
    for size, dtype, work in product(args.sizes, args.dtypes, args.works):
        measured = take_turns({"peer": peer(python, work, size, dtype), "ours": ours(work, size, dtype)}, args.repeats)
        if len(measured) < 2:
            print(f"{work} {size} {dtype}: not measured, see above", file=sys.stderr)
            continue
        theirs, mine = ([run["seconds"] for run in measured[name].runs] for name in ("peer", "ours"))
        ratio = statistics.median(theirs) / statistics.median(mine)
        peaks = " / ".join(f"{measured[name].facts['peak_mib']:,.0f}" for name in ("peer", "ours"))
        print(f"| {work} {size} {dtype} | {spread(theirs)} | {spread(mine)} | {ratio:.2f} | {peaks} |", flush=True)


if __name__ == "__main__":
    main()
