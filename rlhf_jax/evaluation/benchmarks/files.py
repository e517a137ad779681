"""Read the files of public benchmarks strictly: CSV with named columns, and JSON lines.

Every row comes with the `file:line` where it starts, and an error about one of its fields names
that place.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.data import readers


class LocatedRow(NamedTuple):
    """Hold a row and the `file:line` where it starts, which every error of its methods names."""

    where: str
    fields: dict[str, Any]

    def field(self, name: str) -> Any:
        """Return the value of a field that must be there."""
        if name not in self.fields:
            present_names = ", ".join(map(str, self.fields))
            raise ValueError(f"{self.where}: {name}: missing, found {present_names}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """Return a text that must not be blank, without the spaces around it."""
        value = self.field(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, value, "text that is not empty")
        return value.strip()

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """Return a value that must be one of the allowed ones."""
        value = self.field(name)
        if value not in allowed:
            raise self.error(name, value, f"one of {', '.join(allowed)}")
        return value

    def share(self, name: str) -> float | None:
        """Return a number in [0, 1], or None where it is null; NaN and true are no numbers."""
        value = self.field(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not 0 <= value <= 1:
            raise self.error(name, value, "a number from 0 to 1, or null where there is none")
        return float(value)

    def object(self, name: str) -> "LocatedRow":
        """Return an object, which names this field too when one of its own is wrong."""
        value = self.field(name)
        if not isinstance(value, dict):
            raise ValueError(f"{self.where}: {name}: {type(value).__name__}, expected an object")
        return LocatedRow(f"{self.where}: {name}", value)

    def objects(self, name: str) -> list["LocatedRow"]:
        """Return the objects of a list that must have at least one."""
        value = self.field(name)
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise ValueError(f"{self.where}: {name}: expected a list of objects, at least one")
        return [LocatedRow(f"{self.where}: {name}[{k}]", item) for k, item in enumerate(value)]

    def error(self, name: str, value: Any, expected: str) -> ValueError:
        """Return the error that says which field has which value and what was expected."""
        return ValueError(f"{self.where}: {name}: {value!r}, expected {expected}")


def read_csv(path: str, columns: Sequence[str]) -> list[LocatedRow]:
    """Read all rows of a CSV file with a header line that has the named columns and may have more.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column, a row with too few or too many fields, text that is not
            UTF-8, or no row.
    """
    rows: list[LocatedRow] = []
    try:
        with check_exists(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names = reader.fieldnames or []
            missing_names = ", ".join(repr(name) for name in columns if name not in names)
            if missing_names:
                present_names = ", ".join(map(repr, names))
                raise ValueError(f"{path}:1: no column {missing_names}, found {present_names}")
            line = reader.line_num + 1
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}:{line}: {_num_fields(row)} fields, expected {len(names)} as in "
                        "the first line"
                    )
                rows.append(LocatedRow(f"{path}:{line}", row))
                line = reader.line_num + 1
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}, expected a CSV file in UTF-8") from error
    return _check_not_empty(path, rows)


def _num_fields(row: dict[Any, Any]) -> int:
    """Return how many fields a line had; DictReader has more under None, and None for too few."""
    return sum(len(value) if name is None else value is not None for name, value in row.items())


def read_jsonl(path: str) -> list[LocatedRow]:
    """Read all rows of a file with one JSON object a line.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is not a JSON object, text that is not UTF-8, or no line.
    """
    rows = [LocatedRow(where, row) for where, row in readers.read_jsonl(check_exists(path))]
    for row in rows:
        if not isinstance(row.fields, dict):
            raise ValueError(f"{row.where}: {type(row.fields).__name__}, expected a JSON object")
    return _check_not_empty(path, rows)


def check_exists(path: str) -> Path:
    """Return the path of a benchmark's file. Raises FileNotFoundError if there is no such file."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give the path of the benchmark's file, or leave the benchmark "
            "out"
        )
    return Path(path)


def _check_not_empty(path: str, rows: list[LocatedRow]) -> list[LocatedRow]:
    if not rows:
        raise ValueError(f"{path}: no rows, expected at least one")
    return rows
