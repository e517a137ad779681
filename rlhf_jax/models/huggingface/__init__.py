"""Read and write models of Hugging Face's transformers: folders of config.json and safetensors.

    config, params = load_pretrained(folder, kind="language_model", ...)
    save_pretrained(folder, config, params, kind="language_model", ...)

GPT-2, LLaMA, Mistral, Qwen 2 and 3, Gemma 2 and 3 (text), GPT-NeoX. Reading is strict: a field of
config.json or a tensor that we do not know, one that is missing, of another shape or not finite is
an error that lists all of them. Tensors are read one at a time and placed before the next one is
read. The folder's tokenizer is read and written by `data.tokenizers`.

A reward model is transformers' ...ForSequenceClassification with one label. That class has no bias,
our head has one: it is written to config.json as `rlhf_jax_score_bias`, so our own reading gets it
back, while the logit of transformers is our score minus that constant. Rankings, differences and
Bradley-Terry probabilities are the same.

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
from rlhf_jax.models.huggingface.configs import read_config, text_config, write_config
from rlhf_jax.models.huggingface.fields import PASSED_OVER
from rlhf_jax.models.huggingface.files import (
    DTYPES,
    Stored,
    catalogue,
    read_json,
    read_tensors,
    write_tensors,
)
from rlhf_jax.models.huggingface.tensors import MODULES, NAMES, SCORE_BIAS, Names, Tensor, tensors

__all__ = ["TOKEN_IDS", "Place", "load_pretrained", "place_on_default_device", "save_pretrained"]

Place = Callable[[str, np.ndarray], jax.Array]
BIAS_FIELD = "rlhf_jax_score_bias"
# Gemma 3 with a vision tower, as transformers wrote it before and since 4.52.
_VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
_LANGUAGE = re.compile(r"^language_model\.|(?<=^model\.)language_model\.")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def place_on_default_device(_: str, array: np.ndarray) -> jax.Array:
    """Copy a parameter to JAX's default device."""
    return jax.device_put(array, may_alias=False)


def load_pretrained(
    folder: str | Path,
    *,
    kind: str,
    param_dtype: str,
    compute_dtype: str,
    place: Place | None = None,
) -> tuple[TransformerConfig, Params]:
    """Return the shape and the parameters of a model in a local folder.

    `kind` is "language_model" or "scalar_model". `place(path, array)` puts a parameter, as soon as
    it is read, where it shall live (a device, a sharding), by default on JAX's default device;
    `path` is e.g. "trunk/block_0/mlp/up/kernel". Weights that both models have are kept to the bit
    if `param_dtype` can hold them.

    Raises:
        FileNotFoundError: there is no config.json, or there are no safetensors.
        ValueError: lists everything that does not fit.
    """
    place = place or place_on_default_device
    folder = Path(folder)
    values = text_config(read_json(folder / "config.json"))
    if passed_over := sorted(PASSED_OVER & values.keys()):
        print(
            f"   {folder / 'config.json'}: passed over, as they change no number here: "
            f"{', '.join(passed_over)}",
            flush=True,
        )
    bias = float(values.pop(BIAS_FIELD, 0.0))
    try:
        family, config = read_config(values, param_dtype=param_dtype, compute_dtype=compute_dtype)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error
    expected, tied_copy = _match(folder, NAMES[family.model_type], config, kind)
    dtype = jnp.dtype(param_dtype)
    leaves = _read(folder, expected, tied_copy, dtype, place)
    if kind == "scalar_model":
        leaves[SCORE_BIAS] = place(SCORE_BIAS, np.full(1, bias, dtype))
    return config, flax.traverse_util.unflatten_dict(leaves, sep="/")


Expected = dict[str, tuple[Tensor, Stored]]


def _match(
    folder: Path, names: Names, config: TransformerConfig, kind: str
) -> tuple[Expected, dict[str, Stored]]:
    """Find every tensor by its name in the files, and the copy of tied embeddings in some files."""
    stored = _text_alone(folder, catalogue(folder))
    # Checkpoints of the trunk alone, like GPT-2's, leave the first part of all names out.
    trunk = names.trunk if any(name.startswith(names.trunk) for name in stored) else ""
    prefix = re.compile("^" + re.escape(names.trunk))
    expected = {prefix.sub(trunk, t.name): t for t in tensors(names, config, kind)}
    tied_copy = {}
    if config.tie_embeddings and kind == "language_model" and names.lm_head in stored:
        output = stored.pop(names.lm_head)
        embedding = next(n for n, t in expected.items() if t.leaves == ("trunk/embedding",))
        if embedding in stored:
            tied_copy = {names.lm_head: output}
        else:
            stored[embedding] = output
    buffers = re.compile(re.escape(trunk) + names.buffers)
    problems = []
    for name in expected.keys() - stored.keys():
        problems.append(f"missing    {name} {list(expected[name].shape)}")
    for name in stored.keys() - expected.keys():
        if not buffers.fullmatch(name):
            problems.append(f"unexpected {name} {list(stored[name].shape)}")
    for name in expected.keys() & stored.keys():
        shape, dtype = stored[name].shape, stored[name].dtype
        if shape != expected[name].shape:
            problems.append(
                f"mis-shaped {name} {list(shape)}, expected {list(expected[name].shape)}"
            )
        if dtype not in DTYPES:
            problems.append(f"dtype      {name} {dtype}, expected one of {', '.join(DTYPES)}")
    if problems:
        summary = f"{folder}: {len(problems)} tensors do not fit its config.json:"
        raise ValueError("\n  ".join([summary, *sorted(problems)]))
    return {name: (tensor, stored[name]) for name, tensor in expected.items()}, tied_copy


