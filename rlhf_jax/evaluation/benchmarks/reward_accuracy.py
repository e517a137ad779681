"""Measure whether a reward model agrees with people's rankings, and knows how sure it is.

    accuracy     share of a prompt's pairs whose better response has the higher score; equal scores
                 count half; ties in the ranking and identical responses are left out and counted
    best of K    share of comparisons whose highest score goes to a response of the best rank; those
                 whose responses all share one rank are left out and counted
    calibration  P(first preferred) = σ(Δscore): ECE and a reliability table over bins of the
                 confidence σ(|Δscore|), Brier score, negative log-likelihood (Guo et al. 2017;
                 Ouyang et al. 2022, eq. 1, for the model of P)
    sections     Σ weight · accuracy / Σ weight over the subsets of a section, and of the sections
                 (RewardBench, Lambert et al. 2024, where weights are subset sizes, with math-prm at
                 984 for its 447; there equal scores count 0, here half as everywhere)

A ranking of K responses is C(K, 2) pairs; intervals resample prompts, all comparisons of one
together. A response is read as in training: behind its prompt in the chat template, with the
end-of-text token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
from scipy import special

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Comparison, Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import reward_model
from rlhf_jax.evaluation.benchmarks.benchmark import Benchmark, Measured, Metric
from rlhf_jax.evaluation.benchmarks.questions import measure_groups
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, clustered_mean, without_interval
from rlhf_jax.evaluation.likelihood import Continuation, scores
from rlhf_jax.evaluation.table import Data, Row
from rlhf_jax.evaluation.win_rate import score_preferences
from rlhf_jax.maths import statistics
from rlhf_jax.models.heads import Params, ScalarModel
from rlhf_jax.training.checkpoints import CheckpointKind

RELIABILITY = "Reward model by confidence"
BY_SUBSET = "Reward model by subset"
METRICS = {
    "accuracy on ranked pairs": Metric(
        "higher", "pairs that the labeler did not find equal; equal scores half"
    ),
    "best of K": Metric(
        "higher", "share of comparisons whose highest score goes to a best-ranked response"
    ),
    "ECE on ranked pairs": Metric(
        "lower", "calibration error over {num_bins} bins (Guo et al. 2017)"
    ),
    "Brier score on ranked pairs": Metric(
        "lower", "mean (σ(Δscore) - label)²; ¼ is knowing nothing"
    ),
    "negative log-likelihood on ranked pairs": Metric(
        "lower", "of σ(Δscore); log 2 is knowing nothing", "nats"
    ),
    "undecided pairs left out": Metric(
        "none", "equal rank or identical responses, of all pairs", "pairs"
    ),
    "undecided comparisons left out of best of K": Metric(
        "none", "all responses share one rank", "comparisons"
    ),
    "different prompts": Metric("none", "of the ranked pairs; what intervals resample", "prompts"),
}


@dataclass(frozen=True)
class RankedPairs:
    """Hold pairs that the labeler did not find equal."""

    prompt_M: np.ndarray
    difference_M: np.ndarray  # score of the first minus score of the second
    preference_M: np.ndarray  # 1 where the first was preferred, else 0
    subset_M: np.ndarray

    def select(self, chosen_M: np.ndarray) -> "RankedPairs":
        """Return the chosen pairs."""
        return RankedPairs(**{name: part_M[chosen_M] for name, part_M in vars(self).items()})

    def accuracy(self, bootstrap: Bootstrap) -> Estimate:
        """Return the share of pairs that the scores order as the labeler did."""
        return reward_model.accuracy(self.difference_M, self.preference_M, self.prompt_M, bootstrap)


def subset_names(comparisons: Sequence[Comparison], name: str | None) -> list[str] | None:
    """Return the value of a metadata field of every comparison; None without a field.

    Raises:
        ValueError: for a comparison without the field.
    """
    if name is None:
        return None
    lacking = [n for n, item in enumerate(comparisons) if name not in item.metadata]
    if lacking:
        present = ", ".join(comparisons[lacking[0]].metadata) or "nothing"
        raise ValueError(
            f"comparisons.subset_field={name!r}: {len(lacking)} of {len(comparisons)} comparisons "
            f"lack it, the first is number {lacking[0]}, whose metadata has {present}; name "
            "another field, or none"
        )
    return [item.metadata[name] for item in comparisons]


@dataclass(frozen=True)
class RewardAccuracy(Benchmark):
    """Score the responses of rankings, and compare the scores with the ranks.

    `subsets` has the name of each comparison's subset; `sections` has the weights of subsets by
    section.
    """

    group: ClassVar[str] = "Reward model on rankings"
    name: ClassVar[str] = "comparisons"
    kind: ClassVar[CheckpointKind] = CheckpointKind.SCALAR_MODEL
    comparisons: Sequence[Comparison]
    num_bins: int = field(repr=False)
    subsets: Sequence[str] | None = field(repr=False)
    sections: Mapping[str, Mapping[str, float]] = field(repr=False)
    section_weights: Mapping[str, float] = field(repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a section of a subset that no comparison belongs to."""
        for section, weights in self.sections.items():
            unknown = ", ".join(sorted(set(weights) - set(self.subset_names)))
            if unknown:
                known = ", ".join(self.subset_names) or "none"
                raise ValueError(
                    f"comparisons.sections.{section}: no subset {unknown}; there are {known}"
                )

    @property
    def subset_names(self) -> list[str]:
        """Return the names of all subsets in order."""
        return sorted(set(self.subsets or ()))

    def measure(
        self, model: tuple[ScalarModel, Params], tokenizer: Tokenizer, *, batch_size: int
    ) -> Data:
        """Return the scores of the responses to comparisons that fit the context whole."""
        turns = [
            (*item.messages, Message("assistant", text))
            for item in self.comparisons
            for text in item.responses
        ]
        prompts = [item.messages for item in self.comparisons]
        contexts = render_batch(tokenizer, prompts, generation_prompt=True)
        dialogues = iter(render_batch(tokenizer, turns, generation_prompt=False, train_on="last"))
        groups = [
            [Continuation(ids, next(dialogues).ids[len(ids) :]) for _ in item.responses]
            for (ids, _), item in zip(contexts, self.comparisons, strict=True)
        ]
        scores_by_number = measure_groups(scores, model, groups, batch_size=batch_size)
        return {"kept": list(scores_by_number), "scores": list(scores_by_number.values())}

    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return accuracy and calibration of all pairs, by confidence, by subset, by section."""
        pairs = {name: self.ranked_pairs(data) for name, data in measurements.items()}
        estimates = {
            name: self._estimates(pairs[name], data, bootstrap)
            for name, data in measurements.items()
        }
        rows = []
        for title, metric in METRICS.items():
            text = metric.description.format(num_bins=self.num_bins)
            values = {name: e[title] for name, e in estimates.items() if title in e}
            rows.append(metric._replace(description=text).row(self.group, title, values))
        rows += self.left_out(measurements, self.comparisons, "comparisons")
        rows += self._reliability_rows(pairs, bootstrap)
        accuracies: dict[str, dict[str, Estimate]] = {name: {} for name in pairs}
        metric = Metric("higher", "share of this subset's pairs ordered as the labeler did")
        for subset in self.subset_names:
            for name, ranked in pairs.items():
                chosen = ranked.select(ranked.subset_M == subset)
                accuracies[name][subset] = chosen.accuracy(bootstrap)
            values = {name: part[subset] for name, part in accuracies.items() if part[subset].n}
            rows.append(metric.row(BY_SUBSET, f"accuracy, {subset}", values))
        return rows + self._section_rows(accuracies)

    def ranked_pairs(self, data: Data) -> RankedPairs:
        """Return all pairs of responses that the labeler did not find equal."""
        kept = [self.comparisons[number] for number in data["kept"]]
        subsets = self.subsets or [""] * len(self.comparisons)
        pairs = reward_model.different_pairs([comparison.responses for comparison in kept])
        difference_M = np.subtract(*pairs.values(data["scores"]))
        # A better rank is a smaller number, so the second's counts as the first's score.
        preference_M = score_preferences(*pairs.values([item.ranks for item in kept])[::-1])
        subset_M = np.array([subsets[data["kept"][n]] for n in pairs.prompt_M], object)
        prompt_M = prompt_ids(kept)[pairs.prompt_M]
        ranked = RankedPairs(prompt_M, difference_M, preference_M, subset_M)
        return ranked.select(preference_M != 0.5)

    def _estimates(
        self, pairs: RankedPairs, data: Data, bootstrap: Bootstrap
    ) -> dict[str, Estimate]:
        """Return numbers by the keys of `METRICS`; without a decided pair only the counts."""
        num_pairs, num_kept = pairs.prompt_M.size, len(data["kept"])
        num_all = sum(math.comb(len(self.comparisons[number].ranks), 2) for number in data["kept"])
        hits, prompts = self._best_of_k(data)
        undecided = without_interval(num_kept - len(hits), num_kept)
        estimates = {
            "undecided pairs left out": without_interval(num_all - num_pairs, num_all),
            "undecided comparisons left out of best of K": undecided,
            "different prompts": without_interval(np.unique(pairs.prompt_M).size, num_pairs),
        }
        mean = partial(clustered_mean, clusters_N=pairs.prompt_M, bootstrap=bootstrap)
        if hits:
            estimates["best of K"] = clustered_mean(hits, prompts, bootstrap)
        if num_pairs:
            difference_M, label_M = pairs.difference_M, pairs.preference_M
            brier_M = np.square(special.expit(difference_M) - label_M)
            nll_M = np.logaddexp(0, difference_M) - label_M * difference_M
            calibration = statistics.calibration(difference_M, label_M, num_bins=self.num_bins)
            estimates |= {
                "accuracy on ranked pairs": pairs.accuracy(bootstrap),
                "ECE on ranked pairs": without_interval(calibration.ece, num_pairs),
                "Brier score on ranked pairs": mean(brier_M),
                "negative log-likelihood on ranked pairs": mean(nll_M),
            }
        return estimates

    def _best_of_k(self, data: Data) -> tuple[list[float], np.ndarray]:
        """Return hits and prompts of the comparisons that have a best response.

        A hit is the share of best responses among those with the highest score.
        """
        hits, decided = [], []
        for number, scores_C in zip(data["kept"], data["scores"], strict=True):
            rank_C, score_C = np.array(self.comparisons[number].ranks), np.asarray(scores_C)
            if np.ptp(rank_C):
                highest_C = score_C == score_C.max()
                hits.append(float(np.mean(rank_C[highest_C] == rank_C.min())))
                decided.append(self.comparisons[number])
        return hits, prompt_ids(decided)

    def _reliability_rows(
        self, pairs: Mapping[str, RankedPairs], bootstrap: Bootstrap
    ) -> list[Row]:
        """Return accuracy and mean confidence by bin; they are equal for a calibrated model."""
        rows = []
        right = Metric("none", "pairs about which the model is so sure")
        sure = Metric("none", "what the accuracy should be")
        confidences = {n: special.expit(np.abs(part.difference_M)) for n, part in pairs.items()}
        for number in range(self.num_bins):
            low, high = (0.5 + 0.5 * end / self.num_bins for end in (number, number + 1))
            accuracy, confidence = {}, {}
            for name, confidence_M in confidences.items():
                below_M = (confidence_M < high) | (number == self.num_bins - 1)
                inside_M = (confidence_M >= low) & below_M
                if inside_M.any():
                    accuracy[name] = pairs[name].select(inside_M).accuracy(bootstrap)
                    mean = confidence_M[inside_M].mean()
                    confidence[name] = without_interval(mean, int(inside_M.sum()))
            at = f"confidence {low:.2f} to {high:.2f}"
            accuracy_row = right.row(RELIABILITY, f"accuracy at {at}", accuracy)
            confidence_row = sure.row(RELIABILITY, f"mean confidence at {at}", confidence)
            rows += [
                accuracy_row._replace(key="reliability_accuracy", subject=at),
                confidence_row._replace(key="reliability_confidence", subject=at),
            ]
        return rows

    def _section_rows(self, accuracies: Mapping[str, Mapping[str, Estimate]]) -> list[Row]:
        """Return RewardBench's weighted means, of checkpoints that could read every subset."""
        rows = []
        by_weight = "{} by the config's weights (RewardBench)"
        section = Metric("higher", by_weight.format("subsets"))
        means: dict[str, dict[str, float]] = {name: {} for name in accuracies}
        for title, weights in self.sections.items():
            values = {}
            for name, accuracy in accuracies.items():
                if all(accuracy[subset].n for subset in weights):
                    mean = _weighted_mean({s: accuracy[s].value for s in weights}, weights)
                    means[name][title] = mean
                    values[name] = without_interval(mean, sum(accuracy[s].n for s in weights))
            rows.append(section.row(BY_SUBSET, f"section {title}", values))
        if self.sections:
            complete = {name: m for name, m in means.items() if len(m) == len(self.sections)}
            values = {
                name: without_interval(_weighted_mean(mean, self.section_weights), len(mean))
                for name, mean in complete.items()
            }
            overall = Metric("higher", by_weight.format("sections"))
            rows.append(overall.row(BY_SUBSET, "all sections", values))
        return rows


def _weighted_mean(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    return sum(weights[key] * value for key, value in values.items()) / sum(weights.values())


def prompt_ids(comparisons: Sequence[Comparison]) -> np.ndarray:
    """Return the number of the first comparison with the same prompt: what intervals resample."""
    first: dict[tuple[Message, ...], int] = {}
    return np.array(
        [first.setdefault(item.messages, n) for n, item in enumerate(comparisons)], np.int64
    )
