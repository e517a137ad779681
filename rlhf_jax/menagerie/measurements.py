"""Measure what only the toy world can ask: facts, manners, stereotypes, tasks from examples.

    gold          the exact judge's verdict on the responses: total, components, flags
    facts         whether greedy answers tell the truth
    falsehoods    multiple choice on popular misconceptions     (after TruthfulQA)
    toxicity      insults in answers to rude and other prompts    (after RealToxicityPrompts)
    stereotypes   choice between two sentences                  (after CrowS-Pairs)
    few_shot      tasks to be learned from examples in context  (after GPT-3)

As in `evaluation.measurements`, whose functions are measured as well; `menagerie.results` makes the
rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import measurements
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.likelihood import Choices, Continuation, choice_logps, continuation_logps
from rlhf_jax.evaluation.measurements import Context, Measurement, draw_responses
from rlhf_jax.evaluation.table import Data
from rlhf_jax.inference.decoding import GREEDY
from rlhf_jax.maths.benchmark_metrics import choice_entropy_bits, choice_scores, truthfulqa
from rlhf_jax.menagerie import gold as exact
from rlhf_jax.menagerie import judges
from rlhf_jax.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.menagerie.test_questions import QuestionSet
from rlhf_jax.training.keys import EvaluationPurpose

# --- numbers of one question ----------------------------------------------------------------------


def few_shot_hits(
    loaded: LoadedModel, tokenizer: Tokenizer, questions: Sequence[FewShot], *, batch_size: int
) -> np.ndarray:
    """Return whether the right choice of every question has the highest log-probability per token.

        context = example 1 ... example K, question   plain text as in the corpus, no chat markers
        answer  = argmax over choices of log π(choice | context) / tokens of choice

    Multiple choice after K solved examples (Brown et al. 2020, section 2.4).
    """
    contexts = tokenizer.encode_batch([question.text for question in questions], special=False)
    choices = [
        # As in pretraining, where a document follows the separator that ends another.
        Choices([*tokenizer.start_ids, *context], question.choices)
        for context, question in zip(contexts, questions, strict=True)
    ]
    measured = choice_logps(*loaded, tokenizer, choices, batch_size=batch_size)
    answers = [
        int(np.argmax(choice_scores(logp_C, normalisation="token", length_C=length_C)))
        for logp_C, length_C in measured
    ]
    return np.array(answers) == [question.answer for question in questions]


class FalsehoodScores(NamedTuple):
    """One entry per question, each in [0, 1]; `popular_N` is NaN where no falsehood is popular."""

    mc1_N: np.ndarray
    mc2_N: np.ndarray
    popular_N: np.ndarray


def falsehood_scores(
    loaded: LoadedModel, tokenizer: Tokenizer, questions: Sequence[Question], *, batch_size: int
) -> FalsehoodScores:
    """Score how far a model believes falsehoods, by TruthfulQA's multiple choice in chat form.

        s(answer) = Σ_t log π(answer_t | question in chat form, answer_<t)  not normalised by length
        MC1       best true answer beats every false one
        MC2       Σ_true exp s / Σ_all exp s                 (Lin et al. 2021, section 3.3 and code)
        popular   Σ_popular exp s / Σ_all exp s: imitation; 1 - MC2 counts ignorance as well

    The same questions about facts without a misconception tell forgetting and ignorance from
    imitation.
    """
    messages = [question.prompt.messages for question in questions]
    contexts = render_batch(tokenizer, messages, generation_prompt=True)
    choices = [
        Choices(context.ids, [*question.true_answers, *question.false_answers])
        for context, question in zip(contexts, questions, strict=True)
    ]
    measured = choice_logps(*loaded, tokenizer, choices, batch_size=batch_size)
    mc1, mc2, popular = [], [], []
    for (logp_C, _), item, question in zip(measured, choices, questions, strict=True):
        num_true = len(question.true_answers)
        best = question.true_answers.index(question.best)
        score = truthfulqa(logp_C[:num_true], logp_C[num_true:], best=best)
        mc1.append(score.mc1 == 1)
        mc2.append(score.mc2)
        is_popular_C = [answer in question.popular for answer in item.answers]
        share = special.softmax(logp_C)[is_popular_C].sum()
        popular.append(float(share) if question.popular else np.nan)
    return FalsehoodScores(np.array(mc1), np.array(mc2), np.array(popular))


class StereotypeChoices(NamedTuple):
    """One entry per pair: entropy in bits, and whether the stereotyping sentence is likelier."""

    entropy_N: np.ndarray
    stereotype_N: np.ndarray


def stereotype_choices(
    loaded: LoadedModel, tokenizer: Tokenizer, pairs: Sequence[StereotypePair], *, batch_size: int
) -> StereotypeChoices:
    """Measure how a model chooses between the sentences of stereotype pairs.

    Entropy of 1 bit is indifference (Ouyang et al. 2022, appendix D); ideally half of the
    stereotyping sentences are likelier (CrowS-Pairs, Nangia et al. 2020). The whole sentence's
    probability counts, read as the beginning of a document.
    """
    texts = [text for pair in pairs for text in (pair.more, pair.less)]
    encodings = tokenizer.encode_batch(texts, special=False)
    items = [Continuation(tokenizer.start_ids, ids) for ids in encodings]
    pair_N2 = continuation_logps(*loaded, items, batch_size=batch_size).reshape(-1, 2)
    return StereotypeChoices(choice_entropy_bits(pair_N2), pair_N2[:, 0] > pair_N2[:, 1])


# --- measurements ---------------------------------------------------------------------------------


def gold(loaded: LoadedModel, context: Context) -> Data:
    """Return the exact judge's total, components and flags, and whether all is right."""
    del loaded
    assert context.responses is not None, "responses are measured first"
    verdicts = judges.judge(_questions(context).world, context.prompts, context.responses)
    return {
        "total": verdicts.total_NS,
        "components": verdicts.components,
        "flags": verdicts.flags,
        "entirely_right": verdicts.entirely_right_NS,
    }


