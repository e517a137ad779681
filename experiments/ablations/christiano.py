"""Christiano et al. 2017, Fig. 2 and 3: true return from preferences alone, by number of labels, and what parts matter.

    pip install 'rlhf_jax[control]' && python -m experiments.ablations.reproduce christiano --seeds=5

The human compares the true returns of two clips of 15 steps and answers 10 % of the questions by a coin. Everything shares the
number of environment steps; RL on the true reward is the upper line. Return = (true return of the last tenth of training −
that of RL's first tenth) / (RL's last tenth − its first), so that 1 is as good as with the reward known.
"""

from dataclasses import asdict, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.control import agent_of, all_seeds, settings
from experiments.ablations.fits import spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Bench,
    Criterion,
    Finding,
    Measurement,
    Row,
    Table,
    draw_seeds,
    mark_seed,
    paired,
)
from experiments.control.ppo import Settings, Surrogate, over_seeds, train
from experiments.control.preferences import Asking, accuracy_of_one_fit, train_from_preferences
from experiments.menagerie.shared import pick

CLIP = Surrogate(0.2, 0.0, 0.0)
RL, FULL = "RL, true reward", "preferences"
PARTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "random queries": {"active": False},
    "no ensemble": {"num_predictors": 1, "bootstrap": False, "active": False},
    "no lapses in the model": {"model_lapse": 0.0},
}
FIT, FITS = "one fit", {"lapses in the model": 0.1, "Bradley-Terry": 0.0}
COLOURS = dict(
    zip((RL, *PARTS), ("#16202e", "#2563eb", "#d9660a", "#0c8f7c", "#8b3fd9"), strict=True)
)


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Numbers of labels with the full method, the method's parts at the second largest, and fits of fixed answers."""
    name = pick(size, tiny="point", default="Pendulum-v1", large="Pendulum-v1")
    rounds = pick(size, tiny=2, default=10, large=50)
    how = settings(
        rounds * 10 if size != "tiny" else rounds, pick(size, tiny=1e-3, default=1e-3, large=3e-4)
    )
    asking = Asking(
        num_rounds=rounds,
        labels_per_round=0,
        iterations_per_round=how.num_iterations // rounds,
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
        *((part, labels[-2]) for part in PARTS if part != FULL),
        *((f"{FIT}, {fit}", labels[-1]) for fit in FITS),
    ]
    measurements = [
        Measurement(
            f"seed{seed}-{number}",
            {"seed": seed, "method": method, "labels": count},
            (),
            {"method": method, "environment": name, "how": repr(how), "asking": asdict(asking)},
            partial(
                returns_of,
                number=number,
                seed=seed,
                seeds=seeds,
                name=name,
                how=how,
                asking=replace(asking, labels_per_round=count // rounds),
                method=method,
            ),
        )
        for number, (method, count) in enumerate(cells)
        for seed in seeds
    ]
    return Ablation(
        "Christiano et al. 2017, Fig. 2 and 3",
        seeds,
        (),
        measurements,
        CRITERIA,
        figure,
        f"\n{name}, {how.num_iterations * how.num_envs * how.num_steps:,} steps.",
    )


def returns_of(
    bench: Bench,
    *,
    number: int,
    seed: int,
    seeds: tuple[int, ...],
    name: str,
    how: Settings,
    asking: Asking,
    method: str,
) -> list[Row]:
    """A row per tenth of training, or one for a fit."""
    depends_on = {
        "seeds": seeds,
        "how": repr(how),
        "asking": asdict(asking),
        "method": method,
        "environment": name,
    }
    found = all_seeds(
        bench, f"cell{number}", depends_on, partial(run_seeds, method, name, how, asking, seeds)
    )
    columns = {key: values[seeds.index(seed)] for key, values in found.items()}
    size = max(len(values) for values in columns.values())
    rows = [
        {"part": k + 1}
        | {key: values[k] for key, values in columns.items() if values[k] is not None}
        for k in range(size)
    ]
    bad: Row = {"status": f"diverged: {method}, seed {seed}"}
    return [row if len(row) > len(columns) else row | bad for row in rows]


def run_seeds(
    method: str, name: str, how: Settings, asking: Asking, seeds: tuple[int, ...]
) -> dict[str, Any]:
    """One line of the figure: all seeds at once; lists over seeds of lists over tenths of training."""
    agent = agent_of(name, how)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    if method == RL:
        metrics = over_seeds(partial(train, agent, penalty=False))(keys, CLIP)
        kept = {"return": _mean_return(metrics["return"], asking.num_rounds)}
    elif method.startswith(FIT):
        lapse = FITS[method.removeprefix(f"{FIT}, ")]
        plain = replace(
            asking, model_lapse=lapse, bootstrap=False, num_updates=10 * asking.num_updates
        )
        metrics = over_seeds(partial(accuracy_of_one_fit, agent, plain))(keys, CLIP)
        kept = {"accuracy": np.asarray(metrics["accuracy"])[:, None]}
    else:
        changed = replace(asking, **PARTS[method])
        metrics = over_seeds(partial(train_from_preferences, agent, changed))(keys, CLIP)
        kept = {
            "return": _mean_return(metrics["return"], asking.num_rounds),
            "accuracy": np.asarray(metrics["accuracy"]),
            "train_loss": np.asarray(metrics["train_loss"]),
        }
    return {
        key: [[x if np.isfinite(x) else None for x in row] for row in x_SK.tolist()]
        for key, x_SK in kept.items()
    }


def _mean_return(episodes: Any, parts: int) -> np.ndarray:
    """Mean return of the episodes of each part of training: (seeds, parts)."""
    total, weight = (np.asarray(x).reshape(len(x), parts, -1).sum(-1) for x in episodes)
    return total / np.where(weight > 0, weight, np.nan)


def relative(table: Table) -> Table:
    """Final rows with `share`: the return from RL's first tenth of training (0) to its last (1). NaN returns have none."""
    rl = table.where(method=RL)
    zero, one = (
        rl.where(part=part).column("return").mean() for part in (1, max(rl.values("part")))
    )
    rows: list[Row] = []
    for row in table.having("return").rows:
        if row["part"] == max(rl.values("part")):
            rows.append({**row, "share": (float(row["return"]) - zero) / (one - zero)})
    return Table(rows)


def enough(table: Table) -> Finding:
    """The full method at the largest number of labels up to 1,400."""
    shares = relative(table).where(method=FULL)
    most = max(count for count in shares.values("labels") if count <= 1400)
    found = {count: t_interval(rows.column("share")) for count, rows in shares.by("labels")}
    text = ", ".join(
        f"{count} labels {one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"
        for count, one in found.items()
    )
    return Finding(found[most].mean >= 0.9, *found[most], text)


def more_is_better(table: Table) -> Finding:
    """Whether the return rises with the number of labels."""
    shares = relative(table).where(method=FULL)
    counts = sorted(shares.values("labels"))
    means = [float(shares.where(labels=count).column("share").mean()) for count in counts]
    rho = spearman(counts, means)
    return Finding(
        rho >= 0.8,
        rho,
        None,
        None,
        ", ".join(f"{n}: {mean:.2f}" for n, mean in zip(counts, means, strict=True)),
    )


def lapses_help(table: Table) -> Finding:
    """Accuracy on clean pairs, with the lapse rate in the loss and without, from the same answers."""
    each = [
        _one(table.where(method=f"{FIT}, {fit}").having("accuracy"), "accuracy") for fit in FITS
    ]
    found = t_interval(100 * paired(*each))
    with_, without = (float(np.mean(list(one.values()))) for one in each)
    text = f"accuracy {with_:.3f} and {without:.3f}; points"
    return Finding(found.mean >= 1, *found, text)


def _one(table: Table, column: str) -> dict[Any, float]:
    return table.each_seed(lambda one: one.column(column)[-1])


def parts_help(table: Table) -> Finding:
    """The full method against itself without one part, at equal labels."""
    shares = relative(table)
    labels = next(
        row["labels"] for row in table.rows if row["method"] in PARTS and row["method"] != FULL
    )
    full = _one(shares.where(method=FULL, labels=labels), "share")
    lost = {
        part: t_interval(paired(full, _one(shares.where(method=part), "share")))
        for part in PARTS
        if part != FULL
    }
    text = ", ".join(
        f"{part} {one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]" for part, one in lost.items()
    )
    worst = min(lost.values(), key=lambda one: one.mean)
    return Finding(worst.mean >= 0, *worst, f"full − without, at {labels} labels: {text}")


CRITERIA = (
    Criterion(
        "E25.return",
        "at ≤ 1,400 labels the true return reaches 90 % of RL's with the true reward",
        enough,
    ),
    Criterion("E25.labels", "Spearman(true return, number of labels) ≥ 0.8", more_is_better),
    Criterion(
        "E25.lapse",
        "with 10 % lapses the ε-model is ≥ 1 point better than Bradley-Terry on clean pairs",
        lapses_help,
    ),
    Criterion(
        "E25.parts", "no part of the method can be left out with gain (mean over seeds)", parts_help
    ),
)


def figure(table: Table) -> Figure:
    """Return over training for every number of labels on the left, final returns of the parts on the right."""
    made, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(3, 2))
    counts = table.where(method=FULL).values("labels")
    shades = dict(
        zip(counts, plt.get_cmap("Blues")(np.linspace(0.4, 0.95, len(counts))), strict=True)
    )
    draw_seeds(left, table.where(method=RL), "part", "return", colour=COLOURS[RL], label=RL)
    for count in counts:
        rows = table.where(method=FULL, labels=count)
        draw_seeds(left, rows, "part", "return", colour=shades[count], label=f"{count:,} labels")
    left.set(
        xlabel="tenth of training", ylabel="true return of the episodes", title="preferences alone"
    )
    shares = relative(table)
    for x, (method, rows) in enumerate(
        (key, part)
        for key in (FULL, *list(PARTS)[1:])
        for part in [shares.where(method=key, labels=counts[-2])]
    ):
        found = t_interval(rows.column("share"))
        for row in rows.rows:
            mark_seed(
                right.plot(float(row["share"]), x, ".", color=COLOURS[method], alpha=0.5)[0],
                row["seed"],
            )
        right.plot([found.low, found.high], [x, x], "-", color="#16202e", lw=1)
        right.plot(found.mean, x, "o", color=COLOURS[method])
    right.axvline(1, color="#bbb", lw=0.8)
    right.set(
        yticks=range(len(PARTS)),
        yticklabels=PARTS,
        xlabel="share of RL's return",
        title=f"parts, {counts[-2]:,} labels",
    )
    right.invert_yaxis()
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
