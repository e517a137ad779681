"""Adam with both epsilons, schedules by hand, clipping, the decay mask, weight averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.training.optimizer import (
    OptimizerConfig,
    clip_by_global_norm,
    decay_mask,
    ema_update,
    global_norm,
    make_optimizer,
    scale_by_adam,
    schedule,
)

PLAIN = {
    "learning_rate": 1.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "warmup_init_fraction": 0.0,
    "final_fraction": 1.0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-5,
    "adam_style": "torch",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
}


def config(**changes):
    return OptimizerConfig(**(PLAIN | changes))


def trajectory(optimizer, grads, start):
    params, state, seen = start, optimizer.init(start), []
    update = jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("torch", [-0.5000000000000001, -0.9999999999999984, -0.9556810573118729]),
        ("tf", [-0.030653430031715518, -0.07345015850414795, -0.06801291312463693]),
    ],
)
def test_three_adam_steps_equal_the_float64_golden_values(style, expected):
    grads = [jnp.asarray(g, jnp.float32) for g in (1e-5, 1e-5, -2e-5)]
    seen = trajectory(make_optimizer(config(adam_style=style), 3), grads, jnp.zeros(()))
    np.testing.assert_allclose(np.asarray(seen), expected, rtol=1e-6)


def test_torch_style_is_optax_adam_and_tf_style_tends_to_it():
    grads = [{"a": jax.random.normal(jax.random.key(i), (4, 3))} for i in range(5)]
    start = {"a": jnp.ones((4, 3))}
    ours = trajectory(
        optax.chain(scale_by_adam(0.9, 0.95, 1e-3, style="torch"), optax.scale(-0.1)), grads, start
    )
    reference = trajectory(optax.adam(0.1, b1=0.9, b2=0.95, eps=1e-3), grads, start)
    np.testing.assert_allclose(ours[-1]["a"], reference[-1]["a"], rtol=1e-5)

    tiny = scale_by_adam(0.9, 0.5, 1e-2, style="tf")  # after 30 steps 1 - b2^t is 1
    state = tiny.init(start)._replace(updates=jnp.asarray(30))
    plain = scale_by_adam(0.9, 0.5, 1e-2, style="torch")
    np.testing.assert_allclose(
        tiny.update(grads[0], state)[0]["a"], plain.update(grads[0], state)[0]["a"], rtol=1e-6
    )


def test_moments_are_float32_and_updates_keep_the_parameter_dtype():
    params = {"a": jnp.ones((2, 2), jnp.bfloat16)}
    optimizer = make_optimizer(config(max_grad_norm=1.0, weight_decay=0.1), 3)
    start = optimizer.init(params)
    updates, state = optimizer.update(params, start, params)
    assert jax.tree.map(lambda x: x.dtype, start) == jax.tree.map(
        lambda x: x.dtype, state
    )  # or the step compiles twice
    assert optax.apply_updates(params, updates)["a"].dtype == jnp.bfloat16
    moments = [x.dtype for x in jax.tree.leaves(state) if x.ndim == 2]
    assert moments == [jnp.float32, jnp.float32]


def rates(num_steps, **changes):
    return np.asarray([schedule(config(**changes), num_steps)(k) for k in range(num_steps)])


def test_schedules_by_hand():
    np.testing.assert_allclose(rates(3), [1, 1, 1])
    np.testing.assert_allclose(
        rates(4, schedule="linear", final_fraction=0.0), [1, 0.75, 0.5, 0.25]
    )
    np.testing.assert_allclose(
        rates(4, schedule="linear", final_fraction=0.5), [1, 0.875, 0.75, 0.625]
    )
    # cosine to 10 %: 0.1 + 0.45 (1 + cos(0, pi/4, pi/2, 3pi/4))
    expected = [1, 0.86819805, 0.55, 0.23180195]
    np.testing.assert_allclose(rates(4, schedule="cosine", final_fraction=0.1), expected, rtol=1e-6)


def test_warmup_climbs_from_its_fraction_and_the_decay_uses_what_is_left():
    warm = {"warmup_steps": 2, "warmup_init_fraction": 0.1, "learning_rate": 2.0}
    np.testing.assert_allclose(rates(4, **warm), [0.2, 1.1, 2, 2], rtol=1e-6)
    linear = rates(6, schedule="linear", final_fraction=0.0, **warm)
    np.testing.assert_allclose(linear, [0.2, 1.1, 2, 1.5, 1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(rates(2, **warm), [0.2, 1.1], rtol=1e-6)  # nothing but warm-up


def test_the_last_linear_update_uses_one_nth_of_the_rate():
    np.testing.assert_allclose(
        rates(50, schedule="linear", final_fraction=0.0)[-1], 1 / 50, rtol=1e-5
    )


def test_the_optimizer_follows_the_schedule():
    optimizer = make_optimizer(config(schedule="linear", final_fraction=0.0, eps=1e-12), 4)
    seen = np.asarray(trajectory(optimizer, [jnp.ones(())] * 4, jnp.zeros(())))
    np.testing.assert_allclose(np.diff(seen, prepend=0), [-1, -0.75, -0.5, -0.25], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_clipping_is_optax_clipping(scale):
    keys = jax.random.split(jax.random.key(0), 2)
    grads = {
        "a": scale * jax.random.normal(keys[0], (5, 3)),
        "b": scale * jax.random.normal(keys[1], (7,)),
    }
    ours, _ = clip_by_global_norm(0.5).update(grads, optax.EmptyState())
    reference, _ = optax.clip_by_global_norm(0.5).update(grads, optax.EmptyState())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, reference)
    np.testing.assert_allclose(global_norm(grads), optax.tree.norm(grads), rtol=1e-6)
    assert global_norm(ours) <= 0.5 * (1 + 1e-6)


def test_clipping_by_hand_and_of_zero_gradients():
    clipped, _ = clip_by_global_norm(1.0).update({"a": jnp.array([3.0, 4.0])}, optax.EmptyState())
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
    still, _ = clip_by_global_norm(1.0).update({"a": jnp.zeros(2)}, optax.EmptyState())
    np.testing.assert_array_equal(still["a"], [0, 0])


def test_weight_decay_spares_biases_norms_and_vectors():
    params = {
        "attention": {"query": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((3, 4))}},
        "norm": {"scale": jnp.ones(2)},
        "gain": jnp.ones(2),
        "wte": jnp.ones((5, 2)),
    }
    expected = {
        "attention": {"query": {"kernel": True, "bias": False}},
        "norm": {"scale": False},
        "gain": False,
        "wte": True,
    }
    assert decay_mask(params) == expected
    optimizer = make_optimizer(config(weight_decay=0.1, learning_rate=0.5), 1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["wte"], -0.05 * np.ones((5, 2)), rtol=1e-6)
    np.testing.assert_array_equal(updates["attention"]["query"]["bias"], np.zeros((3, 4)))


def test_ema_by_hand_and_in_its_own_dtype():
    average = {"a": jnp.array([1.0, 0.0])}
    moved = ema_update(average, {"a": jnp.array([0.0, 1.0], jnp.bfloat16)}, decay=0.75)
    np.testing.assert_allclose(moved["a"], [0.75, 0.25])
    assert moved["a"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, r"optimizer\.learning_rate = 0\.0: must be > 0"),
        ({"schedule": "cosin"}, r"optimizer\.schedule = 'cosin': must be one of"),
        ({"adam_style": "jax"}, r"optimizer\.adam_style = 'jax'"),
        (
            {"final_fraction": 0.1},
            r"optimizer\.final_fraction = 0\.1: must be 1\.0 with schedule='constant'",
        ),
        ({"b2": 1.0}, r"optimizer\.b2 = 1\.0"),
        ({"max_grad_norm": -1.0}, r"optimizer\.max_grad_norm = -1\.0"),
    ],
)
def test_impossible_fields_are_errors_that_name_them(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_warmup_longer_than_the_run_is_an_error():
    with pytest.raises(ValueError, match=r"warmup_steps = 5 does not fit in num_steps = 4"):
        schedule(config(warmup_steps=5), 4)
