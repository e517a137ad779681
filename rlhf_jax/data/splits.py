"""Which records belong to a split: slices such as `train[:90%]`, and splits that never divide a group.

Pairs of one debate, answers to one question and turns of one conversation resemble each other. A split by row puts some of
them on both sides, and the held-out accuracy then measures memory. `split_by` draws whole groups, by a hash of the group's
name and nothing else: adding, dropping or reordering records moves no group to the other side.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import TypeVar

from rlhf_jax.data.records import Document, LabelledText, R, Record

T = TypeVar("T")


def base(split: str) -> str:
    """The name of the split that a slice is taken of."""
    return split.partition("[")[0]


def check(split: str) -> None:
    """Refuse what is neither a name nor a slice."""
    if not re.fullmatch(r"\w+(\[\d*%?:\d*%?\])?", split):
        raise ValueError(f"split: {split!r}, expected a name or a slice such as 'train[:90%]'")


def overlap(one: str, other: str) -> bool:
    """Whether two splits certainly share records; a slice in per cent is not compared with one in numbers."""
    if base(one) != base(other):
        return False
    bounds = [bound for split in (one, other) for bound in _bounds(split)]
    if len({bound.endswith("%") for bound in bounds if bound}) > 1:
        return False
    edges = [
        float(bound.rstrip("%")) if bound else (0.0, math.inf)[k % 2]
        for k, bound in enumerate(bounds)
    ]
    return max(edges[0], edges[2]) < min(edges[1], edges[3])


def take(read: Callable[[], Iterable[T]], split: str) -> Iterable[T]:
    """The items that a split such as `train[10%:]` asks for, in their order; percentages read them twice, to count them."""
    if "[" not in split:
        return read()
    bounds = _bounds(split)
    total = sum(1 for _ in read()) if any(bound.endswith("%") for bound in bounds) else 0

    def place(bound: str, default: int | None) -> int | None:
        if not bound:
            return default
        return total * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)

    start, stop = bounds
    return islice(read(), place(start, 0), place(stop, None))


def take_groups(records: Iterable[R], split: str, *, by: str, seed: int) -> Iterator[R]:
    """The records whose group's position lies within the percentages of a split such as `train[:90%]`."""
    start, stop = _bounds(split)
    for bound in (start, stop):
        if bound and not bound.endswith("%"):
            raise ValueError(
                f"split: {split!r} of groups, expected percentages such as 'train[:90%]'"
            )
    low, high = (
        int(bound[:-1]) / 100 if bound else default
        for bound, default in ((start, 0.0), (stop, 1.0))
    )
    return (
        record
        for record in records
        if low <= group_position(group_of(record, by), seed=seed) < high
    )


def split_by(
    records: Sequence[T], key: Callable[[T], str], *, fractions: Sequence[float], seed: int
) -> list[list[T]]:
    """One list for every fraction; a group, all records with the same key, is in exactly one of them.

    The fractions are expectations over groups: 32 topics split 80/10/10 may come out 27/2/3.

    Raises:
        ValueError: if the fractions do not add up to 1.
    """
    if not math.isclose(sum(fractions), 1.0) or min(fractions) < 0:
        raise ValueError(f"fractions: {list(fractions)} add up to {sum(fractions)}, expected 1")
    edges = [0.0, *accumulate(fractions)]
    edges[-1] = 1.0
    positions = [group_position(key(record), seed=seed) for record in records]
    return [
        [record for record, u in zip(records, positions, strict=True) if low <= u < high]
        for low, high in pairwise(edges)
    ]


def group_position(key: str, *, seed: int) -> float:
    """A group's place in [0, 1): the leading 53 bits of SHA-256(seed, key)."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def group_of(record: Record, by: str) -> str:
    """The name of a record's group: its `text`, the first words of its `prompt`, or a field of its metadata.

    All turns of a conversation share their first message, so `prompt` keeps a conversation on one side.

    Raises:
        ValueError: if the record has no such field.
    """
    if isinstance(record, Document | LabelledText):
        fields = {"text": record.text}
    else:
        fields = {"prompt": record.messages[0].content, **getattr(record, "metadata", {})}
    if by not in fields:
        raise ValueError(f"by: {by!r}, expected one of {', '.join(fields)}")
    return fields[by]


def _bounds(split: str) -> tuple[str, str]:
    start, _, stop = split.rstrip("]").partition("[")[2].partition(":")
    return start, stop
