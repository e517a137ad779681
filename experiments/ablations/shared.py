"""What ablations share: the base runs of every seed, reward models and policies that stand on them, and their folders.

base/seedS/{pretrain,sft,label,reward}    the quickstart's stages with seed S; trained once for all ablations
base/seedS/TRUNK/{pretrain,sft}       the same on a smaller model, from which smaller reward models start
rm/seedS/TRUNK-N                      a reward model on the first N rankings of base/seedS/label
ppo/seedS/[TRUNK-]klβ-ptxγ            the quickstart's PPO with these coefficients
NAME/seedS/RUN                        an ablation's own runs
"""

import os
from dataclasses import replace

from ml_collections import ConfigDict

from experiments.ablations.framework import GridRun
from experiments.menagerie import label, ppo, ppo_ptx, pretrain, reward, sft
from experiments.menagerie.shared import pick
from rlhf_jax.models.config import from_dict, to_dict

STAGES = {"pretrain": pretrain, "sft": sft, "label": label, "reward": reward}
# Width, layers and heads of trunks smaller than the policy's, which is called m (128 x 4 at default size).
TRUNKS = {
    "xs": {"tiny": (16, 1, 2), "default": (32, 1, 2), "large": (128, 2, 2)},
    "s": {"tiny": (24, 1, 2), "default": (64, 2, 2), "large": (256, 4, 4)},
}

KL_COEF, PTX_COEF = (
    ppo_ptx.get_config().ppo[name] for name in ("kl_coef", "ptx_coef")
)  # the quickstart's, of every size


def base(seed: int, stage: str, trunk: str = "m") -> str:
    """The folder of a base run."""
    return f"base/seed{seed}/{stage}" if trunk == "m" else f"base/seed{seed}/{trunk}/{stage}"


def beside(parent: str, child: str) -> str:
    """The parent's folder as the child's config names it."""
    return os.path.relpath(parent, child)


def base_runs(
    size: str, seed: int, *trunks: str, stages: tuple[str, ...] = tuple(STAGES)
) -> list[GridRun]:
    """The base stages of a seed in order, and pretraining and SFT of smaller trunks."""
    runs = []
    for stage in stages:
        config = STAGES[stage].get_config(size)
        config.seed = seed
        runs.append(GridRun(base(seed, stage), config))
    return runs + [
        run for trunk in trunks if trunk != "m" for run in _trunk_runs(size, seed, trunk)
    ]


def _trunk_runs(size: str, seed: int, trunk: str) -> list[GridRun]:
    runs = []
    for stage in ("pretrain", "sft"):
        config = STAGES[stage].get_config(size)
        config.seed = seed
        runs.append(GridRun(base(seed, stage, trunk), config))
    width, num_layers, num_heads = TRUNKS[trunk][size]
    model = replace(
        from_dict(runs[0].config.model.to_dict()),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        ffw_width=width * 11 // 4,
        embedding_std=width**-0.5,
    )
    runs[0].config.model = to_dict(model)
    runs[1].config.monitor = None  # nobody talks to it
    return runs


def reward_model(size: str, seed: int, trunk: str, num_rankings: int) -> GridRun:
    """A reward model on the first rankings of the seed's base; the base's own if it is the largest on all of them."""
    if trunk == "m" and num_rankings == label.get_config(size).label.num_prompts:
        config = reward.get_config(size)
        config.seed = seed
        return GridRun(base(seed, "reward"), config)
    folder = f"rm/seed{seed}/{trunk}-{num_rankings}"
    return reward_run(size, seed, folder, trunk=trunk, num_rankings=num_rankings)


def reward_run(size: str, seed: int, folder: str, *, trunk: str, num_rankings: int) -> GridRun:
    """A reward model of an ablation's own on the first rankings of the seed's base."""
    config = reward.get_config(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "sft", trunk), folder)
    collected = beside(base(seed, "label"), folder)
    config.data.comparisons = f"{collected}?train=train[:{num_rankings}]"
    config.optimizer.warmup_steps = min(
        config.optimizer.warmup_steps, num_rankings // config.reward.batch_size // 8
    )
    return GridRun(folder, config)


def ppo_run(
    size: str, seed: int, folder: str, *, ptx: bool = False, reward_folder: str = ""
) -> GridRun:
    """PPO from the seed's base, as the quickstart does it; without the monitor, since measurements come afterwards."""
    config = (ppo_ptx if ptx else ppo).get_config(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "sft"), folder)
    config.init.reward = beside(reward_folder or base(seed, "reward"), folder)
    config.monitor = None
    return GridRun(folder, config)


def policy(size: str, seed: int, *, kl_coef: float, ptx_coef: float, trunk: str = "m") -> GridRun:
    """PPO with these two coefficients, otherwise as in the quickstart; all ablations share the run.

    A smaller trunk is that of the policy alone: the reward model and the value function are the largest.
    """
    name = f"kl{kl_coef}-ptx{ptx_coef}" if trunk == "m" else f"{trunk}-kl{kl_coef}-ptx{ptx_coef}"
    run = ppo_run(size, seed, f"ppo/seed{seed}/{name}", ptx=ptx_coef > 0)
    run.config.init.policy = beside(base(seed, "sft", trunk), run.folder)
    run.config.ppo.kl_coef = kl_coef
    if ptx_coef:
        run.config.ppo.ptx_coef = ptx_coef
    return run


def keep_checkpoints(run: GridRun, every: int) -> list[int]:
    """Have a PPO run keep a checkpoint every so many updates, and return their steps."""
    config: ConfigDict = run.config
    updates = config.ppo.total_episodes // config.ppo.batch_size
    config.checkpoint.save_every, config.checkpoint.keep = every, updates
    return sorted({*range(every, updates + 1, every), updates})


__all__ = [
    "KL_COEF",
    "PTX_COEF",
    "TRUNKS",
    "base",
    "base_runs",
    "beside",
    "keep_checkpoints",
    "pick",
    "policy",
    "ppo_run",
    "reward_model",
    "reward_run",
]
