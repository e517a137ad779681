"""Overfit supervised fine-tuning in loss, while the reward model likes it better and better.

    python -m experiments.ablations.reproduce sft_overfit --seeds=3

Ouyang et al. 2022, section 3.5. Sixteen epochs of 1,000 demonstrations: loss on held-out
demonstrations, and what the base's reward model and gold say of answers to test prompts, at every
second epoch.
"""

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
    draw_seeds,
    interval_finding,
)
from experiments.ablations.measures import (
    PolicyEvalSettings,
    evaluate_checkpoints,
    metrics,
    policy_eval_settings,
)
from experiments.ablations.shared import base, base_runs, beside, pick
from experiments.menagerie import sft

EPOCHS = 16


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run one long SFT a seed."""
    ablation = Ablation("Ouyang et al. 2022, section 3.5", seeds, CRITERIA, figure)
    steps_per_epoch = pick(size, tiny=2, default=36, large=36)
    for seed in seeds:
        run = _run(size, seed, steps_per_epoch)
        ablation.add_runs(*base_runs(size, seed), run)
        ablation.add_measurement(
            f"seed{seed}",
            {"seed": seed},
            (run.folder, base(seed, "reward"), base(seed, "sft")),
            curves,
            settings=policy_eval_settings(size),
            seed=seed,
            folder=run.folder,
            steps_per_epoch=steps_per_epoch,
        )
    return ablation


def _run(size: str, seed: int, steps_per_epoch: int) -> GridRun:
    folder = f"sft_overfit/seed{seed}/sft"
    config = sft.get_config(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "pretrain"), folder)
    config.data.demonstrations += f"?train=train[:{steps_per_epoch * config.sft.batch_size}]"
    config.sft.update(
        num_epochs=float(EPOCHS),
        document_rows=0,
        eval_every=steps_per_epoch // 2,
        eval_batches=4,
        select="last",
    )
    config.checkpoint.update(save_every=2 * steps_per_epoch, keep=EPOCHS)
    config.monitor = None
    return GridRun(folder, config)


def curves(
    context: Context, *, settings: PolicyEvalSettings, seed: int, folder: str, steps_per_epoch: int
) -> list[Row]:
    """Return losses where the run validated and judgements where it saved: two kinds of rows."""
    judgements = evaluate_checkpoints(
        context,
        settings=settings,
        seed=seed,
        folder=folder,
        reward_folder=base(seed, "reward"),
        steps=[steps_per_epoch * epoch for epoch in range(2, EPOCHS + 1, 2)],
        start=False,
    )
    losses: list[Row] = [
        {"epoch": float(row["step"]) / steps_per_epoch, "loss": row["validation/loss"]}
        for row in metrics(context.folder(folder))
        if "validation/loss" in row
    ]
    epochs = [float(row["update"]) / steps_per_epoch for row in judgements]
    return losses + [{"epoch": e, **row} for e, row in zip(epochs, judgements, strict=True)]


def loss_turns(table: Table) -> Finding:
    """Judge the epoch of the lowest held-out loss."""
    epoch = t_interval(
        table.having("loss").per_seed(
            lambda rows: float(rows.column("epoch")[np.argmin(rows.column("loss"))])
        )
    )
    return interval_finding(epoch.mean <= 3, epoch, "epoch of the lowest held-out loss")


def score_rises(table: Table) -> Finding:
    """Judge the reward model's score at the last epoch against epoch 8."""
    gains = table.having("proxy").per_seed(
        lambda rows: float(rows.column("proxy")[-1] - rows.where(epoch=8.0).column("proxy")[0])
    )
    gain = t_interval(gains)
    text = "proxy at epoch 16 minus epoch 8, SD of the quickstart's SFT"
    return interval_finding(gain.mean > 0, gain, text)


CRITERIA = (
    Criterion("held-out loss is lowest at or before epoch 3", loss_turns),
    Criterion("the reward model's score still rises after epoch 8", score_rises),
)


def figure(table: Table) -> Figure:
    """Draw the held-out loss, and proxy and gold."""
    chart, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.3))
    draw_seeds(left, table.having("loss"), "epoch", "loss", colour="#a33", label="held-out loss")
    for name, colour in (("proxy", "#d9822b"), ("gold", "#2a3f8f")):
        draw_seeds(right, table.having("proxy"), "epoch", name, colour=colour, label=name)
    left.set(xlabel="epochs", ylabel="loss on held-out demonstrations")
    right.set(xlabel="epochs", ylabel="SD of the quickstart's SFT")
    right.legend()
    chart.suptitle("Supervised fine-tuning for 16 epochs", fontsize=11)
    return chart
