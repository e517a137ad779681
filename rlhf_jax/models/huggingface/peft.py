"""Read and write adapters in PEFT's files: adapter_config.json and adapter_model.safetensors.

    base_model.model.model.layers.<i>.self_attn.q_proj.lora_A.weight     Aᵀ, (rank, in)
    base_model.model.model.layers.<i>.self_attn.q_proj.lora_B.weight     Bᵀ, (out, rank)

Both sides scale by lora_alpha / r. Names and layouts are those of each family in Transformers.
GPT-2 and GPT-NeoX keep query, key and value in one kernel; three adapters of rank r on its parts
are one of rank 3r on the whole,

    ΔW = A_q B_q | A_k B_k | A_v B_v = (A_q | A_k | A_v) · blockdiag(B_q, B_k, B_v),

and are written so, with `rank_pattern` and `alpha_pattern` saying 3r and 3·alpha.

A folder of these files can be a parent (training/foreign.py).

Left out on purpose: adapters that share one A between query, key and value, which are not three of
ours; reading adapters of only some of these three from one kernel; heads; PEFT's variants (DoRA,
rank-stabilised scales, other ranks by layer). All are refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.heads import Params
from rlhf_jax.models.huggingface.configs import write_config
from rlhf_jax.models.huggingface.files import read_json, read_safetensors
from rlhf_jax.models.huggingface.tensors import NAMES, Names, Tensor, tensors
from rlhf_jax.models.lora import MODULES, LoraConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE_FIELD = "base_model_name_or_path"
# What changes the meaning of the tensors, and the value at which it does not.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_rslora": False,
    "modules_to_save": None,
    "lora_bias": False,
}
# The ways to begin that leave the base as it is; PiSSA, OLoRA, LoftQ and CorDA change its weights.
_INITS = (True, False, None, "gaussian", "orthogonal", "eva")
# What says nothing about numbers, or what the tensors say as well. Every other field that is set is
# refused: layer_replication, alora_invocation_tokens, use_qalora and what is yet to come.
_BOOKKEEPING = """
alpha_pattern auto_mapping base_model_name_or_path bias eva_config exclude_modules fan_in_fan_out
inference_mode init_lora_weights layers_pattern layers_to_transform lora_alpha lora_dropout
megatron_core peft_type peft_version qalora_group_size r rank_pattern revision target_modules
task_type
"""
_KNOWN = frozenset(_BOOKKEEPING.split()) | _PLAIN.keys()


def is_peft(folder: str | Path) -> bool:
    """Say whether a folder holds adapters in PEFT's files."""
    return Path(folder, CONFIG).is_file()


def read_base_name(folder: str | Path) -> str:
    """Return the name or path of the model that the adapters in a folder were trained on.

    Of a model of the hub this is ORG/NAME, or ORG/NAME@REVISION.

    Raises:
        FileNotFoundError: there is no adapter_config.json.
        ValueError: it does not name a base.
    """
    path = Path(folder, CONFIG)
    description = read_json(path)
    base_name = description.get(BASE_FIELD)
    if not isinstance(base_name, str) or not base_name:
        raise ValueError(
            f"{path}: {BASE_FIELD} = {base_name!r}: expected the folder or the hub's name of the "
            "model that these adapters were trained on"
        )
    revision = description.get("revision")
    return f"{base_name}@{revision}" if revision and not Path(base_name).exists() else base_name


