"""Read given texts with models: log-probabilities of continuations and blocks, and reward scores.

    every text is a context and a continuation, laid side by side and padded on the right
    what all contexts begin with, if it is long (instructions, examples), is read once, into a cache
    sort by length; pad each to the next multiple of 16; run batches of one length

So all questions of all kinds share a handful of shapes and compiles, whatever the checkpoint.
Context and continuation are encoded apart; that equals encoding the joined text whenever the
continuation starts where a word starts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.data.batches import lm_batches
from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Document, Message, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.batching import batch_rows, run_batches
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.inference.scoring import last_token_scores, next_token_nll
from rlhf_jax.models import Cache, LanguageModel, Params, ScalarModel, apply, grow_cache, init_cache

BUCKET = 16
SHARED_FROM = 64  # tokens that contexts must have in common before a cache is worth its programs


class Continuation(NamedTuple):
    """Token ids of what is given, and of what is to be judged after it."""

    context: Sequence[int]
    ids: Sequence[int]


class PaddedTexts(NamedTuple):
    """Texts padded on the right, and the column at which each continuation starts."""

    tokens_BT: jax.Array
    segments_BT: jax.Array
    start_B: jax.Array


class Choices(NamedTuple):
    """What is given, as token ids, and the answers to choose from, as text."""

    context: Sequence[int]
    answers: Sequence[str]


def continuation_logps(
    model: LanguageModel, params: Params, items: Sequence[Continuation], *, batch_size: int
) -> np.ndarray:
    """Return Σ_t log π(y_t | context, y_<t) of every continuation.

    Raises:
        ValueError: a context or continuation is empty, or a text longer than the model's context.
    """
    context_length = _check(model.config.context_length, items)
    cache = None
    # What long contexts have in common is read once; without this every row would read it again.
    prefix = _shared_prefix([item.context for item in items])
    if prefix:
        cache = _read_into_cache(model, params, jnp.asarray([prefix], jnp.int32))
        items = [Continuation(item.context[len(prefix) :], item.ids) for item in items]
    compute = functools.partial(_continuation_logps, model, params, cache)
    return _by_length(compute, items, batch_size, context_length - len(prefix), "log-probabilities")


def _shared_prefix(contexts: Sequence[Sequence[int]]) -> Sequence[int]:
    """Return the tokens with which all contexts begin, a multiple of `BUCKET`, none if few.

    At least one token of each context is left.
    """
    # In order, all others lie between these two, and begin with what these have in common too.
    first = min(map(tuple, contexts))
    last = max(map(tuple, contexts))
    common = min(common_length(first, last), min(map(len, contexts)) - 1)
    return first[: common // BUCKET * BUCKET] if common >= SHARED_FROM else ()


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two texts have in common from the beginning."""
    differences = (n for n, (left, right) in enumerate(zip(a, b, strict=False)) if left != right)
    return next(differences, min(len(a), len(b)))


@functools.partial(jax.jit, static_argnums=0)
def _read_into_cache(model: LanguageModel, params: Params, tokens_1S: jax.Array) -> Cache | None:
    cache = init_cache(model.config, *tokens_1S.shape)
    segments_1S = jnp.ones_like(tokens_1S)
    _, cache = apply(model, params, tokens_1S, segments_1S, cache=cache, method="hidden")
    return cache


@functools.partial(jax.jit, static_argnums=0)
def _continuation_logps(
    model: LanguageModel, params: Params, cache: Cache | None, texts: PaddedTexts
) -> jax.Array:
    tokens_BT, segments_BT, start_B = texts
    if cache is not None:
        cache = grow_cache(cache, extra=tokens_BT.shape[1], repeats=len(tokens_BT))
    nll_BT, valid_BT = next_token_nll(model, params, tokens_BT, segments_BT, cache=cache)
    judged_BT = valid_BT & (jnp.arange(tokens_BT.shape[1])[None, :] >= start_B[:, None])
    return -jnp.where(judged_BT, nll_BT, 0.0).sum(axis=1)


def scores(
    model: ScalarModel, params: Params, items: Sequence[Continuation], *, batch_size: int
) -> np.ndarray:
    """Return the reward model's score of every continuation, read at its last token."""
    context_length = _check(model.config.context_length, items)
    compute = functools.partial(_scores, model, params)
    return _by_length(compute, items, batch_size, context_length, "scores")


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: ScalarModel, params: Params, texts: PaddedTexts) -> jax.Array:
    return last_token_scores(model, params, texts.tokens_BT, texts.segments_BT)


