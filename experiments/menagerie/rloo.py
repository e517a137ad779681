"""RLOO: REINFORCE with the other responses to the same prompt as the baseline (Ahmadian 2024); no value network, no clip.

    python -m rlhf_jax.main --config=experiments/menagerie/rloo.py --workdir=runs/menagerie/rloo

What differs from ppo.py: four responses to each of a quarter as many prompts; the whole response is one action; one gradient
step per batch. The other group algorithms (reinforce.py, grpo.py, dr_grpo.py, online_dpo.py, expert_iteration.py) are this
file with other settings, so that all of them see as many samples as PPO.
"""

from ml_collections import ConfigDict

from experiments.menagerie import ppo
from experiments.menagerie.shared import pick


def get_config(size: str = "default") -> ConfigDict:
    """PPO's rollouts, reward rules, optimizer and monitor, with the policy-gradient stage's settings."""
    config = ppo.get_config(size)
    their, config.stage = config.ppo, "policy_gradient"
    del config.ppo, config.value_optimizer, config.init.value, config.data.documents
    config.policy_gradient = {
        "total_episodes": their.total_episodes,
        "batch_size": their.batch_size,
        "samples_per_prompt": 4,
        "num_epochs": 1,
        "num_mini_batches": 1,
        "num_micro_batches": 1,
        "response_length": their.response_length,
        "sampling_rows": their.sampling_rows,
        "temperature": 1.0,
        "loss": "reinforce",
        "baseline": "leave_one_out",
        "group_std": "none",
        "group_std_eps": 1e-4,
        "reduction": "token_mean",
        "cliprange": 0.2,
        "cliprange_high": 0.2,
        "kl_coef": their.kl_coef,
        "kl_in": "reward",
        "kl_estimator": "k1",
        "missing_eos_penalty": their.missing_eos_penalty,
        "missing_eos_mode": their.missing_eos_mode,
        "score_clip": 0.0,
        "score_normalisation": "none",
    }
    config.optimizer.learning_rate = pick(size, tiny=3e-4, default=3e-4, large=1e-5)
    return config
