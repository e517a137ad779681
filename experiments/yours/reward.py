"""Train a reward model on comparisons of your own: pairs, or rankings of up to nine answers.

    python -m rlhf_jax.main --workdir=runs/mine/reward \
        --config='experiments/yours/reward.py:model=hf:FOLDER comparisons=jsonl:FILE.jsonl'

One epoch: reward models overfit in the second (Ouyang 2022, App. C.2). Start from a run's SFT with
model=runs/mine/sft.
"""

from ml_collections import ConfigDict

from experiments.public import shared
from experiments.yours.facts import Facts, Settings, choose


def get_config(text: str = "") -> ConfigDict:
    """Return the run of the facts in `text`."""
    return make(*choose(text, "comparisons"))


def make(facts: Facts, settings: Settings) -> ConfigDict:
    """Read nothing but the comparisons; scores are left as they come out."""
    length = facts.prompt_length + facts.response_length
    config = shared.reward(
        "default",
        comparisons=facts.comparisons,
        max_length=length,
        max_candidates=9,
        optimizer=shared.adam(settings.reward),
    )
    config.init.policy = facts.model
    size = facts.batch_size("comparisons", 16)
    config.reward.update({"batch_size": size, "num_micro_batches": max(size // 4, 1)})
    config.reward.row_length = length
    config.lora = shared.lora(settings.rank)
    return config
