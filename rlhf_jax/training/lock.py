"""Let one run at a time write into a folder: two destroy each other's files.

    WORKDIR/lock.json   {"host", "pid", "started"} of the run that is writing; it goes with the run

The kernel lets go of the lock when its process ends, however that ends, so a killed run is in
nobody's way. File systems that hosts share may not carry a lock from one to the other: therefore
the run touches its file every few seconds, and a run of another host counts as gone when the file
has not been touched for a minute. The times compared are both the file system's.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_jax.training.processes import is_main_process

LOCK = "lock.json"
_TOUCH_SECONDS, _SILENT_SECONDS = 10.0, 60.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder while the body runs; of several processes the first does.

    Raises:
        ValueError: another run is at work there; names its host, process and start.
    """
    if not is_main_process():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    descriptor = _take(path)
    over = threading.Event()
    toucher = threading.Thread(target=_touch, args=(descriptor, over), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        over.set()
        toucher.join()
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _take(path: Path) -> int:
    """Return the descriptor of the locked file, which holds this process's name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            holder = _holder(path)
            if not _try_lock(descriptor, holder):
                raise ValueError(_in_use(path, holder))
            if holder.get("host") not in (None, socket.gethostname()):
                _wait_for_silence(path, holder)
            # Between opening and locking, its last owner may have removed it.
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                started = time.strftime("%Y-%m-%d %H:%M:%S %Z")
                mine = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(mine).encode() + b"\n", 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _holder(path: Path) -> dict[str, Any]:
    """Return who is named in the file: nobody where it is empty or cannot be read."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, OSError):
        return {}
    return content if isinstance(content, dict) else {}


def _try_lock(descriptor: int, holder: dict[str, Any]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return holder.get("host") != socket.gethostname() or not _is_alive(holder.get("pid"))
    return True


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return int(pid) != os.getpid()


def _wait_for_silence(path: Path, holder: dict[str, Any]) -> None:
    """Wait until the file has not been touched for long enough; ValueError if it is touched."""
    touched = path.stat().st_mtime
    silent = _now_of(path.parent) - touched
    if silent < _SILENT_SECONDS:
        print(
            f"   {path} names process {holder.get('pid')} on {holder.get('host')}, and was touched "
            f"{max(silent, 0):.0f} s ago: waiting for {_SILENT_SECONDS:.0f} s of silence",
            file=sys.stderr,
            flush=True,
        )
    end = time.monotonic() + _SILENT_SECONDS - max(silent, 0)
    while time.monotonic() < end:
        time.sleep(min(1.0, _SILENT_SECONDS / 10))
        if path.exists() and path.stat().st_mtime != touched:
            raise ValueError(_in_use(path, holder))


def _now_of(folder: Path) -> float:
    """Return the time by the clock that stamps the folder's files."""
    path = folder / f".clock-{socket.gethostname()}-{os.getpid()}"
    path.write_bytes(b"")
    now = path.stat().st_mtime
    path.unlink()
    return now


def _touch(descriptor: int, over: threading.Event) -> None:
    while not over.wait(_TOUCH_SECONDS):
        os.utime(descriptor)


def _in_use(path: Path, holder: dict[str, Any]) -> str:
    names = {name: holder.get(name, "unknown") for name in ("pid", "host", "started")}
    return (
        f"{path.parent} is in use by process {names['pid']} on {names['host']} since "
        f"{names['started']}: two runs in one folder destroy each other's files. Wait for that one "
        "or end it, or use another --workdir; once it is gone this command goes on by itself"
    )
