"""Make the rows of the table from measurements and judges: numbers with intervals.

Rows stand in the order in which a reader asks: is it preferred, is it better, at what price? A new
metric is one entry in `measurements.MEASUREMENTS` and one here in `ROWS`; a world with more to
measure has a dict of rows of its own, in which these stand where they belong (`Suite`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates, reward_model, win_rate
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, by_prompt
from rlhf_jax.evaluation.judges import Judge, ScoreJudge
from rlhf_jax.evaluation.measurements import (
    MEASUREMENTS,
    Data,
    Measurement,
    Responses,
    restore_responses,
)
from rlhf_jax.evaluation.table import Row, format_conversation


@dataclass(frozen=True)
class Results:
    """All that is known of all checkpoints: measurements, responses, and what judges say."""

    prompts: Sequence[Prompt]
    reference: str
    measured: Mapping[str, Mapping[str, Data]]  # by checkpoint and measurement
    responses: Mapping[str, Responses]
    judges: Mapping[str, Judge]
    scores: Mapping[
        str, Mapping[str, np.ndarray]
    ]  # score_NS by judge, if it has any, and checkpoint
    bootstrap: Bootstrap

    @property
    def others(self) -> list[str]:
        """The checkpoints that are compared with the reference."""
        return [name for name in self.measured if name != self.reference]

    @property
    def opponents(self) -> list[str]:
        """The checkpoints that all others are held against: the reference, and the raw model."""
        return list(dict.fromkeys([self.reference, next(iter(self.measured))]))

    @property
    def unit(self) -> str:
        """The unit of standardised scores."""
        return f"SD of {self.reference}"

    def standardised(self, judge: str) -> dict[str, np.ndarray]:
        """Every checkpoint's scores by a judge in standard deviations of the reference's."""
        return standardise(self.scores[judge], self.reference)

    def preferences(self, judge: str, first: str, second: str) -> np.ndarray:
        """Return a judge's preference_NSL for the responses of the first of two checkpoints."""
        if judge in self.scores:
            scores = self.scores[judge]
            return win_rate.score_preferences(scores[first], scores[second])[..., None]
        return self.judges[judge].preferences(
            self.prompts, self.responses[first], self.responses[second]
        )

    def clustered(self, values_NS: np.ndarray) -> Estimate:
        """Return the mean of one number per response; the prompts are the clusters."""
        return estimates.clustered_mean(*by_prompt(values_NS), self.bootstrap)

    def share(self, hits_NS: np.ndarray) -> Estimate:
        """Return the share of responses that are hits; the prompts are the clusters."""
        return estimates.share(*by_prompt(hits_NS), self.bootstrap)

    def lengths(self, name: str) -> np.ndarray:
        """Return the number of tokens of every response."""
        return np.array(
            [[sample.length for sample in samples] for samples in self.responses[name]], np.float64
        )


RowMaker = Callable[[Results], list[Row]]


def judge_all(
    prompts: Sequence[Prompt],
    reference: str,
    measured: Mapping[str, Mapping[str, Data]],
    judges: Mapping[str, Judge],
    bootstrap: Bootstrap,
) -> Results:
    """Let every judge that scores answers score all responses; people stand before those."""
    judges = dict(sorted(judges.items(), key=lambda item: isinstance(item[1], ScoreJudge)))
    responses = {name: restore_responses(data["responses"]) for name, data in measured.items()}
    scores = {
        judge_name: {name: judge.scores(prompts, responses[name]) for name in measured}
        for judge_name, judge in judges.items()
        if isinstance(judge, ScoreJudge)
    }
    return Results(prompts, reference, measured, responses, judges, scores, bootstrap)


def standardise(scores: Mapping[str, np.ndarray], reference: str) -> dict[str, np.ndarray]:
    """Return (score - mean) / SD of the reference's scores; only centred if those are all equal.

    Gao et al. 2022 normalise their gold reward so, by the initial policy's.
    """
    mean, spread = scores[reference].mean(), float(scores[reference].std())
    return {
        name: (score_NS - mean) / (spread if spread > 0 else 1.0)
        for name, score_NS in scores.items()
    }


