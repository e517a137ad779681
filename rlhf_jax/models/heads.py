"""Define what sits on the trunk: language model, scalar (reward or value) model, classifier.

Parameter trees share the name "trunk", so a child takes its parent's trunk by copying one
dictionary entry:

    LanguageModel  {"trunk", ["lm_head"]}              lm_head only where embeddings are not tied
    ScalarModel    {"trunk", "head"}                   pooled: and "read_out", ["lm_head"]
    Classifier     {"trunk", ["lm_head"], "head"}

Modules are frozen, hashable dataclasses without arrays: pass them to jit as static arguments.
`init_params` and `apply` are the only doors to flax; no other package imports it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.models.attention import softcap
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layers import Head, Linear
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain
from rlhf_jax.models.logits import by_columns
from rlhf_jax.models.read_out import TEXT_FEATURES, ReadOut, Surprise, surprise
from rlhf_jax.models.transformer import Cache, Transformer

Params = Any
"""A parameter tree: nested dictionaries of arrays."""
HEADS = ("read_out", "head")  # what stands on a trunk, in float32, and is trained whole


class LanguageModel(nn.Module):
    """Predict the next token: column t of the logits is about the token after position t."""

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.trunk = Transformer(c)
        if not c.tie_embeddings:
            self.lm_head = Linear(c, c.vocab_size, use_bias=False)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        *,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        hidden_BTD, cache = self.hidden(
            tokens_BT, segments_BT, cache=cache, deterministic=deterministic
        )
        return self.unembed(hidden_BTD), cache

    def hidden(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        *,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        """Return the trunk's output, for callers that need logits at some positions only."""
        return self.trunk(tokens_BT, segments_BT, cache=cache, deterministic=deterministic)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Return float32 logits (..., V) of hidden states (..., D)."""
        project = self.trunk.unembed if self.config.tie_embeddings else self.lm_head
        return _unembed(self.config, project, hidden)


def _unembed(
    c: TransformerConfig, project: Callable[[jax.Array], jax.Array], hidden: jax.Array
) -> jax.Array:
    if c.logit_scale != 1.0:
        hidden = hidden * c.logit_scale
    rows = (BATCH,) + (WHOLE,) * (hidden.ndim - 2)
    return softcap(constrain(project(hidden), *rows, TENSOR), c.logit_softcap)


class ScalarModel(nn.Module):
    """Give one number per position: a reward model's score or a value model's value.

    A reward model is read at the last token, a value model before each token. The head starts from
    N(0, 1/(F + 1)) with bias 0, where F features are the state of that token (F = D; Ziegler et al.
    2019; Stiennon et al. 2020), or with `read_out` "pooled" what all tokens up to it amount to.
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        self.trunk = Transformer(c)
        num_features = c.width
        if c.read_out == "pooled":
            num_features = TEXT_FEATURES
            self.read_out = ReadOut(c)
            if not c.tie_embeddings:
                self.lm_head = Linear(c, c.vocab_size, use_bias=False)
        self.head = Head(c, 1, (num_features + 1) ** -0.5)

    def __call__(
        self, tokens_BT: jax.Array, segments_BT: jax.Array, *, deterministic: bool = True
    ) -> jax.Array:
        features_BTF, _ = self.trunk(tokens_BT, segments_BT, deterministic=deterministic)
        if self.config.read_out == "pooled":
            embedding_BTD = self.trunk.look_up(tokens_BT)
            surprise = self._surprise(features_BTF, tokens_BT)
            features_BTF = self.read_out(
                features_BTF, embedding_BTD, surprise, tokens_BT, segments_BT
            )
        return self.head(features_BTF)[..., 0]

    def _surprise(self, hidden_BTD: jax.Array, tokens_BT: jax.Array) -> Surprise:
        """Return what the trunk's language model thought of each token; column 0 is 0."""
        c = self.config
        if self.is_initializing() and not c.tie_embeddings:
            self.lm_head(hidden_BTD)  # makes its parameters
        params = self.variables["params"]
        tables = {k: x for k, x in params["trunk"].items() if k.endswith("embedding")}
        tables = {"trunk": tables, **{k: params[k] for k in ("lm_head",) if k in params}}
        language = LanguageModel(c, parent=None)

        def read(params: Params, hidden_BUD: jax.Array, target_BU: jax.Array) -> Surprise:
            return surprise(apply(language, params, hidden_BUD, method="unembed"), target_BU)

        # Numbers to read, not ways to learn: a gradient through all logits costs a seventh of a
        # step and would bend the language model to look surprised.
        tables = jax.lax.stop_gradient(tables)
        columns = (jax.lax.stop_gradient(hidden_BTD)[:, :-1], tokens_BT[:, 1:])
        parts = by_columns(read, tables, c.vocab_size, *columns)
        return Surprise(*(jnp.pad(x_BU, ((0, 0), (1, 0))) for x_BU in parts))


