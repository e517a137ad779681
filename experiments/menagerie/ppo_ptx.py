"""PPO-ptx: PPO with the language-model loss on pretraining documents added (Ouyang 2022 eq. 2).

python -m rlhf_jax.main --config=experiments/menagerie/ppo_ptx.py --workdir=runs/menagerie/ppo_ptx
"""

from ml_collections import ConfigDict

from experiments.menagerie import ppo
from experiments.menagerie.shared import pick


def get_config(size: str = "default") -> ConfigDict:
    """The same run as ppo.py but for γ. InstructGPT's 27.8 belongs to reductions it does not state; ours is a token mean."""
    config = ppo.get_config(size)
    config.ppo.ptx_coef = 1.0
    config.ppo.ptx_batch_size = pick(size, tiny=2, default=16, large=64)
    return config
