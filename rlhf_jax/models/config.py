"""Describe the shape of a transformer as one frozen and checked record.

`TransformerConfig` spells out every architectural choice; `gpt`, `palm` and `llama` fill in the
choices that make a family and leave the sizes to the caller; `huggingface` reads the same record
out of a config.json of GPT-2, LLaMA, Mistral, Qwen 2 and 3, Gemma 2 and 3, GPT-NeoX. `num_params`
and `flops_per_token` are arithmetic on the record, no model needed.

Left out on purpose: mixture of experts, sparse attention, position scaling other than linear,
LLaMA 3's and YaRN's.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

CHOICES = {
    "positions": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm", "rmsnorm_plus_one"),
    "activation": ("gelu", "gelu_tanh", "swiglu", "geglu"),
    "kernel_init": ("gpt2", "fan_in"),
    "compute_dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "block"),
    "attention": ("plain", "fused"),
    "read_out": ("last_token", "pooled"),
}
SIZES = (
    "vocab_size",
    "context_length",
    "width",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_width",
    "ffw_width",
)
POSITIVE = ("rope_base", "norm_eps", "logit_scale", "embedding_std")
NOT_NEGATIVE = ("rope_base_local", "query_scale", "attention_softcap", "logit_softcap")


@dataclass(frozen=True)
class TransformerConfig:
    """Hold everything that decides a transformer's parameter shapes and what it computes.

    `kernel_init`: "gpt2" draws kernels from N(0, 0.02²) and the two projections that feed the
    residual stream from N(0, 0.02²/2L); "fan_in" draws every kernel from N(0, 1/fan_in).
    `compute_dtype`: "bfloat16" rounds the operands of linear layers and keeps their results, and
    everything else, in float32, so master weights are float32 where `param_dtype` is.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """

    vocab_size: int
    context_length: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffw_width: int
    positions: str
    rope_base: float
    rope_base_local: float  # of layers with a window, without scaling; 0: as the other layers
    rope_fraction: float  # the first part of a head's features that turns with the position
    rope_scaling: tuple[float, ...]  # (): none; (s,): positions / s; four: LLaMA 3's; five: YaRN's
    windows: tuple[int, ...]  # layer i sees the last windows[i mod len] tokens; 0: all
    norm: str  # "rmsnorm_plus_one" multiplies by 1 + scale (Gemma)
    norm_eps: float
    activation: str
    use_bias: bool  # of linear layers and LayerNorms, except queries, keys and values
    qkv_bias: bool
    qk_norm: bool
    query_scale: float  # multiplies q·k; 0: 1/√head_width
    attention_softcap: float  # a cap c maps x to c·tanh(x/c); 0: none
    post_norms: bool  # normalises what attention and feed-forward return, too
    parallel_block: bool
    shared_norm: bool  # both sides of a parallel block read the same norm
    tie_embeddings: bool
    scale_embeddings: bool
    logit_scale: float
    logit_softcap: float
    embedding_std: float
    kernel_init: str
    dropout_rate: float
    compute_dtype: str
    param_dtype: str
    remat: str  # computed again backwards: nothing, a block but its linear layers ("dots"), a block
    scan_layers: bool  # compiles one layer for all when there is no cache; results are the same
    attention: str  # "fused": without a cache by the machine's kernel (models/attention.py)
    # How a ScalarModel on this trunk reads a text: its last state, or all of them (read_out.py).
    read_out: str

    def __post_init__(self) -> None:
        for name in SIZES:
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"model.{name} = {size!r}: expected a whole number of at least 1.")
        for name, allowed in CHOICES.items():
            choice = getattr(self, name)
            if choice not in allowed:
                raise ValueError(
                    f"model.{name} = {choice!r}: expected one of {', '.join(allowed)}."
                )
        self._validate_numbers()
        self._validate_attention()
        self._validate_block()

    @property
    def gated(self) -> bool:
        """Say whether the feed-forward layer multiplies two projections (SwiGLU, GeGLU)."""
        return self.activation in ("swiglu", "geglu")

    @property
    def rotary_width(self) -> int:
        """Return how many features of a head turn with the position."""
        return int(self.head_width * self.rope_fraction)

    def window(self, layer: int) -> int:
        """Return how many tokens a query of this layer sees; 0: all."""
        return self.windows[layer % len(self.windows)]

    def _validate_numbers(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads = {self.num_heads} is not a multiple of model.num_kv_heads = "
                f"{self.num_kv_heads}: every key/value head serves the same number of query heads."
            )
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(
                f"model.dropout_rate = {self.dropout_rate}: expected 0 <= dropout_rate < 1."
            )
        for name in POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"model.{name} = {getattr(self, name)}: expected a positive number."
                )
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"model.{name} = {getattr(self, name)}: expected a positive number, or 0 for "
                    "none."
                )

    def _validate_attention(self) -> None:
        if self.positions == "rope" and (self.rotary_width % 2 or not 0 < self.rope_fraction <= 1):
            raise ValueError(
                f"model.head_width = {self.head_width}, model.rope_fraction = "
                f"{self.rope_fraction}: rotary positions need an even number of features to turn."
            )
        if len(self.rope_scaling) not in (0, 1, 4, 5) or not all(x > 0 for x in self.rope_scaling):
            raise ValueError(
                f"model.rope_scaling = {self.rope_scaling}: expected (), (factor,), "
                "(factor, low_freq_factor, high_freq_factor, original_context) or (factor, "
                "beta_fast, beta_slow, original_context, attention_factor), all positive."
            )
        if not self.windows or not all(type(w) is int and w >= 0 for w in self.windows):
            raise ValueError(
                f"model.windows = {self.windows}: expected whole numbers of tokens, 0 for no "
                "window."
            )
        if self.attention == "fused" and self.attention_softcap:
            raise ValueError(
                "model.attention = fused, model.attention_softcap = "
                f"{self.attention_softcap}: kernels have none."
            )

    def _validate_block(self) -> None:
        if self.scan_layers and len(set(self.windows)) > 1:
            raise ValueError(
                f"model.scan_layers with model.windows = {self.windows}: layers that differ "
                "cannot be scanned."
            )
        misplaced_shared_norm = self.shared_norm and not self.parallel_block
        misplaced_post_norms = self.post_norms and self.parallel_block
        if misplaced_shared_norm or misplaced_post_norms:
            raise ValueError(
                f"model.parallel_block = {self.parallel_block}, shared_norm = {self.shared_norm}, "
                f"post_norms = {self.post_norms}: a shared norm belongs to parallel blocks, norms "
                "afterwards to the others."
            )


# Every optional part of a transformer, at the value that switches it off.
OFF: dict[str, Any] = {
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
    "dropout_rate": 0.0,
    "remat": "none",
    "scan_layers": False,
    "attention": "plain",
    "read_out": "last_token",
}


class Sizes(TypedDict):
    """Name the fields that every family leaves to the caller."""

    vocab_size: int
    context_length: int
    width: int
    num_layers: int
    num_heads: int
    dropout_rate: float
    compute_dtype: str
    param_dtype: str
    remat: str


def gpt(**sizes: Unpack[Sizes]) -> TransformerConfig:
    """Describe a GPT-2 or GPT-3.

    Learned positions, pre-norm LayerNorm, GELU (tanh form), biases, tied embeddings, F = 4D.
    Source: Radford et al. 2019; Brown et al. 2020 (whose alternating sparse attention is left out).
    """
    choices = {
        "num_kv_heads": sizes["num_heads"],
        "head_width": _head_width(sizes),
        "ffw_width": 4 * sizes["width"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "activation": "gelu_tanh",
        "use_bias": True,
        "qkv_bias": True,
        "tie_embeddings": True,
        "embedding_std": 0.02,
        "kernel_init": "gpt2",
    }
    return TransformerConfig(**{**OFF, **sizes, **choices})


def palm(*, head_width: int, **sizes: Unpack[Sizes]) -> TransformerConfig:
    """Describe a PaLM.

    y = x + MLP(LN(x)) + Attn(LN(x)), SwiGLU with F = 4D, one key/value head, rotary positions, no
    biases. Embeddings are tied, drawn from N(0, 1), and logits are scaled by 1/√D. Source:
    Chowdhery et al. 2022, section 2.
    """
    choices = {
        "num_kv_heads": 1,
        "head_width": head_width,
        "ffw_width": 4 * sizes["width"],
        "positions": "rope",
        "norm": "layernorm",
        "norm_eps": 1e-6,
        "activation": "swiglu",
        "parallel_block": True,
        "shared_norm": True,
        "tie_embeddings": True,
        "logit_scale": 1.0 / math.sqrt(sizes["width"]),
        "embedding_std": 1.0,
        "kernel_init": "fan_in",
    }
    return TransformerConfig(**{**OFF, **sizes, **choices})


def llama(
    *, num_kv_heads: int, ffw_width: int, rope_base: float, **sizes: Unpack[Sizes]
) -> TransformerConfig:
    """Describe a LLaMA.

    RMSNorm, SwiGLU, rotary positions, grouped key/value heads, no biases, untied embeddings.
    Source: Touvron et al. 2023, which leaves the initialisation open; kernels are drawn as in
    GPT-2.
    """
    choices = {
        "num_kv_heads": num_kv_heads,
        "head_width": _head_width(sizes),
        "ffw_width": ffw_width,
        "positions": "rope",
        "rope_base": rope_base,
        "norm": "rmsnorm",
        "norm_eps": 1e-5,
        "activation": "swiglu",
        "tie_embeddings": False,
        "embedding_std": 0.02,
        "kernel_init": "gpt2",
    }
    return TransformerConfig(**{**OFF, **sizes, **choices})


def _head_width(sizes: Sizes) -> int:
    width, num_heads = sizes["width"], sizes["num_heads"]
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"model.width = {width} is not a multiple of model.num_heads = {num_heads}."
        )
    return width // num_heads


def _block_kernels(config: TransformerConfig) -> int:
    """Return the weights in the kernels of one block: q, k, v, out and the feed-forward ones."""
    queries = config.num_heads * config.head_width
    keys = config.num_kv_heads * config.head_width
    projections = 3 if config.gated else 2
    return config.width * (2 * queries + 2 * keys + projections * config.ffw_width)


def num_params(config: TransformerConfig) -> int:
    """Return the number of parameters of a `LanguageModel`, norms and biases included."""
    c = config
    per_feature = 2 if c.norm == "layernorm" and c.use_bias else 1
    norms = 1 if c.shared_norm else 4 if c.post_norms else 2
    block = _block_kernels(c) + per_feature * c.width * norms
    if c.use_bias:
        block += (2 if c.gated else 1) * c.ffw_width + 2 * c.width
    if c.qkv_bias:
        block += (c.num_heads + 2 * c.num_kv_heads) * c.head_width
    if c.qk_norm:
        block += per_feature * 2 * c.head_width
    embeddings = c.vocab_size * c.width * (1 if c.tie_embeddings else 2)
    positions = c.context_length * c.width if c.positions == "learned" else 0
    return embeddings + positions + c.num_layers * block + per_feature * c.width


def flops_per_token(config: TransformerConfig) -> int:
    """Return the floating point operations to train on one token at full context.

        6·N + 12·H·K·Σ_layers min(T, window)

    N counts the weights that are multiplied: kernels and the output projection, not lookups, norms
    and biases. Source: Chowdhery et al. 2022, appendix B (model FLOPs utilisation), without
    rematerialisation.
    """
    weights = config.num_layers * _block_kernels(config) + config.vocab_size * config.width
    windows = (config.window(layer) or config.context_length for layer in range(config.num_layers))
    visible = sum(min(window, config.context_length) for window in windows)
    return 6 * weights + 12 * config.num_heads * config.head_width * visible


def to_dict(config: TransformerConfig) -> dict[str, Any]:
    """Return the record as a plain dictionary, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TransformerConfig:
    """Read what `to_dict` wrote.

    Raises:
        ValueError: lists every missing and every unknown field; nothing is guessed.
    """
    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    missing = sorted(fields - values.keys())
    unknown = sorted(values.keys() - fields)
    if missing or unknown:
        raise ValueError(
            f"model description: missing fields {missing}, unknown fields {unknown}; expected "
            f"exactly {sorted(fields)}."
        )
    tuples = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return TransformerConfig(**{**values, **tuples})
