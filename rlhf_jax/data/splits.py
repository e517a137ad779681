"""Choose the records of a split: slices such as `train[:90%]`, by rows or by whole groups.

Pairs of one debate, answers to one question and turns of one conversation resemble each other: with
some of them on both sides of a split by rows, held-out accuracy measures memory. `take_groups`
keeps a group on one side, by a hash of its name: adding, dropping or reordering records moves none.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from rlhf_jax.data.records import Document, LabelledText, R, Record

T = TypeVar("T")


def base_split(split: str) -> str:
    """Return the name of the split that a slice is taken of."""
    return split.partition("[")[0]


def check_split(split: str) -> None:
    """Raise a ValueError for what is neither the name of a split nor a slice of one."""
    if not re.fullmatch(r"\w+(\[\d*%?:\d*%?\])?", split):
        raise ValueError(f"split: {split!r}, expected a name or a slice such as 'train[:90%]'")


def overlap(first: str, second: str) -> bool:
    """Return whether two splits certainly share records; shares and numbers do not compare."""
    if base_split(first) != base_split(second):
        return False
    bounds = [bound for split in (first, second) for bound in _bounds(split)]
    if len({bound.endswith("%") for bound in bounds if bound}) > 1:
        return False
    starts = [float(bound.rstrip("%") or 0) for bound in bounds[::2]]
    stops = [float(bound.rstrip("%") or math.inf) for bound in bounds[1::2]]
    return max(starts) < min(stops)


def take(read: Callable[[], Iterable[T]], split: str) -> Iterable[T]:
    """Return the items of a split such as `train[10%:]` in their order.

    Percentages call `read` twice: once to count the items.
    """
    if "[" not in split:
        return read()
    bounds = _bounds(split)
    total = sum(1 for _ in read()) if any(bound.endswith("%") for bound in bounds) else 0

    def index(bound: str, default: int | None) -> int | None:
        if not bound:
            return default
        return total * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)

    start, stop = bounds
    return islice(read(), index(start, 0), index(stop, None))


def take_groups(records: Iterable[R], split: str, *, by: str, seed: int) -> Iterator[R]:
    """Return the records of the groups that a split such as `train[:90%]` asks for.

    The percentages are expectations over groups: of 32 topics, `train[:80%]` may hold 27.

    Raises:
        ValueError: for a slice in numbers of rows.
    """
    start, stop = _bounds(split)
    for bound in (start, stop):
        if bound and not bound.endswith("%"):
            expected = "expected percentages such as 'train[:90%]'"
            raise ValueError(f"split: {split!r} of groups, {expected}")
    low = int(start[:-1]) / 100 if start else 0.0
    high = int(stop[:-1]) / 100 if stop else 1.0

    def contains(record: R) -> bool:
        return low <= group_position(group_of(record, by), seed=seed) < high

    return filter(contains, records)


def group_position(group: str, *, seed: int) -> float:
    """Return a group's position in [0, 1): the leading 53 bits of SHA-256(seed, group)."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def group_of(record: Record, by: str) -> str:
    """Return the name of a record's group: its `text`, its first `prompt`, or a metadata field.

    All turns of a conversation share the user's first message, so `prompt` keeps a conversation
    whole. A system turn is no part of it: all rows of a file may share one.

    Raises:
        ValueError: if the record has no such field.
    """
    if isinstance(record, Document | LabelledText):
        fields = {"text": record.text}
    else:
        messages = record.messages
        first = messages[messages[0].role == "system"].content
        fields = {"prompt": first, **record.metadata}
    if by not in fields:
        raise ValueError(f"by: {by!r}, expected one of {', '.join(fields)}")
    return fields[by]


def _bounds(split: str) -> tuple[str, str]:
    start, _, stop = split.rstrip("]").partition("[")[2].partition(":")
    return start, stop
