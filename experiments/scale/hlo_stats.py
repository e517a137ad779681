"""Read from XLA what a compiled program asks of each device: memory, and what it sends.

    compiled = jax.jit(step).lower(*abstract).compile()    shapes and shardings are enough
    collectives(compiled)  ->  [Collective("all-gather", "f32[64,160]", 40960, times=1, group=8), …]
    measure(mesh, step, (state,), (batch,))  ->  bytes beside the state, and bytes received

Left out on purpose: loops whose length only the data decide. Their body counts once.
"""

import math
import re
import sys
from collections import defaultdict
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.training.mesh import on_mesh

# Neither changes what XLA lays out; only the machine code, which nobody runs, is made faster.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
# Order operations by memory and not by what cores can do side by side, and do not write out what
# the CPU's matrix library needs whole (biases as large as what they are added to): what compilers
# for GPU and TPU do not do either.
LIKE_AN_ACCELERATOR = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_cpu_experimental_ynn_fusion_type": "",
}
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2}
_ITEM_BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_LINE = re.compile(rf"= (\(?[a-z0-9]+\[.*?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z0-9]+)\[([0-9,]*)\]")
# Who exchanges: [groups,members of each], {{members},…}, or mesh['axis'=size,…] {'axis',…}, the
# axes along which.
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\}|mesh\[([^\]]*)\][^{]*\{([^}]*)\})"
)
_AXIS = re.compile(r"('\w+')(?:=|:\(\d+\))?(\d*)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(body|calls|to_apply|\w+_computations?)=\{?(%[\w.-]+(?:, %[\w.-]+)*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def bytes_on_a_device(tree: Any) -> float:
    """Return the bytes that abstract arrays take on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        whole, sharding = leaf.shape, leaf.sharding
        shape = whole if sharding is None else sharding.shard_shape(whole)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def measure(
    mesh: Mesh, function: Any, resident: tuple[Any, ...], passing: tuple[Any, ...]
) -> np.ndarray:
    """Return what a call takes on a device beside its resident arguments, and bytes received."""
    print(".", end="", file=sys.stderr, flush=True)
    with on_mesh(mesh):
        compiled = function.lower(*resident, *passing).compile({**QUICKLY, **LIKE_AN_ACCELERATOR})
    stats = compiled.memory_analysis()
    held = stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    held += bytes_on_a_device(passing)
    received = sum(collective.received for collective in collectives(compiled))
    return np.array([held, received], float)


class Collective(NamedTuple):
    """Describe an array that devices exchange: the operation, and the result as a device sees it.

    It happens `times` times in a call, among `group` devices (a permute: between two).
    """

    kind: str
    array: str
    num_bytes: int
    times: int
    group: int

    @property
    def received(self) -> float:
        """Bytes that arrive at each device in a call, round a ring (Patarasuk & Yuan 2009)."""
        others = {
            "all-reduce": 2 * (self.group - 1) / self.group,
            "reduce-scatter": self.group - 1,
            "collective-permute": 1,
        }
        return self.times * self.num_bytes * others.get(self.kind, (self.group - 1) / self.group)


def collectives(compiled: Any) -> list[Collective]:
    """Return every collective of a compiled program, one for each array of a combined one."""
    computations = _computations(compiled.as_text())
    times = _times(computations)
    exchanges = []
    for name, lines in computations.items():
        for line in lines:
            if match := _LINE.search(line):
                kind = match[2]
                group = 1 if kind == "collective-permute" else _group_size(line)
                for dtype, shape in _ARRAY.findall(match[1]):
                    array, size = f"{dtype}[{shape}]", _size(dtype, shape)
                    exchanges.append(Collective(kind, array, size, times[name], group))
    return exchanges


def _group_size(line: str) -> int:
    match = _GROUPS.search(line)
    if match is None:
        raise ValueError(f"XLA wrote a collective whose devices cannot be read: {line.strip()}")
    members, listed, mesh, axes = match.groups()
    if mesh is None:
        return int(members) if members else listed.count(",") + 1
    sizes = dict(_AXIS.findall(mesh))
    return math.prod(int(part or sizes[axis]) for axis, part in _AXIS.findall(axes))


def _computations(text: str) -> dict[str, list[str]]:
    """Return the lines of every computation by its name; the program's own is ""."""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault("" if match[1] else match[2], [])
        lines.append(line)
    return computations


def _times(computations: dict[str, list[str]]) -> dict[str, int]:
    """Return how often each computation runs; XLA prints one after those that it calls."""
    times: dict[str, int] = defaultdict(int, {"": 1})
    for name, lines in reversed(computations.items()):
        for line in lines:
            trips = _TRIPS.search(line)
            for _, called in _CALLED.findall(line):
                for callee in called.replace("%", "").split(", "):
                    times[callee] += times[name] * (int(trips[1]) if trips else 1)
    return times


def _size(dtype: str, shape: str) -> int:
    return math.prod(map(int, shape.split(",") if shape else ())) * _ITEM_BYTES[dtype]
