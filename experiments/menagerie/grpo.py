"""GRPO: PPO's clipped ratio with advantages relative to the group of responses to one prompt (Shao 2024, DeepSeekMath).

    python -m rlhf_jax.main --config=experiments/menagerie/grpo.py --workdir=runs/menagerie/grpo

What differs from ppo.py: no value network; one advantage (R - mean) / std for all tokens of a response; the KL is k3 in the
loss and not in the reward; the loss is a mean per response first. k3's gradient is not that of KL(π ‖ ref), so the same kl_coef
regularises differently (tests/maths/test_losses.py has the optimum that it leads to).
"""

from ml_collections import ConfigDict

from experiments.menagerie import rloo


def get_config(size: str = "default") -> ConfigDict:
    """rloo.py's groups, DeepSeekMath's loss; the standard deviation is the sample's, as in TRL."""
    config = rloo.get_config(size)
    config.policy_gradient.update(
        {
            "loss": "clip",
            "num_mini_batches": 2,
            "baseline": "group",
            "group_std": "sample",
            "reduction": "response_mean",
            "kl_in": "loss",
        }
    )
    return config
