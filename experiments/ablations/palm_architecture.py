"""Chowdhery et al. 2022, section 2 (E22): each of PaLM's changes to a GPT-2 block alone, and all of them.

    python -m experiments.ablations.reproduce palm_architecture --seeds=3

Width 64, two layers, equal steps, and as many parameters as the GPT-2 block by the width of the feed-forward layer: SwiGLU's
third matrix makes it narrower, shared keys and values make it wider. Untied embeddings alone are more parameters. Weights are
drawn with unit gain everywhere (see experiments/menagerie/pretrain.py), so that PaLM's other differences, initialisation and
logit scale, are not part of it. Estimated for three seeds on two quiet cores: 13 minutes.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    mark_seed,
)
from experiments.ablations.shared import pick
from experiments.menagerie import evaluate, pretrain
from rlhf_jax.data.batches import lm_batches
from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_language_model, load_tokenizer_of
from rlhf_jax.inference.scoring import next_token
from rlhf_jax.models.config import TransformerConfig, gpt, num_params, to_dict

GPT, PALM, UNTIED, Z_LOSS = "GPT-2 block", "all but untied", "untied embeddings", "z-loss 1e-4"
CHANGES: dict[str, dict[str, Any]] = {
    GPT: {},
    "rotary positions": {"positions": "rope"},
    "SwiGLU": {"activation": "swiglu"},
    "parallel block": {"parallel_block": True, "shared_norm": True},
    "multi-query": {"num_kv_heads": 1},
    "no biases": {"use_bias": False, "qkv_bias": False},
    UNTIED: {"tie_embeddings": False},
    Z_LOSS: {},
}
CHANGES[PALM] = {
    name: value
    for key, change in CHANGES.items()
    if key != UNTIED
    for name, value in change.items()
}


def shape(size: str, change: str, vocab_size: int) -> TransformerConfig:
    """A GPT-2 block with a change, its feed-forward layer as wide as the parameters of the unchanged one allow."""
    sizes = {
        "width": pick(size, tiny=16, default=64, large=256),
        "num_layers": pick(size, tiny=1, default=2, large=6),
    }
    plain = gpt(
        vocab_size=vocab_size,
        context_length=128,
        num_heads=pick(size, tiny=2, default=4, large=8),
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
        **sizes,
    )
    plain = replace(plain, kernel_init="fan_in", embedding_std=plain.width**-0.5)
    changed = replace(plain, **CHANGES[change])
    if change == UNTIED:
        return changed
    widths = [replace(changed, ffw_width=width) for width in range(8, 8 * plain.width)]
    return min(widths, key=lambda one: abs(num_params(one) - num_params(plain)))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Nine pretrainings a seed."""
    documents = pick(size, tiny=8, default=400, large=1000)
    runs, measurements = [], []
    for seed in seeds:
        for change in CHANGES:
            run = _run(size, seed, change)
            runs.append(run)
            ask = partial(validate, folder=run.folder, size=size, documents=documents)
            point: Row = {"seed": seed, "change": change}
            measurements.append(
                Measurement(
                    run.folder.replace("/", "-"),
                    point,
                    (run.folder,),
                    {"documents": documents},
                    ask,
                )
            )
    return Ablation(
        "Chowdhery et al. 2022, section 2 and 5",
        seeds,
        runs,
        measurements,
        CRITERIA,
        figure,
        "Equal steps and parameters (untied embeddings: more parameters).",
    )


