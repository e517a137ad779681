"""Sharded training is the same training: eight virtual devices against one, and against pmap."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from experiments.scale.hlo_stats import collectives
from rlhf_jax.inference import sampling, scoring
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.inference.sampling import sample
from rlhf_jax.models import LanguageModel, ScalarModel, apply, init_params, llama, palm
from rlhf_jax.stages.language import language_loss, trained_tokens
from rlhf_jax.training.mesh import (
    batch_sharding,
    check_model,
    jit_step,
    make_mesh,
    on_mesh,
    place,
    replicated,
    shard_batch,
    state_shardings,
)
from rlhf_jax.training.updates import Objective, apply_gradients, init_state, supervised_update

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
    mesh = make_mesh(data, fsdp, 1)
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
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, on_one_device[0]
    )
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-6)
    assert not params["in"]["kernel"].is_deleted()  # `place` copied
    for leaf in (state.params["in"]["kernel"], state.opt_state[0].mu["in"]["kernel"]):
        assert leaf.addressable_shards[0].data.shape == (32, 64 // fsdp)


def test_jit_step_donates_and_keeps_the_shardings_of_the_state(params, on_one_device):
    mesh = make_mesh(2, 4, 1)
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
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[5], b, atol=1e-6), state.params, on_one_device[0]
    )
    np.testing.assert_allclose(value, [on_one_device[1][2]] * 8, rtol=1e-6)


def test_every_large_leaf_is_really_split_and_small_ones_are_copied():
    mesh = make_mesh(2, 4, 1)
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
    batch = shard_batch(BATCH, make_mesh(2, 4, 1))
    assert {shard.data.shape for shard in batch["x"].addressable_shards} == {(2, 32)}
    assert len({str(shard.index) for shard in batch["x"].addressable_shards}) == 8
    np.testing.assert_array_equal(batch["x"], BATCH["x"])


def test_mesh_shapes_and_errors_name_both_numbers():
    assert dict(make_mesh(-1, 2, 1).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert make_mesh(1, 1, 1).size == 1  # fewer than there are
    with pytest.raises(ValueError, match=r"4 x 4 x 1 = 16 devices, but this machine has 8"):
        make_mesh(4, 4, 1)
    with pytest.raises(ValueError, match=r"fsdp x tensor = 3 x 1 does not divide the 8 devices"):
        make_mesh(-1, 3, 1)
    with pytest.raises(ValueError, match=r"data = 0, fsdp = 1, tensor = 1"):
        make_mesh(0, 1, 1)
    with pytest.raises(ValueError, match=r"batch\['x'\] has shape \(15, 32\).* 8 shards"):
        shard_batch({"x": BATCH["x"][:15]}, make_mesh(-1, 1, 1))


# --- a transformer on every mesh -----------------------------------------------------------------

CONFIG = llama(
    vocab_size=128,
    context_length=32,
    width=32,
    num_layers=1,
    num_heads=8,
    num_kv_heads=8,
    ffw_width=80,
    rope_base=1e4,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
MODEL = LanguageModel(CONFIG)
TOKENS = np.random.default_rng(2).integers(0, 128, (16, 24)).astype(np.int32)
ROWS = {
    "tokens_BT": TOKENS,
    "segments_BT": np.ones_like(TOKENS),
    "loss_mask_BT": np.ones_like(TOKENS),
}
MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@pytest.fixture(scope="module", autouse=True)
def _drop_finished_rows_of_few():
    """Samplers of this file drop finished rows, two of a device's or more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "SMALLEST", 1)
        yield


