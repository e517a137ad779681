"""Fine-tune on Dolly: 15k instructions answered by people.

    python -m rlhf_jax.main --config=experiments/public/sft_dolly.py --workdir=runs/dolly/sft

Needs `pip install datasets`, or a local copy:
--config.data.demonstrations='dolly@jsonl:PATH?by=prompt&...'. 2 epochs, batch 32, cosine to a
tenth: InstructGPT's initial policy for PPO (Ouyang 2022 App. C.3; 5e-6 at 1.3B). Not run here.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, pick, sft


def get_config(size: str = "default") -> ConfigDict:
    """The hub has one split; 5 % of the instructions are held out."""
    demonstrations = (
        "hub:databricks/databricks-dolly-15k?by=prompt&train=train[:95%]&validation=train[95%:]"
    )
    optimizer = adam(pick(size, tiny=3e-3, default=5e-5, large=5e-6))
    return sft(
        size,
        demonstrations=demonstrations,
        num_epochs=2.0,
        batch_size=32,
        max_length=1024,
        optimizer=optimizer,
    )
