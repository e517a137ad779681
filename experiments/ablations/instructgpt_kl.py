"""Find the KL penalty that labelers like best, an intermediate one.

    python -m experiments.ablations.reproduce instructgpt_kl --seeds=3

Ouyang et al. 2022, Fig. 36. PPO with β from 0 to 2, judged by labelers who gave no training label.
Most runs are those of `instructgpt_ptx`.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Criterion,
    Finding,
    Table,
    draw_seeds,
    interval_finding,
    mean_of,
    paired,
    require_two,
)
from experiments.ablations.measures import measure_last_checkpoint
from experiments.ablations.shared import base_runs, policy

KL_COEFS = (0.0, 0.02, 0.05, 0.1, 0.3, 2.0)


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run PPO six times a seed."""
    ablation = Ablation("Ouyang et al. 2022, Fig. 36", seeds, CRITERIA, figure, "Thin: seeds.")
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        for kl_coef in KL_COEFS:
            run = policy(size, seed, kl_coef=kl_coef, ptx_coef=0.0)
            measure_last_checkpoint(ablation, size, seed, run, {"kl_coef": kl_coef})
    return ablation


def inverted_u(table: Table) -> Finding:
    """Judge whether the best β lies inside, and both ends are clearly worse.

    Clearly: by two standard errors of the paired difference over seeds.
    """
    rates = {kl_coef: rows.final("preferred") for kl_coef, rows in table.by("kl_coef")}
    mean = {kl_coef: mean_of(rate) for kl_coef, rate in rates.items() if rate}
    best = max(mean, key=lambda kl_coef: mean[kl_coef])
    gaps = [require_two(paired(rates[best], rates[end])) for end in (KL_COEFS[0], KL_COEFS[-1])]
    passed = all(
        gap.mean() > 0 and gap.mean() >= 2 * gap.std(ddof=1) / np.sqrt(gap.size) for gap in gaps
    )
    text = ", ".join(f"{kl_coef}: {rate:.3f}" for kl_coef, rate in mean.items())
    detail = f"best β {best}; preferred: {text}; the value is the smaller gap"
    smaller = min(gaps, key=lambda gap: gap.mean())
    return interval_finding(passed, t_interval(smaller), detail)


CRITERIA = (
    Criterion(
        "the best β lies between 0 and 2, and both ends are preferred less by ≥ 2 standard errors",
        inverted_u,
    ),
)


def figure(table: Table) -> Figure:
    """Draw preference against β, and gold beside it."""
    chart, panels = plt.subplots(1, 2, figsize=(8.6, 3.4))
    labels = {"preferred": "preferred to SFT by held-out labelers", "gold": "gold, SD of SFT"}
    for axes, (name, label) in zip(panels, labels.items(), strict=True):
        draw_seeds(axes, table, "kl_coef", name, colour="#2a3f8f", label="mean of seeds")
        axes.set_xscale("symlog", linthresh=0.02)
        axes.set(xlabel="β", ylabel=label)
    panels[0].axhline(0.5, color="#bbb", lw=0.8, zorder=0)
    panels[0].legend()
    chart.suptitle("How much KL penalty labelers like", fontsize=11)
    return chart
