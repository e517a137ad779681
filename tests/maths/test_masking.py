"""Masked means, whitening, lengths and positions, against hand-worked and OpenAI numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.maths import masking
from rlhf_jax.maths.masking import Mean

GRID = np.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]], np.float32)
RAGGED = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]], bool)


def test_mean_is_a_pair_that_merges_by_entries_not_by_batches():
    a = masking.mean(jnp.array([1.0, 2.0, 9.0]), jnp.array([True, True, False]))
    b = masking.mean(jnp.array([6.0, 9.0, 9.0]), jnp.array([True, False, False]))
    assert (float(a.total), float(a.weight)) == (3.0, 2.0)
    assert (
        float(masking.value(masking.merge(a, b))) == 3.0
    )  # the mean of the two means would be 3.75


def test_mean_of_one_batch_equals_merged_micro_batches():
    x = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    mask = np.random.default_rng(1).random((8, 5)) < 0.5
    whole = masking.value(masking.mean(jnp.asarray(x), jnp.asarray(mask)))
    pair = Mean(jnp.zeros(()), jnp.zeros(()))
    for row, row_mask in zip(x, mask, strict=True):
        pair = masking.merge(pair, masking.mean(jnp.asarray(row), jnp.asarray(row_mask)))
    np.testing.assert_allclose(masking.value(pair), whole, rtol=1e-6)
    np.testing.assert_allclose(whole, x[mask].mean(), rtol=1e-6)


def test_weights_are_weights():
    pair = masking.mean(jnp.array([1.0, 5.0]), jnp.array([3.0, 1.0]))
    assert float(masking.value(pair)) == 2.0


def test_empty_mean_is_zero_with_zero_gradient():
    def loss(x):
        return masking.value(masking.mean(x, jnp.zeros(3, bool)))

    value, gradient = jax.value_and_grad(loss)(jnp.ones(3))
    assert float(value) == 0.0
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_masked_entries_change_nothing_and_get_no_gradient(garbage):
    mask = jnp.asarray(RAGGED)
    dirty = jnp.where(mask, GRID, garbage)

    def summary(x):
        return masking.value(masking.mean(x, mask)) + jnp.sum(
            masking.whiten(x, mask, shift_mean=False) ** 2
        )

    clean_value, clean_gradient = jax.value_and_grad(summary)(jnp.asarray(GRID))
    value, gradient = jax.value_and_grad(summary)(dirty)
    assert float(value) == float(clean_value)
    np.testing.assert_array_equal(gradient, clean_gradient)
    np.testing.assert_array_equal(np.asarray(gradient)[~RAGGED], 0.0)


def test_mean_refuses_a_mask_of_another_shape():
    with pytest.raises(AssertionError, match="differ"):
        masking.mean(jnp.ones((2, 3)), jnp.ones((2, 1), bool))


def test_whiten_golden():
    everything = jnp.ones((3, 3), bool)
    np.testing.assert_allclose(
        masking.whiten(jnp.asarray(GRID), everything, shift_mean=False),
        [
            [0.0508068, 0.4381051, 0.8254034],
            [1.2127017, 1.6, 1.9872983],
            [2.3745966, 2.7618949, 3.1491932],
        ],
        atol=2e-6,
    )
    np.testing.assert_allclose(
        masking.whiten(jnp.asarray(GRID), everything, shift_mean=True),
        [
            [-1.5491932, -1.1618949, -0.7745966],
            [-0.3872983, 0.0, 0.3872983],
            [0.7745966, 1.1618949, 1.5491932],
        ],
        atol=2e-6,
    )


def test_whiten_masked_golden():
    np.testing.assert_allclose(
        masking.whiten(jnp.asarray(GRID), jnp.asarray(RAGGED), shift_mean=True),
        [[-1.3782945, -1.0475039, 0.0], [-0.3859225, 0.0, 0.0], [0.6064496, 0.9372403, 1.268031]],
        atol=2e-6,
    )


def test_whiten_has_masked_mean_zero_and_population_variance_one():
    x = np.random.default_rng(0).normal(3.0, 5.0, size=(4, 7)).astype(np.float32)
    mask = np.arange(7)[None, :] < np.array([7, 1, 3, 0])[:, None]
    out = np.asarray(masking.whiten(jnp.asarray(x), jnp.asarray(mask), shift_mean=True))
    oracle = (x - x[mask].mean()) / np.sqrt(x[mask].var() + 1e-8)
    np.testing.assert_allclose(out[mask], oracle[mask], atol=1e-5)
    np.testing.assert_array_equal(out[~mask], 0.0)
    np.testing.assert_allclose([out[mask].mean(), out[mask].var()], [0.0, 1.0], atol=1e-5)


def test_whiten_of_a_constant_is_finite():
    out = masking.whiten(jnp.full((2, 2), 3.0), jnp.ones((2, 2), bool), shift_mean=True)
    np.testing.assert_array_equal(out, np.zeros((2, 2)))


def test_length_mask():
    expected = [[False, False, False], [True, False, False], [True, True, True]]
    np.testing.assert_array_equal(masking.length_mask(jnp.array([0, 1, 3]), 3), expected)


def test_last_true():
    x = jnp.array([[True, True, False], [True, False, True], [False, False, False]])
    expected = [[False, True, False], [False, False, True], [False, False, False]]
    np.testing.assert_array_equal(masking.last_true(x), expected)


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([0, 0, 1, 1, 1], [0, 0, 0, 1, 2]),  # left padding
        ([1, 1, 1, 0, 0], [0, 1, 2, 0, 0]),  # right padding
        ([1, 1, 2, 2, 3], [0, 1, 0, 1, 0]),  # packed
        ([1, 0, 0, 1, 1], [0, 0, 0, 1, 2]),  # a gap inside a segment
        ([0, 2, 0, 2, 5], [0, 0, 0, 1, 0]),  # ids need not be consecutive
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ],
)
def test_positions_by_hand(segments, expected):
    positions = masking.positions(jnp.asarray([segments], jnp.int32))
    assert positions.dtype == jnp.int32
    np.testing.assert_array_equal(positions, [expected])


def test_positions_equal_a_count_of_earlier_tokens():
    rng = np.random.default_rng(0)
    segments = np.cumsum(rng.random((16, 24)) < 0.3, axis=1) + 1
    segments = np.where(rng.random((16, 24)) < 0.3, 0, segments).astype(np.int32)
    expected = [
        [row[:t].tolist().count(row[t]) if row[t] else 0 for t in range(row.size)]
        for row in segments
    ]
    np.testing.assert_array_equal(masking.positions(jnp.asarray(segments)), expected)
