"""Schulman et al. 2017, Table 1, on the language task: no limit, clipping, adaptive and fixed KL penalties in RLHF.

    python -m experiments.ablations.reproduce ppo_table1_language --seeds=3

The quickstart's PPO with several epochs over each rollout, as the paper has ten, and nothing changed but the policy loss.
Score = (return − untrained) / (best row − untrained) as in `ppo_table1`; the return is the mean reward of a response, with the
KL from SFT in it, over the last quarter of the updates, and untrained is the first rollout's, before anything has moved.
The KL from the old policy is the mean over a rollout's minibatches, in nats per token.
"""

import re
from functools import partial

import numpy as np

from experiments.ablations.framework import Ablation, Bench, GridRun, Measurement, Row
from experiments.ablations.measures import metrics
from experiments.ablations.ppo_table1 import CLIP, CRITERIA, NONE, ROWS, UNTRAINED, figure
from experiments.ablations.shared import base_runs, keep_checkpoints, pick, ppo_run

CLIPS, PENALTIES = (
    ("clipping, ε = 0.1", CLIP, "clipping, ε = 0.3"),
    ("adaptive KL, target 0.01", "fixed KL, β = 1"),
)
WORLD = "language"


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """A PPO run a seed for every policy loss; all of the paper's at size large."""
    losses = pick(size, tiny=(NONE, CLIP), default=(NONE, *CLIPS, *PENALTIES), large=tuple(ROWS))
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        mine = {label: limited(size, seed, label) for label in losses}
        runs += mine.values()
        asked = [
            (UNTRAINED, mine[CLIP], untrained),
            *((label, run, trained) for label, run in mine.items()),
        ]
        measurements += [
            Measurement(
                f"seed{seed}-{_name(label)}",
                {"seed": seed, "environment": WORLD, "loss": label},
                (run.folder,),
                {},
                partial(ask, folder=run.folder),
            )
            for label, run, ask in asked
        ]
    criteria = [
        one for one in CRITERIA if one.name != "E15.target"
    ]  # of the targets, which not every size has
    return Ablation(
        "Schulman et al. 2017, Table 1, in language",
        seeds,
        runs,
        measurements,
        criteria,
        figure,
        "Dots: seeds. Bars: mean and 95 % t interval over seeds. Grey: the paper's control tasks.",
    )


def limited(size: str, seed: int, label: str) -> GridRun:
    """PPO with the policy loss of one row."""
    run = ppo_run(size, seed, f"ppo_table1_language/seed{seed}/{_name(label)}")
    settings, (_, penalty, surrogate) = run.config.ppo, ROWS[label]
    if penalty and surrogate.kl_target:
        settings.update(
            policy_loss="kl_adaptive",
            kl_penalty_coef=surrogate.beta,
            kl_penalty_target=surrogate.kl_target,
        )
    elif penalty:
        settings.update(policy_loss="kl_fixed", kl_penalty_coef=surrogate.beta)
    elif np.isfinite(surrogate.cliprange):
        settings.update(policy_loss="clip", cliprange=surrogate.cliprange)
    else:
        settings.policy_loss = "none"
    settings.num_ppo_epochs = pick(size, tiny=2, default=8, large=10)
    settings.total_episodes = settings.batch_size * pick(size, tiny=4, default=12, large=100)
    keep_checkpoints(run, 2)  # or a run that diverges would leave nothing to measure its steps by
    return run


def _name(label: str) -> str:
    return "-".join(re.findall(r"[\w.]+", label.replace("ε", "eps").replace("β", "beta")))


def trained(bench: Bench, *, folder: str) -> list[Row]:
    """What responses earn in the end, and how far the updates of the run went; a run that diverged has earned nothing."""
    rows = metrics(bench.folder(folder))
    late = rows[-max(1, len(rows) // 4) :]
    kl = [float(row["policy/approxkl_avg"]) for row in rows]
    measured: Row = {
        "kl": float(np.mean(kl)),
        "kl_max": max(kl),
        "entropy": float(rows[-1]["objective/entropy"]),
    }
    if (bench.folder(folder) / "diverged.json").exists():
        return [measured]
    return [
        {
            "return": float(np.mean([float(row["objective/rlhf_reward"]) for row in late])),
            **measured,
        }
    ]


def untrained(bench: Bench, *, folder: str) -> list[Row]:
    """What the first rollout earned."""
    return [{"return": float(metrics(bench.folder(folder))[0]["objective/rlhf_reward"])}]
