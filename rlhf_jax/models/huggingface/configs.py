"""Translate config.json <-> TransformerConfig, family by family.

    read_config     every field of config.json is translated, checked against the only value that
                    we compute, or named in BOOKKEEPING or PASSED_OVER; what is left, and every
                    value that no field of ours can say, is one error that lists all
    write_config    the first family whose reading of what it wrote gives the same TransformerConfig
                    again

Fields that a config.json leaves out have the defaults that transformers gives them. Position
scaling is written in the older spelling, which transformers 4 and 5 understand.

Left out on purpose: families with code of their own on the hub, mixtures of experts, vision
towers (of Gemma 3 the language model is read).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_jax.models.config import OFF, TransformerConfig, to_dict
from rlhf_jax.models.huggingface.fields import (
    FULL,
    SIZE_NAMES,
    SLIDING,
    YARN,
    Fields,
    read_rope,
    read_scaling,
    read_sizes,
    read_windows,
    shortest_period,
)

# Choices of a run, not of a function: equal models may differ in them.
RUN_FIELDS = (
    "dropout_rate",
    "compute_dtype",
    "param_dtype",
    "remat",
    "scan_layers",
    "attention",
    "kernel_init",
    "embedding_std",
)
DEFAULTS: dict[str, Any] = {**OFF, "positions": "rope", "kernel_init": "gpt2"}
GELUS = {
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu_tanh"),
    "gelu": "gelu",
}
GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "width": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "ffw_width": "n_inner",
}


# --- reading -------------------------------------------------------------------------------------


def _read_gated(fields: Fields) -> dict[str, Any]:
    return {
        **read_sizes(fields),
        **read_rope(fields),
        "norm": "rmsnorm",
        "norm_eps": fields.take("rms_norm_eps", 1e-6),
        "activation": fields.activation("hidden_act", {"silu": "swiglu"}, "silu"),
        "tie_embeddings": fields.take("tie_word_embeddings", False),
    }


def _read_llama(fields: Fields) -> dict[str, Any]:
    bias = fields.take("attention_bias", False)
    mlp_bias = fields.take("mlp_bias", False)
    if bias != mlp_bias:
        fields.problems.append(
            f"attention_bias: {bias}, mlp_bias: {mlp_bias}: only both or neither are supported"
        )
    fields.expect("rope_interleaved", False)
    return {**_read_gated(fields), "use_bias": bias, "qkv_bias": bias}


def _read_mistral(fields: Fields) -> dict[str, Any]:
    # transformers' default window of 4096 is for absent fields; a null, as in Mistral 7B v0.2, is
    # none.
    window = fields.optional("sliding_window") if "sliding_window" in fields.values else 4096
    return {**_read_gated(fields), "windows": (window or 0,)}


def _read_qwen(fields: Fields) -> dict[str, Any]:
    window = fields.take("sliding_window", 4096)
    first = fields.take("max_window_layers", 28)
    fields.expect("use_mrope", False)
    slides = fields.take("use_sliding_window", False)
    layers = fields.take("num_hidden_layers")
    types = [SLIDING if slides and i >= first else FULL for i in range(layers)]
    return {**_read_gated(fields), **read_windows(fields, types, window if slides else None)}


def _read_qwen2(fields: Fields) -> dict[str, Any]:
    return {**_read_qwen(fields), "qkv_bias": True}


def _read_qwen3(fields: Fields) -> dict[str, Any]:
    fields.expect("attention_bias", False)
    return {**_read_qwen(fields), "qk_norm": True, "head_width": fields.take("head_dim", 128)}


def _read_gemma(fields: Fields, default_types: list[str]) -> dict[str, Any]:
    fields.expect("attention_bias", False)
    fields.expect("use_bidirectional_attention", False)
    fields.expect("hidden_act", "gelu_pytorch_tanh")
    geglu = {"gelu_pytorch_tanh": "geglu"}
    head_width = fields.take("head_dim", 256)
    scalar = fields.take("query_pre_attn_scalar", 256)
    return {
        **read_sizes(fields),
        "norm": "rmsnorm_plus_one",
        "norm_eps": fields.take("rms_norm_eps", 1e-6),
        "activation": fields.activation("hidden_activation", geglu, "gelu_pytorch_tanh"),
        "head_width": head_width,
        "post_norms": True,
        "scale_embeddings": True,
        "tie_embeddings": fields.take("tie_word_embeddings", True),
        "query_scale": 0.0 if scalar == head_width else float(scalar) ** -0.5,
        **read_windows(fields, default_types, fields.take("sliding_window", 4096)),
    }


def _read_cap(fields: Fields, name: str, absent: float) -> float:
    cap = fields.optional(name) if name in fields.values else absent
    return float(cap or 0.0)


def _read_gemma2(fields: Fields) -> dict[str, Any]:
    layers = fields.take("num_hidden_layers")
    return {
        **_read_gemma(fields, [FULL if i % 2 else SLIDING for i in range(layers)]),
        **read_rope(fields),
        "attention_softcap": _read_cap(fields, "attn_logit_softcapping", 50.0),
        "logit_softcap": _read_cap(fields, "final_logit_softcapping", 30.0),
    }


def _read_gemma3(fields: Fields) -> dict[str, Any]:
    fields.expect("attn_logit_softcapping", None)
    pattern = fields.optional("_sliding_window_pattern")
    pattern = pattern or fields.take("sliding_window_pattern", 6)
    fields.unread.discard("sliding_window_pattern")
    layers = fields.take("num_hidden_layers")
    types = [SLIDING if (i + 1) % pattern else FULL for i in range(layers)]
    # The two kinds of layers have a base each, in one of two spellings.
    if nested := fields.optional("rope_parameters"):
        local = {"rope_theta": 10_000.0, **nested.get(SLIDING, {})}
        base_local = local.pop("rope_theta")
        if read_scaling(fields, local):
            fields.problems.append(
                "rope_parameters: scaling of the sliding layers is not supported"
            )
        rope = Fields({"rope_parameters": {"rope_theta": 1e6, **nested.get(FULL, {})}})
    else:
        base_local = fields.take("rope_local_base_freq", 10_000.0)
        base = fields.take("rope_theta", 1e6)
        rope = Fields({"rope_theta": base, "rope_scaling": fields.optional("rope_scaling")})
    translated = read_rope(rope)
    fields.problems += rope.problems
    return {
        **_read_gemma(fields, types),
        **translated,
        "rope_base_local": float(base_local),
        "qk_norm": True,
        "logit_softcap": _read_cap(fields, "final_logit_softcapping", 0.0),
    }


def _read_gpt2(fields: Fields) -> dict[str, Any]:
    fields.expect("scale_attn_weights", True)
    fields.expect("scale_attn_by_inverse_layer_idx", False)
    fields.expect("reorder_and_upcast_attn", False)
    fields.expect("add_cross_attention", False)
    width = fields.take("n_embd")
    heads = fields.take("n_head")
    defaults = {"n_inner": 4 * width}
    return {
        **{ours: fields.take(name, defaults.get(name)) for ours, name in GPT2_NAMES.items()},
        "num_kv_heads": heads,
        "head_width": width // heads,
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": fields.take("layer_norm_epsilon", 1e-5),
        "use_bias": True,
        "qkv_bias": True,
        "activation": fields.activation("activation_function", GELUS, "gelu_new"),
        "tie_embeddings": fields.take("tie_word_embeddings", True),
        "embedding_std": fields.take("initializer_range", 0.02),
    }


def _read_neox(fields: Fields) -> dict[str, Any]:
    fields.expect("attention_bias", True)
    fields.expect("is_decoder", False, True)
    parameters = fields.optional("rope_parameters")
    if not parameters:
        parameters = {
            "rope_theta": fields.take("rotary_emb_base", 10_000.0),
            **(fields.optional("rope_scaling") or {}),
            "partial_rotary_factor": fields.take("rotary_pct", 0.25),
        }
    rope = Fields({"rope_parameters": {"partial_rotary_factor": 0.25, **parameters}})
    translated = read_rope(rope)
    fields.problems += rope.problems
    return {
        **read_sizes(fields),
        **translated,
        "norm": "layernorm",
        "norm_eps": fields.take("layer_norm_eps", 1e-5),
        "activation": fields.activation("hidden_act", GELUS, "gelu"),
        "use_bias": True,
        "qkv_bias": True,
        "parallel_block": fields.take("use_parallel_residual", True),
        "tie_embeddings": fields.take("tie_word_embeddings", False),
    }


# What Gemma 3's text_config leaves out: the defaults of Gemma3TextConfig.
_GEMMA3_TEXT = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131_072,
}


def text_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json says of the language model: of Gemma 3 without its vision tower."""
    if values.get("model_type") != "gemma3" or not isinstance(values.get("text_config"), dict):
        return dict(values)
    outer = {name: values[name] for name in ("tie_word_embeddings",) if name in values}
    return {**_GEMMA3_TEXT, **outer, "model_type": "gemma3_text", **values["text_config"]}


