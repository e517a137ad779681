"""The whole recipe: pretrain, SFT, reward model, PPO, PPO-ptx, evaluation. `make quickstart` runs this file.

    python -m rlhf_jax.main --config=experiments/menagerie/pipeline.py --workdir=runs/quickstart
    python -m rlhf_jax.main --config=experiments/menagerie/pipeline.py:tiny --workdir=/tmp/tour       (under a minute)

Any field of any stage is one flag: --config.stages.ppo_ptx.ppo.kl_coef=0.1 --config.seed=1
"""

from ml_collections import ConfigDict

from experiments.menagerie import evaluate, ppo, ppo_ptx, pretrain, reward, sft


def get_config(size: str = "default") -> ConfigDict:
    """Stages in order; each runs in WORKDIR/NAME and is skipped when it is complete."""
    stages = {
        "pretrain": pretrain,
        "sft": sft,
        "reward": reward,
        "ppo": ppo,
        "ppo_ptx": ppo_ptx,
        "evaluate": evaluate,
    }
    return ConfigDict(
        {
            "stage": "pipeline",
            "seed": 0,
            "order": list(stages),
            "stages": {name: module.get_config(size) for name, module in stages.items()},
        }
    )
