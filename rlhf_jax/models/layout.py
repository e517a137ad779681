"""How activations lie on a mesh of devices, where the caller has set one (`jax.set_mesh`); without one nothing happens.

    batch axes over ("data", "fsdp"), heads, feed-forward features and vocabulary over "tensor", the rest whole

The compiler could derive this from the parameters, but where batch and parameters are both split over fsdp it has a choice,
and then it sometimes moves activations where it should gather a layer's parameters.
"""

import math

import jax
from jax.sharding import PartitionSpec

BATCH = ("data", "fsdp")
TENSOR = ("tensor",)
WHOLE: tuple[str, ...] = ()


def constrain(x: jax.Array, *axes: tuple[str, ...]) -> jax.Array:
    """x with its axes split over these axes of the mesh; an axis that they do not divide stays whole.

    Under a mapped axis of the caller's own (`jax.pmap`, `jax.shard_map`) each device has its part already.
    """
    sizes = {name: size for name, size in jax.sharding.get_abstract_mesh().shape.items() if name in (*BATCH, *TENSOR)}
    if math.prod(sizes.values()) == 1:
        return x
    parts = (math.prod(sizes.get(name, 1) for name in names) for names in axes)
    spec = (names if size % part == 0 else None for names, size, part in zip(axes, x.shape, parts, strict=True))
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(names or None for names in spec)))
