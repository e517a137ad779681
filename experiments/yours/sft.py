"""Fine-tune a model on demonstrations of your own, all replies of a conversation.

    python -m rlhf_jax.main --workdir=runs/mine/sft \
        --config='experiments/yours/sft.py:model=hf:FOLDER demonstrations=jsonl:FILE.jsonl'

Three epochs, batches of 16. A template that rewrites earlier replies needs
--config.sft.train_on=last.
"""

from ml_collections import ConfigDict

from experiments.public import shared
from experiments.yours.facts import Facts, Settings, choose


def get_config(text: str = "") -> ConfigDict:
    """Return the run of the facts in `text`."""
    return make(*choose(text, "demonstrations"))


def make(facts: Facts, settings: Settings) -> ConfigDict:
    """Train on the demonstrations alone."""
    length = facts.prompt_length + facts.response_length
    config = shared.sft(
        "default",
        demonstrations=facts.demonstrations,
        num_epochs=3.0,
        batch_size=16,
        max_length=length,
        optimizer=shared.adam(settings.sft),
    )
    config.init.policy = facts.model
    config.sft.batch_size = size = facts.batch_size("demonstrations", 16)
    config.sft.update({"num_micro_batches": max(size // 4, 1), "row_length": length})
    config.lora = shared.lora(settings.rank)
    return config
