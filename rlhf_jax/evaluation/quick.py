"""A glance at a policy while it trains: what gold says of one response to each of a few validation prompts.

For choosing the checkpoint of supervised fine-tuning and for watching PPO. Gold only measures: nothing that this returns
may reach a loss. The key is always the same, so that the differences between two calls are the policy's.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf_jax.data.menagerie.world import World
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import judges
from rlhf_jax.evaluation.generate import generate
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.models.heads import LanguageModel, Params


def quick_evaluation(
    model: LanguageModel,
    tokenizer: Tokenizer,
    world: World,
    prompts: Sequence[Prompt],
    *,
    spec: SamplingSpec,
    prompt_length: int,
    response_length: int,
    batch_size: int,
    seed: int,
) -> Callable[[Params], dict[str, float]]:
    """A function of parameters that returns gold's mean, rude share, mean length in tokens and finished
    share.

    Keys: `gold/total`, `gold/truthfulness`, `gold/rude`, `gold/length`, `gold/finished`. Gold is raw, not
    standardised.
    """

    def measure(params: Params) -> dict[str, float]:
        responses = generate(
            model, params, tokenizer, prompts, jax.random.key(seed), spec=spec, prompt_length=prompt_length,
            response_length=response_length, batch_size=batch_size,
        )  # fmt: skip
        verdicts = judges.judge(world, prompts, responses)
        flat = [one for drawn in responses for one in drawn]
        return {
            "gold/total": float(verdicts.total_NS.mean()),
            "gold/truthfulness": float(verdicts.components["truthfulness"].mean()),
            "gold/rude": float((verdicts.toxicity_NS > 0).mean()),
            "gold/length": float(np.mean([one.length for one in flat])),
            "gold/finished": float(np.mean([one.finished for one in flat])),
        }

    return measure
