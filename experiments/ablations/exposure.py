"""Measure errors after the expert's words and after one's own, before and after RL.

    python -m experiments.ablations.reproduce exposure --seeds=3

Ross & Bagnell 2010, in language. Lists of three to five facts about every animal. What a decision
is and when it is wrong is defined in experiments/ablations/exposure_bias.py. The supervised policy
was trained on prefixes of demonstrations only, the PPO policies on their own replies. Imitation's
theory says: errors on own prefixes exceed those on the expert's, and one error leads to the next.
"""

from collections.abc import Sequence
from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations.exposure_bias import Decision, make_requests, sample_decisions
from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    draw_seeds,
    interval_finding,
    mean_of,
    paired,
)
from experiments.ablations.shared import KL_COEF, PTX_COEF, base, base_runs, pick, policy
from rlhf_jax.evaluation.checkpoints import load_language_model, load_tokenizer_of
from rlhf_jax.menagerie.world import make_world

FEWEST = 50  # decisions of all seeds behind a point of the right panel
PTX_COEFS = {"ppo": 0.0, "ppo_ptx": PTX_COEF}
POLICIES = ("sft", *PTX_COEFS)
COLOURS = dict(zip(POLICIES, ("#64748b", "#2563eb", "#d9660a"), strict=True))
PREFIXES = {False: "expert", True: "own"}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Measure three policies of every seed."""
    notes = (
        "Dashed: after the expert's words. Solid: after the model's own. Right: all seeds together."
    )
    ablation = Ablation("Ross & Bagnell 2010, in language", seeds, CRITERIA, figure, notes)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        folders = {"sft": base(seed, "sft")}
        for name, ptx_coef in PTX_COEFS.items():
            run = policy(size, seed, kl_coef=KL_COEF, ptx_coef=ptx_coef)
            ablation.add_runs(run)
            folders[name] = run.folder
        for name, folder in folders.items():
            ablation.add_measurement(
                f"seed{seed}-{name}",
                {"seed": seed, "policy": name},
                (folder,),
                errors_by_position,
                folder=folder,
                size=size,
                seed=seed,
                num_samples=pick(size, tiny=2, default=16, large=16),
                numbers=pick(size, tiny=(2,), default=(3, 4, 5), large=(3, 4, 5)),
            )
    return ablation


def errors_by_position(
    context: Context,
    *,
    folder: str,
    size: str,
    seed: int,
    num_samples: int,
    numbers: tuple[int, ...],
) -> list[Row]:
    """Return a row for every position and kind of prefix.

    `after_error` and `after_clean` are filled for own prefixes only.
    """
    checkpoint, world = context.checkpoint(folder), make_world(size)
    model, tokenizer = load_language_model(checkpoint), load_tokenizer_of(checkpoint)
    requests, key = make_requests(world, numbers), jax.random.key(seed)
    decisions = sample_decisions(world, requests, model, tokenizer, key, num_samples)
    rows = []
    for own in PREFIXES:
        for position in range(max(d.position for d in decisions) + 1):
            cell = [d for d in decisions if d.own == own and d.position == position]
            if cell:
                rows.append(_error_rates(cell, own, position))
    return rows


def _error_rates(decisions: Sequence[Decision], own: bool, position: int) -> Row:
    row: Row = {
        "prefix": PREFIXES[own],
        "position": position,
        "decisions": len(decisions),
        "wrong": float(np.mean([d.wrong for d in decisions])),
    }
    for name, clean in (("after_clean", True), ("after_error", False)) if own else ():
        wrong = [d.wrong for d in decisions if d.clean == clean]
        row[f"{name}_count"] = len(wrong)
        if wrong:
            row[name] = float(np.mean(wrong))
    return row


# --- claims ---------------------------------------------------------------------------------------


def error_rate(table: Table, prefix: str) -> float:
    """Return errors per decision over all positions; NaN for a seed that has none."""
    rows = table.where(prefix=prefix)
    if not len(rows):
        return float("nan")
    return float(np.average(rows.column("wrong"), weights=rows.column("decisions")))


def _excess_errors(first: Table, second: Table) -> float:
    """Return errors per decision of one set of rows less those of another, at the same position.

    Own replies and the expert's, and the replies of two policies, are not equally long, and later
    decisions are harder. Positions that only one has do not count.
    """
    shared = [k for k in first.values("position") if len(second.where(position=k))]

    def column(rows: Table, name: str) -> np.ndarray:
        return np.array([rows.where(position=k).column(name)[0] for k in shared])

    gap_K = column(first, "wrong") - column(second, "wrong")
    return _at_equal_position(gap_K, column(first, "decisions"), column(second, "decisions"))


def own_over_expert(table: Table) -> float:
    """Return errors after own words less errors after the expert's."""
    return _excess_errors(table.where(prefix="own"), table.where(prefix="expert"))


