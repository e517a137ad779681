"""Train PPO against a reward model until it is too much.

    python -m experiments.ablations.reproduce gao_rl --seeds=3

Gao et al. 2022, Fig. 1b, 8, 9, and Stiennon et al. 2020, Fig. 5. PPO without a KL penalty against
the largest and a small reward model, and with penalties against the largest. Gold, proxy, KL and
held-out labelers' preference over the supervised policy at every fourth update; best of n by the
same reward model.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations import gao_best_of_n
from experiments.ablations.fits import OveroptimisationFit, fit_rl, spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    draw_seeds,
    interval_finding,
    paired,
)
from experiments.ablations.measures import evaluate_checkpoints, policy_eval_settings
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
    """Run PPO six times a seed, and best of n."""
    paper = "Gao et al. 2022, Fig. 1b, 8, 9; Stiennon et al. 2020, Fig. 5"
    notes = "Thin: seeds. Right: a line for every seed."
    ablation = Ablation(paper, seeds, CRITERIA, figure, notes)
    for seed in seeds:
        small = reward_model(size, seed, SMALL, gao_best_of_n.rankings(size)[-2])
        ablation.add_runs(*base_runs(size, seed, SMALL), small)
        sft, large = base(seed, "sft"), base(seed, "reward")
        _add_ppo(ablation, size, seed, SMALL, small.folder, 0.0)
        for kl_coef in KL_COEFS:
            _add_ppo(ablation, size, seed, LARGE, large, kl_coef)
        point: Row = {"seed": seed, "method": "bon", "trunk": LARGE}
        settings = gao_best_of_n.pool_settings(size)
        arguments = {"settings": settings, "seed": seed, "folder": large}
        name = f"seed{seed}-bon"
        ablation.add_measurement(name, point, (large, sft), gao_best_of_n.curve, **arguments)
    return ablation


def _add_ppo(
    ablation: Ablation, size: str, seed: int, trunk: str, reward_folder: str, kl_coef: float
) -> None:
    folder = f"gao_rl/seed{seed}/{trunk}-kl{kl_coef}"
    run = ppo_run(size, seed, folder, reward_folder=reward_folder)
    updates = pick(size, tiny=4, default=60, large=300)
    run.config.ppo.kl_coef = kl_coef
    run.config.ppo.total_episodes = updates * run.config.ppo.batch_size
    steps = keep_checkpoints(run, pick(size, tiny=2, default=4, large=20))
    ablation.add_runs(run)
    ablation.add_measurement(
        f"seed{seed}-{trunk}-kl{kl_coef}",
        {"seed": seed, "method": "rl", "trunk": trunk, "kl_coef": kl_coef},
        (folder, reward_folder, base(seed, "sft")),
        evaluate_checkpoints,
        settings=policy_eval_settings(size, labelers_per_prompt=2),
        seed=seed,
        folder=folder,
        reward_folder=reward_folder,
        steps=steps,
        start=True,
    )


# --- claims ---------------------------------------------------------------------------------------


def _rl(table: Table, trunk: str = LARGE, kl_coef: float = 0.0) -> Table:
    rows = table.where(method="rl", trunk=trunk, kl_coef=kl_coef).having("gold", "distance")
    if not len(rows):
        raise ValueError(f"no point of reward model {trunk}, β = {kl_coef}")
    return rows


def _rl_and_best_of_n(table: Table) -> list[tuple[Table, Table]]:
    """Return the rows of RL without a penalty and of best of n, for every seed."""
    return [
        (_rl(table).where(seed=seed), table.where(method="bon", seed=seed))
        for seed in table.values("seed")
    ]


def rises_and_falls(table: Table) -> Finding:
    """Judge whether gold rises to a peak and falls from it while the proxy rises."""
    runs = _rl(table)
    gains = runs.per_seed(lambda run: run.column("gold").max() - run.column("gold")[0])
    drops = runs.per_seed(lambda run: run.column("gold").max() - run.column("gold")[-1])
    rho = runs.per_seed(lambda run: spearman(run.column("update"), run.column("proxy")))
    drop = t_interval(drops)
    passed = drop.mean >= 0.5 and rho.min() > 0.9 and bool(gains.min() > 0)
    text = (
        f"Spearman(update, proxy) at least {rho.min():.2f}; "
        f"the peak is at least {gains.min():.2f} SD above the start"
    )
    return interval_finding(passed, drop, text)


def logarithm_fits(table: Table) -> Finding:
    """Judge the paper's form on d ≥ 0.5, where gold moves enough to tell."""
    r_squared, text = [], []
    for trunk in (LARGE, SMALL):
        runs = [run for _, run in _rl(table, trunk).by("seed") if np.ptp(run.column("gold")) >= 1]
        fits = [fit for fit in map(_fit, runs) if fit]
        r_squared += [fit.r_squared for fit in fits]
        for name in ("alpha", "beta") if fits else ():
            interval = t_interval([getattr(fit, name) for fit in fits])
            ends = f"[{interval.low:.2f}, {interval.high:.2f}]"
            text.append(f"{name} of {trunk} {interval.mean:.2f} {ends}")
    if not r_squared:
        raise ValueError("gold moves by less than 1 SD in every run")
    detail = f"{len(r_squared)} runs with a range of 1 SD; {', '.join(text)}"
    return Finding(min(r_squared) >= 0.9, min(r_squared), detail)