def preference_rows(results: Results) -> list[Row]:
    """Say how often each checkpoint is preferred to the reference and to the raw model."""
    return [row for opponent in results.opponents for row in _preferred_to(results, opponent)]


def _preferred_to(results: Results, opponent: str) -> list[Row]:
    rows = []
    for judge_name, judge in results.judges.items():
        rate, controlled = {}, {}
        for name in results.measured:
            if name != opponent:
                preference_NSL = results.preferences(judge_name, name, opponent)
                longer_NS = results.lengths(name) - results.lengths(opponent)
                rate[name] = win_rate.win_rate(preference_NSL, results.bootstrap)
                controlled[name] = win_rate.length_controlled(preference_NSL, longer_NS)
        group, title = f"Preferred to {opponent}", f"preferred to {opponent}, {judge_name}"
        ties = (
            "equal totals are half a win"
            if isinstance(judge, ScoreJudge)
            else "ties are half a win (Ouyang et al. 2022, Fig. 1)"
        )
        text = f"{judge.description}; {ties}"
        equal = "as it would be for responses of equal length (Dubois et al. 2024)"
        rows += [
            Row(group, title, "", "higher", text, rate, judge.row_key, opponent),
            Row(group, f"{title}, length-controlled", "", "higher", equal, controlled),
        ]
    return rows


def score_rows(results: Results) -> list[Row]:
    """Give the mean score by every judge that scores answers, and its gain over the reference."""
    rows = []
    for judge_name in results.scores:
        z = results.standardised(judge_name)
        total = {name: results.clustered(z_NS) for name, z_NS in z.items()}
        gain = {
            name: estimates.paired_difference(
                z[name].ravel(), *by_prompt(z[results.reference]), results.bootstrap
            )
            for name in results.others
        }
        group, judge = judge_name[:1].upper() + judge_name[1:], results.judges[judge_name]
        assert isinstance(judge, ScoreJudge)
        text = (
            f"{judge.score_description}; {results.reference} has mean 0 and deviation 1 "
            "(Gao et al. 2022)"
        )
        title = f"{judge_name} minus {results.reference}"
        rows += [
            Row(group, judge_name, results.unit, "higher", text, total),
            Row(group, title, results.unit, "higher", "paired by prompt", gain),
        ]
    return rows


def corpus_rows(results: Results) -> list[Row]:
    """Give the loss on the validation corpus, whose rise is the alignment tax."""
    loss = {
        name: estimates.ratio(data["corpus"]["nll"], data["corpus"]["tokens"], results.bootstrap)
        for name, data in results.measured.items()
        if "corpus" in data
    }
    text = "validation corpus, per token; its rise is the alignment tax (Ouyang et al. 2022, 4.2)"
    row = Row("Price", "pretraining loss", "nats/token", "lower", text, loss)
    return [row] if loss else []


def divergence_rows(results: Results) -> list[Row]:
    """Give the distance from the reference policy."""
    kl = {
        name: results.clustered(np.array(data["divergence"]["kl"]))
        for name, data in results.measured.items()
        if "divergence" in data
    }
    title, text = (
        f"KL from {results.reference}",
        "log-ratio of own samples, summed over the response",
    )
    return [Row("Price", title, "nats/response", "none", text, kl)]


def form_rows(results: Results) -> list[Row]:
    """Give the length of responses and how many of them ended by themselves."""
    length, finished = {}, {}
    for name, responses in results.responses.items():
        length[name] = results.clustered(results.lengths(name))
        ended_NS = np.array([[sample.finished for sample in samples] for samples in responses])
        finished[name] = results.share(ended_NS)
    return [
        Row("Form", "response length", "tokens", "none", "end of text included", length),
        Row("Form", "finished", "", "higher", "responses that ended by themselves", finished),
    ]


