"""Train a reward model on which of two arguments convinces more (UKPConvArg1-Strict).

    python -m rlhf_jax.main --config=experiments/public/reward_ukp.py --workdir=runs/ukp/reward

11,650 pairs of 16 debates with two sides each. Data: the folder UKPConvArg1Strict-CSV of
github.com/UKPLab/acl2016-convincing-arguments under data/. Whole debates are held out; seed 0 of
the split leaves 12 to train on (8,608 pairs) and 4 to validate (3,042). Published accuracy across
topics is 0.76-0.78 (Habernal & Gurevych 2016, who leave out one side of a debate and keep the
other). The longer argument wins in 76.8 % of the held-out pairs here: a model that has read the
arguments has to beat that. A model of 43k parameters (one layer, width 32, 20 steps of pretraining,
256 tokens, which leave out a sixth of the pairs) reached 0.741 in one epoch of 113 updates.
"""

from ml_collections import ConfigDict

from experiments.public.shared import reward, reward_adam

SPLIT = "?by=topic&seed=0&train=train[:75%]&validation=train[75%:]"


def get_config(size: str = "default") -> ConfigDict:
    """Split by topic, never by pair: an argument stands in many pairs."""
    comparisons = f"ukp@tsv:data/UKPConvArg1Strict-CSV{SPLIT}"
    return reward(
        size, comparisons=comparisons, max_length=512, max_candidates=2, optimizer=reward_adam(size)
    )
