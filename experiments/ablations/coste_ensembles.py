"""Combine ensembles of reward models conservatively against over-optimisation by best of n.

    python -m experiments.ablations.reproduce coste_ensembles --seeds=3

Coste et al. 2023, Fig. 1. Four reward models (small trunk) on the same rankings that differ in head
and order of data: each alone, their mean, their minimum (worst case), and mean - λ variance
(uncertainty-weighted). Coste et al. flip 25 % of clean labels; the labelers here disagree by nature
(two of them agree on some 80 % of the pairs that both decide, see `instructgpt_labelers`).
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
    mean_of,
    paired,
)
from experiments.ablations.gao_best_of_n import pool_settings, rankings
from experiments.ablations.measures import (
    PolicyEvalSettings,
    best_of_n_curves,
    draw_sample_pool,
    powers_of_two,
    proxy_scores,
)
from experiments.ablations.shared import base, base_runs, reward_run

TRUNK, MEMBERS = "s", 4
VARIANCE_WEIGHT = 0.5  # scores have unit variance; theirs is 0.5 for best of n
RULES = ("single", "mean", "worst case", "uncertainty")
CONSERVATIVE = RULES[2:]


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Train four reward models a seed."""
    notes = "single: mean of four members."
    ablation = Ablation("Coste et al. 2023, Fig. 1", seeds, CRITERIA, figure, notes)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed, TRUNK))
        folders = []
        for member in range(MEMBERS):
            folder = f"coste_ensembles/seed{seed}/member{member}"
            run = reward_run(size, seed, folder, trunk=TRUNK, num_rankings=rankings(size)[-2])
            run.config.seed = seed + 1000 * (member + 1)
            ablation.add_runs(run)
            folders.append(folder)
        ablation.add_measurement(
            f"seed{seed}",
            {"seed": seed},
            (*folders, base(seed, "sft")),
            curves,
            settings=pool_settings(size),
            seed=seed,
            folders=folders,
            variance_weight=VARIANCE_WEIGHT,
        )
    return ablation


def curves(
    context: Context,
    *,
    settings: PolicyEvalSettings,
    seed: int,
    folders: list[str],
    variance_weight: float,
) -> list[Row]:
    """Return gold of best of n by every rule; `single` is the mean over members."""
    pool = draw_sample_pool(context, settings, seed)
    n = powers_of_two(settings.num_samples)
    members = [proxy_scores(pool, context.folder(folder)) for folder in folders]
    # (members, distinct answers) for each prompt
    scores = [np.stack(prompt) for prompt in zip(*members, strict=True)]
    proxies = {
        "mean": [score.mean(axis=0) for score in scores],
        "worst case": [score.min(axis=0) for score in scores],
        "uncertainty": [s.mean(axis=0) - variance_weight * s.var(axis=0) for s in scores],
    }
    singles = [best_of_n_curves(pool, member, n) for member in members]
    gold = {"single": np.mean([curve.gold_PN.mean(axis=0) for curve in singles], axis=0)}
    for rule, proxy in proxies.items():
        gold[rule] = best_of_n_curves(pool, proxy, n).gold_PN.mean(axis=0)
    d = singles[0].distance
    return [
        {"rule": rule, "n": n[i], "distance": float(d[i]), "gold": float(gold[rule][i])}
        for rule in RULES
        for i in range(len(n))
    ]


def conservative_gains(table: Table) -> Finding:
    """Judge the better conservative rule against a single model at the largest n."""
    ends = {rule: table.where(rule=rule).final("gold") for rule in RULES}
    gaps = {rule: paired(ends[rule], ends["single"]) for rule in CONSERVATIVE}
    best = max(gaps, key=lambda rule: gaps[rule].mean())
    gap = t_interval(gaps[best])
    text = ", ".join(f"{rule} {mean_of(ends[rule]):+.2f}" for rule in RULES)
    return interval_finding(gap.mean >= 0.3, gap, f"{best}; gold at the largest n: {text}")


def no_fall(table: Table) -> Finding:
    """Judge how far the better conservative rule falls from its peak."""

    def fall(rows: Table) -> float:
        return float(rows.column("gold").max() - rows.column("gold")[-1])

    falls = {rule: table.where(rule=rule).having("gold").per_seed(fall) for rule in CONSERVATIVE}
    best = min(falls, key=lambda rule: falls[rule].mean())
    interval = t_interval(falls[best])
    return interval_finding(interval.mean <= 0.1, interval, f"{best}, SD")


CRITERIA = (
    Criterion(
        "worst case or uncertainty: gold at the largest n ≥ that of a single model + 0.3 SD",
        conservative_gains,
    ),
    Criterion("and falls at most 0.1 SD from its peak (theirs: practically removed)", no_fall),
)


def figure(table: Table) -> Figure:
    """Draw gold against d, a colour for every rule."""
    chart, axes = plt.subplots(figsize=(6, 4))
    for rule, colour in zip(RULES, ("#777", "#3a9a5b", "#d9822b", "#2a3f8f"), strict=True):
        draw_seeds(axes, table.where(rule=rule), "distance", "gold", colour=colour, label=rule)
    axes.axhline(0, color="#bbb", lw=0.8, zorder=0)
    axes.set(xlabel="d = √KL, nats$^{1/2}$", ylabel="gold, SD of SFT")
    axes.set_title("Best of n by four reward models")
    axes.legend()
    return chart
