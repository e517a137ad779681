"""Decide where arrays live: a mesh of devices, rules for parameters, one rule for batches.

    mesh axes       ("data", "fsdp", "tensor")
    batches         leading axis split over data x fsdp: each of these shards has its own examples
    large leaves    largest divisible dimension split over fsdp (ZeRO-3: Rajbhandari et al. 2020),
                    copied over data
    kernels         heads, feed-forward features and vocabulary split over tensor
                    (Shoeybi et al. 2019), see `TENSOR_AXIS`
    small leaves    a copy on every device

A step is a pure function; `jit_step` maps it over the mesh and the compiler inserts the gathers and
reductions. The same function under `jax.pmap` with `lax.pmean` on its gradients makes the same
update (tests/training/test_mesh.py).

Left out on purpose: pipeline parallelism, and splitting a row's positions.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layout import BATCH, TENSOR_AXIS, leaf_names

Params = Any
AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int, fsdp: int, tensor: int) -> Mesh:
    """Make a mesh of data x fsdp x tensor devices; data = -1 takes all that the others leave.

    Fewer devices than the machine has are allowed, but not fewer than all of several processes.
    Devices of one host are neighbours along tensor, then fsdp.

    Raises:
        ValueError: the numbers do not fit the devices; names both.
    """
    devices = jax.devices()
    if fsdp < 1 or tensor < 1 or (data < 1 and data != -1):
        sizes = f"data = {data}, fsdp = {fsdp}, tensor = {tensor}"
        raise ValueError(f"mesh {sizes}: all must be >= 1 (data may be -1: all that are left)")
    if data == -1:
        if len(devices) % (fsdp * tensor):
            raise ValueError(
                f"mesh fsdp x tensor = {fsdp} x {tensor} does not divide the {len(devices)} "
                "devices: choose divisors"
            )
        data = len(devices) // (fsdp * tensor)
    size = data * fsdp * tensor
    num_processes = jax.process_count()
    if size > len(devices) or (num_processes > 1 and size != len(devices)):
        owner = f"the {num_processes} processes have" if num_processes > 1 else "this machine has"
        raise ValueError(
            f"mesh data x fsdp x tensor = {data} x {fsdp} x {tensor} = {size} devices, but {owner} "
            f"{len(devices)}: change one of them or set data=-1"
        )
    # Auto: the compiler propagates shardings. Explicit axes (jax.make_mesh's default) reject linen.
    grid = np.asarray(devices[:size]).reshape(data, fsdp, tensor)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_shards(mesh: Mesh) -> int:
    """Return the number of parts that a batch is split into: data x fsdp."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def describe_mesh(mesh: Mesh) -> str:
    """Format a mesh, as `data x fsdp x tensor = 2 x 4 x 1`."""
    return " x ".join(AXES) + " = " + " x ".join(str(mesh.shape[axis]) for axis in AXES)


def check_model(model: TransformerConfig, mesh: Mesh) -> None:
    """Refuse a model whose heads, features or vocabulary tensor does not divide; names both.

    A single key/value head (PaLM) is copied.
    """
    tensor = mesh.shape["tensor"]
    kv_heads = ["num_kv_heads"] if model.num_kv_heads > 1 else []
    for name in ("num_heads", *kv_heads, "ffw_width", "vocab_size"):
        if getattr(model, name) % tensor:
            raise ValueError(
                f"mesh.tensor = {tensor} does not divide model.{name} = {getattr(model, name)}: "
                "lower mesh.tensor and raise mesh.fsdp instead, or change the model"
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a batch: leading axis over (data, fsdp), the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def state_shardings(tree: Any, mesh: Mesh, min_size: int) -> Any:
    """Return a sharding for every leaf of a state or of parameters, abstract or real.

    Kernels are split over tensor by `TENSOR_AXIS`. A leaf of at least `min_size` elements is split
    over fsdp as well, along the largest other dimension that fsdp divides; the rest are copies.
    Optimizer moments have their parameter's name and shape and so land where it does.

    Raises:
        ValueError: tensor must split a leaf and does not divide it.
    """

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf_sharding(leaf_names(path), leaf.shape, mesh, min_size), tree
    )


def leaf_sharding(
    names: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh, min_size: int
) -> NamedSharding:
    """Apply the rules of `state_shardings` to one leaf, given its path of names and its shape."""
    fsdp = mesh.shape["fsdp"]
    tensor = mesh.shape["tensor"]
    axes: list[str | None] = [None] * len(shape)
    axis = TENSOR_AXIS.get(("", *names)[-2:]) if tensor > 1 else None
    if axis is not None:
        if shape[axis] % tensor:
            raise ValueError(
                f"mesh.tensor = {tensor} does not divide {'/'.join(names)} of shape {shape} "
                f"along axis {axis}"
            )
        axes[axis] = "tensor"
    free = [axis for axis, size in enumerate(shape) if axes[axis] is None and size % fsdp == 0]
    if fsdp > 1 and math.prod(shape) >= min_size and free:
        axes[max(free, key=lambda axis: shape[axis])] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*axes) if any(axes) else PartitionSpec())


def place(tree: Any, shardings: Any) -> Any:
    """Copy a tree onto its shardings (one sharding, or a tree of them).

    Never an alias: a placed state can be donated while the original lives on as the reference.
    """

    def copy(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        # device_put may keep the original buffer as a replica, in spite of may_alias=False.
        return put(leaf if jax.process_count() > 1 else jnp.array(leaf, copy=True), sharding)

    return jax.tree.map(copy, tree, jax.tree.broadcast(shardings, tree))


def place_frozen(tree: Any, shardings: Any) -> Any:
    """Put a tree that is never donated on its shardings, without needless copies.

    Leaves that share an array (of policy and reference on one base) still share it.
    """
    placed: dict[int, Any] = {}

    def once(leaf: Any, sharding: Any) -> Any:
        if id(leaf) not in placed:
            placed[id(leaf)] = put(leaf, sharding)
        return placed[id(leaf)]

    return jax.tree.map(once, tree, shardings)


def put(
    leaf: Any, sharding: jax.sharding.Sharding | None, *, may_alias: bool | None = None
) -> jax.Array:
    """Put an array on a sharding; of several processes each copies what its own devices need."""
    if jax.process_count() == 1 or sharding is None:
        return jax.device_put(leaf, sharding, may_alias=may_alias)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=sharding)(leaf)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def shard_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Put a batch of NumPy arrays on the mesh, examples split over data x fsdp.

    Raises:
        ValueError: the leading axis of a field does not divide by the number of shards.
    """
    for name, array in batch.items():
        if array.ndim == 0 or array.shape[0] % batch_shards(mesh):
            raise ValueError(
                f"batch[{name!r}] has shape {array.shape}: its leading axis must divide by the "
                f"{batch_shards(mesh)} shards of data x fsdp; change the batch size or use a "
                "smaller mesh"
            )
    return {name: put(array, batch_sharding(mesh)) for name, array in batch.items()}


def jit_step(step: Callable[..., Any], shardings: Any, mesh: Mesh) -> Callable[..., Any]:
    """Compile `step(state, *arguments) -> (state, metrics)` over the mesh, donating the state.

    The new state keeps `shardings`, metrics are replicated, and the arguments keep the shardings
    they come with (`place`, `shard_batch`), so frozen models can be passed sharded or not.
    """
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))


def on_mesh(mesh: Mesh) -> AbstractContextManager[Any]:
    """Trace programs in here so that their activations lie on the mesh (models/layout.py)."""
    return jax.set_mesh(mesh) if mesh.size > 1 else nullcontext()
