"""Train IPO: DPO whose pairs are pulled to a gap of 1/(2β) instead of an infinite one (Azar 2023).

    python -m rlhf_jax.main --config=experiments/menagerie/ipo.py --workdir=runs/menagerie/ipo

What differs from dpo.py: the loss is a square and not log σ; its optimum is π ∝ π_ref exp(P/β), P
the share of comparisons that a response wins, so that a label which is never contradicted does not
take the policy away from its reference without limit.
What differs from ppo.py: as in dpo.py no reward model, no value network, no sampling; it is P that
is maximised, not a reward. Two CPU cores, three seeds: gold 0.42 SD over SFT at 0.4 nats of KL.
"""

from ml_collections import ConfigDict

from experiments.menagerie import dpo


def get_config(size: str = "default") -> ConfigDict:
    """Take dpo.py with another loss; log-probabilities are summed here as well, as in the paper."""
    config = dpo.get_config(size)
    config.preference.loss = "ipo"
    return config
