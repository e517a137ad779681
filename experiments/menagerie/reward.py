"""Sample 4 to 9 answers per prompt from the supervised policy, have labelers rank them, train the reward model.

python -m rlhf_jax.main --config=experiments/menagerie/reward.py --workdir=runs/menagerie/reward
"""

from ml_collections import ConfigDict

from experiments.menagerie.shared import (
    DATA_DIR,
    RESPONSE_LENGTH,
    adam,
    base,
    lora,
    pick,
    prompt_length,
)


def get_config(size: str = "default") -> ConfigDict:
    """InstructGPT's recipe: K-wise rankings, one epoch, cosine to 10 %, demonstrations at mean 0."""
    config = base(
        "reward", size, log_every=10, save_every=pick(size, tiny=5, default=100, large=200)
    )
    config.init = {"policy": "../sft", "sampler": ""}
    config.data = {
        "data_dir": DATA_DIR,
        "comparisons": "collect",
        "earlier": (),
        "demonstrations": f"tfds:menagerie_demonstrations/{size}",
    }
    config.labelling = {
        "world": f"menagerie/{size}",
        "prompts": f"tfds:menagerie_prompts/{size}",
        "num_prompts": pick(size, tiny=48, default=5000, large=33_000),
        "num_validation_prompts": pick(size, tiny=16, default=256, large=1024),
        "min_candidates": 4,
        "max_candidates": 9,
        "temperature": 1.0,
        "prompt_length": prompt_length(size),
        "response_length": RESPONSE_LENGTH,
        "batch_size": pick(size, tiny=16, default=576, large=1152),
    }
    config.reward = {
        "num_epochs": 1.0,
        "batching": "prompts",
        "batch_size": pick(size, tiny=8, default=32, large=64),
        "num_micro_batches": 1,
        "max_length": prompt_length(size) + RESPONSE_LENGTH,
        "row_length": 128,
        "max_candidates": 9,
        "pair_norm": "num_valid_pairs",
        "normalise": "bias",
        "normalise_before": False,
        "dropout_rate": 0.0,
        "eval_every": pick(size, tiny=6, default=60, large=200),
    }
    config.lora = lora(0)
    warmup_steps = pick(size, tiny=2, default=10, large=10)
    config.optimizer = adam(
        pick(size, tiny=1e-3, default=1e-3, large=1e-4), warmup_steps=warmup_steps
    )
    return config
