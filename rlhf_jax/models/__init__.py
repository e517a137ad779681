"""Define the transformer, its heads and its configuration; nothing else imports flax."""

from rlhf_jax.models.config import (
    TransformerConfig,
    from_dict,
    gpt,
    llama,
    num_params,
    palm,
    to_dict,
)
from rlhf_jax.models.heads import (
    Classifier,
    LanguageModel,
    Params,
    ScalarModel,
    apply,
    cast_for_compute,
    init_params,
)
from rlhf_jax.models.transformer import Cache, grow_cache, init_cache

__all__ = [
    "Cache",
    "Classifier",
    "LanguageModel",
    "Params",
    "ScalarModel",
    "TransformerConfig",
    "apply",
    "cast_for_compute",
    "from_dict",
    "gpt",
    "grow_cache",
    "init_cache",
    "init_params",
    "llama",
    "num_params",
    "palm",
    "to_dict",
]
