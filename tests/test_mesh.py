"""Sharded training is the same training: eight virtual devices against one, and against pmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from rlhf_jax.training.mesh import (
    batch_sharding,
    jit_step,
    make_mesh,
    place,
    replicated,
    shard_batch,
    state_shardings,
)
from rlhf_jax.training.state import apply_gradients, init_state

OPTIMIZER = optax.adam(1e-2)
BATCH = {
    "x": np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32),
    "y": np.random.default_rng(1).normal(size=(16, 4)).astype(np.float32),
}


def loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["in"]["kernel"] + params["in"]["bias"][None, :])
    return jnp.mean(jnp.square(hidden @ params["out"]["kernel"] - batch["y"]))


def step(state, batch):
    value, grads = jax.value_and_grad(loss)(state.params, batch)
    return apply_gradients(state, grads, OPTIMIZER), {"loss": value}


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "in": {"kernel": jax.random.normal(keys[0], (32, 64)) / 6, "bias": jnp.zeros(64)},
        "out": {"kernel": jax.random.normal(keys[1], (64, 4)) / 8},
    }


@pytest.fixture(scope="module")
def on_one_device(params):
    state, losses = init_state(params, OPTIMIZER), []
    single = jax.jit(step)
    for _ in range(3):
        state, metrics = single(state, BATCH)
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.params), losses


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (1, 8), (2, 4), (-1, 2)])
def test_every_mesh_makes_the_same_updates_as_one_device(params, on_one_device, data, fsdp):
    mesh = make_mesh(data, fsdp)
    state = init_state(params, OPTIMIZER)
    shardings = state_shardings(state, mesh, 200)
    state = place(state, shardings)
    mapped = jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    losses = []
    for _ in range(3):
        old = state
        state, metrics = mapped(state, shard_batch(BATCH, mesh))
        losses.append(float(metrics["loss"]))
        assert old.params["in"]["kernel"].is_deleted()  # donated
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, on_one_device[0])
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-6)
    assert not params["in"]["kernel"].is_deleted()  # `place` copied
    for leaf in (state.params["in"]["kernel"], state.opt_state[0].mu["in"]["kernel"]):
        assert leaf.addressable_shards[0].data.shape == (32, 64 // fsdp)


def test_jit_step_donates_and_keeps_the_shardings_of_the_state(params, on_one_device):
    mesh = make_mesh(2, 4)
    state = init_state(params, OPTIMIZER)
    shardings = state_shardings(state, mesh, 200)
    mapped = jit_step(step, shardings, mesh)
    first = place(state, shardings)
    second, metrics = mapped(first, shard_batch(BATCH, mesh))
    assert first.params["in"]["kernel"].is_deleted()
    assert second.params["out"]["kernel"].sharding == shardings.params["out"]["kernel"]
    assert metrics["loss"].sharding.is_fully_replicated
    np.testing.assert_allclose(metrics["loss"], on_one_device[1][0], rtol=1e-6)


def test_pmap_of_the_pure_step_with_pmean_makes_the_same_update(params, on_one_device):
    def mapped(state, batch):
        value, grads = jax.value_and_grad(loss)(state.params, batch)
        grads, value = jax.lax.pmean((grads, value), "devices")
        return apply_gradients(state, grads, OPTIMIZER), value

    step8 = jax.pmap(mapped, axis_name="devices")
    split = {name: array.reshape(8, 2, *array.shape[1:]) for name, array in BATCH.items()}
    state = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 8), init_state(params, OPTIMIZER))
    for _ in range(3):
        state, value = step8(state, split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[5], b, atol=1e-6), state.params, on_one_device[0])
    np.testing.assert_allclose(value, [on_one_device[1][2]] * 8, rtol=1e-6)


def test_every_large_leaf_is_really_split_and_small_ones_are_copied():
    mesh = make_mesh(2, 4)
    tree = {
        "embedding": jax.ShapeDtypeStruct((1000, 64), jnp.float32),
        "odd_rows": jax.ShapeDtypeStruct((1001, 64), jnp.float32),
        "heads": jax.ShapeDtypeStruct((64, 8, 16), jnp.float32),
        "indivisible": jax.ShapeDtypeStruct((101, 103), jnp.float32),
        "bias": jax.ShapeDtypeStruct((64,), jnp.float32),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    shardings = state_shardings(tree, mesh, 1024)
    placed = place(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree), shardings)
    shapes = {name: leaf.addressable_shards[3].data.shape for name, leaf in placed.items()}
    assert shapes == {
        "embedding": (250, 64),
        "odd_rows": (1001, 16),
        "heads": (16, 8, 16),
        "indivisible": (101, 103),
        "bias": (64,),
        "step": (),
    }
    assert shardings["embedding"].spec == PartitionSpec("fsdp", None)
    at_the_limit = state_shardings({"bias": tree["bias"]}, mesh, 64)
    assert at_the_limit["bias"].spec == PartitionSpec("fsdp")


def test_batches_are_split_over_both_axes():
    batch = shard_batch(BATCH, make_mesh(2, 4))
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 32)}
    assert len({str(shard.index) for shard in batch["x"].addressable_shards}) == 8
    np.testing.assert_array_equal(batch["x"], BATCH["x"])


def test_mesh_shapes_and_errors_name_both_numbers():
    assert dict(make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}
    assert make_mesh(1, 1).size == 1  # fewer than there are
    with pytest.raises(ValueError, match=r"4 x 4 = 16 devices, but this machine has 8"):
        make_mesh(4, 4)
    with pytest.raises(ValueError, match=r"fsdp = 3 does not divide the 8 devices"):
        make_mesh(-1, 3)
    with pytest.raises(ValueError, match=r"data = 0, fsdp = 1"):
        make_mesh(0, 1)
    with pytest.raises(ValueError, match=r"batch\['x'\] has shape \(15, 32\).* 8 devices"):
        shard_batch({"x": BATCH["x"][:15]}, make_mesh(-1, 1))