# --- writing -------------------------------------------------------------------------------------


def _write_sizes(c: TransformerConfig) -> dict[str, Any]:
    sizes = {name: getattr(c, ours) for ours, name in SIZE_NAMES.items()}
    return {**sizes, "initializer_range": c.embedding_std}


def _write_scaling(c: TransformerConfig) -> dict[str, Any] | None:
    if not c.rope_scaling:
        return None
    if len(c.rope_scaling) == 1:
        return {"rope_type": "linear", "factor": c.rope_scaling[0]}
    if len(c.rope_scaling) == len(YARN):
        scaling = dict(zip(YARN, c.rope_scaling, strict=True))
        context = "original_max_position_embeddings"
        return {**scaling, context: int(scaling[context]), "rope_type": "yarn"}
    factor, low, high, original_context = c.rope_scaling
    return {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(original_context),
        "rope_type": "llama3",
    }


def _write_gated(c: TransformerConfig) -> dict[str, Any]:
    return {
        **_write_sizes(c),
        "rope_theta": c.rope_base,
        "rope_scaling": _write_scaling(c),
        "rms_norm_eps": c.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": c.tie_embeddings,
    }


def _write_llama(c: TransformerConfig) -> dict[str, Any]:
    return {**_write_gated(c), "attention_bias": c.use_bias, "mlp_bias": c.use_bias}


