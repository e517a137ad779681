"""Fine-tune on GSM8K: grade-school problems with worked solutions (7,473 + 1,319).

    python -m rlhf_jax.main --config=experiments/public/sft_gsm8k.py --workdir=runs/gsm8k/sft

Needs `pip install datasets`, or a local copy:
--config.data.demonstrations='gsm8k@jsonl:PATH/{split}.jsonl?validation=test'. 2 epochs, as the
generators of Cobbe et al. 2021 whose samples a verifier chooses from; the calculator's annotations
are part of the solution. Not run here.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, pick, sft


def get_config(size: str = "default") -> ConfigDict:
    """The test split is the held-out one."""
    optimizer = adam(pick(size, tiny=3e-3, default=5e-5, large=1e-5))
    source = "hub:openai/gsm8k:main?validation=test"
    return sft(
        size,
        demonstrations=source,
        num_epochs=2.0,
        batch_size=32,
        max_length=512,
        optimizer=optimizer,
    )
