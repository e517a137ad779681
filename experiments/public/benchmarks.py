"""Measure your checkpoints on the public benchmarks that you name and have the files of.

    python -m rlhf_jax.main --workdir=runs/menagerie/benchmarks \
        --config=experiments/public/benchmarks.py:truthfulqa,crows_pairs,real_toxicity_prompts \
        --config.benchmarks.truthfulqa.path=TruthfulQA.csv \
        --config.benchmarks.crows_pairs.path=crows_pairs_anonymized.csv \
        --config.benchmarks.real_toxicity_prompts.paths='("prompts.jsonl",)'

Behind the colon may also stand a size, as in benchmarks.py:tiny,truthfulqa. A benchmark that is not
named is None and not run, and the table says so. The files, as their authors publish them:

    truthfulqa             github.com/sylinrl/TruthfulQA: TruthfulQA.csv, 817 questions (790 in the
                           edition of 2025, which has a column of best incorrect answers)
    crows_pairs            github.com/nyu-mll/crows-pairs: data/crows_pairs_anonymized.csv, 1,508
                           pairs
    real_toxicity_prompts  allenai/real-toxicity-prompts: prompts.jsonl, 99,442 prompts
    comparisons            any source of rankings, for the reward models among the checkpoints
                           (RewardBench: rewardbench.py)
    win_rate               any source of prompts, and a reward model as judge
    multiple_choice        your own JSON lines {"question", "choices", "answer"}
    text                   text:FILE, or any source of documents

A small model whose context does not hold TruthfulQA's primer (about 130 tokens of GPT-2) has all
questions left out, counted.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from experiments.menagerie.shared import DATA_DIR, SIZES, pick

INSTRUCTIONS = ("basic", "respectful", "biased")
NAMES = (
    "truthfulqa",
    "crows_pairs",
    "real_toxicity_prompts",
    "comparisons",
    "win_rate",
    "multiple_choice",
    "text",
)


def get_config(argument: str = "default") -> ConfigDict:
    """Return the named benchmarks with their papers' settings; a size says how much is asked."""
    words = argument.split(",")
    size = words.pop(0) if words[0] in SIZES else "default"
    unknown = ", ".join(repr(word) for word in words if word not in NAMES)
    if unknown:
        raise ValueError(
            f"benchmarks.py:{argument}: {unknown}, expected a size ({', '.join(SIZES)}) first or "
            f"not at all, then some of {', '.join(NAMES)}"
        )
    settings = benchmarks(size)
    return ConfigDict(
        {
            "stage": "benchmark",
            "seed": 0,
            "checkpoints": {
                "base": "../pretrain",
                "sft": "../sft",
                "ppo_ptx": "../ppo_ptx",
                "reward": "../reward",
            },
            "reference": "sft",
            "data_dir": DATA_DIR,
            # At most so many questions of each benchmark; None is all.
            "limit": 8 if size == "tiny" else placeholder(int),
            "batch_size": pick(size, tiny=8, default=32, large=256),
            "num_bootstrap": pick(size, tiny=100, default=1000, large=2000),
            "num_side_by_side": pick(size, tiny=2, default=8, large=16),
            "benchmarks": {name: settings[name] if name in words else None for name in NAMES},
        }
    )


def benchmarks(size: str) -> dict[str, dict[str, Any]]:
    """Return the settings of all benchmarks; a placeholder without a comment must be given."""
    return {
        "truthfulqa": {
            "path": placeholder(str),
            "close_answers": True,
            "free_answers": True,
            "response_length": pick(size, tiny=4, default=50, large=50),
        },
        "crows_pairs": {"path": placeholder(str), "instructions": INSTRUCTIONS},
        "real_toxicity_prompts": {
            "paths": placeholder(tuple),
            "instructions": INSTRUCTIONS,
            "samples_per_prompt": pick(size, tiny=2, default=25, large=25),
            "response_length": pick(size, tiny=4, default=20, large=20),
            "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 0.9, "nucleus": "holtzman"},
            # A folder with weights.npz and vocab.json, or hf:FOLDER of a classifier of transformers
            # and which of its labels means toxic; or a file of generations with toxicity. None:
            # continuations are written for a judge.
            "classifier": placeholder(str),
            "label": placeholder(str),
            "scores": placeholder(str),
        },
        "comparisons": {
            "source": placeholder(str),
            "split": "test",
            "subset_field": placeholder(str),  # None: no subsets
            "num_bins": 10,
            "sections": {},
            "section_weights": {},
        },
        "win_rate": {
            "prompts": placeholder(str),
            "split": "test",
            "judge": "../reward",
            "samples_per_prompt": 1,
            "response_length": pick(size, tiny=4, default=40, large=128),
            "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "nucleus": "holtzman"},
        },
        "multiple_choice": {
            "path": placeholder(str),
            "examples": placeholder(str),  # None: shots must be (0,)
            "shots": (0, 4),
        },
        "text": {
            "source": placeholder(str),
            "split": "test",
            "window": pick(size, tiny=32, default=128, large=1024),
            "stride": pick(size, tiny=16, default=64, large=512),
        },
    }
