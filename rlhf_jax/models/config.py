"""The shape of a transformer, as one frozen and checked record.

`TransformerConfig` spells out every architectural choice; `gpt`, `palm` and `llama` fill in the choices that
make a family and leave the sizes to the caller. `num_params` and `flops_per_token` are arithmetic on the
record, no model needed.

Left out on purpose: mixture of experts, sparse or sliding-window attention, separate biases for queries and
keys only.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

CHOICES = {
    "positions": ("learned", "rope"),
    "norm": ("layernorm", "rmsnorm"),
    "activation": ("gelu", "gelu_tanh", "swiglu", "geglu"),
    "kernel_init": ("gpt2", "fan_in"),
    "compute_dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
    "remat": ("none", "block"),
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


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the parameter shapes of a transformer and what it computes.

    `kernel_init`: "gpt2" draws kernels from N(0, 0.02²) and the two projections that feed the residual
    stream from N(0, 0.02²/2L); "fan_in" draws every kernel from N(0, 1/fan_in). `compute_dtype="bfloat16"`
    rounds the operands of linear layers to bfloat16 and keeps their results, and everything else, in
    float32. Raises ValueError naming the field.
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
    norm: str
    norm_eps: float
    activation: str
    use_bias: bool
    parallel_block: bool
    tie_embeddings: bool
    scale_embeddings: bool
    logit_scale: float
    embedding_std: float
    kernel_init: str
    dropout_rate: float
    compute_dtype: str
    param_dtype: str
    remat: str

    def __post_init__(self) -> None:
        self.validate()

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies two projections (SwiGLU, GeGLU)."""
        return self.activation in ("swiglu", "geglu")

    def validate(self) -> None:
        """Check every field; raises ValueError with the field, its value and what is allowed."""
        for name in SIZES:
            size = getattr(self, name)
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"model.{name} = {size!r}: expected a whole number of at least 1.")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} = {getattr(self, name)!r}: expected one of {', '.join(allowed)}.")
        self._validate_numbers()

    def _validate_numbers(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads = {self.num_heads} is not a multiple of model.num_kv_heads = "
                f"{self.num_kv_heads}: every key/value head serves the same number of query heads."
            )
        if self.positions == "rope" and self.head_width % 2:
            raise ValueError(f"model.head_width = {self.head_width}: rotary positions need an even head width.")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"model.dropout_rate = {self.dropout_rate}: expected 0 <= dropout_rate < 1.")
        for name in ("rope_base", "norm_eps", "logit_scale", "embedding_std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"model.{name} = {getattr(self, name)}: expected a positive number.")


def gpt(
    *,
    vocab_size: int,
    context_length: int,
    width: int,
    num_layers: int,
    num_heads: int,
    dropout_rate: float,
    compute_dtype: str,
    param_dtype: str,
    remat: str,
) -> TransformerConfig:
    """GPT-2 and GPT-3: learned positions, pre-norm LayerNorm, GELU (tanh form), biases, tied embeddings, F =
    4D.

    Source: Radford et al. 2019; Brown et al. 2020 (whose alternating sparse attention is left out).
    """
    _check_divides(width, num_heads)
    return TransformerConfig(
        vocab_size=vocab_size, context_length=context_length, width=width, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=num_heads, head_width=width // num_heads, ffw_width=4 * width,
        positions="learned", rope_base=10_000.0, norm="layernorm", norm_eps=1e-5, activation="gelu_tanh",
        use_bias=True, parallel_block=False, tie_embeddings=True, scale_embeddings=False, logit_scale=1.0,
        embedding_std=0.02, kernel_init="gpt2",
        dropout_rate=dropout_rate, compute_dtype=compute_dtype, param_dtype=param_dtype, remat=remat,
    )  # fmt: skip


def palm(
    *,
    vocab_size: int,
    context_length: int,
    width: int,
    num_layers: int,
    num_heads: int,
    head_width: int,
    dropout_rate: float,
    compute_dtype: str,
    param_dtype: str,
    remat: str,
) -> TransformerConfig:
    """PaLM: y = x + MLP(LN(x)) + Attn(LN(x)), SwiGLU with F = 4D, one key/value head, rotary positions, no
    biases.

    Embeddings are tied, drawn from N(0, 1), and logits are scaled by 1/√D. Source: Chowdhery et al. 2022,
    section 2.
    """
    return TransformerConfig(
        vocab_size=vocab_size, context_length=context_length, width=width, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=1, head_width=head_width, ffw_width=4 * width,
        positions="rope", rope_base=10_000.0, norm="layernorm", norm_eps=1e-6, activation="swiglu",
        use_bias=False, parallel_block=True, tie_embeddings=True, scale_embeddings=False,
        logit_scale=1.0 / math.sqrt(width), embedding_std=1.0, kernel_init="fan_in",
        dropout_rate=dropout_rate, compute_dtype=compute_dtype, param_dtype=param_dtype, remat=remat,
    )  # fmt: skip


def llama(
    *,
    vocab_size: int,
    context_length: int,
    width: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int,
    ffw_width: int,
    rope_base: float,
    dropout_rate: float,
    compute_dtype: str,
    param_dtype: str,
    remat: str,
) -> TransformerConfig:
    """LLaMA: RMSNorm, SwiGLU, rotary positions, grouped key/value heads, no biases, untied embeddings.

    Source: Touvron et al. 2023, which leaves the initialisation open; kernels are drawn as in GPT-2.
    """
    _check_divides(width, num_heads)
    return TransformerConfig(
        vocab_size=vocab_size, context_length=context_length, width=width, num_layers=num_layers,
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_width=width // num_heads, ffw_width=ffw_width,
        positions="rope", rope_base=rope_base, norm="rmsnorm", norm_eps=1e-5, activation="swiglu",
        use_bias=False, parallel_block=False, tie_embeddings=False, scale_embeddings=False, logit_scale=1.0,
        embedding_std=0.02, kernel_init="gpt2",
        dropout_rate=dropout_rate, compute_dtype=compute_dtype, param_dtype=param_dtype, remat=remat,
    )  # fmt: skip


def _check_divides(width: int, num_heads: int) -> None:
    if num_heads < 1 or width % num_heads:
        raise ValueError(f"model.width = {width} is not a multiple of model.num_heads = {num_heads}.")


def _block_kernels(config: TransformerConfig) -> int:
    """Weights in the kernels of one block: q, k, v, out and the feed-forward projections."""
    queries, keys = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    projections = 3 if config.gated else 2
    return config.width * (2 * queries + 2 * keys + projections * config.ffw_width)


def num_params(config: TransformerConfig) -> int:
    """The number of parameters of a `LanguageModel`, norms and biases included."""
    c = config
    norm = c.width * (2 if c.norm == "layernorm" and c.use_bias else 1)
    biases = 0
    if c.use_bias:
        biases = (c.num_heads + 2 * c.num_kv_heads) * c.head_width + (2 if c.gated else 1) * c.ffw_width + 2 * c.width
    block = _block_kernels(c) + biases + norm * (1 if c.parallel_block else 2)
    embeddings = c.vocab_size * c.width * (1 if c.tie_embeddings else 2)
    positions = c.context_length * c.width if c.positions == "learned" else 0
    return embeddings + positions + c.num_layers * block + norm


def flops_per_token(config: TransformerConfig) -> int:
    """Floating point operations to train on one token at full context: 6·N + 12·L·H·K·T.

    N counts the weights that are multiplied: kernels and the output projection, not lookups, norms and
    biases. Source: Chowdhery et al. 2022, appendix B (model FLOPs utilisation), without rematerialisation.
    """
    weights = config.num_layers * _block_kernels(config) + config.vocab_size * config.width
    attention = config.num_layers * config.num_heads * config.head_width * config.context_length
    return 6 * weights + 12 * attention


def to_dict(config: TransformerConfig) -> dict[str, Any]:
    """The record as a plain dictionary, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TransformerConfig:
    """Read what `to_dict` wrote; raises ValueError that lists every missing and every unknown field."""
    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    missing, unknown = sorted(fields - values.keys()), sorted(values.keys() - fields)
    if missing or unknown:
        raise ValueError(
            f"model description: missing fields {missing}, unknown fields {unknown}; expected exactly {sorted(fields)}."
        )
    return TransformerConfig(**values)
