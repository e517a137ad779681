"""Read the files of public benchmarks strictly: CSV with named columns, and JSON lines.

A function of one row makes a question of it, with the readers of fields here and in
`data.public.rows`; whatever it finds wrong is named with the `file:line` where the row starts.
"""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlhf_jax.data import readers
from rlhf_jax.data.public import rows
from rlhf_jax.data.public.rows import Located, Row

Item = TypeVar("Item")


def text(row: Row, path: str) -> str:
    """Return a text that must not be blank, without the spaces around it."""
    value = rows.field(row, path)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}: {value!r}, expected text that is not empty")
    return value.strip()


def share(row: Row, path: str) -> float | None:
    """Return a number in [0, 1], or None where it is null; NaN and true are no numbers."""
    value = rows.field(row, path)
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= 1:
        expected = "a number from 0 to 1, or null where there is none"
        raise ValueError(f"{path}: {value!r}, expected {expected}")
    return float(value)


def read_csv(path: str, columns: Sequence[str], convert: Callable[[Row], Item]) -> list[Item]:
    """Read all rows of a CSV file with a header line that has the named columns and may have more.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a missing column, a row with too few or too many fields, text that is not
            UTF-8, no row, or what is wrong with one.
    """
    try:
        with check_exists(path).open(encoding="utf-8-sig", newline="") as file:
            located = list(_csv_rows(path, csv.DictReader(file, strict=True), columns))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}, expected a CSV file in UTF-8") from error
    return _convert(path, located, convert)


def _csv_rows(
    path: str, reader: "csv.DictReader[str]", columns: Sequence[str]
) -> Iterator[Located]:
    names = reader.fieldnames or []
    missing = ", ".join(repr(name) for name in columns if name not in names)
    if missing:
        raise ValueError(f"{path}:1: no column {missing}, found {', '.join(map(repr, names))}")
    line = reader.line_num + 1
    for row in reader:
        # More fields than names stand under None, and of fewer the last ones are None.
        more: Any = row.pop(None, [])
        num_fields = len(more) + sum(value is not None for value in row.values())
        if num_fields != len(names):
            expected = f"expected {len(names)} as in the first line"
            raise ValueError(f"{path}:{line}: {num_fields} fields, {expected}")
        yield Located(f"{path}:{line}", row)
        line = reader.line_num + 1


def read_jsonl(path: str, convert: Callable[[Row], Item]) -> list[Item]:
    """Read all rows of a file with one JSON object a line.

    Raises:
        FileNotFoundError, ValueError: as `read_csv`, for a line that is not a JSON object, too.
    """
    return _convert(path, readers.read_jsonl(check_exists(path)), convert)


def _convert(path: str, located: Iterable[Located], convert: Callable[[Row], Item]) -> list[Item]:
    items = []
    for where, row in located:
        if not isinstance(row, dict):
            raise ValueError(f"{where}: {type(row).__name__}, expected a JSON object")
        try:
            items.append(convert(row))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    if not items:
        raise ValueError(f"{path}: no rows, expected at least one")
    return items


def check_exists(path: str) -> Path:
    """Return the path of a benchmark's file. Raises FileNotFoundError if there is no such file."""
    if not Path(path).is_file():
        remedy = "give the path of the benchmark's file, or leave the benchmark out"
        raise FileNotFoundError(f"{path}: no such file; {remedy}")
    return Path(path)
