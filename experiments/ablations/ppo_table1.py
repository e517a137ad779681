"""Compare no clipping, clipping, adaptive and fixed KL penalties on small control environments.

    pip install 'rlhf_jax[control]'
    python -m experiments.ablations.reproduce ppo_table1 --seeds=5

Schulman et al. 2017, Table 1. All rows share everything but the policy loss: 10 epochs over each
segment, the same seeds, one program for all seeds of a row. Score = (return − untrained) / (best
row − untrained) per environment, returns of episodes that ended in the last tenth of training,
untrained = the same loop with a learning rate of 1e-12. The paper's seven MuJoCo tasks and its
million steps are replaced by gymnax's classic tasks and 100,000 steps, so only the order of the
rows can be compared, not their values.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations.control import cached_agent, measure_all_seeds, ppo_settings
from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    DIVERGED_COLOUR,
    Ablation,
    Context,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    draw_point,
    interval_finding,
)
from experiments.control.ppo import Agent, Settings, Surrogate, late_return, over_seeds, train
from experiments.menagerie.shared import pick
from rlhf_jax.maths.masking import value

LATE = 0.1  # the share of training whose returns count
UNTRAINED, NONE, CLIP = "untrained", "no clipping or penalty", "clipping, ε = 0.2"
OFF = Surrogate(jnp.inf, 0.0, 0.0)
TARGETS = (0.003, 0.01, 0.03)
# name: (paper's score, the KL penalty instead of the clip?, the loss)
ROWS: dict[str, tuple[float, bool, Surrogate]] = {
    NONE: (-0.39, False, OFF),
    "clipping, ε = 0.1": (0.76, False, OFF._replace(cliprange=0.1)),
    CLIP: (0.82, False, OFF._replace(cliprange=0.2)),
    "clipping, ε = 0.3": (0.70, False, OFF._replace(cliprange=0.3)),
    **{
        f"adaptive KL, target {target}": (paper, True, Surrogate(jnp.inf, 1.0, target))
        for target, paper in zip(TARGETS, (0.68, 0.74, 0.71), strict=True)
    },
    **{
        f"fixed KL, β = {beta:g}": (paper, True, Surrogate(jnp.inf, beta, 0.0))
        for beta, paper in ((0.3, 0.62), (1.0, 0.71), (3.0, 0.72), (10.0, 0.69))
    },
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Measure every environment once a seed; the first seed's measurement does the work for all."""
    classic = ("CartPole-v1", "Pendulum-v1", "Reacher-misc")
    more = (*classic, "Acrobot-v1", "Swimmer-misc")
    environments = pick(size, tiny=("point",), default=classic, large=more)
    num_iterations = pick(size, tiny=2, default=100, large=980)
    settings = ppo_settings(num_iterations, pick(size, tiny=1e-3, default=1e-3, large=3e-4))
    notes = "Dots: seeds. Bars: mean and 95 % t interval over seeds. Grey: the paper's seven tasks."
    ablation = Ablation("Schulman et al. 2017, Table 1", seeds, CRITERIA, figure, notes)
    for environment in environments:
        for seed in seeds:
            ablation.add_measurement(
                f"seed{seed}-{environment}",
                {"seed": seed, "environment": environment},
                (),
                measure_losses,
                seed=seed,
                seeds=seeds,
                environment=environment,
                settings=settings,
            )
    return ablation


def measure_losses(
    context: Context, *, seed: int, seeds: tuple[int, ...], environment: str, settings: Settings
) -> list[Row]:
    """Return a row for every policy loss, and one for the untrained policy."""
    rows: list[Row] = []
    for number, loss in enumerate((UNTRAINED, *ROWS)):
        name = f"{environment}-row{number}"
        measure = partial(run_seeds, loss, environment, settings)
        setup = {"settings": settings, "loss": loss}
        columns = measure_all_seeds(context, name, measure, seed, seeds, **setup)
        row: Row = {key: number for key, number in columns.items() if number is not None}
        if "return" not in row:
            row["status"] = f"diverged: {loss}, {environment}, seed {seed}"
        rows.append({"loss": loss, **row})
    return rows


