"""Remove the alignment tax by a pretraining mix, which a KL penalty cannot do.

    python -m experiments.ablations.reproduce instructgpt_ptx --seeds=3

Ouyang et al. 2022, Fig. 33 and 34. PPO-ptx with γ from 0 to 3 at the paper's β = 0.02 (γ multiplies
a token mean here, so that theirs, 27.8, means something else), and PPO with γ = 0 and β up to a
hundred times that. The tax is the loss on the pretraining corpus over that of the supervised
policy; the gain is gold over it.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Criterion,
    Finding,
    Row,
    Table,
    draw_seeds,
    interval_finding,
)
from experiments.ablations.measures import measure_last_checkpoint
from experiments.ablations.shared import base_runs, policy

KL_COEF = 0.02
PTX_COEFS = (0.0, 0.1, 0.3, 1.0, 3.0)
KL_COEFS = (0.02, 0.1, 0.3, 1.0, 2.0)


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run PPO nine times a seed."""
    paper = "Ouyang et al. 2022, Fig. 33 and 34"
    ablation = Ablation(paper, seeds, CRITERIA, figure, "Thin: seeds.")
    grid = [(KL_COEF, ptx) for ptx in PTX_COEFS] + [(kl, 0.0) for kl in KL_COEFS[1:]]
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        for kl_coef, ptx_coef in grid:
            run = policy(size, seed, kl_coef=kl_coef, ptx_coef=ptx_coef)
            point: Row = {"kl_coef": kl_coef, "ptx_coef": ptx_coef}
            start = (kl_coef, ptx_coef) == grid[0]
            measure_last_checkpoint(ablation, size, seed, run, point, start=start)
    return ablation


# --- claims ---------------------------------------------------------------------------------------


def _changes(table: Table, kl_coef: float, ptx_coef: float, name: str) -> np.ndarray:
    """Return a column over that of the supervised policy, for every seed."""
    trained = table.where(kl_coef=kl_coef, ptx_coef=ptx_coef).having(name)
    changes = [
        rows.column(name)[-1] - table.where(seed=seed, update=0).column(name)[0]
        for seed, rows in trained.by("seed")
        if rows.column("update")[-1] > 0
    ]
    if not changes:
        raise ValueError(f"no policy with β = {kl_coef}, γ = {ptx_coef}")
    return np.array(changes)


def _tax_and_gain(table: Table, kl_coef: float, ptx_coef: float) -> tuple[float, float]:
    """Return the tax, and the kept share of the gain without a mix; means over seeds."""
    tax = _changes(table, kl_coef, ptx_coef, "nll").mean()
    gain = _changes(table, kl_coef, ptx_coef, "gold").mean()
    return float(tax), float(gain / _changes(table, KL_COEF, 0.0, "gold").mean())


def tax_without_mix(table: Table) -> Finding:
    """Judge the rise of the loss at γ = 0."""
    tax = t_interval(_changes(table, KL_COEF, 0.0, "nll"))
    return interval_finding(tax.mean >= 0.1, tax)


def mix_removes_tax(table: Table) -> Finding:
    """Judge whether some γ pays at most 0.02 nats and keeps 70 % of the gain."""
    pairs = {ptx: _tax_and_gain(table, KL_COEF, ptx) for ptx in PTX_COEFS}
    good = [ptx for ptx, (tax, gain) in pairs.items() if tax <= 0.02 and gain >= 0.7]
    text = "; ".join(
        f"γ {ptx}: {tax:+.3f} nats, {gain:.0%} of the gain" for ptx, (tax, gain) in pairs.items()
    )
    if good:
        best = max(good, key=lambda ptx: pairs[ptx][1])
    else:
        best = max(pairs, key=lambda ptx: pairs[ptx][1] - pairs[ptx][0])
    return Finding(bool(good), best, text)


def falls_with_mix(table: Table) -> Finding:
    """Judge whether the loss falls with γ."""
    steps = np.diff([float(_changes(table, KL_COEF, ptx, "nll").mean()) for ptx in PTX_COEFS])
    text = "the largest step between neighbours"
    return Finding(bool(np.all(steps < 0)), float(steps.max()), text)


def penalty_cannot(table: Table) -> Finding:
    """Judge whether no β pays at most 0.02 nats and keeps half of the gain."""
    pairs = {kl: _tax_and_gain(table, kl, 0.0) for kl in KL_COEFS}
    good = [kl for kl, (tax, gain) in pairs.items() if tax <= 0.02 and gain >= 0.5]
    text = "; ".join(f"β {kl}: {tax:+.3f} nats, {gain:.0%}" for kl, (tax, gain) in pairs.items())
    return Finding(not good, float(len(good)), text)


MIX, PENALTY = "Ouyang et al. 2022, Fig. 33", "Ouyang et al. 2022, Fig. 34"
CRITERIA = (
    Criterion("γ = 0 raises the pretraining loss by ≥ 0.1 nats per token", tax_without_mix, MIX),
    Criterion(
        "some γ keeps the rise ≤ 0.02 nats and ≥ 70 % of the gold gain (the value is the best γ)",
        mix_removes_tax,
        MIX,
    ),
    Criterion("the pretraining loss falls with every step of γ", falls_with_mix, MIX),
    Criterion(
        "no β up to 100 × 0.02 keeps the rise ≤ 0.02 nats and ≥ 50 % of the gain (the value counts "
        "those that do)",
        penalty_cannot,
        PENALTY,
    ),
)


def figure(table: Table) -> Figure:
    """Draw loss and gold against γ and against β, the supervised policy as a dashed line."""
    chart, panels = plt.subplots(2, 2, figsize=(8.6, 5.8), sharex="col", sharey="row")
    trained = Table([row for row in table.rows if row.get("update") != 0])
    sweeps = (
        ("ptx_coef", trained.where(kl_coef=KL_COEF), "γ (pretraining mix), β = 0.02", 0.1),
        ("kl_coef", trained.where(ptx_coef=0.0), "β (KL penalty), γ = 0", 0.02),
    )
    for column, (name, rows, label, linear) in enumerate(sweeps):
        for row, (measure, colour) in enumerate((("nll", "#a33"), ("gold", "#2a3f8f"))):
            axes = panels[row, column]
            draw_seeds(axes, rows, name, measure, colour=colour, label="mean of seeds")
            start = table.where(update=0).column(measure).mean()
            axes.axhline(start, color="#777", ls="--", lw=1, label="SFT")
            axes.set_xscale("symlog", linthresh=linear)
        panels[1, column].set_xlabel(label)
    panels[0, 0].set_ylabel("pretraining loss, nats/token")
    panels[1, 0].set_ylabel("gold, SD of SFT")
    panels[0, 0].legend()
    chart.suptitle("The alignment tax under a pretraining mix and under a KL penalty", fontsize=11)
    return chart
