"""Train PPO with the details of lm-human-preferences on the Menagerie (Ziegler 2019 and its code).

    python -m rlhf_jax.main --config=experiments/menagerie/ppo_openai_2019.py \
        --workdir=runs/menagerie/ppo_openai_2019

Published and kept: 4 epochs x 1 minibatch, adaptive KL from 0.15 towards 6 nats with a horizon of
10,000 episodes, reward whitening without mean shift, advantages whitened per minibatch, value
coefficient 0.1, value clip 0.2, missing-end score replaced by -1, linear decay to 0, TensorFlow's
Adam with ε = 1e-5, no gradient clipping, temperature 0.7.
Differs: policy and value are separate networks here, the value network starts from the policy with
a fresh head (they shared a trunk with a zero head); responses end at the end token, not at a full
stop after 16 tokens. Learning rate scaled.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.menagerie import ppo as ours
from experiments.menagerie.shared import adam, pick


def get_config(size: str = "default") -> ConfigDict:
    """Set Fine-Tuning Language Models from Human Preferences, sentiment task."""
    config = ours.get_config(size)
    config.init.value = "policy"
    ppo = config.ppo
    ppo.num_ppo_epochs, ppo.num_mini_batches = 4, 1
    ppo.temperature = 0.7
    ppo.kl_coef, ppo.kl_controller, ppo.kl_target, ppo.kl_horizon = 0.15, "adaptive", 6.0, 10_000
    ppo.whiten_rewards, ppo.whiten_advantages = True, "minibatch"
    ppo.vf_coef, ppo.missing_eos_penalty, ppo.missing_eos_mode = 0.1, 1.0, "replace"
    decay: dict[str, Any] = {
        "schedule": "linear",
        "final_fraction": 0.0,
        "b2": 0.999,
        "eps": 1e-5,
        "adam_style": "tf",
        "max_grad_norm": 0.0,
    }
    config.optimizer = adam(pick(size, tiny=3e-4, default=1e-4, large=1e-5), **decay)
    config.value_optimizer = adam(pick(size, tiny=3e-4, default=1e-4, large=1e-5), **decay)
    return config
