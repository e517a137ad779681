"""Adapters in the files of PEFT: adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.<i>.self_attn.q_proj.lora_A.weight     Aᵀ, (rank, in)
    base_model.model.model.layers.<i>.self_attn.q_proj.lora_B.weight     Bᵀ, (out, rank)

Both sides scale by lora_alpha / r. Names and layouts are those of each family in Transformers. GPT-2 and GPT-NeoX keep query,
key and value in one kernel; three adapters of rank r on its parts are one of rank 3r on the whole,

    ΔW = A_q B_q | A_k B_k | A_v B_v = (A_q | A_k | A_v) · blockdiag(B_q, B_k, B_v),

and are written so, with `rank_pattern` and `alpha_pattern` saying 3r and 3·alpha.

Left out on purpose: adapters that share one A between query, key and value, which are not three of ours; reading adapters of
only some of these three from one kernel; heads; PEFT's variants (DoRA, rank-stabilised scales, other ranks by layer). All are
refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.huggingface.configs import write_config
from rlhf_jax.models.huggingface.tensors import NAMES, Names, Tensor, tensors
from rlhf_jax.models.lora import MODULES, LoraConfig

Params = Any
# What changes the meaning of the tensors, and the value at which it does not.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "lora_bias": False,
}


def save_peft(
    folder: str | Path,
    trained: Params,
    config: LoraConfig,
    shape: TransformerConfig,
    *,
    base_name: str,
) -> None:
    """Write a language model's adapters; `base_name` is what PEFT will load as their base.

    Raises:
        ValueError: for a model that no family of transformers computes, or a head among the adapters.
    """
    if set(trained) != {"trunk"}:
        raise ValueError(
            f"adapters: found {', '.join(sorted(set(trained) - {'trunk'}))} beside them, expected a language "
            "model's adapters; a scalar head has no place in these files"
        )
    leaves = {
        name: np.asarray(leaf, np.float32)
        for name, leaf in flax.traverse_util.flatten_dict(trained, sep="/").items()
    }
    written = {}
    for tensor in _linear(shape):
        where, mine = _where(tensor), _adapted(tensor, config.modules)
        if mine:
            written[f"{where}.lora_A.weight"] = np.concatenate(
                [leaves[f"{part}/lora_a"].T for part in mine]
            )
            written[f"{where}.lora_B.weight"] = _join(
                tensor, {part: leaves[f"{part}/lora_b"] for part in mine}
            )
    described = {
        **_PLAIN,
        **_description(config, shape),
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in written.items()}
    save_file(contiguous, Path(folder) / "adapter_model.safetensors")
    (Path(folder) / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n")


def load_peft(folder: str | Path, shape: TransformerConfig) -> tuple[Params, LoraConfig]:
    """(trained, config) of adapters that PEFT, or `save_peft`, wrote for a model of this shape.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: names the tensor or field that is of another kind than low-rank adapters on `MODULES`, does not fit
            the shape, or is missing.
    """
    described = json.loads((Path(folder) / "adapter_config.json").read_text())
    for name, plain in _PLAIN.items():
        if (found := described.get(name, plain)) != plain and found not in (None, [], {}):
            raise ValueError(
                f"{folder}/adapter_config.json: {name} = {found!r}, expected {plain!r}"
            )
    found = load_file(Path(folder) / "adapter_model.safetensors")
    places = {_where(tensor): tensor for tensor in _linear(shape)}
    for name in found:
        if name.rsplit(".lora_", 1)[0] not in places or not name.endswith(
            (".lora_A.weight", ".lora_B.weight")
        ):
            names = sorted({where.rpartition(".0.")[2] for where in places if ".0." in where})
            raise ValueError(
                f"{folder}: tensor {name}: expected lora_A and lora_B of {', '.join(names)} in layers 0 to "
                f"{shape.num_layers - 1}"
            )
    seen = {
        _module(part)
        for where, tensor in places.items()
        if f"{where}.lora_A.weight" in found
        for part in tensor.leaves
    }
    config = LoraConfig(
        described["r"],
        float(described["lora_alpha"]),
        tuple(name for name in MODULES if name in seen),
    )
    for name, wanted in _description(config, shape).items():
        if name not in ("r", "lora_alpha", "target_modules") and (described.get(name) or {}) != (
            wanted or {}
        ):
            raise ValueError(
                f"{folder}/adapter_config.json: {name} = {described.get(name)!r}, expected {wanted!r}"
            )
    leaves: dict[str, Any] = {}
    for where, tensor in places.items():
        if _adapted(tensor, config.modules):
            leaves |= _split(
                f"{folder}: {where}",
                tensor,
                config.rank,
                *(found.get(f"{where}.lora_{letter}.weight") for letter in "AB"),
            )
    return flax.traverse_util.unflatten_dict(leaves, sep="/"), config


def _names(shape: TransformerConfig) -> Names:
    return NAMES[write_config(shape)[0].model_type]


def _linear(shape: TransformerConfig) -> list[Tensor]:
    """The kernels of all blocks."""
    every = tensors(_names(shape), shape, "language_model")
    return [
        one
        for one in every
        if one.leaves[0].startswith("trunk/block_") and one.leaves[0].endswith("/kernel")
    ]


def _where(tensor: Tensor) -> str:
    return f"base_model.model.{tensor.name.removesuffix('.weight')}"


def _module(part: str) -> str:
    return part.split("/")[-2]


def _adapted(tensor: Tensor, modules: Sequence[str]) -> list[str]:
    """The parts of a tensor that have adapters: "trunk/block_0/attention/query"."""
    return [leaf.removesuffix("/kernel") for leaf in tensor.leaves if _module(leaf) in modules]


def _description(config: LoraConfig, shape: TransformerConfig) -> dict[str, Any]:
    """What adapter_config.json says of ranks and places."""
    names = _names(shape)
    of = {module.rpartition("/")[2]: theirs for module, theirs in names.modules.items()}
    linear = {of[module] for module in MODULES if module in of}
    # PEFT compares ends of names, and GPT-2 has two modules called c_proj.
    ends = {one: sum(other.endswith(f".{one.split('.')[1]}") for other in linear) for one in linear}
    short = {one: one.split(".")[1] if ends[one] == 1 else one for one in linear}
    targets = list(dict.fromkeys(short[of[module]] for module in config.modules))
    parts = {
        target: sum(short[of[module]] == target for module in config.modules) for target in targets
    }
    return {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": targets,
        "fan_in_fan_out": not names.transposed,
        "rank_pattern": {target: n * config.rank for target, n in parts.items() if n > 1},
        "alpha_pattern": {target: n * config.alpha for target, n in parts.items() if n > 1},
    }


def _join(tensor: Tensor, b: Mapping[str, np.ndarray]) -> np.ndarray:
    """Bᵀ of a whole kernel, (out, rank · parts): each part's own B in rows of its own, zeros elsewhere."""
    rank, wide = next(iter(b.values())).shape[0], []
    for leaf, leaf_shape in zip(tensor.leaves, tensor.leaf_shapes, strict=True):
        part = leaf.removesuffix("/kernel")
        rows = np.zeros((len(b) * rank, leaf_shape[-1]), np.float32)
        if part in b:
            start = list(b).index(part) * rank
            rows[start : start + rank] = b[part]
        wide.append(rows)
    return _of_rank(tensor, len(b) * rank).join(wide)