def judged_pairs(results: Results, name: str) -> tuple[reward_model.Pairs, dict[str, np.ndarray]]:
    """Return all pairs of a checkpoint's own responses, and every judge's preference_M.

    Of a judge who draws labelers the first labeler's opinion counts.
    """
    responses = results.responses[name]
    pairs = reward_model.different_pairs(
        [[sample.text for sample in samples] for samples in responses]
    )
    prompts = [results.prompts[n] for n in pairs.prompt_M]
    first, second = (
        [[responses[n][s]] for n, s in zip(pairs.prompt_M, sample_M, strict=True)]
        for sample_M in (pairs.first_M, pairs.second_M)
    )
    preferences = {}
    for judge_name, judge in results.judges.items():
        if judge_name in results.scores:
            score_NS = results.scores[judge_name][name]
            preferences[judge_name] = win_rate.score_preferences(*pairs.values(score_NS))
        else:
            preferences[judge_name] = judge.preferences(prompts, first, second)[:, 0, 0]
    return pairs, preferences


def reward_rows(results: Results) -> list[Row]:
    """Say whether the reward model, if there is one, orders pairs of responses as the judges do."""
    if "reward" not in results.measured[results.reference]:
        return []
    # Those who are certain come first; the reward model should be as sure as the last one agrees
    # with it.
    judges = [*results.scores, *(name for name in results.judges if name not in results.scores)]
    score: dict[str, Estimate] = {}
    accuracy: dict[str, dict[str, Estimate]] = {judge_name: {} for judge_name in judges}
    error: dict[str, Estimate] = {}
    for name, data in results.measured.items():
        score_NS = np.array(data["reward"]["scores"])
        score[name] = results.clustered(score_NS)
        pairs, preferences = judged_pairs(results, name)
        first_M, second_M = pairs.values(score_NS)
        for judge_name in judges:
            accuracy[judge_name][name] = reward_model.accuracy(
                first_M - second_M, preferences[judge_name], pairs.prompt_M, results.bootstrap
            )
        if judges:
            error[name] = reward_model.calibration_error(
                first_M - second_M, preferences[judges[-1]]
            )
    rows = [
        Row("Reward model", "score of the responses", "", "none", "mean; what PPO raises", score)
    ]
    for judge_name in judges:
        text = "pairs of different responses of this checkpoint that the judge does not find equal"
        text += "" if judge_name in results.scores else "; one each"
        title = f"accuracy against {judge_name}"
        rows.append(Row("Reward model", title, "", "none", text, accuracy[judge_name]))
    if judges:
        agreement = "the judge's" if judges[-1] in results.scores else "labelers'"
        text = f"gap between σ(score difference) and {agreement} agreement (Guo et al. 2017)"
        rows.append(Row("Reward model", "calibration error (ECE)", "", "none", text, error))
    return rows


ROWS: dict[str, RowMaker] = {
    "preferences": preference_rows,
    "scores": score_rows,
    "corpus": corpus_rows,
    "divergence": divergence_rows,
    "responses": form_rows,
    "reward": reward_rows,
}


class Suite:
    """What is measured and shown of every checkpoint; a world with more to ask has its own."""

    measurements: Mapping[str, Measurement] = MEASUREMENTS
    rows: Mapping[str, RowMaker] = ROWS

    def questions(self, tokenizer: Tokenizer, document_length: int) -> Any:
        """Return what is asked besides the test prompts, for `Context.questions`: nothing here.

        Its repr tells it from other questions. What exceeds `document_length` tokens is left out
        and reported.
        """
        del tokenizer, document_length


def side_by_side(results: Results, count: int) -> list[dict[str, Any]]:
    """Return the first prompts with every checkpoint's first response, not chosen by hand.

    Beside each response stand its standardised score by every judge that has one, and the reward
    model's.
    """
    z = {judge_name: results.standardised(judge_name) for judge_name in results.scores}
    samples = []
    for n, prompt in enumerate(results.prompts[:count]):
        answers = {}
        for name, responses in results.responses.items():
            reward = results.measured[name].get("reward")
            answers[name] = {
                **{judge_name: float(z[judge_name][name][n, 0]) for judge_name in z},
                "text": responses[n][0].text,
                "finished": responses[n][0].finished,
                "score": float(reward["scores"][n][0]) if reward else None,
            }
        samples.append(
            {
                "prompt": format_conversation(prompt.messages),
                "metadata": dict(prompt.metadata),
                "responses": answers,
            }
        )
    return samples
