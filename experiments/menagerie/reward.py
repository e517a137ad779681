"""Train the reward model on the rankings that the label stage collected, reading all tokens.

    python -m rlhf_jax.main --config=experiments/menagerie/reward.py --workdir=runs/menagerie/reward

Reads ../sft and ../label; on fewer: --config.data.comparisons='../label?train=train[:300]'.
A small model's last state says what comes next, and little of whether the reply does what was
asked. So the supervised model stays as it is, and a head learns to judge every token by its state
and by how likely it was, and pools the judgements (rlhf_jax/models/read_out.py).

Two CPU cores: 2 minutes; three seeds: accuracy on validation prompts 0.79 to 0.80 against gold and
0.66 to 0.69 against held-out labelers, two of whom agree in 0.73. `reward_last_token.py` is the
papers' way; two seeds: 0.71 and 0.73, and 0.62 and 0.64.
"""

from ml_collections import ConfigDict

from experiments.menagerie import reward_last_token
from experiments.menagerie.shared import pick


def get_config(size: str = "default") -> ConfigDict:
    """Change the read-out of reward_last_token.py and train the head alone, for more epochs."""
    config = reward_last_token.get_config(size)
    config.reward.read_out = "pooled"
    config.reward.trained = "head"
    config.reward.num_epochs = pick(size, tiny=1.0, default=4.0, medium=3.0, large=2.0)
    config.reward.eval_every = pick(size, tiny=6, default=200, large=400)
    config.optimizer.learning_rate = 3e-3
    return config
