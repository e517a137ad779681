"""Fakes and toy models of the evaluation tests."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.data.tokenizers import Tokenizer, train_words
from rlhf_jax.models import LanguageModel, ScalarModel, TransformerConfig, gpt, init_params

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
