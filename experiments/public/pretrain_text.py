"""Pretrain a small LLaMA-shaped model on text.

    python -m rlhf_jax.main --config=experiments/public/pretrain_text.py \
        --workdir=runs/text/pretrain

Needs `pip install datasets` for WikiText-103 (whole articles; 0.5 GB of text, all in memory). A
file of one's own, and tiny-shakespeare, one document a speech:

    --config.data.documents='blocks:data/input.txt?train=train[:90%]&validation=train[90%:]'

Not run here at the default size.
"""

from dataclasses import replace

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.public.shared import DATA_DIR, adam, base, pick
from rlhf_jax.models.config import llama, to_dict


def get_config(size: str = "default") -> ConfigDict:
    """A tokenizer of its own; model.vocab_size has to be the tokenizer's size."""
    vocab_size = pick(size, tiny=512, default=8192, large=32_768)
    config = base(
        "pretrain", size, log_every=20, save_every=pick(size, tiny=50, default=1000, large=2000)
    )
    config.data = {
        "data_dir": DATA_DIR,
        "documents": "hub:Salesforce/wikitext:wikitext-103-raw-v1",
        "mask_documents": False,
    }
    config.tokenizer = {"kind": "bpe", "vocab_size": vocab_size, "path": placeholder(str)}
    model = llama(
        vocab_size=vocab_size,
        context_length=pick(size, tiny=128, default=512, large=1024),
        width=pick(size, tiny=32, default=512, large=1024),
        num_layers=pick(size, tiny=1, default=8, large=24),
        num_heads=pick(size, tiny=2, default=8, large=16),
        num_kv_heads=pick(size, tiny=2, default=8, large=16),
        ffw_width=pick(size, tiny=64, default=1408, large=2816),
        rope_base=10_000.0,
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    config.model = to_dict(replace(model, tie_embeddings=True))
    steps = pick(size, tiny=20, default=10_000, large=50_000)
    config.pretrain = {
        "num_steps": steps,
        "batch_size": pick(size, tiny=8, default=32, large=128),
        "num_micro_batches": pick(size, tiny=1, default=1, large=4),
        "z_loss_coef": 0.0,
        "eval_every": max(10, steps // 10),
        "eval_batches": pick(size, tiny=1, default=8, large=16),
    }
    config.optimizer = adam(
        pick(size, tiny=1e-2, default=6e-4, large=3e-4),
        warmup_steps=max(5, steps // 50),
        weight_decay=0.1,
    )
    return config