def continuations(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], responses: Sequence[Sequence[Generation]]
) -> list[Continuation]:
    """Return every response behind its prompt, as the token ids that were drawn."""
    rows = zip(_contexts(tokenizer, prompts), responses, strict=True)
    return [Continuation(context, sample.ids) for context, samples in rows for sample in samples]


def text_continuations(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], responses: Sequence[Sequence[Generation]]
) -> list[list[Continuation]]:
    """Return every response behind its prompt, its text written by any tokenizer.

    The ids are those of a ranking's candidate in training: a template may write more than the
    letters (an empty block of thinking), and SentencePiece encodes letters by what stands before.
    The end of the turn is read where the policy ended its response, or said nothing that can be
    read.
    """
    dialogues = [
        (*prompt.messages, Message("assistant", response.text))
        for prompt, samples in zip(prompts, responses, strict=True)
        for response in samples
        if response.text.strip()
    ]
    rendered = iter(render_batch(tokenizer, dialogues, generation_prompt=False, train_on="last"))

    def continue_with(context: list[int], response: Generation) -> Continuation:
        if not response.text.strip():
            ids = tokenizer.encode(response.text, special=False)
            return Continuation(context, [*ids, tokenizer.turn_end_id])
        ids, trained = next(rendered)
        start = len(ids) - sum(trained)
        return Continuation(ids[:start], ids[start:] if response.finished else ids[start:-1])

    return [
        [continue_with(context, response) for response in samples]
        for context, samples in zip(_contexts(tokenizer, prompts), responses, strict=True)
    ]


def _contexts(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[int]]:
    messages = [prompt.messages for prompt in prompts]
    return [row.ids for row in render_batch(tokenizer, messages, generation_prompt=True)]


def score_responses(
    reward: tuple[ScalarModel, Params],
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Generation]],
    *,
    batch_size: int,
) -> np.ndarray:
    """Return the reward model's score_NS of equally many responses to every prompt."""
    items = continuations(tokenizer, prompts, responses)
    return scores(*reward, items, batch_size=batch_size).reshape(len(responses), -1)


def score_texts(
    reward: tuple[ScalarModel, Params],
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Generation]],
    *,
    batch_size: int,
) -> np.ndarray:
    """Return the score_NS of the same responses read as text, with the reward model's tokenizer."""
    groups = text_continuations(tokenizer, prompts, responses)
    items = [item for group in groups for item in group]
    return scores(*reward, items, batch_size=batch_size).reshape(len(responses), -1)