def contagion(table: Table) -> float:
    """Return P(wrong | an error before) − P(wrong | none) on own prefixes, at the same position."""
    own = table.where(prefix="own").having("after_error", "after_clean")
    gap_K = own.column("after_error") - own.column("after_clean")
    counts = own.column("after_error_count"), own.column("after_clean_count")
    return _at_equal_position(gap_K, *counts)


def _at_equal_position(gap_K: np.ndarray, first_K: np.ndarray, second_K: np.ndarray) -> float:
    """Average a difference at each position, weighted by n₁ n₀ / (n₁ + n₀) as Mantel and Haenszel.

    So late positions do not decide by being late. NaN without positions.
    """
    if not gap_K.size:
        return float("nan")
    return float(np.average(gap_K, weights=first_K * second_K / (first_K + second_K)))


def own_words_are_worse(table: Table) -> Finding:
    """Judge whether SFT errs more often after its own words."""
    gap = t_interval(table.where(policy="sft").per_seed(own_over_expert))
    text = "own − expert, errors per decision at the same position; over all: "
    return interval_finding(gap.low > 0, gap, text + _rates(table))


def errors_are_contagious(table: Table) -> Finding:
    """Judge whether SFT's errors lead to errors."""
    gaps = {name: t_interval(rows.per_seed(contagion)) for name, rows in table.by("policy")}
    text = ", ".join(
        f"{name} {gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}]" for name, gap in gaps.items()
    )
    return interval_finding(gaps["sft"].low > 0, gaps["sft"], text)


def rl_helps(table: Table, prefix: str) -> Finding:
    """Judge SFT's errors less PPO's."""

    def gain(rows: Table) -> float:
        sft, ppo = (rows.where(policy=name, prefix=prefix) for name in ("sft", "ppo"))
        return _excess_errors(sft, ppo)

    gains = t_interval([gap for gap in table.per_seed(gain) if np.isfinite(gap)])
    text = "at the same position; over all: " + _rates(table)
    return interval_finding(gains.low > 0, gains, text)


def gap_narrows(table: Table) -> Finding:
    """Judge whether RL, which trains on own prefixes, brings the two rates closer together."""
    gaps = {name: rows.each_seed(own_over_expert) for name, rows in table.by("policy")}
    narrowing = t_interval(paired(gaps["sft"], gaps["ppo"]))
    text = ", ".join(f"{name} {mean_of(gap):.3f}" for name, gap in gaps.items())
    return interval_finding(narrowing.low > 0, narrowing, f"at the same position: {text}")


def _rates(table: Table) -> str:
    texts = []
    for name, rows in table.by("policy"):
        expert, own = (
            rows.per_seed(partial(error_rate, prefix=prefix)).mean() for prefix in ("expert", "own")
        )
        texts.append(f"{name}: expert {expert:.3f}, own {own:.3f}")
    return "; ".join(texts)


CRITERIA = (
    Criterion(
        "at equal position SFT errs more often after its own words than after the expert's "
        "(interval above 0)",
        own_words_are_worse,
    ),
    Criterion(
        "on own prefixes SFT errs more often after an error, at equal position",
        errors_are_contagious,
    ),
    *(
        Criterion(
            f"PPO errs less often than SFT after {whose} words, at equal position",
            partial(rl_helps, prefix=prefix),
        )
        for prefix, whose in (("own", "its own"), ("expert", "the expert's"))
    ),
    Criterion(
        "PPO's rates on own and expert's prefixes are closer together than SFT's", gap_narrows
    ),
)


# --- figure ---------------------------------------------------------------------------------------


def _draw_after(axes: Axes, own: Table, column: str, style: str, name: str) -> None:
    points = []
    for position, part in own.by("position"):
        rows = part.having(column)
        if rows.column(f"{column}_count").sum() >= FEWEST:
            points.append((position, rows.column(column).mean()))
    if points:
        label = f"{name}, {column.replace('_', ' ')}"
        axes.plot(*np.array(points).T, style, color=COLOURS[name], lw=2, label=label)


def figure(table: Table) -> Figure:
    """Draw errors by position on the left, by what went before on the right."""
    chart, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for name, rows in table.by("policy"):
        for prefix, style, words in (("own", "-", "own words"), ("expert", "--", "expert's words")):
            look: Options = {"colour": COLOURS[name], "style": style, "label": f"{name}, {words}"}
            draw_seeds(left, rows.where(prefix=prefix), "position", "wrong", **look)
        own = rows.where(prefix="own")
        _draw_after(right, own, "after_error", "-", name)
        _draw_after(right, own, "after_clean", ":", name)
    left.set(ylabel="share of wrong decisions", title="after whose words", ylim=(0, 1))
    right.set(title="own words: after an error, or none")
    for axes in (left, right):
        axes.set_xlabel("position: sentences before")
        axes.legend(fontsize=7)
    return chart
