"""Make the rows of the table from measurements and judges: numbers with intervals.

Rows stand in the order in which a reader asks: is it preferred, is it better, at what price? A new
metric is one entry in `measurements.MEASUREMENTS` and one here in `ROWS`; a world with more to
measure has a dict of rows of its own, in which these stand where they belong (`Suite`). Controls
(`evaluation.controls`) are columns beside the checkpoints, empty where a row needs a model.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

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
from rlhf_jax.evaluation.table import Data, Key, Row, format_conversation
from rlhf_jax.evaluation.texts import count_words, distinct, prompts_by_kind

REWARD_MODEL = "reward model"  # whose accuracy it is, beside that of what needs none
MOST_KINDS = 20  # kinds of prompt that have rows of their own


class Opinions(NamedTuple):
    """What a judge says of pairs of responses: 1 prefers the first, 0 the second, ½ is a tie.

    `consistent_NSL` says whether it says the same of a pair in both orders; None where no order can
    matter.
    """

    preference_NSL: np.ndarray
    consistent_NSL: np.ndarray | None


class JudgedPairs(NamedTuple):
    """Pairs of a checkpoint's own responses, and the opinions (M, L) of every judge."""

    pairs: reward_model.Pairs
    preferences: dict[str, np.ndarray]


# Two results are the same only if they are one object, so what is derived from one can be kept.
@dataclass(frozen=True, eq=False)
class Results:
    """All that is known of all checkpoints: measurements, responses, and what judges say."""

    prompts: Sequence[Prompt]
    reference: str
    measured: Mapping[str, Mapping[str, Data]]  # by checkpoint and measurement
    responses: Mapping[str, Responses]
    judges: Mapping[str, Judge]
    scores: Mapping[str, Mapping[str, np.ndarray]]  # score_NS by judge that scores, and checkpoint
    bootstrap: Bootstrap
    raw: str | None = None  # the checkpoint that all others began as, if it takes part

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
    def per_byte(self) -> bool:
        """Return True where tokenizers differ, so that a loss per token compares nothing."""
        answers = [data["responses"] for data in self.measured.values()]
        return len({data["tokenizer"] for data in answers if "tokenizer" in data}) > 1

    @property
    def successors(self) -> list[str]:
        """Return the checkpoints that come after the reference: those that were trained further."""
        names = list(self.measured)
        after = names[names.index(self.reference) + 1 :]
        return [name for name in after if name not in self.controls]

    @property
    def opponents(self) -> list[str]:
        """Return the checkpoints that all others are held against: the reference, the raw model."""
        return list(dict.fromkeys([self.reference, self.raw or self.reference]))

    @cached_property
    def kinds(self) -> dict[str, np.ndarray]:
        """Return by kind of prompt which prompts are of it, {} where prompts have no kinds."""
        return prompts_by_kind(self.prompts, MOST_KINDS)

    @property
    def unit(self) -> str:
        """Return the unit of standardised scores."""
        return f"SD of {self.reference}"

    def standardised(self, judge: str) -> dict[str, np.ndarray]:
        """Return every checkpoint's scores by a judge, in SD of the reference's."""
        return standardise(self.scores[judge], self.reference)

    @cached_property
    def opinions(self) -> dict[tuple[str, str, str], Opinions]:
        """Return every judge's opinions, by judge, checkpoint and opponent."""
        return {
            (judge, name, opponent): self._opinions(judge, name, opponent)
            for opponent in self.opponents
            for judge in self.judges
            for name in self.measured
            if name != opponent
        }

    def _opinions(self, judge: str, first: str, second: str) -> Opinions:
        if judge in self.scores:
            scores = self.scores[judge]
            preference_NS = win_rate.score_preferences(scores[first], scores[second])
            return Opinions(preference_NS[..., None], None)
        pair = repeat_single(self.responses[first], self.responses[second])
        return ask_both_ways(self.judges[judge], self.prompts, *pair)

    @cached_property
    def judged_pairs(self) -> dict[str, JudgedPairs]:
        """Return the judged pairs of own responses of every checkpoint that draws its own."""
        names = [name for name in self.measured if name not in self.controls]
        return {name: judge_pairs(self, name) for name in names}

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

    def of_texts(self, count: Callable[[str], int]) -> dict[str, np.ndarray]:
        """Return a count of the text of every response of all checkpoints."""
        return {
            name: np.array([[count(sample.text) for sample in row] for row in responses])
            for name, responses in self.responses.items()
        }

    def of_responses(self, field: str) -> dict[str, np.ndarray]:
        """Return one field of every response of all checkpoints."""
        return {
            name: np.array([[getattr(sample, field) for sample in row] for row in responses])
            for name, responses in self.responses.items()
        }


