"""Say which tensor of a checkpoint holds which of our parameters, and in which layout.

Names are tables from our module to the other side's; every leaf of our tree must be in the table,
so none can be forgotten. Two conventions turn a tensor into leaves: torch's linear layers are
(out, in) and ours (in, out), and several projections may share one tensor, either side by side
(GPT-2) or head by head (GPT-NeoX).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import flax.traverse_util
import jax
import numpy as np

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params

MODULES = {"language_model": LanguageModel, "scalar_model": ScalarModel}
SCORE = "score.weight"
SCORE_BIAS = "head/bias"


@dataclass(frozen=True)
class Tensor:
    """Describe one tensor of a checkpoint: its leaves, in order, and how they lie in it."""

    name: str
    leaves: tuple[str, ...]
    leaf_shapes: tuple[tuple[int, ...], ...]
    transposed: bool
    heads: int  # > 0: the leaves take turns head by head, else they lie side by side

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape in the file."""
        rows = self.leaf_shapes[0][:-1]
        shape = (*rows, sum(leaf[-1] for leaf in self.leaf_shapes))
        return shape[::-1] if self.transposed else shape

    def split(self, array: np.ndarray) -> list[np.ndarray]:
        """Return the leaves that an array of the file holds."""
        if self.transposed:
            array = array.T
        if not self.heads:
            ends = np.cumsum([shape[-1] for shape in self.leaf_shapes])
            return np.split(array, ends[:-1], axis=-1)
        by_head = array.reshape(*array.shape[:-1], self.heads, len(self.leaves), -1)
        return [by_head[..., n, :].reshape(shape) for n, shape in enumerate(self.leaf_shapes)]

    def join(self, leaves: Sequence[np.ndarray]) -> np.ndarray:
        """Return the array of the file that holds these leaves; undoes `split`."""
        if self.heads:
            by_head = [leaf.reshape(*leaf.shape[:-1], self.heads, -1) for leaf in leaves]
            array = np.stack(by_head, axis=-2).reshape(*leaves[0].shape[:-1], -1)
        else:
            array = leaves[0] if len(leaves) == 1 else np.concatenate(leaves, axis=-1)
        return np.ascontiguousarray(array.T if self.transposed else array)


@dataclass(frozen=True)
class Names:
    """Hold the tensor names of a family."""

    modules: Mapping[str, str]  # ours -> theirs; those that share one lie in it in this order
    trunk: str  # stands before the names of the trunk; absent in checkpoints of the trunk alone
    layers: str  # for "block_#/", followed by "#."
    lm_head: str
    transposed: bool  # linear layers of the trunk are (out, in)
    by_head: bool  # projections that share a tensor take turns head by head
    buffers: str  # a regular expression: what files hold besides parameters


_QKV = ("attention/query", "attention/key", "attention/value")
_LLAMA = Names(
    modules={
        "embedding": "embed_tokens",
        "final_norm": "norm",
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.o_proj",
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    },
    trunk="model.",
    layers="layers.",
    lm_head="lm_head.weight",
    transposed=True,
    by_head=False,
    buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)
_GEMMA_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_GEMMA = replace(_LLAMA, modules={**_LLAMA.modules, **_GEMMA_NORMS})
_GPT2 = Names(
    modules={
        "embedding": "wte",
        "position_embedding": "wpe",
        "final_norm": "ln_f",
        **dict.fromkeys(_QKV, "attn.c_attn"),
        "attention/out": "attn.c_proj",
        "mlp/up": "mlp.c_fc",
        "mlp/down": "mlp.c_proj",
        "attention_norm": "ln_1",
        "mlp_norm": "ln_2",
    },
    trunk="transformer.",
    layers="h.",
    lm_head="lm_head.weight",
    transposed=False,
    by_head=False,
    buffers=r"h\.\d+\.attn\.(masked_)?bias",
)
_NEOX = Names(
    modules={
        "embedding": "embed_in",
        "final_norm": "final_layer_norm",
        **dict.fromkeys(_QKV, "attention.query_key_value"),
        "attention/out": "attention.dense",
        "mlp/up": "mlp.dense_h_to_4h",
        "mlp/down": "mlp.dense_4h_to_h",
        "attention_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    },
    trunk="gpt_neox.",
    layers="layers.",
    lm_head="embed_out.weight",
    transposed=True,
    by_head=True,
    buffers=r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",
)
NAMES = {
    "gpt2": _GPT2,
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "gpt_neox": _NEOX,
}


def tensors(names: Names, config: TransformerConfig, kind: str) -> list[Tensor]:
    """Return every tensor of a checkpoint, in the order of our tree, without allocating any.

    `kind` is "language_model" or "scalar_model". The scalar head's bias is in no tensor.
    """
    tree = jax.eval_shape(partial(init_params, MODULES[kind](config)), jax.random.key(0))
    leaves_by_path = flax.traverse_util.flatten_dict(tree, sep="/")
    shapes = {path: leaf.shape for path, leaf in leaves_by_path.items()}
    grouped: dict[str, list[str]] = {}
    for leaf in shapes:
        if leaf != SCORE_BIAS:
            grouped.setdefault(_tensor_name(names, leaf), []).append(leaf)
    order = list(names.modules)
    described = []
    for name, leaves in grouped.items():
        shared = len(leaves) > 1
        if shared:
            leaves = sorted(leaves, key=lambda leaf: order.index(_parse(leaf)[1]))
        # Heads are torch's linear layers in every family.
        transposed = names.transposed or not leaves[0].startswith("trunk/")
        described.append(
            Tensor(
                name=name,
                leaves=tuple(leaves),
                leaf_shapes=tuple(shapes[leaf] for leaf in leaves),
                transposed=leaves[0].endswith("/kernel") and transposed,
                heads=config.num_heads if names.by_head and shared else 0,
            )
        )
    return described


def _tensor_name(names: Names, leaf: str) -> str:
    if not leaf.startswith("trunk/"):
        return {"lm_head/kernel": names.lm_head, "head/kernel": SCORE}[leaf]
    layer, module, part = _parse(leaf)
    prefix = f"{names.layers}{layer}." if layer else ""
    return f"{names.trunk}{prefix}{names.modules[module]}.{'bias' if part == 'bias' else 'weight'}"


def _parse(leaf: str) -> tuple[str, str, str]:
    """Split "trunk/block_0/attention/query/kernel" into ("0", "attention/query", "kernel").

    Embeddings are leaves themselves: they have no part, and like the last norm no layer.
    """
    match = re.fullmatch(r"trunk/(?:block_(\d+)/)?(.*?)(?:/(kernel|bias|scale))?", leaf)
    assert match is not None, leaf
    return match[1] or "", match[2], match[3] or ""
