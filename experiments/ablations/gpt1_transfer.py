"""Radford et al. 2018, Table 5 (E23): classification with and without pretraining, with and without the auxiliary loss.

    python -m experiments.ablations.reproduce gpt1_transfer --seeds=3

Labels of forum replies (helpful, unhelpful, rude, harmful) from few labelled texts and from eight times as many, with equally
many steps for both. The paper: without pretraining all tasks lose, 14.8 % on average; the auxiliary language-modelling loss
(λ = 0.5) helps where there is much data and does not where there is little. Estimated for three seeds on two quiet cores,
beyond the base: 12 minutes.
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
    mark_seed,
    paired,
    several,
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base, base_runs, beside, pick
from experiments.menagerie import classify

PRETRAINED, NO_AUXILIARY, SCRATCH = (
    "pretrained, λ = 0.5",
    "pretrained, λ = 0",
    "from scratch, λ = 0.5",
)
SETTINGS = {PRETRAINED: (True, 0.5), NO_AUXILIARY: (True, 0.0), SCRATCH: (False, 0.5)}
SETS = ("few", "many")
COLOURS = dict(zip(SETTINGS, ("#2a3f8f", "#d9822b", "#777"), strict=True))


def texts(size: str) -> dict[str, int]:
    """Labelled texts in each training set."""
    most = pick(size, tiny=64, default=1024, large=8192)
    return {"few": most // 8, "many": most}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Six classifiers a seed."""
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed, stages=("pretrain",))
        for data in SETS:
            for setting in SETTINGS:
                run = _run(size, seed, data, setting)
                runs.append(run)
                point: Row = {
                    "seed": seed,
                    "data": data,
                    "texts": texts(size)[data],
                    "setting": setting,
                }
                measurements.append(
                    Measurement(
                        run.folder.replace("/", "-"),
                        point,
                        (run.folder,),
                        {},
                        partial(validations, folder=run.folder),
                    )
                )
    return Ablation(
        "Radford et al. 2018, Table 5",
        seeds,
        runs,
        measurements,
        CRITERIA,
        figure,
        "Equal steps for both sets.",
    )


def _run(size: str, seed: int, data: str, setting: str) -> GridRun:
    pretrained, lm_coef = SETTINGS[setting]
    start = "pretrained" if pretrained else "scratch"
    folder = f"gpt1_transfer/seed{seed}/{data}-{start}-lm{lm_coef}"
    config, counts = classify.get_config(size), texts(size)
    config.seed = seed
    config.init.update({"policy": beside(base(seed, "pretrain"), folder), "pretrained": pretrained})
    config.data.max_examples = counts[data]
    config.classify.update(
        {
            "lm_coef": lm_coef,
            "num_epochs": config.classify.num_epochs * counts["many"] / counts[data],
        }
    )
    return GridRun(folder, config)


def validations(bench: Bench, *, folder: str) -> list[Row]:
    """Accuracy and loss on held-out texts at every validation."""
    return [
        {
            "update": row["step"],
            "accuracy": row["validation/accuracy"],
            "loss": row["validation/loss"],
        }
        for row in metrics(bench.folder(folder))
        if "validation/accuracy" in row
    ]


# --- claims -----------------------------------------------------------------------------------------------------------


def _final(table: Table, data: str, setting: str) -> dict[int, float]:
    """The last accuracy of every seed that has one."""
    rows = table.where(data=data, setting=setting).having("accuracy")
    return {seed: float(one.column("accuracy")[-1]) for seed, one in rows.by("seed")}


def _gaps(table: Table, data: str, first: str, second: str) -> np.ndarray:
    """Accuracy with the first setting less that with the second, paired by seed."""
    return paired(_final(table, data, first), _final(table, data, second))


def pretraining_helps(table: Table, data: str) -> Finding:
    """Accuracy with pretraining less that without."""
    found = t_interval(_gaps(table, data, PRETRAINED, SCRATCH))
    each = {setting: list(_final(table, data, setting).values()) for setting in SETTINGS}
    text = "; ".join(
        f"{setting}: {np.mean(values):.3f}" for setting, values in each.items() if values
    )
    return Finding(found.mean >= 0.1, *found, text)


def auxiliary_on_many(table: Table) -> Finding:
    """What the auxiliary loss adds to the accuracy."""
    found = t_interval(several(_gaps(table, "many", PRETRAINED, NO_AUXILIARY)))
    return Finding(found.high >= 0, *found, "")


def auxiliary_needs_data(table: Table) -> Finding:
    """What the auxiliary loss adds with many texts, less what it adds with few; means over seeds."""
    gains = [
        t_interval(_gaps(table, data, PRETRAINED, NO_AUXILIARY)).mean for data in ("many", "few")
    ]
    return Finding(
        gains[0] > gains[1],
        gains[0] - gains[1],
        None,
        None,
        f"many {gains[0]:+.3f}, few {gains[1]:+.3f}",
    )


CRITERIA = (
    *(
        Criterion(
            f"E23.{data}",
            f"{data} texts: pretraining adds at least 10 points of accuracy",
            partial(pretraining_helps, data=data),
        )
        for data in SETS
    ),
    Criterion(
        "E23.auxiliary",
        "many texts: the interval of what the auxiliary loss adds does not lie below 0",
        auxiliary_on_many,
    ),
    Criterion(
        "E23.more_data",
        "the auxiliary loss adds more where there are many texts than where there are few",
        auxiliary_needs_data,
    ),
)


def figure(table: Table) -> Figure:
    """Accuracy of every setting with few texts and with many; a dot for every seed."""
    made, axes = plt.subplots(figsize=(6.2, 3.8))
    for number, setting in enumerate(SETTINGS):
        for place, data in enumerate(SETS):
            found, x = _final(table, data, setting), place + 0.12 * (number - 1)
            for seed, accuracy in found.items():
                mark_seed(
                    axes.plot(x, accuracy, "o", ms=4, alpha=0.6, color=COLOURS[setting])[0], seed
                )
            if found:
                axes.plot(
                    x,
                    np.mean(list(found.values())),
                    "_",
                    ms=16,
                    mew=2,
                    color=COLOURS[setting],
                    label=setting if place == 0 else None,
                )
    counts = {data: rows.values("texts")[0] for data, rows in table.by("data")}
    axes.set_xticks(range(len(SETS)), [f"{counts[data]:,} texts" for data in SETS])
    axes.set(
        ylabel="accuracy on held-out texts", title="What pretraining and the auxiliary loss add"
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
