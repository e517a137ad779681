"""Ouyang et al. 2022, section 3.5: a ranking's pairs in one batch element, or shuffled as independent data, which overfits.

    python -m experiments.ablations.reproduce instructgpt_pairs --seeds=5

The same rankings and as many pairs an update either way, one epoch and four; the small trunk. Footnote 5: shuffled, each answer
is in up to K - 1 updates of an epoch. The loss is that of held-out labelers' rankings of answers to validation prompts.
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
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    draw_seeds,
    paired,
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base_runs, pick, reward_run

TRUNK, EPOCHS, BATCHINGS = "s", (1, 4), ("prompts", "shuffled_pairs")
PAIRS_PER_RANKING = 13  # untied and different, on average


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Two batchings x two lengths a seed."""
    count = pick(size, tiny=16, default=640, large=8000)
    runs: dict[str, GridRun] = {}
    measurements = []
    for seed in seeds:
        runs |= {run.folder: run for run in base_runs(size, seed, TRUNK)}
        for batching in BATCHINGS:
            for epochs in EPOCHS:
                folder = f"instructgpt_pairs/seed{seed}/{batching}-{epochs}"
                run = reward_run(size, seed, folder, trunk=TRUNK, num_rankings=count)
                run.config.reward.batching, run.config.reward.num_epochs = batching, float(epochs)
                run.config.reward.eval_every = pick(size, tiny=2, default=5, large=25)
                if batching == "shuffled_pairs":
                    run.config.reward.batch_size *= PAIRS_PER_RANKING
                runs[folder] = run
                point: Row = {"seed": seed, "batching": batching, "epochs": epochs}
                measurements.append(
                    Measurement(
                        f"seed{seed}-{batching}-{epochs}",
                        point,
                        (folder,),
                        {},
                        partial(curve, folder=folder),
                    )
                )
    return Ablation(
        "Ouyang et al. 2022, section 3.5",
        seeds,
        list(runs.values()),
        measurements,
        CRITERIA,
        figure,
        "Thin: seeds.",
    )


def curve(bench: Bench, *, folder: str) -> list[Row]:
    """Held-out loss and accuracy at every validation of training proper; the last one comes after the normalisation."""
    names = {
        "loss": "validation/loss_heldout",
        "accuracy": "validation/accuracy_heldout",
        "gold": "validation/accuracy_gold",
    }
    rows = [row for row in metrics(bench.folder(folder)) if names["loss"] in row]
    return [
        {"update": row["step"], **{name: float(row[key]) for name, key in names.items()}}
        for row in rows
    ]


def _of(
    table: Table, epochs: int, measure: Callable[[np.ndarray], float]
) -> list[dict[Any, float]]:
    """Of the held-out losses of shuffled pairs and of whole rankings."""
    curves = [
        table.where(batching=batching, epochs=epochs).having("loss")
        for batching in reversed(BATCHINGS)
    ]
    return [rows.each_seed(lambda one: measure(one.column("loss"))) for rows in curves]


def grouped_is_better(table: Table, epochs: int) -> Finding:
    """Paired difference of the final held-out losses."""
    found = t_interval(paired(*_of(table, epochs, lambda loss: loss[-1])))
    return Finding(
        found.low > 0, *found, "loss of shuffled pairs minus loss of whole rankings, nats"
    )


def shuffled_overfits(table: Table) -> Finding:
    """How far four epochs of shuffled pairs end above their minimum, beyond what whole rankings do: no curve ends below it."""
    rises = _of(table, EPOCHS[-1], lambda loss: loss[-1] - loss.min())
    found = t_interval(paired(*rises))
    shuffled, whole = (float(np.mean(list(one.values()))) for one in rises)
    return Finding(
        found.low > 0,
        *found,
        f"last minus lowest, nats: shuffled pairs {shuffled:.3f}, whole rankings {whole:.3f}",
    )


CRITERIA = (
    Criterion(
        "E10.one",
        "one epoch: held-out loss of whole rankings below that of shuffled pairs (p < 0.05)",
        partial(grouped_is_better, epochs=1),
    ),
    Criterion("E10.four", "four epochs: the same", partial(grouped_is_better, epochs=4)),
    Criterion(
        "E10.overfit",
        "four epochs of shuffled pairs end further above their minimum than whole rankings do",
        shuffled_overfits,
    ),
)


def figure(table: Table) -> Figure:
    """Held-out loss over training."""
    made, axes = plt.subplots(1, 2, figsize=(8.6, 3.4), sharey=True)
    for one, epochs in zip(axes, EPOCHS, strict=True):
        for batching, colour in zip(BATCHINGS, ("#2a3f8f", "#d9822b"), strict=True):
            rows = table.where(batching=batching, epochs=epochs)
            draw_seeds(one, rows, "update", "loss", colour=colour, label=batching.replace("_", " "))
        one.set(title=f"{epochs} epoch{'s' if epochs > 1 else ''}", xlabel="updates")
        one.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out loss, nats per pair")
    axes[0].legend(frameon=False, fontsize=8)
    made.suptitle("Whole rankings and shuffled pairs", fontsize=11)
    made.tight_layout()
    return made