def _fit(run: Table) -> OveroptimisationFit | None:
    """Fit d (α − β log d) to a run's checkpoints from d = 0.5 on; None for fewer than four."""
    if np.sum(run.column("distance") >= 0.5) < 4:
        return None
    return fit_rl(run.column("distance"), run.column("gold"), min_distance=0.5)


def better_reward_model(table: Table) -> Finding:
    """Judge whether the peak against the larger model, of four times the rankings, is higher."""
    large, small = (
        _rl(table, trunk).each_seed(lambda run: run.column("gold").max())
        for trunk in (LARGE, SMALL)
    )
    gap = t_interval(paired(large, small))
    return interval_finding(gap.mean > 0, gap)


def _interpolated(run: Table, x: str, at: np.ndarray) -> np.ndarray:
    """Return gold where a column has these values."""
    order = np.argsort(run.column(x))
    return np.interp(at, run.column(x)[order], run.column("gold")[order])


def same_frontier(table: Table) -> Finding:
    """Judge gold against d with and without penalties, up to the d that all seeds of both reach."""
    gaps = {}
    for kl_coef in KL_COEFS[1:]:
        pairs = [
            [_rl(table, kl_coef=coef).where(seed=seed) for coef in (0.0, kl_coef)]
            for seed in table.values("seed")
        ]
        reach = min(float(run.column("distance").max()) for pair in pairs for run in pair)
        grid = np.linspace(0.3, max(reach, 0.3), 30)
        gap_SN = [
            _interpolated(penalised, "distance", grid) - _interpolated(free, "distance", grid)
            for free, penalised in pairs
        ]
        gaps[kl_coef] = float(np.abs(np.mean(gap_SN, axis=0)).max())
    largest = max(gaps.values())
    return Finding(largest <= 0.15, largest, str({k: round(v, 2) for k, v in gaps.items()}))


def penalty_stops_early(table: Table) -> Finding:
    """Judge whether more penalty ends at less KL."""
    ends = [
        float(_rl(table, kl_coef=coef).per_seed(lambda run: run.column("kl")[-1]).mean())
        for coef in KL_COEFS
    ]
    # Spearman = −1, whose sum of floats may miss it by a last bit.
    falls = bool(np.all(np.diff(ends) < 0))
    text = f"KL at the end, nats: {', '.join(f'{kl:.2f}' for kl in ends)}"
    return Finding(falls, spearman(KL_COEFS, ends), text)


def _first_kl(run: Table, gold: float) -> float:
    """Return the KL at which a curve first reaches a gold gain, interpolated."""
    order = np.argsort(run.column("distance"))
    distance = run.column("distance")[order]
    highest = np.maximum.accumulate(run.column("gold")[order])
    return float(np.interp(gold, highest, distance) ** 2)


def less_efficient_than_best_of_n(table: Table) -> Finding:
    """Judge the KL of RL over that of best of n, at 80 % of the lower peak."""
    ratios = []
    for rl, bon in _rl_and_best_of_n(table):
        gold = 0.8 * min(rl.column("gold").max(), bon.column("gold").max())
        ratios.append(np.log(_first_kl(rl, gold) / _first_kl(bon, gold)))
    log_ratio = t_interval(ratios)
    mean, low, high = map(float, np.exp(log_ratio))
    return Finding(log_ratio.low > 0, mean, "geometric mean of the ratio over seeds", low, high)


def alike_in_proxy(table: Table) -> Finding:
    """Judge gold as a function of the proxy, over the proxies that RL and best of n both reach."""
    gaps = []
    for rl, bon in _rl_and_best_of_n(table):
        grid = np.linspace(0, min(rl.column("proxy").max(), bon.column("proxy").max()), 30)
        gold_bon = np.interp(grid, bon.column("proxy"), bon.column("gold"))
        gaps.append(np.abs(_interpolated(rl, "proxy", grid) - gold_bon).max())
    gap = t_interval(gaps)
    return interval_finding(gap.mean < 0.2, gap, "largest gap, SD of SFT")


