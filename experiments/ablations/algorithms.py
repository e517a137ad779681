"""PPO and what was proposed instead of it (E28): twelve algorithms, at equal samples and equal labels.

    python -m experiments.ablations.reproduce algorithms --seeds=3

On-policy ones see as many of their own responses as PPO, scored by the seed's reward model; DPO, IPO and KTO see the rankings
from which that reward model was made, and nothing else; best-of-n trains nothing. Iterated PPO halves labels and samples: PPO
against a reward model of half the rankings, then once more from SFT against one of these and as many rankings of the first
policy's answers; its proxy is measured by the same reward model as all others'. Every config is otherwise the one of
experiments/menagerie as it stands. A coefficient weighs different things in different losses, so that gold at equal KL, in
the left panel, compares better than the ends do. Beside another job, one core each, a seed's PPO took 80 s, the other
on-policy runs 50 to 60 s and DPO 207 s, so that a seed takes about 20 minutes beyond the base.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

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
    mark_seed,
    paired,
    several,
)
from experiments.ablations.measures import (
    Panel,
    best_of_n_curves,
    examine_steps,
    last,
    metrics,
    panel_of,
    proxy_scores,
    sft_pool,
)
from experiments.ablations.shared import base, base_runs, beside, pick, ppo_run
from experiments.menagerie import (
    dpo,
    dr_grpo,
    expert_iteration,
    grpo,
    ipo,
    iterated,
    kto,
    online_dpo,
    ppo,
    reinforce,
    rloo,
)
from rlhf_jax.training.checkpoints import all_steps

ONLINE = {
    "PPO": ppo,
    "REINFORCE": reinforce,
    "RLOO": rloo,
    "GRPO": grpo,
    "Dr. GRPO": dr_grpo,
    "online DPO": online_dpo,
    "expert iteration": expert_iteration,
}
OFFLINE = {"DPO": dpo, "IPO": ipo, "KTO": kto}
ITERATED = "iterated PPO"
TRAINED = (*ONLINE, *OFFLINE, ITERATED)
BEST = "best of n"
BEST_N = 16  # in the right panels; the left one has all n
ACCURACY = "validation/accuracy_heldout"
COLUMNS = {
    "gold": "gold, SD of SFT",
    "proxy": "proxy, SD of SFT",
    "kl": "KL from SFT, nats",
    "nll": "pretraining loss, nats",
}


def runs_of(size: str, seed: int, name: str) -> list[GridRun]:
    """What an algorithm trains, in order; the last one is its policy."""
    return rounds(size, seed) if name == ITERATED else [algorithm(size, seed, name)]


def rounds(size: str, seed: int) -> list[GridRun]:
    """Return the rounds of menagerie/iterated.py on the seed's base; the last policy keeps half-way, too.

    A round is label_N, reward_N and ppo_N.
    """
    stages = iterated.get_config(size).stages
    folder = f"algorithms/seed{seed}/iterated"
    runs = []
    for n in range(1, iterated.ROUNDS + 1):
        labels = GridRun(f"{folder}/label_{n}", stages[f"label_{n}"])
        rewards = GridRun(f"{folder}/reward_{n}", stages[f"reward_{n}"])
        for run in (labels, rewards):
            run.config.seed = seed
        if n == 1:
            labels.config.init.policy = beside(base(seed, "sft"), labels.folder)
        rewards.config.init.policy = beside(base(seed, "sft"), rewards.folder)
        policy = ppo_run(size, seed, f"{folder}/ppo_{n}", reward_folder=rewards.folder)
        policy.config.ppo.total_episodes //= iterated.ROUNDS
        _keep_half_way(policy.config, policy.config.ppo)
        runs += [labels, rewards, policy]
    return runs


def algorithm(size: str, seed: int, name: str) -> GridRun:
    """An algorithm's config on the seed's base; on-policy ones keep the checkpoint of half-way."""
    folder = f"algorithms/seed{seed}/{name.replace('. ', '-').replace(' ', '-').lower()}"
    config = {**ONLINE, **OFFLINE}[name].get_config(size)
    config.seed, config.monitor = seed, None
    config.init.policy = beside(base(seed, "sft"), folder)
    if name in OFFLINE:
        config.data.comparisons = beside(base(seed, "label"), folder)
        return GridRun(folder, config)
    config.init.reward = beside(base(seed, "reward"), folder)
    _keep_half_way(config, config.ppo if name == "PPO" else config.policy_gradient)
    return GridRun(folder, config)


def _keep_half_way(config: ConfigDict, settings: ConfigDict) -> None:
    config.checkpoint.update(
        {"save_every": settings.total_episodes // settings.batch_size // 2, "keep": 2}
    )


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """A run a seed for every algorithm that trains, and six for the rounds of iterated PPO."""
    panel = panel_of(size)
    pool = Panel(
        size,
        pick(size, tiny=8, default=64, large=256),
        pick(size, tiny=16, default=256, large=1024),
        1,
        8,
    )
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        sft, rewards = base(seed, "sft"), base(seed, "reward")
        asked = partial(ends, panel=panel, seed=seed)
        measurements += [
            _measurement(seed, "SFT", partial(asked, folder=""), (sft, rewards), panel),
            _measurement(
                seed, "reward model", partial(accuracy, folder=rewards), (rewards,), panel
            ),
            _measurement(seed, BEST, partial(best, panel=pool, seed=seed), (sft, rewards), pool),
        ]
        for name in TRAINED:
            trained = runs_of(size, seed, name)
            runs += trained
            policy = trained[-1].folder
            measurements.append(
                _measurement(
                    seed, name, partial(asked, folder=policy), (policy, rewards, sft), panel
                )
            )
    papers = "Ahmadian et al. 2024; Shao et al. 2024; Rafailov et al. 2023; Guo et al. 2024"
    notes = f"Right: best of n with n = {BEST_N}; it has no weights of its own, hence no loss."
    return Ablation(papers, seeds, runs, measurements, CRITERIA, figure, notes)


def _measurement(
    seed: int, name: str, rows: Callable[[Bench], list[Row]], needs: tuple[str, ...], panel: Panel
) -> Measurement:
    file = f"seed{seed}-{name.replace(' ', '-')}"
    return Measurement(file, {"seed": seed, "algorithm": name}, needs, panel.settings, rows)


# --- measurements -----------------------------------------------------------------------------------------------------


def ends(bench: Bench, *, panel: Panel, seed: int, folder: str) -> list[Row]:
    """Every checkpoint of a policy, or without a folder the supervised policy; with the accuracy of an implicit reward."""
    steps = all_steps(bench.folder(folder)) if folder else []
    rows = examine_steps(
        bench,
        panel=panel,
        seed=seed,
        folder=folder,
        reward_folder=base(seed, "reward"),
        steps=steps,
        start=not folder,
    )
    if folder and any(ACCURACY in row for row in metrics(bench.folder(folder))):
        rows[-1] |= accuracy(bench, folder=folder)[0]
    return rows


def accuracy(bench: Bench, *, folder: str) -> list[Row]:
    """How often a reward, explicit or implicit, ranks the validation answers as a held-out labeler does."""
    return [{"accuracy_heldout": last(metrics(bench.folder(folder)), ACCURACY)}]


def best(bench: Bench, *, panel: Panel, seed: int) -> list[Row]:
    """Best of n of the supervised policy by the reward model, for every n, from one pool."""
    pool = sft_pool(bench, panel, seed)
    n = tuple(2**k for k in range(panel.num_samples.bit_length()))
    curves = best_of_n_curves(pool, proxy_scores(pool, bench.folder(base(seed, "reward"))), n)
    points = zip(
        n, curves.distance, curves.gold_PN.mean(axis=0), curves.proxy_PN.mean(axis=0), strict=True
    )
    return [
        {
            "n": k,
            "distance": float(d),
            "kl": float(d) ** 2,
            "gold": float(gold),
            "proxy": float(proxy),
        }
        for k, d, gold, proxy in points
    ]


# --- claims -----------------------------------------------------------------------------------------------------------


def _end(table: Table, name: str, column: str) -> dict[int, float]:
    """The last checkpoint's number for every seed that has one."""
    rows = table.where(algorithm=name, **({"n": BEST_N} if name == BEST else {})).having(column)
    return {seed: float(one.column(column)[-1]) for seed, one in rows.by("seed")}


