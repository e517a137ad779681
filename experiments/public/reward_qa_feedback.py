"""Train a reward model on people's rankings of four answers (QA-Feedback of FineGrainedRLHF).

    python -m rlhf_jax.main --config=experiments/public/reward_qa_feedback.py \
        --workdir=runs/qa_feedback/reward

2,853 questions for training, 500 held out. Data: train_feedback.json and dev_feedback.json of
github.com/allenai/FineGrainedRLHF, tasks/qa_feedback/data, under data/qa_feedback. Six answers a
question become one ranking with ties; in the held-out file 22 of 500 contradict themselves and are
dropped, 12 tie throughout. `tiny` leaves the passages out of the prompt. Source: Wu et al. 2023.
"""

from ml_collections import ConfigDict

from experiments.public.shared import pick, reward, reward_adam


def get_config(size: str = "default") -> ConfigDict:
    """K = 4 from real people, as InstructGPT's labelers ranked 4 to 9."""
    shape = pick(size, tiny="qa_feedback_closed", default="qa_feedback", large="qa_feedback")
    comparisons = f"{shape}@json:data/qa_feedback/{{split}}_feedback.json?validation=dev"
    return reward(
        size,
        comparisons=comparisons,
        max_length=1024,
        max_candidates=4,
        optimizer=reward_adam(size),
    )
