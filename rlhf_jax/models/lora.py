"""Train low-rank adapters A and B beside frozen kernels.

    y = x·W + s·(x·A)·B,    s = alpha / rank,    A ~ U(±1/√fan_in),  B = 0   (Hu et al. 2021, §4.1)

A parameter tree with adapters holds three leaves more beside a kernel: lora_a, lora_b and
lora_scale, and `layers.Linear` adds the term where it finds them. So every function of a model and
its parameters works with or without adapters, and a tree is the union of two: the *frozen* one,
with kernels and scales, and the *trained* one, with adapters and head.

    frozen, trained = init_adapters(params, config, key)
    model(combine(frozen, trained), ...)

Gradients, optimizer state and checkpoints are those of `trained` alone. Without adapters (rank 0)
nothing is frozen and everything is trained. Trees made from one model share its frozen arrays:
policy, reference, reward and value cost one copy of it and four small sets of adapters.

Convention: A's start is that of the authors' code and of PEFT; the paper says Gaussian.
Left out on purpose: dropout on adapters, adapters on embeddings and heads, quantised kernels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.heads import HEADS, Params

MODULES = ("query", "key", "value", "out", "gate", "up", "down")
ADAPTER = ("lora_a", "lora_b")
NOTHING_FROZEN: Mapping[str, Any] = MappingProxyType({})  # beside parameters that are all trained


@dataclass(frozen=True)
class LoraConfig:
    """Describe adapters of `rank` on the linear layers called `modules`.

    They are scaled by alpha / rank; rank 0 trains everything.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    rank: int
    alpha: float
    modules: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank = {self.rank}: expected 0 (off) or more.")
        if self.rank and not self.alpha > 0:
            raise ValueError(f"lora.alpha = {self.alpha}: expected a positive number.")
        unknown = set(self.modules) - set(MODULES)
        repeated = len(set(self.modules)) < len(self.modules)
        if unknown or repeated or (self.rank and not self.modules):
            raise ValueError(
                f"lora.modules = {list(self.modules)}: expected some of {', '.join(MODULES)}, "
                "each once."
            )

    @property
    def scale(self) -> float:
        """Return s = alpha / rank."""
        return self.alpha / self.rank


def init_adapters(params: Params, config: LoraConfig, key: jax.Array) -> tuple[Params, Params]:
    """Return (frozen, trained): what stays and what learns.

    Adapters that the parameters have already are trained further; at rank 0 they are merged first.
    A head is trained whole.

    Raises:
        ValueError: the parameters have adapters of another kind than `config`, or no layer that it
            names.
    """
    if not config.rank:
        return {}, merge_adapters(params)
    present = describe_adapters(params)
    if present is None:
        params = _add_adapters(params, config, key)
    elif _comparable(present) != _comparable(config):
        raise ValueError(
            f"lora: rank {config.rank}, alpha {config.alpha:g}, modules "
            f"{', '.join(config.modules)}, but the parent's adapters have rank {present.rank}, "
            f"alpha {present.alpha:g}, modules {', '.join(present.modules)}: use the same, or "
            "rank 0 to merge them and train everything"
        )
    return partition(params)


def combine(frozen: Params, trained: Params) -> Params:
    """Return the union of two trees, which share no leaf; arrays are not copied."""
    union = dict(frozen)
    for name, part in trained.items():
        union[name] = combine(union.get(name, {}), part) if isinstance(part, Mapping) else part
    return union


def partition(params: Params) -> tuple[Params, Params]:
    """Split parameters with adapters into (frozen, trained); undoes `combine`.

    Adapters and heads are trained.
    """

    def select(tree: Params, adapters: bool) -> Params:
        selected = {}
        for name, part in tree.items():
            if isinstance(part, Mapping):
                if subtree := select(part, adapters):
                    selected[name] = subtree
            elif (name in ADAPTER) == adapters:
                selected[name] = part
        return selected

    headless, heads = split_heads(params)
    return select(headless, False), {**select(headless, True), **heads}


