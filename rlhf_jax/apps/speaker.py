"""A checkpoint that answers: load a language model (and, if wished, a reward model), then ask for replies.

    tokens = the chat template around the messages, oldest turns dropped until prompt + reply fit the context
    pad on the left to the next of few lengths (so that few programs are compiled), sample, score, decode

Left out on purpose: a cache kept from turn to turn. Every reply reads the conversation anew, which at the
sizes people chat with in a terminal costs less than the cache's bookkeeping.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.apps.text import printable
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.inference import scoring
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import sample
from rlhf_jax.models import LanguageModel, Params, ScalarModel, TransformerConfig, from_dict
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, latest_step, resolve
from rlhf_jax.training.pretrained import HUGGINGFACE, load_model, read_tokenizer

_SMALLEST_BUCKET = 32
_NOUNS = {
    CheckpointKind.LANGUAGE_MODEL: "a language model",
    CheckpointKind.SCALAR_MODEL: "a reward model",
    CheckpointKind.CLASSIFIER: "a classifier",
}


class Reply(NamedTuple):
    """One sampled reply; `finished`: it ended by itself; `score` is None without a reward model."""

    text: str
    finished: bool
    score: float | None


class Replies(NamedTuple):
    """The samples, and how many of the oldest messages had to be left out to make room for them."""

    replies: list[Reply]
    forgotten: int


class TooLongError(ValueError):
    """The newest message alone does not leave room for a reply."""


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model from a checkpoint with its tokenizer; `workdir` is where the run lives."""

    params: Params
    config: TransformerConfig
    tokenizer: Tokenizer
    meta: Meta
    workdir: Path


def load(path: str | Path, *, kind: CheckpointKind, option: str) -> Loaded:
    """Load a checkpoint that has to be of `kind`; `option` is what the caller calls it in errors.

    Raises FileNotFoundError without a checkpoint or tokenizer, ValueError for another kind of model, a
    damaged file, or a tokenizer that is not the one the model was trained with.
    """
    inside = [
        child.name for child in sorted(Path(path).glob("*/")) if latest_step(child) is not None
    ]
    if inside and latest_step(path) is None:
        raise FileNotFoundError(
            f"{option}={path} is a folder of runs: name one of them, {', '.join(inside)}"
        )
    params, meta = load_model(path)
    if meta.kind != kind:
        found, wanted = _NOUNS.get(meta.kind, meta.kind), _NOUNS[kind]
        stages = "pretrain, sft or ppo" if kind == CheckpointKind.LANGUAGE_MODEL else "reward"
        raise ValueError(
            f"{option}={path} holds {found} (stage {meta.stage}), but {option} needs {wanted}: name a run of stage {stages}"
        )
    workdir = Path(path) if meta.stage == HUGGINGFACE else resolve(path).parent.parent
    return Loaded(params, from_dict(meta.model), read_tokenizer(path), meta, workdir)


def bucket(length: int, limit: int) -> int:
    """The padded length of a prompt: a power of two, at most `limit`, so that few lengths are ever
    compiled."""
    size = _SMALLEST_BUCKET
    while size < length:
        size *= 2
    return min(size, limit)


def trim(tokenizer: Tokenizer, messages: Sequence[Message], limit: int) -> tuple[list[int], int]:
    """(ids, how many of the oldest messages were left out): the conversation as a prompt of at most `limit`
    tokens.

    Whole exchanges (a question with its answer) go, oldest first; a system message stays. Raises TooLongError if
    the last message alone is longer.
    """
    first = int(messages[0].role == "system")
    system, turns = messages[:first], messages[first:]
    forgotten = 0
    ids = render(tokenizer, messages, generation_prompt=True).ids
    while len(ids) > limit and forgotten + 2 < len(turns):
        forgotten += 2
        ids = render(tokenizer, [*system, *turns[forgotten:]], generation_prompt=True).ids
    if len(ids) > limit:
        raise TooLongError(
            f"the message is {len(ids):,} tokens long and only {limit:,} fit beside the reply: "
            "shorten it, or lower --max_new_tokens"
        )
    return ids, forgotten


