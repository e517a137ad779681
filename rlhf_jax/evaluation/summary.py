"""From measurements to the rows of the table. Pure: what was said and measured goes in, numbers with
intervals come out.

Rows stand in the order in which a reader asks: is it preferred, is it better, what became better, at what
price?
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from rlhf_jax.evaluation import estimates, harmlessness, judges, reward_model, win_rate
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
from rlhf_jax.evaluation.exam import FACT_WORDINGS
from rlhf_jax.evaluation.session import Session, judged_pairs
from rlhf_jax.evaluation.table import Better, Key, Row

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


def rows(session: Session) -> list[Row]:
    """The whole table."""
    parts = (
        _preference, _gold, _generalisation, _labels, _facts, _falsehoods, _toxicity, _bias,
        _language, _few_shot, _form, _reward,
    )  # fmt: skip
    return [row for part in parts for row in part(session)]


def _preference(session: Session) -> list[Row]:
    return [row for opponent in session.opponents for row in _preferred_to(session, opponent)]


def _preferred_to(session: Session, opponent: str) -> list[Row]:
    theirs = session.responses[opponent]
    found: dict[str, dict[str, Estimate]] = {"labelers": {}, "labelers_lc": {}, "gold": {}, "gold_lc": {}}
    for name in session.measured:
        if name == opponent:
            continue
        ours = session.responses[name]
        preferences = {
            "labelers": judges.labeler_preferences(
                session.world, session.prompts, ours, theirs,
                labelers_per_prompt=session.labelers_per_prompt, seed=session.seed,
            ),
            "gold": judges.gold_preferences(
                session.verdicts[name].total_NS, session.verdicts[opponent].total_NS
            )[..., None],
        }  # fmt: skip
        for judge, preference_NSL in preferences.items():
            found[judge][name] = win_rate.win_rate(preference_NSL, session.bootstrap)
            found[judge + "_lc"][name] = win_rate.length_controlled(
                preference_NSL, session.lengths(name) - session.lengths(opponent)
            )
    people = f"{session.labelers_per_prompt} held-out labelers per prompt; ties are half a win"
    equal = "as it would be for responses of equal length (Dubois et al. 2024)"
    texts = {
        "labelers": (f"preferred to {opponent}, held-out labelers", f"{people} (Ouyang et al. 2022, Fig. 1)"),
        "labelers_lc": (f"preferred to {opponent}, held-out labelers, length-controlled", equal),
        "gold": (f"preferred to {opponent}, gold", "the exact judge of the world; equal totals are half a win"),
        "gold_lc": (f"preferred to {opponent}, gold, length-controlled", equal),
    }
    keys: dict[str, Key] = {"labelers": "win_rate_labelers", "gold": "win_rate_gold"}
    return [
        Row(f"Preferred to {opponent}", title, "", "higher", text, found[judge], keys.get(judge, ""), opponent)
        for judge, (title, text) in texts.items()
    ]


def _gold(session: Session) -> list[Row]:
    boot, reference = session.bootstrap, session.reference
    unit = f"SD of {reference}"
    z = {name: session.standardised(name) for name in session.measured}
    total = {name: session.clustered(z[name]) for name in z}
    gain = {
        name: estimates.paired_difference(z[name].ravel(), *session.by_prompt(z[reference]), boot) for name in session.others
    }
    made = [
        Row("Gold", "gold", unit, "higher",
            f"the exact judge's total; {reference} has mean 0 and deviation 1 (Gao et al. 2022)", total),
        Row("Gold", f"gold minus {reference}", unit, "higher", "paired by prompt", gain),
    ]  # fmt: skip
    for part in judges.COMPONENTS:
        values = {name: session.clustered(verdicts.components[part]) for name, verdicts in session.verdicts.items()}
        made.append(Row("Gold", part, "", "higher", "component of gold before weighting", values))
    return made


def _generalisation(session: Session) -> list[Row]:
    """Gold by what is new in a prompt; a sort of prompt that was not drawn has no row."""
    made = []
    text = "on test prompts of this sort (Ouyang et al. 2022, section 4.1, on held-out prompts)"
    for title, (key, value) in NOVELTIES.items():
        chosen = np.array([prompt.metadata[key] == value for prompt in session.prompts])
        if chosen.any():
            values = {name: session.clustered(session.standardised(name)[chosen]) for name in session.measured}
            made.append(Row("Gold by novelty", f"gold, {title}", session.unit, "higher", text, values))
    return made


def _labels(session: Session) -> list[Row]:
    made = []
    for flag, (title, better) in FLAGS.items():
        values = {name: session.share(verdicts.flags[flag]) for name, verdicts in session.verdicts.items()}
        text = "share of responses, exact metadata (Ouyang et al. 2022, Fig. 4 and Table 3)"
        made.append(Row("Metadata of responses", title, "", better, text, values))
    return made


def _keys(session: Session, *path: str) -> list[str]:
    """The names under which a measurement is kept; the same ones for all checkpoints."""
    return list(_at(session.measured[session.reference], *path))


def _at(tree: Any, *path: str) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _over_questions(session: Session, *path: str, of: Estimator = estimates.share, per_cluster: int = 1) -> dict[str, Estimate]:
    """An estimate for every checkpoint from one number per question; so many neighbours are a cluster."""
    values = {}
    for name, groups in session.measured.items():
        got = np.array(_at(groups, *path), np.float64)
        values[name] = of(got, np.arange(got.size) // per_cluster, session.bootstrap)
    return values


def _facts(session: Session) -> list[Row]:
    text = "greedy answer in chat form, read by gold: makes a relevant claim, and none that is false"
    return [
        Row("Facts", f"accuracy, {name}", "", "higher", text,
            _over_questions(session, "facts", name, per_cluster=FACT_WORDINGS))
        for name in _keys(session, "facts")
    ]  # fmt: skip


def _falsehoods(session: Session) -> list[Row]:
    source = "summed log-probability (Lin et al. 2021)"
    made = []
    for name in _keys(session, "questions", "mc1"):
        mc1 = _over_questions(session, "questions", "mc1", name)
        mc2 = _over_questions(session, "questions", "mc2", name, of=estimates.clustered_mean)
        made += [
            Row("TruthfulQA", f"MC1, {name}", "", "higher",
                f"share of questions whose true answer is likelier than every false one; {source}", mc1),
            Row("TruthfulQA", f"MC2, {name}", "", "higher", f"probability of the true answers; {source}", mc2),
        ]  # fmt: skip
    return made


def _toxicity(session: Session) -> list[Row]:
    made = []
    for name in _keys(session, "provocations"):
        measured = {
            checkpoint: harmlessness.toxicity_measures(np.array(groups["provocations"][name]), session.bootstrap)
            for checkpoint, groups in session.measured.items()
        }
        samples = len(session.measured[session.reference]["provocations"][name][0])
        texts = {
            "rude": (f"rude replies, {name} prompts", "share of responses with an insult"),
            "expected_maximum": (
                f"expected maximum toxicity, {name} prompts",
                f"worst of {samples} responses, mean over prompts (Gehman et al. 2020)",
            ),
            "probability": (
                f"toxicity probability, {name} prompts",
                f"share of prompts with at least one of {samples} responses above 0.5 (Gehman et al. 2020)",
            ),
        }
        for field, (title, text) in texts.items():
            values = {checkpoint: getattr(one, field) for checkpoint, one in measured.items()}
            made.append(Row("Toxicity", title, "", "lower", text, values))
    return made


def _bias(session: Session) -> list[Row]:
    made = []
    for name in _keys(session, "questions", "entropy"):
        entropy = _over_questions(session, "questions", "entropy", name, of=estimates.clustered_mean)
        stereotype = _over_questions(session, "questions", "stereotype", name)
        made += [
            Row("Bias", f"entropy, {name}", "bits", "higher",
                "choice between two sentences; 1 is indifference (Ouyang et al. 2022, appendix D)", entropy),
            Row("Bias", f"stereotypes preferred, {name}", "", "none",
                "ideally one half (CrowS-Pairs, Nangia et al. 2020)", stereotype),
        ]  # fmt: skip
    return made


def _language(session: Session) -> list[Row]:
    nll = {
        name: estimates.ratio(groups["corpus"]["nll"], groups["corpus"]["tokens"], session.bootstrap)
        for name, groups in session.measured.items()
    }
    kl = {
        name: session.clustered(np.array(groups["divergence"]["kl"]))
        for name, groups in session.measured.items()
        if "divergence" in groups
    }
    return [
        Row("Price", "pretraining loss", "nats/token", "lower",
             "validation corpus, per token; its rise is the alignment tax (Ouyang et al. 2022, 4.2)", nll),
        Row("Price", f"KL from {session.reference}", "nats/response", "none",
             "log-ratio of own samples, summed over the response", kl),
    ]  # fmt: skip


def _few_shot(session: Session) -> list[Row]:
    text = "raw text, choice with the highest per-token log-probability (Brown et al. 2020, section 2.4)"
    return [
        Row("Few-shot", f"few-shot {name}", "", "higher", text, _over_questions(session, "questions", "few_shot", name))
        for name in _keys(session, "questions", "few_shot")
    ]


def _form(session: Session) -> list[Row]:
    length, finished = {}, {}
    for name, drawn in session.responses.items():
        length[name] = session.clustered(session.lengths(name))
        ended = np.array([[one.finished for one in few] for few in drawn])
        finished[name] = session.share(ended)
    return [
        Row("Form", "response length", "tokens", "none", "end of text included", length),
        Row("Form", "finished", "", "higher", "responses that ended by themselves", finished),
    ]


def _reward(session: Session) -> list[Row]:
    if "reward" not in session.measured[session.reference]:
        return []
    score, gold, people, error = {}, {}, {}, {}
    for name, groups in session.measured.items():
        score_NS = np.array(groups["reward"]["scores"])
        score[name] = session.clustered(score_NS)
        pairs, gold_M, people_M = judged_pairs(session, name)
        difference_M = score_NS[pairs.prompt_M, pairs.first_M] - score_NS[pairs.prompt_M, pairs.second_M]
        gold[name] = reward_model.accuracy(difference_M, gold_M, pairs.prompt_M, session.bootstrap)
        people[name] = reward_model.accuracy(difference_M, people_M, pairs.prompt_M, session.bootstrap)
        error[name] = reward_model.calibration_error(difference_M, people_M)
    text = "pairs of different responses of this checkpoint that the judge does not find equal"
    return [
        Row("Reward model", "score of the responses", "", "none", "mean; what PPO raises", score),
        Row("Reward model", "accuracy against gold", "", "none", text, gold),
        Row("Reward model", "accuracy against held-out labelers", "", "none", f"{text}; one each", people),
        Row("Reward model", "calibration error (ECE)", "", "none",
             "gap between σ(score difference) and labelers' agreement (Guo et al. 2017)", error),
    ]  # fmt: skip
