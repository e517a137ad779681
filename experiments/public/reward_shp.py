"""Train a reward model on which of two Reddit comments has more votes (SHP, 349k pairs).

    python -m rlhf_jax.main --config=experiments/public/reward_shp.py --workdir=runs/shp/reward

Needs `pip install datasets`, or a local copy:
--config.data.comparisons='shp@jsonl:PATH/{split}.jsonl?min_ratio=2'. One of its 18 subjects:
hub:stanfordnlp/SHP:askculinary?min_ratio=2. Not run here. Source: Ethayarajh et al. 2022, whose
card advises both what is done here: pairs with at least twice the votes, one epoch.
"""

from ml_collections import ConfigDict

from experiments.public.shared import reward, reward_adam


def get_config(size: str = "default") -> ConfigDict:
    """Splits are the authors', by post."""
    comparisons = "hub:stanfordnlp/SHP?min_ratio=2"
    return reward(
        size, comparisons=comparisons, max_length=512, max_candidates=2, optimizer=reward_adam(size)
    )
