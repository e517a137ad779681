"""The pooled read-out: what a score depends on, and what it learns that a last state cannot."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.models import LanguageModel, ScalarModel, apply, init_params, llama
from rlhf_jax.models.heads import scalar_params_from, shift_scores
from rlhf_jax.models.lora import combine, split_heads
from rlhf_jax.models.read_out import repeated, running_sum_and_max, surprise

UNTIED = llama(
    vocab_size=13,
    context_length=16,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    ffw_width=24,
    rope_base=100.0,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
UNTIED = dataclasses.replace(UNTIED, read_out="pooled")
TIED = dataclasses.replace(UNTIED, tie_embeddings=True)
MODEL = ScalarModel(TIED)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 13, (3, 10)).astype(np.int32)
ONES = np.ones_like(TOKENS)


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, init_params(MODEL, jax.random.key(0)))


@jax.jit
def scores(params, tokens, segments):
    return apply(MODEL, params, tokens, segments)


def test_a_later_token_changes_no_earlier_score(params):
    changed = TOKENS.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 13
    before, after = scores(params, TOKENS, ONES), scores(params, changed, ONES)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, 6:] > 1e-4).all()


def test_texts_in_one_row_score_as_they_do_alone_wherever_padding_lies(params):
    alone = np.asarray(scores(params, TOKENS, ONES))
    row = np.concatenate([[7, 7], TOKENS[0, :5], [3], TOKENS[1, :4], [5]])[None].astype(np.int32)
    segments = np.array([[0, 0, 1, 1, 1, 1, 1, 0, 2, 2, 2, 2, 0]], np.int32)
    packed = np.asarray(scores(params, row, segments))[0]
    np.testing.assert_allclose(packed[2:7], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[8:12], alone[1, :4], atol=1e-5)


def test_scores_start_near_zero_and_every_part_of_the_head_learns():
    wide = dataclasses.replace(TIED, width=64, head_width=32)
    params = init_params(ScalarModel(wide), jax.random.key(1))
    score_BT = apply(ScalarModel(wide), params, TOKENS, ONES)
    assert 0.05 < float(jnp.sqrt(jnp.square(score_BT).mean())) < 2.0
    below, heads = split_heads(params)
    assert (set(below), set(heads)) == ({"trunk"}, {"read_out", "head"})

    def loss(params):
        return jnp.square(apply(ScalarModel(wide), params, TOKENS, ONES) - 1.0).mean()

    grads = jax.grad(loss)(params)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_logits_in_parts_give_the_same_scores(config, monkeypatch):
    language = init_params(LanguageModel(config), jax.random.key(2))
    params = scalar_params_from(language, jax.random.key(3), config)
    assert ("lm_head" in params) == (not config.tie_embeddings)
    fresh = init_params(ScalarModel(config), jax.random.key(3))
    assert jax.tree.structure(fresh) == jax.tree.structure(params)
    whole = apply(ScalarModel(config), params, TOKENS, ONES)
    monkeypatch.setattr("rlhf_jax.models.logits.MOST_LOGITS", 100)
    np.testing.assert_allclose(apply(ScalarModel(config), params, TOKENS, ONES), whole, atol=1e-6)


def test_shift_scores_is_an_affine_map_of_pooled_scores(params):
    shifted = scores(shift_scores(params, 2.0, -3.0), TOKENS, ONES)
    np.testing.assert_allclose(shifted, 2 * scores(params, TOKENS, ONES) - 3, atol=1e-5)


def test_surprise_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25]]])) + 3.0
    nll, gap, entropy = (float(x[0, 0]) for x in surprise(logits, jnp.array([[1]])))
    assert nll == pytest.approx(np.log(4), abs=1e-5)
    assert gap == pytest.approx(np.log(2), abs=1e-5)
    assert entropy == pytest.approx(1.5 * np.log(2), abs=1e-5)


def test_repeated_tokens_and_pairs_by_hand():
    tokens = jnp.array([[9, 1, 2, 1, 2, 2, 1, 1]])
    segments = jnp.array([[0, 1, 1, 1, 1, 1, 2, 2]])
    flags = repeated(tokens, segments)[0].T
    np.testing.assert_array_equal(flags[0], [0, 0, 0, 1, 1, 1, 0, 1])
    np.testing.assert_array_equal(flags[1], [0, 0, 0, 0, 1, 0, 0, 0])


def test_sums_and_maxima_begin_anew_with_every_segment():
    x = jnp.array([[9.0, 1.0, 3.0, 2.0, 9.0, 1.0, 5.0]])[..., None]
    segments = jnp.array([[0, 1, 1, 1, 0, 2, 2]])
    total, largest = running_sum_and_max(x, segments)
    np.testing.assert_allclose(total[0, [1, 2, 3, 5, 6], 0], [1, 4, 6, 1, 6])
    np.testing.assert_allclose(largest[0, [1, 2, 3, 5, 6], 0], [1, 3, 3, 1, 5])


def held_out_accuracy(read_out):
    """Train a head on a random trunk to say whether a text has more of token 3 than of token 4."""
    model = ScalarModel(dataclasses.replace(TIED, read_out=read_out))
    frozen, heads = split_heads(init_params(model, jax.random.key(0)))
    tokens = np.random.default_rng(1).integers(0, 13, (1024, 16)).astype(np.int32)
    balance = (tokens == 3).sum(1) - (tokens == 4).sum(1)
    tokens, sign = tokens[balance != 0], np.sign(balance[balance != 0])
    adam = optax.adam(1e-2)

    def score(heads, tokens):
        return apply(model, combine(frozen, heads), tokens, jnp.ones_like(tokens))[:, -1]

    @jax.jit
    def step(heads, state):
        def loss(heads):
            return jax.nn.softplus(-sign[:300] * score(heads, tokens[:300])).mean()

        updates, state = adam.update(jax.grad(loss)(heads), state)
        return optax.apply_updates(heads, updates), state

    state = adam.init(heads)
    for _ in range(60):
        heads, state = step(heads, state)
    return float((np.sign(score(heads, tokens[300:])) == sign[300:]).mean())


def test_a_frozen_trunk_s_last_state_cannot_count_and_pooled_states_can():
    assert held_out_accuracy("pooled") > 0.9
    assert held_out_accuracy("last_token") < 0.75
