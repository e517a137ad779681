"""Schulman et al. 2017, Table 1, on the language task: no limit, clipping, adaptive and fixed KL penalties in RLHF.

    python -m rlhf_jax.apps.reproduce ppo_table1_language --seeds=3

The quickstart's PPO with several epochs over each rollout, as the paper has ten, and nothing changed but the policy loss.
Score = (return − untrained) / (best row − untrained) as in `ppo_table1`; the return is the mean reward of a response, with the
KL from SFT in it, over the last quarter of the updates, and untrained is the first rollout's, before anything has moved.
The KL from the old policy is the mean over a rollout's minibatches, in nats per token.
"""

import re
from functools import partial

import numpy as np

from experiments.ablations.measures import metrics
from experiments.ablations.ppo_table1 import CLIP, NONE, ROWS, UNTRAINED, clip_beats_none, clip_is_good, figure, unclipped_fails
from experiments.ablations.shared import base_runs, pick, ppo_run
from rlhf_jax.apps.ablation import Ablation, Bench, Criterion, Measurement, Row, Run

CLIPS, PENALTIES = ("clipping, ε = 0.1", CLIP, "clipping, ε = 0.3"), ("adaptive KL, target 0.01", "fixed KL, β = 1")
WORLD = "language"


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """A PPO run a seed for every policy loss; all of the paper's at size large."""
    losses = pick(size, tiny=(NONE, CLIP), default=(NONE, *CLIPS, *PENALTIES), large=tuple(ROWS))
    runs: list[Run] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        mine = {label: limited(size, seed, label) for label in losses}
        runs += mine.values()
        asked = [(UNTRAINED, mine[CLIP], untrained), *((label, run, trained) for label, run in mine.items())]
        measurements += [
            Measurement(f"seed{seed}-{_name(label)}", {"seed": seed, "environment": WORLD, "loss": label}, (run.folder,), {},
                        partial(ask, folder=run.folder))
            for label, run, ask in asked
        ]  # fmt: skip
    return Ablation("Schulman et al. 2017, Table 1, in language", seeds, runs, measurements, CRITERIA, figure,
                    "Dots: seeds. Bars: mean and 95 % t interval over seeds. Grey: the paper's control tasks.")  # fmt: skip


def limited(size: str, seed: int, label: str) -> Run:
    """PPO with the policy loss of one row."""
    run = ppo_run(size, seed, f"ppo_table1_language/seed{seed}/{_name(label)}")
    _, penalty, surrogate = ROWS[label]
    adaptive = surrogate.kl_target > 0
    if penalty:
        run.config.ppo.update({"policy_loss": "kl_adaptive" if adaptive else "kl_fixed", "kl_penalty_coef": surrogate.beta})
    else:
        run.config.ppo.policy_loss = "none" if np.isinf(surrogate.cliprange) else "clip"
    if adaptive:
        run.config.ppo.kl_penalty_target = surrogate.kl_target
    if run.config.ppo.policy_loss == "clip":
        run.config.ppo.cliprange = surrogate.cliprange
    run.config.ppo.num_ppo_epochs = pick(size, tiny=2, default=8, large=10)
    run.config.ppo.total_episodes = run.config.ppo.batch_size * pick(size, tiny=4, default=12, large=100)
    return run


def _name(label: str) -> str:
    return "-".join(re.findall(r"[\w.]+", label.replace("ε", "eps").replace("β", "beta")))


def trained(bench: Bench, *, folder: str) -> list[Row]:
    """What responses earn in the end, and how far the updates of the run went."""
    rows = metrics(bench.folder(folder))
    late = rows[-max(1, len(rows) // 4) :]
    kl = [float(row["policy/approxkl_avg"]) for row in rows]
    return [{"return": float(np.mean([float(row["objective/rlhf_reward"]) for row in late])), "kl": float(np.mean(kl)),
             "kl_max": max(kl), "entropy": float(rows[-1]["objective/entropy"])}]  # fmt: skip


def untrained(bench: Bench, *, folder: str) -> list[Row]:
    """What the first rollout earned."""
    return [{"return": float(metrics(bench.folder(folder))[0]["objective/rlhf_reward"])}]


CRITERIA = (
    Criterion("E15.none", "without a limit: score ≤ 0, or mean KL(old ‖ new) > 10 times that of clip 0.2", unclipped_fails),
    Criterion("E15.clip", "clip 0.2 is within one standard error of the best row", clip_is_good),
    Criterion("E15.limit", "clip 0.2 scores higher than no limit (interval of the difference above 0)", clip_beats_none),
)
