"""Serve one work in a process of its own, so that several works can take turns.

    parent: go      worker: {"seconds": ..., ...}
    parent: end     worker: {"peak_mib": ..., "units": ...}

A worker that waits costs nothing. Needs the standard library alone, so that peers serve from
environments of their own. The first run compiles.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def parse_work(
    description: str | None, works: Iterable[str], sizes: Iterable[str]
) -> argparse.Namespace:
    """Parse `work`, `size` and `dtype` of a worker's command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", required=True, choices=works)
    parser.add_argument("--size", required=True, choices=sizes)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    return parser.parse_args()


def process_peak() -> float:
    """Return the MiB of memory that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(
    run: Callable[[], dict[str, float]], peak: Callable[[], float] = process_peak, **facts: Any
) -> None:
    """Answer `go` with what `run` measured, and `end` with `facts` and the peak memory.

    Nothing else may be on stdout.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to stderr
    for line in sys.stdin:
        if line.strip() == "go":
            answer: dict[str, Any] = run()
        else:
            answer = {**facts, "peak_mib": peak()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if line.strip() == "end":
            return


class Worker:
    """Control a work in a process of its own; `started` is when the process was started."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Start the process."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._name, self._log = " ".join(command), log
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
        )

    def ask(self, word: str) -> dict[str, Any]:
        """Send a word and wait for the answer.

        Raises:
            RuntimeError: if the process died; it has the end of the log.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(
                f"{self._name} ended; its log {self._log} ends with\n"
                f"{self._log.read_text()[-2000:]}"
            )
        return json.loads(line)

    def seconds_to_first(self) -> float:
        """Return the seconds from the start of the process to the end of its first run."""
        self.ask("go")
        return time.perf_counter() - self.started

    def end(self) -> dict[str, Any]:
        """Ask for the facts, and wait until the process is gone."""
        facts = self.ask("end")
        self._process.wait()
        return facts
