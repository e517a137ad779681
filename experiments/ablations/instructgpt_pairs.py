"""Compare a ranking's pairs in one batch element with pairs shuffled as independent data.

    python -m experiments.ablations.reproduce instructgpt_pairs --seeds=5

Ouyang et al. 2022, section 3.5: shuffled pairs overfit. The same rankings and as many pairs an
update either way, one epoch and four; the small trunk. Footnote 5: shuffled, each answer is in up
to K - 1 updates of an epoch. The loss is that of held-out labelers' rankings of answers to
validation prompts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Row,
    Table,
    draw_seeds,
    interval_finding,
    mean_of,
    paired,
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base_runs, pick, reward_run

TRUNK, EPOCHS, BATCHINGS = "s", (1, 4), ("prompts", "shuffled_pairs")
PAIRS_PER_RANKING = 13  # untied and different, on average


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Train with two batchings and two lengths a seed."""
    paper = "Ouyang et al. 2022, section 3.5"
    ablation = Ablation(paper, seeds, CRITERIA, figure, "Thin: seeds.")
    count = pick(size, tiny=16, default=640, large=8000)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed, TRUNK))
        for batching in BATCHINGS:
            for epochs in EPOCHS:
                folder = f"instructgpt_pairs/seed{seed}/{batching}-{epochs}"
                run = reward_run(size, seed, folder, trunk=TRUNK, num_rankings=count)
                reward = run.config.reward
                reward.batching, reward.num_epochs = batching, float(epochs)
                reward.eval_every = pick(size, tiny=2, default=5, large=25)
                if batching == "shuffled_pairs":
                    reward.batch_size *= PAIRS_PER_RANKING
                ablation.add_runs(run)
                point: Row = {"seed": seed, "batching": batching, "epochs": epochs}
                name = f"seed{seed}-{batching}-{epochs}"
                ablation.add_measurement(name, point, (folder,), learning_curve, folder=folder)
    return ablation


def learning_curve(context: Context, *, folder: str) -> list[Row]:
    """Return held-out loss and accuracy at every validation of training proper.

    The last one comes after the normalisation.
    """
    names = {
        "loss": "validation/loss_heldout",
        "accuracy": "validation/accuracy_heldout",
        "gold": "validation/accuracy_gold",
    }
    return [
        {"update": row["step"], **{name: float(row[key]) for name, key in names.items()}}
        for row in metrics(context.folder(folder))
        if names["loss"] in row
    ]


def _of_losses(
    table: Table, epochs: int, measure: Callable[[np.ndarray], float]
) -> list[dict[Any, float]]:
    """Measure the held-out losses of shuffled pairs and of whole rankings."""
    curves = [table.where(batching=name, epochs=epochs).having("loss") for name in BATCHINGS[::-1]]
    return [rows.each_seed(lambda seed: measure(seed.column("loss"))) for rows in curves]


def grouped_is_better(table: Table, epochs: int) -> Finding:
    """Judge the paired difference of the final held-out losses."""
    gap = t_interval(paired(*_of_losses(table, epochs, lambda loss: loss[-1])))
    text = "loss of shuffled pairs minus loss of whole rankings, nats"
    return interval_finding(gap.low > 0, gap, text)


def shuffled_overfits(table: Table) -> Finding:
    """Judge how far four epochs of shuffled pairs end above their minimum."""
    rises = _of_losses(table, EPOCHS[-1], lambda loss: loss[-1] - loss.min())
    gap = t_interval(paired(*rises))
    shuffled, whole = map(mean_of, rises)
    text = f"last minus lowest, nats: shuffled pairs {shuffled:.3f}, whole rankings {whole:.3f}"
    return interval_finding(gap.low > 0, gap, text)


CRITERIA = (
    Criterion(
        "one epoch: held-out loss of whole rankings below that of shuffled pairs (p < 0.05)",
        partial(grouped_is_better, epochs=1),
    ),
    Criterion("four epochs: the same", partial(grouped_is_better, epochs=4)),
    Criterion(
        "four epochs of shuffled pairs end further above their minimum than whole rankings do",
        shuffled_overfits,
    ),
)


def figure(table: Table) -> Figure:
    """Draw the held-out loss over training."""
    chart, panels = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True)
    for axes, epochs in zip(panels, EPOCHS, strict=True):
        for name, colour in zip(BATCHINGS, ("#2a3f8f", "#d9822b"), strict=True):
            rows = table.where(batching=name, epochs=epochs)
            draw_seeds(axes, rows, "update", "loss", colour=colour, label=name.replace("_", " "))
        axes.set(title=f"{epochs} epoch{'s' if epochs > 1 else ''}", xlabel="updates")
    panels[0].set_ylabel("held-out loss, nats per pair")
    panels[0].legend()
    chart.suptitle("Whole rankings and shuffled pairs", fontsize=11)
    return chart
