"""Examples packed into shared rows: the same numbers, gradients and updates as one row each."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.data import packing as host
from rlhf_jax.inference import scoring
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.packing import Texts, first_fit, row_bucket, rows_needed
from rlhf_jax.models import LanguageModel, ScalarModel, init_params, llama

SHAPE = llama(
    vocab_size=13,
    context_length=16,
    width=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffw_width=24,
    rope_base=100.0,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
SPEC = SamplingSpec(temperature=0.8, top_k=0, top_p=1.0, nucleus="holtzman")


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_those_of_the_packing_on_the_host(seed):
    lengths = np.random.default_rng(seed).integers(1, 21, 30)
    row_B, start_B = first_fit(jnp.asarray(lengths), 20)
    rows, starts, count = host.first_fit(lengths.tolist(), 20)
    assert (row_B.tolist(), start_B.tolist(), int(rows_needed(jnp.asarray(lengths), 20))) == (
        rows,
        starts,
        count,
    )


def test_few_sizes_and_none_where_packing_saves_nothing():
    assert {row_bucket(need, 64, 1) for need in range(1, 65)} == {8, 16, 24, 32, 40, 48, 56, 0}
    assert row_bucket(25, 64, 1) == 32
    assert row_bucket(3, 8, 1) == 4
    assert row_bucket(5, 8, 1) == 0
    assert row_bucket(9, 64, 12) == 12
    assert row_bucket(13, 64, 12) == 24


def _batch(rng, batch=6, prompt=5, response=6):
    lengths_P, lengths_R = rng.integers(1, prompt + 1, batch), rng.integers(0, response + 1, batch)
    mask_BP = np.arange(prompt) >= prompt - lengths_P[:, None]
    mask_BR = np.arange(response) < lengths_R[:, None]
    tokens = rng.integers(
        0, 13, (batch, prompt + response)
    )  # padding holds other tokens: it must not be read
    return Texts(*map(jnp.asarray, (tokens[:, :prompt], mask_BP, tokens[:, prompt:], mask_BR)))


@pytest.mark.parametrize(
    ("seed", "read_out"), [(0, "last_token"), (1, "last_token"), (2, "last_token"), (2, "pooled")]
)
def test_packed_is_unpacked_forwards_and_backwards(seed, read_out):
    texts = _batch(np.random.default_rng(seed))
    policy, value = LanguageModel(SHAPE), ScalarModel(replace(SHAPE, read_out=read_out))
    trained = {
        "policy": init_params(policy, jax.random.key(0)),
        "value": init_params(value, jax.random.key(1)),
    }
    needed = int(rows_needed(texts.length_B, 11))
    assert needed < 6

    def everything(params, num_rows):
        packed = texts.packed(num_rows)
        logp_BR, entropy_BR = scoring.response_logps(policy, params["policy"], packed, spec=SPEC)
        value_BR = scoring.response_values(value, params["value"], packed)
        score_B = scoring.response_scores(value, params["value"], packed)
        return logp_BR, entropy_BR, value_BR, score_B

    def loss(params, num_rows):
        parts = everything(params, num_rows)
        return sum(
            (jnp.sin(3 * x + jnp.arange(x.size).reshape(x.shape))).sum() for x in parts
        ), parts

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (plain_grads, plain), (packed_grads, packed) = run(trained, 0), run(trained, needed)
    for a, b in zip(plain, packed, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    for a, b in zip(jax.tree.leaves(plain_grads), jax.tree.leaves(packed_grads), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * float(jnp.abs(a).max()) + 1e-7)
