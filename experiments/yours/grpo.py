"""Train a model with GRPO: no value network, eight answers to each prompt (Shao 2024).

    python -m rlhf_jax.main --workdir=runs/mine/grpo \
        --config='experiments/yours/grpo.py:model=hf:FOLDER prompts=jsonl:FILE.jsonl'

Reads ../reward, or takes answers that can be checked:
--config.rewards.reward.source=answer:number with prompts that have an `answer`.
"""

from ml_collections import ConfigDict

from experiments.menagerie import grpo
from experiments.yours import ppo
from experiments.yours.facts import Facts, Settings, choose


def get_config(text: str = "") -> ConfigDict:
    """Return the run of the facts in `text`."""
    return make(*choose(text, "prompts"))


def make(facts: Facts, settings: Settings) -> ConfigDict:
    """Take ppo.py's rollouts, rewards and optimizer with DeepSeekMath's loss."""
    config, other = grpo.get_config(), ppo.make(facts, settings)
    for name in ("rewards", "lora", "monitor", "optimizer", "checkpoint"):
        config[name] = other[name]
    config.init.policy = facts.model
    config.data.update({"prompts": facts.prompts, "prompt_length": facts.prompt_length})
    config.policy_gradient.update({"total_episodes": 40 * 32, "batch_size": 32})
    config.policy_gradient.update({"samples_per_prompt": 8, "num_micro_batches": 2})
    config.policy_gradient.missing_eos_mode = "none"
    config.policy_gradient.response_length = facts.response_length
    return config
