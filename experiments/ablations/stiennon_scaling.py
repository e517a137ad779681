"""Fit how reward accuracy grows with the logarithms of data and size.

    python -m experiments.ablations.reproduce stiennon_scaling --seeds=3

Stiennon et al. 2020, Fig. 6. The reward models of `gao_best_of_n` (nothing else is trained):
agreement with labelers who gave no training label, and with gold, on pairs of answers to validation
prompts.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import fit_line, t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Row,
    Table,
    draw_seeds,
    interval_finding,
)
from experiments.ablations.gao_best_of_n import COLOURS, add_reward_models
from experiments.ablations.measures import last, metrics
from rlhf_jax.models.config import from_dict, num_params
from rlhf_jax.training.pretrained import read_meta


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Use three sizes x the amounts of data of `gao_best_of_n`."""
    ablation = Ablation("Stiennon et al. 2020, Fig. 6", seeds, CRITERIA, figure, "Thin: seeds.")
    for name, point, folder in add_reward_models(ablation, size):
        ablation.add_measurement(name, point, (folder,), accuracy, folder=folder)
    return ablation


def accuracy(context: Context, *, folder: str) -> list[Row]:
    """Return the last validation of a reward model, and its number of parameters."""
    rows = metrics(context.folder(folder))
    parameters = num_params(from_dict(read_meta(context.folder(folder)).model))
    judges = {judge: last(rows, f"validation/accuracy_{judge}") for judge in ("gold", "heldout")}
    return [{"parameters": parameters, **judges}]


def accuracy_grows(table: Table, judge: str) -> Finding:
    """Judge the slopes of accuracy = a + b log₂ data + c log₂ size.

    A plane for every seed, since its reward models share prompts, answers and labels.
    """
    planes = []
    for _, rows in table.having(judge, "parameters").by("seed"):
        x_NK = np.log2(np.stack([rows.column("rankings"), rows.column("parameters")], axis=1))
        planes.append(100 * fit_line(x_NK, rows.column(judge)).slopes)
    data, size = (t_interval(slopes) for slopes in np.array(planes).T)
    text = (
        f"size {size.mean:+.2f} [{size.low:.2f}, {size.high:.2f}]; points per doubling of data; "
        "theirs 1.1 and 1.8"
    )
    return interval_finding(data.low > 0 and size.low > 0, data, text)


CRITERIA = (
    Criterion(
        "accuracy against held-out labelers = a + b log₂ data + c log₂ size: intervals of b, c "
        "above 0",
        partial(accuracy_grows, judge="heldout"),
    ),
    Criterion("the same against gold", partial(accuracy_grows, judge="gold")),
)


def figure(table: Table) -> Figure:
    """Draw accuracy against data, a line for every size."""
    chart, panels = plt.subplots(1, 2, figsize=(8.4, 3.4), sharex=True)
    judges = {"heldout": "held-out labelers", "gold": "gold"}
    for axes, (judge, label) in zip(panels, judges.items(), strict=True):
        for trunk, rows in table.by("trunk"):
            parameters = rows.having("parameters").column("parameters")[0]
            name = f"{trunk}, {parameters / 1e3:,.0f} k"
            draw_seeds(axes, rows, "rankings", judge, colour=COLOURS[trunk], label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="rankings of 4 to 9 answers", ylabel=f"agreement with {label}")
    panels[0].legend(title="parameters")
    chart.suptitle("Reward models: data and size", fontsize=11)
    return chart
