"""Stiennon et al. 2020, Fig. 6: reward accuracy grows with the logarithms of data and size.

    python -m experiments.ablations.reproduce stiennon_scaling --seeds=3

The reward models of `gao_best_of_n` (nothing else is trained): agreement with labelers who gave no training label, and with
gold, on pairs of answers to validation prompts.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import fit_line, t_interval
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
from experiments.ablations.gao_best_of_n import COLOURS, TRUNKS, rankings
from experiments.ablations.measures import last, metrics
from experiments.ablations.shared import base_runs, reward_model
from rlhf_jax.models.config import from_dict, num_params
from rlhf_jax.training.pretrained import read_meta


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Three sizes x the amounts of data of `gao_best_of_n`."""
    runs: dict[str, GridRun] = {}
    measurements = []
    for seed in seeds:
        runs |= {run.folder: run for run in base_runs(size, seed, *TRUNKS)}
        for trunk in TRUNKS:
            for count in rankings(size):
                run = reward_model(size, seed, trunk, count)
                runs[run.folder] = run
                point: Row = {"seed": seed, "trunk": trunk, "rankings": count}
                measurements.append(
                    Measurement(
                        f"seed{seed}-{trunk}-{count}",
                        point,
                        (run.folder,),
                        {},
                        partial(accuracy, folder=run.folder),
                    )
                )
    return Ablation(
        "Stiennon et al. 2020, Fig. 6",
        seeds,
        list(runs.values()),
        measurements,
        CRITERIA,
        figure,
        "Thin: seeds.",
    )


def accuracy(bench: Bench, *, folder: str) -> list[Row]:
    """The last validation of a reward model, and its number of parameters."""
    rows = metrics(bench.folder(folder))
    parameters = num_params(from_dict(read_meta(bench.folder(folder)).model))
    return [
        {
            "parameters": parameters,
            **{judge: last(rows, f"validation/accuracy_{judge}") for judge in ("gold", "heldout")},
        }
    ]


def scaling(table: Table, judge: str) -> Finding:
    """accuracy = a + b log2 data + c log2 size, a plane for every seed: its reward models share prompts, answers and labels."""
    planes = []
    for _, rows in table.having(judge, "parameters").by("seed"):
        x_NK = np.log2(np.stack([rows.column("rankings"), rows.column("parameters")], axis=1))
        planes.append(100 * fit_line(x_NK, rows.column(judge)).slopes)
    data, size = (t_interval(slopes) for slopes in np.array(planes).T)
    text = f"size {size.mean:+.2f} [{size.low:.2f}, {size.high:.2f}]; points per doubling of data; theirs 1.1 and 1.8"
    return Finding(data.low > 0 and size.low > 0, *data, text)


CRITERIA = (
    Criterion(
        "E13.labelers",
        "accuracy against held-out labelers = a + b log₂ data + c log₂ size: intervals of b, c above 0",
        partial(scaling, judge="heldout"),
    ),
    Criterion("E13.gold", "the same against gold", partial(scaling, judge="gold")),
)


def figure(table: Table) -> Figure:
    """Accuracy against data, a line for every size."""
    made, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), sharex=True)
    for one, judge, label in zip(
        axes, ("heldout", "gold"), ("held-out labelers", "gold"), strict=True
    ):
        for trunk, rows in table.by("trunk"):
            parameters = rows.having("parameters").column("parameters")[0]
            draw_seeds(
                one,
                rows,
                "rankings",
                judge,
                colour=COLOURS[trunk],
                label=f"{trunk}, {parameters / 1e3:,.0f} k",
            )
        one.set_xscale("log", base=2)
        one.set(xlabel="rankings of 4 to 9 answers", ylabel=f"agreement with {label}")
        one.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8, title="parameters")
    made.suptitle("Reward models: data and size", fontsize=11)
    made.tight_layout()
    return made
