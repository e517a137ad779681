"""Compare models on prompts of your own: preference, length, fluency, answers side by side.

    python -m rlhf_jax.main --workdir=runs/mine/evaluate \
        --config='experiments/yours/evaluate.py:model=hf:FOLDER prompts=jsonl:FILE.jsonl'

Reads ../ppo and ../reward. More models and judges are more entries of the two dicts below, for
example {"brief": "function:FILE.py:NAME"}; README.md says how to read the table: the reward model
that PPO maximised is no witness for it.
"""

from ml_collections import ConfigDict

from experiments.public.evaluate import compare
from experiments.yours.facts import Facts, choose


def get_config(text: str = "") -> ConfigDict:
    """Compare the model of the facts in `text` with what PPO made of it."""
    facts, _ = choose(text, "prompts")
    return make(facts, {"model": facts.model, "ppo": "../ppo"})


def make(facts: Facts, checkpoints: dict[str, str]) -> ConfigDict:
    """Judge by the reward model, and measure fluency by the first model; it is the reference."""
    first, model = next(iter(checkpoints.items()))
    judges = {"the reward model": "reward:../reward"}
    config = compare(checkpoints, reference=first, prompts=facts.prompts, judges=judges)
    config.reward, config.fluency = "../reward", model
    config.data.prompt_length = facts.prompt_length
    config.evaluation.response_length = facts.response_length
    config.evaluation.update({"num_prompts": 0, "best_of": 4, "batch_size": 32})
    return config
