"""Compare no limit, clipping, adaptive and fixed KL penalties in RLHF on the language task.

    python -m experiments.ablations.reproduce ppo_table1_language --seeds=3

Schulman et al. 2017, Table 1. The quickstart's PPO with several epochs over each rollout, as the
paper has ten, and nothing changed but the policy loss. Score = (return − untrained) / (best row −
untrained) as in `ppo_table1`; the return is the mean reward of a response, with the KL from SFT in
it, over the last quarter of the updates, and untrained is the first rollout's, before anything has
moved. The KL from the old policy is the mean over a rollout's minibatches, in nats per token.
"""

import re

import numpy as np

from experiments.ablations.framework import Ablation, Context, GridRun, Row
from experiments.ablations.measures import metrics
from experiments.ablations.ppo_table1 import (
    CLIP,
    CRITERIA,
    NONE,
    ROWS,
    UNTRAINED,
    figure,
    target_is_met,
)
from experiments.ablations.shared import base_runs, keep_checkpoints, pick, ppo_run

FEW = (
    "clipping, ε = 0.1",
    CLIP,
    "clipping, ε = 0.3",
    "adaptive KL, target 0.01",
    "fixed KL, β = 1",
)
ENVIRONMENT = "language"


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Run PPO once a seed for every policy loss; all of the paper's at size large."""
    losses = pick(size, tiny=(NONE, CLIP), default=(NONE, *FEW), large=tuple(ROWS))
    notes = (
        "Dots: seeds. Bars: mean and 95 % t interval over seeds. Grey: the paper's control tasks."
    )
    # Not every size has the targets.
    criteria = [criterion for criterion in CRITERIA if criterion.judge is not target_is_met]
    paper = "Schulman et al. 2017, Table 1, in language"
    ablation = Ablation(paper, seeds, criteria, figure, notes)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        runs = {loss: make_run(size, seed, loss) for loss in losses}
        ablation.add_runs(*runs.values())
        cells = [(UNTRAINED, runs[CLIP].folder, measure_start)]
        cells += [(loss, run.folder, measure_end) for loss, run in runs.items()]
        for loss, folder, measure in cells:
            point: Row = {"seed": seed, "environment": ENVIRONMENT, "loss": loss}
            name = f"seed{seed}-{_name(loss)}"
            ablation.add_measurement(name, point, (folder,), measure, folder=folder)
    return ablation


def make_run(size: str, seed: int, loss: str) -> GridRun:
    """Return PPO with the policy loss of one row."""
    run = ppo_run(size, seed, f"ppo_table1_language/seed{seed}/{_name(loss)}")
    ppo, (_, penalty, surrogate) = run.config.ppo, ROWS[loss]
    if penalty:
        ppo.policy_loss = "kl_adaptive" if surrogate.kl_target else "kl_fixed"
        ppo.kl_penalty_coef = surrogate.beta
        if surrogate.kl_target:
            ppo.kl_penalty_target = surrogate.kl_target
    elif np.isfinite(surrogate.cliprange):
        ppo.update(policy_loss="clip", cliprange=surrogate.cliprange)
    else:
        ppo.policy_loss = "none"
    ppo.num_ppo_epochs = pick(size, tiny=2, default=8, large=10)
    ppo.total_episodes = ppo.batch_size * pick(size, tiny=4, default=12, large=100)
    keep_checkpoints(run, 2)  # or a run that diverges would leave nothing to measure its steps by
    return run


def _name(loss: str) -> str:
    return "-".join(re.findall(r"[\w.]+", loss.replace("ε", "eps").replace("β", "beta")))


def measure_end(context: Context, *, folder: str) -> list[Row]:
    """Return what responses earn in the end, and how far the updates of the run went.

    A run that diverged has earned nothing.
    """
    rows = metrics(context.folder(folder))
    late = rows[-max(1, len(rows) // 4) :]
    kl = [float(row["policy/approxkl_avg"]) for row in rows]
    entropy = float(rows[-1]["objective/entropy"])
    row: Row = {"kl": float(np.mean(kl)), "kl_max": max(kl), "entropy": entropy}
    if not (context.folder(folder) / "diverged.json").exists():
        row["return"] = float(np.mean([float(row["objective/rlhf_reward"]) for row in late]))
    return [row]


def measure_start(context: Context, *, folder: str) -> list[Row]:
    """Return what the first rollout earned."""
    return [{"return": float(metrics(context.folder(folder))[0]["objective/rlhf_reward"])}]