def _write_mistral(c: TransformerConfig) -> dict[str, Any]:
    return {**_write_gated(c), "sliding_window": c.window(0) or None}


def _write_layer_types(c: TransformerConfig) -> dict[str, Any]:
    types = [SLIDING if c.window(i) else FULL for i in range(c.num_layers)]
    return {"layer_types": types, "sliding_window": max(c.windows) or None}


def _write_qwen(c: TransformerConfig) -> dict[str, Any]:
    first = next((i for i in range(c.num_layers) if c.window(i)), c.num_layers)
    return {
        **_write_gated(c),
        **_write_layer_types(c),
        "use_sliding_window": first < c.num_layers,
        "max_window_layers": first,
    }


def _write_gemma(c: TransformerConfig) -> dict[str, Any]:
    return {
        **_write_gated(c),
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
        **_write_layer_types(c),
        "query_pre_attn_scalar": round(c.query_scale**-2) if c.query_scale else c.head_width,
    }


def _write_gemma3(c: TransformerConfig) -> dict[str, Any]:
    return {**_write_gemma(c), "rope_local_base_freq": c.rope_base_local}


def _write_gpt2(c: TransformerConfig) -> dict[str, Any]:
    return {
        **{name: getattr(c, ours) for ours, name in GPT2_NAMES.items()},
        "layer_norm_epsilon": c.norm_eps,
        "initializer_range": c.embedding_std,
        "activation_function": "gelu_new" if c.activation == "gelu_tanh" else "gelu",
        "tie_word_embeddings": c.tie_embeddings,
    }