def run_seeds(
    loss: str, environment: str, settings: Settings, keys: jax.Array
) -> Mapping[str, Any]:
    """Run one row of the table for all seeds at once."""
    if loss == UNTRAINED:
        still = replace(settings.optimizer, learning_rate=1e-12)
        num_iterations = max(2, settings.num_iterations // 10)
        settings = replace(settings, num_iterations=num_iterations, optimizer=still)
    _, penalty, surrogate = ROWS.get(loss, ROWS[NONE])
    metrics = _program(cached_agent(environment, settings), penalty)(keys, surrogate)
    return {
        "return": late_return(metrics, LATE if loss != UNTRAINED else 1.0),
        "kl": metrics["kl"].mean(1),
        "kl_max": metrics["kl"].max(1),
        "entropy": value(metrics["policy/entropy"])[:, -1],
    }


@cache
def _program(agent: Agent, penalty: bool) -> Any:
    return over_seeds(partial(train, agent, penalty=penalty))


# --- claims ---------------------------------------------------------------------------------------


def losses_of(table: Table) -> list[str]:
    """Return the losses of a table, in the paper's order."""
    present = table.values("loss")
    return [loss for loss in ROWS if loss in present]


def normalised(table: Table) -> Table:
    """Return the rows of ROWS with their `score`; what diverged scores as the untrained."""
    rows: list[Row] = []
    for _, part in table.by("environment"):
        zero = part.where(loss=UNTRAINED).having("return").column("return").mean()
        returns = [
            part.where(loss=loss).having("return").column("return") for loss in losses_of(table)
        ]
        best = max(float(each.mean()) for each in returns if each.size)
        for row in part.rows:
            if row.get("loss", UNTRAINED) != UNTRAINED:
                earned = float(row.get("return", zero)) - zero
                rows.append({**row, "score": earned / (best - zero)})
    return Table(rows)


def scores(table: Table, loss: str) -> np.ndarray:
    """Return the mean score over environments of every seed."""
    rows = normalised(table).where(loss=loss)
    return rows.per_seed(lambda seed: float(seed.column("score").mean()))


def unlimited_fails(table: Table) -> Finding:
    """Judge no limit: as bad as untrained, or ten times as far from the old policy."""
    score = t_interval(scores(table, NONE))
    kl, kl_clip = (table.where(loss=loss).having("kl").column("kl") for loss in (NONE, CLIP))
    # All diverged: the score says so.
    ratio = float(kl.mean() / kl_clip.mean()) if kl.size else float("nan")
    interval = f"{score.mean:.2f} [{score.low:.2f}, {score.high:.2f}]"
    detail = f"KL(old ‖ new) over that of clip 0.2; score {interval}"
    return Finding(score.mean <= 0 or ratio > 10, ratio, detail)


def clip_is_good(table: Table) -> Finding:
    """Judge clip 0.2 against the best row, seed by seed."""
    means = {loss: float(scores(table, loss).mean()) for loss in losses_of(table)}
    best = max(means, key=lambda loss: means[loss])
    gap = scores(table, best) - scores(table, CLIP)
    error = gap.std(ddof=1) / np.sqrt(gap.size) if gap.size > 1 else 0.0
    detail = f"behind the best, {best} ({means[best]:.2f}), by this; standard error {error:.3f}"
    return Finding(bool(gap.mean() <= error), float(gap.mean()), detail)


def clip_beats_none(table: Table) -> Finding:
    """Judge clip 0.2 less nothing, seed by seed."""
    gap = t_interval(scores(table, CLIP) - scores(table, NONE))
    return interval_finding(gap.low > 0, gap, "score of clip 0.2 − score without a limit")


def target_is_met(table: Table) -> Finding:
    """Judge the measured KL of the adaptive rows over their target."""
    ratios = {}
    for target in TARGETS:
        rows = table.where(loss=f"adaptive KL, target {target}")
        ratios[target] = float(rows.column("kl").mean() / target)
    worst = max(ratios.values(), key=lambda ratio: abs(np.log(ratio)))
    text = ", ".join(f"{target}: {ratio:.2f}" for target, ratio in ratios.items())
    return Finding(all(1 / 1.5 <= ratio <= 1.5 for ratio in ratios.values()), worst, text)


CRITERIA = (
    Criterion(
        "without a limit: score ≤ 0, or mean KL(old ‖ new) > 10 times that of clip 0.2",
        unlimited_fails,
    ),
    Criterion("clip 0.2 is within one standard error of the best row", clip_is_good),
    Criterion(
        "clip 0.2 scores higher than no limit (interval of the difference above 0)", clip_beats_none
    ),
    Criterion("the adaptive rows' mean KL is within a factor 1.5 of the target", target_is_met),
)


# --- figure ---------------------------------------------------------------------------------------


def _draw_scores(axes: Axes, table: Table, rows: Table) -> None:
    for height, loss in enumerate(losses_of(table)):
        score = t_interval(scores(table, loss))
        for seed in table.values("seed"):
            of_seed = rows.where(loss=loss, seed=seed)
            look: Options = {"marker": ".", "color": "#2563eb", "alpha": 0.4, "ms": 6}
            if of_seed.diverged or not len(of_seed):
                look = {"marker": "x", "color": DIVERGED_COLOUR, "alpha": 1, "ms": 6}
            mean = of_seed.column("score").mean() if len(of_seed) else 0.0
            draw_point(axes, mean, height, seed, **look)
        ends = np.clip([score.low, score.high], -5, 5)
        axes.plot(ends, [height, height], "-", color="#16202e", lw=1)
        here, paper = ("here", "Schulman et al. 2017") if height == 0 else ("_", "_")
        axes.plot(score.mean, height, "o", color="#16202e", ms=5, label=here)
        axes.plot(ROWS[loss][0], height, "D", color="#bbb", ms=5, zorder=0, label=paper)
        place: Options = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
        axes.text(1.02, height, f"{score.mean:.2f}", **place)
    axes.set_yticks(range(len(losses_of(table))), losses_of(table))
    axes.set(xlabel="mean normalised score", xlim=(-0.6, 1.3))
    axes.invert_yaxis()
    axes.axvline(0, color="#bbb", lw=0.8, zorder=0)
    axes.legend(loc="lower left")


def figure(table: Table) -> Figure:
    """Draw the paper's table as dots: the score of every row, and how far its updates go."""
    shape: Options = {"figsize": (10, 4.6), "sharey": True, "width_ratios": (3, 2)}
    chart, (left, right) = plt.subplots(1, 2, **shape)
    rows = normalised(table)
    _draw_scores(left, table, rows)
    environments = rows.values("environment")
    for height, loss in enumerate(losses_of(table)):
        for name, part in rows.where(loss=loss).by("environment"):
            kl = part.having("kl").column("kl")
            colour = f"C{environments.index(name)}"
            look: Options = {"alpha": 0.6, "color": colour, "label": name if height == 0 else "_"}
            right.plot(kl, [height] * len(kl), ".", **look)
    right.set(xscale="log", xlabel="mean KL(old ‖ new), nats")
    right.legend(loc="lower right")
    return chart