def split_heads(params: Params) -> tuple[Params, Params]:
    """Split parameters into (what lies below the heads, the heads); undone by `combine`."""
    below = {name: part for name, part in params.items() if name not in HEADS}
    return below, {name: part for name, part in params.items() if name in HEADS}


def merge_adapters(params: Params) -> Params:
    """Return plain parameters that compute the same, up to rounding: W + s·A·B in place of W."""
    if not isinstance(params, Mapping):
        return params
    if "lora_a" not in params:
        return {name: merge_adapters(part) for name, part in params.items()}
    product = jnp.matmul(params["lora_a"], params["lora_b"], precision="highest")
    update = params["lora_scale"] * product
    kernel = params["kernel"]
    rest = {name: part for name, part in params.items() if not name.startswith("lora_")}
    return {**rest, "kernel": (kernel.astype(jnp.float32) + update).astype(kernel.dtype)}


def add_scales(frozen: Params, trained: Params, scale: float) -> Params:
    """Return `frozen` with a lora_scale beside every kernel that `trained` adapts.

    Neither a plain model nor a checkpoint of adapters holds these.
    """
    if "lora_a" in trained:
        return {**frozen, "lora_scale": jnp.asarray(scale, jnp.float32)}
    adapted = {
        name: add_scales(frozen[name], part, scale)
        for name, part in trained.items()
        if isinstance(part, Mapping) and name in frozen
    }
    return {**frozen, **adapted}


def describe_adapters(params: Params) -> LoraConfig | None:
    """Return the rank, alpha and modules of the adapters in a tree, None if there are none."""
    layers = dict(_adapted_layers(params, ""))
    if not layers:
        return None
    layer = next(iter(layers.values()))
    rank = layer["lora_a"].shape[1]
    scale = float(layer["lora_scale"])
    present = {name.rsplit("/", 1)[-1] for name in layers}
    return LoraConfig(rank, scale * rank, tuple(name for name in MODULES if name in present))


def _comparable(config: LoraConfig) -> tuple[int, np.float32, set[str]]:
    # A tree holds the scale in float32.
    return config.rank, np.float32(config.scale), set(config.modules)


def _adapted_layers(tree: Params, path: str) -> Iterator[tuple[str, Params]]:
    """Yield (path, leaves) of every linear layer with adapters."""
    if not isinstance(tree, Mapping):
        return
    if "lora_a" in tree:
        yield path, tree
    for child, part in tree.items():
        yield from _adapted_layers(part, f"{path}/{child}")


def _add_adapters(params: Params, config: LoraConfig, key: jax.Array) -> Params:
    num_adapted = 0

    def add(tree: Params, name: str) -> Params:
        nonlocal num_adapted
        if not isinstance(tree, Mapping):
            return tree
        if name not in config.modules or "kernel" not in tree:
            return {child: add(part, child) for child, part in tree.items()}
        num_adapted += 1
        fan_in, fan_out = tree["kernel"].shape
        layer_key = jax.random.fold_in(key, num_adapted)
        bound = fan_in**-0.5
        shape = (fan_in, config.rank)
        return {
            **tree,
            "lora_a": jax.random.uniform(layer_key, shape, jnp.float32, -bound, bound),
            "lora_b": jnp.zeros((config.rank, fan_out), jnp.float32),
            "lora_scale": jnp.asarray(config.scale, jnp.float32),
        }

    adapted = {**params, "trunk": add(params["trunk"], "trunk")}
    present = {path.rsplit("/", 1)[-1] for path, _ in _adapted_layers(adapted, "")}
    if missing := [name for name in config.modules if name not in present]:
        raise ValueError(
            f"lora.modules: the model has no {', '.join(missing)}; it has "
            f"{', '.join(sorted(present)) or 'none'}"
        )
    return adapted
