"""Over-optimise reward models of three sizes and three amounts of data by best of n.

    python -m experiments.ablations.reproduce gao_best_of_n --seeds=3

Gao et al. 2022, Fig. 1a, 2, 3, 6. Samples of the supervised policy (0.9 M parameters), ranked by
reward models of 41 k, 158 k and 0.9 M parameters on the first 300, 1,250 and 5,000 of the same
rankings by simulated labelers. Gold is the world's exact judge. n goes up to 1,024, where KL is 5.9
nats. Gao labels with a large reward model without noise; here the labelers err and disagree as
people do.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import bootstrap_curve, fit_best_of_n, spearman, t_interval
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
)
from experiments.ablations.measures import (
    PolicyEvalSettings,
    best_of_n_curves,
    draw_sample_pool,
    last,
    metrics,
    powers_of_two,
    proxy_scores,
)
from experiments.ablations.shared import SIZES, base, base_runs, pick, reward_model

COLOURS = dict(zip(SIZES, plt.get_cmap("viridis")([0.75, 0.45, 0.1]), strict=True))


def rankings(size: str) -> tuple[int, ...]:
    """Return the amounts of data, the largest being all that the base collected."""
    return pick(size, tiny=(16, 48), default=(300, 1250, 5000), large=(2000, 8000, 33_000))


def pool_settings(size: str) -> PolicyEvalSettings:
    """Return how many prompts and samples best of n has."""
    num_prompts = pick(size, tiny=4, default=64, large=256)
    num_samples = pick(size, tiny=16, default=1024, large=4096)
    return PolicyEvalSettings(size, num_prompts, num_samples, corpus_documents=1)


def add_reward_models(ablation: Ablation, size: str) -> Iterator[tuple[str, Row, str]]:
    """Add every seed's base and reward models; yield name, point and folder of each model."""
    for seed in ablation.seeds:
        ablation.add_runs(*base_runs(size, seed, *SIZES))
        for trunk in SIZES:
            for count in rankings(size):
                run = reward_model(size, seed, trunk, count)
                ablation.add_runs(run)
                point: Row = {"seed": seed, "trunk": trunk, "rankings": count}
                yield f"seed{seed}-{trunk}-{count}", point, run.folder


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Let every reward model rank the same samples."""
    notes = "Thin: seeds. Thick: their mean. Dots: fit of d (α − β d)."
    ablation = Ablation("Gao et al. 2022, Fig. 1a, 2, 3, 6", seeds, CRITERIA, figure, notes)
    settings = pool_settings(size)
    for name, point, folder in add_reward_models(ablation, size):
        seed = int(point["seed"])
        needs = (folder, base(seed, "sft"))
        arguments = {"settings": settings, "seed": seed, "folder": folder}
        ablation.add_measurement(name, point, needs, curve, **arguments)
    return ablation


def curve(context: Context, *, settings: PolicyEvalSettings, seed: int, folder: str) -> list[Row]:
    """Return a row for every n, with the fit's coefficients and their intervals over prompts."""
    pool = draw_sample_pool(context, settings, seed)
    proxy = proxy_scores(pool, context.folder(folder))
    curves = best_of_n_curves(pool, proxy, powers_of_two(settings.num_samples))
    d, gold_N, proxy_N = curves.distance, curves.gold_PN.mean(axis=0), curves.proxy_PN.mean(axis=0)
    fit = fit_best_of_n(d[1:], gold_N[1:])
    shared: Row = {"r_squared": fit.r_squared}
    for name in ("alpha", "beta"):
        coefficient = partial(_coefficient, d, name)
        interval = bootstrap_curve(curves.gold_PN, coefficient, num_resamples=500, seed=0)
        shared[name] = interval.mean
        shared[f"{name}_low"] = interval.low
        shared[f"{name}_high"] = interval.high
    rows = metrics(context.folder(folder))
    for judge in ("gold", "heldout"):
        shared[f"accuracy_{judge}"] = last(rows, f"validation/accuracy_{judge}")
    points = zip(curves.n, d.tolist(), gold_N.tolist(), proxy_N.tolist(), strict=True)
    return [
        {"n": n, "distance": distance, "gold": gold, "proxy": score, **shared}
        for n, distance, gold, score in points
    ]


def _coefficient(d: np.ndarray, name: str, gold_N: np.ndarray) -> float:
    return float(getattr(fit_best_of_n(d[1:], gold_N[1:]), name))


# --- claims ---------------------------------------------------------------------------------------


def _peak(rows: Table) -> float:
    return float(rows.column("gold").max())


def _reward_models(table: Table) -> list[tuple[tuple[str, int], Table]]:
    """Return the rows of every reward model that has some, with its trunk and rankings."""
    return [
        ((trunk, count), rows)
        for trunk, of_trunk in table.having("gold").by("trunk")
        for count, rows in of_trunk.by("rankings")
    ]


def _curves(table: Table) -> list[Table]:
    return [rows for _, model in _reward_models(table) for _, rows in model.by("seed")]


def _mean_peaks(table: Table) -> dict[tuple[str, int], float]:
    return {key: float(rows.per_seed(_peak).mean()) for key, rows in _reward_models(table)}


