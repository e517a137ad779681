"""Train a reward model on OpenAssistant's rankings of replies by volunteers.

    python -m rlhf_jax.main --config=experiments/public/reward_oasst.py --workdir=runs/oasst/reward

Needs `pip install datasets`, or the released trees:
--config.data.comparisons='oasst@jsonl:PATH.jsonl.gz?lang=en&by=prompt&...'. Rankings of two replies
and more, several turns. Not run here. Source: Köpf et al. 2023.
"""

from ml_collections import ConfigDict

from experiments.public.sft_oasst import SOURCE
from experiments.public.shared import reward, reward_adam


def get_config(size: str = "default") -> ConfigDict:
    """English trees; responses are compared with all that are ranked beside them."""
    return reward(
        size, comparisons=SOURCE, max_length=1024, max_candidates=9, optimizer=reward_adam(size)
    )