def _gaps(table: Table, first: tuple[str, str], second: tuple[str, str]) -> np.ndarray:
    """(algorithm, column) less (algorithm, column), paired by seed."""
    return paired(_end(table, *first), _end(table, *second))


def rloo_reaches_ppo(table: Table) -> Finding:
    """RLOO's proxy less PPO's."""
    found = t_interval(_gaps(table, ("RLOO", "proxy"), ("PPO", "proxy")))
    gold = several(_gaps(table, ("RLOO", "gold"), ("PPO", "gold")))
    return Finding(found.high >= 0, *found, f"gold: {gold.mean():+.3f}")


def implicit_is_weaker(table: Table) -> Finding:
    """DPO's accuracy less the reward model's, which learned from the same rankings."""
    found = t_interval(
        _gaps(table, ("DPO", "accuracy_heldout"), ("reward model", "accuracy_heldout"))
    )
    each = {name: _end(table, name, "accuracy_heldout") for name in ("reward model", *OFFLINE)}
    return Finding(
        found.mean <= 0,
        *found,
        "; ".join(f"{name} {_mean(found):.3f}" for name, found in each.items()),
    )


def online_is_better(table: Table) -> Finding:
    """Online DPO's gold less DPO's."""
    found = t_interval(_gaps(table, ("online DPO", "gold"), ("DPO", "gold")))
    return Finding(found.low > 0, *found, "")


