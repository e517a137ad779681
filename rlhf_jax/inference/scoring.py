"""Read log-probabilities, values and scores of given tokens from a model.

The only place that shifts predictions against tokens. With P columns of prompt and then R of
response,

    response token r stands in column P + r and is predicted from column P + r - 1,

so everything about responses reads hidden states [P - 1, P + R - 1), and heads run on those columns
only. With `num_rows` > 0 texts are packed into that many rows first, to the same result. All
functions are differentiable and none is jitted; `dropout_key`, where offered, switches dropout on.

Logits are made a few columns at a time where there are many (models/logits.py); texts whose
activations are larger than `MOST_ACTIVATIONS` are read a few rows at a time.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.packing import Packed, Texts, pack
from rlhf_jax.models import Cache, Classifier, LanguageModel, Params, ScalarModel, apply
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layout import BATCH, TENSOR, num_shards
from rlhf_jax.models.logits import by_columns, log_z_and_chosen

# 1 GB in float32, of one layer's widest array: feed-forward features, or attention weights.
MOST_ACTIVATIONS = 1 << 28


Candidates = Mapping[str, jax.Array]  # a batch of `data.packing.PackedComparisons`


class NextToken(NamedTuple):
    """Hold for column t the loss of predicting token t, log Z, and whether the column counts."""

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
    """Return -log π(token t | tokens before t in its segment) and log Z, 0 where not valid.

    A column is valid when it and the column before it belong to the same segment; so column 0, the
    first token of a segment and a token right after a gap are not. What a `cache` holds comes
    before column 0.
    """
    hidden_BTD, _ = apply(
        model, params, tokens_BT, segments_BT, cache=cache, method="hidden", dropout_key=dropout_key
    )

    def read(
        params: Params, hidden_BUD: jax.Array, target_BU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return log_z_and_chosen(apply(model, params, hidden_BUD, method="unembed"), target_BU)

    columns = (hidden_BTD[:, :-1], tokens_BT[:, 1:])
    log_z_BU, chosen_BU = by_columns(read, params, model.config.vocab_size, *columns)
    return _predictions(log_z_BU, chosen_BU, segments_BT)


def predicted(segments_BT: jax.Array) -> jax.Array:
    """Mark the tokens that have a predecessor in their own segment; column 0 never has."""
    valid_BU = (segments_BT[:, 1:] == segments_BT[:, :-1]) & (segments_BT[:, 1:] > 0)
    return jnp.pad(valid_BU, ((0, 0), (1, 0)))


def _predictions(log_z_BU: jax.Array, chosen_BU: jax.Array, segments_BT: jax.Array) -> NextToken:
    """Put what the first U = T - 1 columns predict under the tokens one column to the right."""
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
    """Return (nll_BT, valid_BT) of `next_token`, for losses without a z-loss."""
    result = next_token(model, params, tokens_BT, segments_BT, cache=cache, dropout_key=dropout_key)
    return result.nll_BT, result.valid_BT


class NextMatches(NamedTuple):
    """Hold for column u what is said of token u + 1; False and 0 where it has no predecessor."""

    logp_BU: jax.Array
    likeliest_BU: jax.Array  # no other token is likelier, and none before it as likely


def next_token_matches(
    model: LanguageModel, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array
) -> NextMatches:
    """Return log π(token u + 1 | tokens up to u), and whether that token is the greedy choice.

    The last column is predicted and never read, so T may be one more than the model's context.
    """
    read_columns = (tokens_BT[:, :-1], segments_BT[:, :-1])
    hidden_BUD, _ = apply(model, params, *read_columns, method="hidden")

    def read(
        params: Params, hidden_BUD: jax.Array, target_BU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits_BUV = apply(model, params, hidden_BUD, method="unembed")
        log_z_BU, chosen_BU = log_z_and_chosen(logits_BUV, target_BU)
        return chosen_BU - log_z_BU, jnp.argmax(logits_BUV, axis=-1) == target_BU

    columns = (hidden_BUD, tokens_BT[:, 1:])
    logp_BU, likeliest_BU = by_columns(read, params, model.config.vocab_size, *columns)
    valid_BU = predicted(segments_BT)[:, 1:]
    return NextMatches(jnp.where(valid_BU, logp_BU, 0.0), likeliest_BU & valid_BU)


def response_logps(
    model: LanguageModel, params: Params, texts: Texts, *, spec: SamplingSpec
) -> tuple[jax.Array, jax.Array]:
    """Return (logp_BR, entropy_BR) of the distribution that `spec` samples from, 0 where masked.

    Raises:
        ValueError: if `spec` truncates (greedy, top-k, nucleus): what is cut off depends on the
            parameters, so a token that an old policy sampled may be impossible under a new one.
    """
    if decoding.truncates(spec):
        raise ValueError(
            f"{spec} truncates the distribution, so log-probabilities of two policies are not "
            "comparable: sample with top_k=0, top_p=1.0 and temperature > 0."
        )
    rows = _make_rows(texts)
    hidden_NTD = _by_rows(
        lambda *columns: apply(model, params, *columns, method="hidden")[0], model.config, rows
    )
    hidden_BRD = _before_responses(hidden_NTD, rows, texts.prompt_BP.shape[1])

    def read(
        params: Params, hidden_BUD: jax.Array, target_BU: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits_BUV = apply(model, params, hidden_BUD, method="unembed")
        logits_BUV = decoding.sampling_logits(logits_BUV, spec)
        return decoding.log_prob(logits_BUV, target_BU), decoding.entropy(logits_BUV)

    columns = (hidden_BRD, texts.response_BR)
    logp_BR, entropy_BR = by_columns(read, params, model.config.vocab_size, *columns)
    mask_BR = texts.mask_BR.astype(bool)
    return jnp.where(mask_BR, logp_BR, 0.0), jnp.where(mask_BR, entropy_BR, 0.0)


def response_values(model: ScalarModel, params: Params, texts: Texts) -> jax.Array:
    """Return value_BR, the value of everything before response token r, 0 where masked."""
    rows = _make_rows(texts)
    score_NT = _by_rows(partial(apply, model, params), model.config, rows)
    value_BR = _before_responses(score_NT, rows, texts.prompt_BP.shape[1])
    return jnp.where(texts.mask_BR.astype(bool), value_BR, 0.0)


class _Rows(NamedTuple):
    """One row per text, response behind prompt."""

    tokens_NT: jax.Array
    segments_NT: jax.Array


def _make_rows(texts: Texts) -> _Rows | Packed:
    tokens_BT, segments_BT = texts.rows()
    if texts.num_rows:
        return pack(tokens_BT, segments_BT, texts.num_rows)
    return _Rows(tokens_BT, segments_BT)


def _by_rows(
    read: Callable[..., jax.Array], c: TransformerConfig, batch: _Rows | Packed
) -> jax.Array:
    """Call `read(tokens_NT, segments_NT)`, in parts that keep a layer within `MOST_ACTIVATIONS`.

    The plain version is `read` of all rows. On large batches one layer's activations alone would
    fill a device, and nothing is lost by reading the rows one after the other.
    """
    num_rows, time = batch.tokens_NT.shape
    rows_per_shard = num_rows // num_shards(num_rows, BATCH)
    per_row = time * max(c.ffw_width, c.num_heads * time) // num_shards(c.num_heads, TENSOR)
    divisors = [p for p in range(1, rows_per_shard + 1) if rows_per_shard % p == 0]
    most_rows = max(MOST_ACTIVATIONS // per_row, 1)
    parts = next(p for p in divisors if rows_per_shard // p <= most_rows)
    if parts == 1:
        return read(batch.tokens_NT, batch.segments_NT)

    def split(x_NT: jax.Array) -> jax.Array:  # every device's rows into as many parts
        return jnp.moveaxis(x_NT.reshape(num_rows // parts, parts, time), 1, 0)

    parts_of_rows = (split(batch.tokens_NT), split(batch.segments_NT))
    stacked = jax.lax.map(lambda part: read(*part), parts_of_rows)
    return jnp.moveaxis(stacked, 0, 1).reshape(num_rows, *stacked.shape[2:])


def _before_responses(x_NT: jax.Array, rows: _Rows | Packed, prompt_length: int) -> jax.Array:
    """Return in column r what stands one column before response token r."""
    if isinstance(rows, _Rows):
        return x_NT[:, prompt_length - 1 : -1]
    return rows.read(x_NT, jnp.arange(prompt_length - 1, x_NT.shape[1] - 1)[None, :])


def last_token_scores(
    model: ScalarModel,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Return score_B, read at the last real token of each row; 0 for a row of padding."""
    score_BT = apply(model, params, tokens_BT, segments_BT, dropout_key=dropout_key)
    return _last_scores(score_BT, segments_BT)


