"""Run SFT, a reward model, PPO and a comparison of the models on data of your own.

    python -m rlhf_jax.main --workdir=runs/mine --config='experiments/yours/pipeline.py:\
        model=hf:FOLDER demonstrations=jsonl:FILE.jsonl comparisons=jsonl:FILE.jsonl \
        prompts=jsonl:FILE.jsonl'

Without demonstrations there is no SFT. A folder of the workdir is a stage; the command continues
where it was killed. Any field: --config.stages.ppo.ppo.kl_coef=0.1
"""

from dataclasses import replace

from ml_collections import ConfigDict

from experiments.yours import evaluate, ppo, reward, sft
from experiments.yours.facts import choose


def get_config(text: str = "") -> ConfigDict:
    """List the stages in order, each starting from the one before."""
    facts, settings = choose(text, "comparisons", "prompts")
    checkpoints, stages = {"model": facts.model}, {}
    if facts.demonstrations:
        stages["sft"] = sft.make(facts, settings)
        facts, checkpoints["sft"] = replace(facts, model="../sft"), "../sft"
    stages["reward"] = reward.make(facts, settings)
    stages["ppo"] = ppo.make(facts, settings)
    checkpoints["ppo"] = "../ppo"
    stages["evaluate"] = evaluate.make(facts, checkpoints)
    return ConfigDict({"stage": "pipeline", "seed": 0, "order": list(stages), "stages": stages})
