"""Train adapters of SmolLM2-135M-Instruct with PPO against smollm2_reward_hh.py's reward model.

    python -m rlhf_jax.main --config=experiments/public/smollm2_ppo_hh.py \
        --workdir=runs/smollm2/ppo_hh

Policy, reference, reward and value share one copy of the model. `default` is for two CPU cores:
prompts of at most 96 tokens, answers of at most 32, 20 updates of 32 episodes. An answer that is
cut off keeps its score, since few end within 32 tokens.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie import ppo
from experiments.public.shared import DATA_DIR, adam, lora, pick
from experiments.public.smollm2_reward_ukp import MODEL


def get_config(size: str = "default") -> ConfigDict:
    """KL coefficient 0.05, one epoch of two minibatches, adapters of the reward model's kind."""
    config = ppo.get_config(size)
    config.init.policy = MODEL
    config.rewards.reward.source = "reward:../reward_hh"
    config.data = {
        "data_dir": DATA_DIR,
        "prompts": "hub:Anthropic/hh-rlhf:harmless-base?validation=test",
        "prompt_length": pick(size, tiny=32, default=96, large=256),
        "documents": placeholder(str),
    }
    batch_size = pick(size, tiny=4, default=32, large=256)
    config.ppo.batch_size = batch_size
    config.ppo.total_episodes = pick(size, tiny=1, default=20, large=200) * batch_size
    config.ppo.num_mini_batches = 2
    config.ppo.num_micro_batches = pick(size, tiny=1, default=4, large=4)
    config.ppo.response_length = pick(size, tiny=8, default=32, large=128)
    config.ppo.missing_eos_mode = "none"
    config.lora = {**lora(16), "alpha": 32.0}
    config.monitor = None
    config.optimizer = adam(1e-4, schedule="constant", final_fraction=1.0, warmup_steps=2, b2=0.99)
    config.value_optimizer = adam(
        2e-4, schedule="constant", final_fraction=1.0, warmup_steps=2, b2=0.99
    )
    config.checkpoint.save_every = pick(size, tiny=1, default=1, large=20)
    config.checkpoint.sample_every = pick(size, tiny=1, default=5, large=20)
    return config
