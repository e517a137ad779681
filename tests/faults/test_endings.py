"""A run that is stopped from outside ends with one line, and the same command continues it."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from tests_support import ROOT
from tour import tiny_plans

from rlhf_jax.training import checkpoints, processes


def say(error):
    with processes.explained_endings():
        raise error


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "\nCtrl-C: what was saved stays; the same command goes on fro"),
        (KeyboardInterrupt("toy: Ctrl-C. Step 7"), 130, "\ntoy: Ctrl-C. Step 7\n"),
    ],
)
def test_ctrl_c_is_one_line(capsys, error, status, line):
    with pytest.raises(SystemExit) as caught:
        say(error)
    assert caught.value.code == status
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        ValueError('RESOURCE_EXHAUSTED: Error writing "d/0": No space left on device'),
    ],
)
def test_a_full_disk_is_one_line_whoever_finds_it(error):
    with pytest.raises(SystemExit, match=r"error: the disk is full .*Checkpoints .* same command"):
        say(error)


def test_other_errors_pass():
    with pytest.raises(ValueError, match=r"^no space for another row$"):
        say(ValueError("no space for another row"))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line of a tiny run of pretraining, without its workdir."""
    folder = tmp_path_factory.mktemp("command")
    plan = tiny_plans(folder / "data")["pretrain"]
    plan["pretrain"] |= {"num_steps": 4000, "eval_every": 4000}
    plan["checkpoint"]["save_every"] = 2000
    config = folder / "config.py"
    config.write_text(
        "import json, ml_collections\n"
        f"def get_config(): return ml_collections.ConfigDict(json.loads({json.dumps(plan)!r}))\n"
    )
    return [sys.executable, "-m", "rlhf_jax.main", f"--config={config}", "--track="]


def launch(command, workdir, **options):
    environment = {name: text for name, text in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_ctrl_c_saves_and_a_closed_pipe_and_a_full_disk_are_explained(command, tmp_path):
    workdir = tmp_path / "run"
    process = launch(command, workdir)
    deadline = time.monotonic() + 90
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "press it again to stop at once" in errors
    assert "Traceback" not in errors
    step = checkpoints.latest_step(workdir)
    assert f"pretrain: Ctrl-C. Step {step} of 4000 is saved in" in errors

    # Nobody reads what is printed: the end is quiet.
    process = launch(command, workdir)
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (141, "")
    process.stderr.close()

    # No file may be longer than a checkpoint needs.
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    process = launch(command, workdir, preexec_fn=limit)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "error: the disk is full" in errors
    assert "Traceback" not in errors
    assert checkpoints.latest_step(workdir) == step
