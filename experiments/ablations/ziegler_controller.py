"""Ziegler et al. 2019, section 2.2: the adaptive controller brings the KL to its target and keeps it there.

    python -m experiments.ablations.reproduce ziegler_controller --seeds=3

Target 6 nats as in the paper, from β = 0.2, which holds the KL well below it. Their horizon of 10,000 episodes belongs to a
million of them; with 19,200 (default size) it is 1,000 here, so that β can move by e^0.5 in either direction in 20 updates.
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
    draw_seeds,
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base_runs, pick, ppo_run

TARGET = 6.0


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """One PPO run a seed."""
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        run = ppo_run(size, seed, f"ziegler_controller/seed{seed}/adaptive")
        ppo = run.config.ppo
        ppo.kl_coef, ppo.kl_controller, ppo.kl_target = 0.2, "adaptive", TARGET
        ppo.kl_horizon = pick(size, tiny=1000, default=1000, large=10_000)
        ppo.total_episodes = ppo.batch_size * pick(size, tiny=4, default=150, large=500)
        runs += [*base_runs(size, seed), run]
        measurements.append(
            Measurement(
                f"seed{seed}", {"seed": seed}, (run.folder,), {}, partial(path, folder=run.folder)
            )
        )
    return Ablation("Ziegler et al. 2019, section 2.2", seeds, runs, measurements, CRITERIA, figure)


def path(bench: Bench, *, folder: str) -> list[Row]:
    """KL of every rollout and the β that its rewards used."""
    rows = metrics(bench.folder(folder))
    return [
        {"update": row["step"], "kl": row["objective/kl"], "kl_coef": row["objective/kl_coef"]}
        for row in rows
    ]


def settles(table: Table) -> Finding:
    """Mean KL of the last fifth of the updates."""
    found = t_interval(
        table.per_seed(lambda one: float(one.column("kl")[-max(1, len(one) // 5) :].mean()))
    )
    return Finding(abs(found.mean - TARGET) <= 0.1 * TARGET, *found, "nats")


def plateau(table: Table) -> Finding:
    """β at the end: its range over the last fifth against its whole one, of which a constant drift has a fifth."""

    def wander(one: Table) -> float:
        coefs = np.log(one.column("kl_coef"))
        return float(np.ptp(coefs[-max(1, len(one) // 5) :]) / max(np.ptp(coefs), 1e-9))

    found = t_interval(table.per_seed(wander))
    return Finding(
        found.mean < 0.1,
        *found,
        "range of log β over the last fifth, as a share of its whole range",
    )


CRITERIA = (
    Criterion(
        "E16.kl", "KL of the last fifth of the updates is within 10 % of the target", settles
    ),
    Criterion(
        "E16.beta",
        "β comes to rest: less than a tenth of its range in the last fifth of the updates",
        plateau,
    ),
)


def figure(table: Table) -> Figure:
    """KL and β over the updates."""
    made, axes = plt.subplots(1, 2, figsize=(8.6, 3.2))
    for one, name, label in zip(axes, ("kl", "kl_coef"), ("KL, nats", "β"), strict=True):
        draw_seeds(one, table, "update", name, colour="#2a3f8f", label="mean of seeds")
        one.set(xlabel="updates", ylabel=label)
        one.spines[["top", "right"]].set_visible(False)
    axes[0].axhspan(0.9 * TARGET, 1.1 * TARGET, color="#dde6d5", zorder=0)
    axes[1].set_yscale("log")
    made.suptitle("The adaptive controller and its target (band: ± 10 %)", fontsize=11)
    made.tight_layout()
    return made
