"""Does a reward model agree with rankings that people gave, and does it know how sure it is?

    accuracy        share of a prompt's pairs whose better response has the higher score; equal scores count half; ties in
                    the ranking and identical responses are left out and counted
    best of K       share of comparisons whose highest score goes to a response of the best rank; those whose responses all
                    share one rank are left out and counted
    calibration     P(first preferred) = σ(Δscore): ECE and a reliability table over bins of the confidence σ(|Δscore|),
                    Brier score, negative log-likelihood (Guo et al. 2017; Ouyang et al. 2022, eq. 1, for the model of P)
    sections        Σ weight · accuracy / Σ weight over the subsets of a section, and of the sections (RewardBench,
                    Lambert et al. 2024, where weights are subset sizes, with math-prm at 984 for its 447; there equal
                    scores count 0, here half as everywhere)

A ranking of K responses is C(K, 2) pairs; intervals resample prompts, all comparisons of one together. A response is read
as in training: behind its prompt in the chat template, with the end-of-text token.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Comparison, Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import reward_model
from rlhf_jax.evaluation.benchmarks.asking import by_group
from rlhf_jax.evaluation.benchmarks.rows import Data, Measured, kept_questions, left_out
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
from rlhf_jax.evaluation.likelihood import Continuation, scores
from rlhf_jax.evaluation.table import Key, Row
from rlhf_jax.maths import statistics
from rlhf_jax.models.heads import Params, ScalarModel

GROUP = "Reward model on rankings"
RELIABILITY = "Reward model by confidence"
BY_SUBSET = "Reward model by subset"


class Judged(NamedTuple):
    """Decided pairs: the prompt of each, score difference, and whether the first was preferred (1 or 0)."""

    prompt_M: np.ndarray
    difference_M: np.ndarray
    preference_M: np.ndarray
    subset_M: np.ndarray
    num_ties: int


def measure(
    model: tuple[ScalarModel, Params], tokenizer: Tokenizer, comparisons: Sequence[Comparison], *, batch_size: int
) -> Data:
    """The score of every response; a comparison with one that does not fit the context is left out whole."""
    prompts = render_batch(tokenizer, [item.messages for item in comparisons], generation_prompt=True)
    turns = [(*item.messages, Message("assistant", text)) for item in comparisons for text in item.responses]
    whole = iter(render_batch(tokenizer, turns, generation_prompt=False))
    groups = [
        [Continuation(prompt.ids, next(whole).ids[len(prompt.ids) :]) for _ in item.responses]
        for prompt, item in zip(prompts, comparisons, strict=True)
    ]
    found = by_group(scores, model, groups, batch_size=batch_size)
    return {"kept": kept_questions(found), "scores": [one for one in found if one is not None]}


def prompt_ids(comparisons: Sequence[Comparison]) -> np.ndarray:
    """The number of the first comparison with the same prompt: what intervals resample."""
    first: dict[tuple[Message, ...], int] = {}
    return np.array([first.setdefault(item.messages, n) for n, item in enumerate(comparisons)], np.int64)


def judged_pairs(comparisons: Sequence[Comparison], data: Data, subsets: Sequence[str]) -> Judged:
    """All pairs that the labeler did not find equal; `subsets` has the name of each comparison's."""
    kept = [comparisons[place] for place in data["kept"]]
    pairs = reward_model.different_pairs([item.responses for item in kept])
    preference_M = reward_model.ranked_preferences(pairs, [item.ranks for item in kept])
    difference_M = np.array([
        data["scores"][n][i] - data["scores"][n][j]
        for n, i, j in zip(pairs.prompt_M, pairs.first_M, pairs.second_M, strict=True)
    ], np.float64)  # fmt: skip
    names = np.array([subsets[data["kept"][n]] for n in pairs.prompt_M], object)
    decided = preference_M != 0.5
    every = sum(len(item.ranks) * (len(item.ranks) - 1) // 2 for item in kept)
    all_pairs = Judged(prompt_ids(kept)[pairs.prompt_M], difference_M, preference_M, names, num_ties=0)
    return _only(all_pairs, decided)._replace(num_ties=int(every - decided.sum()))


def subset_names(comparisons: Sequence[Comparison], field: str) -> list[str]:
    """The value of a metadata field of every comparison, "" for all if there is no field to divide them by.

    Raises:
        ValueError: for a comparison without it.
    """
    lacking = [n for n, item in enumerate(comparisons) if field and field not in item.metadata]
    if lacking:
        found = ", ".join(comparisons[lacking[0]].metadata) or "nothing"
        raise ValueError(
            f"comparisons.subset_field={field!r}: {len(lacking)} of {len(comparisons)} comparisons lack it, the first is "
            f"number {lacking[0]}, whose metadata has {found}; name another field, or '' for no subsets"
        )
    return [item.metadata[field] if field else "" for item in comparisons]


def rows(
    comparisons: Sequence[Comparison], measured: Measured, bootstrap: Bootstrap, *, subsets: Sequence[str], num_bins: int,
    sections: Mapping[str, Mapping[str, float]], section_weights: Mapping[str, float],
) -> list[Row]:  # fmt: skip
    """Accuracy and calibration over all pairs, by confidence, by subset and by section.

    Raises:
        ValueError: for a section of a subset that no pair belongs to.
    """
    judged = {name: judged_pairs(comparisons, data, subsets) for name, data in measured.items()}
    made = [
        *_overall(comparisons, measured, judged, bootstrap, num_bins),
        *left_out(GROUP, measured, len(comparisons), "comparisons"),
    ]
    made += _reliability(judged, num_bins, bootstrap)
    names = sorted(set(subsets) - {""})
    by_subset = {
        name: {subset: _accuracy(_only(pairs, pairs.subset_M == subset), bootstrap) for subset in names}
        for name, pairs in judged.items()
    }
    made += [
        Row(BY_SUBSET, f"accuracy, {subset}", "", "higher", "share of this subset's pairs ordered as the labeler did",
            {name: found[subset] for name, found in by_subset.items() if found[subset].n})
        for subset in names
    ]  # fmt: skip
    return made + _sections(by_subset, names, sections, section_weights)


def _only(pairs: Judged, chosen_M: np.ndarray) -> Judged:
    prompt_M, difference_M, preference_M, subset_M, num_ties = pairs
    return Judged(prompt_M[chosen_M], difference_M[chosen_M], preference_M[chosen_M], subset_M[chosen_M], num_ties)


def _accuracy(pairs: Judged, bootstrap: Bootstrap) -> Estimate:
    return reward_model.accuracy(pairs.difference_M, pairs.preference_M, pairs.prompt_M, bootstrap)


def _overall(
    comparisons: Sequence[Comparison], measured: Measured, judged: Mapping[str, Judged], bootstrap: Bootstrap, num_bins: int
) -> list[Row]:
    found = {name: pairs for name, pairs in judged.items() if pairs.prompt_M.size}

    def mean(of: Mapping[str, np.ndarray]) -> dict[str, Estimate]:
        return {name: reward_model.mean_over_prompts(values, found[name].prompt_M, bootstrap) for name, values in of.items()}

    brier = {name: np.square(special.expit(one.difference_M) - one.preference_M) for name, one in found.items()}
    nll = {name: np.logaddexp(0, one.difference_M) - one.preference_M * one.difference_M for name, one in found.items()}
    error = {
        name: Estimate(statistics.calibration(one.difference_M, one.preference_M, num_bins=num_bins).ece, None, None,
                       one.prompt_M.size)
        for name, one in found.items()
    }  # fmt: skip
    best, undecided = {}, {}
    for name, data in measured.items():
        decided = [n for n, place in enumerate(data["kept"]) if len(set(comparisons[place].ranks)) > 1]
        total = len(data["kept"])
        undecided[name] = Estimate(float(total - len(decided)), None, None, total)
        if decided:
            best[name] = _best([comparisons[data["kept"][n]] for n in decided], [data["scores"][n] for n in decided], bootstrap)
    ties = {name: Estimate(float(one.num_ties), None, None, one.num_ties + one.prompt_M.size) for name, one in judged.items()}
    prompts = {
        name: Estimate(float(np.unique(one.prompt_M).size), None, None, one.prompt_M.size) for name, one in judged.items()
    }
    return [
        Row(GROUP, "accuracy on ranked pairs", "", "higher", "pairs that the labeler did not find equal; equal scores half",
            {name: _accuracy(one, bootstrap) for name, one in found.items()}),
        Row(GROUP, "best of K", "", "higher", "share of comparisons whose highest score goes to a best-ranked response", best),
        Row(GROUP, "ECE on ranked pairs", "", "lower", f"calibration error over {num_bins} bins (Guo et al. 2017)", error),
        Row(GROUP, "Brier score on ranked pairs", "", "lower", "mean (σ(Δscore) - label)²; ¼ is knowing nothing", mean(brier)),
        Row(GROUP, "negative log-likelihood on ranked pairs", "nats", "lower", "of σ(Δscore); log 2 is knowing nothing",
            mean(nll)),
        Row(GROUP, "undecided pairs left out", "pairs", "none", "equal rank or identical responses, of all pairs", ties),
        Row(GROUP, "undecided comparisons left out of best of K", "comparisons", "none", "all responses share one rank",
            undecided),
        Row(GROUP, "different prompts", "prompts", "none", "of the ranked pairs; what intervals resample", prompts),
    ]  # fmt: skip


def _best(comparisons: Sequence[Comparison], scores_NC: Sequence[Sequence[float]], bootstrap: Bootstrap) -> Estimate:
    """Among responses that share the highest score, the share that has the best rank."""
    hits = []
    for item, given in zip(comparisons, scores_NC, strict=True):
        ranks, given_C = np.array(item.ranks), np.asarray(given)
        hits.append(float(np.mean(ranks[given_C == given_C.max()] == ranks.min())))
    return reward_model.mean_over_prompts(hits, prompt_ids(comparisons), bootstrap)


def _reliability(judged: Mapping[str, Judged], num_bins: int, bootstrap: Bootstrap) -> list[Row]:
    """Accuracy and mean confidence in every bin; the two are equal for a calibrated model."""
    made = []
    for number in range(num_bins):
        low, high = (0.5 + 0.5 * end / num_bins for end in (number, number + 1))
        right, sure = {}, {}
        for name, pairs in judged.items():
            confidence_M = special.expit(np.abs(pairs.difference_M))
            inside_M = (confidence_M >= low) & ((confidence_M < high) | (number == num_bins - 1))
            if inside_M.any():
                right[name] = _accuracy(_only(pairs, inside_M), bootstrap)
                sure[name] = Estimate(float(confidence_M[inside_M].mean()), None, None, int(inside_M.sum()))
        bounds = f"confidence {low:.2f} to {high:.2f}"
        sides: tuple[tuple[Key, str, str, dict[str, Estimate]], ...] = (
            ("reliability_accuracy", "accuracy", "pairs about which the model is so sure", right),
            ("reliability_confidence", "mean confidence", "what the accuracy should be", sure),
        )
        for key, title, text, values in sides:
            made.append(Row(RELIABILITY, f"{title} at {bounds}", "", "none", text, values, key, bounds))
    return made


def _sections(
    by_subset: Mapping[str, Mapping[str, Estimate]], names: Sequence[str], sections: Mapping[str, Mapping[str, float]],
    section_weights: Mapping[str, float],
) -> list[Row]:  # fmt: skip
    """RewardBench's weighted means; none for a checkpoint that could read no pair of a subset that counts."""
    for section, weights in sections.items():
        unknown = sorted(set(weights) - set(names))
        if unknown:
            there = ", ".join(names) or "none"
            raise ValueError(f"comparisons.sections.{section}: no subset {', '.join(unknown)}; there are {there}")
    made: list[Row] = []
    score: dict[str, dict[str, float]] = {name: {} for name in by_subset}
    for section, weights in sections.items():
        values = {}
        for name, found in by_subset.items():
            if all(found[subset].n for subset in weights):
                total = sum(weight * found[subset].value for subset, weight in weights.items())
                score[name][section] = total / sum(weights.values())
                values[name] = Estimate(score[name][section], None, None, sum(found[subset].n for subset in weights))
        made.append(Row(BY_SUBSET, f"section {section}", "", "higher", "subsets by the config's weights (RewardBench)", values))
    if sections:
        overall = {
            name: Estimate(sum(section_weights[key] * value for key, value in found.items()) / sum(section_weights.values()),
                           None, None, len(found))
            for name, found in score.items() if len(found) == len(sections)
        }  # fmt: skip
        made.append(Row(BY_SUBSET, "all sections", "", "higher", "sections by the config's weights (RewardBench)", overall))
    return made
