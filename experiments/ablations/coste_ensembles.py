"""Coste et al. 2023, Fig. 1: ensembles of reward models, conservatively combined, against over-optimisation by best of n.

    python -m experiments.ablations.reproduce coste_ensembles --seeds=3

Four reward models (small trunk) on the same rankings that differ in head and order of data: each alone, their mean, their
minimum (worst case), and mean - λ variance (uncertainty-weighted). Coste et al. flip 25 % of clean labels; the labelers here
disagree by nature (two of them agree on some 80 % of the pairs that both decide, see `instructgpt_labelers`).
"""

from functools import partial
from typing import Any

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
    paired,
)
from experiments.ablations.gao_best_of_n import rankings
from experiments.ablations.measures import Panel, best_of_n_curves, proxy_scores, sft_pool
from experiments.ablations.shared import base, base_runs, pick, reward_run

TRUNK, MEMBERS = "s", 4
VARIANCE_WEIGHT = 0.5  # scores have unit variance; theirs is 0.5 for best of n
RULES = ("single", "mean", "worst case", "uncertainty")


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Four reward models a seed."""
    panel = Panel(
        size,
        pick(size, tiny=4, default=64, large=256),
        pick(size, tiny=16, default=1024, large=4096),
        1,
        1,
    )
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        members = []
        for member in range(MEMBERS):
            folder = f"coste_ensembles/seed{seed}/member{member}"
            run = reward_run(size, seed, folder, trunk=TRUNK, num_rankings=rankings(size)[-2])
            run.config.seed = seed + 1000 * (member + 1)
            members.append(run)
        runs += [*base_runs(size, seed, TRUNK), *members]
        folders = tuple(run.folder for run in members)
        settings = {**panel.settings, "variance_weight": VARIANCE_WEIGHT}
        measurements.append(
            Measurement(
                f"seed{seed}",
                {"seed": seed},
                (*folders, base(seed, "sft")),
                settings,
                partial(curves, panel=panel, seed=seed, folders=folders),
            )
        )
    return Ablation(
        "Coste et al. 2023, Fig. 1",
        seeds,
        runs,
        measurements,
        CRITERIA,
        figure,
        "single: mean of four members.",
    )


def curves(bench: Bench, *, panel: Panel, seed: int, folders: tuple[str, ...]) -> list[Row]:
    """Gold of best of n by every rule; `single` is the mean over members."""
    pool = sft_pool(bench, panel, seed)
    n = tuple(int(count) for count in 2 ** np.arange(int(np.log2(panel.num_samples)) + 1))
    members = [proxy_scores(pool, bench.folder(folder)) for folder in folders]
    stacked = [
        np.stack(few) for few in zip(*members, strict=True)
    ]  # (members, different answers) for each prompt
    proxies = {
        "mean": [few.mean(axis=0) for few in stacked],
        "worst case": [few.min(axis=0) for few in stacked],
        "uncertainty": [few.mean(axis=0) - VARIANCE_WEIGHT * few.var(axis=0) for few in stacked],
    }
    found = {rule: best_of_n_curves(pool, proxy, n) for rule, proxy in proxies.items()}
    each = [best_of_n_curves(pool, member, n) for member in members]
    gold = {"single": np.mean([one.gold_PN.mean(axis=0) for one in each], axis=0)}
    gold |= {rule: one.gold_PN.mean(axis=0) for rule, one in found.items()}
    d = each[0].distance
    return [
        {"rule": rule, "n": n[i], "distance": float(d[i]), "gold": float(gold[rule][i])}
        for rule in RULES
        for i in range(len(n))
    ]


def _end(table: Table, rule: str) -> dict[Any, float]:
    return table.where(rule=rule).having("gold").each_seed(lambda one: one.column("gold")[-1])


def conservative_helps(table: Table) -> Finding:
    """The better of the two conservative rules against a single model at the largest n."""
    gaps = {
        rule: paired(_end(table, rule), _end(table, "single"))
        for rule in ("worst case", "uncertainty")
    }
    best = max(gaps, key=lambda rule: gaps[rule].mean())
    found = t_interval(gaps[best])
    text = ", ".join(f"{rule} {np.mean(list(_end(table, rule).values())):+.2f}" for rule in RULES)
    return Finding(found.mean >= 0.3, *found, f"{best}; gold at the largest n: {text}")


def no_fall(table: Table) -> Finding:
    """How far the better conservative rule falls from its peak."""

    def fall(one: Table) -> float:
        return float(one.column("gold").max() - one.column("gold")[-1])

    falls = {
        rule: table.where(rule=rule).having("gold").per_seed(fall)
        for rule in ("worst case", "uncertainty")
    }
    best = min(falls, key=lambda rule: falls[rule].mean())
    found = t_interval(falls[best])
    return Finding(found.mean <= 0.1, *found, f"{best}, SD")


CRITERIA = (
    Criterion(
        "E6.gain",
        "worst case or uncertainty: gold at the largest n ≥ that of a single model + 0.3 SD",
        conservative_helps,
    ),
    Criterion(
        "E6.removed",
        "and falls at most 0.1 SD from its peak (theirs: practically removed)",
        no_fall,
    ),
)


def figure(table: Table) -> Figure:
    """Gold against d, a colour for every rule."""
    made, one = plt.subplots(figsize=(6, 4))
    for rule, colour in zip(RULES, ("#777", "#3a9a5b", "#d9822b", "#2a3f8f"), strict=True):
        draw_seeds(one, table.where(rule=rule), "distance", "gold", colour=colour, label=rule)
    one.axhline(0, color="#bbb", lw=0.8, zorder=0)
    one.set(
        xlabel="d = √KL, nats$^{1/2}$",
        ylabel="gold, SD of SFT",
        title="Best of n by four reward models",
    )
    one.legend(frameon=False, fontsize=8)
    one.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
