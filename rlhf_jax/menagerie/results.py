"""Make the rows that only the toy world has, and put its whole table in order.

Rows stand in the order in which a sceptic asks: is it right, is it preferred, what of the gain is
manners, does some kind of prompt pay for it, at what price? The rows that every evaluation has are
those of `evaluation.results`.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import results as generic
from rlhf_jax.evaluation.controls import Control
from rlhf_jax.evaluation.estimates import Estimate
from rlhf_jax.evaluation.harmlessness import toxicity_measures
from rlhf_jax.evaluation.results import Results, RowMaker, Suite, standardise
from rlhf_jax.evaluation.table import Better, Key, Row
from rlhf_jax.menagerie import gold
from rlhf_jax.menagerie.controls import constant_suffix as polite_rule
from rlhf_jax.menagerie.judges import COMPONENTS
from rlhf_jax.menagerie.measurements import MEASUREMENTS
from rlhf_jax.menagerie.tasks import KINDS
from rlhf_jax.menagerie.test_questions import (
    FACT_WORDINGS,
    QuestionSet,
    build_questions,
    without_long_examples,
)
from rlhf_jax.menagerie.world import make_world

FLAGS: dict[str, tuple[str, Better]] = {
    "satisfies_constraint": ("does exactly what was asked", "higher"),
    "hallucination": ("says something false", "lower"),
    "contains_insult": ("rude", "lower"),
    "fails_instruction": ("fails the instruction", "lower"),
}
FLAG_TEXTS = {
    "satisfies_constraint": "in substance, form and number",
    "hallucination": "about anything, asked for or not",
    "contains_insult": "contains an insult",
    "fails_instruction": "not even half an answer",
}
NOVELTIES = {
    "prompts as in training": ("heldout", "no"),
    "held-out facts": ("heldout_fact", "yes"),
    "held-out wordings": ("heldout_wording", "yes"),
    "held-out task": ("heldout_kind", "yes"),
}


def answer_rows(results: Results) -> list[Row]:
    """Give the shares of answers that are right, false, rude or no answer at all."""
    text = "exactly as asked, nothing false, offensive, beside the point or impolite"
    right = results.means(results.of_measurement("gold", "entirely_right"))
    key: Key = "entirely_right"
    group = "Answers, by exact rules"
    rows = [Row(group, "entirely right", "", "higher", text, right, key)]
    for flag, (title, better) in FLAGS.items():
        values = results.means(results.of_measurement("gold", "flags", flag))
        text = f"{FLAG_TEXTS[flag]} (cf. Ouyang et al. 2022, Fig. 4 and Table 3)"
        rows.append(Row(group, title, "", better, text, values))
    return rows


# Rows and warnings need the same gains, whose intervals cost seconds.
@lru_cache(maxsize=1)
def contributions(results: Results) -> dict[str, dict[str, Estimate]]:
    """Return what every component of gold adds to the gain over the reference, in its SD."""
    spread = float(results.of_measurement("gold", "total")[results.reference].std())
    gains = {}
    for component, weight in gold.WEIGHTS.items():
        values = results.of_measurement("gold", "components", component)
        scale = weight / (spread if spread > 0 else 1.0)
        gains[component] = results.gains({name: scale * value for name, value in values.items()})
    return gains


def contribution_rows(results: Results) -> list[Row]:
    """Give the parts of gold's gain over the reference; they add up to it."""
    group = f"Gold minus {results.reference}, by component"
    text = "weighted, paired by prompt; the components add up to the whole gain"
    return [
        Row(group, f"gain by {component}", results.unit, "higher", text, values)
        for component, values in contributions(results).items()
    ]


@lru_cache(maxsize=1)
def kind_gains(results: Results) -> dict[str, dict[str, Estimate]]:
    """Return gold's gain over the reference on the prompts of every kind."""
    z = standardise(results.of_measurement("gold", "total"), results.reference)
    return {kind: results.gains(values) for kind, values in _by_kind(results, z).items()}


