"""Measure a checkpoint: everything that needs its model, as plain data that can be kept on disk.

    responses    answers to the test prompts
    corpus       loss on the validation documents
    divergence   log-ratio to the reference of the checkpoint's own answers
    reward       a reward model's scores of the responses

A measurement is a function (LoadedModel, Context) -> plain data without any statistics, and
`evaluation.results` makes rows of the table from it under the same key. A world that can measure
more hands its own functions in (`results.Suite`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, generate
from rlhf_jax.evaluation.likelihood import continuations, corpus_nll, score_responses, sequence_kl
from rlhf_jax.evaluation.table import Data
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


@dataclass(frozen=True)
class Context:
    """What measurements read besides the checkpoint; other models are loaded when first needed.

    Its repr names all that is asked and how, so that a kept measurement can be told from others.
    """

    tokenizer: Tokenizer = field(repr=False)
    settings: EvalSettings
    prompts: Sequence[Prompt]
    documents: Sequence[Document]
    questions: Any  # of a world, read by its own measurements alone
    load_reference: Callable[[], LoadedModel] = field(repr=False)
    load_reward: Callable[[], tuple[ScalarModel, Params]] = field(repr=False)
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
    return {"responses": draw_responses(loaded, context, context.prompts, purpose)}


def restore_responses(data: Data) -> Responses:
    """Return the responses of a measurement that was kept as JSON."""
    return [
        [Generation(text, tuple(ids), finished) for text, ids, finished in samples]
        for samples in data["responses"]
    ]


def corpus(loaded: LoadedModel, context: Context) -> Data:
    """Sum the loss over every block of the validation corpus, and count its tokens."""
    nll_N, tokens_N = corpus_nll(
        *loaded,
        context.tokenizer,
        context.documents,
        context_length=context.settings.document_length,
        batch_size=context.batch_size,
        mask_documents=context.settings.mask_documents,
    )
    return {"nll": nll_N, "tokens": tokens_N}


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
    texts = (context.tokenizer, context.prompts, context.responses)
    score_NS = score_responses(context.load_reward(), *texts, batch_size=context.batch_size)
    return {"scores": score_NS}


MEASUREMENTS: dict[str, Measurement] = {
    "responses": responses,
    "corpus": corpus,
    "divergence": divergence,
    "reward": reward,
}


def take_first(name: str, count: int, items: Sequence) -> list:
    """Return the first `count` items.

    Raises:
        ValueError: there are fewer; names the field.
    """
    if count > len(items):
        raise ValueError(f"{name}={count}: there are only {len(items)}, ask for at most so many")
    return [items[k] for k in range(count)]
