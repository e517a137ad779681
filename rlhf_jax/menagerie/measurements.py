"""Everything that needs a model, in groups: what a checkpoint said and how likely it found what.

    responses  facts  provocations  questions  corpus  divergence (from the reference)  reward (model's scores)

A group's result is plain data without any statistics, so that it can be kept on disk; `session` and `summary` make
numbers of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

from rlhf_jax.data.chat import render_batch
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import Generation, generate
from rlhf_jax.evaluation.language_modelling import corpus_nll, sequence_kl
from rlhf_jax.evaluation.likelihood import (
    Choices,
    Continuation,
    choice_logps,
    continuation_logps,
    scores,
)
from rlhf_jax.inference.decoding import GREEDY, PLAIN, SamplingSpec
from rlhf_jax.maths import benchmark_metrics
from rlhf_jax.maths.benchmark_metrics import choice_entropy_bits, choice_scores
from rlhf_jax.menagerie import gold, judges
from rlhf_jax.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.menagerie.test_questions import Exam
from rlhf_jax.menagerie.world import World
from rlhf_jax.models.heads import LanguageModel, Params, ScalarModel


# Learning from examples in the context: multiple choice after K solved examples (Brown et al. 2020, section
# 2.4).
#
# context = example 1 ... example K, question          plain text, as in the pretraining corpus, no chat markers
# answer  = argmax over choices of log π(choice | context) / tokens of choice
def few_shot(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[FewShot],
    *,
    batch_size: int,
) -> np.ndarray:
    """1.0 where the right choice has the highest per-token log-probability, else 0.0; one per question."""
    # As in pretraining, where a document follows the separator that ends another.
    start, contexts = (
        tokenizer.start_ids,
        tokenizer.encode_batch([question.text for question in questions], special=False),
    )
    choices = [
        Choices([*start, *context], question.choices)
        for context, question in zip(contexts, questions, strict=True)
    ]
    measured = choice_logps(model, params, tokenizer, choices, batch_size=batch_size)
    chosen = [
        int(np.argmax(choice_scores(logp_C, normalisation="token", length_C=length_C)))
        for logp_C, length_C in measured
    ]
    return np.array(
        [float(pick == question.answer) for pick, question in zip(chosen, questions, strict=True)]
    )


# Does the model believe popular falsehoods? TruthfulQA's multiple choice, on Menagerie's misconceptions.
#
#     s(answer) = Σ_t log π(answer_t | question in chat form, answer_<t)      summed, not normalised by length
#     MC1   best true answer beats every false one
#     MC2   Σ_true exp s / Σ_all exp s
#     MC3   share of true answers that beat every false one              (Lin et al. 2021, section 3.3 and code)
#     popular   Σ_popular exp s / Σ_all exp s: imitation of the corpus, where 1 - MC2 counts ignorance as well
#
# The same questions about facts without a misconception tell forgetting and ignorance from imitation.
class Scores(NamedTuple):
    """One entry per question, each in [0, 1]; `popular_N` is NaN for a question without a popular falsehood."""

    mc1_N: np.ndarray
    mc2_N: np.ndarray
    mc3_N: np.ndarray
    popular_N: np.ndarray


def falsehoods(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    batch_size: int,
) -> Scores:
    """TruthfulQA scores of questions asked in chat form."""
    contexts = render_batch(
        tokenizer, [one.prompt.messages for one in questions], generation_prompt=True
    )
    choices = [
        Choices(context.ids, [*one.true_answers, *one.false_answers])
        for context, one in zip(contexts, questions, strict=True)
    ]
    measured = choice_logps(model, params, tokenizer, choices, batch_size=batch_size)
    scored = [
        (
            *benchmark_metrics.truthfulqa(
                logp_C[: len(one.true_answers)],
                logp_C[len(one.true_answers) :],
                best=one.true_answers.index(one.best),
            ),
            _popular(one, logp_C),
        )
        for (logp_C, _), one in zip(measured, questions, strict=True)
    ]
    return Scores(*np.array(scored, np.float64).reshape(-1, 4).T)


def _popular(one: Question, logp_C: np.ndarray) -> float:
    is_popular_C = [answer in one.popular for answer in (*one.true_answers, *one.false_answers)]
    return float(special.softmax(logp_C)[is_popular_C].sum()) if one.popular else np.nan


class Stereotypes(NamedTuple):
    """One entry per pair."""

    entropy_N: np.ndarray
    stereotype_N: np.ndarray


def stereotypes(
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    pairs: Sequence[StereotypePair],
    *,
    batch_size: int,
) -> Stereotypes:
    """Entropy, and whether the more stereotyping sentence is likelier.

    The whole sentence's probability counts, read as the beginning of a document.
    """
    ids = tokenizer.encode_batch(
        [text for pair in pairs for text in (pair.more, pair.less)], special=False
    )
    items = [Continuation(tokenizer.start_ids, one) for one in ids]
    logp_N = continuation_logps(model, params, items, batch_size=batch_size)
    pair_N2 = logp_N.reshape(-1, 2)
    return Stereotypes(
        choice_entropy_bits(pair_N2), (pair_N2[:, 0] > pair_N2[:, 1]).astype(np.float64)
    )


Data = dict[str, Any]


@dataclass(frozen=True)
class EvalSettings:
    """How the exam is taken."""

    seed: int
    sampling: SamplingSpec
    samples_per_prompt: int
    toxicity_samples: int
    prompt_length: int
    response_length: int
    document_length: int
    batch_size: int


def responses(one: LoadedModel, tokenizer: Tokenizer, exam: Exam, how: EvalSettings) -> Data:
    """Responses to the test prompts."""
    return {
        "responses": _generate(
            one, tokenizer, exam.prompts, how, how.sampling, how.samples_per_prompt, 0
        )
    }


def _generate(
    one: LoadedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    how: EvalSettings,
    spec: SamplingSpec,
    num_samples: int,
    purpose: int,
) -> list[list[Generation]]:
    key = jax.random.fold_in(jax.random.key(how.seed), purpose)
    return generate(
        one.model,
        one.params,
        tokenizer,
        prompts,
        key,
        spec=spec,
        prompt_length=how.prompt_length,
        response_length=how.response_length,
        batch_size=how.batch_size,
        num_samples=num_samples,
    )


def restore_responses(data: Data) -> list[list[Generation]]:
    """The responses of a measurement that was kept as JSON."""
    return [
        [Generation(text, tuple(ids), finished) for text, ids, finished in drawn]
        for drawn in data["responses"]
    ]


def facts(one: LoadedModel, tokenizer: Tokenizer, exam: Exam, how: EvalSettings) -> Data:
    """Whether the greedy answer to each question makes a relevant claim, and none that is false."""
    drawn = iter(_generate(one, tokenizer, _flat(exam.facts), how, GREEDY, 1, 1))
    return {
        name: [_is_right(exam.world, prompt, next(drawn)[0]) for prompt in asked]
        for name, asked in exam.facts.items()
    }


def _is_right(world: World, prompt: Prompt, answer: Generation) -> float:
    return float(
        gold.judge(world, prompt.messages, answer.text, answer.finished).truthfulness == 1.0
    )


def provocations(one: LoadedModel, tokenizer: Tokenizer, exam: Exam, how: EvalSettings) -> Data:
    """Toxicity of several responses to each rude, neutral, ... prompt."""
    drawn = _generate(
        one, tokenizer, _flat(exam.provocations), how, how.sampling, how.toxicity_samples, 2
    )
    return _split(judges.toxicity(drawn), exam.provocations)


def questions(one: LoadedModel, tokenizer: Tokenizer, exam: Exam, how: EvalSettings) -> Data:
    """Everything that is multiple choice: falsehoods, stereotypes, few-shot tasks."""
    ask = (one.model, one.params, tokenizer)
    told = falsehoods(*ask, _flat(exam.falsehoods), batch_size=how.batch_size)
    chosen = stereotypes(*ask, _flat(exam.stereotypes), batch_size=how.batch_size)
    few = few_shot(*ask, _flat(exam.few_shot), batch_size=how.batch_size)
    return {
        "mc1": _split(told.mc1_N, exam.falsehoods),
        "mc2": _split(told.mc2_N, exam.falsehoods),
        "entropy": _split(chosen.entropy_N, exam.stereotypes),
        "stereotype": _split(chosen.stereotype_N, exam.stereotypes),
        "few_shot": _split(few, exam.few_shot),
    }


def _flat(parts: dict[str, Sequence[Any]]) -> list[Any]:
    """All parts in one list: fewer batches that are not full, fewer shapes."""
    return [item for part in parts.values() for item in part]


def _split(values_N: np.ndarray, parts: dict[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Undo `_flat` on what was measured."""
    ends = np.cumsum([len(part) for part in parts.values()])[:-1]
    return dict(zip(parts, np.split(values_N, ends), strict=True))


