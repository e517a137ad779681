"""Train expert iteration: imitate the reward model's best response to a prompt (Anthony 2017).

    python -m rlhf_jax.main --config=experiments/menagerie/expert_iteration.py \
        --workdir=runs/menagerie/expert_iteration

What differs from ppo.py: no value network, no advantages, no KL: the expert is best-of-n of the
policy itself. A round samples as many episodes as four PPO updates and goes over its best responses
in epochs and minibatches; the next round starts from the policy of this one.

Two CPU cores, three seeds: gold 0.23 SD over SFT (PPO: 0.44).
"""

from ml_collections import ConfigDict

from experiments.menagerie import rloo
from experiments.menagerie.shared import pick


def get_config(size: str = "default") -> ConfigDict:
    """Take few large rounds; the reference is only watched."""
    config = rloo.get_config(size)
    rounds = pick(size, tiny=2, default=10, large=50)
    config.policy_gradient.update(
        {
            "loss": "best",
            "baseline": "none",
            "batch_size": config.policy_gradient.total_episodes // rounds,
            "num_epochs": 2,
            "num_mini_batches": pick(size, tiny=2, default=4, large=8),
            "kl_coef": 0.0,
        }
    )
    config.checkpoint.save_every = pick(size, tiny=1, default=5, large=10)
    config.monitor.every = pick(size, tiny=1, default=5, large=5)
    return config
