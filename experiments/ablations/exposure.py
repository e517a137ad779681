"""Ross & Bagnell's question in language (E24): errors after the expert's words and after one's own, before and after RL.

    python -m experiments.ablations.reproduce exposure --seeds=3

Lists of three to five facts about every animal. What a decision is and when it is wrong is defined in
experiments/ablations/exposure_bias.py. The supervised policy was trained on prefixes of demonstrations only, the PPO policies on their
own replies. Imitation's theory says: errors on own prefixes exceed those on the expert's, and one error leads to the next.
"""

from functools import partial

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.exposure_bias import Decision, decisions, requests
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
from experiments.ablations.shared import KL_COEF, PTX_COEF, base, base_runs, pick, policy
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_language_model, load_tokenizer_of
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.menagerie.world import make_world

FEWEST = 50  # decisions of all seeds behind a point of the right panel
POLICIES = ("sft", "ppo", "ppo_ptx")
COLOURS = dict(zip(POLICIES, ("#64748b", "#2563eb", "#d9660a"), strict=True))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Three policies of every seed."""
    samples = pick(size, tiny=2, default=16, large=16)
    numbers = pick(size, tiny=(2,), default=(3, 4, 5), large=(3, 4, 5))
    runs: dict[str, GridRun] = {}
    measurements = []
    for seed in seeds:
        runs |= {run.folder: run for run in base_runs(size, seed)}
        folders = {"sft": base(seed, "sft")}
        for name, ptx_coef in {"ppo": 0.0, "ppo_ptx": PTX_COEF}.items():
            run = policy(size, seed, kl_coef=KL_COEF, ptx_coef=ptx_coef)
            runs[run.folder], folders[name] = run, run.folder
        how = {"samples": samples, "numbers": numbers}
        measurements += [
            Measurement(
                f"seed{seed}-{name}",
                {"seed": seed, "policy": name},
                (folder,),
                how,
                partial(by_position, folder=folder, size=size, seed=seed, **how),
            )
            for name, folder in folders.items()
        ]
    return Ablation(
        "Ross & Bagnell 2010, in language",
        seeds,
        list(runs.values()),
        measurements,
        CRITERIA,
        figure,
        "Dashed: after the expert's words. Solid: after the model's own. Right: all seeds together.",
    )


def by_position(
    bench: Bench, *, folder: str, size: str, seed: int, samples: int, numbers: tuple[int, ...]
) -> list[Row]:
    """A row for every position and kind of prefix; `after_error` and `after_clean` are filled for own prefixes only."""
    one = find_checkpoint(bench.workdir, str(bench.folder(folder)))
    policy, world = load_language_model(one), make_world(size)
    found = decisions(
        world,
        requests(world, numbers),
        policy.model,
        policy.params,
        load_tokenizer_of(one),
        jax.random.key(seed),
        spec=PLAIN,
        num_samples=samples,
        batch_size=256,
    )
    return [
        row
        for own in (False, True)
        for k in range(max(d.position for d in found) + 1)
        for row in _row([d for d in found if (d.own, d.position) == (own, k)], own, k)
    ]


def _row(found: list[Decision], own: bool, position: int) -> list[Row]:
    if not found:
        return []
    row: Row = {
        "prefix": "own" if own else "expert",
        "position": position,
        "decisions": len(found),
        "wrong": float(np.mean([d.wrong for d in found])),
    }
    for name, clean in (("after_clean", True), ("after_error", False)) if own else ():
        some = [d.wrong for d in found if d.clean == clean]
        row |= {f"{name}_count": len(some)} | ({name: float(np.mean(some))} if some else {})
    return [row]


def rate(table: Table, prefix: str) -> float:
    """Errors per decision over all positions; NaN for a seed that has none."""
    part = table.where(prefix=prefix)
    if not len(part):
        return float("nan")
    return float(np.average(part.column("wrong"), weights=part.column("decisions")))


def more_wrong(one: Table, other: Table) -> float:
    """Errors per decision of one set of rows less those of another, at the same position.

    Own replies and the expert's, and the replies of two policies, are not equally long, and later decisions are harder.
    Positions that only one has do not count.
    """
    both = [position for position in one.values("position") if len(other.where(position=position))]
    wrong, decisions = (
        [
            np.array([rows.where(position=position).column(name)[0] for position in both])
            for rows in (one, other)
        ]
        for name in ("wrong", "decisions")
    )
    return _at_equal_position(wrong[0] - wrong[1], *decisions)


def own_over_expert(table: Table) -> float:
    """Errors after own words less errors after the expert's."""
    return more_wrong(table.where(prefix="own"), table.where(prefix="expert"))


