"""One of several processes of a run: `python hosts_worker.py PORT NUM_PROCESSES PROCESS_ID
PLANS.json`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)

from rlhf_jax import main  # noqa: E402
from rlhf_jax.training import processes  # noqa: E402
from rlhf_jax.training.processes import enable_persistent_cache  # noqa: E402

port, count, number, plans = sys.argv[1:]
enable_persistent_cache()
flags = SimpleNamespace(
    coordinator=f"127.0.0.1:{port}",
    num_processes=int(count),
    process_id=int(number),
    heartbeat_seconds=10,
)
with processes.initialize(flags):
    for folder, plan in json.loads(Path(plans).read_text()).items():
        main.run(plan, folder)
