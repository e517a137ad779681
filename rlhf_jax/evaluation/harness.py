"""Answer what lm-evaluation-harness asks of a model, in token ids and without the harness itself.

    score_continuations    Σ_t log π(y_t | context, y_<t), and whether greedy decoding would write y
    write_until            a continuation up to the first stop string, stop token or the limit

Texts that are too long lose their beginning. As in the harness' own models the last token is
predicted and never read, so a context of n tokens holds n + 1. `apps/harness_model.py` turns the
harness' requests into these.

Left out on purpose: ending a batch early when all its rows have written a stop string. Rows end at
stop tokens; what stands behind a stop string is cut off afterwards.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.batching import batch_rows, run_batches
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import ROUND, GenerationSettings, complete
from rlhf_jax.evaluation.likelihood import BUCKET, Continuation
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.scoring import next_token_matches
from rlhf_jax.models import LanguageModel, Params


class ContinuationScore(NamedTuple):
    """Hold the log-probability of a continuation, and whether it is the greedy one."""

    logp: float
    is_greedy: bool


def score_continuations(
    model: LoadedModel, items: Sequence[Continuation], *, context_length: int, batch_size: int
) -> list[ContinuationScore]:
    """Score every continuation behind the end of its context, as much of it as fits.

    Raises:
        ValueError: a context or continuation is empty, or a continuation longer than the context.
    """
    rows = [_cut_left(number, item, context_length) for number, item in enumerate(items)]
    # The longest first: what does not fit into the memory fails at once.
    longest_first_N = np.argsort([-len(row.tokens) for row in rows], kind="stable")
    batches = [longest_first_N[places] for places in batch_rows(len(rows), batch_size)]

    def score_batch(members: np.ndarray) -> tuple[jax.Array, jax.Array]:
        batch = [rows[n] for n in members]
        width = min(-(-len(batch[0].tokens) // BUCKET) * BUCKET, context_length + 1)
        tokens_BT, segments_BT = np.zeros((2, len(batch), width), np.int32)
        for place, row in enumerate(batch):
            tokens_BT[place, : len(row.tokens)] = row.tokens
            segments_BT[place, : len(row.tokens)] = 1
        start_B = np.array([row.start for row in batch], np.int32)
        return _score(model.model, model.params, tokens_BT, segments_BT, start_B)

    scored: dict[int, ContinuationScore] = {}
    results = run_batches(score_batch, batches, "continuations")
    for members, (logp_B, greedy_B) in zip(batches, results, strict=True):
        columns = zip(members.tolist(), logp_B.tolist(), greedy_B.tolist(), strict=True)
        scored |= {n: ContinuationScore(logp, is_greedy) for n, logp, is_greedy in columns}
    return [scored[n] for n in range(len(rows))]


class _Row(NamedTuple):
    tokens: list[int]
    start: int  # of the continuation


def _cut_left(number: int, item: Continuation, context_length: int) -> _Row:
    lengths = f"{len(item.context)} + {len(item.ids)} tokens"
    if not item.context or not item.ids:
        raise ValueError(f"request {number} has {lengths}: context and continuation need some")
    if len(item.ids) > context_length:
        raise ValueError(
            f"request {number} has {lengths}, the model's context is {context_length}: "
            "a continuation has to fit; leave the task out, or take a model with a longer context"
        )
    tokens = [*item.context, *item.ids][-(context_length + 1) :]
    return _Row(tokens, len(tokens) - len(item.ids))


@functools.partial(jax.jit, static_argnums=0)
def _score(
    model: LanguageModel,
    params: Params,
    tokens_BT: jax.Array,
    segments_BT: jax.Array,
    start_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    matches = next_token_matches(model, params, tokens_BT, segments_BT)
    length_B = segments_BT.sum(axis=1)
    column_1U = jnp.arange(1, tokens_BT.shape[1])[None, :]  # of the token that is predicted
    scored_BU = (column_1U >= start_B[:, None]) & (column_1U < length_B[:, None])
    logp_B = jnp.where(scored_BU, matches.logp_BU, 0.0).sum(axis=1)
    return logp_B, (matches.likeliest_BU | ~scored_BU).all(axis=1)


# --- writing --------------------------------------------------------------------------------------

# What `read_settings` knows, with the values that mean nothing.
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}


@dataclass(frozen=True)
class WritingSettings:
    """Say how a continuation is drawn, how long it may get, and which strings end it."""

    sampling: SamplingSpec
    length: int
    until: tuple[str, ...]


def read_settings(gen_kwargs: Mapping[str, Any], default_length: int) -> WritingSettings:
    """Read the harness' generation settings; greedy unless they say otherwise.

    Raises:
        ValueError: one of them is unknown here.
    """
    left = dict(gen_kwargs)
    lengths = [
        left.pop(name, None)
        for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    ]
    length = next((int(value) for value in lengths if value is not None), default_length)
    until = left.pop("until", None) or []
    temperature = float(left.pop("temperature", None) or 0.0)
    do_sample = left.pop("do_sample", None)
    # transformers draws at temperature 1 where sampling is wanted and no temperature is given.
    if do_sample and "temperature" not in gen_kwargs:
        temperature = 1.0
    top_k = int(left.pop("top_k", None) or 0)
    top_p = float(left.pop("top_p", None) or 1.0)
    unknown = {name for name, value in left.items() if _NEUTRAL.get(name, ...) != value}
    if unknown:
        raise ValueError(
            f"gen_kwargs: {', '.join(sorted(unknown))} unknown here; known are until, "
            "max_gen_toks, do_sample, temperature, top_k and top_p"
        )
    is_greedy = do_sample is False or temperature == 0.0
    sampling = SamplingSpec(
        0.0 if is_greedy else temperature,
        0 if is_greedy else top_k,
        1.0 if is_greedy else top_p,
        nucleus="holtzman",
    )
    strings = [until] if isinstance(until, str) else list(until)
    return WritingSettings(sampling, length, tuple(text for text in strings if text))


def write_until(
    model: LoadedModel,
    tokenizer: Tokenizer,
    contexts: Sequence[Sequence[int]],
    settings: WritingSettings,
    key: jax.Array,
    *,
    context_length: int,
    batch_size: int,
) -> list[str]:
    """Write a continuation behind the end of every context, as much of it as leaves room.

    Raises:
        ValueError: the continuation alone fills the model's context, or a context is empty.
    """
    room = context_length - settings.length
    if room < 1:
        raise ValueError(
            f"max_gen_toks={settings.length}: the model's context is {context_length} tokens; "
            f"set --gen_kwargs max_gen_toks=N, at most {context_length - 1}, and leave room for "
            "the question"
        )
    if not all(contexts):
        raise ValueError("a request has an empty context: nothing to continue")
    cut = [list(ids[-room:]) for ids in contexts]
    # Batches of similar widths: what is padded is read again for every token that is written.
    width_N = np.array([min(room, -(-len(ids) // ROUND) * ROUND) for ids in cut])
    texts: dict[int, str] = {}
    for width in np.unique(width_N).tolist():
        members = np.flatnonzero(width_N == width).tolist()
        generation = GenerationSettings(settings.sampling, width, settings.length, batch_size)
        groups = complete(
            *model, tokenizer, [cut[n] for n in members], jax.random.fold_in(key, width), generation
        )
        texts |= {
            n: cut_at_stops(tokenizer, samples[0].ids, settings.until)
            for n, samples in zip(members, groups, strict=True)
        }
    return [texts[n] for n in range(len(cut))]


def cut_at_stops(tokenizer: Tokenizer, ids: Sequence[int], until: Sequence[str]) -> str:
    """Return the text of `ids` up to the first stop token or stop string, without special tokens.

    A stop string that spells a special token is found as that token, as the text has none.
    """
    known = tokenizer.fast.get_added_vocab()
    stops = {*tokenizer.stop_ids, *(known[text] for text in until if text in known)}
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text: str = tokenizer.fast.decode(list(ids[:end]), skip_special_tokens=True)
    for stop in until:
        text = text.split(stop)[0]
    return text
