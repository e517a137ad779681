"""Pack several examples into one row, inside a compiled step.

    row_B, start_B = first_fit(length_B)        longest first, each into the first row that has room
    every example becomes a segment of its own, so it is read as if it stood alone

The plain version reads one example per row, and pays for the padding of all that are shorter than
the longest; packed, a pass over the model costs what the real tokens cost. The number of rows must
be known before compiling: ask `rows_needed`, then round up to one of few sizes (`row_bucket`).
`Texts` carry that number, so that nothing between the choice and the packing mentions it.

Left out on purpose: splitting an example over rows. What is known before the run is packed on the
host (data/packing.py).
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

_SIZES = 8  # as many numbers of rows are compiled for at most
_SMALLEST_STEP = 4  # between two of these numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Texts:
    """Hold prompts (left-padded), their responses (right-padded), and how many rows to pack into.

    `num_rows` 0 packs nothing. It is part of the type that JAX compiles for, not an array.
    """

    prompt_BP: jax.Array
    prompt_mask_BP: jax.Array
    response_BR: jax.Array
    mask_BR: jax.Array  # of the response
    num_rows: int = field(default=0, metadata={"static": True})

    @property
    def length_B(self) -> jax.Array:
        """Return the number of real tokens of every text, prompt and response together."""
        return self.prompt_mask_BP.sum(axis=1) + self.mask_BR.sum(axis=1)

    def rows(self) -> tuple[jax.Array, jax.Array]:
        """Return (tokens_BT, segments_BT): one row per text, the response behind its prompt."""
        tokens_BT = jnp.concatenate([self.prompt_BP, self.response_BR], axis=1)
        segments_BT = jnp.concatenate([self.prompt_mask_BP, self.mask_BR], axis=1)
        return tokens_BT, segments_BT.astype(jnp.int32)

    def packed(self, num_rows: int) -> "Texts":
        """Return the same texts, to be read in so many packed rows."""
        return replace(self, num_rows=num_rows)


class Packed(NamedTuple):
    """Hold N packed rows; column t of example b stands in row `row_B`, column t + `shift_B`."""

    tokens_NT: jax.Array
    segments_NT: jax.Array
    row_B: jax.Array
    shift_B: jax.Array

    def read(self, x_NT: jax.Array, column_BR: jax.Array) -> jax.Array:
        """Return what stands at these columns of the unpacked rows; anything for padding."""
        column_BR = jnp.clip(column_BR + self.shift_B[:, None], 0, self.tokens_NT.shape[1] - 1)
        return x_NT[self.row_B[:, None], column_BR]


def first_fit(length_B: jax.Array, row_length: int) -> tuple[jax.Array, jax.Array]:
    """Return row and first column of every example: first-fit decreasing, ties in their order.

    No length is larger than `row_length`.
    """
    order_B = jnp.argsort(-length_B, stable=True)

    def lay(room_N: jax.Array, length: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        row = jnp.argmax(room_N >= length)
        return room_N.at[row].add(-length), (row, row_length - room_N[row])

    empty_N = jnp.full(length_B.shape, row_length, length_B.dtype)
    _, (sorted_row_B, sorted_start_B) = jax.lax.scan(lay, empty_N, length_B[order_B])
    row_B = jnp.zeros_like(sorted_row_B).at[order_B].set(sorted_row_B)
    start_B = jnp.zeros_like(sorted_start_B).at[order_B].set(sorted_start_B)
    return row_B, start_B


def rows_needed(length_B: jax.Array, row_length: int) -> jax.Array:
    """Return the number of rows that `first_fit` uses."""
    return first_fit(length_B, row_length)[0].max() + 1


def row_bucket(needed: int, batch: int, multiple: int) -> int:
    """Return the number of rows to compile for, or 0 if packing saves none.

    It is one of at most eight numbers, and a multiple of `multiple` (the batch's shards).
    """
    step = max(-(-batch // _SIZES), _SMALLEST_STEP)
    step = -(-step // multiple) * multiple
    rows = -(-needed // step) * step
    return rows if rows < batch else 0


def pack(tokens_BT: jax.Array, segments_BT: jax.Array, num_rows: int) -> Packed:
    """Pack rows of one run of real tokens each (`segments_BT` > 0) into `num_rows` rows.

    `num_rows` is at least `rows_needed`.
    """
    time = tokens_BT.shape[1]
    real_BT = segments_BT > 0
    row_B, start_B = first_fit(real_BT.sum(axis=1), time)
    shift_B = start_B - jnp.argmax(real_BT, axis=1)
    # Padding goes to a column beyond the last, which mode="drop" leaves out.
    column_BT = jnp.where(real_BT, jnp.arange(time)[None, :] + shift_B[:, None], time)

    def lay(x_BT: jax.Array) -> jax.Array:
        empty_NT = jnp.zeros((num_rows, time), x_BT.dtype)
        return empty_NT.at[row_B[:, None], column_BT].set(x_BT, mode="drop")

    # An example is named by its first column: positive, and growing along the row.
    segment_BT = jnp.broadcast_to(start_B[:, None] + 1, tokens_BT.shape).astype(segments_BT.dtype)
    return Packed(lay(tokens_BT), lay(segment_BT), row_B, shift_B)
