"""Keep compiled programs between runs."""

import os
from pathlib import Path

import jax


def enable_persistent_cache() -> None:
    """Store compiled programs under ~/.cache/rlhf_jax/xla, or where JAX_COMPILATION_CACHE_DIR says, whatever their size."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path.home() / ".cache" / "rlhf_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
