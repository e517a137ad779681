"""Ouyang et al. 2022, section 3.5: supervised fine-tuning overfits in loss, while the reward model likes it better and better.

    python -m experiments.ablations.reproduce sft_overfit --seeds=3

Sixteen epochs of 1,000 demonstrations: loss on held-out demonstrations, and what the base's reward model and gold say of
answers to test prompts, at every second epoch.
"""

from functools import partial

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
    draw_seeds,
)
from experiments.ablations.measures import Panel, examine_steps, metrics
from experiments.ablations.shared import base, base_runs, beside, pick
from experiments.menagerie import sft

EPOCHS = 16


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """One long SFT a seed."""
    panel = Panel(
        size,
        pick(size, tiny=8, default=256, large=1024),
        pick(size, tiny=2, default=4, large=4),
        1,
        8,
    )
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        run, per_epoch = _run(size, seed)
        runs += [*base_runs(size, seed), run]
        steps = [per_epoch * epoch for epoch in range(2, EPOCHS + 1, 2)]
        measurements.append(
            Measurement(
                f"seed{seed}",
                {"seed": seed},
                (run.folder, base(seed, "reward"), base(seed, "sft")),
                {**panel.settings, "steps": steps},
                partial(
                    curves,
                    panel=panel,
                    seed=seed,
                    folder=run.folder,
                    steps=steps,
                    per_epoch=per_epoch,
                ),
            )
        )
    return Ablation("Ouyang et al. 2022, section 3.5", seeds, runs, measurements, CRITERIA, figure)


def _run(size: str, seed: int) -> tuple[GridRun, int]:
    """The run, and its steps in an epoch."""
    folder = f"sft_overfit/seed{seed}/sft"
    config = sft.get_config(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "pretrain"), folder)
    per_epoch = pick(size, tiny=2, default=36, large=36)
    config.data.demonstrations += f"?train=train[:{per_epoch * config.sft.batch_size}]"
    config.sft.update(
        num_epochs=float(EPOCHS),
        document_rows=0,
        eval_every=per_epoch // 2,
        eval_batches=4,
        select="last",
    )
    config.checkpoint.update(save_every=2 * per_epoch, keep=EPOCHS)
    config.monitor = None
    return GridRun(folder, config), per_epoch


def curves(
    bench: Bench, *, panel: Panel, seed: int, folder: str, steps: list[int], per_epoch: int
) -> list[Row]:
    """Losses where the run validated, judgements where it saved; two kinds of rows."""
    found = examine_steps(
        bench,
        panel=panel,
        seed=seed,
        folder=folder,
        reward_folder=base(seed, "reward"),
        steps=steps,
        start=False,
    )
    losses = [
        {"epoch": float(row["step"]) / per_epoch, "loss": row["validation/loss"]}
        for row in metrics(bench.folder(folder))
        if "validation/loss" in row
    ]
    return [*losses, *({"epoch": float(row["update"]) / per_epoch, **row} for row in found)]


def loss_turns(table: Table) -> Finding:
    """The epoch of the lowest held-out loss."""
    found = t_interval(
        table.having("loss").per_seed(
            lambda one: float(one.column("epoch")[np.argmin(one.column("loss"))])
        )
    )
    return Finding(found.mean <= 3, *found, "epoch of the lowest held-out loss")


def score_rises(table: Table) -> Finding:
    """The reward model's score at the last epoch against epoch 8."""
    gains = table.having("proxy").per_seed(
        lambda one: float(one.column("proxy")[-1] - one.where(epoch=8.0).column("proxy")[0])
    )
    found = t_interval(gains)
    return Finding(
        found.mean > 0, *found, "proxy at epoch 16 minus epoch 8, SD of the quickstart's SFT"
    )


CRITERIA = (
    Criterion("E29.loss", "held-out loss is lowest at or before epoch 3", loss_turns),
    Criterion("E29.score", "the reward model's score still rises after epoch 8", score_rises),
)


def figure(table: Table) -> Figure:
    """Held-out loss; proxy and gold."""
    made, axes = plt.subplots(1, 2, figsize=(8.6, 3.3))
    draw_seeds(axes[0], table.having("loss"), "epoch", "loss", colour="#a33", label="held-out loss")
    for name, colour in (("proxy", "#d9822b"), ("gold", "#2a3f8f")):
        draw_seeds(axes[1], table.having("proxy"), "epoch", name, colour=colour, label=name)
    axes[0].set(xlabel="epochs", ylabel="loss on held-out demonstrations")
    axes[1].set(xlabel="epochs", ylabel="SD of the quickstart's SFT")
    axes[1].legend(frameon=False, fontsize=8)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    made.suptitle("Supervised fine-tuning for 16 epochs", fontsize=11)
    made.tight_layout()
    return made