def _last_scores(score_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    score_B = _at_last_token(score_BT[..., None], segments_BT)[:, 0]
    return jnp.where((segments_BT > 0).any(axis=1), score_B, 0.0)


def _at_last_token(x_BTC: jax.Array, segments_BT: jax.Array) -> jax.Array:
    last_B = segments_BT.shape[1] - 1 - jnp.argmax(segments_BT[:, ::-1] > 0, axis=1)
    return jnp.take_along_axis(x_BTC, last_B[:, None, None], axis=1)[:, 0]


def response_scores(model: ScalarModel, params: Params, texts: Texts) -> jax.Array:
    """Return score_B of prompt and response together, read at the last response token."""
    rows = _make_rows(texts)
    score_NT = _by_rows(partial(apply, model, params), model.config, rows)
    if isinstance(rows, _Rows):
        return _last_scores(score_NT, rows.segments_NT)
    last_B = texts.prompt_BP.shape[1] - 1 + texts.mask_BR.sum(axis=1)
    return rows.read(score_NT, last_B[:, None])[:, 0]


class TextClasses(NamedTuple):
    """Hold class logits, read at the last real token of each text, and the loss on its tokens."""

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
    """Classify texts and predict their tokens in one pass (Radford et al. 2018, eq. 3 and 5)."""
    class_BTC, logits_BTV = apply(model, params, tokens_BT, segments_BT, dropout_key=dropout_key)
    language = _predictions(*log_z_and_chosen(logits_BTV[:, :-1], tokens_BT[:, 1:]), segments_BT)
    return TextClasses(_at_last_token(class_BTC, segments_BT), language.nll_BT, language.valid_BT)


def packed_scores(
    model: ScalarModel, params: Params, batch: Candidates, dropout_key: jax.Array | None = None
) -> jax.Array:
    """Return score_BC of packed candidates, each read at its last token (row_BC, last_BC)."""
    rows = (batch["tokens_NT"], batch["segments_NT"])
    score_NT = apply(model, params, *rows, dropout_key=dropout_key)
    return score_NT[batch["row_BC"], batch["last_BC"]]


def packed_logps(model: LanguageModel, params: Params, batch: Candidates) -> jax.Array:
    """Return Σ log π of packed candidates, over `length_BC` tokens up to (row_BC, last_BC)."""
    nll_NT, _ = next_token_nll(model, params, batch["tokens_NT"], batch["segments_NT"])
    last_BC = batch["last_BC"]
    shape = (*last_BC.shape, nll_NT.shape[1])
    before_BCT = last_BC[..., None] - jax.lax.broadcasted_iota(jnp.int32, shape, 2)
    own_BCT = (before_BCT >= 0) & (before_BCT < batch["length_BC"][..., None])
    return -jnp.where(own_BCT, nll_NT[batch["row_BC"]], 0.0).sum(axis=-1)
