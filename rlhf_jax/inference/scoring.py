"""What a model says about given tokens: log-probabilities, values and scores.

The only place that shifts predictions against tokens. With P columns of prompt and then R of response,

    response token r stands in column P + r and is predicted from column P + r - 1,

so everything about responses reads hidden states [P - 1, P + R - 1), and heads run on those columns only. Logits of more than
`MOST_LOGITS` elements on a device are never whole: they are made, read and (backwards) made again a few columns at a time.
Prompts and responses of a batch whose activations are larger than `MOST_ACTIVATIONS` are read a few rows at a time.
Prompts are left-padded, responses right-padded; with `num_rows` > 0 they are packed into that many rows first, to the same
result (inference/packing.py says how many are enough). All functions are differentiable and none is jitted: the
caller compiles its step. `dropout_key`, where offered, switches dropout on.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.packing import Packed, pack
from rlhf_jax.models import Cache, Classifier, LanguageModel, Params, ScalarModel, apply
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layout import BATCH, TENSOR, map_shards, num_shards

# 128 MB in float32. Making logits again costs a quarter of the output projection, which smaller ones need not pay.
MOST_LOGITS = 1 << 25
# 1 GB in float32, of one layer's widest array: the feed-forward features, or attention weights where these are made.
MOST_ACTIVATIONS = 1 << 28


class NextToken(NamedTuple):
    """Column t: loss of predicting token t, log Z of that prediction, and whether the column counts."""

    nll_BT: jax.Array
    log_z_BT: jax.Array
    valid_BT: jax.Array


def next_token(
    model: LanguageModel,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
) -> NextToken:
    """-log π(token t | tokens before t in its segment) and log Z, 0 where not valid.

    A column is valid when it and the column before it belong to the same segment; so column 0, the first
    token of a segment and a token right after a gap are not. What a `cache` holds comes before column 0.
    """
    hidden_BTD, _ = apply(
        model, params, tokens_BT, segments_BT, cache=cache, method="hidden", dropout_key=dropout_key
    )

    def read(
        params: Params, hidden_BUD: jax.Array, target_BU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return _log_z_and_chosen(apply(model, params, hidden_BUD, method="unembed"), target_BU)

    log_z_BU, chosen_BU = _by_columns(
        read, params, model.config.vocab_size, hidden_BTD[:, :-1], tokens_BT[:, 1:]
    )
    return _predictions(log_z_BU, chosen_BU, segments_BT)


def predicted(segments_BT: jax.Array) -> jax.Array:
    """bool_BT: the tokens that have a predecessor in their own segment, and so a prediction; column 0 never has."""
    valid_BU = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
    return jnp.pad(valid_BU, ((0, 0), (1, 0)))


def _by_columns(
    read: Callable[..., tuple[jax.Array, ...]], params: Params, vocab_size: int, *columns: jax.Array
) -> tuple[jax.Array, ...]:
    """`read(params, hidden_BUD, target_BU)`, which makes logits of its columns, in as many parts as keep those of a device
    within `MOST_LOGITS`."""
    batch, time = columns[0].shape[:2]
    shards = num_shards(batch, BATCH) * num_shards(vocab_size, TENSOR)
    parts = min(-(-batch * time * vocab_size // (shards * MOST_LOGITS)), time)
    if parts <= 1:
        return read(params, *columns)
    width = -(-time // parts)

    def split(x_BT: jax.Array) -> jax.Array:
        x_BT = jnp.pad(x_BT, ((0, 0), (0, parts * width - time)) + ((0, 0),) * (x_BT.ndim - 2))
        return jnp.moveaxis(x_BT.reshape(len(x_BT), parts, width, *x_BT.shape[2:]), 1, 0)

    def read_parts(params: Params, *columns: jax.Array) -> tuple[jax.Array, ...]:
        found = jax.lax.map(
            lambda part: jax.checkpoint(read)(params, *part), tuple(map(split, columns))
        )
        return tuple(jnp.moveaxis(x, 0, 1).reshape(-1, parts * width)[:, :time] for x in found)

    return map_shards(read_parts, params, *columns)


def _log_z_and_chosen(logits_BUV: jax.Array, target_BU: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.nn.logsumexp(logits_BUV, axis=-1), jnp.take_along_axis(
        logits_BUV, target_BU[..., None], axis=-1
    )[..., 0]


def _predictions(log_z_BU: jax.Array, chosen_BU: jax.Array, segments_BT: jax.Array) -> NextToken:
    """What the first U = T - 1 columns predict of the tokens one column to the right."""
    valid_BT = predicted(segments_BT)
    valid_BU = valid_BT[:, 1:]

    def from_column_one(x_BU: jax.Array) -> jax.Array:
        return jnp.pad(jnp.where(valid_BU, x_BU, 0), ((0, 0), (1, 0)))

    return NextToken(from_column_one(log_z_BU - chosen_BU), from_column_one(log_z_BU), valid_BT)


def next_token_nll(
    model: LanguageModel,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    cache: Cache | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """(nll_BT, valid_BT) of `next_token`, for losses without a z-loss."""
    result = next_token(model, params, tokens_BT, segments_BT, cache=cache, dropout_key=dropout_key)
    return result.nll_BT, result.valid_BT


def join(
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Prompt and response side by side: (tokens_BT, segments_BT)."""
    tokens_BT = jnp.concatenate([prompt_BP, response_BR], axis=1)
    segments_BT = jnp.concatenate([prompt_mask_BP, response_mask_BR], axis=1).astype(jnp.int32)
    return tokens_BT, segments_BT


