"""How activations lie on a mesh of devices, where the caller has set one (`jax.set_mesh`); without one nothing happens.

    batch axes over ("data", "fsdp"), heads, feed-forward features and vocabulary over "tensor", the rest whole

The compiler could derive this from the parameters, but where batch and parameters are both split over fsdp it has a choice,
and then it sometimes moves activations where it should gather a layer's parameters. A loop that reads parameters gathers
them anew in every turn, unless they were `gathered` before it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH = ("data", "fsdp")
TENSOR = ("tensor",)
WHOLE: tuple[str, ...] = ()
# Which axis of a leaf is split over `tensor`, by the names of its module and its own. Projections to heads and to the
# feed-forward layer are split by what they make, those back to the residual stream by what they read.
TENSOR_AXIS: dict[tuple[str, ...], int] = {
    **{
        (module, leaf): -1
        for module in ("query", "key", "value", "gate", "up", "lm_head")
        for leaf in ("kernel", "bias", "lora_b")
    },
    **{(module, leaf): 0 for module in ("out", "down") for leaf in ("kernel", "lora_a")},
    ("trunk", "embedding"): 0,
}


def leaf_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The names that lead to a leaf, from a path of jax.tree_util."""
    return tuple(str(getattr(entry, "key", getattr(entry, "name", entry))) for entry in path)


def constrain(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
    """x with its axes split over these axes of the mesh; an axis that they do not divide stays whole.

    Under a mapped axis of the caller's own (`jax.pmap`, `jax.shard_map`) each device has its part already.
    """
    return (
        x
        if math.prod(_sizes().values()) == 1
        else jax.lax.with_sharding_constraint(x, split(x.shape, *axes))
    )


def split(shape: tuple[int, ...], *axes: tuple[str, ...]) -> PartitionSpec:
    """How `constrain` splits an array of this shape."""
    sizes = _sizes()
    known = (tuple(name for name in names if name in sizes) for names in axes)
    parts = ((names, math.prod(sizes[name] for name in names)) for names in known)
    spec = (
        names if size % part == 0 else () for (names, part), size in zip(parts, shape, strict=True)
    )
    return PartitionSpec(*(names or None for names in spec))


def gathered(params: Any) -> Any:
    """Parameters whole over fsdp on every device, split over tensor as ever."""

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axes, split = [WHOLE] * leaf.ndim, TENSOR_AXIS.get(("", *leaf_names(path))[-2:])
        if split is not None:
            axes[split] = TENSOR
        return constrain(leaf, *axes)

    return jax.tree_util.tree_map_with_path(gather, params)


def each_shard(function: Callable[..., Any], params: Any, *rows: jax.Array) -> Any:
    """`function(params, *rows)` on every device's rows by themselves, with the whole parameters.

    However the function uses them, gradients of parameters are summed over devices once: a loop outside of this would do so in
    every turn.
    """
    params = gathered(params)
    if num_shards(len(rows[0]), BATCH) == 1:
        return function(params, *rows)
    specs = (PartitionSpec(), *(PartitionSpec(BATCH) for _ in rows))
    # Without the check of what varies, which would sum where parameters meet rows.
    mapped = jax.shard_map(
        function,
        in_specs=specs,
        out_specs=PartitionSpec(BATCH),
        axis_names=set(BATCH),
        check_vma=False,
    )
    return mapped(params, *rows)


def num_shards(size: int, axes: tuple[str, ...]) -> int:
    """Into how many parts `constrain` splits an axis of that size over these axes of the mesh."""
    parts = math.prod(_sizes().get(name, 1) for name in axes)
    return parts if size % parts == 0 else 1


def _sizes() -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name in (*BATCH, *TENSOR)
        if name in mesh.shape and name not in mesh.manual_axes
    }
