"""What a compiled program asks of each device: memory, operations, and what it sends, read from XLA's own account.

    compiled = jax.jit(step).lower(*abstract).compile()        shapes and shardings are enough, no array exists
    collectives(compiled)   ->  [Collective("all-gather", "f32[64,160]", 40960), …]

Left out on purpose: trip counts. A loop's body counts once, so give a program without loops.
"""

import re
from typing import Any, NamedTuple

_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_LINE = re.compile(rf"= (\(?[a-z0-9]+\[.*?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z0-9]+)\[([0-9,]*)\]")


class Collective(NamedTuple):
    """One array that devices exchange: the operation, the array's type as a device sees the result, and its bytes."""

    kind: str
    array: str
    num_bytes: int


def collectives(compiled: Any) -> list[Collective]:
    """Every collective of a compiled program, one entry for every array of those that combine several."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := _LINE.search(line):
            arrays = _ARRAY.findall(match[1])
            found += [Collective(match[2], f"{dtype}[{shape}]", _size(dtype, shape)) for dtype, shape in arrays]
    return found


def _size(dtype: str, shape: str) -> int:
    size = _ITEM_BYTES[dtype]
    for length in shape.split(",") if shape else []:
        size *= int(length)
    return size
