"""Make the rows that only the toy world has, and put its whole table in order.

Rows stand in the order in which a reader asks: is it preferred, is it better, what became better,
at what price? The rows that every evaluation has are those of `evaluation.results`.
"""

from typing import Any

import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import results as generic
from rlhf_jax.evaluation.harmlessness import toxicity_measures
from rlhf_jax.evaluation.results import Results, RowMaker, Suite, standardise
from rlhf_jax.evaluation.table import Better, Row
from rlhf_jax.menagerie.judges import COMPONENTS
from rlhf_jax.menagerie.measurements import MEASUREMENTS
from rlhf_jax.menagerie.test_questions import (
    FACT_WORDINGS,
    QuestionSet,
    build_questions,
    without_long_examples,
)
from rlhf_jax.menagerie.world import make_world

FLAGS: dict[str, tuple[str, Better]] = {
    "fails_instruction": ("fails the instruction", "lower"),
    "satisfies_constraint": ("does exactly what was asked", "higher"),
    "hallucination": ("says something false", "lower"),
    "inappropriate_for_assistant": ("inappropriate for an assistant", "lower"),
}
NOVELTIES = {
    "prompts as in training": ("heldout", "no"),
    "held-out facts": ("heldout_fact", "yes"),
    "held-out wordings": ("heldout_wording", "yes"),
    "held-out task": ("heldout_kind", "yes"),
}


def gold_rows(results: Results) -> list[Row]:
    """Give what the exact judge says: components, gold by novelty, flags."""
    rows = []
    text = "component of gold before weighting"
    for component in COMPONENTS:
        values = results.means(results.of_measurement("gold", "components", component))
        rows.append(Row("Gold", component, "", "higher", text, values))
    z = standardise(results.of_measurement("gold", "total"), results.reference)
    text = "on test prompts of this sort (Ouyang et al. 2022, section 4.1, on held-out prompts)"
    for title, (key, value) in NOVELTIES.items():
        chosen_N = np.array([prompt.metadata[key] == value for prompt in results.prompts])
        if chosen_N.any():  # a sort of prompt that was not drawn has no row
            values = results.means({name: z_NS[chosen_N] for name, z_NS in z.items()})
            title = f"gold, {title}"
            rows.append(Row("Gold by novelty", title, results.unit, "higher", text, values))
    text = "share of responses, exact metadata (Ouyang et al. 2022, Fig. 4 and Table 3)"
    for flag, (title, better) in FLAGS.items():
        values = results.means(results.of_measurement("gold", "flags", flag))
        rows.append(Row("Metadata of responses", title, "", better, text, values))
    return rows


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
    "preferences": generic.preference_rows,
    "scores": generic.score_rows,
    "gold": gold_rows,
    "facts": fact_rows,
    "falsehoods": falsehood_rows,
    "toxicity": toxicity_rows,
    "stereotypes": stereotype_rows,
    "corpus": generic.corpus_rows,
    "divergence": generic.divergence_rows,
    "few_shot": few_shot_rows,
    "responses": generic.form_rows,
    "reward": generic.reward_rows,
}


class ToySuite(Suite):
    """What is measured and shown of every checkpoint in Menagerie."""

    measurements = MEASUREMENTS
    rows = ROWS

    def __init__(
        self, name: str, *, toxicity_prompts: int, toxicity_samples: int, few_shot_questions: int
    ) -> None:
        self._questions = build_questions(
            make_world(name.removeprefix("menagerie/")),
            toxicity_prompts=toxicity_prompts,
            toxicity_samples=toxicity_samples,
            few_shot_questions=few_shot_questions,
        )

    def questions(self, tokenizer: Tokenizer, document_length: int) -> QuestionSet:
        """Return the questions without few-shot tasks that exceed `document_length` tokens."""
        questions, too_long = without_long_examples(self._questions, tokenizer, document_length)
        for name, length in too_long.items():
            print(
                f"   few-shot {name}: left out, {length} tokens exceed "
                f"evaluation.document_length={document_length}"
            )
        return questions
