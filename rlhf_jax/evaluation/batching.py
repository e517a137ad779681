"""Run many batches through one program, and say now and then how far it is.

    for every batch:  start it on the device, and fetch the results of the one before

So the device always has work, results do not pile up on it, and what is printed is true: batches
that are done.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import numpy as np

from rlhf_jax.training.metrics import clock
from rlhf_jax.training.processes import fetch, is_main_process

PATIENCE = 20.0  # seconds without a word
Batch = TypeVar("Batch")
Result = TypeVar("Result")


def batch_rows(count: int, batch_size: int) -> list[np.ndarray]:
    """Return the row numbers of consecutive batches, the last one filled up with the last row."""
    return [
        np.minimum(np.arange(start, start + batch_size), count - 1)
        for start in range(0, count, batch_size)
    ]


def run_batches(
    compute: Callable[[Batch], Result], batches: Sequence[Batch], what: str
) -> list[Result]:
    """Compute every batch and return the results as arrays on the host.

    A line every `PATIENCE` seconds says how many there are; `what` is what it calls the results.
    """
    results: list[Result] = []
    running: list[Result] = []
    start = last_line = time.monotonic()
    for batch in batches:
        running.append(compute(batch))
        if len(running) == 2:
            results.append(jax.tree.map(fetch, running.pop(0)))
        now = time.monotonic()
        if results and now - last_line > PATIENCE and is_main_process():
            left = (now - start) / len(results) * (len(batches) - len(results))
            print(
                f"   {what}: {len(results)} of {len(batches)} batches, {clock(left)} left",
                file=sys.stderr,
                flush=True,
            )
            last_line = now
    return results + [jax.tree.map(fetch, result) for result in running]
