"""Check that the machines' attention kernels compute what plain attention does.

Forwards and backwards; the TPU's kernel runs in its interpreter.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rlhf_jax.inference.scoring import next_token_nll
from rlhf_jax.models import LanguageModel, init_params, llama
from rlhf_jax.models.attention import plain_attention, tpu_flash_attention
from rlhf_jax.training.mesh import make_mesh, on_mesh

SHAPE = llama(
    vocab_size=32,
    context_length=64,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffw_width=48,
    rope_base=1e3,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
TOKENS = np.random.default_rng(0).integers(0, 32, (4, 20)).astype(np.int32)
# Left padding, packed segments with a gap between, right padding, a whole row.
SEGMENTS = np.array(
    [[0] * 5 + [1] * 15, [1] * 7 + [0] + [2] * 12, [3] * 9 + [0] * 11, [1] * 20], np.int32
)


def nll_and_gradient(config, params):
    def loss(params):
        nll_BT, _ = next_token_nll(LanguageModel(config), params, TOKENS, SEGMENTS)
        return jnp.sin(nll_BT).sum(), nll_BT

    grads, nll_BT = jax.jit(jax.grad(loss, has_aux=True))(params)
    return nll_BT, grads


LOOPED = {"scan_layers": True, "remat": "block"}


@pytest.mark.parametrize("changes", [{}, {"windows": (4, 0)}, LOOPED, {"num_kv_heads": 4}], ids=str)
def test_fused_attention_is_plain_attention(changes):
    config = dataclasses.replace(SHAPE, **changes)
    params = init_params(LanguageModel(config), jax.random.key(0))
    plain = nll_and_gradient(config, params)
    fused = nll_and_gradient(dataclasses.replace(config, attention="fused"), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), fused, plain)


def test_fused_attention_rounds_its_operands():
    config = dataclasses.replace(SHAPE, compute_dtype="bfloat16")
    params = init_params(LanguageModel(config), jax.random.key(0))
    (plain, _), (fused, _) = (
        nll_and_gradient(dataclasses.replace(config, attention=a), params)
        for a in ("plain", "fused")
    )
    assert 1e-6 < np.abs(plain - fused).max() < 0.05


@pytest.mark.parametrize("axes", [(1, 1, 1), (2, 1, 2)], ids=str)
def test_the_tpu_kernel_is_plain_attention(axes):
    rng = np.random.default_rng(1)
    q = rng.normal(size=(4, 4, 20, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 4, 2, 20, 8)).astype(np.float32)
    visible = (
        (SEGMENTS[:, :, None] == SEGMENTS[:, None])
        & (SEGMENTS > 0)[:, :, None]
        & np.tri(20, dtype=bool)
    )
    real = (SEGMENTS > 0)[:, None, :, None]

    def total(attend, *operands):
        mixed = jnp.where(real, attend(*operands), 0.0)
        return jnp.sin(3 * mixed).sum(), mixed

    def both(attend):
        return jax.jit(
            jax.value_and_grad(lambda *x: total(attend, *x), argnums=(0, 1, 2), has_aux=True)
        )(q, k, v)

    expected = both(lambda *x: plain_attention(*x, jnp.asarray(visible), scale=0.3, cap=0.0))
    with on_mesh(make_mesh(*axes)), pltpu.force_tpu_interpret_mode():
        fused = both(lambda *x: tpu_flash_attention(*x, jnp.asarray(SEGMENTS), scale=0.3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), fused, expected)


def test_a_soft_cap_is_refused():
    with pytest.raises(
        ValueError, match=r"model\.attention = fused, model\.attention_softcap = 50\.0"
    ):
        dataclasses.replace(SHAPE, attention="fused", attention_softcap=50.0)
