"""Lay documents into blocks, and compute the language model's loss.

Pretraining and supervised fine-tuning share this.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import require_divides
from rlhf_jax.data.batches import Batches, lm_batches
from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import stream
from rlhf_jax.inference.scoring import next_token, predicted
from rlhf_jax.maths.masking import Mean, mean, merge
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.training import processes
from rlhf_jax.training.run import CORPUS, Run

Params = Any
Batch = dict[str, Any]


def document_batch(batch: Batch) -> Batch:
    """Return a batch of packed documents with every real token trained."""
    return {**batch, "loss_mask_BT": batch["segments_BT"] > 0}


def corpus_batches(
    run: Run,
    source: str,
    split: str,
    *,
    data_dir: str,
    context_length: int,
    batch_size: int,
    seed: int,
    mask_documents: bool,
) -> Batches:
    """Return documents as blocks that are tokenised once into the workdir.

    So they may be larger than the memory, and stay the same when a run is continued.
    """
    folder = run.workdir / CORPUS / split
    with processes.main_process_first(f"corpus {folder}"):
        return lm_batches(
            stream(source, Document, split=split, data_dir=data_dir),
            run.tokenizer,
            context_length=context_length,
            batch_size=batch_size,
            seed=seed,
            mask_documents=mask_documents,
            folder=folder,
        )


def num_tokens(blocks: Batches) -> int:
    """Return how many tokens the documents have: all places but the padding of the last block."""
    segments_NT = blocks.arrays["segments_BT"]
    return segments_NT.size - int((segments_NT[-1] == 0).sum())


def check_batches(name: str, batch_size: int, num_micro_batches: int, num_devices: int) -> None:
    """Refuse a batch that does not divide into micro-batches and devices."""
    require_divides(
        num_micro_batches,
        batch_size,
        f"{name}.batch_size by {name}.num_micro_batches",
        "choose a divisor",
    )
    require_divides(
        num_devices,
        batch_size // num_micro_batches,
        f"{name} micro-batch by devices",
        f"raise {name}.batch_size or use fewer devices",
    )


def trained_tokens(batch: Batch) -> jax.Array:
    """Return the number of trained tokens: in the loss mask, with a predecessor in the segment."""
    return (predicted(batch["segments_BT"]) & (batch["loss_mask_BT"] > 0)).sum()


def language_loss(
    model: LanguageModel,
    z_loss_coef: float,
    params: Params,
    batch: Batch,
    num_tokens: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the mean loss per trained token, with the z-loss (m is 1 for trained tokens).

    -Σ_t m_t log π(x_t | x_<t) / Σ m + z_loss_coef Σ_t m_t log² Z_t / Σ m
    """
    dropout_key = key if model.config.dropout_rate > 0 else None
    losses = next_token(
        model, params, batch["tokens_BT"], batch["segments_BT"], dropout_key=dropout_key
    )
    trained_BT = losses.valid_BT & (batch["loss_mask_BT"] > 0)
    nll = mean(losses.nll_BT, trained_BT)
    z = mean(jnp.square(losses.log_z_BT), trained_BT)
    metrics = {"loss": nll, "z_loss": z} if z_loss_coef else {"loss": nll}
    return (nll.total + z_loss_coef * z.total) / num_tokens, metrics


def batch_nll(model: LanguageModel, params: Params, batch: Batch) -> Mean:
    """Return the mean loss per trained token of one batch, without dropout."""
    losses = next_token(model, params, batch["tokens_BT"], batch["segments_BT"], dropout_key=None)
    return mean(losses.nll_BT, losses.valid_BT & (batch["loss_mask_BT"] > 0))


def mean_nll(
    measure: Callable[[Params, Batch], Mean], params: Params, batches: Sequence[Batch]
) -> Mean:
    """Return the mean loss per trained token of several batches; `measure` is `batch_nll`."""
    total = measure(params, batches[0])
    for batch in batches[1:]:
        total = merge(total, measure(params, batch))
    return total
