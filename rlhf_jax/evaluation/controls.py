"""Make controls: answers that cost no training, made from the reference's model and answers.

What training gains should be held against what is there for less. A control is a column of the
table like a checkpoint; only what can be said of its answers alone is measured, for it has no model
of its own:

    best_of   n answers to every prompt, of which the reward model or judges choose one

Best of n stays close to the reference: KL <= log n - (n - 1) / n, whatever the reward model
(Stiennon et al. 2020, appendix G.3; Beirami et al. 2024 prove that it is a bound). A world may have
controls of its own (`results.Suite`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.judges import ScoreJudge
from rlhf_jax.evaluation.measurements import Context, Responses, draw_responses, reward_scores
from rlhf_jax.evaluation.table import Data
from rlhf_jax.training.keys import EvaluationPurpose

# From the reference's model, and a context with its responses, to "responses", "heading" (a few
# words below the column's name), "description", and perhaps "kl_bound".
Control = Callable[[LoadedModel, Context], Data]


class Chooser(NamedTuple):
    """Score responses, (N, S), and say who does it."""

    scores: Callable[[Context, Responses], np.ndarray]
    name: str = "the reward model"


REWARD_MODEL = Chooser(reward_scores)


def weighted_judges(judges: Mapping[str, ScoreJudge], weights: Mapping[str, float]) -> Chooser:
    """Return who chooses by Σ weight · score of some judges, as a run of RL adds up its rewards."""

    def scores(context: Context, responses: Responses) -> np.ndarray:
        parts = [
            weight * judges[name].scores(context.prompts, responses)
            for name, weight in weights.items()
        ]
        return np.sum(parts, axis=0)

    return Chooser(scores, " + ".join(f"{weight:g} x {name}" for name, weight in weights.items()))


def best_of(n: int, chooser: Chooser, loaded: LoadedModel, context: Context) -> Data:
    """Answer every test prompt once: by the best of n samples of the reference's."""
    purpose = EvaluationPurpose.BEST_OF
    drawn = draw_responses(loaded, context, context.prompts, purpose, num_samples=n)
    return {
        "responses": choose_best(drawn, chooser.scores(context, drawn)),
        "heading": f"{n} samples",
        "description": f"the best of {n} answers of the reference by {chooser.name}",
        "kl_bound": kl_bound(n),
    }


def choose_best(responses: Responses, score_NS: np.ndarray) -> Responses:
    """Return the response with the highest score to every prompt, the first of equal ones."""
    best_N = score_NS.argmax(axis=1)
    return [[samples[best]] for samples, best in zip(responses, best_N, strict=True)]


def kl_bound(n: int) -> float:
    """Return log n - (n - 1) / n, the most that best of n can differ from what it chooses from."""
    return math.log(n) - (n - 1) / n


def repeat_single(first: Responses, second: Responses) -> tuple[Responses, Responses]:
    """Return both with equally many responses to a prompt; one that stands alone meets every one.

    Raises:
        ValueError: both have several, and not equally many.
    """
    counts = [len(responses[0]) if responses else 1 for responses in (first, second)]
    if len({1, *counts}) > 2:
        raise ValueError(f"cannot pair {counts[0]} responses to a prompt with {counts[1]}")
    return _repeat(first, max(counts)), _repeat(second, max(counts))


def _repeat(responses: Responses, count: int) -> Responses:
    return [_filled(samples, count) for samples in responses]


def _filled(samples: Sequence, count: int) -> list:
    return list(samples) * count if len(samples) == 1 else list(samples)
