"""Generation and likelihoods: against a model whose text is known, and against one row at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_support import config, language_model, prompt, scalar_model, successor, words

from rlhf_jax.evaluation import likelihood
from rlhf_jax.evaluation.generate import encode_prompts, generate
from rlhf_jax.evaluation.language_modelling import sequence_kl
from rlhf_jax.evaluation.likelihood import (
    BUCKET,
    Choices,
    Continuation,
    _pad,
    block_nll,
    choice_logps,
    continuation_logps,
    scores,
)
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import sample
from rlhf_jax.inference.scoring import last_token_scores, next_token_nll
from rlhf_jax.menagerie.measurements import continuations
from rlhf_jax.models import apply

PLAIN = SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman")
PROMPTS = [
    prompt(text) for text in ("what is red?", "what?", "the fox is red.", "the bear", "blue owl")
]


def draw(prompts, *, num_samples=1, batch_size=4, response_length=6, seed=0):
    return generate(
        *language_model(),
        words(),
        prompts,
        jax.random.key(seed),
        spec=PLAIN,
        prompt_length=8,
        response_length=response_length,
        batch_size=batch_size,
        num_samples=num_samples,
    )


def test_known_text_is_generated_until_the_stop_token():
    # The prompt ends with <|assistant|> = 3, so 4, 5, ... follow; the vocabulary of 8 wraps to 0 and 1 = <|eos|>.
    model = successor(8)
    two = {"spec": PLAIN, "prompt_length": 8, "batch_size": 4}
    (one,), _ = generate(
        model, {}, words(), PROMPTS[:2], jax.random.key(0), response_length=6, **two
    )
    assert one.ids == (4, 5, 6, 7, 0, 1)
    assert one.finished
    assert one.length == 6
    (cut,), _ = generate(
        model, {}, words(), PROMPTS[:2], jax.random.key(0), response_length=5, **two
    )
    assert cut.ids == (4, 5, 6, 7, 0)
    assert not cut.finished


def test_text_is_without_the_stop_token():
    for (one,) in draw(PROMPTS, response_length=40):
        assert one.text == words().decode(one.ids[:-1] if one.finished else one.ids)
        assert "<|eos|>" not in one.text
        assert one.finished == (one.ids[-1] == words().eos_id)


def test_a_last_batch_that_is_filled_up_changes_nothing():
    five = draw(PROMPTS)
    assert len(five) == 5
    assert five[:4] == draw(PROMPTS[:4])
    assert draw(PROMPTS) == five
    assert draw(PROMPTS, seed=1) != five


def test_samples_of_a_prompt_stay_together():
    # Two prompts per batch of five rows with two samples each; the odd row of the batch is not used.
    drawn = draw(PROMPTS, num_samples=2, batch_size=5)
    assert [len(few) for few in drawn] == [2] * 5
    assert drawn[:2] == draw(PROMPTS[:2], num_samples=2, batch_size=4)


def test_prompts_are_left_padded_and_too_long_ones_are_refused():
    encoded = encode_prompts(words(), PROMPTS[:2], 6)
    np.testing.assert_array_equal(encoded.mask_NP.sum(axis=1), [6, 4])
    assert encoded.mask_NP[:, -1].all()
    assert (encoded.tokens_NP[:, -1] == words().assistant_id).all()
    assert encode_prompts(words(), PROMPTS[:2], 40).tokens_NP.shape == (2, 16)
    with pytest.raises(ValueError, match=r"prompt 0 has 6 tokens, prompt_length is 5"):
        encode_prompts(words(), PROMPTS, 5)
    with pytest.raises(ValueError, match="none"):
        encode_prompts(words(), [], 5)


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
    assert likelihood._shared([item.context for item in items]) == begin[:read]
    np.testing.assert_allclose(
        continuation_logps(*language_model(), items, batch_size=2), one_by_one(items), rtol=1e-5
    )


def test_continuations_that_cannot_be_judged_are_refused():
    with pytest.raises(ValueError, match=r"text 0 has 60 \+ 5 tokens, the model's context is 64"):
        continuation_logps(*language_model(), [Continuation((5,) * 60, (6,) * 5)], batch_size=1)
    with pytest.raises(ValueError, match="text 1: context has 0 tokens"):
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
    theirs = continuation_logps(*language_model(1), samples(), batch_size=2)
    np.testing.assert_allclose(other, one_by_one(samples()) - theirs, rtol=1e-4)
    assert np.abs(other).min() > 0.01


def test_samples_have_the_log_probability_with_which_they_were_drawn():
    encoded = encode_prompts(words(), PROMPTS[:4], 8)
    drawn = sample(
        *language_model(),
        *encoded,
        jax.random.fold_in(jax.random.key(0), 0),
        spec=PLAIN,
        response_length=6,
        stop_tokens=(words().eos_id,),
        pad_id=words().pad_id,
    )
    np.testing.assert_allclose(one_by_one(samples()[:4]), drawn.logp_BR.sum(axis=1), rtol=1e-4)


def test_scores_are_read_at_the_last_response_token():
    model, params = scalar_model()
    measured = scores(model, params, samples(), batch_size=3)
    for score, (context, ids) in zip(measured, samples(), strict=True):
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


def test_successor_is_a_language_model():
    model = successor(8)
    hidden, _ = apply(model, {}, jnp.array([[2]]), jnp.array([[1]]), method="hidden")
    assert apply(model, {}, hidden, method="unembed").argmax() == 3
    assert model == successor(8)
    assert config(8).vocab_size == 8
