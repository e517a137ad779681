"""Ouyang et al. 2022, Fig. 33 and 34: a pretraining mix removes the alignment tax, a KL penalty cannot.

    python -m experiments.ablations.reproduce instructgpt_ptx --seeds=3

PPO-ptx with γ from 0 to 3 at the paper's β = 0.02 (γ multiplies a token mean here, so that theirs, 27.8, means something else),
and PPO with γ = 0 and β up to a hundred times that. The tax is the loss on the pretraining corpus over that of the supervised
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
    GridRun,
    Row,
    Table,
    draw_seeds,
)
from experiments.ablations.measures import measure_end
from experiments.ablations.shared import base_runs, policy

KL_COEF = 0.02
PTX_COEFS = (0.0, 0.1, 0.3, 1.0, 3.0)
KL_COEFS = (0.02, 0.1, 0.3, 1.0, 2.0)


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Nine PPO runs a seed."""
    grid = [(KL_COEF, ptx) for ptx in PTX_COEFS] + [(kl, 0.0) for kl in KL_COEFS[1:]]
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        for kl_coef, ptx_coef in grid:
            run = policy(size, seed, kl_coef=kl_coef, ptx_coef=ptx_coef)
            runs.append(run)
            point: Row = {"kl_coef": kl_coef, "ptx_coef": ptx_coef}
            measurements.append(
                measure_end(size, run, seed, point, start=(kl_coef, ptx_coef) == grid[0])
            )
    return Ablation(
        "Ouyang et al. 2022, Fig. 33 and 34",
        seeds,
        runs,
        measurements,
        CRITERIA,
        figure,
        "Thin: seeds.",
    )


# --- claims -----------------------------------------------------------------------------------------------------------


def _changes(table: Table, kl_coef: float, ptx_coef: float, name: str) -> np.ndarray:
    """Over the supervised policy, for every seed."""
    after = table.where(kl_coef=kl_coef, ptx_coef=ptx_coef).having(name)
    found = [
        one.column(name)[-1] - table.where(seed=seed, update=0).column(name)[0]
        for seed, one in after.by("seed")
        if one.column("update")[-1] > 0
    ]
    if not found:
        raise ValueError(f"no policy with β = {kl_coef}, γ = {ptx_coef}")
    return np.array(found)


def _kept(table: Table, kl_coef: float, ptx_coef: float) -> tuple[float, float]:
    """The tax, and the share of the gain without a mix that is kept; means over seeds."""
    tax = _changes(table, kl_coef, ptx_coef, "nll").mean()
    gain = (
        _changes(table, kl_coef, ptx_coef, "gold").mean()
        / _changes(table, KL_COEF, 0.0, "gold").mean()
    )
    return float(tax), float(gain)


def tax_without(table: Table) -> Finding:
    """The rise of the loss at γ = 0."""
    found = t_interval(_changes(table, KL_COEF, 0.0, "nll"))
    return Finding(found.mean >= 0.1, *found, "")


def mix_removes_it(table: Table) -> Finding:
    """Some γ pays at most 0.02 nats and keeps 70 % of the gain."""
    each = {ptx: _kept(table, KL_COEF, ptx) for ptx in PTX_COEFS}
    good = [ptx for ptx, (tax, gain) in each.items() if tax <= 0.02 and gain >= 0.7]
    text = "; ".join(
        f"γ {ptx}: {tax:+.3f} nats, {gain:.0%} of the gain" for ptx, (tax, gain) in each.items()
    )
    best = (
        max(good, key=lambda ptx: each[ptx][1])
        if good
        else max(each, key=lambda ptx: each[ptx][1] - each[ptx][0])
    )
    return Finding(bool(good), best, None, None, text)


def monotone(table: Table) -> Finding:
    """The loss falls with γ."""
    nll = [float(_changes(table, KL_COEF, ptx, "nll").mean()) for ptx in PTX_COEFS]
    steps = np.diff(nll)
    return Finding(
        bool(np.all(steps < 0)),
        float(steps.max()),
        None,
        None,
        "the largest step between neighbours",
    )


def penalty_cannot(table: Table) -> Finding:
    """No β pays at most 0.02 nats and keeps half of the gain."""
    each = {kl: _kept(table, kl, 0.0) for kl in KL_COEFS}
    good = [kl for kl, (tax, gain) in each.items() if tax <= 0.02 and gain >= 0.5]
    text = "; ".join(f"β {kl}: {tax:+.3f} nats, {gain:.0%}" for kl, (tax, gain) in each.items())
    return Finding(not good, float(len(good)), None, None, text)


CRITERIA = (
    Criterion("E7.tax", "γ = 0 raises the pretraining loss by ≥ 0.1 nats per token", tax_without),
    Criterion(
        "E7.mix",
        "some γ keeps the rise ≤ 0.02 nats and ≥ 70 % of the gold gain (the value is the best γ)",
        mix_removes_it,
    ),
    Criterion("E7.monotone", "the pretraining loss falls with every step of γ", monotone),
    Criterion(
        "E8",
        "no β up to 100 × 0.02 keeps the rise ≤ 0.02 nats and ≥ 50 % of the gain (the value counts those that do)",
        penalty_cannot,
    ),
)


def figure(table: Table) -> Figure:
    """Loss and gold against γ and against β, the supervised policy as a dashed line."""
    made, axes = plt.subplots(2, 2, figsize=(8.6, 5.8), sharex="col", sharey="row")
    trained = Table([row for row in table.rows if row.get("update") != 0])
    sweeps = (
        ("ptx_coef", trained.where(kl_coef=KL_COEF), "γ (pretraining mix), β = 0.02"),
        ("kl_coef", trained.where(ptx_coef=0.0), "β (KL penalty), γ = 0"),
    )
    for column, (name, rows, label) in enumerate(sweeps):
        for row, (measure, colour) in enumerate((("nll", "#a33"), ("gold", "#2a3f8f"))):
            one = axes[row, column]
            draw_seeds(one, rows, name, measure, colour=colour, label="mean of seeds")
            one.axhline(
                table.where(update=0).column(measure).mean(),
                color="#777",
                ls="--",
                lw=1,
                label="SFT",
            )
            one.set_xscale("symlog", linthresh=0.1 if name == "ptx_coef" else 0.02)
            one.spines[["top", "right"]].set_visible(False)
        axes[1, column].set_xlabel(label)
    axes[0, 0].set_ylabel("pretraining loss, nats/token")
    axes[1, 0].set_ylabel("gold, SD of SFT")
    axes[0, 0].legend(frameon=False, fontsize=8)
    made.suptitle("The alignment tax under a pretraining mix and under a KL penalty", fontsize=11)
    made.tight_layout()
    return made
