"""Gao et al. 2022, Fig. 1a, 2, 3, 6: best of n against reward models of three sizes and three amounts of data.

    python -m experiments.ablations.reproduce gao_best_of_n --seeds=3

Samples of the supervised policy (0.9 M parameters), ranked by reward models of 41 k, 158 k and 0.9 M parameters on the first
300, 1,250 and 5,000 of the same rankings by simulated labelers. Gold is the world's exact judge. n goes up to 1,024, where
KL is 5.9 nats. Gao labels with a large reward model without noise; here the labelers err and disagree as people do.
"""

from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import bootstrap_curve, fit_best_of_n, spearman, t_interval
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
)
from experiments.ablations.measures import (
    Panel,
    best_of_n_curves,
    last,
    metrics,
    proxy_scores,
    sft_pool,
)
from experiments.ablations.shared import base, base_runs, pick, reward_model

TRUNKS = ("xs", "s", "m")  # in order of size
COLOURS = dict(zip(TRUNKS, plt.get_cmap("viridis")([0.75, 0.45, 0.1]), strict=True))


def rankings(size: str) -> tuple[int, ...]:
    """Amounts of data, the largest being all that the base collected."""
    return pick(size, tiny=(16, 48), default=(300, 1250, 5000), large=(2000, 8000, 33_000))


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Every reward model ranks the same samples."""
    panel = Panel(
        size,
        pick(size, tiny=4, default=64, large=256),
        pick(size, tiny=16, default=1024, large=4096),
        1,
        1,
    )
    runs: dict[str, GridRun] = {}
    measurements = []
    for seed in seeds:
        runs |= {run.folder: run for run in base_runs(size, seed, *TRUNKS)}
        for trunk in TRUNKS:
            for count in rankings(size):
                run = reward_model(size, seed, trunk, count)
                runs[run.folder] = run
                point: Row = {"seed": seed, "trunk": trunk, "rankings": count}
                measurements.append(
                    Measurement(
                        f"seed{seed}-{trunk}-{count}",
                        point,
                        (run.folder, base(seed, "sft")),
                        panel.settings,
                        partial(curve, panel=panel, seed=seed, folder=run.folder),
                    )
                )
    return Ablation(
        "Gao et al. 2022, Fig. 1a, 2, 3, 6",
        seeds,
        list(runs.values()),
        measurements,
        CRITERIA,
        figure,
        "Thin: seeds. Thick: their mean. Dots: fit of d (α − β d).",
    )


def curve(bench: Bench, *, panel: Panel, seed: int, folder: str) -> list[Row]:
    """A row for every n, with the fit's coefficients and their intervals over prompts."""
    pool = sft_pool(bench, panel, seed)
    powers = np.arange(int(np.log2(panel.num_samples)) + 1)
    curves = best_of_n_curves(
        pool, proxy_scores(pool, bench.folder(folder)), tuple(int(n) for n in 2**powers)
    )
    d, gold_N, proxy_N = curves.distance, curves.gold_PN.mean(axis=0), curves.proxy_PN.mean(axis=0)
    fit = fit_best_of_n(d[1:], gold_N[1:])
    shared: Row = {"r_squared": fit.r_squared}
    for name, place in (("alpha", 0), ("beta", 1)):
        found = bootstrap_curve(
            curves.gold_PN, partial(_coefficient, d, place), num_resamples=500, seed=0
        )
        shared |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    rows = metrics(bench.folder(folder))
    for judge in ("gold", "heldout"):
        shared[f"accuracy_{judge}"] = last(rows, f"validation/accuracy_{judge}")
    return [
        {
            "n": n,
            "distance": float(d[i]),
            "gold": float(gold_N[i]),
            "proxy": float(proxy_N[i]),
            **shared,
        }
        for i, n in enumerate(curves.n)
    ]


def _coefficient(d: np.ndarray, place: int, gold_N: np.ndarray) -> float:
    return float(fit_best_of_n(d[1:], gold_N[1:])[place])


# --- claims -----------------------------------------------------------------------------------------------------------


def peak(part: Table) -> float:
    """The highest gold of one curve."""
    return float(part.column("gold").max())


def _cells(table: Table) -> list[tuple[str, int, Table]]:
    trunks = table.having("gold").by("trunk")
    return [
        (trunk, count, rows)
        for trunk, of_trunk in trunks
        for count, rows in of_trunk.by("rankings")
    ]


def _mean_peak(table: Table) -> dict[tuple[str, int], float]:
    """Over seeds, for every reward model."""
    return {
        (trunk, count): float(rows.per_seed(peak).mean()) for trunk, count, rows in _cells(table)
    }


def falls(table: Table) -> Finding:
    """Rise and fall at the least data."""
    least = table.having("gold").where(rankings=min(table.values("rankings")))
    drops = least.per_seed(
        lambda one: float(
            np.mean([peak(rows) - rows.column("gold")[-1] for _, rows in one.by("trunk")])
        )
    )
    inside = [
        0 < int(np.argmax(rows.column("gold"))) < len(rows) - 1
        for _, one in least.by("seed")
        for _, rows in one.by("trunk")
    ]
    found = t_interval(drops)
    return Finding(
        found.mean > 0.3 and all(inside),
        *found,
        f"{sum(inside)} of {len(inside)} curves peak inside",
    )


