"""How activations lie on a mesh of devices, where the caller has set one (`jax.set_mesh`); without one nothing happens.

    batch axes over ("data", "fsdp"), heads, feed-forward features and vocabulary over "tensor", the rest whole

The compiler could derive this from the parameters, but where batch and parameters are both split over fsdp it has a choice,
and then it sometimes moves activations where it should gather a layer's parameters. A loop that reads parameters gathers
them anew in every turn, unless they were `gathered` before it.
"""

import math
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH = ("data", "fsdp")
TENSOR = ("tensor",)
WHOLE: tuple[str, ...] = ()
# Which axis of a leaf is split over `tensor`, by the names of its module and its own. Projections to heads and to the
# feed-forward layer are split by what they make, those back to the residual stream by what they read.
TENSOR_AXIS: dict[tuple[str, ...], int] = {
    **{(module, leaf): -1 for module in ("query", "key", "value", "gate", "up", "lm_head")
       for leaf in ("kernel", "bias", "lora_b")},
    **{(module, leaf): 0 for module in ("out", "down") for leaf in ("kernel", "lora_a")},
    ("trunk", "embedding"): 0,
}  # fmt: skip


def leaf_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names that lead to a leaf, from a path of jax.tree_util."""
    return tuple(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def constrain(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
    """x with its axes split over these axes of the mesh; an axis that they do not divide stays whole.

    Under a mapped axis of the caller's own (`jax.pmap`, `jax.shard_map`) each device has its part already.
    """
    sizes = _sizes()
    if math.prod(sizes.values()) == 1:
        return x
    parts = (math.prod(sizes.get(name, 1) for name in names) for names in axes)
    spec = (names if size % part == 0 else None for names, size, part in zip(axes, x.shape, parts, strict=True))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(names or None for names in spec)))


def gathered(params: Any) -> Any:
    """Parameters whole over fsdp on every device, split over tensor as ever."""

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axes, split = [WHOLE] * leaf.ndim, TENSOR_AXIS.get(("", *leaf_names(path))[-2:])
        if split is not None:
            axes[split] = TENSOR
        return constrain(leaf, *axes)

    return jax.tree_util.tree_map_with_path(gather, params)


def num_shards(size: int, axes: tuple[str, ...]) -> int:
    """Into how many parts `constrain` splits an axis of that size over these axes of the mesh."""
    parts = math.prod(_sizes().get(name, 1) for name in axes)
    return parts if size % parts == 0 else 1


def _sizes() -> dict[str, int]:
    return {name: size for name, size in jax.sharding.get_abstract_mesh().shape.items() if name in (*BATCH, *TENSOR)}
