"""Low-rank adapters: train A and B beside frozen kernels.

    y = x·W + s·(x·A)·B,    s = alpha / rank,    A ~ U(±1/√fan_in),  B = 0                        (Hu et al. 2021, §4.1)

A parameter tree with adapters holds three leaves more beside a kernel: lora_a, lora_b and lora_scale, and `layers.Linear`
adds the term where it finds them. So every function of a model and its parameters works with or without adapters, and
a tree is the union of two: the *base*, frozen, with kernels and scales, and the *trained* leaves, adapters and head.

    base, trained = init_adapters(params, config, key)          gradients, optimizer state and checkpoints: of `trained` alone
    model(combine(base, trained), ...)

Without adapters (rank 0) the base is empty and everything is trained. Trees made from one base share its arrays: policy,
reference, reward and value cost one copy of a model and four small sets of adapters.

Convention: A's start is that of the authors' code and of PEFT; the paper says Gaussian.
Left out on purpose: dropout on adapters, adapters on embeddings and heads, quantised bases.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
MODULES = ("query", "key", "value", "out", "gate", "up", "down")
ADAPTER = ("lora_a", "lora_b")
NO_BASE: Mapping[str, Any] = MappingProxyType({})  # of parameters that are all trained


@dataclass(frozen=True)
class LoraConfig:
    """Adapters of `rank` on the linear layers called `modules`, scaled by alpha / rank; rank 0 trains everything."""

    rank: int
    alpha: float
    modules: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check every field; raises ValueError with the field, its value and what is allowed."""
        if self.rank < 0:
            raise ValueError(f"lora.rank = {self.rank}: expected 0 (off) or more.")
        if self.rank and not self.alpha > 0:
            raise ValueError(f"lora.alpha = {self.alpha}: expected a positive number.")
        unknown = [name for name in self.modules if name not in MODULES]
        if (
            unknown
            or len(set(self.modules)) < len(self.modules)
            or (self.rank and not self.modules)
        ):
            raise ValueError(
                f"lora.modules = {list(self.modules)}: expected some of {', '.join(MODULES)}, each once."
            )

    @property
    def scale(self) -> float:
        """s = alpha / rank."""
        return self.alpha / self.rank


def init_adapters(params: Params, config: LoraConfig, key: jax.Array) -> tuple[Params, Params]:
    """(base, trained): what stays and what learns, of parameters that may have adapters already.

    Those are trained further; at rank 0 they are merged first. A head is trained whole.

    Raises:
        ValueError: if the parameters have adapters of another kind than `config`, or no layer that it names.
    """
    if not config.rank:
        return {}, merge_adapters(params)
    found = describe_adapters(params)
    if found is None:
        params = _with_adapters(params, config, key)
    elif _essence(found) != _essence(config):
        raise ValueError(
            f"lora: rank {config.rank}, alpha {config.alpha:g}, modules {', '.join(config.modules)}, but the parent's "
            f"adapters have rank {found.rank}, alpha {found.alpha:g}, modules {', '.join(found.modules)}: use the same, or "
            "rank 0 to merge them and train everything"
        )
    return partition(params)


def combine(base: Params, trained: Params) -> Params:
    """The union of two trees, which share no leaf; arrays are not copied."""
    joined = dict(base)
    for name, part in trained.items():
        joined[name] = combine(joined.get(name, {}), part) if isinstance(part, Mapping) else part
    return joined


def partition(params: Params) -> tuple[Params, Params]:
    """(base, trained) of parameters with adapters: trained are adapters and a head; undoes `combine`."""

    def pick(tree: Params, adapters: bool) -> Params:
        parts = {
            name: pick(part, adapters) if isinstance(part, Mapping) else part
            for name, part in tree.items()
        }
        return {
            name: part
            for name, part in parts.items()
            if (part if isinstance(part, Mapping) else (name in ADAPTER) == adapters)
        }

    headless = {name: part for name, part in params.items() if name != "head"}
    head = {name: part for name, part in params.items() if name == "head"}
    return pick(headless, False), {**pick(headless, True), **head}


def merge_adapters(params: Params) -> Params:
    """Plain parameters that compute the same: W + s·A·B in place of W and its adapters (up to rounding)."""
    if not isinstance(params, Mapping):
        return params
    if "lora_a" not in params:
        return {name: merge_adapters(part) for name, part in params.items()}
    update = params["lora_scale"] * jnp.matmul(
        params["lora_a"], params["lora_b"], precision="highest"
    )
    kernel = params["kernel"]
    rest = {name: part for name, part in params.items() if not name.startswith("lora_")}
    return {**rest, "kernel": (kernel.astype(jnp.float32) + update).astype(kernel.dtype)}


def with_scale(base: Params, trained: Params, scale: float) -> Params:
    """The base of `trained` with a lora_scale beside every adapted kernel: what a checkpoint leaves out."""
    if "lora_a" in trained:
        return {**base, "lora_scale": jnp.asarray(scale, jnp.float32)}
    parts = {
        name: part for name, part in trained.items() if isinstance(part, Mapping) and name in base
    }
    return {**base, **{name: with_scale(base[name], part, scale) for name, part in parts.items()}}


def describe_adapters(params: Params) -> LoraConfig | None:
    """The rank, alpha and modules of the adapters in a tree, None if there are none."""
    found = dict(_adapted(params, ""))
    if not found:
        return None
    one = next(iter(found.values()))
    rank = one["lora_a"].shape[1]
    modules = {name.rsplit("/", 1)[-1] for name in found}
    scale = float(one["lora_scale"])
    return LoraConfig(rank, scale * rank, tuple(name for name in MODULES if name in modules))


def _essence(config: LoraConfig) -> tuple[int, np.float32, set[str]]:
    return (
        config.rank,
        np.float32(config.scale),
        set(config.modules),
    )  # a tree holds the scale in float32


def _adapted(tree: Params, name: str) -> list[tuple[str, Params]]:
    """(path, leaves) of every linear layer with adapters."""
    if not isinstance(tree, Mapping):
        return []
    here = [(name, tree)] if "lora_a" in tree else []
    return here + [
        item for child, part in tree.items() for item in _adapted(part, f"{name}/{child}")
    ]


def _with_adapters(params: Params, config: LoraConfig, key: jax.Array) -> Params:
    count = 0

    def add(tree: Params, name: str) -> Params:
        nonlocal count
        if not isinstance(tree, Mapping):
            return tree
        if name not in config.modules or "kernel" not in tree:
            return {child: add(part, child) for child, part in tree.items()}
        count += 1
        fan_in, fan_out = tree["kernel"].shape
        bound = fan_in**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, count), (fan_in, config.rank), jnp.float32, -bound, bound
        )
        b = jnp.zeros((config.rank, fan_out), jnp.float32)
        return {
            **tree,
            "lora_a": a,
            "lora_b": b,
            "lora_scale": jnp.asarray(config.scale, jnp.float32),
        }

    adapted = {**params, "trunk": add(params["trunk"], "trunk")}
    there = {name.rsplit("/", 1)[-1] for name, _ in _adapted(adapted, "")}
    if missing := [name for name in config.modules if name not in there]:
        raise ValueError(
            f"lora.modules: the model has no {', '.join(missing)}; it has {', '.join(sorted(there)) or 'none'}"
        )
    return adapted
