"""Compare Adam's two places for ε, and switches on which PPO codes differ most.

    python -m experiments.ablations.reproduce implementation_details --seeds=3

Huang et al. 2023 (N details, on Adam): TensorFlow adds ε = 1e-5 before the bias correction of the
second moment, optax and PyTorch after it, so that TensorFlow's first steps are much smaller; the
first eight updates of four epochs of one minibatch, at a constant rate. Switches: the quickstart's
PPO with one thing changed; a table of final gold, KL and preference without any claim, since the
papers make none.
"""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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
    draw_seeds,
    interval_finding,
)
from experiments.ablations.measures import measure_last_checkpoint, metrics
from experiments.ablations.shared import KL_COEF, base_runs, pick, policy, ppo_run

ADAMS = ("torch", "tf")
EARLY = 8  # updates
KL_COEFS = {"quickstart": KL_COEF, "no KL in the reward": 0.0}  # runs that other ablations have too
SWITCHES: dict[str, dict[str, dict[str, Any]]] = {
    "k3 in the reward": {"ppo": {"kl_estimator": "k3"}},
    "lam 1": {"ppo": {"lam": 1.0}},
    "penalty subtracted": {"ppo": {"missing_eos_mode": "subtract"}},
    "rewards whitened": {"ppo": {"whiten_rewards": True}},
    "advantages not whitened": {"ppo": {"whiten_advantages": "none"}},
    "4 epochs": {"ppo": {"num_ppo_epochs": 4}},
    "value from policy": {"init": {"value": "policy"}},
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run two short PPOs for Adam and one for every switch, a seed."""
    ablation = Ablation("Huang et al. 2023; peers", seeds, CRITERIA, figure)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        for style in ADAMS:
            run = _adam_run(size, seed, style)
            ablation.add_runs(run)
            point: Row = {"seed": seed, "adam": style}
            name = f"seed{seed}-adam-{style}"
            ablation.add_measurement(name, point, (run.folder,), early, folder=run.folder)
        for name, kl_coef in KL_COEFS.items():
            run = policy(size, seed, kl_coef=kl_coef, ptx_coef=0.0)
            measure_last_checkpoint(ablation, size, seed, run, {"switch": name})
        for name, changes in SWITCHES.items():
            run = ppo_run(size, seed, f"implementation_details/seed{seed}/{name.replace(' ', '-')}")
            run.config.update(changes)
            measure_last_checkpoint(ablation, size, seed, run, {"switch": name})
    return ablation


def _adam_run(size: str, seed: int, style: str) -> GridRun:
    """Take several steps on each rollout, or approxkl is 0: the first minibatch is on policy."""
    run = ppo_run(size, seed, f"implementation_details/seed{seed}/adam-{style}")
    ppo = run.config.ppo
    ppo.num_ppo_epochs, ppo.num_mini_batches = 4, 1
    ppo.total_episodes = ppo.batch_size * pick(size, tiny=2, default=EARLY, large=EARLY)
    changes = {
        "adam_style": style,
        "eps": 1e-5,
        "b2": 0.999,
        "warmup_steps": 0,
        "warmup_init_fraction": 0.0,
        "max_grad_norm": 0.0,
    }
    run.config.optimizer.update(changes)
    run.config.value_optimizer.update(changes)
    return run


def early(context: Context, *, folder: str) -> list[Row]:
    """Return how far each of the first updates moves the policy."""
    names = {
        "approxkl": "policy/approxkl_avg",
        "clipfrac": "policy/clipfrac_avg",
        "ratio_var": "val/ratio_var",
    }
    return [
        {"update": row["step"], **{name: float(row[key]) for name, key in names.items()}}
        for row in metrics(context.folder(folder))
    ]


def place_of_epsilon(table: Table) -> Finding:
    """Judge the mean approxkl of the first two updates, optax's over TensorFlow's."""
    torch, tf = (
        table.where(adam=style)
        .having("approxkl")
        .each_seed(lambda rows: rows.column("approxkl")[:2].mean())
        for style in ADAMS
    )
    ratio = t_interval([torch[seed] / tf[seed] for seed in torch if seed in tf])
    return interval_finding(ratio.mean > 2, ratio, "theirs 6.4 with GPT-2")


CRITERIA = (
    Criterion(
        "approxkl of the first two updates is more than twice as large with optax's Adam",
        place_of_epsilon,
    ),
)


def figure(table: Table) -> Figure:
    """Draw approxkl over the first updates, and gold of every switch."""
    chart, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for style, colour in zip(ADAMS, ("#d9822b", "#2a3f8f"), strict=True):
        look: Options = {"colour": colour, "label": f"Adam as in {style}"}
        draw_seeds(left, table.where(adam=style), "update", "approxkl", **look)
    left.set(xlabel="updates", ylabel="approxkl", yscale="log", title="Adam's ε")
    left.legend()
    heights = {name: height for height, name in enumerate(reversed((*KL_COEFS, *SWITCHES)))}
    for name, rows in table.having("gold").by("switch"):
        gold, height = rows.column("gold"), heights[name]
        right.plot(gold, [height] * len(rows), "o", ms=4, color="#2a3f8f", alpha=0.6)
        right.plot(gold.mean(), height, "|", ms=14, color="#2a3f8f")
    right.set_yticks(list(heights.values()), list(heights), fontsize=8)
    right.set(xlabel="gold, SD of SFT", title="PPO with one switch changed")
    return chart
