"""Train adapters of SmolLM2-135M-Instruct on which of two arguments convinces more (UKPConvArg1).

    python -m rlhf_jax.main --config=experiments/public/smollm2_reward_ukp.py \
        --workdir=runs/smollm2/reward_ukp

Split by debate. `default` is for two CPU cores: pairs become rankings of up to nine arguments that
were all compared with each other, so the 8,390 pairs of the 12 training debates are 984 rankings,
5,104 passes of 112 tokens instead of 17,000. The 3,042 pairs of the four other debates are measured
by experiments/public/benchmarks.py:comparisons (--config.benchmarks.comparisons.source='ukp@...'),
which reads each of their 267 arguments once. To beat: 0.768, "the longer argument convinces more".
Data as in reward_ukp.py; local copies: --config.init.policy=hf:FOLDER, hf:FILE.gguf;
--config.data.comparisons='ukp_rankings@jsonl:...'.
"""

from ml_collections import ConfigDict

from experiments.public.reward_ukp import SPLIT
from experiments.public.shared import adam, lora, pick, reward

MODEL = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"


def get_config(size: str = "default") -> ConfigDict:
    """Rank 16 on every linear layer, 2e-4, one epoch of 123 updates."""
    optimizer = adam(2e-4, warmup_steps=pick(size, tiny=1, default=10, large=10), b2=0.99)
    comparisons = f"ukp_rankings@tsv:data/UKPConvArg1Strict-CSV{SPLIT}"
    config = reward(
        size, comparisons=comparisons, max_length=256, max_candidates=9, optimizer=optimizer
    )
    config.init.policy = MODEL
    config.reward.batch_size = pick(size, tiny=4, default=8, large=8)
    config.reward.num_micro_batches = pick(size, tiny=1, default=4, large=1)
    config.reward.row_length = 256
    config.reward.num_epochs = pick(size, tiny=1.0, default=1.0, large=3.0)
    config.reward.eval_every = pick(
        size, tiny=10, default=1000, large=50
    )  # at the end, on two cores
    config.lora = {**lora(16), "alpha": 32.0}
    config.checkpoint.log_every = 1
    config.checkpoint.save_every = 5
    return config
