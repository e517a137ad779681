"""Stiennon et al. 2020, Fig. 6, on published models and people's comparisons: reward accuracy by data and size.

    python -m experiments.ablations.reproduce public_reward_scaling --seeds=3

`run` is any reward experiment of experiments/public (here SmolLM2 with adapters on Anthropic's harmless-base); a grid of models
and numbers of rankings is laid over it. Local copies and other data by the same flags as everywhere:

    --config.models='("hf:FOLDER",)' --config.run.data.comparisons='hh@jsonl:PATH/{split}.jsonl?validation=test' \
    --config.run.data.demonstrations='hh@jsonl:PATH/{split}.jsonl?validation=test'

The first rankings of the training split are taken, the same for every seed: seeds differ in the head and the order of the data.
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
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    draw_seeds,
    several,
)
from experiments.ablations.measures import last, metrics
from experiments.ablations.shared import pick
from experiments.public import smollm2_reward_hh
from rlhf_jax.models.config import from_dict, num_params
from rlhf_jax.training.pretrained import read_meta

SMALL, LARGE = "hf:HuggingFaceTB/SmolLM2-135M-Instruct", "hf:HuggingFaceTB/SmolLM2-360M-Instruct"


def get_grid(size: str) -> ConfigDict:
    """The grid, and the run that all its cells share."""
    return ConfigDict(
        {
            "models": pick(size, tiny=(SMALL,), default=(SMALL, LARGE), large=(SMALL, LARGE)),
            "rankings": pick(size, tiny=(16, 32), default=(320, 1280), large=(1000, 4000, 16_000)),
            "run": smollm2_reward_hh.get_config(size),
        }
    )


def get_ablation(size: str, seeds: tuple[int, ...], config: ConfigDict | None = None) -> Ablation:
    """A reward model for every model, number of rankings and seed."""
    config = config or get_grid(size)
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        for model in config.models:
            for count in config.rankings:
                run = cell(config, seed, model, count)
                runs.append(run)
                point: Row = {"seed": seed, "model": model, "rankings": count}
                measurements.append(
                    Measurement(
                        f"seed{seed}-{_name(model)}-{count}",
                        point,
                        (run.folder,),
                        {},
                        partial(accuracy, folder=run.folder),
                    )
                )
    return Ablation(
        "Stiennon et al. 2020, Fig. 6, on published models",
        seeds,
        runs,
        measurements,
        CRITERIA,
        figure,
        f"Comparisons: {config.run.data.comparisons}.",
    )


def cell(config: ConfigDict, seed: int, model: str, count: int) -> GridRun:
    """One reward model."""
    run = config.run.copy_and_resolve_references()
    run.seed, run.init.policy = seed, model
    source = run.data.comparisons
    run.data.comparisons = f"{source}{'&' if '?' in source else '?'}train=train[:{count}]"
    return GridRun(f"public_reward_scaling/seed{seed}/{_name(model)}-{count}", run)


def _name(model: str) -> str:
    return "-".join(re.findall(r"\w[\w.]*", model.removeprefix("hf:")))


def accuracy(bench: Bench, *, folder: str) -> list[Row]:
    """The last validation of a reward model, and its number of parameters."""
    parameters = num_params(from_dict(read_meta(bench.folder(folder)).model))
    return [
        {
            "parameters": parameters,
            "heldout": last(metrics(bench.folder(folder)), "validation/accuracy_heldout"),
        }
    ]


def grows(table: Table, column: str) -> Finding:
    """The coefficient of one side of the grid in accuracy = a + b log₂ rankings + c log₂ parameters, for every seed."""
    slopes = []
    for _, rows in table.having("heldout", "parameters").by("seed"):
        sides = [name for name in ("rankings", "parameters") if np.ptp(rows.column(name))]
        if column not in sides:
            raise ValueError(f"every reward model has the same {column}")
        design = np.column_stack(
            [np.ones(len(rows)), *(np.log2(rows.column(name)) for name in sides)]
        )
        slopes.append(
            100 * np.linalg.lstsq(design, rows.column("heldout"))[0][1 + sides.index(column)]
        )
    found = t_interval(several(np.array(slopes)))
    return Finding(
        found.low > 0,
        *found,
        "points of accuracy per doubling; theirs 1.1 for data and 1.8 for size",
    )


CRITERIA = (
    Criterion(
        "E13.data",
        "accuracy on held-out comparisons grows with the rankings (interval over seeds above 0)",
        partial(grows, column="rankings"),
    ),
    Criterion(
        "E13.size",
        "accuracy on held-out comparisons grows with the model (interval over seeds above 0)",
        partial(grows, column="parameters"),
    ),
)


def figure(table: Table) -> Figure:
    """Accuracy against data, a line for every model."""
    made, one = plt.subplots(figsize=(5.2, 3.6))
    models = table.values("model")
    for colour, model in zip(
        plt.get_cmap("viridis")(np.linspace(0.1, 0.75, len(models))), models, strict=True
    ):
        draw_seeds(
            one,
            table.where(model=model),
            "rankings",
            "heldout",
            colour=colour,
            label=model.removeprefix("hf:"),
        )
    one.axhline(0.5, color="#bbb", lw=0.8, zorder=0)
    one.set_xscale("log", base=2)
    one.set(xlabel="rankings to learn from", ylabel="accuracy on held-out comparisons")
    one.legend(frameon=False, fontsize=8)
    one.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
