"""Likelihoods and scores of given texts: against one row at a time, padded on the other side."""

import functools

import jax
import numpy as np
import pytest
from evaluation_support import PROMPTS, draw, language_model, scalar_model, words
from templates_support import CHATML, GEMMA, MISTRAL, metaspace, qwen3, r1

from rlhf_jax.data.batches import comparison_batches
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Comparison, Document, Message, Prompt
from rlhf_jax.evaluation import likelihood
from rlhf_jax.evaluation.generate import Generation, encode_prompts, left_pad
from rlhf_jax.evaluation.likelihood import (
    BUCKET,
    Choices,
    Continuation,
    _pad,
    block_nll,
    choice_logps,
    continuation_logps,
    continuations,
    corpus_nll,
    score_responses,
    scores,
    sequence_kl,
    text_continuations,
)
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.inference.sampling import sample
from rlhf_jax.inference.scoring import last_token_scores, next_token_nll


@functools.partial(jax.jit, static_argnums=0)
def token_nll(model, params, tokens_BT, segments_BT):
    return next_token_nll(model, params, tokens_BT, segments_BT)[0]


@functools.partial(jax.jit, static_argnums=0)
def last_score(model, params, tokens_BT, segments_BT):
    return last_token_scores(model, params, tokens_BT, segments_BT)


def left_padded(context, ids):
    """One text alone, padded on the other side."""
    tokens_BT, segments_BT = np.zeros((2, 1, 64), np.int32)
    tokens_BT[0, 64 - len(context) - len(ids) :] = [*context, *ids]
    segments_BT[0, 64 - len(context) - len(ids) :] = 1
    return tokens_BT, segments_BT


def one_by_one(items):
    rows = [
        token_nll(*language_model(), *left_padded(*item))[0, 64 - len(item[1]) :] for item in items
    ]
    return np.array([-np.asarray(row_T).sum() for row_T in jax.device_get(rows)])


TEMPLATES = {"mistral": MISTRAL, "gemma": GEMMA, "chatml": CHATML}


@pytest.mark.parametrize("scheme", ["always", "first", "never", "legacy"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_judge_reads_the_ids_of_training(scheme, template):
    """SentencePiece encodes a word by what stands before it, which the template decides."""
    special = ["<s>", "</s>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]
    names = {"eos": "</s>", "bos": "<s>", "adds_bos": True}
    tokenizer = metaspace(special, TEMPLATES[template], scheme=scheme, **names)
    check_ids_of_training(tokenizer, ("the fox is red.", "think about it"))


@pytest.mark.parametrize("make", [qwen3, r1, words])
def test_a_judge_reads_the_ids_of_training_with_any_template(make):
    check_ids_of_training(make(), ("red", "<think>\nhm\n</think>\n\nred", "<think>hm"))


def check_ids_of_training(tokenizer, texts):
    prompt = Prompt((Message("user", "hello"),))
    ranking = Comparison(prompt.messages, texts, tuple(range(1, len(texts) + 1)))
    rows = comparison_batches(
        [ranking], tokenizer, context_length=99, max_candidates=len(texts), batch_size=1, seed=0
    ).arrays
    finished = [Generation(text, (), finished=True) for text in texts]
    cut = [Generation(text, (), finished=False) for text in texts]
    blank = [Generation("", (), finished=False)]
    groups = text_continuations(tokenizer, [prompt] * 3, [finished, cut, blank])
    context = render(tokenizer, prompt.messages, generation_prompt=True).ids
    for c, (whole, part) in enumerate(zip(*groups[:2], strict=True)):
        size, length = rows["segments_BCT"][0, c].sum(), rows["length_BC"][0, c]
        assert [*whole.context, *whole.ids] == rows["tokens_BCT"][0, c, :size].tolist()
        assert (whole.context, len(whole.ids)) == (context, length)
        assert (part.context, part.ids) == (context, whole.ids[:-1])
    assert groups[2] == [Continuation(context, [tokenizer.turn_end_id])]


def test_continuations_equal_one_at_a_time_without_padding():
    items = [
        Continuation((5, 6), (7, 8, 9)),
        Continuation((5,), (6,)),
        Continuation((5, 6, 7), (8,)),
        Continuation((9, 5), (5, 5, 5, 5)),
        Continuation((12, 5), (6, 7)),
    ]
    for batch_size in (2, 5):
        logp_N = continuation_logps(*language_model(), items, batch_size=batch_size)
        np.testing.assert_allclose(logp_N, one_by_one(items), rtol=1e-5)


@pytest.mark.parametrize(("common", "read"), [(15, 0), (16, 0), (17, 16), (33, 32)])
def test_a_common_beginning_is_read_once(monkeypatch, common, read):
    monkeypatch.setattr(likelihood, "SHARED_FROM", 16)
    begin = tuple(5 + number % 7 for number in range(common))
    items = [
        Continuation(begin, (7, 8, 9)),
        Continuation((*begin, 6, 7), (8,)),
        Continuation((*begin, 9), (5, 5, 5, 5)),
    ]
    assert likelihood._shared_prefix([item.context for item in items]) == begin[:read]
    np.testing.assert_allclose(
        continuation_logps(*language_model(), items, batch_size=2), one_by_one(items), rtol=1e-5
    )


def test_texts_are_read_as_documents_and_those_that_do_not_fit_are_counted(capsys):
    texts = ["the fox is red", "", "owl", "the " * 70]
    nll_N, count_N = likelihood.text_nll(*language_model(), words(), texts, batch_size=2)
    np.testing.assert_array_equal(count_N, [4, 0, 1, 0])
    assert "1 of 4 texts left out: more than 63 tokens" in capsys.readouterr().out
    items = [
        Continuation(words().start_ids, words().encode(texts[n], special=False)) for n in (0, 2)
    ]
    np.testing.assert_allclose(nll_N[[0, 2]], -one_by_one(items), rtol=1e-4)
    assert (nll_N[1], nll_N[3]) == (0, 0)


def test_continuations_that_cannot_be_judged_are_refused():
    with pytest.raises(ValueError, match=r"text 0 has 60 \+ 5 tokens, the model's context is 64"):
        continuation_logps(*language_model(), [Continuation((5,) * 60, (6,) * 5)], batch_size=1)
    with pytest.raises(ValueError, match=r"text 1 has 0 \+ 1 tokens: context"):
        continuation_logps(
            *language_model(), [Continuation((5,), (6,)), Continuation((), (6,))], batch_size=1
        )


def test_choices_come_back_by_question():
    questions = [Choices((5, 6), [" fox", " owl blue"]), Choices((7,), [" red"])]
    (first, lengths), (second, _) = choice_logps(
        *language_model(), words(), questions, batch_size=4
    )
    ids = [words().encode(text, special=False) for text in (" fox", " owl blue", " red")]
    expected = one_by_one(zip([(5, 6), (5, 6), (7,)], ids, strict=True))
    np.testing.assert_allclose([*first, *second], expected, rtol=1e-5)
    np.testing.assert_array_equal(lengths, [1, 2])


def test_blocks_count_predicted_tokens():
    tokens_NT = np.array([[5, 6, 7, 8], [9, 5, 0, 0], [5, 5, 5, 5]], np.int32)
    segments_NT = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 2, 2]], np.int32)
    nll_N, count_N = block_nll(*language_model(), tokens_NT, segments_NT, batch_size=2)
    np.testing.assert_array_equal(count_N, [3, 1, 2])
    np.testing.assert_allclose(nll_N[:2], -one_by_one([((5,), (6, 7, 8)), ((9,), (5,))]), rtol=1e-5)
    np.testing.assert_allclose(nll_N[2], -2 * one_by_one([((5,), (5,))])[0], rtol=1e-5)