def choice_logps(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[Choices],
    *,
    batch_size: int,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (logp_C, length_C) of every question: log-probability and tokens of each answer."""
    texts = [text for item in questions for text in item.answers]
    answers = iter(tokenizer.encode_batch(texts, special=False))
    items = [Continuation(item.context, next(answers)) for item in questions for _ in item.answers]
    logp_N = continuation_logps(model, params, items, batch_size=batch_size)
    length_N = np.array([len(item.ids) for item in items])
    ends = np.cumsum([len(item.answers) for item in questions])[:-1]
    return list(zip(np.split(logp_N, ends), np.split(length_N, ends), strict=True))


def text_nll(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return -log π of every text, read as the beginning of a document, and its number of tokens.

    Both are 0 for an empty text, and for one that is longer than the model's context, of which one
    line says how many there are.
    """
    start_ids = tokenizer.start_ids
    encodings = tokenizer.encode_batch(texts, special=False)
    room = model.config.context_length - len(start_ids)
    kept = [n for n, ids in enumerate(encodings) if 0 < len(ids) <= room]
    too_long = sum(len(ids) > room for ids in encodings)
    if too_long:
        print(f"   {too_long} of {len(texts)} texts left out: more than {room} tokens", flush=True)
    nll_N, count_N = np.zeros(len(texts)), np.zeros(len(texts), np.int64)
    if kept:
        items = [Continuation(start_ids, encodings[n]) for n in kept]
        nll_N[kept] = -continuation_logps(model, params, items, batch_size=batch_size)
        count_N[kept] = [len(item.ids) for item in items]
    return nll_N, count_N


def corpus_nll(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    context_length: int,
    batch_size: int,
    mask_documents: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ nll and the number of tokens of every block of the corpus, packed as in pretraining.

    The rise of Σ nll / Σ tokens over the pretrained model's is the alignment tax (Ouyang et al.
    2022, section 4.2 and appendix E.6). A mean of batch means would favour the tokens of short
    batches.
    """
    blocks = lm_batches(
        documents,
        tokenizer,
        context_length=context_length,
        batch_size=1,
        seed=0,
        mask_documents=mask_documents,
    ).arrays
    rows = (blocks["tokens_BT"], blocks["segments_BT"])
    return block_nll(model, params, *rows, batch_size=batch_size)


def block_nll(
    model: LanguageModel,
    params: Params,
    tokens_NT: np.ndarray,
    segments_NT: np.ndarray,
    *,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return Σ_t -log π(token t | before) of every row, and the number of predicted tokens."""
    batches = batch_rows(len(tokens_NT), batch_size)
    parts = run_batches(
        lambda rows: _block_nll(model, params, tokens_NT[rows], segments_NT[rows]),
        batches,
        "losses",
    )
    nll_N, count_N = (np.concatenate(part)[: len(tokens_NT)] for part in zip(*parts, strict=True))
    return nll_N.astype(np.float64), count_N


@functools.partial(jax.jit, static_argnums=0)
def _block_nll(
    model: LanguageModel, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    nll_BT, valid_BT = next_token_nll(model, params, tokens_BT, segments_BT)
    return nll_BT.sum(axis=1), valid_BT.sum(axis=1)


def sequence_kl(
    policy: tuple[LanguageModel, Params],
    reference: tuple[LanguageModel, Params],
    samples: Sequence[Continuation],
    *,
    batch_size: int,
) -> np.ndarray:
    """Return log π(y|x) - log π_ref(y|x) of the policy's own samples, drawn at temperature 1.

    Their mean estimates KL(π ‖ π_ref) = E_{x, y~π} [log π(y|x) - log π_ref(y|x)], in nats per
    response, without bias; a single one may be negative.
    """
    logp_N = continuation_logps(*policy, samples, batch_size=batch_size)
    return logp_N - continuation_logps(*reference, samples, batch_size=batch_size)


def _by_length(
    compute: Callable[..., jax.Array],
    items: Sequence[Continuation],
    batch_size: int,
    context_length: int,
    what: str,
) -> np.ndarray:
    """Compute one number per item, in the order of the items.

    Equal items are computed once, since answers stand in many questions. Items of about a length
    share a batch, and a batch is padded to its longest item, rounded up: less padding, and few
    shapes to compile. The longest come first: what does not fit into the memory fails at once.
    """
    keys = [Continuation(tuple(item.context), tuple(item.ids)) for item in items]
    number_of = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(number_of) < len(items):
        value_N = _by_length(compute, list(number_of), batch_size, context_length, what)
        return value_N[[number_of[key] for key in keys]]
    length_N = np.array([len(item.context) + len(item.ids) for item in items])
    longest_first_N = np.argsort(-length_N, kind="stable")
    batches = [longest_first_N[rows] for rows in batch_rows(len(items), batch_size)]

    def compute_batch(members: np.ndarray) -> jax.Array:
        size = min(-(-int(length_N[members[0]]) // BUCKET) * BUCKET, context_length)
        return compute(_pad([items[n] for n in members], size))

    computed = run_batches(compute_batch, batches, what)
    result_N = np.empty(len(items))
    result_N[np.concatenate(batches)] = np.concatenate(computed)
    return result_N


def _check(context_length: int, items: Sequence[Continuation]) -> int:
    for number, (context, ids) in enumerate(items):
        lengths = f"{len(context)} + {len(ids)} tokens"
        if not context or not ids:
            raise ValueError(f"text {number} has {lengths}: context and continuation need some")
        if len(context) + len(ids) > context_length:
            message = f"text {number} has {lengths}, the model's context is {context_length}"
            raise ValueError(message)
    return context_length


def _pad(items: Sequence[Continuation], size: int) -> PaddedTexts:
    tokens_BT, segments_BT = np.zeros((2, len(items), size), np.int32)
    for row, (context, ids) in enumerate(items):
        tokens_BT[row, : len(context) + len(ids)] = [*context, *ids]
        segments_BT[row, : len(context) + len(ids)] = 1
    start_B = np.array([len(item.context) for item in items], np.int32)
    return PaddedTexts(*map(jnp.asarray, (tokens_BT, segments_BT, start_B)))
