"""Make one run of several processes, usually one per host, and prepare each for its computations.

    srun …, mpirun …, Kubernetes, a TPU pod    detected: the command is the same on every host
    elsewhere                                  the same command with --coordinator=HOST:PORT
                                               --num_processes=N --process_id=0 … N - 1

Every process runs the same program on the same data and in the same order; arrays span the devices
of all, and a process puts only its own rows of a batch on its devices. Files are written by process
0, except checkpoints, of which each process writes its parts. So the workdir must be one folder
that all hosts see.

Left out on purpose: going on with fewer processes (when one dies the others end, and all are
started again); XLA flags (those that were tried on CPU changed nothing outside the noise).
"""

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.config import differences
from rlhf_jax.files import is_disk_full

# Where a launcher leaves the number of processes, of which this one is one.
_SIZE_VARIABLES = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# Numbers and values of glibc's M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD (malloc.h).
_MALLOC_SETTINGS = {-8: 1, -3: 1 << 30, -1: (1 << 31) - 1}


# --- beginning and ending together ----------------------------------------------------------------


def is_launched(environment: Mapping[str, str]) -> bool:
    """Tell whether a launcher started this process as one of several."""
    sizes = [int(environment.get(name, "1")) for name in _SIZE_VARIABLES]
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return max(sizes) > 1 or kubernetes or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


@contextmanager
def initialize(values: Any) -> Iterator[None]:
    """Run the body as one of several processes, if the flags or a launcher say so.

    When the body fails, or another process is gone, this one ends at once: the ordinary way out
    waits for the others, which wait for it.

    Raises:
        ValueError: only some of the flags are given.
    """
    connect(values.coordinator, values.num_processes, values.process_id, values.heartbeat_seconds)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        name = f"process {jax.process_index()} of {jax.process_count()}"
        print(f"error: {name}: {_explain(error)}", file=sys.stderr, flush=True)
        os._exit(1)


def connect(coordinator: str, num_processes: int, process_id: int, heartbeat_seconds: int) -> None:
    """Join the other processes, before anything uses a device.

    With the first three unset ("", 0, -1) a launcher says where they are, or this process stays
    alone.

    Raises:
        ValueError: only some of the three are given, or the number is too large.
    """
    given = {"coordinator": bool(coordinator), "num_processes": num_processes > 0}
    given["process_id"] = process_id >= 0
    missing = [f"--{name}" for name, is_given in given.items() if not is_given]
    if 0 < len(missing) < len(given):
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together: "
            f"{', '.join(missing)} is missing"
        )
    if coordinator:
        if process_id >= num_processes:
            raise ValueError(
                f"--process_id={process_id} with --num_processes={num_processes}: they count from 0"
            )
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
        )
    elif is_launched(os.environ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)


def stop_requested(step: int) -> bool:
    """Tell whether all processes agreed to stop after this step: SIGTERM reached one of them."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


@contextmanager
def explained_endings() -> Iterator[None]:
    """End with one line, or none, where a run was stopped from outside: no traceback helps there.

    After Ctrl-C with status 130, after a closed pipe (`| head`) quietly with 141, as a shell
    reports them, and on a full disk with 1.
    """
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        message = str(stop) or "Ctrl-C: what was saved stays; the same command goes on from it"
        print(f"\n{message}", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)  # for what Python flushes when it ends
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        sys.exit(141)
    except Exception as error:
        if not is_disk_full(error) or jax.process_count() > 1:  # `initialize` ends several
            raise
        sys.exit(f"error: {_explain(error)}")


def _explain(error: Exception) -> str:
    if is_disk_full(error):
        first = (str(error).splitlines() or [""])[0][:300]
        return (
            f"the disk is full ({first}). Checkpoints that were finished are whole; free some "
            "space, and start the same command again: it continues from the newest of them"
        )
    if isinstance(error, ValueError | FileNotFoundError | FloatingPointError):
        return str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return "".join(traceback.format_exception(error))
    reason = (str(error).splitlines() or [""])[0][:300]
    return (
        f"another process is gone ({reason}). Start all of them again with the same commands: they "
        "continue from the newest checkpoint"
    )


# --- working together -----------------------------------------------------------------------------


def process_count() -> int:
    """Return the number of processes that make this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Tell whether this process writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def require_same(name: str, content: Mapping[str, Any]) -> None:
    """Refuse to go on unless all processes of this run have the same content, which JSON can hold.

    Raises:
        ValueError: says which process differs from process 0, and in what.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(content, sort_keys=True).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array([text.size], np.int32))).ravel()
    padded = np.pad(text, (0, int(sizes.max()) - text.size))
    gathered = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(sizes), -1)
    first, *others = (
        json.loads(row[:size].tobytes()) for row, size in zip(gathered, sizes, strict=True)
    )
    for number, other in enumerate(others, start=1):
        if lines := differences(first, other):
            raise ValueError(
                f"process {number} has another {name} than process 0 (process 0 -> {number}):\n  "
                + "\n  ".join(lines)
                + "\nstart all processes with the same command, version and data"
            )


@contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Run the body in process 0, then in the others, which find done what it did."""
    if not is_main_process():
        barrier(name)
    yield
    if is_main_process():
        barrier(name)


def fetch(leaf: Any) -> np.ndarray:
    """Return the whole array on every process; all must ask: they send each other their parts."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


# --- before the first computation -----------------------------------------------------------------


def enable_persistent_cache() -> None:
    """Keep compiled programs in ~/.cache/rlhf_jax/xla, or where JAX_COMPILATION_CACHE_DIR says."""
    default = str(Path.home() / ".cache" / "rlhf_jax" / "xla")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def retain_memory() -> None:
    """Let glibc's malloc keep freed blocks of up to 1 GiB; elsewhere (macOS, musl) do nothing.

    Call it before the first computation; what the process once used stays with it until it ends.
    """
    # Every XLA:CPU program asks for its whole temporary memory at each call and returns it after.
    # Beyond glibc's thresholds, and beyond 64 MB in a thread's own arena, that is fresh, zeroed
    # pages from the kernel each time: on CPU a fifth to a quarter of a small model's training step
    # is page faults (20,000 of them in 2,048 tokens).
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for number, value in _MALLOC_SETTINGS.items():
            mallopt(number, value)
