"""Measure a checkpoint: everything that needs its model, as plain data that can be kept on disk.

    responses    answers to the test prompts
    corpus       loss on the validation documents
    divergence   log-ratio to the reference of the checkpoint's own answers
    reward       a reward model's scores of the responses
    fluency      how likely the responses are as text to a second model
    likelihood   how likely the responses are to the checkpoint itself

Every model reads and writes with its own tokenizer.

A measurement is a function (LoadedModel, Context) -> plain data without any statistics, and
`evaluation.results` makes rows of the table from it under the same key. A world that can measure
more hands its own functions in (`results.Suite`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, generate
from rlhf_jax.evaluation.likelihood import (
    continuation_logps,
    continuations,
    corpus_nll,
    score_responses,
    score_texts,
    sequence_kl,
    text_nll,
)
from rlhf_jax.evaluation.table import Data
from rlhf_jax.evaluation.texts import count_bytes, count_words
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.models.heads import Params, ScalarModel
from rlhf_jax.training.keys import EvaluationPurpose, run_key

Responses = list[list[Generation]]  # N prompts, S responses to each


@dataclass(frozen=True)
class EvalSettings:
    """How much is measured of every checkpoint, and how responses are drawn."""

    seed: int
    responses: GenerationSettings  # to the test prompts
    document_length: int
    mask_documents: bool  # as in pretraining


class RewardModel(NamedTuple):
    """A reward model, and the tokenizer that it reads with."""

    model: ScalarModel
    params: Params
    tokenizer: Tokenizer


class SecondModel(NamedTuple):
    """A language model that only reads what others wrote, and its tokenizer."""

    loaded: LoadedModel
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Context:
    """What measurements read besides the checkpoint; other models are loaded when first needed.

    The tokenizer and the responses are those of the checkpoint that is being measured. Its repr
    names all that is asked and how, so that a kept measurement can be told from others.
    """

    tokenizer: Tokenizer = field(repr=False)
    settings: EvalSettings
    prompts: Sequence[Prompt]
    documents: Sequence[Document]
    questions: Any  # of a world, read by its own measurements alone
    load_reference: Callable[[], LoadedModel] = field(repr=False)
    load_reward: Callable[[], RewardModel] = field(repr=False)
    load_second: Callable[[], SecondModel] = field(repr=False)
    # The checkpoint's, once they are drawn.
    responses: Responses | None = field(default=None, repr=False)

    @property
    def batch_size(self) -> int:
        """Return how many texts are read at once."""
        return self.settings.responses.batch_size


Measurement = Callable[[LoadedModel, Context], Data]


def draw_responses(
    loaded: LoadedModel,
    context: Context,
    prompts: Sequence[Prompt],
    purpose: EvaluationPurpose,
    **changes: Any,
) -> Responses:
    """Draw responses with a key for each `purpose`, the same one for all checkpoints.

    `changes` are those of the settings for responses to the test prompts.
    """
    key = run_key(jax.random.key(context.settings.seed), purpose)
    settings = context.settings.responses._replace(**changes)
    return generate(*loaded, context.tokenizer, prompts, key, settings)


def responses(loaded: LoadedModel, context: Context) -> Data:
    """Answer the test prompts."""
    purpose = EvaluationPurpose.RESPONSES
    drawn = draw_responses(loaded, context, context.prompts, purpose)
    return {"responses": drawn, "tokenizer": context.tokenizer.fingerprint()}


def restore_responses(data: Data) -> Responses:
    """Return the responses of a measurement that was kept as JSON."""
    return [
        [Generation(text, tuple(ids), finished) for text, ids, finished in samples]
        for samples in data["responses"]
    ]


def corpus(loaded: LoadedModel, context: Context) -> Data:
    """Sum the loss over every block of the validation corpus; count its tokens and bytes."""
    nll_N, tokens_N = corpus_nll(
        *loaded,
        context.tokenizer,
        context.documents,
        context_length=context.settings.document_length,
        batch_size=context.batch_size,
        mask_documents=context.settings.mask_documents,
    )
    num_bytes = sum(count_bytes(document.text) for document in context.documents)
    return {"nll": nll_N, "tokens": tokens_N, "bytes": num_bytes}


def divergence(loaded: LoadedModel, context: Context) -> Data:
    """Return log π(y|x) - log π_ref(y|x) of the checkpoint's own samples at temperature 1.

    New ones are drawn if the responses at hand were sampled otherwise.
    """
    samples = context.responses
    if context.settings.responses.sampling != PLAIN or samples is None:
        samples = draw_responses(
            loaded, context, context.prompts, EvaluationPurpose.KL, sampling=PLAIN
        )
    items = continuations(context.tokenizer, context.prompts, samples)
    kl_M = sequence_kl(loaded, context.load_reference(), items, batch_size=context.batch_size)
    return {"kl": kl_M.reshape(len(samples), -1)}


def reward(loaded: LoadedModel, context: Context) -> Data:
    """Score the responses with the reward model."""
    del loaded
    assert context.responses is not None, "responses are measured first"
    return {"scores": reward_scores(context, context.responses)}


def reward_scores(context: Context, responses: Responses) -> np.ndarray:
    """Return the reward model's score_NS of responses of the checkpoint that is being measured.

    It reads the token ids that were drawn, as in training, or with another tokenizer the text.

    Raises:
        ValueError: a text does not fit its context.
    """
    model, params, tokenizer = context.load_reward()
    if tokenizer.fingerprint() == context.tokenizer.fingerprint():
        texts = (tokenizer, context.prompts, responses)
        return score_responses((model, params), *texts, batch_size=context.batch_size)
    texts = (tokenizer, context.prompts, responses)
    try:
        return score_texts((model, params), *texts, batch_size=context.batch_size)
    except ValueError as error:
        remedy = "lower evaluation.response_length or name a reward model with a longer context"
        raise ValueError(f"reward: {error}; {remedy}") from error


def fluency(loaded: LoadedModel, context: Context) -> Data:
    """Read the responses with a second model, as plain text without prompt or chat template.

    So neither a template nor a tokenizer matters. Words and bytes are those of what was read.
    """
    del loaded
    assert context.responses is not None, "responses are measured first"
    second = context.load_second()
    texts = [sample.text for samples in context.responses for sample in samples]
    nll_M, token_M = text_nll(
        *second.loaded, second.tokenizer, texts, batch_size=context.batch_size
    )
    shape = (len(context.responses), -1)
    counts = {
        name: np.array([count(text) for text in texts]) * (token_M > 0)
        for name, count in (("words", count_words), ("bytes", count_bytes))
    }
    return {
        name: value_M.reshape(shape)
        for name, value_M in {"nll": nll_M, "tokens": token_M, **counts}.items()
    }


def likelihood(loaded: LoadedModel, context: Context) -> Data:
    """Return log π(y|x) of the responses under the checkpoint that drew them."""
    assert context.responses is not None, "responses are measured first"
    items = continuations(context.tokenizer, context.prompts, context.responses)
    logp_M = continuation_logps(*loaded, items, batch_size=context.batch_size)
    return {"logp": logp_M.reshape(len(context.responses), -1)}


MEASUREMENTS: dict[str, Measurement] = {
    "responses": responses,
    "corpus": corpus,
    "divergence": divergence,
    "reward": reward,
    "fluency": fluency,
    "likelihood": likelihood,
}


def take_first(name: str, count: int, items: Sequence) -> list:
    """Return the first `count` items.

    Raises:
        ValueError: there are fewer; names the field.
    """
    if count > len(items):
        raise ValueError(f"{name}={count}: there are only {len(items)}, ask for at most so many")
    return [items[k] for k in range(count)]
