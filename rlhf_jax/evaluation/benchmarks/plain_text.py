"""Measure how well a model predicts plain text, in perplexity and in bits per byte.

    perplexity     = exp(Σ -log π(token) / tokens)    over all tokens of all documents, never a mean
                                                      of means
    bits per byte  = Σ -log₂ π(token) / bytes of the text in UTF-8

    a document  =  start token, then its tokens, read in windows:
    |<-------- window -------->|
            |<-------- window -------->|
                    |<- stride ->|

Only the last `stride` tokens of a window are judged, the first window's all: no token is lost, none
is judged twice, and each but the first has at least window - stride tokens before it.

Bits per byte compare models with different tokenizers. They are given only for a tokenizer that
gives the text back exactly: unknown words would be free of charge.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Measured, Metric
from rlhf_jax.evaluation.benchmarks.files import check_exists
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, without_interval
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.evaluation.table import Data, Row


def read(path: str) -> list[Document]:
    """Read a text file as one document.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty or not UTF-8.
    """
    return list(load(f"text:{check_exists(path)}", Document, split="train", data_dir=""))


def split_windows(ids: Sequence[int], *, window: int, stride: int) -> list[Continuation]:
    """Return what is judged of a document, with what stands before it, window by window.

    `ids` begin with the start token.

    Raises:
        ValueError: unless 1 <= stride < window.
    """
    if not 1 <= stride < window:
        expected = f"1 to window - 1 = {window - 1}, so that every token has one before it"
        raise ValueError(f"stride={stride}: expected {expected}")
    windows = []
    start = 1
    while start < len(ids):
        end = min(len(ids), start + (window - 1 if start == 1 else stride))
        windows.append(Continuation(ids[max(0, end - window) : start], ids[start:end]))
        start = end
    return windows


@dataclass(frozen=True)
class PlainText(Benchmark):
    """Measure the perplexity of documents, read in windows."""

    group: ClassVar[str] = "Plain text"
    name: ClassVar[str] = "text"
    documents: Sequence[Document]
    window: int
    stride: int

    @property
    def min_context(self) -> int:
        """Return the window's length: what a shorter context could not hold is not left out."""
        return self.window

    def measure(self, model: LoadedModel, tokenizer: Tokenizer, *, batch_size: int) -> Data:
        """Return -log-probability and tokens of every window, and bytes of all documents."""
        texts = [document.text for document in self.documents]
        encodings = tokenizer.encode_batch(texts, special=False)
        by_document = [
            split_windows([*tokenizer.start_ids, *ids], window=self.window, stride=self.stride)
            for ids in encodings
        ]
        windows = [window for document in by_document for window in document]
        logps = continuation_logps(*model, windows, batch_size=batch_size)
        is_exact = [
            tokenizer.decode(ids, keep_special=True) == text
            for ids, text in zip(encodings, texts, strict=True)
        ]
        return {
            "document": np.repeat(np.arange(len(texts)), [len(part) for part in by_document]),
            "nll": -logps,
            "tokens": [len(window.ids) for window in windows],
            "bytes": sum(len(text.encode("utf-8")) for text in texts),
            "inexact": is_exact.count(False),
        }

    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return perplexity and bits per byte; intervals resample documents, or windows of one."""
        perplexity = {}
        bits = {}
        for name, data in measurements.items():
            num_tokens = np.asarray(data["tokens"])
            many = len(self.documents) > 1
            cluster = np.asarray(data["document"]) if many else np.arange(len(num_tokens))
            nll = estimates.ratio(
                np.bincount(cluster, data["nll"]), np.bincount(cluster, num_tokens), bootstrap
            )
            perplexity[name] = _transform(nll, math.exp, nll.n)
            if not data["inexact"]:
                bits_per_nat = nll.n / data["bytes"] / math.log(2)
                bits[name] = _transform(nll, bits_per_nat.__mul__, data["bytes"])
        text = f"windows of {self.window} tokens, stride {self.stride}"
        per_token = Metric("lower", f"{text}; compares models with one tokenizer only", "per token")
        per_byte = Metric("lower", f"{text}; bytes of the text in UTF-8", "bits")
        rows = [
            per_token.row(self.group, "perplexity", perplexity),
            per_byte.row(self.group, "bits per byte", bits),
        ]
        if any(data["inexact"] for data in measurements.values()):
            total = len(self.documents)
            counts = {
                name: without_interval(data["inexact"], total)
                for name, data in measurements.items()
            }
            text = "the tokenizer does not give them back exactly, so no bits per byte"
            metric = Metric("lower", text, "documents")
            rows.append(metric.row(self.group, "documents not kept by the tokenizer", counts))
        return rows


def _transform(estimate: Estimate, function: Callable[[float], float], n: int) -> Estimate:
    """Return an increasing function of an estimate and of the ends of its interval."""
    low, high = (None if end is None else function(end) for end in (estimate.low, estimate.high))
    return Estimate(value=function(estimate.value), low=low, high=high, n=n)
