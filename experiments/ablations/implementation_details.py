"""Huang et al. 2023 (N details, on Adam) and the switches on which PPO codes differ most.

    python -m experiments.ablations.reproduce implementation_details --seeds=3

Adam: TensorFlow adds ε = 1e-5 before the bias correction of the second moment, optax and PyTorch after it, so that TensorFlow's
first steps are much smaller; the first eight updates of four epochs of one minibatch, at a constant rate. Switches: the
quickstart's PPO with one thing changed; a table of final gold, KL and preference without any claim, since the papers make none.
"""

from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
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
)
from experiments.ablations.measures import measure_end, metrics
from experiments.ablations.shared import KL_COEF, base_runs, pick, policy, ppo_run

ADAMS = ("torch", "tf")
EARLY = 8  # updates


def _set(**values: float | str | bool) -> Callable[[ConfigDict], None]:
    return lambda config: config.ppo.update(values)


KL_COEFS = {
    "quickstart": KL_COEF,
    "no KL in the reward": 0.0,
}  # runs that other ablations have, too
SWITCHES: dict[str, Callable[[ConfigDict], None]] = {
    "k3 in the reward": _set(kl_estimator="k3"),
    "lam 1": _set(lam=1.0),
    "penalty subtracted": _set(missing_eos_mode="subtract"),
    "rewards whitened": _set(whiten_rewards=True),
    "advantages not whitened": _set(whiten_advantages="none"),
    "4 epochs": _set(num_ppo_epochs=4),
    "value from policy": lambda config: config.init.update(value="policy"),
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Two short runs for Adam and one for every switch, a seed."""
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        for style in ADAMS:
            run = _adam_run(size, seed, style)
            runs.append(run)
            measurements.append(
                Measurement(
                    f"seed{seed}-adam-{style}",
                    {"seed": seed, "adam": style},
                    (run.folder,),
                    {},
                    partial(early, folder=run.folder),
                )
            )
        switched = {
            name: policy(size, seed, kl_coef=kl_coef, ptx_coef=0.0)
            for name, kl_coef in KL_COEFS.items()
        }
        for name, switch in SWITCHES.items():
            run = ppo_run(size, seed, f"implementation_details/seed{seed}/{name.replace(' ', '-')}")
            switch(run.config)
            switched[name] = run
        runs += switched.values()
        measurements += [
            measure_end(size, run, seed, {"switch": name}, start=False)
            for name, run in switched.items()
        ]
    return Ablation("Huang et al. 2023; peers", seeds, runs, measurements, CRITERIA, figure)


def _adam_run(size: str, seed: int, style: str) -> GridRun:
    """Several steps on each rollout, or approxkl would be 0: the first minibatch of a rollout is on policy."""
    run = ppo_run(size, seed, f"implementation_details/seed{seed}/adam-{style}")
    ppo = run.config.ppo
    ppo.num_ppo_epochs, ppo.num_mini_batches = 4, 1
    ppo.total_episodes = ppo.batch_size * pick(size, tiny=2, default=EARLY, large=EARLY)
    for optimizer in (run.config.optimizer, run.config.value_optimizer):
        optimizer.update(
            adam_style=style,
            eps=1e-5,
            b2=0.999,
            warmup_steps=0,
            warmup_init_fraction=0.0,
            max_grad_norm=0.0,
        )
    return run


def early(bench: Bench, *, folder: str) -> list[Row]:
    """How far each of the first updates moves the policy."""
    names = {
        "approxkl": "policy/approxkl_avg",
        "clipfrac": "policy/clipfrac_avg",
        "ratio_var": "val/ratio_var",
    }
    return [
        {"update": row["step"], **{name: float(row[key]) for name, key in names.items()}}
        for row in metrics(bench.folder(folder))
    ]


def adam(table: Table) -> Finding:
    """Mean approxkl of the first two updates, optax's over TensorFlow's."""
    first = {
        style: table.where(adam=style)
        .having("approxkl")
        .each_seed(lambda one: one.column("approxkl")[:2].mean())
        for style in ADAMS
    }
    found = t_interval(
        [first["torch"][seed] / first["tf"][seed] for seed in first["torch"] if seed in first["tf"]]
    )
    return Finding(found.mean > 2, *found, "theirs 6.4 with GPT-2")


CRITERIA = (
    Criterion(
        "E26",
        "approxkl of the first two updates is more than twice as large with optax's Adam",
        adam,
    ),
)


def figure(table: Table) -> Figure:
    """approxkl over the first updates; gold of every switch."""
    made, axes = plt.subplots(1, 2, figsize=(9.5, 3.8))
    for style, colour in zip(ADAMS, ("#d9822b", "#2a3f8f"), strict=True):
        draw_seeds(
            axes[0],
            table.where(adam=style),
            "update",
            "approxkl",
            colour=colour,
            label=f"Adam as in {style}",
        )
    axes[0].set(xlabel="updates", ylabel="approxkl", yscale="log", title="Adam's ε")
    axes[0].legend(frameon=False, fontsize=8)
    places = {name: place for place, name in enumerate(reversed((*KL_COEFS, *SWITCHES)))}
    rows = Table(
        [{**row, "place": places[str(row["switch"])]} for row in table.rows if "switch" in row]
    )
    for _, part in rows.having("gold").by("switch"):
        axes[1].plot(
            part.column("gold"), part.column("place"), "o", ms=4, color="#2a3f8f", alpha=0.6
        )
        axes[1].plot(
            part.column("gold").mean(), part.column("place")[0], "|", ms=14, color="#2a3f8f"
        )
    axes[1].set_yticks(list(places.values()), list(places), fontsize=8)
    axes[1].set(xlabel="gold, SD of SFT", title="PPO with one switch changed")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
