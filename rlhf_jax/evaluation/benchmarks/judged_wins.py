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
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import win_rate
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Metric
from rlhf_jax.evaluation.benchmarks.questions import ResponseSettings, map_fitting, measure_groups
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    LoadedModel,
    load_scalar_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.estimates import Bootstrap, clustered_mean
from rlhf_jax.evaluation.generate import generate
from rlhf_jax.evaluation.likelihood import Continuation, scores
from rlhf_jax.evaluation.table import Data, Measured, Row, format_conversation, left_out
from rlhf_jax.models.heads import Params, ScalarModel


class Answer(NamedTuple):
    """Hold a sampled answer, and whether the policy ended it itself."""

    text: str
    finished: bool


class Judge(NamedTuple):
    """Hold a reward model with its own tokenizer."""

    model: tuple[ScalarModel, Params]
    tokenizer: Tokenizer


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
        """Return the tokens of the shortest prompt with an answer."""
        return self.settings.response_length + 1

    @cached_property
    def _loaded_judge(self) -> Judge:
        return Judge(load_scalar_model(self.judge), load_tokenizer_of(self.judge))

    def measure(self, model: LoadedModel, tokenizer: Tokenizer, *, batch_size: int) -> Data:
        """Return answers with the judge's scores; a prompt whose answers do not fit is left out."""
        answers = self.answer(model, tokenizer, batch_size=batch_size)
        return self.score(self._loaded_judge, answers, batch_size=batch_size)

    def answer(
        self, model: LoadedModel, tokenizer: Tokenizer, *, batch_size: int
    ) -> dict[int, list[Answer]]:
        """Return answers by the number of each prompt that leaves room for one in the context."""
        room = model.model.config.context_length - self.settings.response_length

        def generate_all(fitting: list[Prompt]) -> list[list[Answer]]:
            responses = generate(
                *model,
                tokenizer,
                fitting,
                jax.random.key(self.settings.seed),
                spec=self.settings.sampling,
                prompt_length=room,
                response_length=self.settings.response_length,
                batch_size=batch_size,
                num_samples=self.settings.samples_per_prompt,
            )
            return [[Answer(r.text, r.finished) for r in samples] for samples in responses]

        conversations = [prompt.messages for prompt in self.prompts]
        contexts = render_batch(tokenizer, conversations, generation_prompt=True)
        return map_fitting(generate_all, self.prompts, [len(r.ids) <= room for r in contexts])

    def score(self, judge: Judge, answers: dict[int, list[Answer]], *, batch_size: int) -> Data:
        """Return the judge's scores (N, S), of prompts whose answers all fit its context."""
        conversations = [self.prompts[number].messages for number in answers]
        prompts = render_batch(judge.tokenizer, conversations, generation_prompt=True)
        texts = [answer.text for samples in answers.values() for answer in samples]
        encodings = iter(judge.tokenizer.encode_batch(texts, special=False))
        groups = []
        for prompt, samples in zip(prompts, answers.values(), strict=True):
            continuations = []
            for answer in samples:
                ids = next(encodings)
                # The end of the turn is judged where the policy ended its answer, or said nothing
                # that can be read.
                ends = answer.finished or not ids
                end = [judge.tokenizer.turn_end_id] if ends else []
                continuations.append(Continuation(prompt.ids, [*ids, *end]))
            groups.append(continuations)
        scores_by_number = measure_groups(scores, judge.model, groups, batch_size=batch_size)
        numbers = list(answers)
        kept_prompts = [numbers[n] for n in scores_by_number]
        return {
            "kept": kept_prompts,
            "scores": list(scores_by_number.values()),
            "lengths": [
                [len(answer.text) for answer in answers[number]] for number in kept_prompts
            ],
            "answers": [answers[number] for number in kept_prompts],
        }

    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return win rates against the reference on prompts that both answered, and the scores."""
        rate = {}
        controlled_rate = {}
        mean_score = {}
        for name, data in measurements.items():
            score_NS = np.array(data["scores"], np.float64)
            if data["kept"]:
                prompt_NS = np.repeat(np.arange(len(score_NS)), score_NS.shape[1])
                mean_score[name] = clustered_mean(score_NS.ravel(), prompt_NS, bootstrap)
            shared_prompts = np.intersect1d(data["kept"], measurements[self.reference]["kept"])
            if name == self.reference or not shared_prompts.size:
                continue
            score_NS, length_NS = _shared_answers(data, shared_prompts)
            reference_NS, reference_length_NS = _shared_answers(
                measurements[self.reference], shared_prompts
            )
            preference_NS1 = win_rate.score_preferences(score_NS, reference_NS)[..., None]
            rate[name] = win_rate.win_rate(preference_NS1, bootstrap)
            controlled_rate[name] = win_rate.length_controlled(
                preference_NS1, length_NS - reference_length_NS
            )
        title = f"preferred to {self.reference} by the judge"
        fair = "as it would be for answers of equal length (Dubois et al. 2024)"
        preferred = Metric(
            title,
            "higher",
            "reward model; ties are half a win",
            key="win_rate_model",
            subject=self.reference,
        )
        metrics = (
            (preferred, rate),
            (Metric(f"{title}, length-controlled", "higher", fair), controlled_rate),
            (Metric("score by the judge", "none", "mean over answers"), mean_score),
        )
        return [
            *(metric.row(self.group, values) for metric, values in metrics),
            *left_out(self.group, measurements, len(self.prompts), "prompts"),
        ]

    @property
    def shown_prompts(self) -> Sequence[str]:
        """Return the prompts as the report reads them."""
        return [format_conversation(prompt.messages) for prompt in self.prompts]

    def reply(self, data: Data, number: int) -> dict[str, Any]:
        """Return the first answer with its score."""
        text, finished = data["answers"][number][0]
        return {"text": text, "finished": finished, "score": data["scores"][number][0]}


def _shared_answers(data: Data, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N, S) and lengths (N, S) of the answers to these prompts."""
    chosen = np.isin(data["kept"], prompts)
    return np.array(data["scores"], np.float64)[chosen], np.array(data["lengths"], float)[chosen]
