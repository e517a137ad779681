"""Several processes, usually one per host, that make one run: who is who, what only the first does, and how they end.

    srun …, mpirun …, a Kubernetes job, a TPU pod            detected: the command is the same on every host
    elsewhere    --coordinator=HOST:PORT --num_processes=N --process_id=I      the same command with I = 0 … N - 1

Every process runs the same program on the same data and in the same order; arrays span the devices of all, and a process puts
only its own rows of a batch on its devices. Files are written by process 0, except checkpoints, of which each process
writes its parts. So the workdir must be one folder that all hosts see.

Left out on purpose: going on with fewer processes. When one dies the others end, and all are started again.
"""

import ctypes
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

# What each launcher leaves in the environment of a process that is one of several.
_LAUNCHERS = {
    "SLURM": "SLURM_STEP_NUM_TASKS",
    "Open MPI": "OMPI_COMM_WORLD_SIZE",
    "MPI": "PMI_SIZE",
}


def launcher(environment: Mapping[str, str]) -> str | None:
    """The launcher that started this process as one of several, None if there is none."""
    for name, size in _LAUNCHERS.items():
        if int(environment.get(size, "1")) > 1:
            return name
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes"
    return "TPU pod" if "," in environment.get("TPU_WORKER_HOSTNAMES", "") else None


def define_flags() -> None:
    """The flags by which a process is told who it is where no launcher does."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where no launcher says it.")
    flags.DEFINE_integer(
        "num_processes", 0, "How many processes make this run, where no launcher says it."
    )
    flags.DEFINE_integer("process_id", -1, "Which of them this one is, from 0.")
    flags.DEFINE_integer(
        "heartbeat_seconds", 60, "A process that is not heard of for so long ends the run."
    )


@contextmanager
def initialize(given: Any) -> Iterator[None]:
    """Run the body as one of several processes, if the flags or a launcher say so.

    When it fails here, or another process is gone, this process ends at once, so that none waits for another: the ordinary
    way out would. Raises ValueError when only some of the flags are given.
    """
    connect(given.coordinator, given.num_processes, given.process_id, given.heartbeat_seconds)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        print(
            f"error: process {jax.process_index()} of {jax.process_count()}: {_explain(error)}",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)


def connect(coordinator: str, num_processes: int, process_id: int, heartbeat_seconds: int) -> None:
    """Join the other processes; with the first three unset ("", 0, -1) as a launcher says, or stay alone.

    Comes before anything that uses a device. Raises ValueError when only some of the three are given.
    """
    known = {
        "coordinator": coordinator != "",
        "num_processes": num_processes > 0,
        "process_id": process_id >= 0,
    }
    if any(known.values()) and not all(known.values()):
        absent = ", ".join(f"--{name}" for name, here in known.items() if not here)
        raise ValueError(
            f"--coordinator, --num_processes and --process_id belong together: {absent} is missing"
        )
    if coordinator:
        if process_id >= num_processes:
            raise ValueError(
                f"--process_id={process_id} with --num_processes={num_processes}: they count from 0"
            )
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
        )
    elif launcher(os.environ):
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_seconds)


def process_count() -> int:
    """How many processes make this run."""
    return jax.process_count()


def is_main_process() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """The body runs in process 0, then in the others, which find done what it did."""
    if not is_main_process():
        barrier(name)
    yield
    if is_main_process():
        barrier(name)


def fetch(leaf: Any) -> np.ndarray:
    """The whole array, on every process; all must ask for it, because they send each other their parts."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def stop_requested(step: int) -> bool:
    """Whether a process was told by SIGTERM to stop, and all have agreed to do so after this step."""
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


def _explain(error: Exception) -> str:
    if isinstance(error, ValueError | FileNotFoundError | FloatingPointError):
        return str(error)
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return "".join(traceback.format_exception(error))
    reason = (str(error).splitlines() or [""])[0][:300]
    return (
        f"another process is gone ({reason}). Start all of them again with the same commands: they continue from the newest "
        "checkpoint"
    )


# What a process sets up before its first computation: compiled programs and memory are kept, not made anew.
#
# Left out on purpose: XLA flags. Those that were tried on CPU changed nothing outside the noise.
# malloc.h: name, number, value. Every XLA:CPU program asks for its whole temporary memory at each call and returns it after:
# beyond glibc's thresholds, and beyond 64 MB in a thread's own arena, that is fresh pages from the kernel, zeroed, each time.
_MALLOPT = {
    "M_ARENA_MAX": (-8, 1),
    "M_MMAP_THRESHOLD": (-3, 1 << 30),
    "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1),
}


def enable_persistent_cache() -> None:
    """Store compiled programs under ~/.cache/rlhf_jax/xla, or where JAX_COMPILATION_CACHE_DIR says, whatever their size."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
        Path.home() / ".cache" / "rlhf_jax" / "xla"
    )
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def retain_memory() -> None:
    """Let glibc's malloc keep freed blocks of up to 1 GiB for the next step; elsewhere (macOS, musl) do nothing.

    On CPU a fifth to a quarter of a small model's training step is otherwise page faults (20,000 of them in 2,048 tokens).
    Call it before the first computation; what the process once used then stays with it until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for number, value in _MALLOPT.values():
            mallopt(number, value)
