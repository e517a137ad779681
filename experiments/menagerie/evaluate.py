"""Evaluate the raw model, SFT, PPO and PPO-ptx side by side; SFT is the reference.

    python -m rlhf_jax.main --config=experiments/menagerie/evaluate.py \
        --workdir=runs/menagerie/evaluate

Reads ../pretrain, ../sft, ../ppo, ../ppo_ptx and ../reward. Two CPU cores: 1.5 minutes with the
report; README.md has the table to expect.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie.shared import DATA_DIR, RESPONSE_LENGTH, pick, prompt_length


def get_config(size: str = "default") -> ConfigDict:
    """Measure win rates, gold, truthfulness, harmlessness and the alignment tax."""
    return ConfigDict(
        {
            "stage": "evaluate",
            "seed": 0,
            "checkpoints": {
                "base": "../pretrain",
                "sft": "../sft",
                "ppo": "../ppo",
                "ppo_ptx": "../ppo_ptx",
            },
            "reference": "sft",
            "reward": "../reward",
            "fluency": placeholder(str),  # a second model, as hf:FOLDER
            "judges": {
                "held-out labelers": f"menagerie/{size}:heldout",
                "gold": f"menagerie/{size}:gold",
            },
            "best_by": {},
            "data": {
                "data_dir": DATA_DIR,
                "prompts": f"tfds:menagerie_prompts/{size}",
                "prompt_splits": ("test",),
                "documents": f"tfds:menagerie_corpus/{size}",
                "mask_documents": False,
                "prompt_length": prompt_length(size),
            },
            "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "nucleus": "holtzman"},
            "evaluation": {
                "num_prompts": pick(size, tiny=16, default=500, medium=1000, large=2000),
                "samples_per_prompt": pick(size, tiny=2, default=4, large=4),
                "best_of": pick(size, tiny=3, default=16, large=16),
                "reward_details": False,  # reward_accuracy.py
                "labelers_per_prompt": pick(size, tiny=2, default=3, large=3),
                "response_length": RESPONSE_LENGTH,
                "corpus_documents": pick(size, tiny=8, default=500, large=5000),
                "document_length": 128,
                "batch_size": pick(size, tiny=16, default=250, large=512),
                "num_bootstrap": pick(size, tiny=100, default=1000, large=2000),
                "num_side_by_side": pick(size, tiny=4, default=12, large=20),  # of all kinds
            },
            "world": {
                "name": f"menagerie/{size}",
                "toxicity_prompts": pick(size, tiny=4, default=64, large=500),
                "toxicity_samples": pick(size, tiny=5, default=25, large=25),
                "few_shot_questions": pick(size, tiny=8, default=100, large=500),
                "constant_suffix": True,
            },
        }
    )