# The model is static: modules hold no arrays and are hashable. Compiled once per model and shape.
_scores = jax.jit(scoring.response_scores, static_argnums=0)


class ChatModel:
    """Answers conversations with one language model, one length limit and, if given, a reward model's
    opinion."""

    def __init__(self, language: Loaded, reward: Loaded | None, *, max_new_tokens: int) -> None:
        """Raises ValueError if the limit leaves no room for a prompt or the two models do not go together."""
        self.language, self.reward, self.max_new_tokens = language, reward, max_new_tokens
        self.tokenizer = language.tokenizer
        context = language.config.context_length
        if reward is not None:
            if reward.meta.tokenizer != language.meta.tokenizer:
                raise ValueError(
                    f"the reward model in {reward.workdir} has another tokenizer than the language model in "
                    f"{language.workdir}: name a reward model that was trained from the same pretraining run"
                )
            context = min(context, reward.config.context_length)
        if not 1 <= max_new_tokens < context:
            raise ValueError(
                f"--max_new_tokens={max_new_tokens} does not fit a context of {context} tokens: "
                f"choose 1 to {context - 1}, and leave room for the conversation"
            )
        self.context, self.prompt_limit = context, context - max_new_tokens
        # A policy that goes on as the user has ended its own turn, whether it wrote the end token or not.
        own_markers = self.tokenizer.template is None
        self.stop_tokens = (
            *self.tokenizer.stop_ids,
            *([self.tokenizer.user_id] if own_markers else []),
        )

    def __call__(
        self, messages: Sequence[Message], key: jax.Array, *, spec: SamplingSpec, num_samples: int
    ) -> Replies:
        """Sample replies to a conversation that ends with the user. Raises TooLongError."""
        ids, forgotten = trim(self.tokenizer, messages, self.prompt_limit)
        size = bucket(len(ids), self.prompt_limit)
        prompt_BP = np.full((1, size), self.tokenizer.pad_id, np.int32)
        prompt_BP[0, size - len(ids) :] = ids
        mask_BP = np.arange(size)[None] >= size - len(ids)
        samples = sample(
            LanguageModel(self.language.config),
            self.language.params,
            jnp.asarray(prompt_BP),
            jnp.asarray(mask_BP),
            key,
            spec=spec,
            response_length=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            pad_id=self.tokenizer.pad_id,
            num_samples=num_samples,
        )
        tokens_BR, length_B, stopped_B = (
            np.array(x) for x in (samples.tokens_BR, samples.length_B, samples.stopped_B)
        )
        scores = self._score(prompt_BP, mask_BP, tokens_BR, length_B, stopped_B)
        replies = []
        for row, length, stopped, score in zip(tokens_BR, length_B, stopped_B, scores, strict=True):
            text = printable(self.tokenizer.decode(row[: length - int(stopped)].tolist()))
            replies.append(Reply(text.strip(), bool(stopped), score))
        return Replies(replies, forgotten)

    def _score(
        self,
        prompt_BP: np.ndarray,
        mask_BP: np.ndarray,
        tokens_BR: np.ndarray,
        length_B: np.ndarray,
        stopped_B: np.ndarray,
    ) -> list[float | None]:
        """The reward model's score of each reply, as in training: prompt, response and its end token."""
        if self.reward is None:
            return [None] * len(tokens_BR)
        batch = len(tokens_BR)
        response_BR = tokens_BR.copy()
        response_BR[np.arange(batch)[stopped_B], length_B[stopped_B] - 1] = (
            self.tokenizer.turn_end_id
        )
        response_mask_BR = np.arange(tokens_BR.shape[1])[None] < length_B[:, None]
        texts = Texts(
            prompt_BP=jnp.asarray(np.repeat(prompt_BP, batch, axis=0)),
            prompt_mask_BP=jnp.asarray(np.repeat(mask_BP, batch, axis=0)),
            response_BR=jnp.asarray(response_BR),
            mask_BR=jnp.asarray(response_mask_BR),
        )
        score_B = _scores(ScalarModel(self.reward.config), self.reward.params, texts)
        return [float(score) for score in np.asarray(score_B)]