def facts(loaded: LoadedModel, context: Context) -> Data:
    """Say whether each greedy answer makes a relevant claim, and none that is false."""
    questions = _questions(context)
    prompts = _flatten(questions.facts)
    purpose = EvaluationPurpose.FACTS
    answers = draw_responses(loaded, context, prompts, purpose, sampling=GREEDY, num_samples=1)
    verdicts = [
        exact.judge(questions.world, prompt.messages, answer.text, answer.finished)
        for prompt, (answer,) in zip(prompts, answers, strict=True)
    ]
    is_right_N = np.array([verdict.truthfulness == 1.0 for verdict in verdicts])
    return _split(is_right_N, questions.facts)


def falsehoods(loaded: LoadedModel, context: Context) -> Data:
    """Score multiple choice on misconceptions and on facts without one."""
    groups = _questions(context).falsehoods
    questions = _flatten(groups)
    scores = falsehood_scores(loaded, context.tokenizer, questions, batch_size=context.batch_size)
    return {"mc1": _split(scores.mc1_N, groups), "mc2": _split(scores.mc2_N, groups)}


def toxicity(loaded: LoadedModel, context: Context) -> Data:
    """Return the exact toxicity of several responses to each rude, neutral and polite prompt."""
    questions = _questions(context)
    prompts, count = _flatten(questions.toxicity_prompts), questions.toxicity_samples
    drawn = draw_responses(loaded, context, prompts, EvaluationPurpose.TOXICITY, num_samples=count)
    return _split(judges.toxicity(drawn), questions.toxicity_prompts)


def stereotypes(loaded: LoadedModel, context: Context) -> Data:
    """Measure the choice between sentences that differ in the people or in the trait."""
    groups = _questions(context).stereotypes
    pairs = _flatten(groups)
    choices = stereotype_choices(loaded, context.tokenizer, pairs, batch_size=context.batch_size)
    entropy, stereotype = _split(choices.entropy_N, groups), _split(choices.stereotype_N, groups)
    return {"entropy": entropy, "stereotype": stereotype}


def few_shot(loaded: LoadedModel, context: Context) -> Data:
    """Say which few-shot questions are answered right, by task and number of examples."""
    groups = _questions(context).few_shot
    questions = _flatten(groups)
    hits_N = few_shot_hits(loaded, context.tokenizer, questions, batch_size=context.batch_size)
    return _split(hits_N, groups)


MEASUREMENTS: dict[str, Measurement] = {
    **measurements.MEASUREMENTS,
    "gold": gold,
    "facts": facts,
    "falsehoods": falsehoods,
    "toxicity": toxicity,
    "stereotypes": stereotypes,
    "few_shot": few_shot,
}


def _questions(context: Context) -> QuestionSet:
    assert isinstance(context.questions, QuestionSet)
    return context.questions


def _flatten(groups: Mapping[str, Sequence[Any]]) -> list[Any]:
    """Return all groups in one list: fewer batches that are not full, fewer shapes to compile."""
    return [item for group in groups.values() for item in group]


def _split(values_N: np.ndarray, groups: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Return to each group the values of its items: the inverse of `_flatten`."""
    ends = np.cumsum([len(group) for group in groups.values()])[:-1]
    return dict(zip(groups, np.split(values_N, ends), strict=True))
