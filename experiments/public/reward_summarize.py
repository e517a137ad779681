"""Train a reward model on OpenAI's 92,858 comparisons of summaries, as Huang et al. 2024 did.

    python -m rlhf_jax.main --config=experiments/public/reward_summarize.py \
        --workdir=runs/tldr/reward

Needs `pip install datasets`; the hub's own conversion is read because that data set's script is
not. Published: 1 epoch, batch 64, 3e-6 cosine, Adam ε = 1e-5; accuracy .628 / .669 / .689 at 1B /
2.8B / 6.9B. Theirs cut a long post, ours drops the comparison and counts it. The validation split
also holds CNN/DM articles, most of which are too long. Not run here.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, pick, reward


def get_config(size: str = "default") -> ConfigDict:
    """`init.policy` is the policy that was fine-tuned on TL;DR (`sft_tldr.py`)."""
    optimizer = adam(
        pick(size, tiny=1e-3, default=5e-5, large=3e-6),
        final_fraction=0.0,
        b2=0.999,
        eps=1e-5,
        max_grad_norm=0.0,
    )
    comparisons = "hub:openai/summarize_from_feedback:comparisons@refs/convert/parquet"
    return reward(
        size, comparisons=comparisons, max_length=640, max_candidates=2, optimizer=optimizer
    )