def all_gain(table: Table) -> Finding:
    """Mean gold of every trained policy over the supervised one."""
    gains = {name: float(_gaps(table, (name, "gold"), ("SFT", "gold")).mean()) for name in TRAINED}
    text = ", ".join(
        f"{name} {gain:+.2f}" for name, gain in sorted(gains.items(), key=lambda item: -item[1])
    )
    return Finding(min(gains.values()) > 0, min(gains.values()), None, None, text)


def best_of_n_is_cheapest(table: Table) -> Finding:
    """The most that any checkpoint has over best of n at its own KL, a mean over seeds; beyond the largest n none counts."""
    over: dict[tuple[str, int], list[float]] = {}
    for _, rows in table.by("seed"):
        curve = rows.where(algorithm=BEST).having("distance", "gold")
        for name in TRAINED:
            for number, row in enumerate(
                rows.where(algorithm=name).having("distance", "gold").rows
            ):
                if len(curve) and float(row["distance"]) <= curve.column("distance").max():
                    at_equal_kl = np.interp(
                        float(row["distance"]), curve.column("distance"), curve.column("gold")
                    )
                    over.setdefault((name, number), []).append(
                        float(row["gold"]) - float(at_equal_kl)
                    )
    if not over:
        raise ValueError("no policy is as near to SFT as best of n")
    most = {
        name: max(float(np.mean(gaps)) for (one, _), gaps in over.items() if one == name)
        for name in dict.fromkeys(name for name, _ in over)
    }
    text = ", ".join(
        f"{name} {gap:+.2f}" for name, gap in sorted(most.items(), key=lambda item: -item[1])
    )
    return Finding(max(most.values()) <= 0.15, max(most.values()), None, None, text)


def _mean(values: dict[int, float]) -> float:
    return float(np.mean(list(values.values()))) if values else float("nan")


CRITERIA = (
    Criterion(
        "E28.rloo",
        "RLOO reaches PPO's proxy: the interval of the paired difference does not lie below 0",
        rloo_reaches_ppo,
    ),
    Criterion(
        "E28.dpo",
        "DPO's implicit reward ranks held-out labels no better than the reward model from the same rankings",
        implicit_is_weaker,
    ),
    Criterion(
        "E28.online",
        "online DPO ends above DPO in gold (interval above 0; Guo et al. 2024)",
        online_is_better,
    ),
    Criterion(
        "E28.gold",
        "every trained policy ends above SFT in gold (the value is the smallest mean gain)",
        all_gain,
    ),
    Criterion(
        "E28.best_of_n",
        "no trained policy is more than 0.15 SD of gold above best of n at its own KL (Gao et al. 2022)",
        best_of_n_is_cheapest,
    ),
)


# --- figure -----------------------------------------------------------------------------------------------------------


def _colour(name: str) -> Any:
    return {BEST: "#000", ITERATED: "#0b2e59"}.get(name) or plt.get_cmap("tab10")(
        TRAINED.index(name)
    )


def _ranks(table: Table) -> Sequence[str]:
    """Names from the lowest to the highest gold; one without a number comes first."""
    return sorted(
        ("SFT", BEST, *TRAINED),
        key=lambda name: np.nan_to_num(_mean(_end(table, name, "gold")), nan=-np.inf),
    )


def figure(table: Table) -> Figure:
    """Gold against the distance from SFT, and what every algorithm ends with; a dot for every seed."""
    made, (plane, *others) = plt.subplots(
        1, 5, figsize=(13.5, 4.4), width_ratios=[2.6, 1, 1, 1, 1], layout="constrained"
    )
    for name in (BEST, *TRAINED):
        rows = table.where(algorithm=name)
        draw_seeds(plane, rows, "distance", "gold", colour=_colour(name), label=name)
        if name != BEST:
            distance, gold = _end(table, name, "distance"), _end(table, name, "gold")
            plane.plot(list(distance.values()), list(gold.values()), "o", ms=4, color=_colour(name))
    plane.axhline(0, color="#777", ls="--", lw=1)
    plane.set(xlabel="√KL from SFT", ylabel="gold, SD of SFT", title="half-way and end")
    plane.legend(frameon=False, fontsize=7, ncol=2)
    places = {name: place for place, name in enumerate(_ranks(table))}
    for axes, (column, label) in zip(others, COLUMNS.items(), strict=True):
        for name, place in places.items():
            found = _end(table, name, column)
            for seed, value in found.items():
                mark_seed(axes.plot(value, place, "o", ms=4, alpha=0.6, color="#2a3f8f")[0], seed)
            if found:
                axes.plot(_mean(found), place, "|", ms=13, color="#2a3f8f")
        axes.set_yticks(
            list(places.values()),
            list(places) if axes is others[0] else [""] * len(places),
            fontsize=8,
        )
        axes.set_ylim(-0.5, len(places) - 0.5)  # all alike, although best of n has no loss
        axes.set_xlabel(label, fontsize=9)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="y", color="#eee")
    for axes in (plane, *others):
        axes.spines[["top", "right"]].set_visible(False)
    return made
