"""Generation and likelihoods: against a model whose text is known, and against one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_support import config, language_model, prompt, scalar_model, successor, words

from rlhf_jax.evaluation.generate import Encoded, Generation, encode_prompts, generate
from rlhf_jax.evaluation.language_modelling import sequence_kl
from rlhf_jax.evaluation.likelihood import (
    Choices,
    Continuation,
    block_nll,
    choice_logps,
    continuation_logps,
    encode_responses,
    scores,
    sequence_logps,
)
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.scoring import last_token_scores, next_token_nll
from rlhf_jax.models import apply

PLAIN = SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman")
PROMPTS = [prompt(text) for text in ("what is red?", "what?", "the fox is red.", "the bear", "blue owl")]


def draw(prompts, *, num_samples=1, batch_size=4, response_length=6, seed=0):
    return generate(
        *language_model(), words(), prompts, jax.random.key(seed), spec=PLAIN, prompt_length=8,
        response_length=response_length, batch_size=batch_size, num_samples=num_samples,
    )  # fmt: skip


def test_known_text_is_generated_until_the_stop_token():
    # The prompt ends with <|assistant|> = 3, so 4, 5, ... follow; the vocabulary of 8 wraps to 0 and 1 = <|eos|>.
    model = successor(8)
    two = {"spec": PLAIN, "prompt_length": 8, "batch_size": 4}
    (one,), _ = generate(model, {}, words(), PROMPTS[:2], jax.random.key(0), response_length=6, **two)
    assert one.ids == (4, 5, 6, 7, 0, 1)
    assert one.finished
    assert one.length == 6
    (cut,), _ = generate(model, {}, words(), PROMPTS[:2], jax.random.key(0), response_length=5, **two)
    assert cut.ids == (4, 5, 6, 7, 0)
    assert not cut.finished


def test_text_is_without_the_stop_token():
    for (one,) in draw(PROMPTS, response_length=40):
        assert one.text == words().decode(one.ids[:-1] if one.finished else one.ids)
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
    with pytest.raises(ValueError, match=r"prompt 0 has 6 tokens, prompt_length is 5"):
        encode_prompts(words(), PROMPTS, 5)
    with pytest.raises(ValueError, match="none"):
        encode_prompts(words(), [], 5)


def one_by_one(items):
    model, params = language_model()
    totals = []
    for context, ids in items:
        row = jnp.asarray([[*context, *ids]])
        nll_BT, _ = next_token_nll(model, params, row, jnp.ones_like(row))
        totals.append(-float(nll_BT[0, len(context) :].sum()))
    return totals


def test_continuations_equal_one_at_a_time_without_padding():
    items = [
        Continuation((5, 6), (7, 8, 9)), Continuation((5,), (6,)), Continuation((5, 6, 7), (8,)),
        Continuation((9, 5), (5, 5, 5, 5)), Continuation((12, 5), (6, 7)),
    ]  # fmt: skip
    for batch_size in (2, 5):
        logp_N, length_N = continuation_logps(*language_model(), items, batch_size=batch_size)
        np.testing.assert_allclose(logp_N, one_by_one(items), rtol=1e-5)
        np.testing.assert_array_equal(length_N, [3, 1, 1, 4, 2])


def test_continuations_that_cannot_be_judged_are_refused():
    with pytest.raises(ValueError, match="65 tokens, the model's context is 64"):
        continuation_logps(*language_model(), [Continuation((5,) * 60, (6,) * 5)], batch_size=1)
    with pytest.raises(ValueError, match="text 1: context has 0 tokens"):
        continuation_logps(
            *language_model(), [Continuation((5,), (6,)), Continuation((), (6,))], batch_size=1
        )


def test_choices_come_back_by_question():
    questions = [Choices((5, 6), [" fox", " owl blue"]), Choices((7,), [" red"])]
    (first, lengths), (second, _) = choice_logps(*language_model(), words(), questions, batch_size=4)
    ids = [words().encode(text, special=False) for text in (" fox", " owl blue", " red")]
    expected = one_by_one(zip([(5, 6), (5, 6), (7,)], ids, strict=True))
    np.testing.assert_allclose([*first, *second], expected, rtol=1e-5)
    np.testing.assert_array_equal(lengths, [1, 2])


def test_blocks_count_predicted_tokens():
    tokens_NT = np.array([[5, 6, 7, 8], [9, 5, 0, 0], [5, 5, 5, 5]], np.int32)
    segments_NT = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 2, 2]], np.int32)
    nll_N, count_N = block_nll(*language_model(), tokens_NT, segments_NT, batch_size=2)
    np.testing.assert_array_equal(count_N, [3, 1, 2])
    np.testing.assert_allclose(
        nll_N[:2], np.negative(one_by_one([((5,), (6, 7, 8)), ((9,), (5,))])), rtol=1e-5
    )
    np.testing.assert_allclose(nll_N[2], -2 * one_by_one([((5,), (5,))])[0], rtol=1e-5)


def responses_to_prompts():
    drawn = [few[0] for few in draw(PROMPTS)]
    return encode_prompts(words(), PROMPTS, 8), encode_responses(drawn, 6), drawn


def test_a_policy_does_not_diverge_from_itself_and_does_from_another():
    prompts, responses, _ = responses_to_prompts()
    same = sequence_kl(language_model(), language_model(), prompts, responses, spec=PLAIN, batch_size=4)
    np.testing.assert_array_equal(same, np.zeros(5))
    other = sequence_kl(language_model(), language_model(1), prompts, responses, spec=PLAIN, batch_size=4)
    ours = sequence_logps(*language_model(), prompts, responses, spec=PLAIN, batch_size=5)
    theirs = sequence_logps(*language_model(1), prompts, responses, spec=PLAIN, batch_size=5)
    np.testing.assert_allclose(other, ours - theirs, rtol=1e-5)
    assert np.abs(other).min() > 0.01
    with pytest.raises(ValueError, match="truncates"):
        sequence_kl(
            language_model(), language_model(1), prompts, responses, batch_size=4,
            spec=SamplingSpec(temperature=1.0, top_k=3, top_p=1.0, nucleus="holtzman"),
        )  # fmt: skip


def test_sequence_logps_are_those_of_the_response_alone():
    prompts, responses, drawn = responses_to_prompts()
    measured = sequence_logps(*language_model(), prompts, responses, spec=PLAIN, batch_size=4)
    items = [(tokens[mask], one.ids) for tokens, mask, one in zip(*prompts, drawn, strict=True)]
    np.testing.assert_allclose(measured, one_by_one(items), rtol=1e-4)


def test_scores_are_read_at_the_last_response_token():
    prompts, responses, drawn = responses_to_prompts()
    model, params = scalar_model()
    measured = scores(model, params, prompts, responses, batch_size=3)
    for row, one in enumerate(drawn):
        ids = jnp.asarray([[*prompts.tokens_NP[row][prompts.mask_NP[row]], *one.ids]])
        np.testing.assert_allclose(
            measured[row], last_token_scores(model, params, ids, jnp.ones_like(ids))[0], rtol=1e-4
        )


def test_encoded_responses_do_not_read_token_values():
    encoded = encode_responses([Generation("", (0, 1), True), Generation("", (0, 0, 0), False)], 3)
    assert isinstance(encoded, Encoded)
    np.testing.assert_array_equal(encoded.mask_NP, [[True, True, False], [True, True, True]])


def test_successor_is_a_language_model():
    model = successor(8)
    hidden, _ = apply(model, {}, jnp.array([[2]]), jnp.array([[1]]), method="hidden")
    assert apply(model, {}, hidden, method="unembed").argmax() == 3
    assert model == successor(8)
    assert config(8).vocab_size == 8
