"""Models of Hugging Face's transformers, both ways: folders of config.json and safetensors.

    config, params = load_pretrained(folder, kind="language_model", ...)      GPT-2, LLaMA, Mistral, Qwen 2 and 3,
    save_pretrained(folder, config, params, kind="language_model", ...)       Gemma 2 and 3 (text), GPT-NeoX

Reading is strict: a field of config.json or a tensor that we do not know, one that is missing, of another shape or not
finite is an error that lists all of them. Tensors are read one at a time and placed before the next one is read. The
folder's tokenizer is read and written by `data.tokenizers`.

A reward model is transformers' ...ForSequenceClassification with one label. That class has no bias, our head has one: it
is written to config.json as `rlhf_jax_score_bias`, so our own reading gets it back, while the logit of transformers is
our score minus that constant. Rankings, differences and Bradley-Terry probabilities are the same.

Left out on purpose: pickled weights, code from the hub, quantised weights, downloading.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.heads import Params
from rlhf_jax.models.huggingface.configs import read_config, write_config
from rlhf_jax.models.huggingface.files import (
    DTYPES,
    Stored,
    catalogue,
    read_json,
    read_tensors,
    write_tensors,
)
from rlhf_jax.models.huggingface.tensors import MODULES, NAMES, SCORE_BIAS, Names, Tensor, tensors

__all__ = ["TOKEN_IDS", "Place", "load_pretrained", "on_default_device", "save_pretrained"]

Place = Callable[[str, np.ndarray], jax.Array]
BIAS_FIELD = "rlhf_jax_score_bias"
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_pretrained(
    folder: str | Path,
    *,
    kind: str,
    param_dtype: str,
    compute_dtype: str,
    place: Place | None = None,
) -> tuple[TransformerConfig, Params]:
    """The shape and the parameters of a model in a local folder; `kind` is "language_model" or "scalar_model".

    `place(path, array)` puts a parameter, as soon as it is read, where it shall live (a device, a sharding); `path` is
    e.g. "trunk/block_0/mlp/up/kernel". Weights that both models have are kept to the bit if `param_dtype` can hold them.
    Raises FileNotFoundError without config.json or safetensors, ValueError listing everything that does not fit.
    """
    folder = Path(folder)
    values = read_json(folder / "config.json")
    bias = float(values.pop(BIAS_FIELD, 0.0))
    try:
        family, config = read_config(values, param_dtype=param_dtype, compute_dtype=compute_dtype)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    stored, copy = _resolve(folder, NAMES[family.model_type], config, kind)
    leaves = _read(folder, stored, copy, jnp.dtype(param_dtype), place or on_default_device)
    if kind == "scalar_model":
        leaves[SCORE_BIAS] = (place or on_default_device)(
            SCORE_BIAS, np.full(1, bias, jnp.dtype(param_dtype))
        )
    return config, flax.traverse_util.unflatten_dict(leaves, sep="/")


def on_default_device(_: str, array: np.ndarray) -> jax.Array:
    """Where parameters go without a `place`: to JAX's default device, as a copy."""
    return jax.device_put(array, may_alias=False)


Wanted = dict[str, tuple[Tensor, Stored]]


def _resolve(
    folder: Path, names: Names, config: TransformerConfig, kind: str
) -> tuple[Wanted, dict[str, Stored]]:
    """Where every tensor is, by its name in the files; besides, a copy of tied embeddings that some files hold."""
    found = catalogue(folder)
    # Checkpoints of the trunk alone, like GPT-2's, leave the first part of all names out.
    trunk = names.trunk if any(name.startswith(names.trunk) for name in found) else ""
    expected = {
        re.sub("^" + re.escape(names.trunk), trunk, t.name): t for t in tensors(names, config, kind)
    }
    buffers = re.compile(re.escape(trunk) + names.buffers)
    tied = config.tie_embeddings and kind == "language_model" and names.lm_head in found
    copy = {names.lm_head: found.pop(names.lm_head)} if tied else {}
    problems = [
        f"missing    {name} {list(t.shape)}" for name, t in expected.items() if name not in found
    ]
    problems += [
        f"unexpected {name} {list(stored.shape)}"
        for name, stored in found.items()
        if name not in expected and not buffers.fullmatch(name)
    ]
    for name in expected.keys() & found.keys():
        have, want = found[name], expected[name].shape
        if have.shape != want:
            problems.append(f"mis-shaped {name} {list(have.shape)}, expected {list(want)}")
        if have.dtype not in DTYPES:
            problems.append(f"dtype      {name} {have.dtype}, expected one of {', '.join(DTYPES)}")
    if problems:
        raise ValueError(
            "\n  ".join(
                [
                    f"{folder}: {len(problems)} tensors do not fit its config.json:",
                    *sorted(problems),
                ]
            )
        )
    return {name: (t, found[name]) for name, t in expected.items()}, copy


