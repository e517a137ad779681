"""Train a model on comparisons of your own without a reward model (DPO, Rafailov 2023).

    python -m rlhf_jax.main --workdir=runs/mine/dpo \
        --config='experiments/yours/dpo.py:model=hf:FOLDER comparisons=jsonl:FILE.jsonl'

Other losses on the same files: --config.preference.loss=ipo; KTO is kto.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie import dpo
from experiments.public import shared
from experiments.yours import reward
from experiments.yours.facts import Facts, Settings, choose


def get_config(text: str = "") -> ConfigDict:
    """Return the run of the facts in `text`."""
    return make(*choose(text, "comparisons"))


def make(facts: Facts, settings: Settings) -> ConfigDict:
    """Take the reward model's batches; β = 0.1."""
    config, batches = dpo.get_config(), reward.make(facts, settings)
    config.init, config.lora, config.checkpoint = batches.init, batches.lora, batches.checkpoint
    config.data.comparisons = facts.comparisons
    config.preference.update({name: batches.reward[name] for name in dpo.SHARED_SETTINGS})
    config.monitor = placeholder(ConfigDict)
    config.optimizer = shared.adam(settings.preference)
    return config