class Classifier(nn.Module):
    """Give class logits at every position, and the language model's logits, in one forward pass.

    Source: Radford et al. 2018, section 3.2; read the class at the last token of the row. The head
    starts from N(0, 0.02²).
    """

    config: TransformerConfig
    num_classes: int

    def setup(self) -> None:
        c = self.config
        self.trunk = Transformer(c)
        if not c.tie_embeddings:
            self.lm_head = Linear(c, c.vocab_size, use_bias=False)
        self.head = Head(c, self.num_classes, 0.02)

    def __call__(
        self, tokens_BT: jax.Array, segments_BT: jax.Array, *, deterministic: bool = True
    ) -> tuple[jax.Array, jax.Array]:
        c = self.config
        hidden_BTD, _ = self.trunk(tokens_BT, segments_BT, deterministic=deterministic)
        project = self.trunk.unembed if c.tie_embeddings else self.lm_head
        return self.head(hidden_BTD), _unembed(c, project, hidden_BTD)


@functools.partial(jax.jit, static_argnums=0)
def init_params(module: nn.Module, key: jax.Array) -> Params:
    """Return fresh parameters, {"trunk": ...}, without flax's "params" level.

    Under `jit`, because op by op the initialisation of a large model compiles hundreds of programs.
    """
    token = jnp.ones((1, 1), jnp.int32)
    return module.init(key, token, token)["params"]


def apply(
    module: nn.Module, params: Params, *args: Any, method: str | None = None, **kwargs: Any
) -> Any:
    """Call a module, or one of its methods by name.

    A `dropout_key=` that is not None switches dropout on.
    """
    dropout_key = kwargs.pop("dropout_key", None)
    if dropout_key is not None:
        kwargs |= {"rngs": {"dropout": dropout_key}, "deterministic": False}
    return module.apply({"params": params}, *args, method=method, **kwargs)


def cast_for_compute(params: Params, config: TransformerConfig) -> Params:
    """Round matrices to the compute dtype, once instead of at every use.

    Results are the same to the bit, because every use rounds anyway. For inference loops, not for
    training.
    """
    dtype = jnp.dtype(config.compute_dtype)

    def cast(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        matrix = path[-1].key in ("kernel", "embedding") and path[0].key not in HEADS
        return x.astype(dtype) if matrix else x

    return jax.tree_util.tree_map_with_path(cast, params)


def _copy(tree: Params) -> Params:
    # Real copies: parent and child may be donated to different jitted steps.
    return jax.tree.map(jnp.copy, tree)


def scalar_params_from(lm_params: Params, key: jax.Array, config: TransformerConfig) -> Params:
    """Return a reward model's parameters: a copy of a language model's trunk and a fresh head."""
    fresh = init_params(ScalarModel(config), key)
    return {name: part if name in HEADS else _copy(lm_params[name]) for name, part in fresh.items()}


def classifier_params_from(
    lm_params: Params, key: jax.Array, config: TransformerConfig, num_classes: int
) -> Params:
    """Return a classifier's parameters: a copy of a language model and a fresh class head."""
    return {**_copy(lm_params), "head": init_params(Classifier(config, num_classes), key)["head"]}


def grow_vocabulary(
    config: TransformerConfig, params: Params, known: int, size: int
) -> tuple[TransformerConfig, Params]:
    """Make tokens known … size - 1 new: each starts as the mean of the tokens before them.

    The mean is taken of their rows of the embedding and of the output projection. Rows that a model
    has beyond its tokens are used first; without new tokens nothing changes. Source: Hewitt 2021,
    "Initializing new word embeddings".
    """
    if size == known:
        return config, params

    def renew(rows_VD: jax.Array) -> jax.Array:
        mean_D = rows_VD[:known].astype(jnp.float32).mean(0, keepdims=True).astype(rows_VD.dtype)
        new_VD = jnp.repeat(mean_D, size - known, axis=0)
        return jnp.concatenate([rows_VD[:known], new_VD, rows_VD[size:]])

    trunk = params["trunk"]
    params = {**params, "trunk": {**trunk, "embedding": renew(trunk["embedding"])}}
    if "lm_head" in params:
        params["lm_head"] = {"kernel": renew(params["lm_head"]["kernel"].T).T}
    return dataclasses.replace(config, vocab_size=max(config.vocab_size, size)), params


def shift_scores(scalar_params: Params, gain: jax.Array | float, bias: jax.Array | float) -> Params:
    """Return parameters whose score is gain·score + bias.

    So a reward model's normalisation is folded into its head.
    """
    head = scalar_params["head"]
    kernel = (head["kernel"] * gain).astype(head["kernel"].dtype)
    shifted_bias = (head["bias"] * gain + bias).astype(head["bias"].dtype)
    return {**scalar_params, "head": {"kernel": kernel, "bias": shifted_bias}}
