"""Floor 1: the transformer, its heads and its configuration. The only room that imports flax."""

from rlhf_jax.models.config import (
    TransformerConfig,
    flops_per_token,
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
    classifier_params_from,
    grow_vocabulary,
    init_params,
    scalar_params_from,
    shift_scores,
    value_params_from,
)
from rlhf_jax.models.transformer import Cache, Transformer, grow_cache, init_cache

__all__ = [
    "Cache",
    "Classifier",
    "LanguageModel",
    "Params",
    "ScalarModel",
    "Transformer",
    "TransformerConfig",
    "apply",
    "cast_for_compute",
    "classifier_params_from",
    "flops_per_token",
    "from_dict",
    "gpt",
    "grow_cache",
    "grow_vocabulary",
    "init_cache",
    "init_params",
    "llama",
    "num_params",
    "palm",
    "scalar_params_from",
    "shift_scores",
    "to_dict",
    "value_params_from",
]
