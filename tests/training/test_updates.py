"""Micro-batches, devices and the whole batch at once give one gradient, whatever the masks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.maths.masking import mean, value
from rlhf_jax.training.updates import (
    Objective,
    accumulated_gradients,
    init_state,
    supervised_update,
)

PARAMS = {"w": jnp.array([0.3, -0.2, 0.5])}


def loss(params, batch, weight, key):
    del key
    error_BT = jnp.square(batch["x_BT3"] @ params["w"] - batch["y_BT"])
    pair = mean(error_BT, batch["mask_BT"])
    return pair.total / weight, {"loss": pair}


def weights(batch):
    return batch["mask_BT"].sum()


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mask = (
        rng.random((8, 5)) < np.linspace(0.0, 1.0, 8)[:, None]
    )  # the first rows have no trained token at all
    return {
        "x_BT3": jnp.asarray(rng.normal(size=(8, 5, 3)), jnp.float32),
        "y_BT": jnp.asarray(rng.normal(size=(8, 5)), jnp.float32),
        "mask_BT": jnp.asarray(mask, jnp.float32),
    }


def gradient(batch, num_micro_batches):
    objective = Objective(loss, weights, num_micro_batches)
    return accumulated_gradients(objective, PARAMS, {}, batch, jax.random.key(0))


def test_whole_batch_is_the_masked_mean(batch):
    def whole(params):
        error = jnp.square(batch["x_BT3"] @ params["w"] - batch["y_BT"])
        return (error * batch["mask_BT"]).sum() / batch["mask_BT"].sum()

    grads, metrics = gradient(batch, 1)
    np.testing.assert_allclose(grads["w"], jax.grad(whole)(PARAMS)["w"], rtol=1e-6)
    np.testing.assert_allclose(value(metrics["loss"]), whole(PARAMS), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_micro_batches_add_up(batch, count):
    whole, whole_metrics = gradient(batch, 1)
    parts, part_metrics = gradient(batch, count)
    np.testing.assert_allclose(parts["w"], whole["w"], rtol=1e-5)
    np.testing.assert_allclose(value(part_metrics["loss"]), value(whole_metrics["loss"]), rtol=1e-6)


def test_pmap_gives_the_same_new_parameters_as_jit(batch):
    optimizer = optax.adam(0.1)
    state = init_state(PARAMS, optimizer)
    key = jax.random.key(0)
    jitted = jax.jit(partial(supervised_update, Objective(loss, weights), optimizer))
    expected, metrics = jitted(state, batch, key, {})
    shares = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    mapped = jax.pmap(
        partial(supervised_update, Objective(loss, weights, axis_name="devices"), optimizer),
        axis_name="devices",
        in_axes=(None, 0, None, None),
        devices=jax.devices()[:4],
    )
    states, mapped_metrics = mapped(state, shares, key, {})
    for device in range(4):
        np.testing.assert_allclose(states.params["w"][device], expected.params["w"], atol=1e-6)
        np.testing.assert_allclose(
            value(mapped_metrics["loss"])[device], value(metrics["loss"]), rtol=1e-6
        )
