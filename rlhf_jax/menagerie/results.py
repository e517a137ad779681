"""Make the rows that only the toy world has, and put its whole table in order.

Rows stand in the order in which a reader asks: is it preferred, is it better, what became better,
at what price? The rows that every evaluation has are those of `evaluation.results`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates, harmlessness
from rlhf_jax.evaluation import results as generic
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
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

Estimator = Callable[[np.ndarray, np.ndarray, Bootstrap], Estimate]
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
    return [*_component_rows(results), *_novelty_rows(results), *_flag_rows(results)]


def _component_rows(results: Results) -> list[Row]:
    rows = []
    for component in COMPONENTS:
        values = {
            name: results.clustered(np.array(data["gold"]["components"][component]))
            for name, data in results.measured.items()
        }
        text = "component of gold before weighting"
        rows.append(Row("Gold", component, "", "higher", text, values))
    return rows


def _novelty_rows(results: Results) -> list[Row]:
    """Give gold by what is new in a prompt; a sort of prompt that was not drawn has no row."""
    total = {name: np.array(data["gold"]["total"]) for name, data in results.measured.items()}
    z = standardise(total, results.reference)
    rows = []
    text = "on test prompts of this sort (Ouyang et al. 2022, section 4.1, on held-out prompts)"
    for title, (key, value) in NOVELTIES.items():
        chosen_N = np.array([prompt.metadata[key] == value for prompt in results.prompts])
        if chosen_N.any():
            values = {name: results.clustered(z_NS[chosen_N]) for name, z_NS in z.items()}
            title = f"gold, {title}"
            rows.append(Row("Gold by novelty", title, results.unit, "higher", text, values))
    return rows


def _flag_rows(results: Results) -> list[Row]:
    rows = []
    text = "share of responses, exact metadata (Ouyang et al. 2022, Fig. 4 and Table 3)"
    for flag, (title, better) in FLAGS.items():
        values = {
            name: results.share(np.array(data["gold"]["flags"][flag]))
            for name, data in results.measured.items()
        }
        rows.append(Row("Metadata of responses", title, "", better, text, values))
    return rows


def _groups(results: Results, *path: str) -> list[str]:
    """Return the names of the groups of a measurement, the same ones for all checkpoints."""
    return list(_follow(results.measured[results.reference], *path))


def _follow(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _over_questions(
    results: Results, *path: str, estimator: Estimator = estimates.share, per_cluster: int = 1
) -> dict[str, Estimate]:
    """Estimate from one number per question; `per_cluster` neighbours are a cluster."""
    values = {}
    for name, data in results.measured.items():
        value_N = np.array(_follow(data, *path), np.float64)
        clusters_N = np.arange(value_N.size) // per_cluster
        values[name] = estimator(value_N, clusters_N, results.bootstrap)
    return values


def fact_rows(results: Results) -> list[Row]:
    """Give the accuracy of greedy answers about facts."""
    rows = []
    text = (
        "greedy answer in chat form, read by gold: makes a relevant claim, and none that is false"
    )
    for group in _groups(results, "facts"):
        accuracy = _over_questions(results, "facts", group, per_cluster=FACT_WORDINGS)
        rows.append(Row("Facts", f"accuracy, {group}", "", "higher", text, accuracy))
    return rows


def falsehood_rows(results: Results) -> list[Row]:
    """Give TruthfulQA's MC1 and MC2, on misconceptions and on facts without one."""
    rows = []
    source = "summed log-probability (Lin et al. 2021)"
    mc1_text = f"share of questions whose true answer is likelier than every false one; {source}"
    mc2_text = f"probability of the true answers; {source}"
    for group in _groups(results, "falsehoods", "mc1"):
        mc1 = _over_questions(results, "falsehoods", "mc1", group)
        mc2 = _over_questions(
            results, "falsehoods", "mc2", group, estimator=estimates.clustered_mean
        )
        rows += [
            Row("TruthfulQA", f"MC1, {group}", "", "higher", mc1_text, mc1),
            Row("TruthfulQA", f"MC2, {group}", "", "higher", mc2_text, mc2),
        ]
    return rows


def toxicity_rows(results: Results) -> list[Row]:
    """Give RealToxicityPrompts' measures of replies to rude, neutral and polite prompts."""
    rows = []
    for group in _groups(results, "toxicity"):
        measures = {
            name: harmlessness.toxicity_measures(
                np.array(data["toxicity"][group]), results.bootstrap
            )
            for name, data in results.measured.items()
        }
        samples = len(results.measured[results.reference]["toxicity"][group][0])
        texts = {
            "rude": (f"rude replies, {group} prompts", "share of responses with an insult"),
            "expected_maximum": (
                f"expected maximum toxicity, {group} prompts",
                f"worst of {samples} responses, mean over prompts (Gehman et al. 2020)",
            ),
            "probability": (
                f"toxicity probability, {group} prompts",
                f"share of prompts with at least one of {samples} responses above 0.5 "
                "(Gehman et al. 2020)",
            ),
        }
        for field, (title, text) in texts.items():
            values = {name: getattr(measure, field) for name, measure in measures.items()}
            rows.append(Row("Toxicity", title, "", "lower", text, values))
    return rows


def stereotype_rows(results: Results) -> list[Row]:
    """Give the entropy of choices between stereotype pairs, and the share of stereotypes."""
    rows = []
    entropy_text = (
        "choice between two sentences; 1 is indifference (Ouyang et al. 2022, appendix D)"
    )
    share_text = "ideally one half (CrowS-Pairs, Nangia et al. 2020)"
    for group in _groups(results, "stereotypes", "entropy"):
        entropy = _over_questions(
            results, "stereotypes", "entropy", group, estimator=estimates.clustered_mean
        )
        share = _over_questions(results, "stereotypes", "stereotype", group)
        rows += [
            Row("Bias", f"entropy, {group}", "bits", "higher", entropy_text, entropy),
            Row("Bias", f"stereotypes preferred, {group}", "", "none", share_text, share),
        ]
    return rows


def few_shot_rows(results: Results) -> list[Row]:
    """Give the accuracy on tasks to be learned from examples in the context."""
    rows = []
    text = (
        "raw text, choice with the highest per-token log-probability "
        "(Brown et al. 2020, section 2.4)"
    )
    for group in _groups(results, "few_shot"):
        accuracy = _over_questions(results, "few_shot", group)
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
