"""Train PPO with the "N+ implementation details" of TL;DR on the Menagerie (Huang 2024).

    python -m rlhf_jax.main --config=experiments/menagerie/ppo_tldr_2024.py \
        --workdir=runs/menagerie/ppo_tldr_2024

Published and kept: 4 epochs x 1 minibatch, β = 0.05 fixed, value network from the reward model, no
reward whitening, advantages whitened over the batch, value coefficient 0.1, missing-end score
replaced by -1, temperature 0.7, Adam ε = 1e-5, linear decay. Learning rate scaled to the model
(theirs: 3e-6).
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.menagerie import ppo as ours
from experiments.menagerie.shared import adam, pick


def get_config(size: str = "default") -> ConfigDict:
    """Set The N+ Implementation Details of RLHF with PPO."""
    config = ours.get_config(size)
    ppo = config.ppo
    ppo.num_ppo_epochs, ppo.num_mini_batches = 4, 1
    ppo.temperature = 0.7
    ppo.kl_coef, ppo.kl_controller = 0.05, "fixed"
    ppo.whiten_rewards, ppo.whiten_advantages = False, "batch"
    ppo.vf_coef, ppo.missing_eos_penalty, ppo.missing_eos_mode = 0.1, 1.0, "replace"
    decay: dict[str, Any] = {
        "schedule": "linear",
        "final_fraction": 0.0,
        "b2": 0.999,
        "eps": 1e-5,
        "max_grad_norm": 0.0,
    }
    config.optimizer = adam(pick(size, tiny=3e-4, default=1e-4, large=3e-6), **decay)
    config.value_optimizer = adam(pick(size, tiny=3e-4, default=1e-4, large=3e-6), **decay)
    return config
