"""Write files and folders that are whole whenever they are there, and read JSON by name.

A process may be killed, and a disk be full, between any two bytes. So whatever is read again later
is written under another name beside its own, brought to the disk and renamed: `aside` is the only
way in which this package writes what it reads. (Rows that are appended are the exception: of them
the last line may be half there, and is dropped.)
"""

import errno
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SUFFIX = ".unfinished"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield a name for a file or a folder that becomes `path` when the body has written it.

    A file replaces the one that is there; a folder must not be there yet.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + _SUFFIX)
    remove(unfinished)
    try:
        yield unfinished
        for part in [unfinished, *unfinished.rglob("*")] if unfinished.is_dir() else [unfinished]:
            _sync(part)
    except Exception:
        remove(unfinished)  # above all on a full disk
        raise
    unfinished.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk: else a crash may keep the name alone."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system syncs folders
            raise
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, also one of a library that writes files itself, is of a full disk."""
    is_named = any(os.strerror(number) in str(error) for number in _FULL)
    return is_named or (isinstance(error, OSError) and error.errno in _FULL)


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it."""
    with aside(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write a JSON file aside and rename it."""
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines aside and rename the file."""
    with aside(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object; names the file and the remedy.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing; {remedy}") from error
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if path.stat().st_size == 0 else str(error)
        raise ValueError(f"{path}: damaged ({reason}); {remedy}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: damaged (a {type(content).__name__}, not an object); {remedy}")
    return content


def json_checksum(content: Any) -> str:
    """Return the CRC-32 of the JSON with sorted keys."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def file_checksum(path: Path) -> dict[str, Any]:
    """Return the size of a file and the CRC-32 of its bytes, as JSON keeps them."""
    crc = size = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return {"bytes": size, "crc32": f"{crc:08x}"}


def check_file(path: Path, written: Mapping[str, Any], remedy: str) -> None:
    """Refuse a file that is not the one whose `file_checksum` was `written`.

    Raises:
        ValueError: names the file, both checksums and the remedy.
    """
    there = file_checksum(path) if path.is_file() else "nothing"
    if there != dict(written):
        raise ValueError(f"{path} was written as {dict(written)}, but holds {there}; {remedy}")
