"""Watch a policy with gold while it trains: gold measures, and nothing it says reaches a loss."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.generate import generate
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.menagerie import judges
from rlhf_jax.menagerie.world import World, make_world
from rlhf_jax.models.heads import LanguageModel, Params
from rlhf_jax.training.loop import Hook
from rlhf_jax.training.updates import TrainState


# A glance at a policy while it trains: what gold says of one response to each of a few validation prompts.
#
# For choosing the checkpoint of supervised fine-tuning and for watching PPO. Gold only measures: nothing that this returns
# may reach a loss. The key is always the same, so that the differences between two calls are the policy's.
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
            model,
            params,
            tokenizer,
            prompts,
            jax.random.key(seed),
            spec=spec,
            prompt_length=prompt_length,
            response_length=response_length,
            batch_size=batch_size,
        )
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


@dataclass(frozen=True)
class Monitor:
    """What to watch; an empty `world` watches nothing."""

    world: str
    prompts: str
    num_prompts: int
    every: int
    prompt_length: int
    response_length: int
    batch_size: int


def monitor_hooks(
    config: Monitor,
    model: LanguageModel,
    tokenizer: Tokenizer,
    policy_of: Callable[[TrainState], Any],
    *,
    data_dir: str,
    seed: int,
) -> list[Hook]:
    """A hook that samples one answer per validation prompt with the same key every time and reports what gold says."""
    if not config.world:
        return []
    prompts = load(config.prompts, Prompt, split="validation", data_dir=data_dir)
    prompts = fitting_prompts(prompts, tokenizer, prompt_length=config.prompt_length)[
        : config.num_prompts
    ]
    measure = quick_evaluation(
        model,
        tokenizer,
        make_world(config.world.removeprefix("menagerie/")),
        prompts,
        spec=SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman"),
        prompt_length=config.prompt_length,
        response_length=config.response_length,
        batch_size=config.batch_size,
        seed=seed,
    )
    return [Hook(config.every, lambda state, step: measure(policy_of(state)))]
