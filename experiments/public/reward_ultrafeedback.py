"""Train a reward model on UltraFeedback: four completions ranked by GPT-4 (64k instructions).

    python -m rlhf_jax.main --config=experiments/public/reward_ultrafeedback.py \
        --workdir=runs/ultrafeedback/reward

Needs `pip install datasets`. Equal scores tie. The hub has one split; 3 % of the instructions are
held out, by a hash of their text, so that the repeated ones stay together. Not run here. Source:
Cui et al. 2023.
"""

from ml_collections import ConfigDict

from experiments.public.shared import reward, reward_adam


def get_config(size: str = "default") -> ConfigDict:
    """K = 4 rankings by a model."""
    comparisons = "hub:openbmb/UltraFeedback?by=prompt&train=train[:97%]&validation=train[97%:]"
    return reward(
        size,
        comparisons=comparisons,
        max_length=1024,
        max_candidates=4,
        optimizer=reward_adam(size),
    )
