"""Plan InstructGPT's PPO-ptx at its three sizes: tiny is 1.3B, default 6B, large 175B.

    python -m experiments.scale.plan --config=experiments/scale/ppo_instructgpt.py:tiny \
        --mesh=fsdp=16 --chip=v5p
    python -m experiments.scale.plan --config=experiments/scale/ppo_instructgpt.py \
        --mesh=fsdp=32 --chip=v5p
    python -m experiments.scale.plan --config=experiments/scale/ppo_instructgpt.py:large \
        --mesh=fsdp=16,tensor=16 --chip=v5p

Published (Ouyang et al. 2022, App. C.4): 256,000 episodes in batches of 512, 8 minibatches, one
epoch, 8 pretraining examples per episode, prompts and responses of up to 1,024 tokens in a context
of 2,048, reward model and value function of 6B for every policy. The rest is as in
experiments/menagerie/ppo_instructgpt.py. Ours: the number of micro-batches, which changes memory
and nothing else. To run it, point init.policy and rewards.reward at checkpoints of these sizes, and
data at your prompts and documents.
"""

from ml_collections import ConfigDict

from experiments.menagerie import ppo_instructgpt
from experiments.menagerie.shared import pick


def get_config(size: str = "default") -> ConfigDict:
    """Return batch sizes and lengths as published, parents by size."""
    config = ppo_instructgpt.get_config("large")
    config.init.policy = "gpt3:" + pick(size, tiny="1.3b", default="6b", large="175b")
    config.rewards.reward.source = "reward:gpt3:6b"
    config.data.prompt_length = config.ppo.response_length = 1024
    config.ppo.update({"total_episodes": 256_000, "batch_size": 512, "num_mini_batches": 8})
    # Minibatches have 64 episodes, so data x fsdp x num_micro_batches is at most 64.
    config.ppo.num_micro_batches = pick(size, tiny=1, default=1, large=4)
    config.ppo.ptx_batch_size = 8 * 64
    config.monitor = None
    return config
