"""Where predictions meet tokens: alignment, padding, and what a value or a score may have seen."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.inference import scoring
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.scoring import (
    classify_texts,
    last_token_scores,
    next_token,
    next_token_nll,
    response_logps,
    response_scores,
    response_values,
)
from rlhf_jax.models import (
    Classifier,
    LanguageModel,
    ScalarModel,
    TransformerConfig,
    apply,
    init_params,
    llama,
)

CONFIG = llama(
    vocab_size=9,
    context_length=16,
    width=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    ffw_width=12,
    rope_base=100.0,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)

WARM = dataclasses.replace(PLAIN, temperature=0.7)
PROMPT = np.array([[0, 0, 2, 3], [5, 8, 6, 2], [0, 3, 3, 4]], np.int32)
PROMPT_MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
RESPONSE = np.array([[4, 4, 1, 0, 0], [7, 6, 5, 4, 3], [1, 0, 0, 0, 0]], np.int32)
RESPONSE_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], bool)
BATCH = (PROMPT, PROMPT_MASK, RESPONSE, RESPONSE_MASK)


def random_like(module, seed=0):
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0)))
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        treedef, [jnp.asarray(rng.normal(0.2, 0.4, x.shape), x.dtype) for x in leaves]
    )


LANGUAGE, SCALAR = LanguageModel(CONFIG), ScalarModel(CONFIG)


@pytest.fixture(scope="module")
def params():
    return random_like(LANGUAGE)


@pytest.fixture(scope="module")
def scalar():
    return random_like(SCALAR, seed=1)


logps = jax.jit(functools.partial(response_logps, LANGUAGE), static_argnames="spec")
values = jax.jit(functools.partial(response_values, SCALAR))
scores = jax.jit(functools.partial(response_scores, SCALAR))
row_scores = jax.jit(functools.partial(last_token_scores, SCALAR))
losses = jax.jit(functools.partial(next_token, LANGUAGE))
logits_of = jax.jit(lambda params, tokens, segments: apply(LANGUAGE, params, tokens, segments)[0])


class Successor(nn.Module):
    """A language model that is certain of "previous token + 1", modulo 10."""

    config: TransformerConfig

    def hidden(self, tokens_BT, segments_BT, *, cache=None, deterministic=True):
        return jax.nn.one_hot((tokens_BT + 1) % 10, 10), cache

    def unembed(self, hidden):
        return 100.0 * hidden


def test_predictions_are_aligned_with_the_tokens_they_predict():
    model, ones = Successor(CONFIG), np.ones((2, 2), bool)
    prompt, response = np.array([[5, 0], [4, 3]]), np.array([[1, 2, 3, 4], [4, 5, 6, 7]])
    mask = np.ones_like(response, bool)
    logp_BR, entropy_BR = response_logps(model, {}, Texts(prompt, ones, response, mask), spec=PLAIN)
    np.testing.assert_allclose(logp_BR, 0.0, atol=1e-6)
    np.testing.assert_allclose(entropy_BR, 0.0, atol=1e-6)
    wrong, _ = response_logps(model, {}, Texts(prompt, ones, response + 1, mask), spec=PLAIN)
    np.testing.assert_array_equal(np.asarray(wrong)[:, 0], -100.0)  # only the first does not follow
    nll_BT, valid_BT = next_token_nll(model, {}, *Texts(prompt, ones, response, mask).rows())
    np.testing.assert_array_equal(nll_BT, [[0, 100, 0, 0, 0, 0], [0, 100, 0, 0, 0, 0]])
    np.testing.assert_array_equal(valid_BT, [[False] + 5 * [True]] * 2)


def test_next_token_nll_against_a_loop(params):
    tokens_BT, segments_BT = Texts(*BATCH).rows()
    segments_BT = np.array(segments_BT)
    segments_BT[1, 3:] = 2  # a second document in the same row
    segments_BT[1, 6] = 0  # and a gap
    result = losses(params, tokens_BT, segments_BT)
    logits = np.asarray(logits_of(params, tokens_BT, segments_BT), np.float64)
    for b in range(3):
        for t in range(9):
            valid = t > 0 and segments_BT[b, t] > 0 and segments_BT[b, t] == segments_BT[b, t - 1]
            assert bool(result.valid_BT[b, t]) is bool(valid)
            log_z = np.log(np.exp(logits[b, t - 1]).sum()) if valid else 0.0
            nll = log_z - logits[b, t - 1, tokens_BT[b, t]] if valid else 0.0
            np.testing.assert_allclose(result.nll_BT[b, t], nll, atol=1e-5)
            np.testing.assert_allclose(result.log_z_BT[b, t], log_z, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(result.valid_BT)[1], [0, 1, 1, 0, 1, 1, 0, 0, 1])


def test_packed_losses_equal_separate_losses(params):
    row = np.array([[2, 3, 4, 1, 5, 6, 7, 1, 0]], np.int32)
    packed = losses(params, row, np.array([[1, 1, 1, 1, 2, 2, 2, 2, 0]], np.int32))
    alone = losses(params, np.roll(row, -4, 1), np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0]], np.int32))
    np.testing.assert_allclose(packed.nll_BT[:, 4:8], alone.nll_BT[:, :4], atol=1e-5)
    assert (
        float(packed.nll_BT[0, 4]) == 0.0
    )  # the first token of a document is not predicted from another


def test_response_logps_are_negated_next_token_losses(params):
    logp_BR, _ = logps(params, Texts(*BATCH), spec=PLAIN)
    expected = -np.asarray(losses(params, *Texts(*BATCH).rows()).nll_BT)[:, 4:]
    np.testing.assert_allclose(logp_BR, np.where(RESPONSE_MASK, expected, 0.0), atol=1e-5)


def test_temperature_and_entropy_belong_to_the_sampled_distribution(params):
    logp_BR, entropy_BR = logps(params, Texts(*BATCH), spec=WARM)
    logits = np.asarray(logits_of(params, *Texts(*BATCH).rows()), np.float64)[:, 3:-1] / 0.7
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_p, RESPONSE[..., None], -1)[..., 0]
    np.testing.assert_allclose(logp_BR, np.where(RESPONSE_MASK, chosen, 0), atol=1e-5)
    entropy = -(np.exp(log_p) * log_p).sum(-1)
    np.testing.assert_allclose(entropy_BR, np.where(RESPONSE_MASK, entropy, 0), atol=1e-5)


def test_kl_of_a_policy_with_itself_is_zero_and_with_another_is_not(params):
    logp_BR, _ = logps(params, Texts(*BATCH), spec=PLAIN)
    copy = jax.tree.map(jnp.copy, params)
    reference_BR, _ = logps(copy, Texts(*BATCH), spec=PLAIN)
    np.testing.assert_array_equal(logp_BR - reference_BR, 0.0)
    copy["lm_head"]["kernel"] = copy["lm_head"]["kernel"] * 1.1
    other_BR, _ = logps(copy, Texts(*BATCH), spec=PLAIN)
    assert (np.abs(logp_BR - other_BR)[RESPONSE_MASK] > 0).all()


@pytest.mark.parametrize("change", [{"top_k": 2}, {"top_p": 0.9}, {"temperature": 0.0}])
def test_truncating_specs_are_refused(params, change):
    with pytest.raises(
        ValueError, match=r"truncates the distribution.*sample with top_k=0, top_p=1"
    ):
        logps(params, Texts(*BATCH), spec=dataclasses.replace(PLAIN, **change))


def test_values_see_exactly_what_precedes_their_token(params, scalar):
    """V at response token r is the score of the prompt and the first r response tokens."""
    value_BR = np.asarray(values(scalar, Texts(*BATCH)))
    for r in range(5):
        prefix = RESPONSE_MASK & (np.arange(5) < r)[None]
        expected = scores(scalar, Texts(PROMPT, PROMPT_MASK, RESPONSE, prefix))
        np.testing.assert_allclose(
            value_BR[:, r][RESPONSE_MASK[:, r]], expected[RESPONSE_MASK[:, r]], atol=1e-5
        )
    np.testing.assert_array_equal(value_BR[~RESPONSE_MASK], 0.0)


def test_scores_do_not_depend_on_padding_or_on_the_batch(scalar):
    score_B = np.asarray(scores(scalar, Texts(*BATCH)))
    tokens_BT, segments_BT = (np.asarray(x) for x in Texts(*BATCH).rows())
    for b in range(3):
        real = tokens_BT[b][segments_BT[b] > 0]
        rows, masks = np.full((3, 9), 8, np.int32), np.zeros((3, 9), np.int32)
        rows[0, : len(real)], masks[0, : len(real)] = real, 1
        rows[1, 9 - len(real) :], masks[1, 9 - len(real) :] = real, 1
        rows[2] = tokens_BT[(b + 1) % 3]
        left_right = np.asarray(row_scores(scalar, rows, masks))
        np.testing.assert_allclose(left_right[:2], score_B[b], atol=1e-5)
        assert left_right[2] == 0.0  # a row of padding only
    assert len(set(score_B.round(3))) == 3


def test_empty_response_is_scored_at_the_last_prompt_token(scalar):
    nothing = np.zeros_like(RESPONSE_MASK)
    expected = row_scores(scalar, *Texts(PROMPT, PROMPT_MASK, RESPONSE, nothing).rows())
    np.testing.assert_array_equal(
        scores(scalar, Texts(PROMPT, PROMPT_MASK, RESPONSE, nothing)), expected
    )


def test_classifier_is_read_at_the_last_token_and_keeps_the_language_loss(params):
    model = Classifier(CONFIG, 3)
    classes = {**params, "head": {"kernel": jnp.eye(8, 3), "bias": jnp.array([0.0, 1.0, 2.0])}}
    rows = Texts(*BATCH).rows()
    result = jax.jit(functools.partial(classify_texts, model))(classes, *rows)
    hidden_BTD, _ = apply(LANGUAGE, params, *rows, method="hidden")
    last = np.asarray(hidden_BTD)[np.arange(3), [6, 8, 4], :3] + [0, 1, 2]
    np.testing.assert_allclose(result.logits_BC, last, atol=1e-5)
    expected = losses(params, *rows)
    np.testing.assert_allclose(result.nll_BT, expected.nll_BT, atol=1e-5)
    np.testing.assert_array_equal(result.valid_BT, expected.valid_BT)


def test_masked_columns_get_no_gradient(params, scalar):
    """What stands after the end of a response moves neither logps nor values nor gradients."""
    other = (PROMPT, PROMPT_MASK, np.where(RESPONSE_MASK, RESPONSE, 8), RESPONSE_MASK)

    @jax.jit
    def gradients(batch):
        total = lambda p: response_logps(LANGUAGE, p, Texts(*batch), spec=PLAIN)[0].sum()  # noqa: E731
        worth = lambda p: response_values(SCALAR, p, Texts(*batch)).sum()  # noqa: E731
        return jax.grad(total)(params), jax.grad(worth)(scalar)

    ours, theirs = gradients(BATCH), gradients(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(ours))


def test_dropout_is_off_unless_a_key_is_given():
    wet = dataclasses.replace(CONFIG, dropout_rate=0.5)
    language, scalar_model = LanguageModel(wet), ScalarModel(wet)
    language_params, scalar_params = random_like(language), random_like(scalar_model)
    rows = Texts(*BATCH).rows()

    @jax.jit
    def both(key):
        first, second = jax.random.split(key)
        nll_BT, _ = next_token_nll(language, language_params, *rows, dropout_key=first)
        return nll_BT, last_token_scores(scalar_model, scalar_params, *rows, dropout_key=second)

    dry = losses(language_params, *rows).nll_BT, row_scores(scalar_params, *rows)
    first, second = both(jax.random.key(0)), both(jax.random.key(1))
    for a, b, c in zip(first, second, dry, strict=True):
        assert np.abs(a - b).max() > 1e-3
        assert np.abs(a - c).max() > 1e-3


def _read_everything(params):
    """Everything that reads logits, as one number."""
    losses = next_token(
        LANGUAGE, params, jnp.asarray(RESPONSE), jnp.asarray(RESPONSE_MASK).astype(int)
    )
    logp_BR, entropy_BR = response_logps(LANGUAGE, params, Texts(*BATCH), spec=WARM)
    parts = (losses.nll_BT, losses.log_z_BT, logp_BR, entropy_BR)
    return sum(jnp.sin(x + jnp.arange(x.size).reshape(x.shape)).sum() for x in parts), parts


@pytest.mark.parametrize("most", [1, 60, 100])
def test_logits_in_parts_are_the_whole_ones_forwards_and_backwards(params, monkeypatch, most):
    grads, parts = jax.jit(jax.grad(_read_everything, has_aux=True))(params)
    monkeypatch.setattr("rlhf_jax.models.logits.MOST_LOGITS", most)
    read = jax.grad(lambda params: _read_everything(params), has_aux=True)
    split_grads, split_parts = jax.jit(read)(params)
    for a, b in zip(
        jax.tree.leaves((grads, parts)), jax.tree.leaves((split_grads, split_parts)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6 * max(1.0, float(jnp.abs(a).max())))


def shapes_in(jaxpr):
    """The shapes of all float32 arrays that a program makes."""
    for equation in jaxpr.eqns:
        yield from (x.aval.shape for x in equation.outvars if x.aval.dtype == jnp.float32)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from shapes_in(inner)


@pytest.mark.parametrize(
    ("num_rows", "most", "expected"), [(0, 10**6, 6), (0, 3 * 162, 3), (0, 1, 1), (4, 3 * 162, 2)]
)
def test_rows_in_parts_are_the_whole_ones(params, scalar, monkeypatch, num_rows, most, expected):
    twice = tuple(np.concatenate([x, x[::-1]]) for x in BATCH)

    def read(language, scalar):
        logp_BR, _ = response_logps(LANGUAGE, language, Texts(*twice, num_rows), spec=PLAIN)
        value_BR = response_values(SCALAR, scalar, Texts(*twice, num_rows))
        return (
            jnp.maximum(logp_BR, -20.0),
            value_BR,
            response_scores(SCALAR, scalar, Texts(*twice, num_rows)),
        )

    whole = jax.jit(read)(params, scalar)
    monkeypatch.setattr(scoring, "MOST_ACTIVATIONS", most)
    features = [
        shape
        for shape in shapes_in(jax.make_jaxpr(lambda *trees: read(*trees))(params, scalar).jaxpr)
        if shape[1:] == (9, CONFIG.ffw_width)
    ]
    assert {shape[0] for shape in features} == {expected}
    for a, b in zip(whole, jax.jit(lambda *trees: read(*trees))(params, scalar), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_large_logits_are_never_whole(params, monkeypatch):
    monkeypatch.setattr("rlhf_jax.models.logits.MOST_LOGITS", 60)
    program = jax.make_jaxpr(jax.grad(_read_everything, has_aux=True))(params).jaxpr
    logits = [shape for shape in shapes_in(program) if shape[2:] == (CONFIG.vocab_size,)]
    assert logits
    assert max(map(math.prod, logits)) <= 60