RowMaker = Callable[[Results], list[Row]]


def ask_both_ways(
    judge: Judge, prompts: Sequence[Prompt], first: Responses, second: Responses
) -> Opinions:
    """Return a judge's opinions, of one who reads a pair in order the mean of both orders.

    A judge who always prefers what it reads first says ½ of every pair (Zheng et al. 2023,
    section 3.4, count such a verdict as a tie, too).
    """
    preference_NSL = judge.preferences(prompts, first, second)
    if not judge.sees_order:
        return Opinions(preference_NSL, None)
    swapped_NSL = 1.0 - judge.preferences(prompts, second, first)
    return Opinions(0.5 * (preference_NSL + swapped_NSL), preference_NSL == swapped_NSL)


def judge_all(
    prompts: Sequence[Prompt],
    reference: str,
    measured: Mapping[str, Mapping[str, Data]],
    judges: Mapping[str, Judge],
    bootstrap: Bootstrap,
    raw: str | None = None,
) -> Results:
    """Let every judge that scores answers score all responses; people stand before those."""
    judges = dict(sorted(judges.items(), key=lambda item: isinstance(item[1], ScoreJudge)))
    responses = {name: restore_responses(data["responses"]) for name, data in measured.items()}
    scores = {
        judge_name: {name: judge.scores(prompts, responses[name]) for name in measured}
        for judge_name, judge in judges.items()
        if isinstance(judge, ScoreJudge)
    }
    return Results(prompts, reference, measured, responses, judges, scores, bootstrap, raw)


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
    length = results.of_texts(len)
    for judge_name, judge in results.judges.items():
        rate, controlled = dict[str, Estimate](), dict[str, Estimate]()
        ties, consistent = dict[str, Estimate](), dict[str, Estimate]()
        for name in results.measured:
            if name == opponent:
                continue
            preference_NSL, consistent_NSL = results.opinions[judge_name, name, opponent]
            longer_NS = (length[name] - length[opponent]).astype(np.float64)
            rate[name] = win_rate.win_rate(preference_NSL, results.bootstrap)
            controlled[name] = win_rate.length_controlled(preference_NSL, longer_NS)
            ties[name] = mean_by_prompt(preference_NSL == 0.5, results.bootstrap)
            if consistent_NSL is not None:
                consistent[name] = mean_by_prompt(consistent_NSL, results.bootstrap)
        text = f"{judge.description}; {_ties_text(judge)}"
        group, title = f"Preferred to {opponent}", f"preferred to {opponent}, {judge_name}"
        equal = "as it would be for responses of equally many letters (Dubois et al. 2024)"
        tied, tied_text = f"tied with {opponent}, {judge_name}", "share of comparisons"
        rows += [
            Row(group, title, "", "higher", text, rate, judge.row_key, opponent, judge_name),
            Row(group, f"{title}, length-controlled", "", "higher", equal, controlled),
            Row(group, tied, "", "none", tied_text, ties),
        ]
        if consistent:
            swapped = f"same verdict in both orders, against {opponent}, {judge_name}"
            text = "each pair is shown in both orders, and its win is the mean of both verdicts"
            rows.append(Row(group, swapped, "", "higher", text, consistent))
    return rows


