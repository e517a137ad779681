"""Memory that a process keeps between steps."""

import subprocess
import sys

import pytest

# 80 MB is beyond what a thread's own arena holds, and a thread is where XLA:CPU works.
_FAULTS = """
import resource, sys, threading
from rlhf_jax.training.processes import retain_memory
if sys.argv[1] == "retain":
    retain_memory()
def work():
    bytearray(b"x") * (80 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        bytearray(b"x") * (80 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_was_freed_is_not_asked_of_the_kernel_again():
    def faults(mode: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", _FAULTS, mode], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert faults("release") > 1000
    assert faults("retain") < 100
