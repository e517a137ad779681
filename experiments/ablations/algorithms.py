"""Compare PPO with what was proposed instead of it: twelve algorithms at equal samples and labels.

    python -m experiments.ablations.reproduce algorithms --seeds=3

On-policy ones see as many of their own responses as PPO, scored by the seed's reward model; DPO,
IPO and KTO see the rankings from which that reward model was made, and nothing else; best-of-n
trains nothing. Iterated PPO halves labels and samples: PPO against a reward model of half the
rankings, then once more from SFT against one of these and as many rankings of the first policy's
answers; its proxy is measured by the same reward model as all others'. Every config is otherwise
the one of experiments/menagerie as it stands. A coefficient weighs different things in different
losses, so that gold at equal KL, in the left panel, compares better than the ends do. Beside
another job, one core each, a seed's PPO took 80 s, the other on-policy runs 50 to 60 s and DPO 207
s, so that a seed takes about 20 minutes beyond the base.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    GridRun,
    Options,
    Row,
    Table,
    draw_point,
    draw_seeds,
    interval_finding,
    mean_of,
    paired,
    require_two,
)
from experiments.ablations.measures import (
    PolicyEvalSettings,
    best_of_n_curves,
    draw_sample_pool,
    evaluate_checkpoints,
    full_eval_settings,
    last,
    metrics,
    powers_of_two,
    proxy_scores,
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
BEST_OF_N = "best of n"
BEST_N = 16  # in the right panels; the left one has all n
ACCURACY = "validation/accuracy_heldout"
COLUMNS = {
    "gold": "gold, SD of SFT",
    "proxy": "proxy, SD of SFT",
    "kl": "KL from SFT, nats",
    "nll": "pretraining loss, nats",
}


def make_runs(size: str, seed: int, name: str) -> list[GridRun]:
    """Return what an algorithm trains, in order; the last one is its policy."""
    return make_rounds(size, seed) if name == ITERATED else [make_run(size, seed, name)]


def make_rounds(size: str, seed: int) -> list[GridRun]:
    """Return the rounds of menagerie/iterated.py on the seed's base; policies keep half-way, too.

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


def make_run(size: str, seed: int, name: str) -> GridRun:
    """Return an algorithm's run on the seed's base; on-policy ones keep the checkpoint half-way."""
    folder = f"algorithms/seed{seed}/{name.replace('. ', '-').replace(' ', '-').lower()}"
    config = {**ONLINE, **OFFLINE}[name].get_config(size)
    config.seed, config.monitor = seed, None
    config.init.policy = beside(base(seed, "sft"), folder)
    if name in OFFLINE:
        config.data.comparisons = beside(base(seed, "label"), folder)
        return GridRun(folder, config)
    config.rewards.reward.source = f"reward:{beside(base(seed, 'reward'), folder)}"
    _keep_half_way(config, config.ppo if name == "PPO" else config.policy_gradient)
    return GridRun(folder, config)