def _ties_text(judge: Judge) -> str:
    if isinstance(judge, ScoreJudge):
        return "equal totals are half a win"
    return "ties are half a win (Ouyang et al. 2022, Fig. 1)"


def kind_rows(results: Results) -> list[Row]:
    """Say how often each checkpoint is preferred to the reference, by kind of prompt."""
    opponent = results.reference
    group = f"Preferred to {opponent}, by kind of prompt"
    return [
        Row(
            group,
            f"preferred to {opponent}, {judge_name}, {kind}",
            "",
            "higher",
            _ties_text(judge),
            {
                name: win_rate.win_rate(
                    results.opinions[judge_name, name, opponent].preference_NSL[of_kind_N],
                    results.bootstrap,
                )
                for name in results.others
            },
        )
        for judge_name, judge in results.judges.items()
        for kind, of_kind_N in results.kinds.items()
    ]


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
    """Give the loss on the validation corpus, whose rise is the alignment tax.

    A loss per token compares models of one tokenizer only; of several it is given per byte.
    """
    nll, tokens = (results.of_measurement("corpus", name) for name in ("nll", "tokens"))
    if not nll:
        return []
    # Blocks end anywhere, so their bytes are counted in proportion to their tokens.
    weights = {
        name: tokens[name] * (results.measured[name]["corpus"]["bytes"] / tokens[name].sum())
        if results.per_byte
        else tokens[name]
        for name in nll
    }
    loss = {name: estimates.ratio(nll[name], weights[name], results.bootstrap) for name in nll}
    per = "byte, as tokenizers differ" if results.per_byte else "token"
    text = f"validation corpus, per {per}; its rise is the alignment tax (Ouyang et al. 2022, 4.2)"
    unit = "nats/byte" if results.per_byte else "nats/token"
    return [Row("Price", "pretraining loss", unit, "lower", text, loss)]


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
    text += "; only of checkpoints with its tokenizer" if results.per_byte else ""
    kl |= bounds
    return [Row("Price", f"KL from {results.reference}", "nats/response", "none", text, kl)]


def fluency_rows(results: Results) -> list[Row]:
    """Give the perplexity of the responses under a second model, per token, word and byte."""
    rows = []
    nll = results.of_measurement("fluency", "nll")
    for per, unit in (("tokens", "per token"), ("words", "per word"), ("bytes", "per byte")):
        count = results.of_measurement("fluency", per)
        values = {
            name: _perplexity(nll[name].sum(axis=1), count[name].sum(axis=1), results.bootstrap)
            for name in nll
        }
        text = "of the responses alone under a second model; repetition lowers it as well"
        title = f"perplexity {unit}"
        rows.append(Row("Fluency", title, "", "none", text, values))
    return rows if nll else []


def _perplexity(nll_N: np.ndarray, count_N: np.ndarray, bootstrap: Bootstrap) -> Estimate:
    """Return exp(Σ nll / Σ count) over prompts, of those with something to count."""
    nll_N, count_N = nll_N[count_N > 0], count_N[count_N > 0]
    if not count_N.size:
        return reward_model.UNDECIDED
    mean = estimates.ratio(nll_N, count_N, bootstrap)
    low, high = (None if end is None else float(np.exp(end)) for end in (mean.low, mean.high))
    return Estimate(float(np.exp(mean.value)), low, high, mean.n)


def form_rows(results: Results) -> list[Row]:
    """Give the length of responses, how many of them ended by themselves, and their variety."""
    length, finished = (results.means(results.of_responses(f)) for f in ("length", "finished"))
    words = results.means(results.of_texts(count_words))
    tokens_text = "end of text included; each in its own tokens"
    rows = [
        Row("Form", "response length", "tokens", "none", tokens_text, length),
        Row("Form", "response length in words", "", "none", "what stands between spaces", words),
        Row("Form", "finished", "", "higher", "responses that ended by themselves", finished),
    ]
    for n in (1, 2, 3):
        variety = {}
        for name, responses in results.responses.items():
            first = [samples[0].text for samples in responses if samples]
            variety[name] = without_interval(distinct(first, n), len(first))
        text = "different n-grams of all n-grams of words, first responses (Li et al. 2016)"
        rows.append(Row("Form", f"distinct-{n}", "", "none", text, variety))
    return rows


