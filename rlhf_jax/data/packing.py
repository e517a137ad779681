"""Pack several conversations into a row, so that a step costs what its tokens cost.

The conversations of a batch, which differ much in length, are packed into rows, longest first, each
into the first row that has room (first-fit decreasing). Each is a segment of its own that attends
only to itself. Batches of demonstrations all have the number of rows that the fullest one of the
run needs, and so share one program; those of comparisons have one of a few numbers of rows.

Left out on purpose: splitting a conversation over rows. Samples, whose lengths are known only
inside a step, are packed by `inference.packing`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.batches import Batches


class Fit(NamedTuple):
    """Hold the row and the first column of every item, and the number of rows."""

    rows: list[int]
    starts: list[int]
    num_rows: int


def first_fit(lengths: Sequence[int], row_length: int) -> Fit:
    """Assign every item to a row: longest first, each into the first row that has room."""
    room: list[int] = []
    rows = [0] * len(lengths)
    starts = [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[item]), len(room))
        if row == len(room):
            room.append(row_length)
        rows[item] = row
        starts[item] = row_length - room[row]
        room[row] -= lengths[item]
    return Fit(rows, starts, len(room))


class InOrder:
    """Give the examples of `comparison_batches` once each, in order, a fixed number to a batch.

    The last batch is filled up with masked rows.
    """

    def __init__(self, batches: Batches, batch_size: int) -> None:
        self.arrays = batches.arrays
        self.num_examples = batches.num_examples
        self.num_batches = -(-self.num_examples // batch_size)
        self._batch_size = batch_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return batch number `step` of `num_batches`."""
        rows = np.arange(step * self._batch_size, (step + 1) * self._batch_size)
        real = rows < self.num_examples
        batch = {name: values[np.where(real, rows, 0)] for name, values in self.arrays.items()}
        return {**batch, "mask_BC": batch["mask_BC"] & real[:, None]}


class PackedDemonstrations:
    """Pack the batches of `demonstration_batches`."""

    def __init__(
        self, batches: Batches, *, row_length: int, num_steps: int, others: int, row_multiple: int
    ) -> None:
        """Find the number of rows that every batch of the run gets.

        With the `others` rows that are added to a batch it is a multiple of `row_multiple`.

        Raises:
            ValueError: if one demonstration is longer than a row.
        """
        self._batches = batches
        self._row_length = row_length
        _check_fits(batches.arrays["segments_BT"], row_length)
        segments = (batches.batch(step)["segments_BT"] for step in range(num_steps))
        needed = max(first_fit(_lengths(each), row_length).num_rows for each in segments)
        self.num_rows = _round_up(needed + others, row_multiple) - others

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the packed batch of a step."""
        padded = self._batches.batch(step)
        lengths = _lengths(padded["segments_BT"])
        fit = first_fit(lengths, self._row_length)
        shape = (self.num_rows, self._row_length)
        packed = {name: np.zeros(shape, values.dtype) for name, values in padded.items()}
        num_segments = [0] * self.num_rows
        for item, row in enumerate(fit.rows):
            num_segments[row] += 1
            columns = slice(fit.starts[item], fit.starts[item] + lengths[item])
            for name, values in padded.items():
                packed[name][row, columns] = values[item, : lengths[item]]
            packed["segments_BT"][row, columns] = num_segments[row]
        return packed


class _Group(NamedTuple):
    """Hold the candidates (prompt, number) of a micro-batch, their lengths and their rows."""

    candidates: list[tuple[int, int]]
    lengths: list[int]
    fit: Fit


class PackedComparisons:
    """Pack the batches of `comparison_batches`.

    A batch has `tokens_NT`, `segments_NT`, the row and the column `row_BC`, `last_BC` of every
    candidate's last token, and the padded batch's arrays of one element per candidate. With G
    micro-batches, the prompts g, g + G, ... and the rows g, g + G, ... form micro-batch g, and
    `row_BC` counts within it.

    A batch has the rows of the fullest one, or that number over √2, 2, 2√2, ... where this
    suffices: each size is a program to compile, but most batches are far from full.
    """

    def __init__(
        self,
        batches: Batches | InOrder,
        *,
        row_length: int,
        num_steps: int,
        num_groups: int,
        row_multiple: int,
    ) -> None:
        """Find the number of rows of the fullest batch.

        Raises:
            ValueError: if one response with its prompt is longer than a row.
        """
        self._batches = batches
        self._row_length = row_length
        self._num_groups = num_groups
        self._row_multiple = row_multiple
        _check_fits(batches.arrays["segments_BCT"], row_length)
        steps = (self._groups(batches.batch(step)) for step in range(num_steps))
        needed = max(group.fit.num_rows for groups in steps for group in groups)
        self.rows_per_group = _round_up(needed, row_multiple)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the packed batch of a step."""
        padded = self._batches.batch(step)
        groups = self._groups(padded)
        num_rows = self._bucket(max(group.fit.num_rows for group in groups))
        shape = (num_rows * self._num_groups, self._row_length)
        tokens_NT = np.zeros(shape, np.int32)
        segments_NT = np.zeros(shape, np.int32)
        row_BC = np.zeros(padded["mask_BC"].shape, np.int32)
        last_BC = np.zeros_like(row_BC)
        for number, group in enumerate(groups):
            num_segments = [0] * num_rows
            for item, (b, c) in enumerate(group.candidates):
                row = group.fit.rows[item]
                start = group.fit.starts[item]
                length = group.lengths[item]
                num_segments[row] += 1
                n = row * self._num_groups + number
                tokens_NT[n, start : start + length] = padded["tokens_BCT"][b, c, :length]
                segments_NT[n, start : start + length] = num_segments[row]
                row_BC[b, c] = row
                last_BC[b, c] = start + length - 1
        kept = {name: padded[name] for name in ("length_BC", "rank_BC", "mask_BC")}
        rows = {"tokens_NT": tokens_NT, "segments_NT": segments_NT}
        return {**rows, "row_BC": row_BC, "last_BC": last_BC, **kept}

    def _groups(self, padded: dict[str, np.ndarray]) -> list[_Group]:
        lengths_BC = (padded["segments_BCT"] > 0).sum(axis=-1)
        candidates = [(int(b), int(c)) for b, c in np.argwhere(padded["mask_BC"])]
        groups = []
        for number in range(self._num_groups):
            own = [(b, c) for b, c in candidates if b % self._num_groups == number]
            lengths = [int(lengths_BC[b, c]) for b, c in own]
            groups.append(_Group(own, lengths, first_fit(lengths, self._row_length)))
        return groups

    def _bucket(self, needed: int) -> int:
        """Return the smallest of the sizes that holds `needed` rows."""
        largest = self.rows_per_group
        steps = [math.ceil(largest / 2 ** (k / 2)) for k in range(2 * largest)]
        sizes = [_round_up(step, self._row_multiple) for step in steps]
        return min(size for size in sizes if size >= needed)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _lengths(segments: np.ndarray) -> list[int]:
    return [int(length) for length in (segments > 0).sum(axis=-1)]


def _check_fits(segments: np.ndarray, row_length: int) -> None:
    longest = int((segments > 0).sum(axis=-1).max())
    if longest > row_length:
        problem = f"a rendered conversation has {longest} tokens"
        raise ValueError(f"row_length: {row_length}, but {problem}; raise it")
