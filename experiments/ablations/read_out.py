"""Compare a reward model read at the last token with one that judges every token, and RL on both.

    python -m experiments.ablations.reproduce read_out --seeds=3

The papers read one state, that of the last token (Stiennon et al. 2020, section 3.4). A trunk of a
million parameters keeps little of the request there, so `models/read_out.py` can pool judgements of
all tokens. Rows differ in where the score is read, in what is trained, and in epochs, so that more
passes alone cannot be what helps. PPO then takes the papers' way and the default as its reward.
"""

from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
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
    draw_point,
    interval_finding,
    paired,
    require_two,
)
from experiments.ablations.measures import last, measure_last_checkpoint, metrics
from experiments.ablations.shared import base, base_runs, ppo_run, reward_run
from experiments.menagerie import label, reward

DEFAULT = "pooled, head"


class ReadOut(NamedTuple):
    """Say how a row reads its score, what it trains, for how long and how fast."""

    read_out: str
    trained: str
    num_epochs: float
    learning_rate: float


READ_OUTS = {
    "last token, all": ReadOut("last_token", "all", 1.0, 1e-3),  # the papers'
    "last token, all, 2 epochs": ReadOut("last_token", "all", 2.0, 1e-3),
    "last token, head": ReadOut("last_token", "head", 4.0, 3e-3),
    "pooled, head, 1 epoch": ReadOut("pooled", "head", 1.0, 3e-3),
    DEFAULT: ReadOut("pooled", "head", 4.0, 3e-3),  # the quickstart's reward model
}
PAPERS = next(iter(READ_OUTS))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Train every row, and PPO on the papers' way and on the default."""
    notes = "Dots: seeds. SD of the supervised policy's gold."
    ablation = Ablation("Stiennon et al. 2020, section 3.4", seeds, CRITERIA, figure, notes)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        for name in READ_OUTS:
            run = make_run(size, seed, name)
            ablation.add_runs(run)
            point: Row = {"seed": seed, "row": name}
            arguments: dict[str, Any] = {"folder": run.folder}
            ablation.add_measurement(
                f"seed{seed}-{_slug(name)}", point, (run.folder,), accuracy, **arguments
            )
        for name in (PAPERS, DEFAULT):
            folder = f"read_out/seed{seed}/ppo-{_slug(name)}"
            policy = ppo_run(size, seed, folder, reward_folder=make_run(size, seed, name).folder)
            measure_last_checkpoint(ablation, size, seed, policy, {"row": name})
    return ablation


def make_run(size: str, seed: int, name: str) -> GridRun:
    """Return the reward model of a row; the quickstart's own where that is the row."""
    row, count = READ_OUTS[name], label.get_config(size).label.num_prompts
    if name == DEFAULT:
        config = reward.get_config(size)
        config.seed = seed
        return GridRun(base(seed, "reward"), config)
    folder = f"read_out/seed{seed}/{_slug(name)}"
    run = reward_run(size, seed, folder, trunk="m", num_rankings=count)
    run.config.reward.read_out, run.config.reward.trained = row.read_out, row.trained
    run.config.reward.num_epochs = row.num_epochs
    run.config.optimizer.learning_rate = row.learning_rate
    return run


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def accuracy(context: Context, *, folder: str) -> list[Row]:
    """Return the last validation of a reward model."""
    rows = metrics(context.folder(folder))
    names = ("accuracy_gold", "accuracy_heldout")
    return [{name: last(rows, f"validation/{name}") for name in names}]


def gap(table: Table, column: str, first: str, second: str) -> Finding:
    """Judge the paired difference of two rows in a column."""
    sides = (table.where(row=row).having(column).final(column) for row in (first, second))
    difference = t_interval(require_two(paired(*sides)))
    return interval_finding(difference.low > 0, difference, f"{first} minus {second}")


CRITERIA = (
    Criterion(
        "the pooled head agrees with gold more often than the papers' reward model (interval)",
        partial(gap, column="accuracy_gold", first=DEFAULT, second=PAPERS),
    ),
    Criterion(
        "and with held-out labelers (interval)",
        partial(gap, column="accuracy_heldout", first=DEFAULT, second=PAPERS),
    ),
    Criterion(
        "as much computing spent on the last token does not reach it, against gold (interval)",
        partial(gap, column="accuracy_gold", first=DEFAULT, second="last token, all, 2 epochs"),
    ),
    Criterion(
        "nor does a head on the last token (interval)",
        partial(gap, column="accuracy_gold", first=DEFAULT, second="last token, head"),
    ),
    Criterion(
        "PPO on it ends above PPO on the papers' reward model in gold, SD of SFT (interval)",
        partial(gap, column="gold", first=DEFAULT, second=PAPERS),
    ),
)


def figure(table: Table) -> Figure:
    """Draw both accuracies of every row, and the gold of the two policies."""
    chart, (left, right) = plt.subplots(1, 2, figsize=(9.2, 3.4), width_ratios=(3, 1))
    for x, name in enumerate(READ_OUTS):
        for judge, colour, shift in (("gold", "#d9822b", -0.1), ("heldout", "#2a3f8f", 0.1)):
            column = f"accuracy_{judge}"
            rows = table.where(row=name).having(column)
            for row, y in zip(rows.rows, rows.column(column), strict=True):
                draw_point(left, x + shift, float(y), row["seed"], color=colour)
    for x, name in enumerate((PAPERS, DEFAULT)):
        rows = table.where(row=name).having("gold")
        for row, y in zip(rows.rows, rows.column("gold"), strict=True):
            draw_point(right, x, float(y), row["seed"], color="#d9822b")
    left.set_xticks(range(len(READ_OUTS)), [name.replace(", ", "\n") for name in READ_OUTS])
    left.set(ylabel="agreement", title="reward models: gold (orange), held-out labelers (blue)")
    right.set_xticks((0, 1), [PAPERS.replace(", ", "\n"), DEFAULT.replace(", ", "\n")])
    right.set(xlim=(-0.5, 1.5), ylabel="gold over SFT, SD", title="PPO on them")
    return chart
