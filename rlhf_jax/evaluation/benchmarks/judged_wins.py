"""Measure which of two checkpoints a reward model prefers, on prompts that neither has seen.

    every checkpoint answers every prompt S times; the judge scores each answer
    win rate        (wins + ½ ties) / comparisons of sample s with sample s; intervals resample
                    prompts
    length control  the rate as it would be for answers of equal length, in characters
                    (`evaluation.win_rate`)

A score does not depend on which answer is shown first, so there are no positions to exchange. The
judge reads text with its own tokenizer: checkpoints and judge may have different ones. A reward
model that a policy was trained on prefers it for that alone; take another one as judge, or read the
number as how far training got.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import jax
import numpy as np

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import win_rate
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Measured, Metric
from rlhf_jax.evaluation.benchmarks.questions import ResponseSettings, map_fitting, measure_groups
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    LoadedModel,
    load_scalar_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.estimates import Bootstrap, mean_by_prompt
from rlhf_jax.evaluation.generate import Generation, generate
from rlhf_jax.evaluation.likelihood import scores, text_continuations
from rlhf_jax.evaluation.table import Data, Row, format_conversation
from rlhf_jax.models.heads import Params, ScalarModel

Judge = tuple[tuple[ScalarModel, Params], Tokenizer]  # a reward model and its own tokenizer
Answers = dict[int, list[Generation]]  # by the number of the prompt


@dataclass(frozen=True)
class JudgedWins(Benchmark):
    """Let a reward model judge the answers of every checkpoint against those of the reference."""

    group: ClassVar[str] = "Preferred by a reward model"
    name: ClassVar[str] = "win-rate"
    prompts: Sequence[Prompt]
    settings: ResponseSettings
    judge: CheckpointRef = field(repr=False)
    reference: str = field(repr=False)

    @property
    def depends_on(self) -> str:
        """Return the questions and settings, and the judge's parameters."""
        return f"{self!r} {self.judge.meta.fingerprint}"

    @property
    def min_context(self) -> int:
        return self.settings.response_length + 1

    @cached_property
    def _loaded_judge(self) -> Judge:
        return load_scalar_model(self.judge), load_tokenizer_of(self.judge)

    def measure(self, model: LoadedModel, tokenizer: Tokenizer, *, batch_size: int) -> Data:
        """Return answers with the judge's scores; a prompt whose answers do not fit is left out."""
        answers = self.answer(model, tokenizer, batch_size=batch_size)
        return self.score(self._loaded_judge, answers, batch_size=batch_size)

    def answer(self, model: LoadedModel, tokenizer: Tokenizer, *, batch_size: int) -> Answers:
        """Return answers by the number of each prompt that leaves room for one in the context."""
        room = model.model.config.context_length - self.settings.response_length
        how = self.settings.generation(room, batch_size)
        key = jax.random.key(self.settings.seed)

        def generate_all(fitting: list[Prompt]) -> list[list[Generation]]:
            return generate(*model, tokenizer, fitting, key, how)

        conversations = [prompt.messages for prompt in self.prompts]
        contexts = render_batch(tokenizer, conversations, generation_prompt=True)
        return map_fitting(generate_all, self.prompts, [len(r.ids) <= room for r in contexts])

    def score(self, judge: Judge, answers: Answers, *, batch_size: int) -> Data:
        """Return the judge's scores (N, S), of prompts whose answers all fit its context."""
        model, tokenizer = judge
        prompts = [self.prompts[number] for number in answers]
        groups = text_continuations(tokenizer, prompts, list(answers.values()))
        scores_by_place = measure_groups(scores, model, groups, batch_size=batch_size)
        kept = [list(answers)[place] for place in scores_by_place]
        return {
            "kept": kept,
            "scores": list(scores_by_place.values()),
            "lengths": [[len(answer.text) for answer in answers[number]] for number in kept],
            "answers": [[(a.text, a.finished) for a in answers[number]] for number in kept],
        }

    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return win rates against the reference on prompts that both answered, and the scores."""
        rate, controlled_rate, mean_score = {}, {}, {}
        reference = measurements[self.reference]
        for name, data in measurements.items():
            if data["kept"]:
                mean_score[name] = mean_by_prompt(np.array(data["scores"], np.float64), bootstrap)
            shared_prompts = np.intersect1d(data["kept"], reference["kept"])
            if name == self.reference or not shared_prompts.size:
                continue
            score_NS, length_NS = _shared_answers(data, shared_prompts)
            other_score_NS, other_length_NS = _shared_answers(reference, shared_prompts)
            preference_NS1 = win_rate.score_preferences(score_NS, other_score_NS)[..., None]
            rate[name] = win_rate.win_rate(preference_NS1, bootstrap)
            longer_NS = length_NS - other_length_NS
            controlled_rate[name] = win_rate.length_controlled(preference_NS1, longer_NS)
        title = f"preferred to {self.reference} by the judge"
        win = Metric("higher", "reward model; ties are half a win").row(self.group, title, rate)
        fair = Metric("higher", "as it would be for answers of equal length (Dubois et al. 2024)")
        score = Metric("none", "mean over answers")
        return [
            win._replace(key="win_rate_model", subject=self.reference),
            fair.row(self.group, f"{title}, length-controlled", controlled_rate),
            score.row(self.group, "score by the judge", mean_score),
            *self.left_out(measurements, self.prompts, "prompts"),
        ]

    @property
    def shown_prompts(self) -> Sequence[str]:
        return [format_conversation(prompt.messages) for prompt in self.prompts]

    def reply(self, data: Data, number: int) -> dict[str, Any]:
        text, finished = data["answers"][number][0]
        return {"text": text, "finished": finished, "score": data["scores"][number][0]}


def _shared_answers(data: Data, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N, S) and lengths (N, S) of the answers to these prompts."""
    chosen = np.isin(data["kept"], prompts)
    return np.array(data["scores"], np.float64)[chosen], np.array(data["lengths"], float)[chosen]
