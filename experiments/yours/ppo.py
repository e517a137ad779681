"""Train a model with PPO against a reward model, and any other rewards (Ouyang 2022).

    python -m rlhf_jax.main --workdir=runs/mine/ppo \
        --config='experiments/yours/ppo.py:model=hf:FOLDER prompts=jsonl:FILE.jsonl'

Reads ../reward. Rewards add up; another one is four lines more in `config.rewards`, for example
{"short": reward("length:40", weight=0.2)}; README.md lists the kinds.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie import ppo
from experiments.menagerie.shared import adam, lora, reward
from experiments.yours.facts import Facts, Settings, choose


def get_config(text: str = "") -> ConfigDict:
    """Return the run of the facts in `text`."""
    return make(*choose(text, "prompts"))


def make(facts: Facts, settings: Settings) -> ConfigDict:
    """40 updates of 32 episodes, KL 0.05; a response that is cut keeps its score."""
    config = ppo.get_config()
    config.init = {"policy": facts.model, "value": "reward"}
    config.rewards = {"reward": reward("reward:../reward")}
    config.data.update({"prompts": facts.prompts, "prompt_length": facts.prompt_length})
    config.data.documents = placeholder(str)
    size = max(facts.batch_size("prompts", 32), 2)
    config.ppo.update({"total_episodes": 40 * size, "batch_size": size})
    config.ppo.num_micro_batches = max(size // 8, 1)
    config.ppo.update({"kl_coef": 0.05, "missing_eos_mode": "none"})
    config.ppo.response_length = facts.response_length
    config.lora, config.monitor = lora(settings.rank), placeholder(ConfigDict)
    config.optimizer = adam(settings.policy, schedule="constant", final_fraction=1.0)
    config.value_optimizer = adam(settings.value, schedule="constant", final_fraction=1.0)
    config.checkpoint.update({"save_every": 5, "sample_every": 5})
    return config
