"""Fine-tune on Alpaca: 52k instructions answered by text-davinci-003.

    python -m rlhf_jax.main --config=experiments/public/sft_alpaca.py --workdir=runs/alpaca/sft

Needs `pip install datasets`, or a local copy:
--config.data.demonstrations='alpaca@json:PATH?by=prompt&...'. 3 epochs, batch 128, 512 tokens,
cosine to 0 as in their script (2e-5 at 7B). Not run here.
"""

from ml_collections import ConfigDict

from experiments.public.shared import adam, pick, sft


def get_config(size: str = "default") -> ConfigDict:
    """The hub has one split; 2 % of the instructions are held out."""
    demonstrations = "hub:tatsu-lab/alpaca?by=prompt&train=train[:98%]&validation=train[98%:]"
    warmup_steps = pick(size, tiny=2, default=36, large=36)  # 3 %
    optimizer = adam(
        pick(size, tiny=3e-3, default=5e-5, large=2e-5),
        warmup_steps=warmup_steps,
        final_fraction=0.0,
    )
    return sft(
        size,
        demonstrations=demonstrations,
        num_epochs=3.0,
        batch_size=128,
        max_length=512,
        optimizer=optimizer,
    )