def kind_rows(results: Results) -> list[Row]:
    """Give what is right, what fails and what is gained on every kind of prompt."""
    group, text = f"Gold minus {results.reference}, by kind of prompt", "paired by prompt"
    return [
        *_share_rows(results, "entirely right", "higher", "entirely_right"),
        *declined_rows(results),
        *_share_rows(results, "fails the instruction", "lower", "flags", "fails_instruction"),
        *(
            Row(group, f"gain, {kind}", results.unit, "higher", text, values)
            for kind, values in kind_gains(results).items()
        ),
    ]


def _share_rows(results: Results, title: str, better: Better, *path: str) -> list[Row]:
    """Give the share of responses with something of gold's, by kind of prompt."""
    group, text = f"{title.capitalize()}, by kind of prompt", "share of responses"
    return [
        Row(group, f"{title}, {kind}", "", better, text, results.means(values))
        for kind, values in _by_kind(results, results.of_measurement("gold", *path)).items()
    ]


def declined_rows(results: Results) -> list[Row]:
    """Give how often a request for harm is refused, without help for it or an insult."""
    helpful, harmless = (
        results.of_measurement("gold", "components", component)
        for component in ("helpfulness", "harmlessness")
    )
    declined = {name: (helpful[name] == 1) & (harmless[name] == 1) for name in helpful}
    group, text = "Entirely right, by kind of prompt", "refuses, neither helps nor insults"
    return [
        Row(group, f"declined properly, {kind}", "", "higher", text, results.means(values))
        for kind, values in _by_kind(results, declined).items()
        if kind == "harm"
    ]


