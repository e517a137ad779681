"""Measure reward accuracy by data and size on published models and people's comparisons.

    python -m experiments.ablations.reproduce public_reward_scaling --seeds=3

Stiennon et al. 2020, Fig. 6. `run` is any reward experiment of experiments/public (here SmolLM2
with adapters on Anthropic's harmless-base); a grid of models and numbers of rankings is laid over
it. Local copies and other data by the same flags as everywhere:

    --config.models='("hf:FOLDER",)'
    --config.run.data.comparisons='hh@jsonl:PATH/{split}.jsonl?validation=test'

The first rankings of the training split are taken, the same for every seed: seeds differ in the
head and the order of the data.
"""

import re
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

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
    draw_seeds,
    interval_finding,
    require_two,
)
from experiments.ablations.measures import last, metrics
from experiments.ablations.shared import pick
from experiments.public import smollm2_reward_hh
from rlhf_jax.models.config import from_dict, num_params
from rlhf_jax.training.pretrained import read_meta

SMALL, LARGE = "hub:HuggingFaceTB/SmolLM2-135M-Instruct", "hub:HuggingFaceTB/SmolLM2-360M-Instruct"


def get_grid(size: str) -> ConfigDict:
    """Return the grid, and the run that all its cells share."""
    return ConfigDict(
        {
            "models": pick(size, tiny=(SMALL,), default=(SMALL, LARGE), large=(SMALL, LARGE)),
            "rankings": pick(size, tiny=(16, 32), default=(320, 1280), large=(1000, 4000, 16_000)),
            "run": smollm2_reward_hh.get_config(size),
        }
    )


def get_ablation(size: str, seeds: tuple[int, ...], config: ConfigDict | None = None) -> Ablation:
    """Train a reward model for every model, number of rankings and seed."""
    config = config or get_grid(size)
    paper = "Stiennon et al. 2020, Fig. 6, on published models"
    notes = f"Comparisons: {config.run.data.comparisons}."
    ablation = Ablation(paper, seeds, CRITERIA, figure, notes)
    for seed in seeds:
        for model in config.models:
            for count in config.rankings:
                run = make_run(config, seed, model, count)
                ablation.add_runs(run)
                point: Row = {"seed": seed, "model": model, "rankings": count}
                name, needs = f"seed{seed}-{_name(model)}-{count}", (run.folder,)
                ablation.add_measurement(name, point, needs, accuracy, folder=run.folder)
    return ablation


def make_run(config: ConfigDict, seed: int, model: str, count: int) -> GridRun:
    """Return the reward model of one cell."""
    run = config.run.copy_and_resolve_references()
    run.seed, run.init.policy = seed, model
    source = run.data.comparisons
    run.data.comparisons = f"{source}{'&' if '?' in source else '?'}train=train[:{count}]"
    return GridRun(f"public_reward_scaling/seed{seed}/{_name(model)}-{count}", run)


def _name(model: str) -> str:
    return "-".join(re.findall(r"\w[\w.]*", _label(model)))


def _label(model: str) -> str:
    """Return hub:ORG/NAME, hf:FOLDER or a run's folder without its kind."""
    return model.removeprefix("hub:").removeprefix("hf:")


def accuracy(context: Context, *, folder: str) -> list[Row]:
    """Return the last validation of a reward model, and its number of parameters."""
    path = context.folder(folder)
    parameters = num_params(from_dict(read_meta(path).model))
    return [
        {"parameters": parameters, "heldout": last(metrics(path), "validation/accuracy_heldout")}
    ]


def accuracy_grows(table: Table, column: str) -> Finding:
    """Judge a slope of accuracy = a + b log₂ rankings + c log₂ parameters, for every seed."""
    slopes = []
    for _, rows in table.having("heldout", "parameters").by("seed"):
        sides = [name for name in ("rankings", "parameters") if np.ptp(rows.column(name))]
        if column not in sides:
            raise ValueError(f"every reward model has the same {column}")
        x_KN = [np.log2(rows.column(name)) for name in sides]
        design = np.column_stack([np.ones(len(rows)), *x_KN])
        coefficients, *_ = np.linalg.lstsq(design, rows.column("heldout"))
        slopes.append(100 * coefficients[1 + sides.index(column)])
    slope = t_interval(require_two(np.array(slopes)))
    text = "points of accuracy per doubling; theirs 1.1 for data and 1.8 for size"
    return interval_finding(slope.low > 0, slope, text)


CRITERIA = (
    Criterion(
        "accuracy on held-out comparisons grows with the rankings (interval over seeds above 0)",
        partial(accuracy_grows, column="rankings"),
    ),
    Criterion(
        "accuracy on held-out comparisons grows with the model (interval over seeds above 0)",
        partial(accuracy_grows, column="parameters"),
    ),
)


def figure(table: Table) -> Figure:
    """Draw accuracy against data, a line for every model."""
    chart, axes = plt.subplots(figsize=(5.2, 3.6))
    models = table.values("model")
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.75, len(models)))
    for colour, model in zip(colours, models, strict=True):
        look: Options = {"colour": colour, "label": _label(model)}
        draw_seeds(axes, table.where(model=model), "rankings", "heldout", **look)
    axes.axhline(0.5, color="#bbb", lw=0.8, zorder=0)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="rankings to learn from", ylabel="accuracy on held-out comparisons")
    axes.legend()
    return chart
