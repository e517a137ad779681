"""Read models from GGUF files (llama.cpp): LLaMA and Gemma 3, dequantised to floating point.

    config, params = load_gguf("model.Q4_1.gguf", param_dtype="float32", compute_dtype="float32")
    metadata = read_metadata("model.Q4_1.gguf")

The metadata are translated to the config.json of the same model and read by `huggingface.configs`.
Three things are unlike safetensors: rows of q and k of `llama` files are permuted for rotary
positions that pair neighbours, norms of `gemma3` files hold 1 + w already, and Gemma 3's local
layers (five of six, base 10,000) are known to llama.cpp, not to the file.

Weights of a quantised file are those of the quantised model, not the released ones: results should
say so. LLaMA 3.1's scaling stands in the file as what each rate is divided by (`rope_freqs`), and
is recognised by its published constants. Needs the package `gguf` (pip install rlhf_jax[gguf]). The
file's tokenizer: `gguf_tokenizers`. Left out on purpose: writing.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.heads import Params
from rlhf_jax.models.huggingface import Place, place_on_default_device
from rlhf_jax.models.huggingface.configs import read_config
from rlhf_jax.models.huggingface.tensors import Names, Tensor, tensors
from rlhf_jax.models.layers import rope_rates

# The part of a metadata key after "llama." or "gemma3." -> config.json.
_FIELD_NAMES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
}
# Said elsewhere in the metadata, or checked by the tensors.
_REDUNDANT = ("vocab_size", "rope.dimension_count", "attention.value_length")
_ROPE_FREQS = "rope_freqs.weight"
# low_freq_factor, high_freq_factor and original_max_position_embeddings of LLaMA 3.1 to 3.3.
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GGUF_NAMES = Names(
    modules={
        "embedding": "token_embd",
        "final_norm": "output_norm",
        "attention/query": "attn_q",
        "attention/key": "attn_k",
        "attention/value": "attn_v",
        "attention/out": "attn_output",
        "attention/query_norm": "attn_q_norm",
        "attention/key_norm": "attn_k_norm",
        "mlp/gate": "ffn_gate",
        "mlp/up": "ffn_up",
        "mlp/down": "ffn_down",
        "attention_norm": "attn_norm",
        "attention_post_norm": "post_attention_norm",
        "mlp_norm": "ffn_norm",
        "mlp_post_norm": "post_ffw_norm",
    },
    trunk="",
    layers="blk.",
    lm_head="output.weight",
    transposed=True,
    by_head=False,
    buffers="",
)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Return all fields of a GGUF file, the tokenizer's among them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    metadata, _ = _open(path)
    return metadata


def read_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a GGUF file's tensors; errors are those of `load_gguf`."""
    return {name: tuple(map(int, tensor.shape)) for name, tensor in _open(path)[1].items()}


def _open(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all fields by name, and all tensors, whose data are not yet read."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: not found, expected a GGUF file")
    try:
        import gguf  # An extra: most do not need it.
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: reading GGUF needs the package gguf: pip install rlhf_jax[gguf]"
        ) from None
    try:
        reader = gguf.GGUFReader(str(path))
        fields = {name: field.contents() for name, field in reader.fields.items()}
    # What the reader raises where it looks for what is cut off.
    except (ValueError, LookupError) as error:
        raise ValueError(
            f"{path}: {type(error).__name__}: {error}, expected a whole GGUF file; download it "
            "again"
        ) from error
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def load_gguf(
    path: str | Path, *, param_dtype: str, compute_dtype: str, place: Place | None = None
) -> tuple[TransformerConfig, Params]:
    """Return the shape and the parameters of a language model in a GGUF file.

    `place` is as in `load_pretrained`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged; or lists metadata and tensors that we do not know or that
            are missing, mis-shaped, quantised in a way that the package cannot undo, or not finite.
    """
    place = place or place_on_default_device
    metadata, stored = _open(path)
    try:
        values = _config_json(
            metadata,
            vocab_size=int(stored["token_embd.weight"].shape[1]),
            tied=GGUF_NAMES.lm_head not in stored,
        )
        divisors = stored.pop(_ROPE_FREQS, None)
        if divisors is not None:
            values["rope_scaling"] = _llama3_scaling(np.asarray(divisors.data), values)
        _, config = read_config(values, param_dtype=param_dtype, compute_dtype=compute_dtype)
        if divisors is not None:
            _check_divisors(np.asarray(divisors.data), config)
        expected = {t.name: t for t in tensors(GGUF_NAMES, config, "language_model")}
        shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in stored.items()}
        _check_shapes(expected, shapes)
    except (ValueError, LookupError) as error:
        raise ValueError(f"{path}: {error}") from error
    from gguf.quants import dequantize

    leaves: dict[str, jax.Array] = {}
    damages: list[str] = []
    for name, tensor in expected.items():
        try:
            array = dequantize(stored[name].data, stored[name].tensor_type).reshape(tensor.shape)
        except NotImplementedError as error:
            damages.append(
                f"{name}: {error} by the package gguf; take the model in another quantisation, "
                "such as Q8_0"
            )
            continue
        if not np.isfinite(array).all():
            damages.append(f"{name}: NaN or Inf")
        array = _undo_layout(metadata["general.architecture"], name, array, config)
        for leaf, part in zip(tensor.leaves, tensor.split(array), strict=True):
            leaves[leaf] = place(leaf, np.ascontiguousarray(part, jnp.dtype(param_dtype)))
    if damages:
        raise ValueError("\n  ".join([f"{path}: weights that cannot be used:", *damages]))
    return config, flax.traverse_util.unflatten_dict(leaves, sep="/")


