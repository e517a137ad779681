"""Gao et al. 2022, Fig. 1b, 8, 9, and Stiennon et al. 2020, Fig. 5: PPO against a reward model, until it is too much.

    python -m experiments.ablations.reproduce gao_rl --seeds=3

PPO without a KL penalty against the largest and a small reward model, and with penalties against the largest. Gold, proxy,
KL and held-out labelers' preference over the supervised policy at every fourth update; best of n by the same reward model.
"""

from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations import gao_best_of_n
from experiments.ablations.fits import OveroptimisationFit, fit_rl, spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    draw_seeds,
    paired,
)
from experiments.ablations.measures import Panel, examine_steps
from experiments.ablations.shared import (
    base,
    base_runs,
    keep_checkpoints,
    pick,
    ppo_run,
    reward_model,
)

KL_COEFS = (0.0, 0.02, 0.05, 0.1, 0.2)
LARGE, SMALL = "m", "xs"


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Six PPO runs a seed, and best of n."""
    panel = Panel(
        size,
        pick(size, tiny=8, default=256, large=1024),
        pick(size, tiny=2, default=4, large=4),
        2,
        8,
    )
    pool = Panel(
        size,
        pick(size, tiny=4, default=64, large=256),
        pick(size, tiny=16, default=1024, large=4096),
        1,
        1,
    )
    updates = pick(size, tiny=4, default=60, large=300)
    runs: dict[str, GridRun] = {}
    measurements = []
    for seed in seeds:
        small = reward_model(size, seed, SMALL, gao_best_of_n.rankings(size)[-2])
        rewards = {LARGE: base(seed, "reward"), SMALL: small.folder}
        runs |= {run.folder: run for run in [*base_runs(size, seed, SMALL), small]}
        for trunk, kl_coef in [(SMALL, 0.0), *((LARGE, coef) for coef in KL_COEFS)]:
            reward = rewards[trunk]
            run = ppo_run(
                size, seed, f"gao_rl/seed{seed}/{trunk}-kl{kl_coef}", reward_folder=reward
            )
            run.config.ppo.kl_coef = kl_coef
            run.config.ppo.total_episodes = updates * run.config.ppo.batch_size
            steps = keep_checkpoints(run, pick(size, tiny=2, default=4, large=20))
            runs[run.folder] = run
            point: Row = {"seed": seed, "method": "rl", "trunk": trunk, "kl_coef": kl_coef}
            how: dict[str, Any] = {
                "folder": run.folder,
                "reward_folder": reward,
                "steps": steps,
                "start": True,
            }
            measurements.append(
                Measurement(
                    f"seed{seed}-{trunk}-kl{kl_coef}",
                    point,
                    (run.folder, reward, base(seed, "sft")),
                    {**panel.settings, "steps": steps},
                    partial(examine_steps, panel=panel, seed=seed, **how),
                )
            )
        measurements.append(
            Measurement(
                f"seed{seed}-bon",
                {"seed": seed, "method": "bon", "trunk": LARGE},
                (base(seed, "reward"), base(seed, "sft")),
                pool.settings,
                partial(gao_best_of_n.curve, panel=pool, seed=seed, folder=base(seed, "reward")),
            )
        )
    return Ablation(
        "Gao et al. 2022, Fig. 1b, 8, 9; Stiennon et al. 2020, Fig. 5",
        seeds,
        list(runs.values()),
        measurements,
        CRITERIA,
        figure,
        "Thin: seeds. Right: a line for every seed.",
    )


# --- claims -----------------------------------------------------------------------------------------------------------


def _rl(table: Table, trunk: str = LARGE, kl_coef: float = 0.0) -> Table:
    found = table.where(method="rl", trunk=trunk, kl_coef=kl_coef).having("gold", "distance")
    if not len(found):
        raise ValueError(f"no point of reward model {trunk}, β = {kl_coef}")
    return found


def rises_and_falls(table: Table) -> Finding:
    """Without a penalty: gold rises to a peak and falls from it while the proxy rises."""
    gains = _rl(table).per_seed(lambda one: float(one.column("gold").max() - one.column("gold")[0]))
    drops = _rl(table).per_seed(
        lambda one: float(one.column("gold").max() - one.column("gold")[-1])
    )
    rho = _rl(table).per_seed(lambda one: spearman(one.column("update"), one.column("proxy")))
    found = t_interval(drops)
    text = f"Spearman(update, proxy) at least {rho.min():.2f}; the peak is at least {gains.min():.2f} SD above the start"
    return Finding(found.mean >= 0.5 and rho.min() > 0.9 and bool(gains.min() > 0), *found, text)


def fits(table: Table) -> Finding:
    """The paper's form on d ≥ 0.5, where gold moves enough to tell."""
    r_squared, text = [], []
    for trunk in (LARGE, SMALL):
        found = [
            fit
            for _, one in _rl(table, trunk).by("seed")
            if (fit := _fit(one)) and np.ptp(one.column("gold")) >= 1
        ]
        r_squared += [fit.r_squared for fit in found]
        for name in ("alpha", "beta") if found else ():
            mean, low, high = t_interval([getattr(fit, name) for fit in found])
            text.append(f"{name} of {trunk} {mean:.2f} [{low:.2f}, {high:.2f}]")
    if not r_squared:
        raise ValueError("gold moves by less than 1 SD in every run")
    return Finding(
        min(r_squared) >= 0.9,
        min(r_squared),
        None,
        None,
        f"{len(r_squared)} runs with a range of 1 SD; {', '.join(text)}",
    )