def preference_falls(table: Table, trunk: str) -> Finding:
    """Judge whether labelers prefer some checkpoint to SFT, and SFT to the last one.

    A checkpoint is preferred where its interval over prompts is above one half: the highest of many
    noisy numbers would be, whatever they are.
    """
    runs = _rl(table, trunk).having("preferred", "preferred_low", "preferred_high")
    best = runs.per_seed(lambda run: float(run.column("preferred_low")[1:].max()))
    last = runs.per_seed(lambda run: float(run.column("preferred_high")[-1]))
    end = t_interval(runs.per_seed(lambda run: float(run.column("preferred")[-1])))
    highest = ", ".join(f"{run.column('preferred').max():.3f}" for _, run in runs.by("seed"))
    lows = ", ".join(f"{low:.3f}" for low in best)
    text = f"the value is the end's; highest {highest}, with intervals from {lows}"
    return interval_finding(bool((best > 0.5).all() and (last < 0.5).all()), end, text)


CRITERIA = (
    Criterion(
        "β = 0: the proxy rises (Spearman > 0.9) while gold rises to a peak and falls ≥ 0.5 SD "
        "from it",
        rises_and_falls,
    ),
    Criterion(
        "d (α − β log d) fits gold on d ≥ 0.5 with R² ≥ 0.9 wherever gold ranges over ≥ 1 SD",
        logarithm_fits,
    ),
    Criterion(
        "the peak against the larger reward model, of four times the rankings, is higher (SD)",
        better_reward_model,
    ),
    Criterion("gold against √KL with a penalty is within 0.15 SD of that without", same_frontier),
    Criterion("a larger β ends at a smaller KL (Spearman = −1)", penalty_stops_early),
    Criterion(
        "for the same gold RL needs more KL than best of n (95 % interval of the ratio above 1)",
        less_efficient_than_best_of_n,
    ),
    Criterion(
        "as functions of the proxy, gold of RL and of best of n differ by < 0.2 SD", alike_in_proxy
    ),
    *(
        Criterion(
            f"{name} reward model: in every seed held-out labelers prefer some checkpoint to SFT, "
            "and SFT to the last one (95 % intervals)",
            partial(preference_falls, trunk=trunk),
            "Stiennon et al. 2020, Fig. 5",
        )
        for name, trunk in (("large", LARGE), ("small", SMALL))
    ),
)


def _draw_unpenalised(gold_axes: Axes, preference_axes: Axes, table: Table) -> None:
    for trunk, colour in ((LARGE, "#2a3f8f"), (SMALL, "#d9822b")):
        rows = table.where(method="rl", trunk=trunk, kl_coef=0.0)
        label = f"reward model {trunk}"
        for _, run in rows.by("seed"):
            curve = run.column("distance"), run.column("proxy")
            gold_axes.plot(*curve, "--", color=colour, lw=0.8, alpha=0.6)
        look: Options = {"colour": colour, "mean": False}
        draw_seeds(gold_axes, rows, "distance", "gold", label=f"gold, {label}", **look)
        for _, run in rows.having("gold", "distance").by("seed"):
            d = np.linspace(0.5, max(0.5, run.column("distance").max()), 60)
            if fit := _fit(run):
                gold_axes.plot(d, d * (fit.alpha - fit.beta * np.log(d)), ":", color=colour, lw=1)
        draw_seeds(preference_axes, rows, "distance", "preferred", label=label, **look)
    look = {"colour": "#3a9a5b", "label": "best of n, m", "mean": False}
    draw_seeds(gold_axes, table.where(method="bon"), "distance", "gold", **look)
    preference_axes.axhline(0.5, color="#bbb", lw=0.8, zorder=0)


def figure(table: Table) -> Figure:
    """Draw gold and proxy without penalty, gold with penalties, and preference."""
    chart, panels = plt.subplots(1, 3, figsize=(12, 3.8))
    _draw_unpenalised(panels[0], panels[2], table)
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(KL_COEFS)))
    for kl_coef, colour in zip(KL_COEFS, colours, strict=True):
        rows = table.where(method="rl", trunk=LARGE, kl_coef=kl_coef)
        look: Options = {"colour": colour, "label": f"β = {kl_coef}", "mean": False}
        draw_seeds(panels[1], rows, "distance", "gold", **look)
    labels = {
        "β = 0: gold (solid), fit (dotted), proxy (dashed)": "SD of SFT",
        "with a KL penalty": "gold, SD of SFT",
        "preference of held-out labelers": "preferred to SFT",
    }
    for axes, (title, label) in zip(panels, labels.items(), strict=True):
        # One entry of the legend for all seeds of a line.
        handles: dict[str, object] = {}
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name.partition(", seed")[0], handle)
        axes.legend(list(handles.values()), list(handles), fontsize=7)
        axes.set(title=title, xlabel="d = √KL, nats$^{1/2}$", ylabel=label)
    return chart
