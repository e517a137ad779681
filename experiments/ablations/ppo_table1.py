"""Schulman et al. 2017, Table 1: no clipping, clipping, adaptive and fixed KL penalties on small control environments.

    pip install 'rlhf_jax[control]' && python -m experiments.ablations.reproduce ppo_table1 --seeds=5

All rows share everything but the policy loss: 10 epochs over each segment, the same seeds, one program for all seeds of a row.
Score = (return − untrained) / (best row − untrained) per environment, returns of episodes that ended in the last tenth
of training, untrained = the same loop with a learning rate of 1e-12. The paper's seven MuJoCo tasks and its million steps are
replaced by gymnax's classic tasks and 100,000 steps, so only the order of the rows can be compared, not their values.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.control import agent_of, all_seeds, settings
from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    DIVERGED_COLOUR,
    Ablation,
    Bench,
    Criterion,
    Finding,
    Measurement,
    Row,
    Table,
    mark_seed,
)
from experiments.control.ppo import Agent, Settings, Surrogate, late_return, over_seeds, train
from experiments.menagerie.shared import pick
from rlhf_jax.maths.masking import value

LATE = 0.1  # the share of training whose returns count
UNTRAINED, NONE, CLIP = "untrained", "no clipping or penalty", "clipping, ε = 0.2"
OFF = Surrogate(jnp.inf, 0.0, 0.0)
# name: (paper's score, the KL penalty instead of the clip?, the loss)
ROWS: dict[str, tuple[float, bool, Surrogate]] = {
    NONE: (-0.39, False, OFF),
    "clipping, ε = 0.1": (0.76, False, OFF._replace(cliprange=0.1)),
    CLIP: (0.82, False, OFF._replace(cliprange=0.2)),
    "clipping, ε = 0.3": (0.70, False, OFF._replace(cliprange=0.3)),
    **{
        f"adaptive KL, target {target}": (paper, True, Surrogate(jnp.inf, 1.0, target))
        for target, paper in ((0.003, 0.68), (0.01, 0.74), (0.03, 0.71))
    },
    **{
        f"fixed KL, β = {beta:g}": (paper, True, Surrogate(jnp.inf, beta, 0.0))
        for beta, paper in ((0.3, 0.62), (1.0, 0.71), (3.0, 0.72), (10.0, 0.69))
    },
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """A measurement per seed and environment; the first seed's does the work for all."""
    names = pick(
        size,
        tiny=("point",),
        default=("CartPole-v1", "Pendulum-v1", "Reacher-misc"),
        large=("CartPole-v1", "Pendulum-v1", "Reacher-misc", "Acrobot-v1", "Swimmer-misc"),
    )
    how = settings(
        pick(size, tiny=2, default=100, large=980), pick(size, tiny=1e-3, default=1e-3, large=3e-4)
    )
    measurements = [
        Measurement(
            f"seed{seed}-{name}",
            {"seed": seed, "environment": name},
            (),
            {"how": repr(how)},
            partial(scores_of, seed=seed, seeds=seeds, name=name, how=how),
        )
        for name in names
        for seed in seeds
    ]
    return Ablation(
        "Schulman et al. 2017, Table 1",
        seeds,
        (),
        measurements,
        CRITERIA,
        figure,
        "Dots: seeds. Bars: mean and 95 % t interval over seeds. Grey: the paper's seven tasks.",
    )


def scores_of(
    bench: Bench, *, seed: int, seeds: tuple[int, ...], name: str, how: Settings
) -> list[Row]:
    """A row for every policy loss, and one for the untrained policy."""
    depends_on = {"seeds": seeds, "how": repr(how)}
    rows: list[Row] = []
    for number, label in enumerate((UNTRAINED, *ROWS)):
        measure = partial(run_seeds, label, name, how, seeds)
        found = all_seeds(bench, f"{name}-row{number}", {**depends_on, "loss": label}, measure)
        place = seeds.index(seed)
        mine = {key: values[place] for key, values in found.items() if values[place] is not None}
        bad = {} if "return" in mine else {"status": f"diverged: {label}, {name}, seed {seed}"}
        rows.append({"loss": label, **mine, **bad})
    return rows