def _fit(one: Table) -> OveroptimisationFit | None:
    """d (α − β log d) through one run's checkpoints from d = 0.5 on; None for fewer than four."""
    if np.sum(one.column("distance") >= 0.5) < 4:
        return None
    return fit_rl(one.column("distance"), one.column("gold"), min_distance=0.5)


def better_reward_model(table: Table) -> Finding:
    """The peak against the reward model of more parameters and four times the rankings is higher."""
    peaks = [
        _rl(table, trunk).each_seed(lambda one: one.column("gold").max())
        for trunk in (LARGE, SMALL)
    ]
    found = t_interval(paired(*peaks))
    return Finding(found.mean > 0, *found, "")


def _gold_at(one: Table, distance: np.ndarray) -> np.ndarray:
    order = np.argsort(one.column("distance"))
    return np.interp(distance, one.column("distance")[order], one.column("gold")[order])


def frontier(table: Table) -> Finding:
    """Gold against d with and without penalties, up to the d that all seeds of both reach."""
    gaps = {}
    for kl_coef in KL_COEFS[1:]:
        pairs = [
            [_rl(table, kl_coef=coef).where(seed=seed) for coef in (0.0, kl_coef)]
            for seed in table.values("seed")
        ]
        reach = min(float(one.column("distance").max()) for pair in pairs for one in pair)
        grid = np.linspace(0.3, max(reach, 0.3), 30)
        gap = np.mean(
            [_gold_at(with_it, grid) - _gold_at(without, grid) for without, with_it in pairs],
            axis=0,
        )
        gaps[kl_coef] = float(np.abs(gap).max())
    return Finding(
        max(gaps.values()) <= 0.15,
        max(gaps.values()),
        None,
        None,
        str({k: round(v, 2) for k, v in gaps.items()}),
    )


def penalty_stops_early(table: Table) -> Finding:
    """More penalty, less KL at the end."""
    ends = [
        float(_rl(table, kl_coef=coef).per_seed(lambda one: one.column("kl")[-1]).mean())
        for coef in KL_COEFS
    ]
    rho = spearman(KL_COEFS, ends)
    falls = bool(
        np.all(np.diff(ends) < 0)
    )  # Spearman = −1, whose sum of floats may miss it by a last bit
    return Finding(
        falls, rho, None, None, f"KL at the end, nats: {', '.join(f'{kl:.2f}' for kl in ends)}"
    )


def _first_kl(one: Table, gold: float) -> float:
    """KL at which a curve first reaches a gold gain, interpolated."""
    order = np.argsort(one.column("distance"))
    d, reached = one.column("distance")[order], np.maximum.accumulate(one.column("gold")[order])
    return float(np.interp(gold, reached, d) ** 2)


def less_efficient_than_best_of_n(table: Table) -> Finding:
    """KL of RL over KL of best of n at 80 % of the lower peak."""
    ratios = []
    for seed in table.values("seed"):
        rl, bon = _rl(table).where(seed=seed), table.where(method="bon", seed=seed)
        gold = 0.8 * min(rl.column("gold").max(), bon.column("gold").max())
        ratios.append(np.log(_first_kl(rl, gold) / _first_kl(bon, gold)))
    found = t_interval(ratios)
    mean, low, high = np.exp(found)
    return Finding(
        found.low > 0,
        float(mean),
        float(low),
        float(high),
        "geometric mean of the ratio over seeds",
    )


def alike_in_proxy(table: Table) -> Finding:
    """Gold as a function of the proxy: RL against best of n, over the proxies that both reach."""
    gaps = []
    for seed in table.values("seed"):
        rl, bon = _rl(table).where(seed=seed), table.where(method="bon", seed=seed)
        grid = np.linspace(0, min(rl.column("proxy").max(), bon.column("proxy").max()), 30)
        order = np.argsort(rl.column("proxy"))
        gold = np.interp(grid, rl.column("proxy")[order], rl.column("gold")[order])
        gaps.append(np.abs(gold - np.interp(grid, bon.column("proxy"), bon.column("gold"))).max())
    found = t_interval(gaps)
    return Finding(found.mean < 0.2, *found, "largest gap, SD of SFT")


