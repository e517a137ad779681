"""Define what the experiments on public data share; `rlhf_jax/data/sources.py` explains sources.

Every file names its data by their public name and reads a local copy when told so, with the shape
in front:

    --config.data.comparisons='hh@jsonl:/data/hh-rlhf/harmless-base?validation=test'

Sizes: `tiny` for tests (any text, seconds), `default` for models like GPT-2 on one GPU, `large` for
those of a billion parameters. Learning rates are the papers' where a paper has that size, and
follow the menagerie's elsewhere. The model comes from `init.policy`, the folder of an earlier
stage.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie.shared import DATA_DIR, adam, base, lora, pick


def reward(
    size: str, *, comparisons: str, max_length: int, max_candidates: int, optimizer: dict[str, Any]
) -> ConfigDict:
    """Return one epoch over rankings; best responses get mean 0 (Ouyang 2022 §3.5, App. C.2)."""
    config = base(
        "reward", size, log_every=10, save_every=pick(size, tiny=10, default=200, large=200)
    )
    config.init = {"policy": "../sft"}
    config.data = {
        "data_dir": DATA_DIR,
        "comparisons": comparisons,
        "earlier": (),
        "demonstrations": placeholder(str),  # the best responses of the comparisons
    }
    config.reward = {
        "num_epochs": 1.0,
        "loss": "bradley_terry",
        "batching": "prompts",
        "batch_size": pick(size, tiny=8, default=64, large=64),
        "num_micro_batches": pick(size, tiny=1, default=8, large=16),
        "max_length": pick(size, tiny=128, default=max_length, large=max_length),
        "row_length": pick(size, tiny=128, default=1024, large=2048),
        "max_candidates": max_candidates,
        "pair_norm": "num_valid_pairs",
        "normalise": "bias",
        "normalise_before": False,
        "dropout_rate": 0.0,
        "read_out": "last_token",
        "trained": "all",
        "eval_every": pick(size, tiny=10, default=100, large=100),
    }
    config.lora = lora(0)
    config.optimizer = optimizer
    return config


def reward_adam(size: str) -> dict[str, Any]:
    """Return Ziegler 2019's rate for GPT-2, 5e-5, and Stiennon 2020's for 1.3B, 1.5e-5."""
    return adam(
        pick(size, tiny=1e-3, default=5e-5, large=1.5e-5),
        warmup_steps=pick(size, tiny=2, default=10, large=10),
    )


def sft(
    size: str,
    *,
    demonstrations: str,
    num_epochs: float,
    batch_size: int,
    max_length: int,
    optimizer: dict[str, Any],
) -> ConfigDict:
    """Return a run on demonstrations alone, of which the last parameters are kept."""
    config = base("sft", size, log_every=10, save_every=pick(size, tiny=10, default=500, large=500))
    config.init = {"policy": "../pretrain", "reward": placeholder(str)}
    config.data = {
        "data_dir": DATA_DIR,
        "demonstrations": demonstrations,
        "documents": placeholder(str),
        "prompts": placeholder(str),
        "prompt_length": placeholder(int),
    }
    config.sft = {
        "num_epochs": num_epochs,
        "batch_size": pick(size, tiny=8, default=batch_size, large=batch_size),
        "num_micro_batches": pick(size, tiny=1, default=4, large=8),
        "train_on": "all",
        "max_length": pick(size, tiny=128, default=max_length, large=max_length),
        "row_length": pick(size, tiny=128, default=1024, large=2048),
        "document_rows": 0,
        "dropout_rate": 0.0,
        "eval_every": pick(size, tiny=10, default=100, large=200),
        "eval_batches": pick(size, tiny=1, default=8, large=8),
        "select": "last",
        "response_length": placeholder(int),
    }
    config.monitor = None
    config.lora = lora(0)
    config.optimizer = optimizer
    return config
