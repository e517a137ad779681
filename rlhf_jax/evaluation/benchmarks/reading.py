"""The files of public benchmarks: CSV with named columns and JSON lines, read strictly.

Every row comes with the place it was read from, and whoever reads a field from it names that place when he complains.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data import readers


class Located(NamedTuple):
    """A row and the `file:line` it starts at."""

    where: str
    row: dict[str, Any]


def read_csv(path: str, columns: Sequence[str]) -> list[Located]:
    """All rows of a CSV file with a header line; columns besides those named are kept, too.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column, a row with too few or too many fields, text that is not UTF-8, or no row.
    """
    found: list[Located] = []
    try:
        with _existing(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            missing = [name for name in columns if name not in names]
            if missing:
                raise ValueError(
                    f"{path}:1: no column {', '.join(map(repr, missing))}, found {', '.join(map(repr, names))}"
                )
            line = reader.line_num + 1
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}:{line}: {_width(row)} fields, expected {len(names)} as in the first line"
                    )
                found.append(Located(f"{path}:{line}", row))
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}, expected a CSV file in UTF-8") from error
    return _some(path, found)


def _width(row: dict[Any, Any]) -> int:
    return sum(len(value) if name is None else value is not None for name, value in row.items())


def read_jsonl(path: str) -> list[Located]:
    """All rows of a file with one JSON object a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is not a JSON object, text that is not UTF-8, or no line.
    """
    found = [Located(where, row) for where, row in readers.read_jsonl(_existing(path))]
    for where, row in found:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {type(row).__name__}, expected a JSON object")
    return _some(path, found)


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give the path of the benchmark's file, or '' to leave it out"
        )
    return Path(path)


def _some(path: str, found: list[Located]) -> list[Located]:
    if not found:
        raise ValueError(f"{path}: no rows, expected at least one")
    return found


def text(placed: Located, name: str) -> str:
    """A field that must be text and not blank, without spaces around it."""
    value = field(placed, name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{placed.where}: {name}: {value!r}, expected text that is not empty")
    return value.strip()


def one_of(placed: Located, name: str, known: Sequence[str]) -> str:
    """A field that must be one of a few words."""
    value = field(placed, name)
    if value not in known:
        raise ValueError(f"{placed.where}: {name}: {value!r}, expected one of {', '.join(known)}")
    return value


def share(placed: Located, name: str) -> float | None:
    """A field in [0, 1], None where it is null. ValueError for NaN, which compares like no number, and for anything else."""
    value = field(placed, name)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value <= 1
    ):
        raise ValueError(
            f"{placed.where}: {name}: {value!r}, expected a number from 0 to 1, or null where there is none"
        )
    return float(value)


def field(placed: Located, name: str) -> Any:
    """The value of a field that must be there."""
    if name not in placed.row:
        raise ValueError(
            f"{placed.where}: {name}: missing, found {', '.join(map(str, placed.row))}"
        )
    return placed.row[name]


def inside(placed: Located, name: str) -> Located:
    """A field that must be an object, placed for complaints about its own fields."""
    value = field(placed, name)
    if not isinstance(value, dict):
        raise ValueError(f"{placed.where}: {name}: {type(value).__name__}, expected an object")
    return Located(f"{placed.where}: {name}", value)


def objects(placed: Located, name: str) -> list[Located]:
    """A field that must be a list of objects, at least one."""
    value = field(placed, name)
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise ValueError(f"{placed.where}: {name}: expected a list of objects, at least one")
    return [Located(f"{placed.where}: {name}[{k}]", one) for k, one in enumerate(value)]
