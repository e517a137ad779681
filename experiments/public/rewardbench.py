"""Measure reward models on the 23 subsets of RewardBench, weighted as on its leaderboard.

    python -m rlhf_jax.main --config=experiments/public/rewardbench.py \
        --workdir=runs/menagerie/rewardbench

Needs `pip install datasets`, or a local copy of the split `filtered` (2,985 pairs) of
allenai/reward-bench:
--config.benchmarks.comparisons.source='reward_bench@jsonl:PATH/{split}.jsonl'. More reward models:
--config.checkpoints='{"reward": "../reward", "other": "../other"}'.

Sections and weights are `SUBSET_MAPPING` and `EXAMPLE_COUNTS` of rewardbench/constants.py: the
sizes of the subsets, but for two things that are kept so that numbers compare with published ones.
math-prm (447 pairs) counts as much as all of the code, and the two of XSTest are the wrong way
round (154 pairs are to be refused, 250 to be answered; Lambert et al. 2024). What differs: equal
scores count half here and 0 there; pairs longer than a checkpoint's context are left out and
counted. Left out on purpose: the prior sets (half a section in the paper), which are another data
set.
"""

from ml_collections import ConfigDict

from experiments.public import benchmarks

SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 250,
        "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        "hep-cpp": 164,
        "hep-go": 164,
        "hep-java": 164,
        "hep-js": 164,
        "hep-python": 164,
        "hep-rust": 164,
    },
}


def get_config(size: str = "default") -> ConfigDict:
    """Return the benchmark stage with all these comparisons; a section needs all of its subsets."""
    config = benchmarks.get_config(f"{size},comparisons")
    config.checkpoints = {"reward": "../reward"}
    config.reference = "reward"
    config.limit = None
    config.benchmarks.comparisons = {
        "source": "hub:allenai/reward-bench",
        "split": "filtered",
        "subset_field": "subset",
        "num_bins": 10,
        "sections": SECTIONS,
        "section_weights": dict.fromkeys(SECTIONS, 1),
    }
    return config
