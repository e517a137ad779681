"""Check scalar and class heads: where they start and what they share with a language model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.models import Classifier, LanguageModel, ScalarModel, apply, gpt, init_params
from rlhf_jax.models.heads import (
    classifier_params_from,
    grow_vocabulary,
    scalar_params_from,
    shift_scores,
)

CONFIG = gpt(
    vocab_size=7,
    context_length=8,
    width=8,
    num_layers=1,
    num_heads=2,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
UNTIED = dataclasses.replace(CONFIG, tie_embeddings=False)
TOKENS = np.array([[1, 2, 3, 4, 5]], np.int32)
ONES = np.ones_like(TOKENS)


@pytest.fixture(scope="module")
def language():
    return init_params(LanguageModel(UNTIED), jax.random.key(0))


@pytest.fixture(scope="module")
def reward(language):
    return scalar_params_from(language, jax.random.key(1), UNTIED)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_scalar_head_starts_with_variance_one_over_width_plus_one():
    wide = dataclasses.replace(CONFIG, width=2047, head_width=2, ffw_width=1)
    head = init_params(ScalarModel(wide), jax.random.key(0))["head"]
    assert head["kernel"].shape == (2047, 1)
    assert np.var(head["kernel"]) == pytest.approx(1 / 2048, rel=0.1)
    assert_same(head["bias"], np.zeros(1, np.float32))


def test_trees_share_the_trunk_by_name(language, reward):
    assert set(language) == {"trunk", "lm_head"}
    assert set(init_params(LanguageModel(CONFIG), jax.random.key(0))) == {"trunk"}
    assert set(reward) == {"trunk", "head"}
    assert_same(reward["trunk"], language["trunk"])
    fresh = init_params(ScalarModel(UNTIED), jax.random.key(1))
    assert jax.tree.structure(fresh) == jax.tree.structure(reward)
    assert_same(fresh["head"], reward["head"])


def test_children_survive_the_donation_of_their_parent(language, reward):
    consume = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    parent = jax.tree.map(jnp.copy, language)
    scalar = scalar_params_from(parent, jax.random.key(1), UNTIED)
    classes = classifier_params_from(parent, jax.random.key(2), UNTIED, 3)
    consume(parent)
    assert_same(scalar, reward)
    assert_same(classes["trunk"], language["trunk"])


def test_scores_are_float32_of_every_position(reward):
    model = ScalarModel(UNTIED)
    score_BT = apply(model, reward, TOKENS, ONES)
    assert score_BT.shape == (1, 5)
    assert score_BT.dtype == jnp.float32


def test_scalar_model_is_the_head_on_the_language_model_s_hidden_states(language, reward):
    hidden, _ = apply(LanguageModel(UNTIED), language, TOKENS, ONES, method="hidden")
    expected = np.asarray(hidden, np.float64) @ np.asarray(reward["head"]["kernel"], np.float64)
    np.testing.assert_allclose(
        apply(ScalarModel(UNTIED), reward, TOKENS, ONES), expected[..., 0], atol=1e-5
    )


def test_shift_scores_is_an_affine_map_of_the_score(reward):
    model = ScalarModel(UNTIED)
    once = shift_scores(reward, 2.0, -3.0)
    twice = shift_scores(once, 0.5, 1.0)  # 0.5 (2 s - 3) + 1
    score = np.asarray(apply(model, reward, TOKENS, ONES))
    np.testing.assert_allclose(apply(model, once, TOKENS, ONES), 2 * score - 3, atol=1e-5)
    np.testing.assert_allclose(apply(model, twice, TOKENS, ONES), score - 0.5, atol=1e-5)
    assert once["trunk"] is reward["trunk"]


def test_new_tokens_start_as_the_mean_of_the_known_ones(language):
    """Of 7 rows 5 have tokens: growing to 9 fills the two spare rows first, in both matrices."""
    config, grown = grow_vocabulary(UNTIED, language, known=5, size=9)
    assert config.vocab_size == 9
    for before, after in (
        (language["trunk"]["embedding"], grown["trunk"]["embedding"]),
        (language["lm_head"]["kernel"].T, grown["lm_head"]["kernel"].T),
    ):
        assert after.shape == (9, 8)
        assert_same(after[:5], before[:5])
        np.testing.assert_allclose(after[5:], np.tile(before[:5].mean(0), (4, 1)), atol=1e-7)
    assert grow_vocabulary(UNTIED, language, known=7, size=7) == (UNTIED, language)


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_classifier_gives_classes_and_the_language_model_s_logits(config):
    language = init_params(LanguageModel(config), jax.random.key(3))
    model = Classifier(config, 3)
    params = classifier_params_from(language, jax.random.key(4), config, 3)
    classes_BTC, logits_BTV = apply(model, params, TOKENS, ONES)
    assert classes_BTC.shape == (1, 5, 3)
    expected, _ = apply(LanguageModel(config), language, TOKENS, ONES)
    np.testing.assert_allclose(logits_BTV, expected, atol=1e-6)
    assert jax.tree.structure(params) == jax.tree.structure(init_params(model, jax.random.key(5)))


def test_modules_are_values():
    assert LanguageModel(CONFIG) == LanguageModel(dataclasses.replace(UNTIED, tie_embeddings=True))
    assert hash(ScalarModel(CONFIG)) == hash(ScalarModel(CONFIG))
    assert Classifier(CONFIG, 2) != Classifier(CONFIG, 3)
