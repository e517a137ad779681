"""DPO on the reward model's own rankings: the policy is its own reward model (Rafailov 2023).

    python -m rlhf_jax.main --config=experiments/menagerie/dpo.py --workdir=runs/menagerie/dpo

What differs from ppo.py: no reward model, no value network, no sampling. PPO's KL-regularised
optimum is written as a reward, β log π/π_ref, and fitted to rankings that were collected before; β
is the KL coefficient of that optimum. cdpo.py, ipo.py and kto.py are other losses.

Reads ../sft and ../label. rewards/accuracy and validation/accuracy_* are those of the implicit
reward, on the same rankings as the reward stage's. Two CPU cores, three seeds: gold 0.48 SD over
SFT at 0.9 nats of KL (PPO: 0.44 at 4.0); held-out labels ranked in 0.635 (the reward model: 0.675).
"""

from ml_collections import ConfigDict

from experiments.menagerie import reward_last_token
from experiments.menagerie.shared import adam, monitor, pick

# Settings of the reward stage: the accuracies of both are on the same batches.
SHARED_SETTINGS = (
    "num_epochs",
    "batch_size",
    "num_micro_batches",
    "max_length",
    "row_length",
    "max_candidates",
    "pair_norm",
    "eval_every",
)


def get_config(size: str = "default") -> ConfigDict:
    """Take the reward stage's batches, all pairs of a prompt, and a policy's learning rate."""
    config = reward_last_token.get_config(size)
    reward_settings = config.reward
    config.stage = "preference"
    del config.reward, config.data.earlier, config.data.demonstrations
    config.preference = {
        "loss": "dpo",
        "beta": 0.1,
        "label_smoothing": 0.0,
        "better_weight": 1.0,
        "worse_weight": 1.0,
        **{name: reward_settings[name] for name in SHARED_SETTINGS},
    }
    config.monitor = monitor(size, every=pick(size, tiny=6, default=40, large=200))
    warmup_steps = pick(size, tiny=2, default=10, large=50)
    config.optimizer = adam(
        pick(size, tiny=3e-4, default=1e-4, large=2e-6), warmup_steps=warmup_steps
    )
    return config
