"""A short, severe world for the tests: eight devices, no implicit broadcasting, no reused keys, no
warnings."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
CACHE = Path(
    os.environ.get("RLHF_JAX_TEST_CACHE", Path(tempfile.gettempdir()) / "rlhf_jax_test_cache")
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="session")
def tour(tmp_path_factory):
    """The whole recipe at tiny size, run once: workdir, configs, fields read, seconds."""
    from tour import run_tour

    return run_tour(tmp_path_factory.mktemp("tour"))
