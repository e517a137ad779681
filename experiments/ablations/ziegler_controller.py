"""Let the adaptive controller bring the KL to its target and keep it there.

    python -m experiments.ablations.reproduce ziegler_controller --seeds=3

Ziegler et al. 2019, section 2.2. Target 6 nats as in the paper, from β = 0.2, which holds the KL
well below it. Their horizon of 10,000 episodes belongs to a million of them; with 19,200 (default
size) it is 1,000 here, so that β can move by e^0.5 in either direction in 20 updates.
"""

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
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base_runs, pick, ppo_run

TARGET = 6.0


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run PPO once a seed."""
    ablation = Ablation("Ziegler et al. 2019, section 2.2", seeds, CRITERIA, figure)
    for seed in seeds:
        run = ppo_run(size, seed, f"ziegler_controller/seed{seed}/adaptive")
        ppo = run.config.ppo
        ppo.kl_coef, ppo.kl_controller, ppo.kl_target = 0.2, "adaptive", TARGET
        ppo.kl_horizon = pick(size, tiny=1000, default=1000, large=10_000)
        ppo.total_episodes = ppo.batch_size * pick(size, tiny=4, default=150, large=500)
        ablation.add_runs(*base_runs(size, seed), run)
        point: Row = {"seed": seed}
        needs = (run.folder,)
        ablation.add_measurement(f"seed{seed}", point, needs, kl_and_coef, folder=run.folder)
    return ablation


def kl_and_coef(context: Context, *, folder: str) -> list[Row]:
    """Return the KL of every rollout and the β that its rewards used."""
    rows = metrics(context.folder(folder))
    return [
        {"update": row["step"], "kl": row["objective/kl"], "kl_coef": row["objective/kl_coef"]}
        for row in rows
    ]


def _late(rows: Table) -> slice:
    """Return the last fifth of the updates."""
    return slice(-max(1, len(rows) // 5), None)


def settles(table: Table) -> Finding:
    """Judge the mean KL of the last fifth of the updates."""
    kl = t_interval(table.per_seed(lambda rows: float(rows.column("kl")[_late(rows)].mean())))
    return interval_finding(abs(kl.mean - TARGET) <= 0.1 * TARGET, kl, "nats")


def plateau(table: Table) -> Finding:
    """Judge the range of β over the last fifth: of a constant drift it is a fifth of the whole."""

    def share(rows: Table) -> float:
        coefs = np.log(rows.column("kl_coef"))
        return float(np.ptp(coefs[_late(rows)]) / max(np.ptp(coefs), 1e-9))

    shares = t_interval(table.per_seed(share))
    text = "range of log β over the last fifth, as a share of its whole range"
    return interval_finding(shares.mean < 0.1, shares, text)


CRITERIA = (
    Criterion("KL of the last fifth of the updates is within 10 % of the target", settles),
    Criterion(
        "β comes to rest: less than a tenth of its range in the last fifth of the updates", plateau
    ),
)


def figure(table: Table) -> Figure:
    """Draw KL and β over the updates."""
    chart, panels = plt.subplots(1, 2, figsize=(8.6, 3.2))
    for axes, name, label in zip(panels, ("kl", "kl_coef"), ("KL, nats", "β"), strict=True):
        draw_seeds(axes, table, "update", name, colour="#2a3f8f", label="mean of seeds")
        axes.set(xlabel="updates", ylabel=label)
    panels[0].axhspan(0.9 * TARGET, 1.1 * TARGET, color="#dde6d5", zorder=0)
    panels[1].set_yscale("log")
    chart.suptitle("The adaptive controller and its target (band: ± 10 %)", fontsize=11)
    return chart