def _of_rank(tensor: Tensor, rank: int) -> Tensor:
    return replace(
        tensor,
        leaf_shapes=tuple((rank, shape[-1]) for shape in tensor.leaf_shapes),
        transposed=True,
    )


def _split(
    where: str, tensor: Tensor, rank: int, a: np.ndarray | None, b: np.ndarray | None
) -> dict[str, Any]:
    """A and B of every part of a kernel; undoes `save_peft`."""
    total = rank * len(tensor.leaves)
    wanted = {
        "lora_A": (total, tensor.leaf_shapes[0][0]),
        "lora_B": (sum(shape[-1] for shape in tensor.leaf_shapes), total),
    }
    found = {
        name: None if array is None else array.shape
        for name, array in (("lora_A", a), ("lora_B", b))
    }
    if a is None or b is None or found != wanted:
        raise ValueError(f"{where}: A and B (rank, in), (out, rank) are {found}, expected {wanted}")
    leaves: dict[str, Any] = {}
    for n, (leaf, rows) in enumerate(
        zip(tensor.leaves, _of_rank(tensor, total).split(b), strict=True)
    ):
        mine = slice(n * rank, (n + 1) * rank)
        if np.delete(rows, np.r_[mine], axis=0).any():
            raise ValueError(
                f"{where}: lora_B: one A serves several of {', '.join(map(_module, tensor.leaves))}, expected "
                "one for each"
            )
        part = leaf.removesuffix("/kernel")
        for name, array in (("lora_a", a[mine].T), ("lora_b", rows[mine])):
            leaves[f"{part}/{name}"] = jnp.asarray(array, jnp.float32)
    return leaves
