"""Lay activations out on a mesh of devices, where the caller has set one (`jax.set_mesh`).

    batch axes over ("data", "fsdp"); heads, feed-forward features and vocabulary over "tensor";
    the rest whole

Without a mesh nothing happens. The compiler could derive this from the parameters, but where batch
and parameters are both split over fsdp it has a choice, and then it sometimes moves activations
where it should gather a layer's parameters. A loop that reads parameters gathers them anew in every
turn, unless `gather_params` did so before it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

BATCH = ("data", "fsdp")
TENSOR = ("tensor",)
WHOLE: tuple[str, ...] = ()
# Which axis of a leaf is split over `tensor`, by the names of its module and its own. Projections
# to heads and to the feed-forward layer are split by what they make, those back to the residual
# stream by what they read.
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
    """Return the names that lead to a leaf, from a path of jax.tree_util."""
    names = ("key", "name", "idx")  # of dictionaries, dataclasses and sequences
    keys = (next((getattr(x, name) for name in names if hasattr(x, name)), x) for x in path)
    return tuple(map(str, keys))


def constrain(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
    """Return x with its axes split over these axes of the mesh.

    An axis that they do not divide stays whole. Under a mapped axis of the caller's own
    (`jax.pmap`, `jax.shard_map`) each device has its part already.
    """
    if math.prod(_mesh_sizes().values()) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(x.shape, *axes))


def partition_spec(shape: tuple[int, ...], *axes: tuple[str, ...]) -> PartitionSpec:
    """Return how `constrain` splits an array of this shape."""
    sizes = _mesh_sizes()
    entries = []
    for size, names in zip(shape, axes, strict=True):
        present = tuple(name for name in names if name in sizes)
        divides = size % math.prod(sizes[name] for name in present) == 0
        entries.append(present if divides and present else None)
    return PartitionSpec(*entries)


def gather_params(params: Any) -> Any:
    """Return parameters that are whole over fsdp on every device, split over tensor as before."""

    def gather(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        axes = [WHOLE] * leaf.ndim
        tensor_axis = TENSOR_AXIS.get(("", *leaf_names(path))[-2:])
        if tensor_axis is not None:
            axes[tensor_axis] = TENSOR
        return constrain(leaf, *axes)

    return jax.tree_util.tree_map_with_path(gather, params)


def map_shards(function: Callable[..., Any], params: Any, *rows: jax.Array) -> Any:
    """Call `function(params, *rows)` on every device's own rows, with the whole parameters.

    The plain call gives the same. But however often the function's loops use the parameters, their
    gradients are summed over devices once here, and in every turn of a loop there.
    """
    params = gather_params(params)
    if num_shards(len(rows[0]), BATCH) == 1:
        return function(params, *rows)
    specs = (PartitionSpec(), *(PartitionSpec(BATCH) for _ in rows))

    # Parameters are told to vary here: else their gradients were summed where they meet rows.
    def with_varying_params(params: Any, *rows: jax.Array) -> Any:
        return function(jax.lax.pcast(params, BATCH, to="varying"), *rows)

    mapped = jax.shard_map(
        with_varying_params, in_specs=specs, out_specs=PartitionSpec(BATCH), axis_names=set(BATCH)
    )
    return mapped(params, *rows)


def num_shards(size: int, axes: tuple[str, ...]) -> int:
    """Return into how many parts `constrain` splits an axis of that size over these mesh axes."""
    sizes = _mesh_sizes()
    parts = math.prod(sizes.get(name, 1) for name in axes)
    return parts if size % parts == 0 else 1


def _mesh_sizes() -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    return {
        name: mesh.shape[name]
        for name in (*BATCH, *TENSOR)
        if name in mesh.shape and name not in mesh.manual_axes
    }
