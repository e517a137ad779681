"""Conversations packed several to a row, so that a step costs what its tokens cost.

Rendered conversations differ much in length; padded to one length, most of a batch would be padding. Here those of a batch are
laid into rows, longest first, each into the first row that has room (first-fit decreasing), each a segment of its own that
attends only to itself. Batches of demonstrations all have the rows that the fullest one of the run needs, and so share one
program; those of comparisons, which differ more, have one of a few numbers of rows.

    PackedDemonstrations    tokens_BT, segments_BT, loss_mask_BT
    PackedComparisons       tokens_NT, segments_NT; all pairs of a prompt still meet in one batch element: `row_BC` and
                            `last_BC` say where the last token of every candidate stands

Left out on purpose: splitting a conversation over rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.batches import Batches


class Fit(NamedTuple):
    """Where every item lies."""

    rows: list[int]
    starts: list[int]
    num_rows: int


def first_fit(lengths: Sequence[int], row_length: int) -> Fit:
    """Row and first column of every item, and the number of rows; longest items first, each into the first row with room."""
    room: list[int] = []
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[item]), len(room))
        if row == len(room):
            room.append(row_length)
        rows[item], starts[item] = row, row_length - room[row]
        room[row] -= lengths[item]
    return Fit(rows, starts, len(room))


class InOrder:
    """The examples of `comparison_batches` once each, in their given order, so many to a batch; the last one is filled up with
    masked rows."""

    def __init__(self, batches: Batches, batch_size: int) -> None:
        self.arrays, self.num_examples, self._size = (
            batches.arrays,
            batches.num_examples,
            batch_size,
        )
        self.num_batches = -(-self.num_examples // self._size)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Batch number `step` of `num_batches`."""
        rows = np.arange(step * self._size, (step + 1) * self._size)
        real = rows < self.num_examples
        batch = {name: values[np.where(real, rows, 0)] for name, values in self.arrays.items()}
        return {**batch, "mask_BC": batch["mask_BC"] & real[:, None]}


class PackedDemonstrations:
    """The batches of `demonstration_batches`, packed; with the `others` rows that join them a multiple of `row_multiple`."""

    def __init__(
        self, batches: Batches, *, row_length: int, num_steps: int, others: int, row_multiple: int
    ) -> None:
        """Find the number of rows. Raises ValueError if one demonstration is longer than a row."""
        self._batches, self._row_length = batches, row_length
        _check_fits(batches.arrays["segments_BT"], row_length)
        need = max(
            first_fit(_lengths(batches.batch(step)["segments_BT"]), row_length).num_rows
            for step in range(num_steps)
        )
        self.num_rows = _up_to(need + others, row_multiple) - others

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The packed batch of a step."""
        padded = self._batches.batch(step)
        lengths = _lengths(padded["segments_BT"])
        packed = {
            name: np.zeros((self.num_rows, self._row_length), values.dtype)
            for name, values in padded.items()
        }
        count = [0] * self.num_rows
        fit = first_fit(lengths, self._row_length)
        for item, (row, start, length) in enumerate(
            zip(fit.rows, fit.starts, lengths, strict=True)
        ):
            count[row] += 1
            for name, values in padded.items():
                packed[name][row, start : start + length] = values[item, :length]
            packed["segments_BT"][row, start : start + length] = count[row]
        return packed


def _up_to(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _lengths(segments: np.ndarray) -> list[int]:
    return [int(length) for length in (segments > 0).sum(axis=-1)]


def _check_fits(segments: np.ndarray, row_length: int) -> None:
    longest = int((segments > 0).sum(axis=-1).max())
    if longest > row_length:
        raise ValueError(
            f"row_length: {row_length}, but a rendered conversation has {longest} tokens; raise it"
        )


class _Group(NamedTuple):
    """The candidates (prompt, number) of a micro-batch, their lengths, and where they lie."""

    items: list[tuple[int, int]]
    lengths: list[int]
    fit: Fit


class PackedComparisons:
    """The batches of `comparison_batches`, packed: `tokens_NT`, `segments_NT`, `row_BC`, `last_BC`, and what is per candidate.

    With `num_groups` micro-batches, prompts g, g + G, ... and the rows g, g + G, ... form micro-batch g, and `row_BC` counts
    within it. A batch has the rows of the fullest one, or that number over √2, 2, 2√2, ... where so few are enough: each size
    is a program to compile, and where prompts differ much in their responses most batches are far from full.
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
        """Find the number of rows. Raises ValueError if one response is longer than a row."""
        self._batches, self._row_length, self._num_groups = batches, row_length, num_groups
        _check_fits(batches.arrays["segments_BCT"], row_length)
        need = max(
            group.fit.num_rows
            for step in range(num_steps)
            for group in self._groups(batches.batch(step))
        )
        self.rows_per_group, self._row_multiple = _up_to(need, row_multiple), row_multiple

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The packed batch of a step."""
        padded = self._batches.batch(step)
        groups = self._groups(padded)
        num_rows = self._bucket(max(group.fit.num_rows for group in groups))
        shape = (num_rows * self._num_groups, self._row_length)
        tokens_NT, segments_NT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        row_BC = np.zeros(padded["mask_BC"].shape, np.int32)
        last_BC = np.zeros_like(row_BC)
        for number, (items, lengths, fit) in enumerate(groups):
            count = [0] * num_rows
            for (b, c), length, row, start in zip(
                items, lengths, fit.rows, fit.starts, strict=True
            ):
                count[row] += 1
                where = row * self._num_groups + number
                tokens_NT[where, start : start + length] = padded["tokens_BCT"][b, c, :length]
                segments_NT[where, start : start + length] = count[row]
                row_BC[b, c], last_BC[b, c] = row, start + length - 1
        return {
            "tokens_NT": tokens_NT,
            "segments_NT": segments_NT,
            "row_BC": row_BC,
            "last_BC": last_BC,
            **{name: padded[name] for name in ("length_BC", "rank_BC", "mask_BC")},
        }

    def _groups(self, padded: dict[str, np.ndarray]) -> list[_Group]:
        lengths_BC = (padded["segments_BCT"] > 0).sum(axis=-1)
        items = [(int(b), int(c)) for b, c in np.argwhere(padded["mask_BC"])]
        groups = []
        for number in range(self._num_groups):
            own = [(b, c) for b, c in items if b % self._num_groups == number]
            lengths = [int(lengths_BC[b, c]) for b, c in own]
            groups.append(_Group(own, lengths, first_fit(lengths, self._row_length)))
        return groups

    def _bucket(self, need: int) -> int:
        multiple, most = self._row_multiple, self.rows_per_group
        sizes = (_up_to(math.ceil(most / 2 ** (k / 2)), multiple) for k in range(2 * most))
        return min(size for size in sizes if size >= need)
