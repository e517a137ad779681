"""Fine-tune on OpenAssistant: in every tree the thread of the best-ranked replies, all turns.

    python -m rlhf_jax.main --config=experiments/public/sft_oasst.py --workdir=runs/oasst/sft

Needs `pip install datasets`, or the released trees:
--config.data.demonstrations='oasst@jsonl:PATH?lang=en&by=prompt&...'. 2 epochs, batch 32, as
`sft_dolly.py`. Not run here. Source: Köpf et al. 2023.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, pick, sft

SOURCE = "hub:OpenAssistant/oasst2?lang=en"


def get_config(size: str = "default") -> ConfigDict:
    """English trees; splits are the authors'."""
    optimizer = adam(pick(size, tiny=3e-3, default=5e-5, large=5e-6))
    return sft(
        size,
        demonstrations=SOURCE,
        num_epochs=2.0,
        batch_size=32,
        max_length=1024,
        optimizer=optimizer,
    )
