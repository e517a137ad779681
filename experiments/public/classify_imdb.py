"""Fine-tune GPT-1's way on IMDB: is a review positive or negative (25,000 + 25,000)?

    python -m rlhf_jax.main --config=experiments/public/classify_imdb.py \
        --workdir=runs/imdb/classify

Needs `pip install datasets`, or a local copy:
--config.data.texts='imdb@jsonl:PATH?validation=test'. Reviews longer than `max_length` are left out
of training and of the accuracy, and counted; say so with the number. Not run here. The openings of
the same reviews are prompts for Ziegler 2019's sentiment task:
imdb_openings@hub:stanfordnlp/imdb?words=8.
"""

from ml_collections import ConfigDict

from experiments.public.shared import DATA_DIR, adam, base, pick


def get_config(size: str = "default") -> ConfigDict:
    """Radford 2018: 3 epochs, batch 32, 6.25e-5, lm_coef 0.5, dropout 0.1, linear decay."""
    config = base(
        "classify", size, log_every=10, save_every=pick(size, tiny=10, default=500, large=500)
    )
    config.init = {"policy": "../pretrain", "pretrained": True}
    config.data = {
        "data_dir": DATA_DIR,
        "texts": "hub:stanfordnlp/imdb?validation=test",
        "max_examples": 0,
    }
    config.classify = {
        "num_epochs": 3.0,
        "batch_size": pick(size, tiny=8, default=32, large=32),
        "num_micro_batches": pick(size, tiny=1, default=2, large=4),
        "max_length": pick(size, tiny=128, default=512, large=512),
        "lm_coef": 0.5,
        "dropout_rate": 0.1,
        "eval_every": pick(size, tiny=10, default=500, large=500),
    }
    config.optimizer = adam(
        pick(size, tiny=3e-3, default=6.25e-5, large=6.25e-5),
        schedule="linear",
        final_fraction=0.0,
        warmup_steps=pick(size, tiny=2, default=5, large=5),
        b2=0.999,
        weight_decay=0.01,
    )
    return config
