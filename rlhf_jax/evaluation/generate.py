"""Generate responses to prompts, as text, in batches of one fixed shape.

    render every prompt with the chat template  ->  left-pad to `prompt_length`
    for every batch:  `inference.sampling` draws `num_samples` each with fold_in(key, batch)
    cut at the stop token, decode

Two checkpoints evaluated with the same key draw from the same uniform numbers, which makes their
comparison tighter. Parameters may be sharded, over several processes too, and then the rows of a
batch are where they divide.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.batching import batch_rows, run_batches
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import Samples, sample
from rlhf_jax.models.heads import LanguageModel, Params

ROUND = 16  # widths of prompts are multiples of this: few shapes, few compiles


class GenerationSettings(NamedTuple):
    """How responses are drawn, how long prompts and responses may be, and how many a batch has.

    `batch_size` counts responses drawn at once, so a call reads max(1, batch_size // num_samples)
    prompts: memory does not depend on `num_samples`, as long as that is no larger than the batch.
    """

    sampling: SamplingSpec
    prompt_length: int
    response_length: int
    batch_size: int
    num_samples: int = 1  # of every prompt


class Generation(NamedTuple):
    """One response. `ids` ends with the stop token iff `finished`; `text` is without it."""

    text: str
    ids: tuple[int, ...]
    finished: bool

    @property
    def length(self) -> int:
        """Return the number of tokens, the stop token included."""
        return len(self.ids)


class Padded(NamedTuple):
    """Contexts as arrays, one row each."""

    tokens_NP: np.ndarray
    mask_NP: np.ndarray


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], prompt_length: int
) -> list[list[int]]:
    """Render prompts as token ids, up to where the assistant speaks.

    Raises:
        ValueError: there are no prompts, or one is longer than `prompt_length`.
    """
    if not prompts:
        raise ValueError("prompts: none, expected at least one to generate responses to")
    messages = [prompt.messages for prompt in prompts]
    contexts = [row.ids for row in render_batch(tokenizer, messages, generation_prompt=True)]
    for row, ids in enumerate(contexts):
        if len(ids) > prompt_length:
            raise ValueError(
                f"prompt {row} has {len(ids)} tokens, prompt_length is {prompt_length}: "
                f"raise prompt_length or drop the prompt "
                f"({prompts[row].messages[-1].content[:60]!r})"
            )
    return contexts


def left_pad(contexts: Sequence[Sequence[int]], pad_id: int, prompt_length: int) -> Padded:
    """Pad token ids on the left, no further than the longest of them needs."""
    longest = max(len(ids) for ids in contexts)
    width = min(prompt_length, -(-longest // ROUND) * ROUND)
    tokens_NP = np.full((len(contexts), width), pad_id, np.int32)
    mask_NP = np.zeros((len(contexts), width), bool)
    for row, ids in enumerate(contexts):
        tokens_NP[row, width - len(ids) :] = ids
        mask_NP[row, width - len(ids) :] = True
    return Padded(tokens_NP, mask_NP)


def generate(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    key: jax.Array,
    settings: GenerationSettings,
) -> list[list[Generation]]:
    """Draw responses to every prompt."""
    contexts = encode_prompts(tokenizer, prompts, settings.prompt_length)
    return complete(model, params, tokenizer, contexts, key, settings)


def complete(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    contexts: Sequence[Sequence[int]],
    key: jax.Array,
    settings: GenerationSettings,
) -> list[list[Generation]]:
    """Draw responses as `generate`, after contexts of 1 to `prompt_length` token ids each."""
    padded = left_pad(contexts, tokenizer.pad_id, settings.prompt_length)
    num_samples = settings.num_samples

    def draw(batch: tuple[int, np.ndarray]) -> Samples:
        index, rows = batch
        return sample(
            model,
            params,
            padded.tokens_NP[rows],
            padded.mask_NP[rows],
            jax.random.fold_in(key, index),
            spec=settings.sampling,
            response_length=settings.response_length,
            num_samples=num_samples,
            stop_tokens=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
        )

    rows = batch_rows(len(contexts), max(1, settings.batch_size // num_samples))
    samples = run_batches(draw, list(enumerate(rows)), "responses")
    flat = [generation for batch in samples for generation in decode_samples(tokenizer, batch)]
    # The rows that filled up the last batch are left behind.
    return [flat[row * num_samples : (row + 1) * num_samples] for row in range(len(contexts))]


def decode_samples(tokenizer: Tokenizer, samples: Samples) -> list[Generation]:
    """Return samples, whose arrays are on the host, as text."""
    generations = []
    rows = zip(samples.tokens_BR, samples.length_B, samples.stopped_B, strict=True)
    for tokens_R, length, stopped in rows:
        ids = tuple(tokens_R[:length].tolist())
        generations.append(Generation(tokenizer.decode(ids), ids, bool(stopped)))
    return generations