@cache
def updated(axes):
    """The state after one update of fine-tuning on a mesh, its program, and samples from it."""
    mesh = make_mesh(*axes)
    optimizer = optax.sgd(0.1, momentum=0.9)
    objective = Objective(partial(language_loss, MODEL, 0.0), trained_tokens)
    update = partial(supervised_update, objective, optimizer)
    with on_mesh(mesh):
        state = init_state(init_params(MODEL, jax.random.key(0)), optimizer)
        shardings = state_shardings(state, mesh, 2)
        state, batch = place(state, shardings), shard_batch(ROWS, mesh)
        arguments = (batch, jax.random.key(1), {})
        compiled = jit_step(update, shardings, mesh).lower(state, *arguments).compile()
        state, _ = compiled(state, *arguments)
        prompts = shard_batch({"tokens": TOKENS[:, :8], "mask": np.ones((16, 8), bool)}, mesh)
        draw = (
            jax.jit(
                lambda params, prompts, key: sample(
                    MODEL,
                    params,
                    prompts["tokens"],
                    prompts["mask"],
                    key,
                    spec=PLAIN,
                    response_length=6,
                    stop_tokens=(1,),
                    pad_id=0,
                )
            )
            .lower(state.params, prompts, jax.random.key(2))
            .compile()
        )
        return (
            jax.device_get(state),
            compiled,
            jax.device_get(draw(state.params, prompts, jax.random.key(2))),
            draw,
        )


def shapes_of(tensor):
    """The types of all parameters as devices of `tensor` hold them when fsdp has been gathered."""
    params = jax.eval_shape(lambda: init_params(MODEL, jax.random.key(0)))
    shardings = state_shardings(params, make_mesh(1, 1, tensor), 2)
    shapes = map(
        lambda leaf, where: where.shard_shape(leaf.shape),
        jax.tree.leaves(params),
        jax.tree.leaves(shardings),
    )
    return {f"f32[{','.join(map(str, shape))}]" for shape in shapes}


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_fine_tuning_and_sampling_on_every_mesh_equal_one_device(axes):
    state, _, samples, _ = updated(axes)
    expected, _, first_samples, _ = updated((1, 1, 1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), state.params, expected.params
    )
    np.testing.assert_array_equal(samples.tokens_BR, first_samples.tokens_BR)
    np.testing.assert_allclose(samples.logp_BR, first_samples.logp_BR, atol=1e-5)


@pytest.mark.parametrize(
    ("axes", "shards"), [((8, 1, 1), 1), ((1, 8, 1), 8), ((1, 1, 8), 8), ((2, 2, 2), 4)], ids=str
)
def test_memory_of_the_state_falls_with_the_devices_that_share_it(axes, shards):
    batch = sum(array.nbytes for array in ROWS.values())
    whole, shard = (
        updated(a)[1].memory_analysis().argument_size_in_bytes for a in ((1, 1, 1), axes)
    )
    state = shard - batch // (axes[0] * axes[1])
    # Over tensor alone the norms' scales are copies; beside that exactly 1/N.
    assert state == pytest.approx((whole - batch) / shards, rel=0.05)


def test_collectives_are_the_expected_ones():
    by_mesh = {axes: collectives(updated(axes)[1]) for axes in MESHES}
    params = 4 * sum(leaf.size for leaf in jax.tree.leaves(updated((1, 1, 1))[0].params))
    for axes in ((8, 1, 1), (1, 1, 8)):  # parameters stay where they are
        assert {collective.kind for collective in by_mesh[axes]} == {"all-reduce"}
    # Data parallel: the gradient once, and scalars.
    assert sum(collective.num_bytes for collective in by_mesh[8, 1, 1]) == pytest.approx(
        params, abs=64
    )
    for axes in (
        (1, 8, 1),
        (2, 2, 2),
    ):  # a layer's parameters are gathered over fsdp, and nothing else is
        gathered = {
            collective.array for collective in by_mesh[axes] if collective.kind == "all-gather"
        }
        assert gathered
        assert gathered <= shapes_of(axes[2]) | {"f32[32]"}
        assert not {collective.kind for collective in by_mesh[axes]} & {
            "all-to-all",
            "collective-permute",
        }


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_sampling_gathers_parameters_once_over_fsdp_and_never_moves_its_cache(axes):
    compiled = updated(axes)[3]
    assert (
        compiled.as_text().count(" while(") >= 2
    )  # one for all rows, one for the half that goes on
    exchanged = collectives(compiled)
    matrices = {shape for shape in shapes_of(axes[2]) if "," in shape}
    gathered = sum(
        collective.num_bytes
        for collective in exchanged
        if collective.kind == "all-gather" and collective.array in matrices
    )
    whole = sum(
        leaf.nbytes for leaf in jax.tree.leaves(updated((1, 1, 1))[0].params) if leaf.ndim > 1
    )
    assert gathered == (whole / axes[2] if axes[1] > 1 else 0)
    assert not [collective.array for collective in exchanged if collective.array.count(",") == 3]


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_waiting_prompts_stay_on_their_device(axes):
    mesh, params = make_mesh(*axes), updated((1, 1, 1))[0].params

    def draw(params, prompts, key, max_rows):
        return sample(
            MODEL,
            params,
            prompts["tokens"],
            prompts["mask"],
            key,
            spec=PLAIN,
            response_length=12,
            stop_tokens=tuple(range(40)),
            pad_id=0,
            max_rows=max_rows,
        )

    prompts = {"tokens": TOKENS[:, :8], "mask": np.ones((16, 8), bool)}
    expected = draw(params, prompts, jax.random.key(2), 0)
    with on_mesh(mesh):
        arguments = (
            place(params, state_shardings(params, mesh, 2)),
            shard_batch(prompts, mesh),
            jax.random.key(2),
        )
        compiled = jax.jit(partial(draw, max_rows=8)).lower(*arguments).compile()
        result = compiled(*arguments)
    np.testing.assert_array_equal(result.tokens_BR, expected.tokens_BR)
    np.testing.assert_array_equal(result.stopped_B, expected.stopped_B)
    assert not [
        collective.array for collective in collectives(compiled) if collective.array.count(",") == 3
    ]  # caches


