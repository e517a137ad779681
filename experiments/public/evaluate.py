"""Compare any checkpoints on your own prompts, by any judges: runs, and models of Hugging Face.

    python -m rlhf_jax.main --config=experiments/public/evaluate.py --workdir=runs/compare \
        --config.checkpoints.a=runs/quickstart/sft --config.checkpoints.b=hf:models/smollm2 \
        --config.data.prompts=jsonl:prompts.jsonl --config.data.prompt_splits='("train",)' \
        --config.judges.judge=reward:runs/quickstart/reward

`a` is the reference. Models may have different tokenizers; a reward model (`--config.reward=`) and
a second model that measures fluency (`--config.fluency=hf:models/gpt2`), too. As a config file of
your own, in ten lines:

    from experiments.public.evaluate import compare

    def get_config():
        return compare(
            {"sft": "runs/sft", "smollm2": "hub:HuggingFaceTB/SmolLM2-135M-Instruct"},
            reference="sft",
            prompts="jsonl:prompts.jsonl",
            split="train",
            judges={"brevity": "function:judges.py:brief"},
        )
"""

from collections.abc import Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie.shared import DATA_DIR, pick


def get_config(size: str = "default") -> ConfigDict:
    """Compare two checkpoints that the command line names."""
    return compare(
        {"a": "../sft", "b": "../ppo"},
        reference="a",
        prompts="hub:Anthropic/hh-rlhf",
        judges={"judge": "reward:../reward"},
        size=size,
    )


def compare(
    checkpoints: Mapping[str, str],
    *,
    reference: str,
    prompts: str,
    judges: Mapping[str, str],
    split: str = "test",
    size: str = "default",
) -> ConfigDict:
    """Return an evaluation of checkpoints by name; the split of a single file is "train"."""
    return ConfigDict(
        {
            "stage": "evaluate",
            "seed": 0,
            "checkpoints": dict(checkpoints),
            "reference": reference,
            "reward": placeholder(str),  # a reward model, for its accuracy and best of n
            "fluency": placeholder(str),  # a language model that reads the responses
            "judges": dict(judges),
            "best_by": {},  # judge -> weight, who chooses the best of n; {}: the reward model
            "data": {
                "data_dir": DATA_DIR,
                "prompts": prompts,
                "prompt_splits": (split,),
                "documents": placeholder(str),  # for the loss on a corpus
                "mask_documents": True,
                "prompt_length": pick(size, tiny=32, default=512, large=1024),
            },
            "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "nucleus": "holtzman"},
            "evaluation": {
                "num_prompts": pick(size, tiny=4, default=200, large=1000),
                "samples_per_prompt": 2,
                "best_of": 0,
                "reward_details": False,
                "labelers_per_prompt": 1,
                "response_length": pick(size, tiny=8, default=128, large=256),
                "corpus_documents": pick(size, tiny=4, default=200, large=1000),
                "document_length": pick(size, tiny=32, default=512, large=1024),
                "batch_size": pick(size, tiny=4, default=32, large=128),
                "num_bootstrap": 1000,
                "num_side_by_side": 12,
            },
            "world": None,
        }
    )