def judge_pairs(results: Results, name: str) -> JudgedPairs:
    """Return all pairs of a checkpoint's own responses, and every judge's preference_ML."""
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
        if not prompts:
            preferences[judge_name] = np.empty((0, 1))
        elif judge_name in results.scores:
            scores = pairs.values(results.scores[judge_name][name])
            preferences[judge_name] = win_rate.score_preferences(*scores)[:, None]
        else:
            opinions = ask_both_ways(judge, prompts, first, second)
            preferences[judge_name] = opinions.preference_NSL[:, 0]
    return JudgedPairs(pairs, preferences)


def _by_certainty(results: Results) -> list[str]:
    """Return the judges: those who are certain, then those who may change their mind."""
    return [*results.scores, *(name for name in results.judges if name not in results.scores)]


def reward_rows(results: Results) -> list[Row]:
    """Say whether the reward model, if there is one, orders pairs of responses as the judges do."""
    scores = results.of_measurement("reward", "scores")
    if not scores:
        return []
    group, text = "Reward model", "mean; what PPO raises"
    rows = [Row(group, "score of the responses", "", "none", text, results.means(scores))]
    judges = _by_certainty(results)
    for judge in judges:
        title, values = f"accuracy against {judge}", _accuracies(results, scores, judge)
        text = _pairs_text(results, judge)
        rows.append(
            Row(group, title, "", "none", text, values, "reward_accuracy", REWARD_MODEL, judge)
        )
    if judges:  # the reward model should be as sure as the last judge agrees with it
        judge = judges[-1]
        agreement = "the judge's" if judge in results.scores else "labelers'"
        text = f"gap between σ(score difference) and {agreement} agreement (Guo et al. 2017)"
        error = {
            name: reward_model.calibration_error(
                np.subtract(*judged.pairs.values(scores[name])), judged.preferences[judge][:, 0]
            )
            for name, judged in results.judged_pairs.items()
            if name in scores
        }
        rows.append(Row(group, "calibration error (ECE)", "", "none", text, error))
    return [*rows, *_agreement_rows(results, judges)]


def _pairs_text(results: Results, judge: str) -> str:
    text = "pairs of different responses of this checkpoint that the judge does not find equal"
    return text + ("" if judge in results.scores else "; one each")


def _accuracies(
    results: Results, scores: Mapping[str, np.ndarray], judge: str, of_kind_N: Any = None
) -> dict[str, Estimate]:
    """Return how often scores order pairs of own responses as a judge's first opinion does."""
    values = {}
    for name, (pairs, preferences) in results.judged_pairs.items():
        if name not in scores:  # of checkpoints of another tokenizer, or a control
            continue
        chosen_M = np.full(pairs.prompt_M.size, True)
        if of_kind_N is not None:
            chosen_M = of_kind_N[pairs.prompt_M]
        difference_M = np.subtract(*pairs.values(scores[name]))[chosen_M]
        judged = (difference_M, preferences[judge][chosen_M, 0])
        values[name] = reward_model.accuracy(*judged, pairs.prompt_M[chosen_M], results.bootstrap)
    return values


def _agreement_rows(results: Results, judges: Sequence[str]) -> list[Row]:
    """Say how often two people agree on pairs of own responses that neither of them finds equal."""
    rows = []
    for judge in judges:
        values = {}
        for name, (pairs, preferences) in results.judged_pairs.items():
            if preferences[judge].shape[1] >= 2:
                first_M, second_M = preferences[judge][:, :2].T
                values[name] = reward_model.accuracy(
                    first_M - 0.5,
                    np.where(first_M == 0.5, 0.5, second_M),
                    pairs.prompt_M,
                    results.bootstrap,
                )
        text = "two on the same pair of responses, where neither finds them equal"
        text += " (Ouyang et al. 2022, section 3.4)"
        if values:
            rows.append(Row("Reward model", f"two of {judge} agree", "", "none", text, values))
    return rows


