"""Fine-tune GPT-1's way: tell what is wrong with a forum reply, from its labelled reviews.

    python -m rlhf_jax.main --config=experiments/menagerie/classify.py \
        --workdir=runs/menagerie/classify

Reads ../pretrain. What differs from sft.py: a classifier's head beside the language model's, whose
loss is added with a weight of 0.5.
"""

from ml_collections import ConfigDict

from experiments.menagerie.shared import DATA_DIR, adam, base, pick


def get_config(size: str = "default") -> ConfigDict:
    """Set Radford 2018: lm_coef 0.5, classifier dropout 0.1, 3 epochs, linear decay."""
    config = base(
        "classify", size, log_every=10, save_every=pick(size, tiny=10, default=100, large=500)
    )
    config.init = {"policy": "../pretrain", "pretrained": True}
    config.data = {
        "data_dir": DATA_DIR,
        "texts": f"tfds:menagerie_reviews/{size}",
        "max_examples": 0,
    }
    config.classify = {
        "num_epochs": pick(size, tiny=1.0, default=3.0, large=3.0),
        "batch_size": pick(size, tiny=16, default=32, large=32),
        "num_micro_batches": 1,
        "max_length": 128,
        "lm_coef": 0.5,
        "dropout_rate": 0.1,
        "eval_every": pick(size, tiny=10, default=50, large=200),
    }
    config.optimizer = adam(
        pick(size, tiny=3e-3, default=3e-4, large=6.25e-5),
        schedule="linear",
        warmup_steps=5,
        final_fraction=0.0,
        b2=0.999,
        weight_decay=0.01,
    )
    return config
