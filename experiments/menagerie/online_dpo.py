"""Train online DPO on the reward model's best and worst of the policy's own responses (Guo 2024).

    python -m rlhf_jax.main --config=experiments/menagerie/online_dpo.py \
        --workdir=runs/menagerie/online_dpo

What differs from ppo.py: no value network, no advantages; the reward model's scores only choose.
kl_coef is DPO's β.
What differs from dpo.py: the pairs come from the policy as it is now, and from the reward model.

Two CPU cores, three seeds: gold 0.38 SD over SFT (PPO: 0.44).
"""

from ml_collections import ConfigDict

from experiments.menagerie import rloo


def get_config(size: str = "default") -> ConfigDict:
    """Take rloo.py's groups of four; β is larger than PPO's, as it weighs whole responses."""
    config = rloo.get_config(size)
    config.policy_gradient.update({"loss": "dpo", "baseline": "none", "kl_coef": 0.1})
    return config
