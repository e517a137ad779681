"""Sampling from a fake model whose text is known, and from a real one against its own scores."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.inference import decoding
from rlhf_jax.inference.decoding import GREEDY, PLAIN, SamplingSpec
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import sample
from rlhf_jax.inference.scoring import response_logps
from rlhf_jax.models import LanguageModel, TransformerConfig, apply, gpt, init_params

SIZES = {
    "context_length": 16,
    "dropout_rate": 0.0,
    "compute_dtype": "float32",
    "param_dtype": "float32",
}
CONFIG = gpt(vocab_size=10, width=8, num_layers=1, num_heads=2, remat="none", **SIZES)
WARM = SamplingSpec(temperature=0.7, top_k=0, top_p=1.0, nucleus="holtzman")

PROMPTS = np.array([[5, 0], [4, 3]], np.int32)
MASK = np.ones_like(PROMPTS, bool)


class Successor(nn.Module):
    """A language model certain of "previous token + 1", modulo its vocabulary; counts its calls."""

    config: TransformerConfig
    calls: ClassVar[list[str | int]] = []

    def hidden(self, tokens_BT, segments_BT, *, cache=None, deterministic=True):
        self.calls.append("traced")
        jax.debug.callback(lambda: self.calls.extend(["run", tokens_BT.shape[0]]))
        hidden = jax.nn.one_hot((tokens_BT + 1) % self.config.vocab_size, self.config.vocab_size)
        return hidden, cache._replace(length=cache.length + tokens_BT.shape[1])

    def unembed(self, hidden):
        return 1000.0 * hidden


def successors(prompts=PROMPTS, mask=MASK, *, length=4, stop=(), pad=0, **kwargs):
    Successor.calls.clear()
    result = sample(
        Successor(CONFIG),
        {},
        prompts,
        mask,
        jax.random.key(0),
        spec=PLAIN,
        response_length=length,
        stop_tokens=stop,
        pad_id=pad,
        **kwargs,
    )
    jax.effects_barrier()
    return jax.tree.map(np.asarray, result)


def test_successor_model_is_sampled_literally():
    samples = successors()
    whole = np.concatenate([PROMPTS, samples.tokens_BR], axis=1)
    np.testing.assert_array_equal(whole, [[5, 0, 1, 2, 3, 4], [4, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(samples.logp_BR, 0.0)
    np.testing.assert_array_equal(samples.length_B, [4, 4])
    np.testing.assert_array_equal(samples.stopped_B, [False, False])
    assert samples.tokens_BR.dtype == np.int32
    assert samples.logp_BR.dtype == np.float32


def test_text_wraps_round_the_vocabulary():
    np.testing.assert_array_equal(
        successors(PROMPTS + 5, length=4).tokens_BR, [[6, 7, 8, 9], [9, 0, 1, 2]]
    )


def test_stop_token_is_kept_counted_and_followed_by_padding():
    samples = successors(stop=(3,), pad=9)
    np.testing.assert_array_equal(samples.tokens_BR, [[1, 2, 3, 9], [4, 5, 6, 7]])
    np.testing.assert_array_equal(samples.length_B, [3, 4])
    np.testing.assert_array_equal(
        samples.stopped_B, [True, False]
    )  # the second was cut, not stopped


def test_any_of_several_stop_tokens_stops():
    samples = successors(stop=(2, 4), pad=9)
    np.testing.assert_array_equal(samples.tokens_BR, [[1, 2, 9, 9], [4, 9, 9, 9]])
    np.testing.assert_array_equal(samples.length_B, [2, 1])
    np.testing.assert_array_equal(samples.stopped_B, [True, True])


def test_stop_token_at_the_last_position_counts_as_stopped():
    samples = successors(stop=(4,))
    np.testing.assert_array_equal(samples.length_B, [4, 1])
    np.testing.assert_array_equal(samples.stopped_B, [True, True])


def test_pad_may_equal_the_stop_token():
    other, same = successors(stop=(2,), pad=9), successors(stop=(2,), pad=2)
    np.testing.assert_array_equal(same.tokens_BR, [[1, 2, 2, 2], [4, 5, 6, 7]])
    np.testing.assert_array_equal(same.length_B, other.length_B)
    np.testing.assert_array_equal(same.stopped_B, other.stopped_B)


def test_decoding_ends_when_every_row_has_stopped():
    # The prompts are read once; each further token needs one call, the token after the last none.
    successors(length=12, stop=(4,))
    assert Successor.calls.count("run") == 4
    successors(length=12)
    assert Successor.calls.count("run") == 12


@pytest.mark.parametrize(("max_rows", "num_samples"), [(1, 1), (3, 1), (4, 2), (5, 2), (11, 1)])
def test_waiting_prompts_take_the_place_of_finished_ones_to_the_same_result(max_rows, num_samples):
    model = LanguageModel(CONFIG)
    params = jax.tree.map(
        lambda x: 8 * x, init_params(model, jax.random.key(0))
    )  # far from uniform
    prompt_BP = np.random.default_rng(0).integers(1, 8, (6, 5)).astype(np.int32)
    mask_BP = np.arange(5)[None, :] >= np.array([0, 3, 1, 4, 2, 0])[:, None]
    expected, found = (
        sample(
            model,
            params,
            prompt_BP,
            mask_BP,
            jax.random.key(3),
            spec=PLAIN,
            response_length=9,
            stop_tokens=(1, 2),
            pad_id=0,
            num_samples=num_samples,
            max_rows=rows,
        )
        for rows in (0, max_rows)
    )
    assert len(set(expected.length_B.tolist())) > 1
    for name in ("tokens_BR", "length_B", "stopped_B"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_allclose(found.logp_BR, expected.logp_BR, atol=1e-5)


def test_the_batch_is_halved_when_half_of_its_rows_have_stopped():
    # Row b starts with b mod 10 and stops at 9, so that 12 or 13 of 128 rows stop at every step;
    # rows of 9 go on to 10.
    first = np.arange(128, dtype=np.int32) % 10
    halved = successors(first[:, None], np.ones((128, 1), bool), length=12, stop=(9,), pad=7)
    sizes = [size for size in Successor.calls if isinstance(size, int)]
    # After five steps 64 rows have stopped (8, 7, 6, 5, 4), after eight all but 25 (0 and 9), after
    # nine all but 12.
    assert sizes == [128] * 5 + [64] * 3 + [32, 16], sizes
    for b, row in enumerate(first):
        text = [(row + 1 + r) % 10 for r in range(9 - row if row < 9 else 10)]
        assert halved.length_B[b] == len(text), (b, row)
        np.testing.assert_array_equal(halved.tokens_BR[b], text + [7] * (12 - len(text)))
    assert halved.stopped_B.all()


def test_halving_the_batch_changes_no_sample(monkeypatch):
    model = LanguageModel(CONFIG)
    params = init_params(model, jax.random.key(3))
    prompts = np.random.default_rng(0).integers(1, 10, (64, 3)).astype(np.int32)

    def draw(pad_id):
        return sample(
            model,
            params,
            prompts,
            np.ones_like(prompts, bool),
            jax.random.key(1),
            spec=WARM,
            response_length=9,
            stop_tokens=(0, 5),
            num_samples=2,
            pad_id=pad_id,
        )

    halved = draw(pad_id=0)
    monkeypatch.setattr("rlhf_jax.inference.sampling.SMALLEST", 1000)
    whole = draw(pad_id=1)  # another pad id, or the compiled program would be the same
    np.testing.assert_array_equal(halved.length_B, whole.length_B)
    np.testing.assert_array_equal(halved.stopped_B, whole.stopped_B)
    written = np.arange(9) < np.asarray(halved.length_B)[:, None]
    np.testing.assert_array_equal(
        np.where(written, halved.tokens_BR, 0), np.where(written, whole.tokens_BR, 0)
    )
    np.testing.assert_allclose(halved.logp_BR, whole.logp_BR, atol=1e-6)
    assert 0 < np.mean(halved.stopped_B) < 1, "some rows should stop, others not"


def test_second_call_with_the_same_shapes_traces_nothing():
    successors(length=5, stop=(8,))
    assert "traced" in Successor.calls
    np.testing.assert_array_equal(
        successors(PROMPTS + 1, length=5, stop=(8,)).tokens_BR[0], [2, 3, 4, 5, 6]
    )
    assert "traced" not in Successor.calls
    successors(length=5, stop=(7,))
    assert "traced" in Successor.calls


def test_samples_of_one_prompt_are_neighbouring_rows():
    samples = successors(num_samples=2)
    np.testing.assert_array_equal(samples.tokens_BR[:, 0], [1, 1, 4, 4])
    assert Successor.calls.count("run") == 4


def test_impossible_lengths_are_refused():
    with pytest.raises(ValueError, match="response_length = 0"):
        successors(length=0)
    with pytest.raises(ValueError, match="num_samples = 0"):
        successors(num_samples=0)
    with pytest.raises(ValueError, match="max_rows = -1"):
        successors(max_rows=-1)
    with pytest.raises(ValueError, match="mask"):
        successors(mask=MASK[:, :1])


# A real model.


@functools.cache
def real():
    config = gpt(vocab_size=9, width=8, num_layers=1, num_heads=2, remat="none", **SIZES)
    shapes = jax.eval_shape(lambda: init_params(LanguageModel(config), jax.random.key(0)))
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = [jnp.asarray(rng.normal(0.2, 0.4, x.shape), jnp.float32) for x in leaves]
    return LanguageModel(config), jax.tree.unflatten(treedef, params)


REAL_PROMPTS = np.array([[7, 0, 0, 2, 3], [5, 8, 6, 2, 1], [2, 2, 2, 2, 4]], np.int32)
REAL_MASK = np.array([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]], bool)


def draw(
    spec,
    prompts=REAL_PROMPTS,
    mask=REAL_MASK,
    *,
    seed=0,
    num_samples=1,
    stop=(1, 2),
    length=6,
    model=None,
):
    language, params = real()
    return sample(
        model or language,
        params,
        prompts,
        mask,
        jax.random.key(seed),
        spec=spec,
        response_length=length,
        stop_tokens=stop,
        pad_id=1,
        num_samples=num_samples,
    )


@functools.partial(jax.jit, static_argnums=0)
def rescore(spec, prompts, mask, samples):
    """What the sampler should have returned, from one pass over the whole texts without a cache."""
    model, params = real()
    length = samples.tokens_BR.shape[1]
    response_mask = jnp.arange(length)[None] < samples.length_B[:, None]
    rows = Texts(prompts, mask, samples.tokens_BR, response_mask).rows()
    before_BRV = apply(model, params, *rows)[0][:, prompts.shape[1] - 1 : -1]
    logits_BRV = decoding.sampling_logits(before_BRV, spec)
    logp_BR = decoding.log_prob(logits_BRV, samples.tokens_BR)
    entropy_BR = decoding.entropy(logits_BRV)
    return jnp.where(response_mask, logp_BR, 0.0), jnp.where(response_mask, entropy_BR, 0.0)


@pytest.mark.parametrize(
    "spec",
    [WARM, SamplingSpec(temperature=1.3, top_k=5, top_p=0.8, nucleus="openai"), GREEDY],
    ids=["temperature", "top_k_and_top_p", "greedy"],
)
def test_logp_is_that_of_the_distribution_sampled_from(spec):
    """So the ratio of the first PPO minibatch is 1, for all paddings and temperatures."""
    samples = draw(spec, num_samples=4)
    prompts, mask = np.repeat(REAL_PROMPTS, 4, 0), np.repeat(REAL_MASK, 4, 0)
    logp_BR, entropy_BR = rescore(spec, prompts, mask, samples)
    np.testing.assert_allclose(np.asarray(samples.logp_BR), logp_BR, atol=1e-5)
    if spec.temperature == 0:
        np.testing.assert_array_equal(entropy_BR, 0.0)
    else:
        assert 0 < np.asarray(samples.stopped_B).sum() < 12
        assert (np.asarray(samples.logp_BR)[:, 0] < -0.01).any()


def test_bfloat16_sampler_agrees_with_the_bfloat16_scorer():
    model, params = real()
    half = LanguageModel(dataclasses.replace(model.config, compute_dtype="bfloat16"))
    samples = draw(PLAIN, model=half, length=3)
    mask = jnp.arange(3)[None] < samples.length_B[:, None]
    score = jax.jit(functools.partial(response_logps, half, spec=PLAIN))
    logp_BR, _ = score(params, Texts(REAL_PROMPTS, REAL_MASK, samples.tokens_BR, mask))
    np.testing.assert_allclose(np.asarray(samples.logp_BR), logp_BR, atol=0.02)


def test_sharing_the_prefill_equals_repeating_the_prompt():
    shared = draw(WARM, num_samples=4)
    repeated = draw(WARM, np.repeat(REAL_PROMPTS, 4, 0), np.repeat(REAL_MASK, 4, 0))
    np.testing.assert_array_equal(shared.tokens_BR, repeated.tokens_BR)
    np.testing.assert_allclose(shared.logp_BR, repeated.logp_BR, atol=1e-5)
    assert len({tuple(row) for row in np.asarray(shared.tokens_BR)[:4]}) > 1


def test_samples_follow_the_model_s_law():
    """Relative frequencies of two-token responses against the exact joint probabilities."""
    number = 4000
    one, mask = REAL_PROMPTS[:1], REAL_MASK[:1]
    samples = jax.tree.map(
        np.asarray, draw(PLAIN, one, mask, num_samples=number, stop=(), length=2)
    )
    joint = np.zeros((9, 9))
    np.add.at(joint, tuple(samples.tokens_BR.T), 1 / number)
    probability = np.full((9, 9), np.nan)
    probability[tuple(samples.tokens_BR.T)] = np.exp(samples.logp_BR.sum(1))
    seen = ~np.isnan(probability)
    error = np.sqrt(probability[seen] * (1 - probability[seen]) / number)
    assert (np.abs(joint[seen] - probability[seen]) < 4.5 * error).all()
    assert 0.98 < probability[seen].sum() <= 1.0 + 1e-5


def test_key_decides_the_samples():
    first, again, other = (
        np.asarray(draw(WARM, seed=s, num_samples=4).tokens_BR) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