def accuracy_rows(results: Results) -> list[Row]:
    """Hold the reward model against what needs none, overall and by kind of prompt.

    What needs none orders two responses by the policy's own log-probability, a token on average or
    in sum, by length, or by chance.
    """
    logp = results.of_measurement("likelihood", "logp")
    if not logp:
        return []
    length = results.of_texts(len)
    tokens = results.of_responses("length")
    rng = np.random.default_rng(results.bootstrap.seed)
    rivals: dict[str, Mapping[str, np.ndarray]] = {
        REWARD_MODEL: results.of_measurement("reward", "scores"),
        "mean log-probability": {name: logp[name] / tokens[name] for name in logp},
        "log-probability": logp,
        "the shorter": {name: -length[name] for name in logp},
        "chance": {name: rng.normal(size=logp[name].shape) for name in logp},
    }
    rows = []
    for judge in _by_certainty(results):
        group = f"Reward model and what needs none against {judge}"
        for rival, scores in rivals.items():
            for kind, of_kind_N in {"": None, **results.kinds}.items():
                if rival == REWARD_MODEL and not kind:
                    continue  # it stands with the reward model's other rows
                title = f"{rival} against {judge}" + (f", {kind}" if kind else "")
                values = _accuracies(results, scores, judge, of_kind_N)
                subject = f"{rival}/{kind}" if kind else rival
                text = _pairs_text(results, judge)
                key: Key = "reward_accuracy"
                rows.append(Row(group, title, "", "none", text, values, key, subject, judge))
    return rows


ROWS: dict[str, RowMaker] = {
    "preferences": preference_rows,
    "kinds": kind_rows,
    "scores": score_rows,
    "corpus": corpus_rows,
    "divergence": divergence_rows,
    "responses": form_rows,
    "fluency": fluency_rows,
    "reward": reward_rows,
    "likelihood": accuracy_rows,
}


class Suite:
    """What is measured and shown of every checkpoint; a world with more to ask has its own.

    `of_answers` are the measurements that read the answers alone, and thus can be made of controls.
    """

    measurements: Mapping[str, Measurement] = MEASUREMENTS
    of_answers: Collection[str] = ("reward", "fluency")
    rows: Mapping[str, RowMaker] = ROWS
    controls: Mapping[str, Control] = {}

    def questions(self, tokenizers: Sequence[Tokenizer], document_length: int) -> Any:
        """Return what is asked besides the test prompts, for `Context.questions`: nothing here.

        Its repr tells it from other questions. What exceeds `document_length` tokens of one of the
        tokenizers is left out and reported.
        """
        del tokenizers, document_length

    def details(self, groups: Collection[str], reference: str) -> list[str]:
        """Return the groups of rows that the report shows and the terminal does not: here none."""
        del groups, reference
        return []

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


def all_samples(results: Results) -> list[dict[str, Any]]:
    """Return every prompt with every checkpoint's responses, and what each response scores."""
    return [
        {
            "messages": [asdict(message) for message in prompt.messages],
            "metadata": dict(prompt.metadata),
            "responses": {name: _scored(results, name, n) for name in results.responses},
        }
        for n, prompt in enumerate(results.prompts)
    ]


def _scored(results: Results, name: str, n: int) -> list[dict[str, Any]]:
    reward = results.measured[name].get("reward")
    return [
        {
            **{judge: float(scores[name][n, s]) for judge, scores in results.scores.items()},
            "text": sample.text,
            "finished": sample.finished,
            "score": float(reward["scores"][n][s]) if reward else None,
        }
        for s, sample in enumerate(results.responses[name][n])
    ]
