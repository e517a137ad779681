"""Train a reward model on WebGPT's 19,578 comparisons of long answers; equal scores tie.

    python -m rlhf_jax.main --config=experiments/public/reward_webgpt.py \
        --workdir=runs/webgpt/reward

Needs `pip install datasets`, or a local copy:
--config.data.comparisons='webgpt@jsonl:PATH?by=prompt&...'. The answers are read as written, with
citations and without the pages they quote. Equal scores make no pair and are counted. Not run here.
Source: Nakano et al. 2021.
"""

from ml_collections import ConfigDict

from experiments.public.shared import reward, reward_adam


def get_config(size: str = "default") -> ConfigDict:
    """Hold out a tenth of the questions, all pairs of a question on one side."""
    comparisons = "hub:openai/webgpt_comparisons?by=prompt&train=train[:90%]&validation=train[90%:]"
    return reward(
        size, comparisons=comparisons, max_length=512, max_candidates=2, optimizer=reward_adam(size)
    )
