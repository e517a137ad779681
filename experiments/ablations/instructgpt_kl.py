"""Ouyang et al. 2022, Fig. 36: labelers like an intermediate KL penalty best.

    python -m experiments.ablations.reproduce instructgpt_kl --seeds=3

PPO with β from 0 to 2, judged by labelers who gave no training label. Most runs are those of `instructgpt_ptx`.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Criterion,
    Finding,
    GridRun,
    Table,
    draw_seeds,
    paired,
    several,
)
from experiments.ablations.measures import measure_end
from experiments.ablations.shared import base_runs, policy

KL_COEFS = (0.0, 0.02, 0.05, 0.1, 0.3, 2.0)


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Six PPO runs a seed."""
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        for kl_coef in KL_COEFS:
            run = policy(size, seed, kl_coef=kl_coef, ptx_coef=0.0)
            runs.append(run)
            measurements.append(measure_end(size, run, seed, {"kl_coef": kl_coef}, start=False))
    return Ablation(
        "Ouyang et al. 2022, Fig. 36", seeds, runs, measurements, CRITERIA, figure, "Thin: seeds."
    )


def inverted_u(table: Table) -> Finding:
    """The best β lies inside, and both ends are worse by two standard errors of the paired difference over seeds."""
    rate = {
        kl: rows.having("preferred").each_seed(lambda one: one.column("preferred")[-1])
        for kl, rows in table.by("kl_coef")
    }
    mean = {kl: float(np.mean(list(each.values()))) for kl, each in rate.items() if each}
    best = max(mean, key=lambda kl: mean[kl])
    gaps = [several(paired(rate[best], rate[end])) for end in (KL_COEFS[0], KL_COEFS[-1])]
    passed = all(
        gap.mean() > 0 and gap.mean() >= 2 * gap.std(ddof=1) / np.sqrt(gap.size) for gap in gaps
    )
    text = f"best β {best}; preferred: {', '.join(f'{kl}: {one:.3f}' for kl, one in mean.items())}"
    return Finding(
        passed,
        *t_interval(min(gaps, key=lambda gap: gap.mean())),
        f"{text}; the value is the smaller gap",
    )


CRITERIA = (
    Criterion(
        "E9",
        "the best β lies between 0 and 2, and both ends are preferred less by ≥ 2 standard errors",
        inverted_u,
    ),
)


def figure(table: Table) -> Figure:
    """Preference against β, gold beside it."""
    made, axes = plt.subplots(1, 2, figsize=(8.6, 3.4))
    for one, name, label in zip(
        axes,
        ("preferred", "gold"),
        ("preferred to SFT by held-out labelers", "gold, SD of SFT"),
        strict=True,
    ):
        draw_seeds(one, table, "kl_coef", name, colour="#2a3f8f", label="mean of seeds")
        one.set_xscale("symlog", linthresh=0.02)
        one.set(xlabel="β", ylabel=label)
        one.spines[["top", "right"]].set_visible(False)
    axes[0].axhline(0.5, color="#bbb", lw=0.8, zorder=0)
    axes[0].legend(frameon=False, fontsize=8)
    made.suptitle("How much KL penalty labelers like", fontsize=11)
    made.tight_layout()
    return made
