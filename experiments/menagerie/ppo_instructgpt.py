"""Train PPO-ptx with the details of InstructGPT on the Menagerie (Ouyang 2022 §3.5, App. C.4).

    python -m rlhf_jax.main --config=experiments/menagerie/ppo_instructgpt.py \
        --workdir=runs/menagerie/ppo_instructgpt

Published and kept: one inner epoch, 8 minibatches per batch, clip 0.2, no discount, β = 0.02 fixed,
temperature 1, value network from the reward model, constant learning rate warmed up from a tenth
over 10 iterations, weight average 0.992, 8 pretraining examples per episode, Adam (0.9, 0.95).
Not published, ours: λ = 0.95 (Stiennon 2020), gradient clipping 1, γ of the pretraining loss as a
token mean (their 27.8 belongs to an unstated reduction). Scaled to the model: learning rates and
batch size; 1 example per episode on the CPU sizes.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.menagerie import ppo_ptx
from experiments.menagerie.shared import adam, pick


def get_config(size: str = "default") -> ConfigDict:
    """Set InstructGPT's PPO-ptx."""
    config = ppo_ptx.get_config(size)
    ppo = config.ppo
    ppo.num_ppo_epochs, ppo.num_mini_batches = 1, pick(size, tiny=2, default=8, large=8)
    ppo.kl_coef, ppo.kl_controller, ppo.kl_estimator = 0.02, "fixed", "k1"
    ppo.gamma, ppo.lam, ppo.cliprange, ppo.cliprange_value = 1.0, 0.95, 0.2, 0.2
    ppo.whiten_rewards, ppo.whiten_advantages = False, "batch"
    ppo.ema_decay = 0.992
    ppo.ptx_batch_size = (ppo.batch_size // ppo.num_mini_batches) * pick(
        size, tiny=1, default=1, large=8
    )
    warmup: dict[str, Any] = {
        "schedule": "constant",
        "final_fraction": 1.0,
        "warmup_init_fraction": 0.1,
        "warmup_steps": pick(size, tiny=1, default=10, large=10) * ppo.num_mini_batches,
    }
    config.optimizer = adam(pick(size, tiny=3e-4, default=1e-4, large=9.65e-6), **warmup)
    config.value_optimizer = adam(pick(size, tiny=3e-4, default=3e-4, large=9e-6), **warmup)
    return config
