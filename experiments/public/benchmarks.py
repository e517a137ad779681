"""Public benchmarks of your checkpoints; a benchmark whose path is empty is not run, and the table says so.

    python -m rlhf_jax.main --config=experiments/public/benchmarks.py --workdir=runs/menagerie/benchmarks \
        --config.benchmarks.truthfulqa.path=TruthfulQA.csv \
        --config.benchmarks.crows_pairs.path=crows_pairs_anonymized.csv \
        --config.benchmarks.real_toxicity_prompts.paths='("prompts.jsonl",)'

The files, as their authors publish them:

    truthfulqa             github.com/sylinrl/TruthfulQA: TruthfulQA.csv, 817 questions (790 in the edition of 2025, which
                           has a column of best incorrect answers)
    crows_pairs            github.com/nyu-mll/crows-pairs: data/crows_pairs_anonymized.csv, 1,508 pairs
    real_toxicity_prompts  allenai/real-toxicity-prompts: prompts.jsonl, 99,442 prompts
    comparisons            any source of rankings, for the reward models among the checkpoints (RewardBench: rewardbench.py)
    win_rate               any source of prompts, and a reward model as judge
    multiple_choice        your own JSON lines {"question", "choices", "answer"}
    text                   text:FILE, or any source of documents

A small model whose context does not hold TruthfulQA's primer (about 130 tokens of GPT-2) has all questions left out, counted.
"""

from ml_collections import ConfigDict

from experiments.menagerie.shared import DATA_DIR, pick

INSTRUCTIONS = ("basic", "respectful", "biased")


def get_config(size: str = "default") -> ConfigDict:
    """All benchmarks with their papers' settings; sizes differ in how much of each is asked."""
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
            "limit": pick(
                size, tiny=8, default=0, large=0
            ),  # at most so many questions of each; 0 is all
            "batch_size": pick(size, tiny=8, default=32, large=256),
            "num_bootstrap": pick(size, tiny=100, default=1000, large=2000),
            "num_side_by_side": pick(size, tiny=2, default=8, large=16),
            "benchmarks": {
                "truthfulqa": {
                    "path": "",
                    "close_answers": True,
                    "response_length": pick(
                        size, tiny=4, default=50, large=50
                    ),  # 0: multiple choice alone
                },
                "crows_pairs": {"path": "", "instructions": INSTRUCTIONS},
                "real_toxicity_prompts": {
                    "paths": (),
                    "instructions": INSTRUCTIONS,
                    "samples_per_prompt": pick(size, tiny=2, default=25, large=25),
                    "response_length": pick(size, tiny=4, default=20, large=20),
                    "sampling": {
                        "temperature": 1.0,
                        "top_k": 0,
                        "top_p": 0.9,
                        "nucleus": "holtzman",
                    },
                    "classifier": "",  # a folder with weights.npz and vocab.json, or hf:NAME of a transformers classifier, ...
                    "label": "",  # ... and which of its labels means toxic
                    "scores": "",  # or a file of generations with toxicity
                },
                "comparisons": {
                    "source": "",
                    "split": "test",
                    "subset_field": "",
                    "num_bins": 10,
                    "sections": {},
                    "section_weights": {},
                },
                "win_rate": {
                    "prompts": "",
                    "split": "test",
                    "judge": "../reward",
                    "samples_per_prompt": 1,
                    "response_length": pick(size, tiny=4, default=40, large=128),
                    "sampling": {
                        "temperature": 1.0,
                        "top_k": 0,
                        "top_p": 1.0,
                        "nucleus": "holtzman",
                    },
                },
                "multiple_choice": {"path": "", "examples": "", "shots": (0, 4)},
                "text": {
                    "source": "",
                    "split": "test",
                    "window": pick(size, tiny=32, default=128, large=1024),
                    "stride": pick(size, tiny=16, default=64, large=512),
                },
            },
        }
    )
