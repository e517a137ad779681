"""IPO: DPO whose pairs are pulled to a finite gap 1/(2β) instead of an infinite one (Azar 2023).

    python -m rlhf_jax.main --config=experiments/menagerie/ipo.py --workdir=runs/menagerie/ipo
"""

from ml_collections import ConfigDict

from experiments.menagerie import dpo


def get_config(size: str = "default") -> ConfigDict:
    """dpo.py with another loss; log-probabilities are summed here as well, as in the paper."""
    config = dpo.get_config(size)
    config.preference.loss = "ipo"
    return config
