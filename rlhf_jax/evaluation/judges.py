"""Judges: whoever says which of several answers to a prompt is better, whether in labelling or in evaluation.

    labelers      draw a person, who ranks with noise                   -> `Judge`
    gold, a reward model, a reward function: a number per answer        -> `ScoreJudge`

A config names a judge by a string, KIND:NAME; `rlhf_jax.main` has the table of kinds and hands judges to the stages, so that
no stage knows where its judge comes from.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.table import Key

Responses = Sequence[Sequence[Generation]]  # N prompts, S responses to each


class Judge(ABC):
    """Compare answers to one prompt; `name` is what metrics and folders call the judge.

    Tables say who it is in `description`, and programs find its win rates by `row_key`.
    """

    name: str
    description: str = "the judge"
    row_key: Key = "win_rate_labelers"

    @abstractmethod
    def rank(
        self, prompt: Prompt, responses: Sequence[str], rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Return the rank of every finished response to one prompt: 1 is best, ties share a rank."""

    @abstractmethod
    def preferences(
        self, prompts: Sequence[Prompt], first: Responses, second: Responses
    ) -> np.ndarray:
        """Return preference_NSL of L opinions each: 1 for the first's sample s, 0 for the second's, ½ for a tie."""


class ScoreJudge(Judge):
    """Compare answers by one number each, higher is better; equal numbers (to six decimals) tie."""

    score_description: str = "the judge's score"
    row_key: Key = "win_rate_model"

    @abstractmethod
    def scores(self, prompts: Sequence[Prompt], responses: Responses) -> np.ndarray:
        """Return score_NS of every response to every prompt."""

    def rank(
        self, prompt: Prompt, responses: Sequence[str], rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Return 1 + the number of better responses, for every response; `rng` is not used."""
        del rng
        finished = [[Generation(text, (), finished=True) for text in responses]]
        score_C = np.round(self.scores([prompt], finished)[0], 6)
        return tuple(1 + int((score_C > score).sum()) for score in score_C)

    def preferences(
        self, prompts: Sequence[Prompt], first: Responses, second: Responses
    ) -> np.ndarray:
        """Return preference_NS1 by the sign of the difference of scores."""
        difference_NS = np.round(self.scores(prompts, first) - self.scores(prompts, second), 6)
        return (0.5 * (1.0 + np.sign(difference_NS)))[..., None]