def _keep_half_way(config: ConfigDict, settings: ConfigDict) -> None:
    updates = settings.total_episodes // settings.batch_size
    config.checkpoint.update({"save_every": updates // 2, "keep": 2})


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run every algorithm that trains once a seed, and iterated PPO in six runs."""
    papers = "Ahmadian et al. 2024; Shao et al. 2024; Rafailov et al. 2023; Guo et al. 2024"
    notes = f"Right: best of n with n = {BEST_N}; it has no weights of its own, hence no loss."
    ablation = Ablation(papers, seeds, CRITERIA, figure, notes)
    num_prompts = pick(size, tiny=8, default=64, large=256)
    num_samples = pick(size, tiny=16, default=256, large=1024)
    pool = PolicyEvalSettings(size, num_prompts, num_samples)
    settings = full_eval_settings(size)
    for seed in seeds:
        sft, rewards = base(seed, "sft"), base(seed, "reward")
        ablation.add_runs(*base_runs(size, seed))
        policy = {"settings": settings, "seed": seed}
        cells: list[tuple[str, tuple[str, ...], Any, dict[str, Any]]] = [
            ("SFT", (sft, rewards), checkpoints, {**policy, "folder": ""}),
            ("reward model", (rewards,), accuracy, {"folder": rewards}),
            (BEST_OF_N, (sft, rewards), best_of_n, {"settings": pool, "seed": seed}),
        ]
        for name in TRAINED:
            runs = make_runs(size, seed, name)
            ablation.add_runs(*runs)
            folder = runs[-1].folder
            cells.append((name, (folder, rewards, sft), checkpoints, {**policy, "folder": folder}))
        for name, needs, measure, arguments in cells:
            point: Row = {"seed": seed, "algorithm": name}
            file = f"seed{seed}-{name.replace(' ', '-')}"
            ablation.add_measurement(file, point, needs, measure, **arguments)
    return ablation


# --- measurements ---------------------------------------------------------------------------------


def checkpoints(
    context: Context, *, settings: PolicyEvalSettings, seed: int, folder: str
) -> list[Row]:
    """Evaluate every checkpoint of a policy, or without a folder the supervised policy.

    The last one has the accuracy of an implicit reward, if the run measured it.
    """
    rows = evaluate_checkpoints(
        context,
        settings=settings,
        seed=seed,
        folder=folder,
        reward_folder=base(seed, "reward"),
        steps=all_steps(context.folder(folder)) if folder else [],
        start=not folder,
    )
    if folder and any(ACCURACY in row for row in metrics(context.folder(folder))):
        rows[-1] |= accuracy(context, folder=folder)[0]
    return rows


def accuracy(context: Context, *, folder: str) -> list[Row]:
    """Return how often a reward ranks the validation answers as a held-out labeler does."""
    return [{"accuracy_heldout": last(metrics(context.folder(folder)), ACCURACY)}]


def best_of_n(context: Context, *, settings: PolicyEvalSettings, seed: int) -> list[Row]:
    """Measure best of n of the supervised policy by the reward model for every n, from one pool."""
    pool = draw_sample_pool(context, settings, seed)
    proxy = proxy_scores(pool, context.folder(base(seed, "reward")))
    curves = best_of_n_curves(pool, proxy, powers_of_two(settings.num_samples))
    distance = curves.distance.tolist()
    gold, score = curves.gold_PN.mean(axis=0).tolist(), curves.proxy_PN.mean(axis=0).tolist()
    return [
        {
            "n": n,
            "distance": distance[k],
            "kl": distance[k] ** 2,
            "gold": gold[k],
            "proxy": score[k],
        }
        for k, n in enumerate(curves.n)
    ]


# --- claims ---------------------------------------------------------------------------------------


def _end(table: Table, name: str, column: str) -> dict[int, float]:
    """Return the last checkpoint's number for every seed that has one."""
    chosen: Row = {"algorithm": name, **({"n": BEST_N} if name == BEST_OF_N else {})}
    return table.where(**chosen).final(column)


def _gaps(table: Table, first: str, second: str, column: str) -> np.ndarray:
    """Return a column of one algorithm less that of another, paired by seed."""
    return paired(_end(table, first, column), _end(table, second, column))


def rloo_reaches_ppo(table: Table) -> Finding:
    """Judge RLOO's proxy less PPO's."""
    gap = t_interval(_gaps(table, "RLOO", "PPO", "proxy"))
    gold = require_two(_gaps(table, "RLOO", "PPO", "gold"))
    return interval_finding(gap.high >= 0, gap, f"gold: {gold.mean():+.3f}")


def implicit_reward_is_weaker(table: Table) -> Finding:
    """Judge DPO's accuracy less the reward model's, which learned from the same rankings."""
    gap = t_interval(_gaps(table, "DPO", "reward model", "accuracy_heldout"))
    names = ("reward model", *OFFLINE)
    text = "; ".join(
        f"{name} {mean_of(_end(table, name, 'accuracy_heldout')):.3f}" for name in names
    )
    return interval_finding(gap.mean <= 0, gap, text)


def online_is_better(table: Table) -> Finding:
    """Judge online DPO's gold less DPO's."""
    gap = t_interval(_gaps(table, "online DPO", "DPO", "gold"))
    return interval_finding(gap.low > 0, gap)


def _listed(numbers: dict[str, float]) -> str:
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {number:+.2f}" for name, number in ordered)


def all_gain(table: Table) -> Finding:
    """Judge the mean gold of every trained policy over the supervised one."""
    gains = {name: float(_gaps(table, name, "SFT", "gold").mean()) for name in TRAINED}
    return Finding(min(gains.values()) > 0, min(gains.values()), _listed(gains))


def best_of_n_is_cheapest(table: Table) -> Finding:
    """Judge the most that any checkpoint has over best of n at its own KL, a mean over seeds.

    Beyond the KL of the largest n none counts.
    """
    gaps: dict[str, dict[int, list[float]]] = {}
    for _, of_seed in table.by("seed"):
        curve = of_seed.where(algorithm=BEST_OF_N).having("distance", "gold")
        distance, gold = curve.column("distance"), curve.column("gold")
        for name in TRAINED:
            policy = of_seed.where(algorithm=name).having("distance", "gold")
            points = zip(policy.column("distance"), policy.column("gold"), strict=True)
            for number, (d, gain) in enumerate(points):
                if len(curve) and d <= distance.max():
                    gap = float(gain) - float(np.interp(d, distance, gold))
                    gaps.setdefault(name, {}).setdefault(number, []).append(gap)
    if not gaps:
        raise ValueError("no policy is as near to SFT as best of n")
    most = {name: max(float(np.mean(x)) for x in each.values()) for name, each in gaps.items()}
    return Finding(max(most.values()) <= 0.15, max(most.values()), _listed(most))


CRITERIA = (
    Criterion(
        "RLOO reaches PPO's proxy: the interval of the paired difference does not lie below 0",
        rloo_reaches_ppo,
        "Ahmadian et al. 2024",
    ),
    Criterion(
        "DPO's implicit reward ranks held-out labels no better than the reward model from the same "
        "rankings",
        implicit_reward_is_weaker,
        "Rafailov et al. 2023",
    ),
    Criterion(
        "online DPO ends above DPO in gold (interval above 0)", online_is_better, "Guo et al. 2024"
    ),
    Criterion(
        "every trained policy ends above SFT in gold (the value is the smallest mean gain)",
        all_gain,
        "all of these papers",
    ),
    Criterion(
        "no trained policy is more than 0.15 SD of gold above best of n at its own KL",
        best_of_n_is_cheapest,
        "Gao et al. 2022",
    ),
)


# --- figure ---------------------------------------------------------------------------------------


def colour_of(name: str) -> Any:
    """Return the colour of an algorithm."""
    special = {BEST_OF_N: "#000", ITERATED: "#0b2e59"}
    return special.get(name) or plt.get_cmap("tab10")(TRAINED.index(name))


def _draw_plane(axes: Axes, table: Table) -> None:
    for name in (BEST_OF_N, *TRAINED):
        colour = colour_of(name)
        rows = table.where(algorithm=name)
        draw_seeds(axes, rows, "distance", "gold", colour=colour, label=name)
        if name != BEST_OF_N:
            distance, gold = _end(table, name, "distance"), _end(table, name, "gold")
            axes.plot(list(distance.values()), list(gold.values()), "o", ms=4, color=colour)
    axes.axhline(0, color="#777", ls="--", lw=1)
    axes.set(xlabel="√KL from SFT", ylabel="gold, SD of SFT", title="half-way and end")
    axes.legend(fontsize=7, ncol=2)


def figure(table: Table) -> Figure:
    """Draw gold against the distance from SFT, and what every algorithm ends with."""
    shape: Options = {"figsize": (13.5, 4.4), "width_ratios": [2.6, 1, 1, 1, 1]}
    chart, (plane, *panels) = plt.subplots(1, 5, **shape)
    _draw_plane(plane, table)
    # From the lowest to the highest gold; one without a number comes first.
    gold = {name: mean_of(_end(table, name, "gold")) for name in ("SFT", BEST_OF_N, *TRAINED)}
    ranked = sorted(gold, key=lambda name: np.nan_to_num(gold[name], nan=-np.inf))
    for axes, (column, label) in zip(panels, COLUMNS.items(), strict=True):
        for height, name in enumerate(ranked):
            ends = _end(table, name, column)
            for seed, value in ends.items():
                draw_point(axes, value, height, seed, color="#2a3f8f")
            if ends:
                axes.plot(mean_of(ends), height, "|", ms=13, color="#2a3f8f")
        names = ranked if axes is panels[0] else [""] * len(ranked)
        axes.set_yticks(range(len(ranked)), names, fontsize=8)
        axes.set_ylim(-0.5, len(ranked) - 0.5)  # all alike, although best of n has no loss
        axes.set_xlabel(label, fontsize=9)
        axes.locator_params(axis="x", nbins=3)
        axes.grid(axis="y", color="#eee")
    return chart