def _run(size: str, seed: int, change: str) -> GridRun:
    config = pretrain.get_config(size)
    config.seed = seed
    config.model = to_dict(shape(size, change, config.model.vocab_size))
    steps = pick(size, tiny=20, default=1000, large=5000)
    config.pretrain.update(
        {
            "num_steps": steps,
            "eval_every": steps,
            "z_loss_coef": 1e-4 if change in (Z_LOSS, PALM) else 0.0,
        }
    )
    config.optimizer.warmup_steps = max(5, steps // 40)
    return GridRun(f"palm_architecture/seed{seed}/{change.replace(' ', '-')}", config)


def validate(bench: Bench, *, folder: str, size: str, documents: int) -> list[Row]:
    """Loss per token and mean log² Z on validation documents; parameters, and numbers in the cache per token."""
    one, data = (
        find_checkpoint(bench.workdir, str(bench.folder(folder))),
        evaluate.get_config(size).data,
    )
    held_out = load(data.documents, Document, split="validation", data_dir=data.data_dir)
    c, model, params = one.model, *load_language_model(one)
    blocks = lm_batches(
        [held_out[k] for k in range(documents)],
        load_tokenizer_of(one),
        context_length=c.context_length,
        batch_size=1,
        seed=0,
        mask_documents=data.mask_documents,
    ).arrays
    found = jax.jit(partial(next_token, model))(params, blocks["tokens_BT"], blocks["segments_BT"])
    nll, log_z, valid = (np.asarray(x, np.float64) for x in found)
    tokens = valid.sum()
    return [
        {
            "loss": float((nll * valid).sum() / tokens),
            "log_z_squared": float((log_z**2 * valid).sum() / tokens),
            "parameters": num_params(c),
            "cached": 2 * c.num_layers * c.num_kv_heads * c.head_width,
        }
    ]


# --- claims -----------------------------------------------------------------------------------------------------------


def _pairs(table: Table, change: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The change's numbers and those of the GPT-2 block, paired by seed."""
    theirs = {
        seed: rows.column(column)[-1]
        for seed, rows in table.where(change=GPT).having(column).by("seed")
    }
    ours = {
        seed: rows.column(column)[-1]
        for seed, rows in table.where(change=change).having(column).by("seed")
    }
    both = [seed for seed in ours if seed in theirs]
    if not both:
        raise ValueError(f"no seed has {change} and {GPT}")
    return np.array([ours[seed] for seed in both]), np.array([theirs[seed] for seed in both])


def relative_loss(table: Table, change: str, most: float) -> Finding:
    """The loss with a change over that without, less one."""
    ours, theirs = _pairs(table, change, "loss")
    found = t_interval(ours / theirs - 1)
    return Finding(found.mean <= most, *found, "")


def multi_query(table: Table) -> Finding:
    """The same, and the share of the cache that is left."""
    ours, theirs = _pairs(table, "multi-query", "cached")
    loss = relative_loss(table, "multi-query", 0.01)
    return loss._replace(
        detail=f"numbers in the cache per token {ours[0]:.0f} instead of {theirs[0]:.0f}"
    )


def normaliser(table: Table) -> Finding:
    """Mean log² Z with the z-loss, against that without."""
    ours, theirs = _pairs(table, Z_LOSS, "log_z_squared")
    found = t_interval(ours)
    return Finding(
        found.mean <= 1 and bool(np.all(ours < theirs)), *found, f"without {theirs.mean():.3g}"
    )


CRITERIA = (
    Criterion(
        "E22.parallel",
        "a parallel block's loss is at most 0.5 % above the serial one's",
        partial(relative_loss, change="parallel block", most=0.005),
    ),
    Criterion(
        "E22.multi_query",
        "one key/value head costs at most 1 % of loss, for 1/heads of the cache",
        multi_query,
    ),
    Criterion(
        "E22.swiglu",
        "SwiGLU's loss is below GELU's",
        partial(relative_loss, change="SwiGLU", most=0.0),
    ),
    Criterion(
        "E22.rope",
        "the loss with rotary positions is below that with learned ones",
        partial(relative_loss, change="rotary positions", most=0.0),
    ),
    Criterion(
        "E22.z_loss",
        "with a z-loss of 1e-4 mean log² Z is at most 1, and smaller than without",
        normaliser,
    ),
    Criterion(
        "E22.palm",
        "all changes together have a lower loss than the GPT-2 block",
        partial(relative_loss, change=PALM, most=0.0),
    ),
)


def figure(table: Table) -> Figure:
    """Loss of every change, and log² Z; a dot for every seed."""
    made, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True, layout="constrained")
    places = {change: place for place, change in enumerate(reversed(CHANGES))}
    for one, column in zip(axes, ("loss", "log_z_squared"), strict=True):
        for change, rows in table.having(column).by("change"):
            for seed, value in zip(rows.column("seed"), rows.column(column), strict=True):
                mark_seed(
                    one.plot(value, places[change], "o", ms=4, alpha=0.6, color="#2a3f8f")[0],
                    int(seed),
                )
            one.plot(rows.column(column).mean(), places[change], "|", ms=14, color="#2a3f8f")
            if change == GPT:
                one.axvline(rows.column(column).mean(), color="#777", ls="--", lw=1)
        one.grid(axis="y", color="#eee")
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(list(places.values()), list(places), fontsize=8)
    axes[0].set(xlabel="validation loss, nats/token", title="a GPT-2 block with one change")
    axes[1].set(xlabel="mean log² Z", title="the softmax's normaliser")
    return made
