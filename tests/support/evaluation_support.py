"""Fakes and toy models of the evaluation tests."""

import dataclasses
import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.data.tokenizers import Tokenizer, train_words
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, generate
from rlhf_jax.evaluation.judges import ScoreJudge
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.models import LanguageModel, ScalarModel, TransformerConfig, gpt, init_params, to_dict
from rlhf_jax.training.checkpoints import Meta, save

WORDS = "the fox is red . owl blue bear green what colour ? you dolt moron"


class Successor(nn.Module):
    """A language model that is certain of "previous token + 1", modulo its vocabulary."""

    config: TransformerConfig

    def hidden(self, tokens_BT, segments_BT, *, cache=None, deterministic=True):
        hidden = jax.nn.one_hot((tokens_BT + 1) % self.config.vocab_size, self.config.vocab_size)
        return hidden, cache if cache is None else cache._replace(
            length=cache.length + tokens_BT.shape[1]
        )

    def unembed(self, hidden):
        return 1000.0 * hidden


def config(vocab_size: int, context_length: int = 64) -> TransformerConfig:
    """A model of one small layer."""
    return gpt(
        vocab_size=vocab_size,
        context_length=context_length,
        width=8,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
    )


@functools.cache
def words() -> Tokenizer:
    """Ids 5, 6, ... are the words of WORDS, each with the space before it."""
    return train_words([WORDS, " " + WORDS])


@functools.cache
def language_model(seed: int = 0):
    return _random(LanguageModel(config(words().vocab_size)), seed)


@functools.cache
def scalar_model(seed: int = 0):
    return _random(ScalarModel(config(words().vocab_size)), seed)


def _random(model, seed):
    params = init_params(model, jax.random.key(seed))
    return model, jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, params)


def drawn_params(model, seed: int, scale: float = 0.5):
    """Parameters of the model's shapes from N(0, scale²), without compiling its initialisers."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), shapes
    )


def successor(vocab_size: int) -> Successor:
    return Successor(dataclasses.replace(config(vocab_size)))


def prompt(text: str, **metadata: str) -> Prompt:
    return Prompt((Message("user", text),), dict(metadata))


def say(text: str, finished: bool = True) -> Generation:
    """A response whose tokens are counted by its words."""
    ids = tuple(range(5, 5 + len(text.split()))) + ((1,) if finished else ())
    return Generation(text, ids, finished)


def save_run(folder: Path, stage: str, model, tokenizer: Tokenizer, *, seed: int) -> None:
    """A finished run of three steps with random parameters large enough to say different things."""
    meta = Meta(
        stage=stage,
        kind="scalar_model" if isinstance(model, ScalarModel) else "language_model",
        num_steps=3,
        model=to_dict(model.config),
        tokenizer=tokenizer.fingerprint(),
        lineage={},
    )
    params = jax.tree.map(lambda x: 4 * x, init_params(model, jax.random.key(seed)))
    save(folder, 3, params, {"step": 3}, meta, keep=1)
    tokenizer.save(folder / "tokenizer")


class Brevity(ScoreJudge):
    """A reward function: the fewer letters, the better."""

    name = "brevity"
    description = "the shorter, the better"

    def scores(self, prompts, responses):
        return np.array([[-len(sample.text) for sample in samples] for samples in responses], float)


PROMPTS = [
    prompt(text) for text in ("what is red?", "what?", "the fox is red.", "the bear", "blue owl")
]


def draw(prompts, *, num_samples=1, batch_size=4, response_length=6, seed=0):
    return generate(
        *language_model(),
        words(),
        prompts,
        jax.random.key(seed),
        GenerationSettings(PLAIN, 8, response_length, batch_size, num_samples),
    )