def preference_falls(table: Table, trunk: str) -> Finding:
    """Held-out labelers prefer some checkpoint to the supervised policy, and the supervised policy to the last one.

    A checkpoint is preferred where its interval over prompts is above one half: the highest of many noisy numbers would be,
    whatever they are.
    """
    runs = _rl(table, trunk).having("preferred", "preferred_low", "preferred_high")
    best = runs.per_seed(lambda one: float(one.column("preferred_low")[1:].max()))
    last = runs.per_seed(lambda one: float(one.column("preferred_high")[-1]))
    end = t_interval(runs.per_seed(lambda one: float(one.column("preferred")[-1])))
    text = ", ".join(f"{one.column('preferred').max():.3f}" for _, one in runs.by("seed"))
    text = f"the value is the end's; highest {text}, with intervals from {', '.join(f'{x:.3f}' for x in best)}"
    return Finding(bool((best > 0.5).all() and (last < 0.5).all()), *end, text)


CRITERIA = (
    Criterion(
        "E3.gold",
        "β = 0: the proxy rises (Spearman > 0.9) while gold rises to a peak and falls ≥ 0.5 SD from it",
        rises_and_falls,
    ),
    Criterion(
        "E3.fit",
        "d (α − β log d) fits gold on d ≥ 0.5 with R² ≥ 0.9 wherever gold ranges over ≥ 1 SD",
        fits,
    ),
    Criterion(
        "E3.better",
        "the peak against the larger reward model, of four times the rankings, is higher (SD)",
        better_reward_model,
    ),
    Criterion(
        "E4.frontier", "gold against √KL with a penalty is within 0.15 SD of that without", frontier
    ),
    Criterion("E4.kl", "a larger β ends at a smaller KL (Spearman = −1)", penalty_stops_early),
    Criterion(
        "E5.kl",
        "for the same gold RL needs more KL than best of n (95 % interval of the ratio above 1)",
        less_efficient_than_best_of_n,
    ),
    Criterion(
        "E5.proxy",
        "as functions of the proxy, gold of RL and of best of n differ by < 0.2 SD",
        alike_in_proxy,
    ),
    *(
        Criterion(
            f"E14.{name}",
            f"{name} reward model: in every seed held-out labelers prefer some checkpoint to SFT, and "
            "SFT to the last one (95 % intervals)",
            partial(preference_falls, trunk=trunk),
        )
        for name, trunk in (("large", LARGE), ("small", SMALL))
    ),
)


def figure(table: Table) -> Figure:
    """Gold and proxy without penalty; gold with penalties; preference."""
    made, axes = plt.subplots(1, 3, figsize=(12, 3.8))
    for trunk, colour in ((LARGE, "#2a3f8f"), (SMALL, "#d9822b")):
        rows = table.where(method="rl", trunk=trunk, kl_coef=0.0)
        for _, one in rows.by("seed"):
            axes[0].plot(
                one.column("distance"), one.column("proxy"), "--", color=colour, lw=0.8, alpha=0.6
            )
        draw_seeds(
            axes[0],
            rows,
            "distance",
            "gold",
            colour=colour,
            label=f"gold, reward model {trunk}",
            mean=False,
        )
        for _, one in rows.having("gold", "distance").by("seed"):
            d = np.linspace(0.5, max(0.5, one.column("distance").max()), 60)
            if fit := _fit(one):
                axes[0].plot(d, d * (fit.alpha - fit.beta * np.log(d)), ":", color=colour, lw=1)
        draw_seeds(
            axes[2],
            rows,
            "distance",
            "preferred",
            colour=colour,
            label=f"reward model {trunk}",
            mean=False,
        )
    draw_seeds(
        axes[0],
        table.where(method="bon"),
        "distance",
        "gold",
        colour="#3a9a5b",
        label="best of n, m",
        mean=False,
    )
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(KL_COEFS)))
    for kl_coef, colour in zip(KL_COEFS, colours, strict=True):
        rows = table.where(method="rl", trunk=LARGE, kl_coef=kl_coef)
        draw_seeds(
            axes[1], rows, "distance", "gold", colour=colour, label=f"β = {kl_coef}", mean=False
        )
    titles = (
        "β = 0: gold (solid), fit (dotted), proxy (dashed)",
        "with a KL penalty",
        "preference of held-out labelers",
    )
    labels = ("SD of SFT", "gold, SD of SFT", "preferred to SFT")
    for one, title, label in zip(axes, titles, labels, strict=True):
        handles, names = one.get_legend_handles_labels()
        first = {
            name.partition(", seed")[0]: handle
            for name, handle in reversed(list(zip(names, handles, strict=True)))
        }
        one.legend(list(first.values())[::-1], list(first)[::-1], frameon=False, fontsize=7)
        one.set(title=title, xlabel="d = √KL, nats$^{1/2}$", ylabel=label)
        one.spines[["top", "right"]].set_visible(False)
    axes[2].axhline(0.5, color="#bbb", lw=0.8, zorder=0)
    made.tight_layout()
    return made
