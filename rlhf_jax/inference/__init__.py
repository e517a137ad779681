"""Floor 2: drawing responses and scoring them with one model definition."""

from rlhf_jax.inference.decoding import SamplingSpec, truncates
from rlhf_jax.inference.sampling import Samples, sample
from rlhf_jax.inference.scoring import (
    NextToken,
    TextClasses,
    classify_texts,
    join,
    last_token_scores,
    next_token,
    next_token_nll,
    response_logps,
    response_scores,
    response_values,
)

__all__ = [
    "NextToken",
    "Samples",
    "SamplingSpec",
    "TextClasses",
    "classify_texts",
    "join",
    "last_token_scores",
    "next_token",
    "next_token_nll",
    "response_logps",
    "response_scores",
    "response_values",
    "sample",
    "truncates",
]
