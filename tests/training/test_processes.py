"""Two processes make the run of one: the same numbers, one log, and both end with one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from run_files import params_of, rows, same_bits, without_times
from tests_support import ROOT

from rlhf_jax import main
from rlhf_jax.training import checkpoints, processes

MESH = {
    "data": 2,
    "fsdp": 2,
    "tensor": 1,
    "fsdp_min_size": 256,
    **dict.fromkeys(("compute_dtype", "remat", "scan_layers", "attention"), "as_trained"),
}


def start(tmp_path, plans, other=None):
    """Two processes with two devices each; the second runs `other` plans, if there are any."""
    for i, mine in enumerate((plans, other or plans)):
        (tmp_path / f"plans{i}.json").write_text(json.dumps(mine))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, str(ROOT / "tests" / "support" / "hosts_worker.py"), port, "2"]
    return [
        subprocess.Popen(
            [*command, str(i), str(tmp_path / f"plans{i}.json")],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for i in range(2)
    ]


def finish(processes, seconds=240):
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    return outputs


@pytest.fixture(scope="module")
def plans(tour):
    """Pretraining of four steps, and PPO-ptx of three updates from the tour's models."""
    pretrain, ppo = (json.loads(json.dumps(tour.plans[stage])) for stage in ("pretrain", "ppo_ptx"))
    pretrain["pretrain"] |= {"num_steps": 4, "eval_every": 4}
    pretrain["optimizer"]["warmup_steps"] = 1
    ppo["ppo"] |= {"total_episodes": 48, "ptx_batch_size": 4}
    ppo["init"]["policy"] = str(tour.workdir / "sft")
    ppo["rewards"]["reward"]["source"] = f"reward:{tour.workdir / 'reward'}"
    # Each process asks this judge about the rows of its own devices.
    length = {"source": "length:4", "weight": 0.5, "clip": 2.0, "normalisation": "running_std"}
    ppo["rewards"]["length"] = length
    for plan in (pretrain, ppo):
        plan["mesh"] = MESH
        plan["checkpoint"] |= {"save_every": 1, "sample_every": 1}
    return {"pretrain": pretrain, "ppo_ptx": ppo}


@pytest.fixture(scope="module")
def two_processes(plans, tmp_path_factory):
    """The folders of both stages, run by two processes, and what these said."""
    folder = tmp_path_factory.mktemp("together")
    outputs = finish(start(folder, {str(folder / name): plan for name, plan in plans.items()}))
    return folder, outputs


@pytest.mark.parametrize("stage", ["pretrain", "ppo_ptx"])
def test_two_processes_compute_what_one_does(two_processes, plans, tmp_path, stage):
    main.run(plans[stage], str(tmp_path / stage))
    for distributed, single in zip(
        params_of(two_processes[0] / stage), params_of(tmp_path / stage), strict=True
    ):
        np.testing.assert_allclose(distributed, single, atol=2e-6)
    for distributed, single in zip(
        rows(two_processes[0] / stage), rows(tmp_path / stage), strict=True
    ):
        assert distributed["step"] == single["step"]
        assert without_times(distributed) == pytest.approx(
            without_times(single), abs=1e-4, rel=1e-3
        )


def test_only_the_first_process_writes_and_speaks(two_processes):
    folder, (first, second) = two_processes
    assert "== ppo" in first
    assert "== ppo" not in second
    for stage in ("pretrain", "ppo_ptx"):
        steps = [row["step"] for row in rows(folder / stage)]
        assert steps == sorted(set(steps))
        assert len(list((folder / stage / "tensorboard").iterdir())) == 1


def test_a_killed_process_ends_the_other_and_the_restart_is_exact(two_processes, plans, tmp_path):
    plan = {str(tmp_path / "ppo_ptx"): plans["ppo_ptx"]}
    processes = start(tmp_path, plan)
    deadline = time.monotonic() + 120
    while checkpoints.latest_step(tmp_path / "ppo_ptx") is None and time.monotonic() < deadline:
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    outputs = processes[0].communicate(timeout=60)[0]
    assert processes[0].returncode == 1, outputs
    assert "process 0 of 2: another process is gone" in outputs
    assert "Start all of them again" in outputs
    processes[1].communicate()
    assert checkpoints.latest_step(tmp_path / "ppo_ptx") < 3
    finish(start(tmp_path, plan))
    assert same_bits(tmp_path / "ppo_ptx", two_processes[0] / "ppo_ptx")
    table = [without_times(row) for row in rows(tmp_path / "ppo_ptx")]
    assert table == [without_times(row) for row in rows(two_processes[0] / "ppo_ptx")]


def test_launchers_are_recognised_and_half_a_command_line_is_refused():
    kubernetes = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    assert not processes.is_launched({})
    assert not processes.is_launched({"SLURM_STEP_NUM_TASKS": "1"})
    assert not processes.is_launched({"TPU_WORKER_HOSTNAMES": "a"})
    assert not processes.is_launched({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert processes.is_launched({"SLURM_STEP_NUM_TASKS": "16"})
    assert processes.is_launched({"OMPI_COMM_WORLD_SIZE": "4"})
    assert processes.is_launched({"PMI_SIZE": "2"})
    assert processes.is_launched(kubernetes)
    assert processes.is_launched({"TPU_WORKER_HOSTNAMES": "a,b"})
    with pytest.raises(ValueError, match=r"belong together: --process_id is missing"):
        processes.connect("localhost:1", 2, -1, 10)
    with pytest.raises(ValueError, match=r"--process_id=2 with --num_processes=2"):
        processes.connect("localhost:1", 2, 2, 10)


def test_processes_with_different_configs_refuse_before_the_first_step(plans, tmp_path):
    """The two once trained on a mixture of both, and process 0 deleted what the other needed."""
    folder = tmp_path / "pretrain"
    other = json.loads(json.dumps(plans["pretrain"]))
    other["optimizer"]["learning_rate"] *= 2
    other["seed"] = 77
    both = start(tmp_path, {str(folder): plans["pretrain"]}, {str(folder): other})
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    for output in outputs:
        assert "process 1 has another config than process 0" in output
        assert "config.seed: 0 -> 77" in output
    assert not (folder / "checkpoints").exists()
    assert not (folder / "config.json").exists()
