"""Decoding rules on literals (OpenAI's unit tests, both nuclei); the sampler against its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import EXCLUDED, SamplingSpec

LOGITS = np.array([[1.0, 1.01, 1.001, 0.0, 0.0, 0.0, 2.0]], np.float32)
# Cumulative mass .36, .705, .86, .96, 1.
FIVE = np.log(np.array([[0.155, 0.36, 0.04, 0.345, 0.1]], np.float32))


def spec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman"):
    return SamplingSpec(temperature=temperature, top_k=top_k, top_p=top_p, nucleus=nucleus)


def kept(filtered):
    return set(np.flatnonzero(np.asarray(filtered)[0] > EXCLUDED / 2))


@pytest.mark.parametrize(
    ("k", "tokens"),
    [
        (1, {6}),
        (2, {6, 1}),
        (3, {6, 1, 2}),
        (4, {6, 1, 2, 0}),
        (5, set(range(7))),
        (99, set(range(7))),
    ],
)
def test_top_k_keeps_ties(k, tokens):
    assert kept(decoding.top_k_filter(LOGITS, k)) == tokens


@pytest.mark.parametrize(
    ("p", "openai", "holtzman"),
    [
        (1.0, {0, 1, 2, 3, 4, 5, 6}, {0, 1, 2, 3, 4, 5, 6}),
        (0.7, {1, 2, 6}, {0, 1, 2, 6}),
        (0.6, {1, 6}, {1, 2, 6}),
        (0.5, {6}, {1, 6}),
        (0.0, {6}, {6}),
    ],
)
def test_nucleus_conventions_differ_by_the_crossing_token(p, openai, holtzman):
    assert kept(decoding.nucleus_filter(LOGITS, p, nucleus="openai")) == openai
    assert kept(decoding.nucleus_filter(LOGITS, p, nucleus="holtzman")) == holtzman


@pytest.mark.parametrize(
    ("p", "size"),
    [(0.3, 1), (0.4, 2), (0.5, 2), (0.7, 2), (0.71, 3), (0.9, 4), (0.95, 4), (1.0, 5)],
)
def test_nucleus_sizes(p, size):
    assert len(kept(decoding.nucleus_filter(FIVE, p, nucleus="holtzman"))) == size


@pytest.mark.parametrize("nucleus", ["holtzman", "openai"])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.62, 0.9, 0.999])
def test_the_nucleus_is_that_of_a_sorted_cumulative_sum_with_ties(nucleus, p):
    logits = (
        np.random.default_rng(0).integers(-6, 7, (40, 97)).astype(np.float32) / 2
    )  # about four tokens on every value
    logits[0], logits[1, 5] = 1.0, -np.inf
    filtered = np.asarray(decoding.nucleus_filter(logits, p, nucleus=nucleus))
    for row, found in zip(logits.astype(np.float64), filtered, strict=True):
        order = np.argsort(-row, kind="stable")
        mass = np.cumsum(np.exp(row[order]) / np.exp(row).sum())
        before = np.concatenate([[0.0], mass[:-1]])
        last = max(1, (before < p - 1e-9 if nucleus == "holtzman" else mass <= p + 1e-9).sum()) - 1
        assert kept(found[None]) == set(np.flatnonzero(row >= row[order[last]]))


def test_filters_leave_kept_logits_alone_and_rows_independent():
    both = np.concatenate([LOGITS, LOGITS[:, ::-1]])
    filtered = np.asarray(decoding.nucleus_filter(both, 0.6, nucleus="openai"))
    np.testing.assert_array_equal(filtered[0], filtered[1, ::-1])
    np.testing.assert_array_equal(filtered[0, [1, 6]], LOGITS[0, [1, 6]])


def test_temperature_then_top_k_then_nucleus():
    # At temperature 0.5 the logits double; of the two that top-k leaves, the first has
    # 1/(1+e^-1.98) = .879.
    logits = decoding.sampling_logits(LOGITS, spec(temperature=0.5, top_k=2))
    np.testing.assert_allclose(logits[0, [6, 1]], [4.0, 2.02])
    assert kept(logits) == {6, 1}
    assert kept(decoding.sampling_logits(LOGITS, spec(temperature=0.5, top_k=2, top_p=0.87))) == {6}
    assert kept(decoding.sampling_logits(LOGITS, spec(temperature=0.5, top_k=2, top_p=0.89))) == {
        6,
        1,
    }
    # Without top-k the same mass needs more tokens: the nucleus is taken after renormalisation.
    assert len(kept(decoding.sampling_logits(LOGITS, spec(temperature=0.5, top_p=0.89)))) == 4


def test_greedy_is_the_limit_of_temperature():
    tied = np.array([[0.0, 3.0, 3.0]], np.float32)

    logits = decoding.sampling_logits(tied, spec(temperature=0.0))
    assert kept(logits) == {1}
    np.testing.assert_array_equal(decoding.log_prob(logits, jnp.array([1])), [0.0])
    np.testing.assert_array_equal(decoding.entropy(logits), [0.0])


def test_log_prob_and_entropy_by_hand():
    logits = np.array([[2, 2, 2], [1, 0, -np.inf]], np.float32)
    expected = [np.log(1 / 3), np.log(np.e / (np.e + 1))]
    np.testing.assert_allclose(decoding.log_prob(logits, jnp.array([2, 0])), expected, rtol=1e-6)
    logits[1, 2] = EXCLUDED
    p = 1 / (1 + np.exp(-1))
    binary = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(decoding.entropy(logits), [np.log(3), binary], rtol=1e-6)


def test_entropy_of_a_truncated_distribution_has_a_finite_gradient():
    gradient = jax.grad(
        lambda x: decoding.entropy(decoding.sampling_logits(x, spec(top_k=2))).sum()
    )(jnp.asarray(LOGITS))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(np.asarray(gradient)[0, [0, 2, 3, 4, 5]], 0.0)


@pytest.mark.parametrize("vocab", [2, 512, 700])
def test_inverse_cdf_equals_searching_the_cumulative_sum(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(0, 2, (64, vocab)).astype(np.float32)
    logits[:, rng.permutation(vocab)[: vocab // 3]] = EXCLUDED
    uniform = rng.uniform(size=64).astype(np.float32)
    weight = np.exp(logits.astype(np.float64))
    cumulative = weight.cumsum(1) / weight.sum(1, keepdims=True)
    expected = (cumulative <= uniform[:, None]).sum(1)
    np.testing.assert_array_equal(decoding.inverse_cdf(uniform, logits), expected)


def test_inverse_cdf_never_returns_an_impossible_token():
    vocab, last = 700, np.nextafter(np.float32(1), np.float32(0))
    rng = np.random.default_rng(0)
    logits = np.full((400, vocab), EXCLUDED, np.float32)
    for row in logits:
        possible = rng.permutation(vocab)[: rng.integers(1, 5)]
        row[possible] = rng.normal(0, 20, len(possible))
    uniform = np.tile(np.array([0.0, last, 0.5, np.finfo(np.float32).tiny], np.float32), 100)
    tokens = np.asarray(decoding.inverse_cdf(uniform, logits))
    assert (logits[np.arange(400), tokens] > EXCLUDED).all()


def test_target_rounded_up_to_the_total_finds_the_last_possible_column():
    weight = jnp.array([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.0]])
    column, before = decoding._first_beyond(weight, jnp.array([3.0, 0.6]))
    np.testing.assert_array_equal(column, [1, 2])
    np.testing.assert_array_equal(before, [1.0, 0.0])


def test_categorical_follows_its_law_and_its_key():
    probability = np.array([0.5, 0.2, 0.15, 0.1, 0.04, 0.009, 0.001])
    logits = jnp.tile(jnp.log(jnp.asarray(probability, jnp.float32))[None], (50_000, 1))

    @jax.jit
    def draw(key, logits):
        return decoding.inverse_cdf(jax.random.uniform(key, logits.shape[:1]), logits)

    tokens = np.asarray(draw(jax.random.key(0), logits))
    counts = np.bincount(tokens, minlength=7)
    assert stats.chisquare(counts, probability * len(tokens)).pvalue > 0.001
    assert tokens.dtype == np.int32
    assert (np.asarray(draw(jax.random.key(1), logits)) != tokens).any()


def test_truncates():
    assert not decoding.truncates(spec(temperature=0.7))
    assert decoding.truncates(spec(temperature=0.0))
    assert decoding.truncates(spec(top_k=1))
    assert decoding.truncates(spec(top_p=0.999))


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 1.1},
        {"nucleus": "x"},
    ],
)
def test_impossible_specs_name_the_field(change):
    with pytest.raises(ValueError, match=f"sampling.{next(iter(change))} = "):
        spec(**change)
