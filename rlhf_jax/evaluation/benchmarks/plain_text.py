"""How well a model predicts plain text: perplexity, and bits per byte, which compares models with different tokenizers.

    perplexity     = exp(Σ -log π(token) / tokens)             over all tokens of all documents, never a mean of means
    bits per byte  = Σ -log₂ π(token) / bytes of the text in UTF-8

    a document  =  start token, then its tokens, read in windows:
    |<-------- window -------->|
            |<-------- window -------->|      only the last `stride` tokens of a window are judged, the first window's
                    |<- stride ->|            all: no token is lost, none is judged twice, and each but the first has
                                              at least window - stride tokens before it

Bits per byte are given only for a tokenizer that gives the text back exactly: unknown words would be free of charge.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.evaluation.table import Data, Measured, Row

GROUP = "Plain text"


def read(path: str) -> list[Document]:
    """A text file as one document.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty or not UTF-8.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"{path}: no such file; give the path of a text file, or '' to leave it out"
        )
    return list(load(f"text:{path}", Document, split="train", data_dir=""))


def windows(ids: Sequence[int], *, window: int, stride: int) -> list[Continuation]:
    """What is given and what is judged, of a document that begins with its start token.

    Raises:
        ValueError: unless 1 <= stride < window.
    """
    if not 1 <= stride < window:
        raise ValueError(
            f"stride={stride}: expected 1 to window - 1 = {window - 1}, so that every token has one before it"
        )
    found, start = [], 1
    while start < len(ids):
        end = min(len(ids), start + (window - 1 if start == 1 else stride))
        found.append(Continuation(ids[max(0, end - window) : start], ids[start:end]))
        start = end
    return found


def measure(
    one: LoadedModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    window: int,
    stride: int,
    batch_size: int,
) -> Data:
    """-log-probability and tokens of every window, by document, and bytes of every document."""
    start, texts = tokenizer.start_ids, [document.text for document in documents]
    encoded = tokenizer.encode_batch(texts, special=False)
    found = [windows([*start, *ids], window=window, stride=stride) for ids in encoded]
    logps = continuation_logps(
        *one, [item for part in found for item in part], batch_size=batch_size
    )
    exact = [
        tokenizer.decode(ids, keep_special=True) == text
        for ids, text in zip(encoded, texts, strict=True)
    ]
    return {
        "document": np.repeat(np.arange(len(documents)), [len(part) for part in found]),
        "nll": -logps,
        "tokens": [len(item.ids) for part in found for item in part],
        "bytes": sum(len(text.encode("utf-8")) for text in texts),
        "inexact": exact.count(False),
    }


def rows(
    documents: Sequence[Document],
    measured: Measured,
    bootstrap: Bootstrap,
    *,
    window: int,
    stride: int,
) -> list[Row]:
    """Perplexity and bits per byte; intervals resample documents, or windows where there is only one."""
    perplexity, bits = {}, {}
    for name, data in measured.items():
        cluster = (
            np.asarray(data["document"]) if len(documents) > 1 else np.arange(len(data["tokens"]))
        )
        nll = estimates.ratio(
            np.bincount(cluster, data["nll"]), np.bincount(cluster, data["tokens"]), bootstrap
        )
        perplexity[name] = _map(nll, math.exp, nll.n)
        if not data["inexact"]:
            per_byte = nll.n / data["bytes"] / math.log(2)
            bits[name] = _map(nll, lambda value, factor=per_byte: value * factor, data["bytes"])  # type: ignore[misc]
    judged = f"windows of {window} tokens, stride {stride}"
    made = [
        Row(
            GROUP,
            "perplexity",
            "per token",
            "lower",
            f"{judged}; compares models with one tokenizer only",
            perplexity,
        ),
        Row(GROUP, "bits per byte", "bits", "lower", f"{judged}; bytes of the text in UTF-8", bits),
    ]
    inexact = {
        name: Estimate(float(data["inexact"]), None, None, len(documents))
        for name, data in measured.items()
    }
    if any(found.value for found in inexact.values()):
        text = "the tokenizer does not give them back exactly, so no bits per byte"
        made.append(
            Row(GROUP, "documents not kept by the tokenizer", "documents", "lower", text, inexact)
        )
    return made


def _map(estimate: Estimate, function: Callable[[float], float], n: int) -> Estimate:
    low, high = (None if end is None else function(end) for end in (estimate.low, estimate.high))
    return Estimate(function(estimate.value), low, high, n)