def response_logps(
    model: LanguageModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
    *,
    spec: SamplingSpec,
    truncation: Literal["refuse", "recompute"] = "refuse",
    num_rows: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """(logp_BR, entropy_BR) of the sampling distribution `spec` makes of the model, 0 where masked.

    Truncation (greedy, top-k, nucleus) depends on the parameters: a token that the old policy could sample
    may be impossible under the new one, and the ratio of the two breaks. So a spec that truncates raises
    ValueError, unless `truncation="recompute"` asks for the truncated distribution of these very parameters;
    a token outside it then has log-probability near `EXCLUDED`.
    """
    if decoding.truncates(spec) and truncation == "refuse":
        raise ValueError(
            f"{spec} truncates the distribution, so log-probabilities of two policies are not comparable: "
            'sample with top_k=0, top_p=1.0 and temperature > 0, or pass truncation="recompute".'
        )
    laid = _lay(prompt_BP, prompt_mask_BP, response_BR, response_mask_BR, num_rows)
    hidden_NTD = _by_rows(
        lambda *rows: apply(model, params, *rows, method="hidden")[0], model.config, laid
    )
    hidden_BRD = _before_responses(hidden_NTD, laid, prompt_BP.shape[1])

    def read(
        params: Params, hidden_BUD: jax.Array, target_BU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits_BUV = decoding.sampling_logits(
            apply(model, params, hidden_BUD, method="unembed"), spec
        )
        return decoding.log_prob(logits_BUV, target_BU), decoding.entropy(logits_BUV)

    logp_BR, entropy_BR = _by_columns(
        read, params, model.config.vocab_size, hidden_BRD, response_BR
    )
    mask_BR = response_mask_BR.astype(bool)
    return jnp.where(mask_BR, logp_BR, 0.0), jnp.where(mask_BR, entropy_BR, 0.0)


def response_values(
    model: ScalarModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
    *,
    num_rows: int = 0,
) -> jax.Array:
    """value_BR: V(all before response token r), 0 where masked."""
    laid = _lay(prompt_BP, prompt_mask_BP, response_BR, response_mask_BR, num_rows)
    score_NT = _by_rows(partial(apply, model, params), model.config, laid)
    return jnp.where(
        response_mask_BR.astype(bool), _before_responses(score_NT, laid, prompt_BP.shape[1]), 0.0
    )


class _Rows(NamedTuple):
    """One row per example, as `join` lays them."""

    tokens_NT: jax.Array
    segments_NT: jax.Array


def _lay(
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
    num_rows: int,
) -> _Rows | Packed:
    tokens_BT, segments_BT = join(prompt_BP, prompt_mask_BP, response_BR, response_mask_BR)
    return pack(tokens_BT, segments_BT, num_rows) if num_rows else _Rows(tokens_BT, segments_BT)


def _by_rows(
    read: Callable[..., jax.Array], c: TransformerConfig, laid: _Rows | Packed
) -> jax.Array:
    """`read(tokens_NT, segments_NT)`, in as few parts as keep a layer's activations on a device within `MOST_ACTIVATIONS`."""
    rows, time = laid.tokens_NT.shape
    mine = rows // num_shards(rows, BATCH)
    per_row = time * max(c.ffw_width, c.num_heads * time) // num_shards(c.num_heads, TENSOR)
    parts = next(
        p
        for p in range(1, mine + 1)
        if mine % p == 0 and (mine // p * per_row <= MOST_ACTIVATIONS or p == mine)
    )
    if parts == 1:
        return read(laid.tokens_NT, laid.segments_NT)

    def split(x_NT: jax.Array) -> jax.Array:  # every device's rows into as many parts
        return jnp.moveaxis(x_NT.reshape(rows // parts, parts, time), 1, 0)

    found = jax.lax.map(lambda part: read(*part), (split(laid.tokens_NT), split(laid.segments_NT)))
    return jnp.moveaxis(found, 0, 1).reshape(rows, *found.shape[2:])


def _before_responses(x_NT: jax.Array, laid: _Rows | Packed, prompt_length: int) -> jax.Array:
    """Column r: what stands one column before response token r."""
    if isinstance(laid, _Rows):
        return x_NT[:, prompt_length - 1 : -1]
    return laid.read(x_NT, jnp.arange(prompt_length - 1, x_NT.shape[1] - 1)[None, :])


def last_token_scores(
    model: ScalarModel,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """score_B read at the last real token of each row, wherever its padding is; 0 for a row of padding."""
    return _last_scores(
        apply(model, params, tokens_BT, segments_BT, dropout_key=dropout_key), segments_BT
    )


def _last_scores(score_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    score_B = _at_last_token(score_BT[..., None], segments_BT)[:, 0]
    return jnp.where((segments_BT > 0).any(axis=1), score_B, 0.0)


def _at_last_token(x_BTC: jax.Array, segments_BT: jax.Array) -> jax.Array:
    last_B = segments_BT.shape[1] - 1 - jnp.argmax(segments_BT[:, ::-1] > 0, axis=1)
    return jnp.take_along_axis(x_BTC, last_B[:, None, None], axis=1)[:, 0]


def response_scores(
    model: ScalarModel,
    params: Params,
    prompt_BP: jax.Array,
    prompt_mask_BP: jax.Array,
    response_BR: jax.Array,
    response_mask_BR: jax.Array,
    *,
    num_rows: int = 0,
) -> jax.Array:
    """score_B of prompt and response together, read at the last response token."""
    laid = _lay(prompt_BP, prompt_mask_BP, response_BR, response_mask_BR, num_rows)
    score_NT = _by_rows(partial(apply, model, params), model.config, laid)
    if isinstance(laid, _Rows):
        return _last_scores(score_NT, laid.segments_NT)
    last_B = prompt_BP.shape[1] - 1 + response_mask_BR.sum(axis=1)
    return laid.read(score_NT, last_B[:, None])[:, 0]


class TextClasses(NamedTuple):
    """Class logits read at the last real token of each text, and the language model's loss on its tokens."""

    logits_BC: jax.Array
    nll_BT: jax.Array
    valid_BT: jax.Array


def classify_texts(
    model: Classifier,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> TextClasses:
    """What a classifier says of whole texts, in one forward pass (Radford et al. 2018, equations 3 and 5)."""
    class_BTC, logits_BTV = apply(model, params, tokens_BT, segments_BT, dropout_key=dropout_key)
    language = _predictions(*_log_z_and_chosen(logits_BTV[:, :-1], tokens_BT[:, 1:]), segments_BT)
    return TextClasses(_at_last_token(class_BTC, segments_BT), language.nll_BT, language.valid_BT)


def packed_scores(
    model: ScalarModel,
    params: Params,
    tokens_NT: jax.Array,
    segments_NT: jax.Array,
    row_BC: jax.Array,
    last_BC: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """score_BC of candidates packed several to a row, each read at its last token (row_BC, last_BC)."""
    score_NT = apply(model, params, tokens_NT, segments_NT, dropout_key=dropout_key)
    return score_NT[row_BC, last_BC]


def packed_logps(
    model: LanguageModel,
    params: Params,
    tokens_NT: jax.Array,
    segments_NT: jax.Array,
    row_BC: jax.Array,
    last_BC: jax.Array,
    length_BC: jax.Array,
) -> jax.Array:
    """logp_BC: Σ log π over the `length_BC` tokens that end at (row_BC, last_BC), candidates packed several to a row."""
    nll_NT, _ = next_token_nll(model, params, tokens_NT, segments_NT)
    before_BCT = last_BC[..., None] - jax.lax.broadcasted_iota(
        jnp.int32, (*last_BC.shape, tokens_NT.shape[1]), 2
    )
    own_BCT = (before_BCT >= 0) & (before_BCT < length_BC[..., None])
    return -jnp.where(own_BCT, nll_NT[row_BC], 0.0).sum(axis=-1)