def fits(table: Table) -> Finding:
    """How well the quadratic describes gold."""
    r_squared = np.array(
        [rows.column("r_squared")[0] for *_, cell in _cells(table) for _, rows in cell.by("seed")]
    )
    return Finding(
        bool(r_squared.min() >= 0.9 and np.median(r_squared) >= 0.95),
        float(r_squared.min()),
        None,
        None,
        f"median {np.median(r_squared):.3f} of {r_squared.size} reward models",
    )


def proxy_rises(table: Table) -> Finding:
    """Whether the score that is selected for always rises."""
    rising = [
        bool(np.all(np.diff(rows.column("proxy")) > 0))
        for *_, cell in _cells(table)
        for _, rows in cell.by("seed")
    ]
    return Finding(
        all(rising), float(np.mean(rising)), None, None, f"{sum(rising)} of {len(rising)} curves"
    )


def more_data(table: Table) -> Finding:
    """Whether peaks grow with data at every size."""
    peaks = _mean_peak(table)
    counts = sorted(table.values("rankings"))
    each = {
        trunk: spearman(counts, [peaks[trunk, count] for count in counts])
        for trunk in table.values("trunk")
    }
    return Finding(
        min(each.values()) >= 0.8,
        min(each.values()),
        None,
        None,
        str({k: round(v, 2) for k, v in each.items()}),
    )


def larger_model(table: Table) -> Finding:
    """Whether a larger reward model's peak is at least as high."""
    peaks = _mean_peak(table)
    trunks = table.values("trunk")
    higher = [
        peaks[large, n] >= peaks[small, n]
        for small, large in pairwise(trunks)
        for n in table.values("rankings")
    ]
    text = ", ".join(f"{trunk}-{count} {value:.2f}" for (trunk, count), value in peaks.items())
    return Finding(
        float(np.mean(higher)) >= 0.75, float(np.mean(higher)), None, None, f"peaks, SD: {text}"
    )


def accuracy(table: Table) -> Finding:
    """Whether larger reward models agree with gold more often, at every amount of data."""
    each = {}
    for count, part in table.having("accuracy_gold").by("rankings"):
        means = [
            float(rows.per_seed(lambda one: one.column("accuracy_gold")[0]).mean())
            for _, rows in part.by("trunk")
        ]
        each[count] = spearman(range(len(means)), means)
    return Finding(
        min(each.values()) > 0,
        min(each.values()),
        None,
        None,
        str({k: round(v, 2) for k, v in each.items()}),
    )


CRITERIA = (
    Criterion(
        "E1.peak",
        "at the least data gold peaks at 1 < n < 1,024 and then falls by more than 0.3 SD",
        falls,
    ),
    Criterion(
        "E1.fit",
        "d (α − β d) fits gold on n ≥ 2: R² ≥ 0.90 for every reward model, median ≥ 0.95",
        fits,
    ),
    Criterion("E1.proxy", "the proxy rises with n for every reward model", proxy_rises),
    Criterion(
        "E2.data", "Spearman(peak gold, rankings) ≥ 0.8 at each size, seeds' mean", more_data
    ),
    Criterion(
        "E2.size",
        "a larger reward model peaks at least as high in ≥ 75 % of comparisons of neighbours",
        larger_model,
    ),
    Criterion(
        "E2.accuracy", "Spearman(accuracy against gold, size) > 0 at every amount of data", accuracy
    ),
)


def figure(table: Table) -> Figure:
    """Gold above, proxy below; a column for every amount of data."""
    counts = table.values("rankings")
    made, axes = plt.subplots(
        2, len(counts), figsize=(3.4 * len(counts), 5.6), sharex=True, sharey="row", squeeze=False
    )
    for column, count in enumerate(counts):
        for trunk, rows in table.where(rankings=count).by("trunk"):
            for row, name in enumerate(("gold", "proxy")):
                draw_seeds(
                    axes[row, column],
                    rows,
                    "distance",
                    name,
                    colour=COLOURS[trunk],
                    label=f"reward model {trunk}",
                )
            d = np.linspace(0, rows.column("distance").max(), 60)[1:]
            alpha, beta = (
                rows.having(name).where(n=1).column(name).mean() for name in ("alpha", "beta")
            )
            axes[0, column].plot(d, d * (alpha - beta * d), ":", color=COLOURS[trunk], lw=1.5)
        axes[0, column].set_title(f"{count:,} rankings", fontsize=10)
        axes[1, column].set_xlabel("d = √KL, nats$^{1/2}$")
    for row, text in enumerate(("gold, SD of SFT", "proxy, own SD")):
        axes[row, 0].set_ylabel(text)
    for one in axes.flat:
        one.axhline(0, color="#bbb", lw=0.8, zorder=0)
        one.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, fontsize=8)
    made.suptitle("Best of n: gold and proxy", fontsize=12)
    made.tight_layout()
    return made
