"""Which tensor of a checkpoint holds which of our parameters, and in which layout.

Names are tables from our module to theirs; every leaf of our tree must be in the table, so none can be forgotten.
Two conventions turn a tensor into leaves: torch's linear layers are (out, in) and ours (in, out), and several
projections may share one tensor, either side by side (GPT-2) or head by head (GPT-NeoX).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params

MODULES = {"language_model": LanguageModel, "scalar_model": ScalarModel}
SCORE, SCORE_BIAS = "score.weight", "head/bias"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint: the leaves it holds, in order, and how they lie in it."""

    name: str
    leaves: tuple[str, ...]
    leaf_shapes: tuple[tuple[int, ...], ...]
    transposed: bool
    heads: int  # > 0: the leaves take turns head by head, else they lie side by side

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the file."""
        first = self.leaf_shapes[0]
        shape = (*first[:-1], sum(leaf[-1] for leaf in self.leaf_shapes))
        return shape[::-1] if self.transposed else shape

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """The leaves that an array of the file holds."""
        if self.transposed:
            array = array.T
        if not self.heads:
            ends = np.cumsum([shape[-1] for shape in self.leaf_shapes])
            return np.split(array, ends[:-1], axis=-1)
        by_head = array.reshape(*array.shape[:-1], self.heads, len(self.leaves), -1)
        return [by_head[..., n, :].reshape(shape) for n, shape in enumerate(self.leaf_shapes)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """The array of the file that holds these leaves; undoes `split`."""
        if self.heads:
            by_head = [leaf.reshape(*leaf.shape[:-1], self.heads, -1) for leaf in leaves]
            array = np.stack(by_head, axis=-2).reshape(*leaves[0].shape[:-1], -1)
        else:
            array = leaves[0] if len(leaves) == 1 else np.concatenate(leaves, axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array)


@dataclass(frozen=True)
class Names:
    """The tensor names of a family."""

    trunk: (
        str  # what stands before the names of the trunk; absent in checkpoints of the trunk alone
    )
    modules: Mapping[
        str, str
    ]  # our module -> theirs; where several share one, they lie in it in this order
    layers: str  # for "block_#/", followed by "#."
    lm_head: str
    transposed: bool  # linear layers of the trunk are (out, in)
    by_head: bool
    buffers: str  # a regular expression: what files hold besides parameters


_ATTENTION = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "attention/query_norm": "self_attn.q_norm",
    "attention/key_norm": "self_attn.k_norm",
}
_GATED = {"mlp/gate": "mlp.gate_proj", "mlp/up": "mlp.up_proj", "mlp/down": "mlp.down_proj"}
_TRUNK = {"embedding": "embed_tokens", "final_norm": "norm"}
_LLAMA_NORMS = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
_GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GPT2 = {
    "embedding": "wte",
    "position_embedding": "wpe",
    "final_norm": "ln_f",
    **dict.fromkeys(("attention/query", "attention/key", "attention/value"), "attn.c_attn"),
    "attention/out": "attn.c_proj",
    "mlp/up": "mlp.c_fc",
    "mlp/down": "mlp.c_proj",
    "attention_norm": "ln_1",
    "mlp_norm": "ln_2",
}
_NEOX = {
    "embedding": "embed_in",
    "final_norm": "final_layer_norm",
    **dict.fromkeys(
        ("attention/query", "attention/key", "attention/value"), "attention.query_key_value"
    ),
    "attention/out": "attention.dense",
    "mlp/up": "mlp.dense_h_to_4h",
    "mlp/down": "mlp.dense_4h_to_h",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
}
_FREQUENCIES = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
_llama = Names(
    "model.",
    _TRUNK | _ATTENTION | _GATED | _LLAMA_NORMS,
    "layers.",
    "lm_head.weight",
    True,
    False,
    _FREQUENCIES,
)
_gemma = Names(
    "model.",
    _TRUNK | _ATTENTION | _GATED | _GEMMA_NORMS,
    "layers.",
    "lm_head.weight",
    True,
    False,
    _FREQUENCIES,
)
NAMES = {
    "gpt2": Names(
        "transformer.", _GPT2, "h.", "lm_head.weight", False, False, r"h\.\d+\.attn\.(masked_)?bias"
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _llama),
    **dict.fromkeys(("gemma2", "gemma3_text"), _gemma),
    "gpt_neox": Names(
        "gpt_neox.",
        _NEOX,
        "layers.",
        "embed_out.weight",
        True,
        True,
        r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",
    ),
}


def leaf_shapes(config: TransformerConfig, kind: str) -> dict[str, Any]:
    """{"trunk/embedding": (V, D), ...} of a language model or scalar model, without allocating anything."""
    tree = jax.eval_shape(lambda key: init_params(MODULES[kind](config), key), jax.random.key(0))
    return {
        name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()
    }


def tensors(names: Names, config: TransformerConfig, kind: str) -> list[Tensor]:
    """Every tensor of a checkpoint, in the order of our tree. The scalar head's bias is in none."""
    shapes, grouped = leaf_shapes(config, kind), dict[str, list[str]]()
    for leaf in shapes:
        if leaf != SCORE_BIAS:
            grouped.setdefault(_name(names, leaf), []).append(leaf)
    order = list(names.modules)
    for name, leaves in grouped.items():
        if len(leaves) > 1:
            grouped[name] = sorted(leaves, key=lambda leaf: order.index(_module(leaf)[1]))
    return [
        Tensor(
            name,
            tuple(leaves),
            tuple(shapes[leaf] for leaf in leaves),
            transposed=leaves[0].endswith("/kernel")
            and (names.transposed or not leaves[0].startswith("trunk/")),
            heads=config.num_heads if names.by_head and len(leaves) > 1 else 0,
        )
        for name, leaves in grouped.items()
    ]


def _name(names: Names, leaf: str) -> str:
    if not leaf.startswith("trunk/"):
        return {"lm_head/kernel": names.lm_head, "head/kernel": SCORE}[leaf]
    layer, module, part = _module(leaf)
    number = f"{names.layers}{layer}." if layer else ""
    return f"{names.trunk}{number}{names.modules[module]}.{'bias' if part == 'bias' else 'weight'}"


def _module(leaf: str) -> tuple[str, str, str]:
    """("0", "attention/query", "kernel") of "trunk/block_0/attention/query/kernel"; embeddings are leaves themselves."""
    match = re.fullmatch(r"trunk/(?:block_(\d+)/)?(.*?)(?:/(kernel|bias|scale))?", leaf)
    assert match is not None, leaf
    return match[1] or "", match[2], match[3] or ""
