"""Make the rows of the table from measurements and judges: numbers with intervals.

Rows stand in the order in which a reader asks: is it preferred, is it better, at what price? A new
metric is one entry in `measurements.MEASUREMENTS` and one here in `ROWS`; a world with more to
measure has a dict of rows of its own, in which these stand where they belong (`Suite`). Controls
(`evaluation.controls`) are columns beside the checkpoints, empty where a row needs a model.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates, reward_model, win_rate
from rlhf_jax.evaluation.controls import Control, repeat_single
from rlhf_jax.evaluation.estimates import (
    Bootstrap,
    Estimate,
    difference_by_prompt,
    mean_by_prompt,
    without_interval,
)
from rlhf_jax.evaluation.judges import Judge, ScoreJudge
from rlhf_jax.evaluation.measurements import MEASUREMENTS, Measurement, Responses, restore_responses
from rlhf_jax.evaluation.table import Data, Row, format_conversation


@dataclass(frozen=True)
class Results:
    """All that is known of all checkpoints: measurements, responses, and what judges say."""

    prompts: Sequence[Prompt]
    reference: str
    measured: Mapping[str, Mapping[str, Data]]  # by checkpoint and measurement
    responses: Mapping[str, Responses]
    judges: Mapping[str, Judge]
    scores: Mapping[str, Mapping[str, np.ndarray]]  # score_NS by judge that scores, and checkpoint
    bootstrap: Bootstrap

    @property
    def others(self) -> list[str]:
        """Return the checkpoints that are compared with the reference."""
        return [name for name in self.measured if name != self.reference]

    @property
    def controls(self) -> dict[str, dict[str, str]]:
        """Return the heading and the description of every column that is no checkpoint."""
        return {
            name: {part: data["responses"][part] for part in ("heading", "description")}
            for name, data in self.measured.items()
            if "description" in data["responses"]
        }

    @property
    def successors(self) -> list[str]:
        """Return the checkpoints that come after the reference: those that were trained further."""
        names = list(self.measured)
        after = names[names.index(self.reference) + 1 :]
        return [name for name in after if name not in self.controls]

    @property
    def opponents(self) -> list[str]:
        """Return the checkpoints that all others are held against: the reference, the raw model."""
        return list(dict.fromkeys([self.reference, next(iter(self.measured))]))

    @property
    def unit(self) -> str:
        """Return the unit of standardised scores."""
        return f"SD of {self.reference}"

    def standardised(self, judge: str) -> dict[str, np.ndarray]:
        """Return every checkpoint's scores by a judge, in SD of the reference's."""
        return standardise(self.scores[judge], self.reference)

    def preferences(self, judge: str, first: str, second: str) -> np.ndarray:
        """Return a judge's preference_NSL for the responses of the first of two checkpoints."""
        if judge in self.scores:
            scores = self.scores[judge]
            return win_rate.score_preferences(scores[first], scores[second])[..., None]
        pair = repeat_single(self.responses[first], self.responses[second])
        return self.judges[judge].preferences(self.prompts, *pair)

    def means(self, values: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
        """Return the mean of every checkpoint's values by `mean_by_prompt`."""
        return {name: mean_by_prompt(value, self.bootstrap) for name, value in values.items()}

    def gains(self, values: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
        """Return the others' values minus the reference's, paired by prompt."""
        base = values[self.reference]
        return {
            name: difference_by_prompt(values[name], base, self.bootstrap)
            for name in self.others
            if name in values
        }

    def of_measurement(self, *path: str) -> dict[str, np.ndarray]:
        """Return what is found at a path of every measured checkpoint that has the first of it."""
        values = {}
        for name, data in self.measured.items():
            if path[0] in data:
                tree: Any = data
                for part in path:
                    tree = tree[part]
                values[name] = np.array(tree)
        return values

    def of_responses(self, field: str) -> dict[str, np.ndarray]:
        """Return one field of every response of all checkpoints."""
        return {
            name: np.array([[getattr(sample, field) for sample in row] for row in responses])
            for name, responses in self.responses.items()
        }


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
    scale = spread if spread > 0 else 1.0
    return {name: (score_NS - mean) / scale for name, score_NS in scores.items()}


def preference_rows(results: Results) -> list[Row]:
    """Say how often each checkpoint is preferred to the reference and to the raw model."""
    return [row for opponent in results.opponents for row in _preferred_to(results, opponent)]


def _preferred_to(results: Results, opponent: str) -> list[Row]:
    rows = []
    length = results.of_responses("length")
    for judge_name, judge in results.judges.items():
        rate, controlled = {}, {}
        for name in results.measured:
            if name != opponent:
                preference_NSL = results.preferences(judge_name, name, opponent)
                longer_NS = (length[name] - length[opponent]).astype(np.float64)
                rate[name] = win_rate.win_rate(preference_NSL, results.bootstrap)
                controlled[name] = win_rate.length_controlled(preference_NSL, longer_NS)
        is_score = isinstance(judge, ScoreJudge)
        ties = "ties are half a win (Ouyang et al. 2022, Fig. 1)"
        text = f"{judge.description}; {'equal totals are half a win' if is_score else ties}"
        group, title = f"Preferred to {opponent}", f"preferred to {opponent}, {judge_name}"
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
        judge, z = results.judges[judge_name], results.standardised(judge_name)
        assert isinstance(judge, ScoreJudge)
        group = judge_name[:1].upper() + judge_name[1:]
        text = f"{judge.score_description}; {results.reference} has mean 0 and deviation 1"
        text += " (Gao et al. 2022)"
        title = f"{judge_name} minus {results.reference}"
        rows += [
            Row(group, judge_name, results.unit, "higher", text, results.means(z)),
            Row(group, title, results.unit, "higher", "paired by prompt", results.gains(z)),
        ]
    return rows


def corpus_rows(results: Results) -> list[Row]:
    """Give the loss on the validation corpus, whose rise is the alignment tax."""
    nll, tokens = (results.of_measurement("corpus", name) for name in ("nll", "tokens"))
    loss = {name: estimates.ratio(nll[name], tokens[name], results.bootstrap) for name in nll}
    text = "validation corpus, per token; its rise is the alignment tax (Ouyang et al. 2022, 4.2)"
    row = Row("Price", "pretraining loss", "nats/token", "lower", text, loss)
    return [row] if loss else []


def divergence_rows(results: Results) -> list[Row]:
    """Give the distance from the reference policy; of best of n its bound."""
    kl = results.means(results.of_measurement("divergence", "kl"))
    bounds = {
        name: without_interval(data["responses"]["kl_bound"], len(results.prompts))
        for name, data in results.measured.items()
        if "kl_bound" in data["responses"]
    }
    text = "log-ratio of own samples, summed over the response"
    text += "; of best of n the bound log n - (n-1)/n" if bounds else ""
    kl |= bounds
    return [Row("Price", f"KL from {results.reference}", "nats/response", "none", text, kl)]


def form_rows(results: Results) -> list[Row]:
    """Give the length of responses and how many of them ended by themselves."""
    length, finished = (results.means(results.of_responses(f)) for f in ("length", "finished"))
    return [
        Row("Form", "response length", "tokens", "none", "end of text included", length),
        Row("Form", "finished", "", "higher", "responses that ended by themselves", finished),
    ]


def judged_pairs(results: Results, name: str) -> tuple[reward_model.Pairs, dict[str, np.ndarray]]:
    """Return all pairs of a checkpoint's own responses, and every judge's preference_M.

    Of a judge who draws labelers the first labeler's opinion counts.
    """
    responses = results.responses[name]
    texts = [[sample.text for sample in samples] for samples in responses]
    pairs = reward_model.different_pairs(texts)
    prompts = [results.prompts[n] for n in pairs.prompt_M]
    first, second = (
        [[responses[n][s]] for n, s in zip(pairs.prompt_M, sample_M, strict=True)]
        for sample_M in (pairs.first_M, pairs.second_M)
    )
    preferences = {}
    for judge_name, judge in results.judges.items():
        if judge_name in results.scores:
            scores = pairs.values(results.scores[judge_name][name])
            preferences[judge_name] = win_rate.score_preferences(*scores)
        else:
            preferences[judge_name] = judge.preferences(prompts, first, second)[:, 0, 0]
    return pairs, preferences


def reward_rows(results: Results) -> list[Row]:
    """Say whether the reward model, if there is one, orders pairs of responses as the judges do."""
    scores = results.of_measurement("reward", "scores")
    if not scores:
        return []
    # Those who are certain come first; the reward model should be as sure as the last one agrees
    # with it.
    judges = [*results.scores, *(name for name in results.judges if name not in results.scores)]
    accuracy: dict[str, dict[str, Estimate]] = {judge_name: {} for judge_name in judges}
    error: dict[str, Estimate] = {}
    for name, score_NS in scores.items():
        if name in results.controls:  # whose answers the reward model chose, or nobody drew
            continue
        pairs, preferences = judged_pairs(results, name)
        difference_M = np.subtract(*pairs.values(score_NS))
        for judge_name in judges:
            judged = (difference_M, preferences[judge_name])
            estimate = reward_model.accuracy(*judged, pairs.prompt_M, results.bootstrap)
            accuracy[judge_name][name] = estimate
            error[name] = reward_model.calibration_error(*judged)  # by the last judge
    group, text = "Reward model", "mean; what PPO raises"
    rows = [Row(group, "score of the responses", "", "none", text, results.means(scores))]
    for judge_name in judges:
        text = "pairs of different responses of this checkpoint that the judge does not find equal"
        text += "" if judge_name in results.scores else "; one each"
        title = f"accuracy against {judge_name}"
        rows.append(Row(group, title, "", "none", text, accuracy[judge_name]))
    if judges:
        agreement = "the judge's" if judges[-1] in results.scores else "labelers'"
        text = f"gap between σ(score difference) and {agreement} agreement (Guo et al. 2017)"
        rows.append(Row(group, "calibration error (ECE)", "", "none", text, error))
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
    """What is measured and shown of every checkpoint; a world with more to ask has its own.

    `of_answers` are the measurements that read the answers alone, and thus can be made of controls.
    """

    measurements: Mapping[str, Measurement] = MEASUREMENTS
    of_answers: Collection[str] = ("reward",)
    rows: Mapping[str, RowMaker] = ROWS
    controls: Mapping[str, Control] = {}

    def questions(self, tokenizer: Tokenizer, document_length: int) -> Any:
        """Return what is asked besides the test prompts, for `Context.questions`: nothing here.

        Its repr tells it from other questions. What exceeds `document_length` tokens is left out
        and reported.
        """
        del tokenizer, document_length

    def warnings(self, results: Results) -> list[str]:
        """Return sentences about what the table's means hide: here none."""
        del results
        return []


def first_of_each_kind(prompts: Sequence[Prompt], count: int) -> list[int]:
    """Return the places of `count` prompts: the first of every kind, then the second of each, ...

    Kinds (of the metadata) come in the order in which they first appear; where prompts have none,
    these are the first prompts.
    """
    seen: Counter[str] = Counter()
    rounds = []
    for n, prompt in enumerate(prompts):
        kind = prompt.metadata.get("kind", "")
        rounds.append((seen[kind], n))
        seen[kind] += 1
    return [n for _, n in sorted(rounds)][:count]


def side_by_side(results: Results, count: int) -> list[dict[str, Any]]:
    """Return prompts of all kinds with every checkpoint's first response, not chosen by hand.

    Beside each response stand its standardised score by every judge that has one, and the reward
    model's.
    """
    z = {judge_name: results.standardised(judge_name) for judge_name in results.scores}
    samples = []
    for n in first_of_each_kind(results.prompts, count):
        prompt, answers = results.prompts[n], {}
        for name, responses in results.responses.items():
            reward = results.measured[name].get("reward")
            answers[name] = {
                **{judge_name: float(z[judge_name][name][n, 0]) for judge_name in z},
                "text": responses[n][0].text,
                "finished": responses[n][0].finished,
                "score": float(reward["scores"][n][0]) if reward else None,
            }
        text, metadata = format_conversation(prompt.messages), dict(prompt.metadata)
        samples.append({"prompt": text, "metadata": metadata, "responses": answers})
    return samples
