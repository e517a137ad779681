"""Compare models on prompts of your own: preference, length, fluency, answers side by side.

    python -m rlhf_jax.main --workdir=runs/mine/evaluate \
        --config='experiments/yours/evaluate.py:model=hf:FOLDER prompts=jsonl:FILE.jsonl'

Reads ../ppo and ../reward. More models: --config.checkpoints... in pipeline.py, or edit the dict; a
second judge: add {"NAME": "function:FILE.py:NAME"} to `judges`. README.md says how to read the
table: the reward model that PPO maximised is no witness for it.
"""

from ml_collections import ConfigDict

from experiments.menagerie import evaluate
from experiments.menagerie.shared import DATA_DIR
from experiments.yours.facts import Facts, choose


def get_config(text: str = "") -> ConfigDict:
    """Compare the model of the facts in `text` with what PPO made of it."""
    facts, _ = choose(text)
    return make(facts, {"model": facts.model, "ppo": "../ppo"})


def make(facts: Facts, checkpoints: dict[str, str]) -> ConfigDict:
    """Judge by the reward model, and measure fluency by the first model; it is the reference."""
    config = evaluate.get_config()
    config.world = None
    config.checkpoints = checkpoints
    config.reference, config.fluency = next(iter(checkpoints.items()))
    config.judges = {"the reward model": "reward:../reward"}
    config.data = {"data_dir": DATA_DIR, "prompts": facts.prompts, "documents": None}
    config.data.update({"prompt_splits": ("test",), "mask_documents": False})
    config.data.prompt_length = facts.prompt_length
    config.evaluation.update({"num_prompts": 0, "best_of": 4, "batch_size": 32})
    config.evaluation.response_length = facts.response_length
    return config
