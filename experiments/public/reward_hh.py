"""Train a reward model on Anthropic's harmless-base pairs (42,537 for training, 2,312 held out).

    python -m rlhf_jax.main --config=experiments/public/reward_hh.py --workdir=runs/hh/reward

Needs `pip install datasets`, or a local copy:
--config.data.comparisons='hh@jsonl:PATH/harmless-base?validation=test'. Alone, these pairs teach to
refuse; helpful-base is the other half. About 1 row in 200 is dropped: empty replies, one speaker
twice in a row. Not run here at this size. Sources: Bai 2022; rates of Ziegler 2019, Stiennon 2020.
"""

from ml_collections import ConfigDict

from experiments.public.shared import reward, reward_adam


def get_config(size: str = "default") -> ConfigDict:
    """The hub has no validation split: its test split is the held-out one."""
    comparisons = "hub:Anthropic/hh-rlhf:harmless-base?validation=test"
    return reward(
        size, comparisons=comparisons, max_length=512, max_candidates=2, optimizer=reward_adam(size)
    )
