"""Train adapters of SmolLM2-135M-Instruct as a reward model of harmlessness (HH harmless-base).

    python -m rlhf_jax.main --config=experiments/public/smollm2_reward_hh.py \
        --workdir=runs/smollm2/reward_hh

`default` is for two CPU cores and a local copy of a few thousand pairs; conversations of more than
256 tokens are left out and counted (a quarter). Alone, these pairs teach to refuse: read the
answers, too. Local copies: --config.init.policy=hf:FOLDER or hf:FILE.gguf;
--config.data.comparisons='hh@jsonl:PATH/{split}.jsonl'.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, lora, pick, reward
from experiments.public.smollm2_reward_ukp import MODEL


def get_config(size: str = "default") -> ConfigDict:
    """Rank 16 on every linear layer, 2e-4, one epoch, 16 pairs an update."""
    optimizer = adam(2e-4, warmup_steps=pick(size, tiny=1, default=10, large=10), b2=0.99)
    comparisons = "hub:Anthropic/hh-rlhf:harmless-base?validation=test"
    config = reward(
        size, comparisons=comparisons, max_length=256, max_candidates=2, optimizer=optimizer
    )
    config.init.policy = MODEL
    config.reward.batch_size = pick(size, tiny=8, default=16, large=64)
    config.reward.num_micro_batches = pick(size, tiny=1, default=4, large=1)
    config.reward.row_length = 256
    config.reward.eval_every = pick(size, tiny=10, default=1000, large=200)
    config.lora = {**lora(16), "alpha": 32.0}
    config.checkpoint.log_every = 1
    config.checkpoint.save_every = 5
    return config
