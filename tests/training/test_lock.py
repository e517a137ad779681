"""One run at a time writes into a folder; one that is gone is in nobody's way, on any host."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
from tests_support import ROOT

from rlhf_jax.training import lock
from rlhf_jax.training.lock import LOCK, locked

HERE = socket.gethostname()


def enter(folder):
    with locked(folder):
        return json.loads((folder / LOCK).read_text())


def write_holder(folder, host=HERE, pid=1):
    (folder / LOCK).write_text(json.dumps({"host": host, "pid": pid, "started": "today"}))


def test_a_second_run_in_a_folder_is_refused_and_a_later_one_is_not(tmp_path):
    with locked(tmp_path / "run"):
        holder = json.loads((tmp_path / "run" / LOCK).read_text())
        assert (holder["host"], holder["pid"]) == (HERE, os.getpid())
        message = (
            rf"run is in use by process {os.getpid()} on {HERE} since {holder['started'][:10]}"
        )
        with pytest.raises(ValueError, match=message):
            enter(tmp_path / "run")
        enter(tmp_path / "another")
    assert not (tmp_path / "run" / LOCK).exists()
    enter(tmp_path / "run")


def test_a_run_that_fails_lets_go(tmp_path):
    def fail():
        with locked(tmp_path):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    enter(tmp_path)


def test_a_killed_process_is_in_nobodys_way(tmp_path):
    code = (
        "import sys, time, pathlib; from rlhf_jax.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match=f"in use by process {process.pid} on {HERE}"):
        enter(tmp_path)
    process.kill()
    process.communicate()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == process.pid
    assert enter(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00"])
def test_a_file_that_names_nobody_is_nobodys(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    assert enter(tmp_path)["pid"] == os.getpid()


def test_a_run_of_another_host_that_was_silent_for_long_is_gone(tmp_path, capsys):
    write_holder(tmp_path, host="elsewhere")
    os.utime(tmp_path / LOCK, (time.time() - 3600,) * 2)
    assert enter(tmp_path)["host"] == HERE
    assert capsys.readouterr().err == ""


def test_a_run_of_another_host_that_becomes_silent_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_SILENT_SECONDS", 0.3)
    write_holder(tmp_path, host="elsewhere", pid=77)
    began = time.monotonic()
    assert enter(tmp_path)["host"] == HERE
    assert 0.2 < time.monotonic() - began < 5
    assert "names process 77 on elsewhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_host_that_is_alive_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SILENT_SECONDS", 2.0)
    write_holder(tmp_path, host="elsewhere", pid=77)
    alive = threading.Timer(0.3, lambda: os.utime(tmp_path / LOCK, (1, 1)))
    alive.start()
    with pytest.raises(ValueError, match="in use by process 77 on elsewhere since today"):
        enter(tmp_path)
    alive.join()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == 77


def test_where_the_file_system_has_no_locks_the_process_is_looked_for(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    write_holder(tmp_path, pid=os.getppid())
    with pytest.raises(ValueError, match=f"in use by process {os.getppid()}"):
        enter(tmp_path)
    write_holder(tmp_path, pid=2**22 + 1)  # beyond Linux's largest
    enter(tmp_path)


def test_a_run_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_TOUCH_SECONDS", 0.02)
    with locked(tmp_path):
        os.utime(tmp_path / LOCK, (1, 1))
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / LOCK).stat().st_mtime > 1