def _by_kind(
    results: Results, values: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """Return every checkpoint's values on the prompts of each kind; none of kinds not drawn."""
    kind_N = np.array([prompt.metadata.get("kind", "") for prompt in results.prompts])
    return {
        kind: {name: value[kind_N == kind] for name, value in values.items()}
        for kind in KINDS
        if (kind_N == kind).any()
    }


def right_gains(results: Results) -> dict[str, dict[str, Estimate]]:
    """Return the change in the share of entirely right answers, on the prompts of every kind."""
    right = _by_kind(results, results.of_measurement("gold", "entirely_right"))
    return {kind: results.gains(values) for kind, values in right.items()}


def gain_warnings(results: Results) -> list[str]:
    """Name the component that makes more than half of a gain, and kinds of prompt that got worse.

    Of checkpoints that come after the reference. A gain counts if its interval is above 0. A kind
    got worse if the interval of gold's gain is below 0, or that of the share of entirely right
    answers, whose loss manners may cover up in the total.
    """
    return [*_component_warnings(results), *_kind_warnings(results)]


def _component_warnings(results: Results) -> list[str]:
    z = standardise(results.of_measurement("gold", "total"), results.reference)
    total, parts = results.gains(z), contributions(results)
    sentences = []
    for name in results.successors:
        gain = total[name]
        for component, values in parts.items():
            part = values[name].value
            if _low(gain) > 0 and part > 0.5 * gain.value:
                share = f"{100 * part / gain.value:.0f} % of its gain in gold"
                amount = f"{part:.2f} of {gain.value:.2f} SD"
                sentences.append(f"{name}: {component} makes {share} ({amount})")
    return sentences


def _kind_warnings(results: Results) -> list[str]:
    gains = {
        "gold, SD": (kind_gains(results), 1, 2),
        "entirely right, points": (right_gains(results), 100, 0),
    }
    sentences = []
    for name in results.successors:
        for title, (kinds, scale, decimals) in gains.items():
            for kind, values in kinds.items():
                value, low, high, _ = values[name]
                if low is not None and high is not None and high < 0:
                    change, *ends = (f"{scale * x:.{decimals}f}" for x in (value, low, high))
                    loss = f"{title}: {change} [{', '.join(ends)}]"
                    worse = f"worse than {results.reference} on prompts of the kind {kind!r}"
                    sentences.append(f"{name}: {worse} ({loss})")
    return sentences


def _low(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


def gold_rows(results: Results) -> list[Row]:
    """Give what else the exact judge says: raw components, gold by novelty, what offends."""
    rows = []
    text = "component of gold before weighting"
    for component in COMPONENTS:
        values = results.means(results.of_measurement("gold", "components", component))
        rows.append(Row("Gold's components, unweighted", component, "", "higher", text, values))
    z = standardise(results.of_measurement("gold", "total"), results.reference)
    text = "on test prompts of this sort (Ouyang et al. 2022, section 4.1, on held-out prompts)"
    for title, (key, value) in NOVELTIES.items():
        chosen_N = np.array([prompt.metadata.get(key) == value for prompt in results.prompts])
        if chosen_N.any():  # a sort of prompt that was not drawn has no row
            values = results.means({name: z_NS[chosen_N] for name, z_NS in z.items()})
            title = f"gold, {title}"
            rows.append(Row("Gold by novelty", title, results.unit, "higher", text, values))
    text = "insult, help with harm, bad trait of a group (Ouyang et al. 2022, Table 3)"
    flag, title = "inappropriate_for_assistant", "inappropriate for an assistant"
    values = results.means(results.of_measurement("gold", "flags", flag))
    return [*rows, Row("Offences", title, "", "lower", text, values)]


def _groups(results: Results, *path: str) -> list[str]:
    """Return the names of the groups of a measurement, the same ones for all checkpoints."""
    tree: Any = results.measured[results.reference]
    for part in path:
        tree = tree[part]
    return list(tree)


def fact_rows(results: Results) -> list[Row]:
    """Give the accuracy of greedy answers about facts; the wordings of one fact are a cluster."""
    rows = []
    text = (
        "greedy answer in chat form, read by gold: makes a relevant claim, and none that is false"
    )
    for group in _groups(results, "facts"):
        right = results.of_measurement("facts", group)
        by_fact = {name: right_N.reshape(-1, FACT_WORDINGS) for name, right_N in right.items()}
        title = f"accuracy, {group}"
        rows.append(Row("Facts", title, "", "higher", text, results.means(by_fact)))
    return rows


def falsehood_rows(results: Results) -> list[Row]:
    """Give TruthfulQA's MC1 and MC2, on misconceptions and on facts without one."""
    rows = []
    source = "summed log-probability (Lin et al. 2021)"
    mc1_text = f"share of questions whose true answer is likelier than every false one; {source}"
    mc2_text = f"probability of the true answers; {source}"
    for group in _groups(results, "falsehoods", "mc1"):
        for title, text in (("MC1", mc1_text), ("MC2", mc2_text)):
            values = results.means(results.of_measurement("falsehoods", title.lower(), group))
            rows.append(Row("TruthfulQA", f"{title}, {group}", "", "higher", text, values))
    return rows


def toxicity_rows(results: Results) -> list[Row]:
    """Give RealToxicityPrompts' measures of replies to rude, neutral and polite prompts."""
    rows = []
    for group in _groups(results, "toxicity"):
        toxicity = results.of_measurement("toxicity", group)
        measures = {name: toxicity_measures(table_NK) for name, table_NK in toxicity.items()}
        samples = f"{toxicity[results.reference].shape[1]} responses"
        paper = "(Gehman et al. 2020)"
        texts = {
            "rude replies": "share of responses with an insult",
            "expected maximum toxicity": f"worst of {samples}, mean over prompts {paper}",
            "toxicity probability": (
                f"share of prompts with at least one of {samples} above 0.5 {paper}"
            ),
        }
        for title, text in texts.items():
            values = results.means({name: measure[title] for name, measure in measures.items()})
            rows.append(Row("Toxicity", f"{title}, {group} prompts", "", "lower", text, values))
    return rows


def stereotype_rows(results: Results) -> list[Row]:
    """Give the entropy of choices between stereotype pairs, and the share of stereotypes."""
    rows = []
    entropy_text = (
        "choice between two sentences; 1 is indifference (Ouyang et al. 2022, appendix D)"
    )
    share_text = "ideally one half (CrowS-Pairs, Nangia et al. 2020)"
    for group in _groups(results, "stereotypes", "entropy"):
        entropy, stereotype = (
            results.means(results.of_measurement("stereotypes", name, group))
            for name in ("entropy", "stereotype")
        )
        title = f"stereotypes preferred, {group}"
        rows += [
            Row("Bias", f"entropy, {group}", "bits", "higher", entropy_text, entropy),
            Row("Bias", title, "", "none", share_text, stereotype),
        ]
    return rows


def few_shot_rows(results: Results) -> list[Row]:
    """Give the accuracy on tasks to be learned from examples in the context."""
    rows = []
    text = "raw text, choice with the highest per-token log-probability"
    text += " (Brown et al. 2020, section 2.4)"
    for group in _groups(results, "few_shot"):
        accuracy = results.means(results.of_measurement("few_shot", group))
        rows.append(Row("Few-shot", f"few-shot {group}", "", "higher", text, accuracy))
    return rows


ROWS: dict[str, RowMaker] = {
    "answers": answer_rows,
    "preferences": generic.preference_rows,
    "scores": generic.score_rows,
    "contributions": contribution_rows,
    "kinds": kind_rows,
    "gold": gold_rows,
    "facts": fact_rows,
    "falsehoods": falsehood_rows,
    "toxicity": toxicity_rows,
    "stereotypes": stereotype_rows,
    "corpus": generic.corpus_rows,
    "divergence": generic.divergence_rows,
    "few_shot": few_shot_rows,
    "responses": generic.form_rows,
    "fluency": generic.fluency_rows,
    "reward": generic.reward_rows,
    "likelihood": generic.accuracy_rows,
}


class ToySuite(Suite):
    """What is measured and shown of every checkpoint in Menagerie."""

    measurements = MEASUREMENTS
    of_answers = ("reward", "fluency", "gold")
    rows = ROWS

    def __init__(
        self,
        name: str,
        *,
        toxicity_prompts: int,
        toxicity_samples: int,
        few_shot_questions: int,
        constant_suffix: bool,
    ) -> None:
        self._questions = build_questions(
            make_world(name.removeprefix("menagerie/")),
            toxicity_prompts=toxicity_prompts,
            toxicity_samples=toxicity_samples,
            few_shot_questions=few_shot_questions,
        )
        self.controls: dict[str, Control] = (
            {"constant_suffix": polite_rule} if constant_suffix else {}
        )

    def questions(self, tokenizers: Sequence[Tokenizer], document_length: int) -> QuestionSet:
        """Return the questions without few-shot tasks that exceed `document_length` tokens."""
        questions, too_long = self._questions, dict[str, int]()
        for tokenizer in tokenizers:
            questions, longer = without_long_examples(questions, tokenizer, document_length)
            too_long |= longer
        for name, length in too_long.items():
            print(
                f"   few-shot {name}: left out, {length} tokens exceed "
                f"evaluation.document_length={document_length}"
            )
        return questions

    def details(self, groups: Collection[str], reference: str) -> list[str]:
        """Return what no screen has room for: all but wins, what is right, gold and the price."""
        shown = (
            f"Preferred to {reference}",
            "Answers, by exact rules",
            "Entirely right, by kind of prompt",
            "Gold",
            f"Gold minus {reference}, by component",
            "Price",
        )
        return [group for group in groups if group not in shown]

    def warnings(self, results: Results) -> list[str]:
        """Return what gold's total hides, where gold was measured."""
        return gain_warnings(results)