def run_seeds(label: str, name: str, how: Settings, seeds: tuple[int, ...]) -> dict[str, Any]:
    """One row of the table: all seeds at once."""
    if label == UNTRAINED:
        still = replace(how.optimizer, learning_rate=1e-12)
        how = replace(how, num_iterations=max(2, how.num_iterations // 10), optimizer=still)
    _, penalty, surrogate = ROWS.get(label, ROWS[NONE])
    agent = agent_of(name, how)
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    metrics = _program(agent, penalty)(keys, surrogate)
    measured = {
        "return": late_return(metrics, LATE if label != UNTRAINED else 1.0),
        "kl": metrics["kl"].mean(1),
        "kl_max": metrics["kl"].max(1),
        "entropy": value(metrics["policy/entropy"])[:, -1],
    }
    return {
        name: [x if np.isfinite(x) else None for x in np.asarray(x_S).tolist()]
        for name, x_S in measured.items()
    }


@cache
def _program(agent: Agent, penalty: bool) -> Any:
    return over_seeds(partial(train, agent, penalty=penalty))


def labels(table: Table) -> list[str]:
    """The losses of a table, in the paper's order."""
    present = table.values("loss")
    return [label for label in ROWS if label in present]


def normalised(table: Table) -> Table:
    """The rows of ROWS with their `score`; what diverged, and so earned nothing that can be told, scores as the untrained."""
    rows: list[Row] = []
    for _, part in table.by("environment"):
        zero = part.where(loss=UNTRAINED).having("return").column("return").mean()
        earned = {
            label: part.where(loss=label).having("return").column("return")
            for label in labels(table)
        }
        best = max(float(returns.mean()) for returns in earned.values() if returns.size)
        for row in part.rows:
            if row.get("loss", UNTRAINED) != UNTRAINED:
                rows.append(
                    {
                        **row,
                        "score": (float(row["return"]) - zero) / (best - zero)
                        if "return" in row
                        else 0.0,
                    }
                )
    return Table(rows)


def of_seeds(table: Table, label: str) -> np.ndarray:
    """The mean score over environments of every seed."""
    return (
        normalised(table).where(loss=label).per_seed(lambda one: float(one.column("score").mean()))
    )


def unclipped_fails(table: Table) -> Finding:
    """Without a limit: as bad as untrained, or ten times as far from the old policy."""
    score = t_interval(of_seeds(table, NONE))
    kl = {label: table.where(loss=label).having("kl").column("kl") for label in (NONE, CLIP)}
    far = (
        kl[NONE].mean() / kl[CLIP].mean() if kl[NONE].size else np.nan
    )  # all diverged: the score says so
    detail = f"KL(old ‖ new) over that of clip 0.2; score {score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"
    return Finding(score.mean <= 0 or far > 10, float(far), None, None, detail)


def clip_is_good(table: Table) -> Finding:
    """Clip 0.2 against the best row, seed by seed."""
    means = {label: float(of_seeds(table, label).mean()) for label in labels(table)}
    best = max(means, key=lambda label: means[label])
    behind = of_seeds(table, best) - of_seeds(table, CLIP)
    error = behind.std(ddof=1) / np.sqrt(behind.size) if behind.size > 1 else 0.0
    return Finding(
        bool(behind.mean() <= error),
        float(behind.mean()),
        None,
        None,
        f"behind the best, {best} ({means[best]:.2f}), by this; standard error {error:.3f}",
    )


def clip_beats_none(table: Table) -> Finding:
    """Clip 0.2 less nothing, seed by seed."""
    found = t_interval(of_seeds(table, CLIP) - of_seeds(table, NONE))
    return Finding(found.low > 0, *found, "score of clip 0.2 − score without a limit")


def target_is_met(table: Table) -> Finding:
    """Measured KL of the adaptive rows over their target."""
    ratios = {
        target: float(
            table.where(loss=f"adaptive KL, target {target}").column("kl").mean() / target
        )
        for target in (0.003, 0.01, 0.03)
    }
    worst = max(ratios.values(), key=lambda x: abs(np.log(x)))
    return Finding(
        all(1 / 1.5 <= x <= 1.5 for x in ratios.values()),
        worst,
        None,
        None,
        ", ".join(f"{target}: {x:.2f}" for target, x in ratios.items()),
    )


CRITERIA = (
    Criterion(
        "E15.none",
        "without a limit: score ≤ 0, or mean KL(old ‖ new) > 10 times that of clip 0.2",
        unclipped_fails,
    ),
    Criterion("E15.clip", "clip 0.2 is within one standard error of the best row", clip_is_good),
    Criterion(
        "E15.limit",
        "clip 0.2 scores higher than no limit (interval of the difference above 0)",
        clip_beats_none,
    ),
    Criterion(
        "E15.target",
        "the adaptive rows' mean KL is within a factor 1.5 of the target",
        target_is_met,
    ),
)


def figure(table: Table) -> Figure:
    """The paper's table as dots: mean normalised score of every row, and how far its updates go."""
    made, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, width_ratios=(3, 2))
    scored = normalised(table)
    for y, label in enumerate(labels(table)):
        paper, found = ROWS[label][0], t_interval(of_seeds(table, label))
        for seed in table.values("seed"):
            mine = scored.where(loss=label, seed=seed)
            lost = bool(mine.diverged) or not len(mine)
            score = mine.column("score").mean() if len(mine) else 0.0
            style, colour = ("x", DIVERGED_COLOUR) if lost else (".", "#2563eb")
            mark_seed(left.plot(score, y, style, color=colour, alpha=1 if lost else 0.4)[0], seed)
        low, high = np.clip([found.low, found.high], -5, 5)
        left.plot([low, high], [y, y], "-", color="#16202e", lw=1)
        left.plot(found.mean, y, "o", color="#16202e", ms=5, label="here" if y == 0 else "_")
        left.plot(
            paper,
            y,
            "D",
            color="#bbb",
            ms=5,
            zorder=0,
            label="Schulman et al. 2017" if y == 0 else "_",
        )
        left.text(
            1.02,
            y,
            f"{found.mean:.2f}",
            transform=left.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
        for name, part in scored.where(loss=label).by("environment"):
            right.plot(
                part.having("kl").column("kl"),
                [y] * len(part.having("kl")),
                ".",
                alpha=0.6,
                color=f"C{scored.values('environment').index(name)}",
                label=name if y == 0 else "_",
            )
    left.set(
        yticks=range(len(labels(table))),
        yticklabels=labels(table),
        xlabel="mean normalised score",
        xlim=(-0.6, 1.3),
    )
    left.invert_yaxis()
    left.axvline(0, color="#bbb", lw=0.8, zorder=0)
    right.set(xscale="log", xlabel="mean KL(old ‖ new), nats")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower left" if axes is left else "lower right")
    made.tight_layout()
    return made
