"""Train cDPO, conservative DPO, which takes a share ε of the labels to be wrong (Mitchell 2023).

    python -m rlhf_jax.main --config=experiments/menagerie/cdpo.py --workdir=runs/menagerie/cdpo

What differs from dpo.py: label_smoothing ε; the loss is -(1-ε) log σ(Δ) - ε log σ(-Δ), whose lowest
point is the finite margin Δ = log((1-ε)/ε) instead of an infinite one, so that a label is never
fitted with certainty ("A note on DPO with noisy preferences and relationship to IPO").
What differs from ppo.py: as in dpo.py no reward model, no value network, no sampling; β is in the
loss's log-ratio.
"""

from ml_collections import ConfigDict

from experiments.menagerie import dpo


def get_config(size: str = "default") -> ConfigDict:
    """Take dpo.py with one label in ten taken to be wrong."""
    config = dpo.get_config(size)
    config.preference.label_smoothing = 0.1
    return config
