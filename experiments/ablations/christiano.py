"""Reach the true return from preferences alone, by number of labels and by parts of the method.

    pip install 'rlhf_jax[control]'
    python -m experiments.ablations.reproduce christiano --seeds=5

Christiano et al. 2017, Fig. 2 and 3. The human compares the true returns of two clips of 15 steps
and answers 10 % of the questions by a coin. Everything shares the number of environment steps; RL
on the true reward is the upper line. Return = (true return of the last tenth of training − that of
RL's first tenth) / (RL's last tenth − its first), so that 1 is as good as with the reward known.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations.control import cached_agent, measure_all_seeds, ppo_settings
from experiments.ablations.fits import spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    draw_point,
    draw_seeds,
    interval_finding,
    mean_of,
    paired,
)
from experiments.control.ppo import Settings, Surrogate, over_seeds, train
from experiments.control.preferences import (
    QuerySettings,
    accuracy_of_one_fit,
    train_from_preferences,
)
from experiments.menagerie.shared import pick
from rlhf_jax.maths.statistics import Interval

CLIP = Surrogate(0.2, 0.0, 0.0)
RL, FULL = "RL, true reward", "preferences"
PARTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "random queries": {"active": False},
    "no ensemble": {"num_predictors": 1, "bootstrap": False, "active": False},
    "no lapses in the model": {"model_lapse": 0.0},
}
WITHOUT = tuple(PARTS)[1:]
FIT, FITS = "one fit", {"lapses in the model": 0.1, "Bradley-Terry": 0.0}
METHOD_COLOURS = ("#16202e", "#2563eb", "#d9660a", "#0c8f7c", "#8b3fd9")
COLOURS = dict(zip((RL, *PARTS), METHOD_COLOURS, strict=True))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Vary the labels of the full method, the method's parts, and fits of fixed answers."""
    environment = pick(size, tiny="point", default="Pendulum-v1", large="Pendulum-v1")
    rounds = pick(size, tiny=2, default=10, large=50)
    num_iterations = rounds if size == "tiny" else rounds * 10
    settings = ppo_settings(num_iterations, pick(size, tiny=1e-3, default=1e-3, large=3e-4))
    queries = QuerySettings(
        num_rounds=rounds,
        labels_per_round=0,
        iterations_per_round=num_iterations // rounds,
        segment_steps=15,
        num_predictors=3,
        active=True,
        candidates_per_label=5,
        bootstrap=True,
        model_lapse=0.1,
        human_lapse=0.1,
        hidden=(32, 32),
        learning_rate=1e-3,
        num_updates=pick(size, tiny=5, default=100, large=200),
        batch_size=32,
        weight_decay=1e-4,
    )
    labels = pick(size, tiny=(8, 16), default=(50, 150, 700, 1400), large=(350, 700, 1400, 2800))
    cells = [
        (RL, 0),
        *((FULL, count) for count in labels),
        *((part, labels[-2]) for part in WITHOUT),
        *((f"{FIT}, {fit}", labels[-1]) for fit in FITS),
    ]
    num_steps = num_iterations * settings.num_envs * settings.num_steps
    notes = f"\n{environment}, {num_steps:,} steps."
    ablation = Ablation("Christiano et al. 2017, Fig. 2 and 3", seeds, CRITERIA, figure, notes)
    for number, (method, count) in enumerate(cells):
        for seed in seeds:
            ablation.add_measurement(
                f"seed{seed}-{number}",
                {"seed": seed, "method": method, "labels": count},
                (),
                measure_returns,
                cell=number,
                seed=seed,
                seeds=seeds,
                environment=environment,
                settings=settings,
                queries=replace(queries, labels_per_round=count // rounds),
                method=method,
            )
    return ablation


def measure_returns(
    context: Context,
    *,
    cell: int,
    seed: int,
    seeds: tuple[int, ...],
    environment: str,
    settings: Settings,
    queries: QuerySettings,
    method: str,
) -> list[Row]:
    """Return a row per tenth of training, or one for a fit."""
    measure = partial(run_seeds, method, environment, settings, queries)
    setup = {"environment": environment, "settings": settings, "queries": queries}
    columns = measure_all_seeds(
        context, f"cell{cell}", measure, seed, seeds, method=method, **setup
    )
    rows: list[Row] = []
    for k in range(max(len(values) for values in columns.values())):
        numbers = {name: values[k] for name, values in columns.items() if values[k] is not None}
        row: Row = {"part": k + 1, **numbers}
        if len(numbers) < len(columns):
            row["status"] = f"diverged: {method}, seed {seed}"
        rows.append(row)
    return rows


def run_seeds(
    method: str, environment: str, settings: Settings, queries: QuerySettings, keys: jax.Array
) -> Mapping[str, Any]:
    """Run one line of the figure for all seeds at once; return arrays over seeds and tenths."""
    agent = cached_agent(environment, settings)
    if method == RL:
        metrics = over_seeds(partial(train, agent, penalty=False))(keys, CLIP)
        return {"return": _mean_return(metrics["return"], queries.num_rounds)}
    if method.startswith(FIT):
        plain = replace(
            queries,
            model_lapse=FITS[method.removeprefix(f"{FIT}, ")],
            bootstrap=False,
            num_updates=10 * queries.num_updates,
        )
        metrics = over_seeds(partial(accuracy_of_one_fit, agent, plain))(keys, CLIP)
        return {"accuracy": np.asarray(metrics["accuracy"])[:, None]}
    changed = replace(queries, **PARTS[method])
    metrics = over_seeds(partial(train_from_preferences, agent, changed))(keys, CLIP)
    returns = _mean_return(metrics["return"], queries.num_rounds)
    return {"return": returns, "accuracy": metrics["accuracy"], "train_loss": metrics["train_loss"]}


def _mean_return(episodes: Any, parts: int) -> np.ndarray:
    """Return the mean return of the episodes of each part of training: (seeds, parts)."""
    total, weight = (np.asarray(x).reshape(len(x), parts, -1).sum(-1) for x in episodes)
    return total / np.where(weight > 0, weight, np.nan)


# --- claims ---------------------------------------------------------------------------------------


def with_share(table: Table) -> Table:
    """Return the final rows with `share`: 0 is the return of RL's first tenth, 1 of its last.

    NaN returns have none.
    """
    rl = table.where(method=RL)
    last = max(rl.values("part"))
    zero, full = (rl.where(part=part).column("return").mean() for part in (1, last))
    rows = table.having("return").where(part=last).rows
    return Table([{**row, "share": (float(row["return"]) - zero) / (full - zero)} for row in rows])


def _show(intervals: Mapping[Any, Interval]) -> str:
    return ", ".join(
        f"{name} {x.mean:.2f} [{x.low:.2f}, {x.high:.2f}]" for name, x in intervals.items()
    )


def labels_are_enough(table: Table) -> Finding:
    """Judge the full method at the largest number of labels up to 1,400."""
    shares = with_share(table).where(method=FULL)
    most = max(count for count in shares.values("labels") if count <= 1400)
    intervals = {count: t_interval(rows.column("share")) for count, rows in shares.by("labels")}
    text = _show({f"{count} labels": interval for count, interval in intervals.items()})
    return interval_finding(intervals[most].mean >= 0.9, intervals[most], text)


def more_is_better(table: Table) -> Finding:
    """Judge whether the return rises with the number of labels."""
    shares = with_share(table).where(method=FULL)
    counts = sorted(shares.values("labels"))
    means = {count: float(shares.where(labels=count).column("share").mean()) for count in counts}
    rho = spearman(counts, list(means.values()))
    return Finding(rho >= 0.8, rho, ", ".join(f"{n}: {mean:.2f}" for n, mean in means.items()))


def lapses_help(table: Table) -> Finding:
    """Judge accuracy on clean pairs with the lapse rate in the loss and without, same answers."""
    lapse, plain = (table.where(method=f"{FIT}, {fit}").final("accuracy") for fit in FITS)
    gap = t_interval(100 * paired(lapse, plain))
    text = f"accuracy {mean_of(lapse):.3f} and {mean_of(plain):.3f}; points"
    return interval_finding(gap.mean >= 1, gap, text)


def parts_help(table: Table) -> Finding:
    """Judge the full method against itself without one part, at equal labels."""
    shares = with_share(table)
    labels = next(row["labels"] for row in table.rows if row["method"] in WITHOUT)
    full = shares.where(method=FULL, labels=labels).final("share")
    lost = {
        part: t_interval(paired(full, shares.where(method=part).final("share"))) for part in WITHOUT
    }
    worst = min(lost.values(), key=lambda interval: interval.mean)
    text = f"full − without, at {labels} labels: {_show(lost)}"
    return interval_finding(worst.mean >= 0, worst, text)


CRITERIA = (
    Criterion(
        "at ≤ 1,400 labels the true return reaches 90 % of RL's with the true reward",
        labels_are_enough,
    ),
    Criterion("Spearman(true return, number of labels) ≥ 0.8", more_is_better),
    Criterion(
        "with 10 % lapses the ε-model is ≥ 1 point better than Bradley-Terry on clean pairs",
        lapses_help,
    ),
    Criterion("no part of the method can be left out with gain (mean over seeds)", parts_help),
)


# --- figure ---------------------------------------------------------------------------------------


def _draw_parts(axes: Axes, shares: Table, labels: int) -> None:
    for height, method in enumerate(PARTS):
        rows, colour = shares.where(method=method, labels=labels), COLOURS[method]
        interval = t_interval(rows.column("share"))
        for row in rows.rows:
            look: Options = {"marker": ".", "ms": 6, "alpha": 0.5, "color": colour}
            draw_point(axes, float(row["share"]), height, row["seed"], **look)
        axes.plot([interval.low, interval.high], [height, height], "-", color="#16202e", lw=1)
        axes.plot(interval.mean, height, "o", color=colour)
    axes.axvline(1, color="#bbb", lw=0.8)
    axes.set_yticks(range(len(PARTS)), list(PARTS))
    axes.set(xlabel="share of RL's return", title=f"parts, {labels:,} labels")
    axes.invert_yaxis()


def figure(table: Table) -> Figure:
    """Draw return over training for every number of labels, and final returns of the parts."""
    chart, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(3, 2))
    counts = table.where(method=FULL).values("labels")
    shades = plt.get_cmap("Blues")(np.linspace(0.4, 0.95, len(counts)))
    draw_seeds(left, table.where(method=RL), "part", "return", colour=COLOURS[RL], label=RL)
    for count, colour in zip(counts, shades, strict=True):
        rows = table.where(method=FULL, labels=count)
        draw_seeds(left, rows, "part", "return", colour=colour, label=f"{count:,} labels")
    left.set(xlabel="tenth of training", ylabel="true return of the episodes")
    left.set_title("preferences alone")
    left.legend()
    _draw_parts(right, with_share(table), counts[-2])
    return chart
