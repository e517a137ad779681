"""Change a GPT-2 block into PaLM's, one change at a time and all of them.

    python -m experiments.ablations.reproduce palm_architecture --seeds=3

Chowdhery et al. 2022, section 2. Width 64, two layers, equal steps, and as many parameters as the
GPT-2 block by the width of the feed-forward layer: SwiGLU's third matrix makes it narrower, shared
keys and values make it wider. Untied embeddings alone are more parameters. Weights are drawn with
unit gain everywhere (see experiments/menagerie/pretrain.py), so that PaLM's other differences,
initialisation and logit scale, are not part of it. Estimated for three seeds on two quiet cores: 13
minutes.
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
    Context,
    Criterion,
    Finding,
    GridRun,
    Row,
    Table,
    draw_point,
    interval_finding,
)
from experiments.ablations.shared import pick
from experiments.menagerie import evaluate, pretrain
from rlhf_jax.data.batches import lm_batches
from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.checkpoints import load_language_model, load_tokenizer_of
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


def make_model(size: str, change: str, vocab_size: int) -> TransformerConfig:
    """Return a GPT-2 block with a change, with as many parameters as without it.

    Its feed-forward layer is as wide as these allow.
    """
    plain = gpt(
        vocab_size=vocab_size,
        context_length=128,
        width=pick(size, tiny=16, default=64, large=256),
        num_layers=pick(size, tiny=1, default=2, large=6),
        num_heads=pick(size, tiny=2, default=4, large=8),
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    plain = replace(plain, kernel_init="fan_in", embedding_std=plain.width**-0.5)
    changed = replace(plain, **CHANGES[change])
    if change == UNTIED:
        return changed
    models = [replace(changed, ffw_width=width) for width in range(8, 8 * plain.width)]
    return min(models, key=lambda model: abs(num_params(model) - num_params(plain)))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Pretrain nine models a seed."""
    notes = "Equal steps and parameters (untied embeddings: more parameters)."
    paper = "Chowdhery et al. 2022, section 2 and 5"
    ablation = Ablation(paper, seeds, CRITERIA, figure, notes)
    for seed in seeds:
        for change in CHANGES:
            run = _run(size, seed, change)
            ablation.add_runs(run)
            ablation.add_measurement(
                run.folder.replace("/", "-"),
                {"seed": seed, "change": change},
                (run.folder,),
                validate,
                folder=run.folder,
                size=size,
                num_documents=pick(size, tiny=8, default=400, large=1000),
            )
    return ablation


def _run(size: str, seed: int, change: str) -> GridRun:
    config = pretrain.get_config(size)
    config.seed = seed
    config.model = to_dict(make_model(size, change, config.model.vocab_size))
    steps = pick(size, tiny=20, default=1000, large=5000)
    z_loss_coef = 1e-4 if change in (Z_LOSS, PALM) else 0.0
    config.pretrain.update(num_steps=steps, eval_every=steps, z_loss_coef=z_loss_coef)
    config.optimizer.warmup_steps = max(5, steps // 40)
    return GridRun(f"palm_architecture/seed{seed}/{change.replace(' ', '-')}", config)


def validate(context: Context, *, folder: str, size: str, num_documents: int) -> list[Row]:
    """Return loss per token and mean log² Z on validation documents, and the model's size.

    `cached` is how many numbers the cache holds per token.
    """
    checkpoint, data = context.checkpoint(folder), evaluate.get_config(size).data
    documents = load(data.documents, Document, split="validation", data_dir=data.data_dir)
    shape = checkpoint.model
    model, params = load_language_model(checkpoint)
    blocks = lm_batches(
        [documents[k] for k in range(num_documents)],
        load_tokenizer_of(checkpoint),
        context_length=shape.context_length,
        batch_size=1,
        seed=0,
        mask_documents=data.mask_documents,
    ).arrays
    compute = jax.jit(partial(next_token, model))
    outputs = compute(params, blocks["tokens_BT"], blocks["segments_BT"])
    nll_BT, log_z_BT, valid_BT = (np.asarray(x, np.float64) for x in outputs)
    tokens = valid_BT.sum()
    return [
        {
            "loss": float((nll_BT * valid_BT).sum() / tokens),
            "log_z_squared": float((log_z_BT**2 * valid_BT).sum() / tokens),
            "parameters": num_params(shape),
            "cached": 2 * shape.num_layers * shape.num_kv_heads * shape.head_width,
        }
    ]


# --- claims ---------------------------------------------------------------------------------------


def _pairs(table: Table, change: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a change's numbers and those of the GPT-2 block, paired by seed."""
    changed, plain = (table.where(change=name).final(column) for name in (change, GPT))
    seeds = [seed for seed in changed if seed in plain]
    if not seeds:
        raise ValueError(f"no seed has {change} and {GPT}")
    return np.array([changed[seed] for seed in seeds]), np.array([plain[seed] for seed in seeds])


def relative_loss(table: Table, change: str, most: float) -> Finding:
    """Judge the loss with a change over that without, less one."""
    changed, plain = _pairs(table, change, "loss")
    excess = t_interval(changed / plain - 1)
    return interval_finding(excess.mean <= most, excess)


def multi_query(table: Table) -> Finding:
    """Judge the loss with one key/value head, and name the share of the cache that is left."""
    changed, plain = _pairs(table, "multi-query", "cached")
    text = f"numbers in the cache per token {changed[0]:.0f} instead of {plain[0]:.0f}"
    return relative_loss(table, "multi-query", 0.01)._replace(detail=text)


def normaliser(table: Table) -> Finding:
    """Judge the mean log² Z with the z-loss, against that without."""
    changed, plain = _pairs(table, Z_LOSS, "log_z_squared")
    log_z = t_interval(changed)
    passed = log_z.mean <= 1 and bool(np.all(changed < plain))
    return interval_finding(passed, log_z, f"without {plain.mean():.3g}")


CRITERIA = (
    Criterion(
        "a parallel block's loss is at most 0.5 % above the serial one's",
        partial(relative_loss, change="parallel block", most=0.005),
    ),
    Criterion(
        "one key/value head costs at most 1 % of loss, for 1/heads of the cache", multi_query
    ),
    Criterion("SwiGLU's loss is below GELU's", partial(relative_loss, change="SwiGLU", most=0.0)),
    Criterion(
        "the loss with rotary positions is below that with learned ones",
        partial(relative_loss, change="rotary positions", most=0.0),
    ),
    Criterion(
        "with a z-loss of 1e-4 mean log² Z is at most 1, and smaller than without", normaliser
    ),
    Criterion(
        "all changes together have a lower loss than the GPT-2 block",
        partial(relative_loss, change=PALM, most=0.0),
    ),
)


def figure(table: Table) -> Figure:
    """Draw the loss of every change, and log² Z; a dot for every seed."""
    chart, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
    heights = {change: height for height, change in enumerate(reversed(CHANGES))}
    for axes, column in ((left, "loss"), (right, "log_z_squared")):
        for change, rows in table.having(column).by("change"):
            mean, height = rows.column(column).mean(), heights[change]
            for row in rows.rows:
                draw_point(axes, float(row[column]), height, row["seed"], color="#2a3f8f")
            axes.plot(mean, height, "|", ms=14, color="#2a3f8f")
            if change == GPT:
                axes.axvline(mean, color="#777", ls="--", lw=1)
        axes.grid(axis="y", color="#eee")
    left.set_yticks(list(heights.values()), list(heights), fontsize=8)
    left.set(xlabel="validation loss, nats/token", title="a GPT-2 block with one change")
    right.set(xlabel="mean log² Z", title="the softmax's normaliser")
    return chart