def samples():
    return continuations(words(), PROMPTS, draw(PROMPTS))


def test_a_policy_does_not_diverge_from_itself_and_does_from_another():
    same = sequence_kl(language_model(), language_model(), samples(), batch_size=4)
    np.testing.assert_array_equal(same, np.zeros(5))
    other = sequence_kl(language_model(), language_model(1), samples(), batch_size=4)
    reference_N = continuation_logps(*language_model(1), samples(), batch_size=2)
    np.testing.assert_allclose(other, one_by_one(samples()) - reference_N, rtol=1e-4)
    assert np.abs(other).min() > 0.01


def test_samples_have_the_log_probability_with_which_they_were_drawn():
    padded = left_pad(encode_prompts(words(), PROMPTS[:4], 8), words().pad_id, 8)
    sampled = sample(
        *language_model(),
        *padded,
        jax.random.fold_in(jax.random.key(0), 0),
        spec=PLAIN,
        response_length=6,
        stop_tokens=(words().eos_id,),
        pad_id=words().pad_id,
    )
    np.testing.assert_allclose(one_by_one(samples()[:4]), sampled.logp_BR.sum(axis=1), rtol=1e-4)


def test_scores_are_read_at_the_last_response_token():
    model, params = scalar_model()
    score_N = scores(model, params, samples(), batch_size=3)
    for score, (context, ids) in zip(score_N, samples(), strict=True):
        np.testing.assert_allclose(
            score, last_score(model, params, *left_padded(context, ids))[0], rtol=1e-4
        )


def test_texts_of_all_lengths_come_back_in_their_order():
    items = [Continuation((5,) * (1 + 13 * n % 40), (6, 7)) for n in range(9)]
    assert {-(-(len(item.context) + 2) // BUCKET) for item in items} == {1, 2, 3}
    np.testing.assert_allclose(
        continuation_logps(*language_model(), items, batch_size=4), one_by_one(items), rtol=1e-4
    )


def test_texts_of_all_lengths_fill_their_batches(monkeypatch):
    items = [Continuation((5,) * (1 + BUCKET * (n % 4)), (6, n // 4 + 1)) for n in range(9)]
    batches = []
    monkeypatch.setattr(
        likelihood,
        "_pad",
        lambda items, size: batches.append((len(set(items)), size)) or _pad(items, size),
    )
    continuation_logps(*language_model(), items, batch_size=4)
    assert batches == [
        (4, 64),
        (4, 32),
        (1, 16),
    ]  # one a length would be four, three of them half full


def test_a_corpus_is_packed_into_blocks():
    """Eight documents are four blocks of two documents each, and no token is lost."""
    documents = [Document("the fox is red. blue owl")] * 8
    length = len(words().encode(documents[0].text, special=False)) + 1
    nll_N, count_N = corpus_nll(
        *language_model(),
        words(),
        documents,
        context_length=2 * length,
        batch_size=3,
        mask_documents=False,
    )
    assert nll_N.shape == count_N.shape == (4,)
    assert (count_N == 2 * length - 1).all()
    np.testing.assert_allclose(nll_N, nll_N[0], rtol=1e-5)


def test_responses_are_scored_by_prompt():
    responses = draw(PROMPTS, num_samples=2)
    score_NS = score_responses(scalar_model(), words(), PROMPTS, responses, batch_size=4)
    items = continuations(words(), PROMPTS, responses)
    assert score_NS.shape == (5, 2)
    np.testing.assert_allclose(
        score_NS.ravel(), scores(*scalar_model(), items, batch_size=3), rtol=1e-4
    )