def _write_neox(c: TransformerConfig) -> dict[str, Any]:
    sizes = _write_sizes(c)
    del sizes["num_key_value_heads"], sizes["head_dim"]
    return {
        **sizes,
        "rotary_emb_base": c.rope_base,
        "rotary_pct": c.rope_fraction,
        "rope_scaling": _write_scaling(c),
        "layer_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "hidden_act": "gelu" if c.activation == "gelu" else "gelu_new",
        "use_parallel_residual": c.parallel_block,
    }


@dataclass(frozen=True)
class Family:
    """Say how one model_type is spelled; `classes` begin the names of its transformers classes."""

    model_type: str
    classes: tuple[str, str]  # ...ForCausalLM, ...ForSequenceClassification
    read: Callable[[Fields], dict[str, Any]]
    write: Callable[[TransformerConfig], dict[str, Any]]


# In the order in which writing tries them: the plainest first.
FAMILIES = {
    family.model_type: family
    for family in (
        Family("gpt2", ("GPT2", "GPT2"), _read_gpt2, _write_gpt2),
        Family("llama", ("Llama", "Llama"), _read_llama, _write_llama),
        Family("mistral", ("Mistral", "Mistral"), _read_mistral, _write_mistral),
        Family("qwen2", ("Qwen2", "Qwen2"), _read_qwen2, _write_qwen),
        Family("qwen3", ("Qwen3", "Qwen3"), _read_qwen3, _write_qwen),
        Family("gemma2", ("Gemma2", "Gemma2"), _read_gemma2, _write_gemma),
        Family("gemma3_text", ("Gemma3", "Gemma3Text"), _read_gemma3, _write_gemma3),
        Family("gpt_neox", ("GPTNeoX", "GPTNeoX"), _read_neox, _write_neox),
    )
}


def read_config(
    values: Mapping[str, Any], *, param_dtype: str, compute_dtype: str
) -> tuple[Family, TransformerConfig]:
    """Return the family and the shape that a config.json describes.

    Dropout is off and nothing is rematerialised.

    Raises:
        ValueError: lists every field that is missing, unknown, or has a value that we do not
            compute.
    """
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type: {model_type!r} is not supported, expected one of {', '.join(FAMILIES)}"
        )
    family = FAMILIES[model_type]
    fields = Fields(values)
    fields.expect("pruned_heads", {})
    dtypes = {"param_dtype": param_dtype, "compute_dtype": compute_dtype}
    translated = {**DEFAULTS, **family.read(fields), **dtypes}
    problems = fields.problems + [
        f"{name}: {values[name]!r} is a field we do not know" for name in sorted(fields.unread)
    ]
    if problems:
        raise ValueError("\n  ".join([f"{model_type} configuration:", *dict.fromkeys(problems)]))
    return family, TransformerConfig(**translated)


def write_config(config: TransformerConfig) -> tuple[Family, dict[str, Any]]:
    """Return the family that computes what `config` says, and its config.json.

    Names of classes and tokens are not in it.

    Raises:
        ValueError: names the family that comes nearest and the fields that it cannot say.
    """
    differences = {}
    for name, family in FAMILIES.items():
        written = {"model_type": name, **family.write(config)}
        differences[name] = _differences(config, written)
        if not differences[name]:
            return family, written
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise ValueError(
        f"no family of transformers computes this model; {nearest} comes nearest, but differs in"
        "\n  " + "\n  ".join(differences[nearest])
    )


def _differences(config: TransformerConfig, written: Mapping[str, Any]) -> list[str]:
    """Return the fields in which a config.json, read again, differs from `config`."""
    dtypes = {"param_dtype": config.param_dtype, "compute_dtype": config.compute_dtype}
    try:
        _, read_back = read_config(written, **dtypes)
    except ValueError as error:
        return [str(error), *RUN_FIELDS]  # further away than any family that can be read
    windows = shortest_period([config.window(i) for i in range(config.num_layers)])
    ours = {**to_dict(config), "windows": windows}
    others = to_dict(read_back)
    return [
        f"{name}: {ours[name]!r}, it has {others[name]!r}"
        for name in ours
        if name not in RUN_FIELDS and ours[name] != others[name]
    ]