def contagion(table: Table) -> float:
    """P(wrong | an error before) − P(wrong | none before) on own prefixes, at the same position."""
    own = table.where(prefix="own").having("after_error", "after_clean")
    return _at_equal_position(
        own.column("after_error") - own.column("after_clean"),
        own.column("after_error_count"),
        own.column("after_clean_count"),
    )


def _at_equal_position(gap_K: np.ndarray, first_K: np.ndarray, second_K: np.ndarray) -> float:
    """Mean of a difference at each position, weighted by n₁ n₀ / (n₁ + n₀) as Mantel and Haenszel do; NaN without positions.

    So late positions do not decide by being late.
    """
    return (
        float(np.average(gap_K, weights=first_K * second_K / (first_K + second_K)))
        if gap_K.size
        else float("nan")
    )


def own_worse(table: Table) -> Finding:
    """Whether SFT errs more often after its own words."""
    sft = table.where(policy="sft")
    found = t_interval(sft.per_seed(own_over_expert))
    return Finding(
        found.low > 0,
        *found,
        "own − expert, errors per decision at the same position; over all: " + _rates(table),
    )


def contagious(table: Table) -> Finding:
    """Whether SFT's errors lead to errors."""
    found = t_interval(table.where(policy="sft").per_seed(contagion))
    others = {name: t_interval(rows.per_seed(contagion)) for name, rows in table.by("policy")}
    text = ", ".join(
        f"{name} {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for name, one in others.items()
    )
    return Finding(found.low > 0, *found, text)


def rl_helps(table: Table, prefix: str) -> Finding:
    """SFT's errors less PPO's."""

    def gain(one: Table) -> float:
        return more_wrong(
            one.where(policy="sft", prefix=prefix), one.where(policy="ppo", prefix=prefix)
        )

    found = t_interval([gap for gap in table.per_seed(gain) if np.isfinite(gap)])
    return Finding(found.low > 0, *found, "at the same position; over all: " + _rates(table))


def gap_narrows(table: Table) -> Finding:
    """Whether RL, which trains on own prefixes, brings the two rates closer together."""
    gaps = {name: rows.each_seed(own_over_expert) for name, rows in table.by("policy")}
    found = t_interval(paired(gaps["sft"], gaps["ppo"]))
    text = ", ".join(f"{name} {np.mean(list(gap.values())):.3f}" for name, gap in gaps.items())
    return Finding(found.low > 0, *found, f"at the same position: {text}")


def _rates(table: Table) -> str:
    return "; ".join(
        f"{name}: expert {rows.per_seed(lambda one: rate(one, 'expert')).mean():.3f}, "
        f"own {rows.per_seed(lambda one: rate(one, 'own')).mean():.3f}"
        for name, rows in table.by("policy")
    )


CRITERIA = (
    Criterion(
        "E24.own",
        "at equal position SFT errs more often after its own words than after the expert's (interval above 0)",
        own_worse,
    ),
    Criterion(
        "E24.contagion",
        "on own prefixes SFT errs more often after an error, at equal position",
        contagious,
    ),
    Criterion(
        "E24.rl_own",
        "PPO errs less often than SFT after its own words, at equal position",
        partial(rl_helps, prefix="own"),
    ),
    Criterion(
        "E24.rl_expert",
        "PPO errs less often than SFT after the expert's words, at equal position",
        partial(rl_helps, prefix="expert"),
    ),
    Criterion(
        "E24.gap",
        "PPO's rates on own and expert's prefixes are closer together than SFT's",
        gap_narrows,
    ),
)


def figure(table: Table) -> Figure:
    """Errors by position on the left, by what went before on the right."""
    made, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for name, rows in table.by("policy"):
        draw_seeds(
            left,
            rows.where(prefix="own"),
            "position",
            "wrong",
            colour=COLOURS[name],
            label=f"{name}, own words",
        )
        draw_seeds(
            left,
            rows.where(prefix="expert"),
            "position",
            "wrong",
            colour=COLOURS[name],
            style="--",
            label=f"{name}, expert's words",
        )
        for column, style in (("after_error", "-"), ("after_clean", ":")):
            points = [
                (k, part.having(column).column(column).mean())
                for k, part in rows.where(prefix="own").by("position")
                if part.having(column).column(f"{column}_count").sum() >= FEWEST
            ]
            if points:
                right.plot(
                    *np.array(points).T,
                    style,
                    color=COLOURS[name],
                    lw=2,
                    label=f"{name}, {column.replace('_', ' ')}",
                )
    left.set(
        xlabel="position: sentences before",
        ylabel="share of wrong decisions",
        title="after whose words",
        ylim=(0, 1),
    )
    right.set(xlabel="position: sentences before", title="own words: after an error, or none")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