def gold_falls(table: Table) -> Finding:
    """Judge whether gold rises and falls at the least data."""
    least = table.having("gold").where(rankings=min(table.values("rankings")))

    def drop(rows: Table) -> float:
        curves = [part for _, part in rows.by("trunk")]
        return float(np.mean([_peak(part) - part.column("gold")[-1] for part in curves]))

    inside = [
        0 < int(np.argmax(rows.column("gold"))) < len(rows) - 1
        for _, of_seed in least.by("seed")
        for _, rows in of_seed.by("trunk")
    ]
    drops = t_interval(least.per_seed(drop))
    text = f"{sum(inside)} of {len(inside)} curves peak inside"
    return interval_finding(drops.mean > 0.3 and all(inside), drops, text)


def quadratic_fits(table: Table) -> Finding:
    """Judge how well the quadratic describes gold."""
    r_squared = np.array([rows.column("r_squared")[0] for rows in _curves(table)])
    worst, median = float(r_squared.min()), float(np.median(r_squared))
    text = f"median {median:.3f} of {r_squared.size} reward models"
    return Finding(worst >= 0.9 and median >= 0.95, worst, text)


def proxy_rises(table: Table) -> Finding:
    """Judge whether the score that is selected for always rises."""
    rising = [bool(np.all(np.diff(rows.column("proxy")) > 0)) for rows in _curves(table)]
    text = f"{sum(rising)} of {len(rising)} curves"
    return Finding(all(rising), float(np.mean(rising)), text)


def _lowest(correlations: dict) -> tuple[float, str]:
    return min(correlations.values()), str({k: round(v, 2) for k, v in correlations.items()})


def more_data_helps(table: Table) -> Finding:
    """Judge whether peaks grow with data at every size."""
    peaks, counts = _mean_peaks(table), sorted(table.values("rankings"))
    trunks = table.values("trunk")
    lowest, text = _lowest(
        {trunk: spearman(counts, [peaks[trunk, count] for count in counts]) for trunk in trunks}
    )
    return Finding(lowest >= 0.8, lowest, text)


def larger_model_helps(table: Table) -> Finding:
    """Judge whether a larger reward model's peak is at least as high."""
    peaks = _mean_peaks(table)
    higher = [
        peaks[large, count] >= peaks[small, count]
        for small, large in pairwise(table.values("trunk"))
        for count in table.values("rankings")
    ]
    text = ", ".join(f"{trunk}-{count} {value:.2f}" for (trunk, count), value in peaks.items())
    share = float(np.mean(higher))
    return Finding(share >= 0.75, share, f"peaks, SD: {text}")


def larger_model_agrees(table: Table) -> Finding:
    """Judge whether larger models agree with gold more often, at every amount of data."""
    correlations = {}
    for count, of_count in table.having("accuracy_gold").by("rankings"):
        means = [
            float(rows.per_seed(lambda seed: seed.column("accuracy_gold")[0]).mean())
            for _, rows in of_count.by("trunk")
        ]
        correlations[count] = spearman(range(len(means)), means)
    lowest, text = _lowest(correlations)
    return Finding(lowest > 0, lowest, text)


CRITERIA = (
    Criterion(
        "at the least data gold peaks at 1 < n < 1,024 and then falls by more than 0.3 SD",
        gold_falls,
    ),
    Criterion(
        "d (α − β d) fits gold on n ≥ 2: R² ≥ 0.90 for every reward model, median ≥ 0.95",
        quadratic_fits,
    ),
    Criterion("the proxy rises with n for every reward model", proxy_rises),
    Criterion("Spearman(peak gold, rankings) ≥ 0.8 at each size, seeds' mean", more_data_helps),
    Criterion(
        "a larger reward model peaks at least as high in ≥ 75 % of comparisons of neighbours",
        larger_model_helps,
    ),
    Criterion(
        "Spearman(accuracy against gold, size) > 0 at every amount of data", larger_model_agrees
    ),
)


def figure(table: Table) -> Figure:
    """Draw gold above and proxy below, a column for every amount of data."""
    counts = table.values("rankings")
    shape: Options = {"figsize": (3.4 * len(counts), 5.6), "sharex": True, "sharey": "row"}
    chart, panels = plt.subplots(2, len(counts), squeeze=False, **shape)
    for column, count in enumerate(counts):
        top, bottom = panels[:, column]
        for trunk, rows in table.where(rankings=count).by("trunk"):
            look: Options = {"colour": COLOURS[trunk], "label": f"reward model {trunk}"}
            draw_seeds(top, rows, "distance", "gold", **look)
            draw_seeds(bottom, rows, "distance", "proxy", **look)
            d = np.linspace(0, rows.column("distance").max(), 60)[1:]
            alpha, beta = (
                rows.having(name).where(n=1).column(name).mean() for name in ("alpha", "beta")
            )
            top.plot(d, d * (alpha - beta * d), ":", color=COLOURS[trunk], lw=1.5)
        top.set_title(f"{count:,} rankings", fontsize=10)
        bottom.set_xlabel("d = √KL, nats$^{1/2}$")
    panels[0, 0].set_ylabel("gold, SD of SFT")
    panels[1, 0].set_ylabel("proxy, own SD")
    for axes in panels.flat:
        axes.axhline(0, color="#bbb", lw=0.8, zorder=0)
    panels[0, 0].legend()
    chart.suptitle("Best of n: gold and proxy", fontsize=12)
    return chart