@contextmanager
def placed(model, axes):
    """A mesh of these axes, with fresh parameters of a model and the rows laid onto it."""
    mesh = make_mesh(*axes)
    with on_mesh(mesh):
        params = init_params(model, jax.random.key(0))
        yield place(params, state_shardings(params, mesh, 2)), shard_batch(ROWS, mesh)


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_gradients_of_logits_in_parts_are_those_of_one_device_and_summed_once(axes, monkeypatch):
    monkeypatch.setattr("rlhf_jax.models.logits.MOST_LOGITS", 16 * 24 * 128 // math.prod(axes) // 4)

    def gradients(axes):
        with placed(MODEL, axes) as (params, rows):

            def loss(p):
                nll_BT = scoring.next_token_nll(MODEL, p, rows["tokens_BT"], rows["segments_BT"])[0]
                return jnp.sin(nll_BT).sum()

            compiled = jax.jit(jax.grad(loss)).lower(params).compile()
            return jax.device_get(compiled(params)), compiled

    (expected, _), (result, compiled) = gradients((1, 1, 1)), gradients(axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)
    assert (
        compiled.as_text().count('known_trip_count":{"n":"4"') >= 2
    )  # forwards and backwards in four parts
    repeated = {collective.array for collective in collectives(compiled) if collective.times > 1}
    assert not repeated & {shape for shape in shapes_of(axes[2]) if "," in shape}


@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_a_pooled_score_and_its_gradient_are_those_of_one_device(axes):
    model = ScalarModel(replace(MODEL.config, read_out="pooled"))

    def gradients(axes):
        with placed(model, axes) as (params, rows):

            def loss(p):
                score_BT = apply(model, p, rows["tokens_BT"], rows["segments_BT"])
                return jnp.square(score_BT).mean()

            return jax.device_get(jax.jit(jax.value_and_grad(loss))(params))

    expected, result = gradients((1, 1, 1)), gradients(axes)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), result, expected)


def test_models_that_tensor_does_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"mesh\.tensor = 3 does not divide model\.num_heads = 8"):
        check_model(CONFIG, make_mesh(1, 1, 3))
    shared_head = palm(
        vocab_size=128,
        context_length=32,
        width=32,
        num_layers=1,
        num_heads=4,
        head_width=8,
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
    )
    check_model(shared_head, make_mesh(1, 1, 4))  # its one key/value head is copied
    with pytest.raises(
        ValueError, match=r"mesh\.tensor = 4 does not divide trunk/embedding of shape \(130, 32\)"
    ):
        state_shardings({"trunk": {"embedding": jnp.zeros((130, 32))}}, make_mesh(1, 1, 4), 2)
