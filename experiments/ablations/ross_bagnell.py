"""Measure the cost of imitation against the horizon, by four methods.

    python -m experiments.ablations.reproduce ross_bagnell --seeds=5

Ross & Bagnell 2010, Theorem 2.1; Ross et al. 2011. The task and the methods are in
experiments/control/imitation.py; every learner gets the same number of trajectories of the horizon
that it is judged on. Expected: behaviour cloning costs ε T²/2 and stays under Ross & Bagnell's T²
ε, everything that trains on its own states costs ε T. What the same question gives in language is
in exposure.py.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import fit_power_law, t_interval
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
from experiments.control.imitation import METHODS, Cliff, cloning_cost, learn, recovering_cost, walk
from experiments.menagerie.shared import pick

FOG = 0.02  # with less, few ever fall off in short episodes, and DAgger's first points are noise
ROUNDS, ALPHA = {"DAgger": 5, "SMILe": 10}, 0.5
COLOURS = dict(zip(METHODS, ("#c0392b", "#2563eb", "#0c8f7c", "#8b3fd9"), strict=True))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Measure every method once a seed."""
    longest = pick(size, tiny=32, default=128, large=256)
    horizons = tuple(2**k for k in range(3, longest.bit_length()))
    count = pick(size, tiny=1000, default=4000, large=20_000)
    paper = "Ross & Bagnell 2010, Theorem 2.1; Ross, Gordon & Bagnell 2011"
    notes = f"\nε = {FOG / 2}, {count:,} trajectories to learn from and as many to judge by."
    ablation = Ablation(paper, seeds, CRITERIA, figure, notes)
    for seed in seeds:
        for method in METHODS:
            ablation.add_measurement(
                f"seed{seed}-{method.replace(' ', '_')}",
                {"seed": seed, "method": method},
                (),
                costs,
                seed=seed,
                method=method,
                horizons=horizons,
                count=count,
                fog=FOG,
                rounds=ROUNDS.get(method, 1),
                alpha=ALPHA,
            )
    return ablation


def costs(
    context: Context,
    *,
    seed: int,
    method: str,
    horizons: tuple[int, ...],
    count: int,
    fog: float,
    rounds: int,
    alpha: float,
) -> list[Row]:
    """Return the cost of a method for every horizon."""
    rows: list[Row] = []
    for horizon in horizons:
        rng = np.random.default_rng([seed, METHODS.index(method), horizon])
        task = Cliff(fog, horizon)
        policy = learn(method, task, count, rng, rounds=rounds, alpha=alpha)
        cost = float(walk(task, policy, count, rng).cost_N.mean())
        rows.append({"horizon": horizon, "cost": cost, "bound": horizon**2 * task.epsilon})
    return rows


def slope(table: Table) -> float:
    """Return the slope of log cost against log horizon; NaN for a seed that has none."""
    table = table.having("horizon", "cost")
    if not len(table):
        return float("nan")
    return fit_power_law(table.column("horizon"), table.column("cost")).exponent


def slope_between(table: Table, method: str, low: float, high: float) -> Finding:
    """Judge whether the whole interval of a method's slope lies in a range."""
    rows = table.where(method=method)
    interval = t_interval(rows.per_seed(slope))
    means = [
        f"T={horizon}: {part.column('cost').mean():.3f}" for horizon, part in rows.by("horizon")
    ]
    passed = low <= interval.low and interval.high <= high
    return interval_finding(passed, interval, "cost at " + ", ".join(means))


def within_bound(table: Table) -> Finding:
    """Judge cloning against T² ε, with the worst seed and horizon."""
    cloned = table.where(method="behaviour cloning")
    worst = float((cloned.column("cost") / cloned.column("bound")).max())
    return Finding(worst <= 1, worst, "the largest J / (T² ε) of all seeds and horizons")


def as_computed(table: Table) -> Finding:
    """Judge cloning against the sum in closed form."""
    cloned = table.where(method="behaviour cloning")
    exact = np.array([cloning_cost(FOG / 2, int(horizon)) for horizon in cloned.column("horizon")])
    ratio_ST = (cloned.column("cost") / exact).reshape(len(table.values("seed")), -1)
    ratio = t_interval(ratio_ST.mean(axis=1))
    return interval_finding(abs(ratio.mean - 1) < 0.05, ratio, "measured cost / Σ 1 − (1 − ε)^t")


CRITERIA = (
    Criterion(
        "behaviour cloning's log-log slope is in [1.8, 2.1]",
        partial(slope_between, method="behaviour cloning", low=1.8, high=2.1),
    ),
    *(
        Criterion(
            f"{method}'s log-log slope is in [0.85, 1.15]",
            partial(slope_between, method=method, low=0.85, high=1.15),
        )
        for method in ("DAgger", "forward training")
    ),
    Criterion(
        "SMILe's log-log slope is below behaviour cloning's: in [0.85, 1.5]",
        partial(slope_between, method="SMILe", low=0.85, high=1.5),
    ),
    Criterion("behaviour cloning never costs more than T² ε", within_bound),
    Criterion("behaviour cloning costs Σ 1 − (1 − ε)^t within 5 %", as_computed),
)


def figure(table: Table) -> Figure:
    """Draw cost against horizon on logarithmic axes, with the closed forms and the bound."""
    chart, axes = plt.subplots(figsize=(6, 4.6))
    for method, rows in table.by("method"):
        label = f"{method}: slope {rows.per_seed(slope).mean():.2f}"
        draw_seeds(axes, rows, "horizon", "cost", colour=COLOURS[method], label=label)
    horizons = np.array(sorted(table.values("horizon")))
    axes.plot(horizons, horizons**2 * FOG / 2, ":", color="#888", label="T² ε, the bound")
    for exact, label in ((cloning_cost, "closed forms"), (recovering_cost, "_")):
        curve = [exact(FOG / 2, int(horizon)) for horizon in horizons]
        axes.plot(horizons, curve, "k--", lw=0.8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="horizon T", ylabel="cost J of the learned policy")
    axes.set_title("Cost of what is learned, over the horizon")
    axes.set_xticks(horizons, [str(horizon) for horizon in horizons])
    axes.minorticks_off()
    axes.legend()
    return chart
