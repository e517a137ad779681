"""Ross & Bagnell 2010, Theorem 2.1 and Ross et al. 2011: cost of imitation against the horizon.

    python -m experiments.ablations.reproduce ross_bagnell --seeds=5

The task and the four methods are in experiments/control/imitation.py; every learner gets the same number of trajectories of the
horizon that it is judged on. Expected: behaviour cloning costs ε T²/2 and stays under Ross & Bagnell's T² ε, everything that
trains on its own states costs ε T. What the same question gives in language is in exposure.py.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import fit_power_law, t_interval
from experiments.ablations.framework import (
    Ablation,
    Bench,
    Criterion,
    Finding,
    Measurement,
    Row,
    Table,
    draw_seeds,
)
from experiments.control.imitation import METHODS, Cliff, cloning_cost, learn, recovering_cost, walk
from experiments.menagerie.shared import pick

FOG = 0.02  # with less, few ever fall off in short episodes, and DAgger's first points are noise
ROUNDS, ALPHA = {"DAgger": 5, "SMILe": 10}, 0.5
COLOURS = dict(zip(METHODS, ("#c0392b", "#2563eb", "#0c8f7c", "#8b3fd9"), strict=True))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """One measurement per seed and method."""
    horizons = pick(
        size, tiny=(8, 16, 32), default=(8, 16, 32, 64, 128), large=(8, 16, 32, 64, 128, 256)
    )
    count = pick(size, tiny=1000, default=4000, large=20_000)
    settings = {
        "fog": FOG,
        "horizons": horizons,
        "trajectories": count,
        "rounds": ROUNDS,
        "alpha": ALPHA,
    }
    measurements = [
        Measurement(
            f"seed{seed}-{method.replace(' ', '_')}",
            {"seed": seed, "method": method},
            (),
            settings,
            partial(costs, seed=seed, method=method, horizons=horizons, count=count),
        )
        for seed in seeds
        for method in METHODS
    ]
    return Ablation(
        "Ross & Bagnell 2010, Theorem 2.1; Ross, Gordon & Bagnell 2011",
        seeds,
        (),
        measurements,
        CRITERIA,
        figure,
        f"\nε = {FOG / 2}, {count:,} trajectories to learn from and as many to judge by.",
    )


def costs(
    bench: Bench, *, seed: int, method: str, horizons: tuple[int, ...], count: int
) -> list[Row]:
    """A row for every horizon."""
    rows: list[Row] = []
    for horizon in horizons:
        rng = np.random.default_rng([seed, METHODS.index(method), horizon])
        task = Cliff(FOG, horizon)
        policy = learn(method, task, count, rng, rounds=ROUNDS.get(method, 1), alpha=ALPHA)
        cost = float(walk(task, policy, count, rng).cost_N.mean())
        rows.append({"horizon": horizon, "cost": cost, "bound": horizon**2 * task.epsilon})
    return rows


def slope(table: Table) -> float:
    """Of log cost against log horizon; NaN for a seed that has none."""
    table = table.having("horizon", "cost")
    if not len(table):
        return float("nan")
    return fit_power_law(table.column("horizon"), table.column("cost")).exponent


def slope_between(table: Table, method: str, low: float, high: float) -> Finding:
    """Whether the whole interval of a method's slope lies in a range."""
    found = t_interval(table.where(method=method).per_seed(slope))
    means = [
        f"T={horizon}: {rows.column('cost').mean():.3f}"
        for horizon, rows in table.where(method=method).by("horizon")
    ]
    return Finding(low <= found.low and found.high <= high, *found, "cost at " + ", ".join(means))


def within_bound(table: Table) -> Finding:
    """Cloning against T² ε, with the worst seed and horizon."""
    cloned = table.where(method="behaviour cloning")
    worst = float((cloned.column("cost") / cloned.column("bound")).max())
    return Finding(
        worst <= 1, worst, None, None, "the largest J / (T² ε) of all seeds and horizons"
    )


def as_computed(table: Table) -> Finding:
    """Cloning against the sum in closed form."""
    cloned = table.where(method="behaviour cloning")
    exact = np.array([cloning_cost(FOG / 2, int(horizon)) for horizon in cloned.column("horizon")])
    relative = t_interval(
        (cloned.column("cost") / exact).reshape(len(table.values("seed")), -1).mean(axis=1)
    )
    return Finding(abs(relative.mean - 1) < 0.05, *relative, "measured cost / Σ 1 − (1 − ε)^t")


CRITERIA = (
    Criterion(
        "E24.cloning",
        "behaviour cloning's log-log slope is in [1.8, 2.1]",
        partial(slope_between, method="behaviour cloning", low=1.8, high=2.1),
    ),
    Criterion(
        "E24.dagger",
        "DAgger's log-log slope is in [0.85, 1.15]",
        partial(slope_between, method="DAgger", low=0.85, high=1.15),
    ),
    Criterion(
        "E24.forward",
        "forward training's log-log slope is in [0.85, 1.15]",
        partial(slope_between, method="forward training", low=0.85, high=1.15),
    ),
    Criterion(
        "E24.smile",
        "SMILe's log-log slope is below behaviour cloning's: in [0.85, 1.5]",
        partial(slope_between, method="SMILe", low=0.85, high=1.5),
    ),
    Criterion("E24.bound", "behaviour cloning never costs more than T² ε", within_bound),
    Criterion("E24.exact", "behaviour cloning costs Σ 1 − (1 − ε)^t within 5 %", as_computed),
)


def figure(table: Table) -> Figure:
    """Cost against horizon on logarithmic axes, with the closed forms and the bound."""
    made, axes = plt.subplots(figsize=(6, 4.6))
    for method, rows in table.by("method"):
        exponent = rows.per_seed(slope).mean()
        draw_seeds(
            axes,
            rows,
            "horizon",
            "cost",
            colour=COLOURS[method],
            label=f"{method}: slope {exponent:.2f}",
        )
    horizons = np.array(sorted(table.values("horizon")))
    axes.plot(horizons, horizons**2 * FOG / 2, ":", color="#888", label="T² ε, the bound")
    for exact, label in ((cloning_cost, "closed forms"), (recovering_cost, "_")):
        axes.plot(
            horizons,
            [exact(FOG / 2, int(horizon)) for horizon in horizons],
            "k--",
            lw=0.8,
            label=label,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="horizon T",
        ylabel="cost J of the learned policy",
        xticks=horizons,
        title="Cost of what is learned, over the horizon",
    )
    axes.set_xticks(horizons, [str(horizon) for horizon in horizons])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    made.tight_layout()
    return made
