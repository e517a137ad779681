"""Have simulated labelers rank 4 to 9 responses of the supervised policy to every prompt.

    python -m rlhf_jax.main --config=experiments/menagerie/label.py --workdir=runs/menagerie/label

Reads ../sft. 5,000 training prompts are ranked by one training labeler each, 256 validation prompts
by held-out labelers and by gold; label.json counts what was left out. Other judges rank with

    --config.label.train_judge=reward:../reward_large       a reward model (Gao 2022)
    --config.label.train_judge=function:rewards.py:brevity  f(prompts, responses, metadata)
    --config.label.train_judge=file:rankings.jsonl          rankings that were made elsewhere

Two CPU cores: half a minute; reward.py reads the result as ../label.
"""

from ml_collections import ConfigDict

from experiments.menagerie.shared import DATA_DIR, RESPONSE_LENGTH, mesh, pick, prompt_length


def get_config(size: str = "default") -> ConfigDict:
    """InstructGPT's labelling: K from 4 to 9, one labeler per prompt (Ouyang 2022 §3.5)."""
    return ConfigDict(
        {
            "stage": "label",
            "seed": 0,
            "init": {"policy": "../sft"},
            "data": {
                "data_dir": DATA_DIR,
                "prompts": f"tfds:menagerie_prompts/{size}",
                "prompt_length": prompt_length(size),
            },
            "label": {
                "train_judge": f"menagerie/{size}:labelers",
                "validation_judges": {
                    "heldout": f"menagerie/{size}:heldout",
                    "gold": f"menagerie/{size}:gold",
                },
                "num_prompts": pick(size, tiny=48, default=5000, medium=10_000, large=33_000),
                "num_validation_prompts": pick(size, tiny=16, default=256, medium=768, large=1024),
                "min_candidates": 4,
                "max_candidates": 9,
                "temperature": 1.0,
                "response_length": RESPONSE_LENGTH,
                "batch_size": pick(size, tiny=16, default=576, large=1152),
            },
            "mesh": mesh(size),
        }
    )
