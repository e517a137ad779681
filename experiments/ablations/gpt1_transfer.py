"""Classify texts with and without pretraining, with and without the auxiliary loss.

    python -m experiments.ablations.reproduce gpt1_transfer --seeds=3

Radford et al. 2018, Table 5. Labels of forum replies (helpful, unhelpful, rude, harmful) from few
labelled texts and from eight times as many, with equally many steps for both. The paper: without
pretraining all tasks lose, 14.8 % on average; the auxiliary language-modelling loss (λ = 0.5) helps
where there is much data and does not where there is little. Estimated for three seeds on two quiet
cores, beyond the base: 12 minutes.
"""

from functools import partial

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
    Options,
    Row,
    Table,
    draw_point,
    interval_finding,
    mean_of,
    paired,
    require_two,
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base, base_runs, beside, pick
from experiments.menagerie import classify

PRETRAINED, NO_AUXILIARY = "pretrained, λ = 0.5", "pretrained, λ = 0"
SCRATCH = "from scratch, λ = 0.5"
SETTINGS = {PRETRAINED: (True, 0.5), NO_AUXILIARY: (True, 0.0), SCRATCH: (False, 0.5)}
SETS = ("few", "many")
COLOURS = dict(zip(SETTINGS, ("#2a3f8f", "#d9822b", "#777"), strict=True))


def num_texts(size: str) -> dict[str, int]:
    """Return the number of labelled texts in each training set."""
    most = pick(size, tiny=64, default=1024, large=8192)
    return {"few": most // 8, "many": most}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Train six classifiers a seed."""
    notes = "Equal steps for both sets."
    ablation = Ablation("Radford et al. 2018, Table 5", seeds, CRITERIA, figure, notes)
    counts = num_texts(size)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed, stages=("pretrain",)))
        for data in SETS:
            for setting in SETTINGS:
                run = _run(size, seed, data, setting)
                ablation.add_runs(run)
                point: Row = {"seed": seed, "data": data}
                point |= {"texts": counts[data], "setting": setting}
                name, needs = run.folder.replace("/", "-"), (run.folder,)
                ablation.add_measurement(name, point, needs, validations, folder=run.folder)
    return ablation


def _run(size: str, seed: int, data: str, setting: str) -> GridRun:
    pretrained, lm_coef = SETTINGS[setting]
    start = "pretrained" if pretrained else "scratch"
    folder = f"gpt1_transfer/seed{seed}/{data}-{start}-lm{lm_coef}"
    config, counts = classify.get_config(size), num_texts(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "pretrain"), folder)
    config.init.pretrained = pretrained
    config.data.max_examples = counts[data]
    config.classify.lm_coef = lm_coef
    config.classify.num_epochs = config.classify.num_epochs * counts["many"] / counts[data]
    return GridRun(folder, config)


def validations(context: Context, *, folder: str) -> list[Row]:
    """Return accuracy and loss on held-out texts at every validation."""
    accuracy, loss = "validation/accuracy", "validation/loss"
    return [
        {"update": row["step"], "accuracy": row[accuracy], "loss": row[loss]}
        for row in metrics(context.folder(folder))
        if accuracy in row
    ]


# --- claims ---------------------------------------------------------------------------------------


def _accuracy(table: Table, data: str, setting: str) -> dict[int, float]:
    return table.where(data=data, setting=setting).final("accuracy")


def _gaps(table: Table, data: str, first: str, second: str) -> np.ndarray:
    """Return accuracy with the first setting less that with the second, paired by seed."""
    return paired(_accuracy(table, data, first), _accuracy(table, data, second))


def pretraining_helps(table: Table, data: str) -> Finding:
    """Judge the accuracy with pretraining less that without."""
    gap = t_interval(_gaps(table, data, PRETRAINED, SCRATCH))
    accuracies = {setting: _accuracy(table, data, setting) for setting in SETTINGS}
    text = "; ".join(f"{name}: {mean_of(each):.3f}" for name, each in accuracies.items() if each)
    return interval_finding(gap.mean >= 0.1, gap, text)


def auxiliary_on_many(table: Table) -> Finding:
    """Judge what the auxiliary loss adds to the accuracy."""
    gap = t_interval(require_two(_gaps(table, "many", PRETRAINED, NO_AUXILIARY)))
    return interval_finding(gap.high >= 0, gap)


def auxiliary_needs_data(table: Table) -> Finding:
    """Judge what the auxiliary loss adds with many texts, less what it adds with few."""
    few, many = (
        t_interval(_gaps(table, data, PRETRAINED, NO_AUXILIARY)).mean for data in ("few", "many")
    )
    return Finding(many > few, many - few, f"many {many:+.3f}, few {few:+.3f}")


CRITERIA = (
    *(
        Criterion(
            f"{data} texts: pretraining adds at least 10 points of accuracy",
            partial(pretraining_helps, data=data),
        )
        for data in SETS
    ),
    Criterion(
        "many texts: the interval of what the auxiliary loss adds does not lie below 0",
        auxiliary_on_many,
    ),
    Criterion(
        "the auxiliary loss adds more where there are many texts than where there are few",
        auxiliary_needs_data,
    ),
)


def figure(table: Table) -> Figure:
    """Draw the accuracy of every setting with few texts and with many; a dot for every seed."""
    chart, axes = plt.subplots(figsize=(6.2, 3.8))
    for number, setting in enumerate(SETTINGS):
        colour = COLOURS[setting]
        for place, data in enumerate(SETS):
            accuracies, x = _accuracy(table, data, setting), place + 0.12 * (number - 1)
            for seed, accuracy in accuracies.items():
                draw_point(axes, x, accuracy, seed, color=colour)
            if accuracies:
                label = setting if place == 0 else None
                look: Options = {"ms": 16, "mew": 2, "color": colour, "label": label}
                axes.plot(x, mean_of(accuracies), "_", **look)
    counts = {data: rows.values("texts")[0] for data, rows in table.by("data")}
    axes.set_xticks(range(len(SETS)), [f"{counts[data]:,} texts" for data in SETS])
    axes.set_ylabel("accuracy on held-out texts")
    axes.set_title("What pretraining and the auxiliary loss add")
    axes.legend()
    return chart