def _text_alone(folder: Path, stored: dict[str, Stored]) -> dict[str, Stored]:
    """Return the tensors of the language model, under the names that they have without vision."""
    vision = [name for name in stored if _VISION.match(name)]
    if not vision:
        return stored
    print(f"   {folder}: {len(vision)} tensors of the vision tower are passed over", flush=True)
    return {
        _LANGUAGE.sub("", name): tensor for name, tensor in stored.items() if name not in vision
    }


def _read(
    folder: Path, expected: Expected, tied_copy: Mapping[str, Stored], dtype: np.dtype, place: Place
) -> dict[str, jax.Array]:
    """Return our leaves by path, read tensor by tensor."""
    leaves: dict[str, jax.Array] = {}
    damages: list[str] = []
    for name, array in read_tensors({name: stored for name, (_, stored) in expected.items()}):
        tensor, _ = expected[name]
        if not np.isfinite(array).all():
            damages.append(f"{name}: NaN or Inf")
            continue
        if tensor.leaves == ("trunk/embedding",):
            damages += [
                f"{copy}: differs from {name}, but tie_word_embeddings is true"
                for copy, output in read_tensors(tied_copy)
                if not np.array_equal(output, array)
            ]
        for leaf, part in zip(tensor.leaves, tensor.split(array), strict=True):
            leaves[leaf] = place(leaf, np.ascontiguousarray(part, dtype))
        del array, part  # Before the next one is read: at most one tensor is in host memory.
    if damages:
        raise ValueError("\n  ".join([f"{folder}: damaged weights:", *damages]))
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
    """Write config.json and safetensors that transformers reads.

    They are read as ...ForCausalLM or ...ForSequenceClassification. `token_ids` are bos_token_id,
    eos_token_id and pad_token_id, as far as the tokenizer has them. More than `max_shard_bytes`
    become several files.

    Raises:
        ValueError: no family computes this model, or a parameter is not finite or has no place in
            the files.
        FileExistsError: the folder has a model already.
    """
    if kind not in MODULES or set(token_ids) - set(TOKEN_IDS):
        raise ValueError(
            f"kind = {kind!r}, token_ids = {dict(token_ids)}: expected one of {list(MODULES)}, "
            f"{list(TOKEN_IDS)}"
        )
    if kind == "scalar_model" and config.read_out != "last_token":
        raise ValueError(
            f"read_out = {config.read_out}: a ...ForSequenceClassification scores the last token's "
            "state alone; only last_token has a place in these files"
        )
    family, values = write_config(config)
    causal, scoring = family.classes
    values |= {
        "architectures": [f"{causal}ForCausalLM"],
        "torch_dtype": config.param_dtype,
        **dict.fromkeys(TOKEN_IDS),
        **token_ids,
    }
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    if kind == "scalar_model":
        values |= {
            "architectures": [f"{scoring}ForSequenceClassification"],
            "id2label": {"0": "score"},
            "label2id": {"score": 0},
            BIAS_FIELD: float(leaves[SCORE_BIAS][0]),
        }
        # Transformers reads a score at the last token that is not padding; where padding is the end
        # token it would look one token too early. Without the field it scores row by row.
        if values["pad_token_id"] == values["eos_token_id"]:
            values["pad_token_id"] = None
    written = {tensor.name: tensor for tensor in tensors(NAMES[family.model_type], config, kind)}
    placed = {leaf for tensor in written.values() for leaf in tensor.leaves}
    if strays := sorted(leaves.keys() - placed - {SCORE_BIAS}):
        raise ValueError(
            f"{', '.join(strays[:3])}: {len(strays)} parameters have no place in the files; "
            "merge adapters"
        )
    sizes = {
        name: sum(leaves[leaf].nbytes for leaf in tensor.leaves) for name, tensor in written.items()
    }

    def make(name: str) -> np.ndarray:
        parts = [np.asarray(leaves[leaf]) for leaf in written[name].leaves]
        if not all(np.isfinite(part).all() for part in parts):
            raise ValueError(f"{', '.join(written[name].leaves)}: NaN or Inf, not written")
        return written[name].join(parts)

    folder = Path(folder)
    write_tensors(folder, sizes, make, max_shard_bytes=max_shard_bytes)
    # Last, so that an export that was interrupted does not look like a model.
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
