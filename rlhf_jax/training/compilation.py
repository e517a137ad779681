"""What a process sets up before its first computation: compiled programs and memory are kept, not made anew.

Left out on purpose: XLA flags. Those that were tried on CPU changed nothing outside the noise.
"""

import ctypes
import os
import sys
from pathlib import Path

import jax

# malloc.h: name, number, value. Every XLA:CPU program asks for its whole temporary memory at each call and returns it after:
# beyond glibc's thresholds, and beyond 64 MB in a thread's own arena, that is fresh pages from the kernel, zeroed, each time.
_MALLOPT = {"M_ARENA_MAX": (-8, 1), "M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, (1 << 31) - 1)}


def enable_persistent_cache() -> None:
    """Store compiled programs under ~/.cache/rlhf_jax/xla, or where JAX_COMPILATION_CACHE_DIR says, whatever their size."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path.home() / ".cache" / "rlhf_jax" / "xla")
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
