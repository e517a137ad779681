"""Read a text at all of its tokens: what a pooled ScalarModel's head stands on.

A score of a text asks whether something in it is wrong, while the last state of a language model
says what comes next. So every token is judged where it stands, and the judgements are pooled:

    x_t = MLP( h_t, h_(t-1), e_t;  -log p_t, gap_t, entropy_t, repeated_t )      160, 96 features
    read_t = ReLU( W [ Σ_(s≤t) σ(x_s) / 8,  max_(s≤t) σ(x_s),  h_t ] )            128 features

with the token's embedding e_t, its probability p_t under the language model whose trunk this is,
gap_t = log p of the likeliest token - log p_t, and whether the token occurred before in the text.
Sums and maxima run, so that there is one value per position, which depends on nothing later, and
a value model can start from a reward model. All tokens of a text are pooled, the prompt's
included: h_t knows whose turn it is.

Left out on purpose: features for pairs of a prompt's and a response's tokens, other sizes.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layers import Head
from rlhf_jax.models.logits import log_z_and_chosen

TOKEN_HIDDEN, TOKEN_FEATURES, TEXT_FEATURES = 160, 96, 128
SUM_SCALE = 1 / 8  # a feature that marks one token in eight sums to about 1 per line of text


class Surprise(NamedTuple):
    """Hold what a language model thought of each token, in nats."""

    nll_BT: jax.Array
    gap_BT: jax.Array
    entropy_BT: jax.Array


def surprise(logits_BUV: jax.Array, target_BU: jax.Array) -> Surprise:
    """Return -log p of the targets, how much likelier the likeliest token was, and the entropy.

    H = log Z - Σ_v p_v·logit_v
    """
    log_z_BU, chosen_BU = log_z_and_chosen(logits_BUV, target_BU)
    p_BUV = jnp.exp(logits_BUV - log_z_BU[..., None])
    entropy_BU = log_z_BU - (p_BUV * logits_BUV).sum(axis=-1)
    return Surprise(log_z_BU - chosen_BU, logits_BUV.max(axis=-1) - chosen_BU, entropy_BU)


class ReadOut(nn.Module):
    """Pool a text's tokens up to each position: (B, T, D) states to (B, T, F) features."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        hidden_BTD: jax.Array,
        embedding_BTD: jax.Array,
        surprise: Surprise,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
    ) -> jax.Array:
        follows_BT = follows(segments_BT)
        hidden_BTD = _unit(hidden_BTD)
        before_BTD = jnp.where(follows_BT[..., None], _one_later(hidden_BTD), 0.0)
        states_BTE = jnp.concatenate([hidden_BTD, before_BTD, _unit(embedding_BTD)], axis=-1)
        nats_BT3 = jnp.where(follows_BT[..., None], jnp.stack(surprise, axis=-1), 0.0)
        numbers_BTN = jnp.concatenate(
            [jnp.log1p(jnp.maximum(nats_BT3, 0.0)), repeated(tokens_BT, segments_BT)], axis=-1
        )
        token_BTF = self._dense(states_BTE, TOKEN_HIDDEN, "states")
        token_BTF = token_BTF + self._dense(numbers_BTN, TOKEN_HIDDEN, "numbers")
        marks_BTF = jax.nn.sigmoid(
            self._dense(jax.nn.relu(token_BTF), TOKEN_FEATURES, "marks") - 2.0
        )
        sum_BTF, max_BTF = running_sum_and_max(marks_BTF, segments_BT)
        text_BTE = jnp.concatenate([SUM_SCALE * sum_BTF, max_BTF, hidden_BTD], axis=-1)
        return jax.nn.relu(self._dense(text_BTE, TEXT_FEATURES, "text"))

    def _dense(self, x: jax.Array, features: int, name: str) -> jax.Array:
        return Head(self.config, features, x.shape[-1] ** -0.5, name=name)(x)


def follows(segments_BT: jax.Array) -> jax.Array:
    """Mark the tokens that stand right behind another one of their segment."""
    follows_BT = (segments_BT == _one_later(segments_BT)) & (segments_BT > 0)
    return follows_BT.at[:, 0].set(False)


def repeated(tokens_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Return 1 where a token, and where a token with the one before it, occurred before: (B, T, 2).

    Only in the token's own segment, and 0 at padding.
    """
    time = tokens_BT.shape[1]
    earlier_TS = jnp.arange(time)[:, None] > jnp.arange(time)[None, :]
    own_BTS = (segments_BT[:, :, None] == segments_BT[:, None, :]) & earlier_TS[None]
    same_BTS = (tokens_BT[:, :, None] == tokens_BT[:, None, :]) & own_BTS
    before_BT = jnp.where(follows(segments_BT), _one_later(tokens_BT), -1)
    pair_BTS = same_BTS & (before_BT[:, :, None] == before_BT[:, None, :])
    flags_BT2 = jnp.stack([same_BTS.any(axis=-1), pair_BTS.any(axis=-1)], axis=-1)
    return jnp.where(segments_BT[..., None] > 0, flags_BT2, False).astype(jnp.float32)


def running_sum_and_max(x_BTF: jax.Array, segments_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return Σ and max over the tokens up to each position of its own segment, of x ≥ 0.

    At padding inside a segment the sum and maximum of the tokens before it are carried on.
    """
    real_BT = segments_BT > 0
    x_BTF = jnp.where(real_BT[..., None], x_BTF, 0.0)
    segment_BT = jax.lax.cummax(segments_BT, axis=1)  # padding belongs to what is before it
    starts_BT1 = (segment_BT != _one_later(segment_BT))[..., None]

    def join(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        starts = b[0]
        sums = jnp.where(starts, b[1], a[1] + b[1])
        return a[0] | starts, sums, jnp.where(starts, b[2], jnp.maximum(a[2], b[2]))

    _, sum_BTF, max_BTF = jax.lax.associative_scan(join, (starts_BT1, x_BTF, x_BTF), axis=1)
    return sum_BTF, max_BTF


def _one_later(x_BT: jax.Array) -> jax.Array:
    """Put every column's content one column to the right; column 0 becomes 0."""
    return jnp.pad(x_BT[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (x_BT.ndim - 2))


def _unit(x: jax.Array) -> jax.Array:
    """Scale the last axis to mean square 1."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
