"""Fine-tune the pretrained model on the labelers' demonstrations.

    python -m rlhf_jax.main --config=experiments/menagerie/sft.py --workdir=runs/menagerie/sft

Reads ../pretrain. InstructGPT's policy for PPO had 2 epochs of demonstrations with a tenth of
pretraining documents (Ouyang 2022 App. C.3). Two CPU cores: half a minute; preferred to the raw
model by held-out labelers in 61 % of the prompts, entirely right 24 % -> 33 %, rude 17 % -> 2 %.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie.shared import (
    DATA_DIR,
    RESPONSE_LENGTH,
    adam,
    base,
    lora,
    monitor,
    pick,
    prompt_length,
)


def get_config(size: str = "default") -> ConfigDict:
    """Train the policy that PPO starts from and is kept close to."""
    config = base("sft", size, log_every=20, save_every=pick(size, tiny=10, default=200, large=500))
    config.init = {"policy": "../pretrain", "reward": placeholder(str)}
    config.data = {
        "data_dir": DATA_DIR,
        "demonstrations": f"tfds:menagerie_demonstrations/{size}",
        "documents": f"tfds:menagerie_corpus/{size}",
        "prompts": f"tfds:menagerie_prompts/{size}",
        "prompt_length": prompt_length(size),
    }
    config.sft = {
        "num_epochs": pick(size, tiny=1.0, default=4.0, medium=2.0, large=2.0),
        "batch_size": pick(size, tiny=16, default=28, large=56),
        "num_micro_batches": 1,
        "train_on": "all",
        "max_length": prompt_length(size) + RESPONSE_LENGTH,
        "row_length": 128,
        "document_rows": pick(size, tiny=1, default=3, large=6),
        "dropout_rate": 0.0,
        "eval_every": pick(size, tiny=10, default=50, large=200),
        "eval_batches": pick(size, tiny=1, default=4, large=8),
        "select": pick(size, tiny="loss", default="last", large="last"),
        "response_length": RESPONSE_LENGTH,
    }
    config.lora = lora(0)
    config.monitor = monitor(size, every=pick(size, tiny=6, default=50, large=200))
    warmup_steps = pick(size, tiny=2, default=10, large=10)
    config.optimizer = adam(
        pick(size, tiny=3e-3, default=1e-3, medium=7e-4, large=1e-4), warmup_steps=warmup_steps
    )
    return config