def _config_json(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool) -> dict[str, Any]:
    """Return the config.json that says what the metadata say.

    general.* and tokenizer.* are about other things.
    """
    architecture = metadata["general.architecture"]
    if architecture not in ("llama", "gemma3"):
        raise ValueError(
            f"general.architecture: {architecture!r} is not supported, expected llama or gemma3"
        )
    prefix = f"{architecture}."
    own = {
        name.removeprefix(prefix): value
        for name, value in metadata.items()
        if name.startswith(prefix)
    }
    scaling = {
        "rope_type": own.pop("rope.scaling.type", "none"),
        "factor": own.pop("rope.scaling.factor", 1.0),
    }
    # Fields without a translation keep their names, so that reading the result refuses them.
    values: dict[str, Any] = {
        _FIELD_NAMES.get(name, name): value for name, value in own.items() if name not in _REDUNDANT
    }
    values |= {
        "rope_scaling": None if scaling["rope_type"] == "none" else scaling,
        "vocab_size": vocab_size,
        "tie_word_embeddings": tied,
    }
    if architecture == "llama":
        return values | {"model_type": "llama"}
    # llama.cpp scales queries by the head's width, except in the model of 62 layers (27B).
    scalar = values["head_dim"]
    if values["num_hidden_layers"] == 62:
        scalar = values["hidden_size"] // values["num_attention_heads"]
    return values | {"model_type": "gemma3_text", "query_pre_attn_scalar": scalar}


def _llama3_scaling(divisor_K: np.ndarray, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scaling of config.json whose slowest pair is divided as in `rope_freqs`."""
    if values["model_type"] != "llama" or values["rope_scaling"]:
        raise ValueError(
            f"{_ROPE_FREQS} in a {values['model_type']} file with rope scaling "
            f"{values['rope_scaling']}: expected a llama file without other scaling"
        )
    return {"rope_type": "llama3", "factor": float(divisor_K.max()), **_LLAMA3}


def _check_divisors(divisor_K: np.ndarray, config: TransformerConfig) -> None:
    plain = rope_rates(replace(config, rope_scaling=()), local=False)
    expected_K = np.asarray(plain / rope_rates(config, local=False))
    if divisor_K.shape != expected_K.shape or not np.allclose(divisor_K, expected_K, rtol=1e-4):
        constants = ", ".join(f"{name} {value:g}" for name, value in _LLAMA3.items())
        raise ValueError(
            f"{_ROPE_FREQS}: {divisor_K.round(3).tolist()}, expected LLaMA 3.1's scaling: factor "
            f"{config.rope_scaling[0]:g}, {constants}; take the model as safetensors"
        )


def _check_shapes(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    problems = []
    for name in sorted(expected.keys() | shapes.keys()):
        shape = shapes.get(name, "nothing")
        expected_shape = expected[name].shape if name in expected else "nothing"
        if shape != expected_shape:
            problems.append(f"{name}: {shape}, expected {expected_shape}")
    if problems:
        summary = f"{len(problems)} tensors do not fit the metadata:"
        raise ValueError("\n  ".join([summary, *problems]))


def _undo_layout(
    architecture: str, name: str, array: np.ndarray, config: TransformerConfig
) -> np.ndarray:
    """Return a tensor as the model's safetensors hold it."""
    if architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
        heads = config.num_heads if name.endswith("attn_q.weight") else config.num_kv_heads
        return array.reshape(heads, -1, 2, array.shape[-1]).swapaxes(1, 2).reshape(array.shape)
    return array - 1.0 if architecture == "gemma3" and name.endswith("norm.weight") else array
