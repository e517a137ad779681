"""Generation: against a model whose text is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation_support import PROMPTS, config, draw, successor, words

from rlhf_jax.evaluation.generate import GenerationSettings, encode_prompts, generate, left_pad
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.models import apply


def test_known_text_is_generated_until_the_stop_token():
    # The prompt ends with <|assistant|> = 3, so 4, 5, ... follow; the vocabulary of 8 wraps to 0
    # and 1 = <|eos|>.
    model = successor(8)
    settings = GenerationSettings(PLAIN, prompt_length=8, response_length=6, batch_size=4)
    (one,), _ = generate(model, {}, words(), PROMPTS[:2], jax.random.key(0), settings)
    assert one.ids == (4, 5, 6, 7, 0, 1)
    assert one.finished
    assert one.length == 6
    settings = settings._replace(response_length=5)
    (cut,), _ = generate(model, {}, words(), PROMPTS[:2], jax.random.key(0), settings)
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
    # Two prompts per batch of five rows with two samples each; the odd row of the batch is not
    # used.
    drawn = draw(PROMPTS, num_samples=2, batch_size=5)
    assert [len(few) for few in drawn] == [2] * 5
    assert drawn[:2] == draw(PROMPTS[:2], num_samples=2, batch_size=4)


def test_prompts_are_left_padded_and_too_long_ones_are_refused():
    contexts = encode_prompts(words(), PROMPTS[:2], 6)
    padded = left_pad(contexts, words().pad_id, 6)
    np.testing.assert_array_equal(padded.mask_NP.sum(axis=1), [6, 4])
    assert padded.mask_NP[:, -1].all()
    assert (padded.tokens_NP[:, -1] == words().assistant_id).all()
    assert left_pad(contexts, words().pad_id, 40).tokens_NP.shape == (2, 16)
    with pytest.raises(ValueError, match=r"prompt 0 has 6 tokens, prompt_length is 5"):
        encode_prompts(words(), PROMPTS, 5)
    with pytest.raises(ValueError, match="none"):
        encode_prompts(words(), [], 5)


def test_successor_is_a_language_model():
    model = successor(8)
    hidden, _ = apply(model, {}, jnp.array([[2]]), jnp.array([[1]]), method="hidden")
    assert apply(model, {}, hidden, method="unembed").argmax() == 3
    assert model == successor(8)
    assert config(8).vocab_size == 8