def _read(
    folder: Path, wanted: Wanted, copy: Mapping[str, Stored], dtype: np.dtype, place: Place
) -> dict[str, jax.Array]:
    leaves, broken = dict[str, jax.Array](), list[str]()
    for name, array in read_tensors({name: stored for name, (_, stored) in wanted.items()}):
        tensor = wanted[name][0]
        if not np.isfinite(array).all():
            broken.append(f"{name}: NaN or Inf")
            continue
        if tensor.leaves == ("trunk/embedding",):
            broken += [
                f"{other}: differs from {name}, but tie_word_embeddings is true"
                for other, output in read_tensors(copy)
                if not np.array_equal(output, array)
            ]
        for leaf, part in zip(tensor.leaves, tensor.split(array), strict=True):
            leaves[leaf] = place(leaf, np.ascontiguousarray(part, dtype))
        del array, part  # Before the next one is read: at most one tensor is in host memory.
    if broken:
        raise ValueError("\n  ".join([f"{folder}: damaged weights:", *broken]))
    return leaves


def save_pretrained(
    folder: str | Path,
    config: TransformerConfig,
    params: Params,
    *,
    kind: str,
    token_ids: Mapping[str, int],
    max_shard_bytes: int,
) -> None:
    """Write config.json and safetensors that transformers reads as ...ForCausalLM or ...ForSequenceClassification.

    `token_ids` are bos_token_id, eos_token_id and pad_token_id, as far as the tokenizer has them. Transformers reads a
    score at the last token that is not padding; where padding is the end token it would look one token too early, so
    then the field is left out and transformers scores row by row. More than `max_shard_bytes` become several files.

    Raises ValueError where no family computes this model, or a parameter is not finite or has no place in the files,
    FileExistsError where the folder has a model already.
    """
    if kind not in MODULES or set(token_ids) - set(TOKEN_IDS):
        raise ValueError(
            f"kind = {kind!r}, token_ids = {dict(token_ids)}: expected one of {list(MODULES)}, {list(TOKEN_IDS)}"
        )
    family, values = write_config(config)
    token_ids = dict(token_ids)
    if kind == "scalar_model" and token_ids.get("pad_token_id") == token_ids.get("eos_token_id"):
        token_ids.pop("pad_token_id", None)
    causal, scoring = family.classes
    architecture = (
        f"{scoring}ForSequenceClassification" if kind == "scalar_model" else f"{causal}ForCausalLM"
    )
    values |= {
        "architectures": [architecture],
        "torch_dtype": config.param_dtype,
        **dict.fromkeys(TOKEN_IDS),
        **token_ids,
    }
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    if kind == "scalar_model":
        values |= {
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            BIAS_FIELD: float(leaves[SCORE_BIAS][0]),
        }
    wanted = {tensor.name: tensor for tensor in tensors(NAMES[family.model_type], config, kind)}
    strays = (
        leaves.keys()
        - {leaf for tensor in wanted.values() for leaf in tensor.leaves}
        - {SCORE_BIAS}
    )
    if strays:
        some = ", ".join(sorted(strays)[:3])
        raise ValueError(
            f"{some}: {len(strays)} parameters have no place in the files; merge adapters"
        )
    sizes = {
        name: sum(leaves[leaf].nbytes for leaf in tensor.leaves) for name, tensor in wanted.items()
    }

    def make(name: str) -> np.ndarray:
        parts = [np.asarray(leaves[leaf]) for leaf in wanted[name].leaves]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError(f"{', '.join(wanted[name].leaves)}: NaN or Inf, not written")
        return wanted[name].join(parts)

    folder = Path(folder)
    write_tensors(folder, sizes, make, max_shard_bytes=max_shard_bytes)
    # Last, so that an export that was interrupted does not look like a model.
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
