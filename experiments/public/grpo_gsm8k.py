"""Train GRPO on GSM8K against the final number, without a reward model (Shao 2024, Guo 2025).

    python -m rlhf_jax.main --config=experiments/public/sft_gsm8k.py --workdir=runs/gsm8k/sft
    python -m rlhf_jax.main --config=experiments/public/grpo_gsm8k.py --workdir=runs/gsm8k/grpo

Reads ../sft, whose solutions end in `#### 72`; the last number of any other text counts as well
(rlhf_jax/evaluation/rules.py), so that an instruction-tuned model may stand in its place:
--config.init.policy=hf:FOLDER. The monitor is accuracy on the test split, one sample a question.
GRPO's rate, KL and group size at `large` are DeepSeekMath's; `default` is for one GPU. Not run
here; experiments/yours/verifiable.py shows the same algorithm learning on two CPU cores.
"""

from ml_collections import ConfigDict

from experiments.menagerie import grpo
from experiments.menagerie.shared import reward
from experiments.public.shared import DATA_DIR, adam, pick

SOURCE = "hub:openai/gsm8k:main?validation=test"


def get_config(size: str = "default") -> ConfigDict:
    """Pay one point for the right number, and nothing for an answer that is cut off."""
    config = grpo.get_config(size)
    config.init.policy = "../sft"
    config.data = {
        "data_dir": DATA_DIR,
        "prompts": SOURCE,
        "prompt_length": pick(size, tiny=96, default=256, large=256),
    }
    config.rewards = {"answer": reward("answer:number")}
    samples = pick(size, tiny=4, default=8, large=64)
    batch_size = pick(size, tiny=16, default=512, large=1024)
    response_length = pick(size, tiny=16, default=320, large=768)
    config.policy_gradient.update(
        {
            "samples_per_prompt": samples,
            "batch_size": batch_size,
            "total_episodes": pick(size, tiny=2, default=200, large=500) * batch_size,
            "num_mini_batches": 1,
            "num_micro_batches": pick(size, tiny=1, default=16, large=16),
            "response_length": response_length,
            "kl_coef": 0.04,
            "missing_eos_penalty": 0.0,
            "missing_eos_mode": "replace",
        }
    )
    config.monitor = {
        "judge": "answer:number",
        "prompts": SOURCE,
        "num_prompts": pick(size, tiny=16, default=1319, large=1319),
        "every": pick(size, tiny=1, default=20, large=50),
        "prompt_length": config.data.prompt_length,
        "response_length": response_length,
        "batch_size": pick(size, tiny=16, default=256, large=512),
    }
    config.checkpoint.save_every = pick(size, tiny=1, default=20, large=50)
    config.optimizer = adam(1e-6, schedule="constant", final_fraction=1.0, warmup_steps=5)
    return config
