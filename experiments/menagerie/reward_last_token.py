"""Train the reward model of the papers: all parameters tuned, one epoch, read at the last token.

    python -m rlhf_jax.main --config=experiments/menagerie/reward_last_token.py \
        --workdir=runs/menagerie/reward_last_token

Reads ../sft and ../label; on fewer: --config.data.comparisons='../label?train=train[:300]'.
`reward.py` changes how the model reads; ablations and DPO start from here.
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
    """Take InstructGPT's recipe: all pairs of a prompt, one epoch, demonstrations at mean 0."""
    config = base(
        "reward", size, log_every=10, save_every=pick(size, tiny=5, default=100, large=200)
    )
    config.init = {"policy": "../sft"}
    config.data = {
        "data_dir": DATA_DIR,
        "comparisons": "../label",
        "earlier": (),
        "demonstrations": f"tfds:menagerie_demonstrations/{size}",
    }
    config.reward = {
        "num_epochs": 1.0,
        "loss": "bradley_terry",
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
        "read_out": "last_token",
        "trained": "all",
        "eval_every": pick(size, tiny=6, default=60, large=200),
    }
    config.lora = lora(0)
    warmup_steps = pick(size, tiny=2, default=10, large=10)
    config.optimizer = adam(
        pick(size, tiny=1e-3, default=1e-3, large=1e-4), warmup_steps=warmup_steps
    )
    return config
