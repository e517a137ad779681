"""Train a model on thumbs up and down of your own, or on comparisons (KTO, Ethayarajh 2024).

    python -m rlhf_jax.main --workdir=runs/mine/kto \
        --config='experiments/yours/kto.py:model=hf:FOLDER comparisons=jsonl:FILE.jsonl'

Rows of prompt, completion and label (true: good) need no second answer to the same prompt. Where
one kind of thumb is rare, raise its weight: --config.preference.worse_weight=3.0.
"""

from ml_collections import ConfigDict

from experiments.yours import dpo
from experiments.yours.facts import Facts, Settings, choose


def get_config(text: str = "") -> ConfigDict:
    """Return the run of the facts in `text`."""
    return make(*choose(text))


def make(facts: Facts, settings: Settings) -> ConfigDict:
    """Take dpo.py with another loss."""
    config = dpo.make(facts, settings)
    config.preference.update({"loss": "kto", "num_micro_batches": 1})
    return config
