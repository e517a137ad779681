"""Hold the reward model against the judges by kind of prompt, beside what needs no reward model.

    python -m rlhf_jax.main --config=experiments/menagerie/reward_accuracy.py \
        --workdir=runs/quickstart/reward_accuracy
    python -m experiments.menagerie.results runs/quickstart --reward_accuracy

All pairs of four of SFT's answers to 1,000 validation and test prompts. Reads ../sft and ../reward;
another reward model is `--config.reward=../reward_last_token`, in a workdir of its own. Also says
how often two labelers agree. Two CPU cores: a minute.
"""

from ml_collections import ConfigDict

from experiments.menagerie import evaluate
from experiments.menagerie.shared import pick


def get_config(size: str = "default") -> ConfigDict:
    """Return the evaluation of SFT alone, by gold and by both groups of labelers."""
    config = evaluate.get_config(size)
    with config.ignore_type():
        config.checkpoints = {"sft": "../sft"}
        config.judges = {
            "gold": f"menagerie/{size}:gold",
            "labelers": f"menagerie/{size}:labelers",
            "held-out labelers": f"menagerie/{size}:heldout",
        }
        config.data.documents = None
        config.world = None
    config.data.prompt_splits = ("validation", "test")
    config.evaluation.num_prompts = pick(size, tiny=16, default=1000, large=4000)
    config.evaluation.labelers_per_prompt = 2
    config.evaluation.best_of = 0
    config.evaluation.reward_details = True
    config.evaluation.num_side_by_side = 0
    return config
