"""config.json <-> TransformerConfig, family by family.

    read_config     every field of config.json is translated, checked against the only value that we compute, or named in
                    BOOKKEEPING; what is left, and every value that no field of ours can say, is one error that lists all
    write_config    the first family whose reading of what it wrote gives the same TransformerConfig again

Fields that a config.json leaves out have the defaults that transformers gives them. Position scaling is written in the older
spelling, which transformers 4 and 5 understand.

Left out on purpose: families with code of their own on the hub, mixtures of experts, vision towers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_jax.models.config import TransformerConfig, to_dict
from rlhf_jax.models.huggingface.fields import (
    FULL,
    SIZE_NAMES,
    SLIDING,
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
OFF: dict[str, Any] = {
    "positions": "rope",
    "rope_base": 10_000.0,
    "rope_base_local": 0.0,
    "rope_fraction": 1.0,
    "rope_scaling": (),
    "windows": (0,),
    "use_bias": False,
    "qkv_bias": False,
    "qk_norm": False,
    "query_scale": 0.0,
    "attention_softcap": 0.0,
    "post_norms": False,
    "parallel_block": False,
    "shared_norm": False,
    "scale_embeddings": False,
    "logit_scale": 1.0,
    "logit_softcap": 0.0,
    "kernel_init": "gpt2",
    "dropout_rate": 0.0,
    "remat": "none",
    "scan_layers": False,
    "attention": "plain",
}
GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")
GPT2_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "width": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "ffw_width": "n_inner",
}


# --- reading -----------------------------------------------------------------------------------------------------


def _read_llama(f: Fields) -> dict[str, Any]:
    bias, mlp_bias = f.take("attention_bias", False), f.take("mlp_bias", False)
    if bias != mlp_bias:
        f.problems.append(
            f"attention_bias: {bias}, mlp_bias: {mlp_bias}: only both or neither are supported"
        )
    f.expect("rope_interleaved", False)
    return _gated(f, tie=False) | {"use_bias": bias, "qkv_bias": bias}


def _gated(f: Fields, *, tie: bool) -> dict[str, Any]:
    return {
        **read_sizes(f),
        **read_rope(f),
        "norm": "rmsnorm",
        "norm_eps": f.take("rms_norm_eps", 1e-6),
        "activation": f.activation("hidden_act", {"silu": "swiglu"}, "silu"),
        "tie_embeddings": f.take("tie_word_embeddings", tie),
    }


def _read_mistral(f: Fields) -> dict[str, Any]:
    # transformers' default window of 4096 is for absent fields; a null, as in Mistral 7B v0.2, is none.
    window = f.optional("sliding_window") if "sliding_window" in f.values else 4096
    return _gated(f, tie=False) | {"windows": (window or 0,)}


def _qwen_windows(f: Fields) -> dict[str, Any]:
    window, first = f.take("sliding_window", 4096), f.take("max_window_layers", 28)
    f.expect("use_mrope", False)
    used = f.take("use_sliding_window", False)
    layers = f.take("num_hidden_layers")
    return read_windows(
        f,
        [SLIDING if used and i >= first else FULL for i in range(layers)],
        window if used else None,
    )


def _read_qwen2(f: Fields) -> dict[str, Any]:
    return _gated(f, tie=False) | _qwen_windows(f) | {"qkv_bias": True}


def _read_qwen3(f: Fields) -> dict[str, Any]:
    f.expect("attention_bias", False)
    return (
        _gated(f, tie=False)
        | _qwen_windows(f)
        | {"qk_norm": True, "head_width": f.take("head_dim", 128)}
    )


def _gemma(f: Fields, default_types: list[str]) -> dict[str, Any]:
    f.expect("attention_bias", False)
    f.expect("use_bidirectional_attention", False)
    f.expect("hidden_act", "gelu_pytorch_tanh")
    sizes = read_sizes(f)
    scalar = f.take("query_pre_attn_scalar", 256)
    return {
        **sizes,
        "norm": "rmsnorm_plus_one",
        "norm_eps": f.take("rms_norm_eps", 1e-6),
        "activation": f.activation(
            "hidden_activation", {"gelu_pytorch_tanh": "geglu"}, "gelu_pytorch_tanh"
        ),
        "head_width": f.take("head_dim", 256),
        "post_norms": True,
        "scale_embeddings": True,
        "tie_embeddings": f.take("tie_word_embeddings", True),
        "query_scale": 0.0 if scalar == f.take("head_dim", 256) else float(scalar) ** -0.5,
        **read_windows(f, default_types, f.take("sliding_window", 4096)),
    }


def _cap(f: Fields, name: str, absent: float) -> float:
    value = f.optional(name) if name in f.values else absent
    return float(value or 0.0)


def _read_gemma2(f: Fields) -> dict[str, Any]:
    layers = f.take("num_hidden_layers")
    caps = {
        "attention_softcap": _cap(f, "attn_logit_softcapping", 50.0),
        "logit_softcap": _cap(f, "final_logit_softcapping", 30.0),
    }
    return _gemma(f, [FULL if i % 2 else SLIDING for i in range(layers)]) | read_rope(f) | caps


def _read_gemma3(f: Fields) -> dict[str, Any]:
    f.expect("attn_logit_softcapping", None)
    pattern = f.optional("_sliding_window_pattern") or f.take("sliding_window_pattern", 6)
    f.unread.discard("sliding_window_pattern")
    default = [SLIDING if (i + 1) % pattern else FULL for i in range(f.take("num_hidden_layers"))]
    nested = f.optional("rope_parameters")
    if nested:
        local = {"rope_theta": 10_000.0, **nested.get(SLIDING, {})}
        base_local = local.pop("rope_theta")
        if read_scaling(f, local):
            f.problems.append("rope_parameters: scaling of the sliding layers is not supported")
        both = Fields({"rope_parameters": {"rope_theta": 1e6, **nested.get(FULL, {})}})
    else:
        base_local = f.take("rope_local_base_freq", 10_000.0)
        both = Fields(
            {"rope_theta": f.take("rope_theta", 1e6), "rope_scaling": f.optional("rope_scaling")}
        )
    rope = read_rope(both) | {"rope_base_local": float(base_local)}
    f.problems += both.problems
    cap = _cap(f, "final_logit_softcapping", 0.0)
    return _gemma(f, default) | rope | {"qk_norm": True, "logit_softcap": cap}


def _read_gpt2(f: Fields) -> dict[str, Any]:
    f.expect("scale_attn_weights", True)
    for name in (
        "scale_attn_by_inverse_layer_idx",
        "reorder_and_upcast_attn",
        "add_cross_attention",
    ):
        f.expect(name, False)
    width, heads = f.take("n_embd"), f.take("n_head")
    return {
        **{
            ours: f.take(theirs, 4 * width if theirs == "n_inner" else None)
            for ours, theirs in GPT2_NAMES.items()
        },
        "num_kv_heads": heads,
        "head_width": width // heads,
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": f.take("layer_norm_epsilon", 1e-5),
        "use_bias": True,
        "qkv_bias": True,
        "activation": f.activation("activation_function", _GELUS, "gelu_new"),
        "tie_embeddings": f.take("tie_word_embeddings", True),
        "embedding_std": f.take("initializer_range", 0.02),
    }


_GELUS = {**dict.fromkeys(GELU_TANH, "gelu_tanh"), "gelu": "gelu"}


def _read_neox(f: Fields) -> dict[str, Any]:
    f.expect("attention_bias", True)
    f.expect("is_decoder", False, True)
    rope = f.optional("rope_parameters")
    if not rope:
        rope = {
            "rope_theta": f.take("rotary_emb_base", 10_000.0),
            **(f.optional("rope_scaling") or {}),
        }
        rope["partial_rotary_factor"] = f.take("rotary_pct", 0.25)
    both = Fields({"rope_parameters": {"partial_rotary_factor": 0.25, **rope}})
    turning = read_rope(both)
    f.problems += both.problems
    return {
        **read_sizes(f),
        **turning,
        "norm": "layernorm",
        "norm_eps": f.take("layer_norm_eps", 1e-5),
        "activation": f.activation("hidden_act", _GELUS, "gelu"),
        "use_bias": True,
        "qkv_bias": True,
        "parallel_block": f.take("use_parallel_residual", True),
        "tie_embeddings": f.take("tie_word_embeddings", False),
    }


# --- writing -----------------------------------------------------------------------------------------------------


def _write_sizes(c: TransformerConfig) -> dict[str, Any]:
    return {theirs: getattr(c, ours) for ours, theirs in SIZE_NAMES.items()} | {
        "initializer_range": c.embedding_std
    }


def _write_rope(c: TransformerConfig) -> dict[str, Any]:
    if not c.rope_scaling:
        return {"rope_theta": c.rope_base, "rope_scaling": None}
    if len(c.rope_scaling) == 1:
        return {
            "rope_theta": c.rope_base,
            "rope_scaling": {"rope_type": "linear", "factor": c.rope_scaling[0]},
        }
    factor, low, high, original = c.rope_scaling
    scaling: dict[str, Any] = {"factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    scaling |= {"original_max_position_embeddings": int(original), "rope_type": "llama3"}
    return {"rope_theta": c.rope_base, "rope_scaling": scaling}


def _write_gated(c: TransformerConfig) -> dict[str, Any]:
    tie = {"tie_word_embeddings": c.tie_embeddings}
    return {
        **_write_sizes(c),
        **_write_rope(c),
        "rms_norm_eps": c.norm_eps,
        "hidden_act": "silu",
        **tie,
    }


def _write_llama(c: TransformerConfig) -> dict[str, Any]:
    return _write_gated(c) | {"attention_bias": c.use_bias, "mlp_bias": c.use_bias}


def _write_mistral(c: TransformerConfig) -> dict[str, Any]:
    return _write_gated(c) | {"sliding_window": c.window(0) or None}


def _layer_types(c: TransformerConfig) -> dict[str, Any]:
    types = [SLIDING if c.window(i) else FULL for i in range(c.num_layers)]
    return {"layer_types": types, "sliding_window": max(c.windows) or None}


def _write_qwen(c: TransformerConfig) -> dict[str, Any]:
    first = next((i for i in range(c.num_layers) if c.window(i)), c.num_layers)
    used = {"use_sliding_window": first < c.num_layers, "max_window_layers": first}
    return _write_gated(c) | _layer_types(c) | used


def _write_gemma(c: TransformerConfig) -> dict[str, Any]:
    scalar = c.head_width if not c.query_scale else round(c.query_scale**-2)
    activation = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}
    caps = {
        "attn_logit_softcapping": c.attention_softcap or None,
        "final_logit_softcapping": c.logit_softcap or None,
    }
    return _write_gated(c) | activation | caps | _layer_types(c) | {"query_pre_attn_scalar": scalar}


def _write_gemma3(c: TransformerConfig) -> dict[str, Any]:
    return _write_gemma(c) | {"rope_local_base_freq": c.rope_base_local}


def _write_gpt2(c: TransformerConfig) -> dict[str, Any]:
    return {
        **{theirs: getattr(c, ours) for ours, theirs in GPT2_NAMES.items()},
        "layer_norm_epsilon": c.norm_eps,
        "initializer_range": c.embedding_std,
        "activation_function": "gelu_new" if c.activation == "gelu_tanh" else "gelu",
        "tie_word_embeddings": c.tie_embeddings,
    }


def _write_neox(c: TransformerConfig) -> dict[str, Any]:
    sizes = {
        k: v for k, v in _write_sizes(c).items() if k not in ("num_key_value_heads", "head_dim")
    }
    rope = {
        "rotary_emb_base": c.rope_base,
        "rotary_pct": c.rope_fraction,
        "rope_scaling": _write_rope(c)["rope_scaling"],
    }
    return {
        **sizes,
        **rope,
        "layer_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "hidden_act": "gelu" if c.activation == "gelu" else "gelu_new",
        "use_parallel_residual": c.parallel_block,
    }


@dataclass(frozen=True)
class Family:
    """How one model_type is spelled; `classes` are the first words of its two transformers classes."""

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
    """The family and the shape that a config.json describes; dropout is off and nothing is rematerialised.

    Raises ValueError listing every field that is missing, unknown, or has a value that we do not compute.
    """
    model_type = values.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"model_type: {model_type!r} is not supported, expected one of {', '.join(FAMILIES)}"
        )
    family, f = FAMILIES[model_type], Fields(values)
    f.expect("pruned_heads", {})
    translated = OFF | family.read(f)
    problems = f.problems + [
        f"{name}: {values[name]!r} is a field we do not know" for name in sorted(f.unread)
    ]
    if problems:
        raise ValueError("\n  ".join([f"{model_type} configuration:", *dict.fromkeys(problems)]))
    return family, TransformerConfig(
        **translated, param_dtype=param_dtype, compute_dtype=compute_dtype
    )


def write_config(config: TransformerConfig) -> tuple[Family, dict[str, Any]]:
    """The family that computes what `config` says, and its config.json without names of classes and tokens.

    Raises ValueError naming the family that comes nearest and the fields that it cannot say.
    """
    differences = {}
    for name, family in FAMILIES.items():
        written = {"model_type": name, **family.write(config)}
        differences[name] = _differences(config, written)
        if not differences[name]:
            return family, written
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise ValueError(
        f"no family of transformers computes this model; {nearest} comes nearest, but differs in\n  "
        + "\n  ".join(differences[nearest])
    )


def _differences(config: TransformerConfig, written: Mapping[str, Any]) -> list[str]:
    try:
        _, again = read_config(
            written, param_dtype=config.param_dtype, compute_dtype=config.compute_dtype
        )
    except ValueError as error:
        return [str(error), *RUN_FIELDS]  # further away than any family that can be read
    ours = to_dict(config) | {
        "windows": shortest_period([config.window(i) for i in range(config.num_layers)])
    }
    theirs = to_dict(again)
    names = (name for name in ours if name not in RUN_FIELDS)
    return [
        f"{name}: {ours[name]!r}, it has {theirs[name]!r}"
        for name in names
        if ours[name] != theirs[name]
    ]
