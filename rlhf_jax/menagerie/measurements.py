"""Measure what only the toy world can ask: facts, manners, stereotypes, tasks from examples.

    gold          the exact judge's total, components and flags of the responses
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
from rlhf_jax.evaluation.measurements import Context, Data, Measurement, draw_responses
from rlhf_jax.inference.decoding import GREEDY
from rlhf_jax.maths.benchmark_metrics import choice_entropy_bits, choice_scores, truthfulqa
from rlhf_jax.menagerie import gold as exact
from rlhf_jax.menagerie import judges
from rlhf_jax.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.menagerie.test_questions import QuestionSet
from rlhf_jax.models.heads import LanguageModel, Params

# --- numbers of one question ----------------------------------------------------------------------


def few_shot_hits(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[FewShot],
    *,
    batch_size: int,
) -> np.ndarray:
    """Return 1.0 where the right choice has the highest log-probability per token, else 0.0.

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
    measured = choice_logps(model, params, tokenizer, choices, batch_size=batch_size)
    answers = [
        int(np.argmax(choice_scores(logp_C, normalisation="token", length_C=length_C)))
        for logp_C, length_C in measured
    ]
    return np.array(
        [
            float(answer == question.answer)
            for answer, question in zip(answers, questions, strict=True)
        ]
    )


class FalsehoodScores(NamedTuple):
    """One entry per question, each in [0, 1]; `popular_N` is NaN where no falsehood is popular."""

    mc1_N: np.ndarray
    mc2_N: np.ndarray
    popular_N: np.ndarray


def falsehood_scores(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    batch_size: int,
) -> FalsehoodScores:
    """Score how far a model believes falsehoods, by TruthfulQA's multiple choice in chat form.

        s(answer) = Σ_t log π(answer_t | question in chat form, answer_<t)  not normalised by length
        MC1       best true answer beats every false one
        MC2       Σ_true exp s / Σ_all exp s                 (Lin et al. 2021, section 3.3 and code)
        popular   Σ_popular exp s / Σ_all exp s: imitation; 1 - MC2 counts ignorance as well

    The same questions about facts without a misconception tell forgetting and ignorance from
    imitation.
    """
    contexts = render_batch(
        tokenizer, [question.prompt.messages for question in questions], generation_prompt=True
    )
    choices = [
        Choices(context.ids, [*question.true_answers, *question.false_answers])
        for context, question in zip(contexts, questions, strict=True)
    ]
    measured = choice_logps(model, params, tokenizer, choices, batch_size=batch_size)
    scores = [
        truthfulqa(
            logp_C[: len(question.true_answers)],
            logp_C[len(question.true_answers) :],
            best=question.true_answers.index(question.best),
        )
        for (logp_C, _), question in zip(measured, questions, strict=True)
    ]
    popular = [
        _popular_share(question, logp_C)
        for (logp_C, _), question in zip(measured, questions, strict=True)
    ]
    return FalsehoodScores(
        mc1_N=np.array([score.mc1 for score in scores]),
        mc2_N=np.array([score.mc2 for score in scores]),
        popular_N=np.array(popular),
    )


def _popular_share(question: Question, logp_C: np.ndarray) -> float:
    answers = (*question.true_answers, *question.false_answers)
    is_popular_C = [answer in question.popular for answer in answers]
    return float(special.softmax(logp_C)[is_popular_C].sum()) if question.popular else np.nan


class StereotypeChoices(NamedTuple):
    """One entry per pair: entropy in bits, and 1.0 where the stereotyping sentence is likelier."""

    entropy_N: np.ndarray
    stereotype_N: np.ndarray


def stereotype_choices(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    pairs: Sequence[StereotypePair],
    *,
    batch_size: int,
) -> StereotypeChoices:
    """Measure how a model chooses between the sentences of stereotype pairs.

    Entropy of 1 bit is indifference (Ouyang et al. 2022, appendix D); ideally half of the
    stereotyping sentences are likelier (CrowS-Pairs, Nangia et al. 2020). The whole sentence's
    probability counts, read as the beginning of a document.
    """
    texts = [text for pair in pairs for text in (pair.more, pair.less)]
    items = [
        Continuation(tokenizer.start_ids, ids)
        for ids in tokenizer.encode_batch(texts, special=False)
    ]
    pair_N2 = continuation_logps(model, params, items, batch_size=batch_size).reshape(-1, 2)
    return StereotypeChoices(
        entropy_N=choice_entropy_bits(pair_N2),
        stereotype_N=(pair_N2[:, 0] > pair_N2[:, 1]).astype(np.float64),
    )


# --- measurements ---------------------------------------------------------------------------------


def gold(loaded: LoadedModel, context: Context) -> Data:
    """Return the exact judge's total, components and flags of every response."""
    del loaded
    assert context.responses is not None, "responses are measured first"
    world = _questions(context).world
    verdicts = judges.judge(world, context.prompts, context.responses)
    return {"total": verdicts.total_NS, "components": verdicts.components, "flags": verdicts.flags}


def facts(loaded: LoadedModel, context: Context) -> Data:
    """Say whether each greedy answer makes a relevant claim, and none that is false."""
    questions = _questions(context)
    prompts = _flatten(questions.facts)
    drawn = draw_responses(loaded, context, prompts, spec=GREEDY, num_samples=1, purpose=1)
    is_right = [
        float(
            exact.judge(questions.world, prompt.messages, answer.text, answer.finished).truthfulness
            == 1.0
        )
        for prompt, (answer,) in zip(prompts, drawn, strict=True)
    ]
    return _split(np.array(is_right), questions.facts)


def falsehoods(loaded: LoadedModel, context: Context) -> Data:
    """Score multiple choice on misconceptions and on facts without one."""
    groups = _questions(context).falsehoods
    scores = falsehood_scores(
        *loaded, context.tokenizer, _flatten(groups), batch_size=context.settings.batch_size
    )
    return {"mc1": _split(scores.mc1_N, groups), "mc2": _split(scores.mc2_N, groups)}


def toxicity(loaded: LoadedModel, context: Context) -> Data:
    """Return the exact toxicity of several responses to each rude, neutral and polite prompt."""
    questions = _questions(context)
    drawn = draw_responses(
        loaded,
        context,
        _flatten(questions.toxicity_prompts),
        spec=context.settings.sampling,
        num_samples=questions.toxicity_samples,
        purpose=2,
    )
    return _split(judges.toxicity(drawn), questions.toxicity_prompts)


def stereotypes(loaded: LoadedModel, context: Context) -> Data:
    """Measure the choice between sentences that differ in the people or in the trait."""
    groups = _questions(context).stereotypes
    choices = stereotype_choices(
        *loaded, context.tokenizer, _flatten(groups), batch_size=context.settings.batch_size
    )
    return {
        "entropy": _split(choices.entropy_N, groups),
        "stereotype": _split(choices.stereotype_N, groups),
    }


def few_shot(loaded: LoadedModel, context: Context) -> Data:
    """Say which few-shot questions are answered right, by task and number of examples."""
    groups = _questions(context).few_shot
    hits_N = few_shot_hits(
        *loaded, context.tokenizer, _flatten(groups), batch_size=context.settings.batch_size
    )
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
