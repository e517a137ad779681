"""Fine-tune on the 116,722 filtered TL;DR posts, with the details of Huang et al. 2024.

    python -m rlhf_jax.main --config=experiments/public/sft_tldr.py --workdir=runs/tldr/sft

Needs `pip install datasets`. Published: 1 epoch, batch 128, 3e-6 cosine, Adam ε = 1e-5. Not run
here.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, pick, sft


def get_config(size: str = "default") -> ConfigDict:
    """Posts in Stiennon's frame, their authors' summaries."""
    optimizer = adam(
        pick(size, tiny=3e-3, default=5e-5, large=3e-6),
        final_fraction=0.0,
        b2=0.999,
        eps=1e-5,
        max_grad_norm=0.0,
    )
    demonstrations = "hub:vwxyzjn/summarize_from_feedback_tldr_3_filtered"
    return sft(
        size,
        demonstrations=demonstrations,
        num_epochs=1.0,
        batch_size=128,
        max_length=640,
        optimizer=optimizer,
    )
