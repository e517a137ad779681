"""The leaves of a tree as a checkpoint sees them: named, described by shape and dtype, protected by a CRC-32.

A name is the path through the tree, "opt_state/0/mu/trunk/wte", whatever the containers (dict keys, field
names, positions), so a checkpoint can be read without the classes that made it.

Left out on purpose: leaves that are not numbers, random keys among them.
"""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.training.hosts import fetch
from rlhf_jax.training.mesh import put


def named_leaves(tree: Any) -> dict[str, Any]:
    """{"opt_state/0/mu/trunk/wte": leaf, …} in the order of `jax.tree.leaves`.

    Raises ValueError for a leaf that cannot be saved and for two leaves of one name.
    """
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(re.sub(r"[/\\]", "_", str(_key(entry))) for entry in path)
        if name in named or not name:
            raise ValueError(
                f"checkpoint leaf {name!r}: leaves need distinct, non-empty names; put them in a dict"
            )
        if not _saveable(leaf):
            raise ValueError(
                f"checkpoint leaf {name} is {type(leaf).__name__}: only number arrays and numbers are saved"
            )
        named[name] = leaf
    return named


def _key(entry: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _saveable(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | float | np.generic):
        return True
    is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray)
    return is_array and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Named leaves as a tree of dicts, Python numbers as arrays; undoes `named_leaves`."""
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.asarray(leaf) if isinstance(leaf, bool | int | float | np.generic) else leaf
    return tree


def abstract(leaf: Any) -> dict[str, Any]:
    """Shape and dtype as they are written to JSON."""
    array = leaf if hasattr(leaf, "shape") else np.asarray(leaf)
    return {"shape": list(array.shape), "dtype": str(array.dtype)}


def form(description: Mapping[str, Any]) -> str:
    """`float32[4, 8]`."""
    return f"{description['dtype']}{description['shape']}"


def describe(leaf: Any) -> dict[str, Any]:
    """Shape, dtype and CRC-32 of the bytes."""
    array = np.ascontiguousarray(fetch(leaf))
    return abstract(leaf) | {"crc32": f"{zlib.crc32(array.reshape(-1).view(np.uint8).data):08x}"}


def fingerprint(leaves: Mapping[str, dict[str, Any]]) -> str:
    """One fingerprint of a whole tree: the CRC-32 of its sorted (name, shape, dtype, CRC-32) lines."""
    return json_crc(leaves)


def json_crc(content: Mapping[str, Any]) -> str:
    """CRC-32 of the JSON with sorted keys."""
    return f"{zlib.crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def place_like(array: np.ndarray, example: Any) -> Any:
    """The array in the type and placement of the example."""
    if isinstance(example, bool | int | float):
        return type(example)(array.item())
    if isinstance(example, np.ndarray | np.generic):
        return array
    # A committed array would pin everything it meets to its device, so stay uncommitted where the example
    # was.
    pinned = example.sharding if not isinstance(example, jax.Array) or example.committed else None
    return put(array, pinned, may_alias=False)
