"""Make the runs that ablations share: the base runs of every seed, and models that stand on them.

base/seedS/{pretrain,sft,label,reward}    the quickstart's stages with seed S, trained once for all
base/seedS/TRUNK/{pretrain,sft}       the same on a smaller model, where smaller reward models start
rm/seedS/TRUNK-N                      a reward model on the first N rankings of base/seedS/label
ppo/seedS/[TRUNK-]klβ-ptxγ            the quickstart's PPO with these coefficients
NAME/seedS/RUN                        an ablation's own runs
"""

import os
from dataclasses import replace

from ml_collections import ConfigDict

from experiments.ablations.framework import GridRun
from experiments.menagerie import label, ppo, ppo_ptx, pretrain, reward, sft
from experiments.menagerie.shared import pick as pick
from rlhf_jax.models.config import from_dict, to_dict

STAGES = {"pretrain": pretrain, "sft": sft, "label": label, "reward": reward}
# Width, layers and heads of trunks smaller than the policy's, which is called m (128 x 4).
TRUNKS = {
    "xs": {"tiny": (16, 1, 2), "default": (32, 1, 2), "large": (128, 2, 2)},
    "s": {"tiny": (24, 1, 2), "default": (64, 2, 2), "large": (256, 4, 4)},
}
SIZES = (*TRUNKS, "m")  # from the smallest to the largest
KL_COEF: float = ppo_ptx.get_config().ppo.kl_coef  # the quickstart's, of every size
PTX_COEF: float = ppo_ptx.get_config().ppo.ptx_coef


def base(seed: int, stage: str, trunk: str = "m") -> str:
    """Return the folder of a base run."""
    return f"base/seed{seed}/{stage}" if trunk == "m" else f"base/seed{seed}/{trunk}/{stage}"


def beside(parent: str, child: str) -> str:
    """Return the parent's folder as the child's config names it."""
    return os.path.relpath(parent, child)


def base_runs(
    size: str, seed: int, *trunks: str, stages: tuple[str, ...] = tuple(STAGES)
) -> list[GridRun]:
    """Return the base stages of a seed in order, and pretraining and SFT of smaller trunks."""
    runs = [_stage_run(size, seed, stage, "m") for stage in stages]
    for trunk in trunks:
        if trunk != "m":
            runs += _trunk_runs(size, seed, trunk)
    return runs


def _stage_run(size: str, seed: int, stage: str, trunk: str) -> GridRun:
    config = STAGES[stage].get_config(size)
    config.seed = seed
    return GridRun(base(seed, stage, trunk), config)


def _trunk_runs(size: str, seed: int, trunk: str) -> list[GridRun]:
    runs = [_stage_run(size, seed, stage, trunk) for stage in ("pretrain", "sft")]
    width, num_layers, num_heads = TRUNKS[trunk][size]
    resize(runs[0].config, width, num_layers, num_heads)
    runs[1].config.monitor = None
    return runs


def resize(config: ConfigDict, width: int, num_layers: int, num_heads: int) -> None:
    """Change a pretraining's model to these sizes, everything else in proportion."""
    model = replace(
        from_dict(config.model.to_dict()),
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_width=width // num_heads,
        ffw_width=width * 11 // 4,
        embedding_std=width**-0.5,
    )
    config.model = to_dict(model)


def reward_model(size: str, seed: int, trunk: str, num_rankings: int) -> GridRun:
    """Return a reward model on the first rankings of the base: its own, if that has all of them."""
    if trunk == "m" and num_rankings == label.get_config(size).label.num_prompts:
        return _stage_run(size, seed, "reward", "m")
    folder = f"rm/seed{seed}/{trunk}-{num_rankings}"
    return reward_run(size, seed, folder, trunk=trunk, num_rankings=num_rankings)


def reward_run(size: str, seed: int, folder: str, *, trunk: str, num_rankings: int) -> GridRun:
    """Return a reward model of an ablation's own on the first rankings of the seed's base."""
    config = reward.get_config(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "sft", trunk), folder)
    labels = beside(base(seed, "label"), folder)
    config.data.comparisons = f"{labels}?train=train[:{num_rankings}]"
    updates = num_rankings // config.reward.batch_size
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, updates // 8)
    return GridRun(folder, config)


def ppo_run(
    size: str, seed: int, folder: str, *, ptx: bool = False, reward_folder: str = ""
) -> GridRun:
    """Return the quickstart's PPO from the seed's base, without the monitor."""
    config = (ppo_ptx if ptx else ppo).get_config(size)
    config.seed = seed
    config.init.policy = beside(base(seed, "sft"), folder)
    config.rewards.reward.source = f"reward:{beside(reward_folder or base(seed, 'reward'), folder)}"
    config.monitor = None
    return GridRun(folder, config)


def policy(size: str, seed: int, *, kl_coef: float, ptx_coef: float, trunk: str = "m") -> GridRun:
    """Return the quickstart's PPO with these two coefficients, a run that all ablations share.

    A smaller trunk is that of the policy alone: reward model and value function are the largest.
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
    config.checkpoint.save_every = every
    config.checkpoint.keep = updates
    return sorted({*range(every, updates + 1, every), updates})