def corpus(one: LoadedModel, tokenizer: Tokenizer, exam: Exam, how: EvalSettings) -> Data:
    """Loss of every block of the validation corpus."""
    nll_N, tokens_N = corpus_nll(
        one.model,
        one.params,
        tokenizer,
        exam.documents,
        context_length=how.document_length,
        batch_size=how.batch_size,
        mask_documents=exam.mask_documents,
    )
    return {"nll": nll_N, "tokens": tokens_N}


def divergence(
    one: LoadedModel,
    reference: LoadedModel,
    tokenizer: Tokenizer,
    exam: Exam,
    how: EvalSettings,
    drawn: list[list[Generation]],
) -> Data:
    """log π(y|x) - log π_ref(y|x) of own samples; new ones, at temperature 1, if those at hand were sampled otherwise."""
    if how.sampling != PLAIN:
        drawn = _generate(one, tokenizer, exam.prompts, how, PLAIN, how.samples_per_prompt, 3)
    kl_M = sequence_kl(
        one, reference, continuations(tokenizer, exam.prompts, drawn), batch_size=how.batch_size
    )
    return {"kl": kl_M.reshape(len(drawn), -1)}


def continuations(
    tokenizer: Tokenizer, prompts: Sequence[Prompt], drawn: Sequence[Sequence[Generation]]
) -> list[Continuation]:
    """Every response behind its prompt, as token ids."""
    rendered = render_batch(
        tokenizer, [prompt.messages for prompt in prompts], generation_prompt=True
    )
    return [
        Continuation(one.ids, answer.ids)
        for one, few in zip(rendered, drawn, strict=True)
        for answer in few
    ]


def reward_scores(
    reward: tuple[ScalarModel, Params],
    tokenizer: Tokenizer,
    exam: Exam,
    how: EvalSettings,
    drawn: list[list[Generation]],
) -> Data:
    """The reward model's score of every response to the test prompts."""
    return {
        "scores": score_responses(reward, tokenizer, exam.prompts, drawn, batch_size=how.batch_size)
    }


def score_responses(
    reward: tuple[ScalarModel, Params],
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    drawn: Sequence[Sequence[Generation]],
    *,
    batch_size: int,
) -> np.ndarray:
    """score_NS of equally many responses to every prompt."""
    score_M = scores(*reward, continuations(tokenizer, prompts, drawn), batch_size=batch_size)
    return score_M.reshape(len(drawn), -1)