def save_peft(
    folder: str | Path,
    trained: Params,
    lora: LoraConfig,
    config: TransformerConfig,
    *,
    base_name: str,
) -> None:
    """Write a language model's adapters; `base_name` is what PEFT will load as their base.

    Raises:
        ValueError: no family of transformers computes the model, or there is a head among the
            adapters.
    """
    if set(trained) != {"trunk"}:
        raise ValueError(
            f"adapters: found {', '.join(sorted(set(trained) - {'trunk'}))} beside them, expected "
            "a language model's adapters; a scalar head has no place in these files"
        )
    leaves = {
        path: np.asarray(leaf, np.float32)
        for path, leaf in flax.traverse_util.flatten_dict(trained, sep="/").items()
    }
    written = {}
    for tensor in _kernels(config):
        parts = _adapted_parts(tensor, lora.modules)
        if parts:
            a = np.concatenate([leaves[f"{part}/lora_a"].T for part in parts])
            b = _join_b(tensor, {part: leaves[f"{part}/lora_b"] for part in parts})
            written[f"{_prefix(tensor)}.lora_A.weight"] = np.ascontiguousarray(a)
            written[f"{_prefix(tensor)}.lora_B.weight"] = np.ascontiguousarray(b)
    description = {
        **_PLAIN,
        **_describe_places(lora, config),
        "task_type": "CAUSAL_LM",
        BASE_FIELD: base_name,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(written, Path(folder, WEIGHTS))
    Path(folder, CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def load_peft(folder: str | Path, config: TransformerConfig) -> tuple[Params, LoraConfig]:
    """Return the trained leaves, and their config, that PEFT or `save_peft` wrote.

    `config` is that of the base model.

    Raises:
        FileNotFoundError: one of the two files is not there.
        ValueError: names the tensor or field that is of another kind than low-rank adapters on
            `MODULES`, does not fit the base's shape, or is missing.
    """
    path = Path(folder, CONFIG)
    description = read_json(path)
    for name, plain in _PLAIN.items():
        value = description.get(name, plain)
        if value != plain and value not in (None, [], {}):
            raise ValueError(f"{path}: {name} = {value!r}, expected {plain!r}")
    _check_fields(path, description)
    for name in ("r", "lora_alpha"):
        if not isinstance(description.get(name), int | float):
            raise ValueError(f"{path}: {name} = {description.get(name)!r}, expected a number")
    stored = read_safetensors(Path(folder, WEIGHTS))
    if damaged := [name for name, array in stored.items() if not np.isfinite(array).all()]:
        raise ValueError(f"{Path(folder, WEIGHTS)}: {', '.join(damaged)}: NaN or Inf")
    kernels = {_prefix(tensor): tensor for tensor in _kernels(config)}
    _check_names(folder, stored, kernels, config.num_layers)
    adapted = {
        _module(leaf)
        for prefix, tensor in kernels.items()
        if f"{prefix}.lora_A.weight" in stored
        for leaf in tensor.leaves
    }
    modules = tuple(name for name in MODULES if name in adapted)
    lora = LoraConfig(description["r"], float(description["lora_alpha"]), modules)
    expected = _describe_places(lora, config)
    for name in ("fan_in_fan_out", "rank_pattern", "alpha_pattern"):
        value = description.get(name)
        if (value or {}) != (expected[name] or {}):
            raise ValueError(f"{path}: {name} = {value!r}, expected {expected[name]!r}")
    leaves: dict[str, Any] = {}
    for prefix, tensor in kernels.items():
        if _adapted_parts(tensor, modules):
            a = stored.get(f"{prefix}.lora_A.weight")
            b = stored.get(f"{prefix}.lora_B.weight")
            leaves |= _split(f"{folder}: {prefix}", tensor, lora.rank, a, b)
    return flax.traverse_util.unflatten_dict(leaves, sep="/"), lora


def _check_fields(path: Path, description: Mapping[str, Any]) -> None:
    """Refuse what would make other numbers of the same tensors, by the field's name."""
    init = description.get("init_lora_weights")
    if init not in _INITS:
        raise ValueError(
            f"{path}: init_lora_weights = {init!r} changes the base's weights, expected one of "
            f"{', '.join(map(str, _INITS))}; convert them to plain LoRA with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if description.get("task_type") not in (None, "CAUSAL_LM"):
        raise ValueError(f"{path}: task_type = {description['task_type']!r}, expected 'CAUSAL_LM'")
    for name, value in description.items():
        if name not in _KNOWN and value:
            raise ValueError(
                f"{path}: {name} = {value!r} is no field of plain LoRA; merge the adapters with "
                "PEFT's merge_and_unload, and name the merged model"
            )


def _check_names(
    folder: str | Path, stored: Mapping[str, Any], kernels: Mapping[str, Tensor], num_layers: int
) -> None:
    for name in stored:
        prefix, _, suffix = name.rpartition(".lora_")
        if prefix not in kernels or suffix not in ("A.weight", "B.weight"):
            modules = sorted({other.rpartition(".0.")[2] for other in kernels if ".0." in other})
            raise ValueError(
                f"{folder}: tensor {name}: expected lora_A and lora_B of {', '.join(modules)} in "
                f"layers 0 to {num_layers - 1}"
            )


def _names(config: TransformerConfig) -> Names:
    family, _ = write_config(config)
    return NAMES[family.model_type]


def _kernels(config: TransformerConfig) -> list[Tensor]:
    """Return the tensors that hold the kernels of all blocks."""
    return [
        tensor
        for tensor in tensors(_names(config), config, "language_model")
        if tensor.leaves[0].startswith("trunk/block_") and tensor.leaves[0].endswith("/kernel")
    ]


def _prefix(tensor: Tensor) -> str:
    return f"base_model.model.{tensor.name.removesuffix('.weight')}"


def _module(leaf: str) -> str:
    return leaf.split("/")[-2]


def _adapted_parts(tensor: Tensor, modules: Sequence[str]) -> list[str]:
    """Return the parts of a tensor that have adapters: "trunk/block_0/attention/query"."""
    return [leaf.removesuffix("/kernel") for leaf in tensor.leaves if _module(leaf) in modules]


def _describe_places(lora: LoraConfig, config: TransformerConfig) -> dict[str, Any]:
    """Return what adapter_config.json says of ranks and of where adapters lie."""
    names = _names(config)
    peft_names = {module.rpartition("/")[2]: name for module, name in names.modules.items()}
    linear = {peft_names[module] for module in MODULES if module in peft_names}

    # PEFT compares ends of names, and GPT-2 has two modules called c_proj.
    def shorten(name: str) -> str:
        end = name.split(".")[1]
        unique = sum(other.endswith(f".{end}") for other in linear) == 1
        return end if unique else name

    targets = [shorten(peft_names[module]) for module in lora.modules]
    num_parts = {target: targets.count(target) for target in targets}
    shared = {target: count for target, count in num_parts.items() if count > 1}
    return {
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": list(num_parts),
        "fan_in_fan_out": not names.transposed,
        "rank_pattern": {target: count * lora.rank for target, count in shared.items()},
        "alpha_pattern": {target: count * lora.alpha for target, count in shared.items()},
    }


def _join_b(tensor: Tensor, b: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return Bᵀ of a whole kernel, (out, rank · parts).

    Each part's own B is in rows of its own, with zeros elsewhere.
    """
    rank = next(iter(b.values())).shape[0]
    wide = []
    for leaf, leaf_shape in zip(tensor.leaves, tensor.leaf_shapes, strict=True):
        part = leaf.removesuffix("/kernel")
        rows = np.zeros((len(b) * rank, leaf_shape[-1]), np.float32)
        if part in b:
            start = list(b).index(part) * rank
            rows[start : start + rank] = b[part]
        wide.append(rows)
    return _with_rows(tensor, len(b) * rank).join(wide)


def _with_rows(tensor: Tensor, rows: int) -> Tensor:
    """Return how B lies in its tensor: as the kernel, with `rows` inputs, and always transposed."""
    shapes = tuple((rows, shape[-1]) for shape in tensor.leaf_shapes)
    return replace(tensor, leaf_shapes=shapes, transposed=True)


def _split(
    source: str, tensor: Tensor, rank: int, a: np.ndarray | None, b: np.ndarray | None
) -> dict[str, Any]:
    """Return A and B of every part of a kernel; undoes what `save_peft` joined."""
    total = rank * len(tensor.leaves)
    expected = {
        "lora_A": (total, tensor.leaf_shapes[0][0]),
        "lora_B": (sum(shape[-1] for shape in tensor.leaf_shapes), total),
    }
    shapes = {"lora_A": None if a is None else a.shape, "lora_B": None if b is None else b.shape}
    if a is None or b is None or shapes != expected:
        raise ValueError(
            f"{source}: A and B (rank, in), (out, rank) are {shapes}, expected {expected}"
        )
    leaves: dict[str, Any] = {}
    wide = _with_rows(tensor, total).split(b)
    for n, (leaf, rows) in enumerate(zip(tensor.leaves, wide, strict=True)):
        own = slice(n * rank, (n + 1) * rank)
        if np.delete(rows, own, axis=0).any():
            raise ValueError(
                f"{source}: lora_B: one A serves several of "
                f"{', '.join(map(_module, tensor.leaves))}, expected one for each"
            )
        part = leaf.removesuffix("/kernel")
        leaves[f"{part}/lora_a"] = jnp.asarray(a[own].T, jnp.float32)
        leaves[f"{part}/lora_b"] = jnp.asarray(rows[own], jnp.float32)
    return leaves
