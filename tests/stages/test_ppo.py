"""The checks that every RLHF-PPO implementation has to pass, on real components at toy size."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests_support import load_experiment

from rlhf_jax.config import build
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.masking import Mean, length_mask, value
from rlhf_jax.models.config import gpt
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.stages import ppo as stage
from rlhf_jax.stages.rewards import Reward, start_moments
from rlhf_jax.stages.rollout import Networks, Parameters, StopTokens, read_samples, sample_texts
from rlhf_jax.training.updates import Objective, accumulated_gradients, init_state, minibatch_rows

B, P, R, V, EOS = 8, 4, 5, 11, 1
SHAPE = gpt(
    vocab_size=V,
    context_length=16,
    width=16,
    num_layers=1,
    num_heads=2,
    dropout_rate=0.0,
    compute_dtype="float32",
    param_dtype="float32",
    remat="none",
)
PPO = stage.PPO(
    total_episodes=B,
    batch_size=B,
    num_ppo_epochs=2,
    num_mini_batches=2,
    num_micro_batches=1,
    response_length=R,
    sampling_rows=0,
    temperature=0.7,
    top_k=0,
    top_p=1.0,
    kl_coef=0.1,
    kl_controller="fixed",
    kl_target=6.0,
    kl_horizon=10_000,
    kl_estimator="k1",
    gamma=1.0,
    lam=0.95,
    cliprange=0.2,
    cliprange_value=0.2,
    vf_coef=0.5,
    entropy_coef=0.0,
    policy_loss="clip",
    kl_penalty_coef=1.0,
    kl_penalty_target=0.01,
    missing_eos_penalty=1.0,
    missing_eos_mode="replace",
    whiten_rewards=False,
    whiten_advantages="batch",
    target_kl=0.0,
    ema_decay=0.0,
    ptx_coef=0.0,
    ptx_batch_size=0,
)
NETWORKS = Networks(
    policy=LanguageModel(SHAPE), rewards={"model": ScalarModel(SHAPE)}, value=ScalarModel(SHAPE)
)
REWARDS = {"model": Reward("reward:../reward", weight=1.0, clip=0.0, normalisation="none")}


def moments():
    return start_moments(REWARDS)


@pytest.fixture(scope="module")
def params():
    policy = init_params(NETWORKS.policy, jax.random.key(0))
    reward = init_params(NETWORKS.rewards["model"], jax.random.key(1))
    # Louder than at initialisation, so that a wrong position or temperature shows.
    loud = jax.tree.map(lambda x: 5 * x, policy)
    return {"policy": loud, "reward": reward, "value": jax.tree.map(jnp.copy, reward)}


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    mask = np.arange(P)[None, :] >= rng.integers(0, P, B)[:, None]
    return {
        "prompt_BP": jnp.asarray(np.where(mask, rng.integers(2, V, (B, P)), 0)),
        "prompt_mask_BP": jnp.asarray(mask),
    }


@pytest.fixture(scope="module")
def sampled(params, prompts):
    draw = partial(sample_texts, NETWORKS.policy, PPO, StopTokens((EOS,), 0))
    return draw(params["policy"], prompts, jax.random.key(2))


@cache
def compiled_collect(ppo):
    read = jax.jit(partial(read_samples, NETWORKS, ppo.spec))
    return read, jax.jit(partial(stage.collect, ppo, REWARDS))


def collect(params, sampled, *, reference=None, kl_coef=0.1, **changes):
    """The rollout of samples, and its metrics, with some settings of PPO changed."""
    texts, samples = sampled
    everything = Parameters(
        policy=params["policy"],
        reference=params["policy"] if reference is None else reference,
        rewards={"model": params["reward"]},
        value=params["value"],
    )
    controllers = stage.Controllers(jnp.asarray(kl_coef), jnp.asarray(1.0), moments())
    read, compiled = compiled_collect(replace(PPO, **changes))
    collected = compiled(texts, samples, read(everything, texts), controllers)
    return collected.rollout, collected.metrics


@cache
def compiled_loss(ppo):
    return jax.jit(partial(stage.ppo_loss, ppo, NETWORKS))


@pytest.fixture(scope="module")
def other(params):
    return jax.tree.map(lambda x: 0.8 * x, params["policy"])


@pytest.fixture(scope="module")
def rollout(params, sampled, other):
    return collect(params, sampled, reference=other)[0]


def trained(params):
    return {"policy": params["policy"], "value": params["value"]}


def loss_of(params, rollout, ppo=PPO):
    num_tokens = rollout.texts.mask_BR.sum()
    return compiled_loss(ppo)(trained(params), rollout, num_tokens, jax.random.key(0))


def test_kl_to_itself_is_zero(params, sampled):
    _, metrics = collect(params, sampled)
    assert abs(float(value(metrics["objective/kl"]))) < 1e-5
    assert abs(float(value(metrics["objective/non_score_reward"]))) < 1e-6


def test_first_minibatch_has_ratio_one_and_loss_zero(params, rollout):
    _, metrics = loss_of(params, rollout)
    assert abs(float(value(metrics["val/ratio"])) - 1) < 1e-5
    assert float(value(metrics["policy/approxkl_avg"])) < 1e-9
    assert float(value(metrics["policy/clipfrac_avg"])) == 0
    # -mean(ratio * whitened advantage) = -mean(whitened advantage) = 0
    assert abs(float(value(metrics["loss/policy_avg"]))) < 1e-5
    assert float(value(metrics["mismatch/logp_mean"])) < 1e-5


def test_a_forgotten_temperature_would_be_seen(params, rollout):
    _, metrics = loss_of(params, rollout, replace(PPO, temperature=1.0))
    assert float(value(metrics["mismatch/logp_mean"])) > 1e-2


def test_rewards_sum_to_score_minus_kl(params, sampled, other):
    silent = {**params, "value": jax.tree.map(jnp.zeros_like, params["value"])}
    whole = {"gamma": 1.0, "lam": 1.0, "whiten_advantages": "none"}
    rollout, metrics = collect(silent, sampled, reference=other, **whole)
    # With V = 0, γ = λ = 1 the first return is the whole reward of the response.
    unpenalised, _ = collect(silent, sampled, reference=other, kl_coef=0.0, **whole)
    log_ratio_B = (unpenalised.return_BR[:, 0] - rollout.return_BR[:, 0]) / 0.1
    expected = jnp.where(rollout.stopped_B, rollout.score_B, -1.0)
    np.testing.assert_allclose(unpenalised.return_BR[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(log_ratio_B.mean(), value(metrics["objective/kl"]), atol=1e-3)


def test_missing_end_is_penalised_by_the_samplers_reason(params, sampled):
    texts, samples = sampled
    cut = (texts, samples._replace(stopped_B=jnp.zeros(B, bool)))
    for mode, expected in (
        ("replace", lambda s: -1.0 + 0 * s),
        ("subtract", lambda s: s - 1.0),
        ("none", lambda s: s),
    ):
        rollout, _ = collect(
            params,
            cut,
            kl_coef=0.0,
            missing_eos_mode=mode,
            gamma=1.0,
            lam=1.0,
            whiten_advantages="none",
        )
        last_B = rollout.texts.mask_BR.sum(axis=1) - 1
        final_B = jnp.take_along_axis(rollout.return_BR, last_B[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(final_B, expected(rollout.score_B), atol=1e-5)


def test_value_starts_as_the_reward_model(params, sampled):
    # V read one token later than the last response token would be the score itself; before it, it
    # is finite and not constant.
    rollout, metrics = collect(params, sampled)
    assert np.isfinite(float(value(metrics["val/mean"])))
    assert np.isfinite(float(metrics["val/var_explained"]))
    assert float(rollout.value_BR.std()) > 0


def test_garbage_after_the_end_changes_nothing(params, prompts, other):
    length_B = jnp.full(B, 3)
    tokens = jax.random.randint(jax.random.key(5), (B, R), 2, V)
    logp = jnp.full((B, R), -1.3)
    mask = length_mask(length_B, R)

    def rollout_with(token, log_probability):
        samples = Samples(
            tokens_BR=jnp.where(mask, tokens, token),
            logp_BR=jnp.where(mask, logp, log_probability),
            length_B=length_B,
            stopped_B=jnp.ones(B, bool),
        )
        texts = Texts(prompts["prompt_BP"], prompts["prompt_mask_BP"], samples.tokens_BR, mask)
        return collect(params, (texts, samples), reference=other)[0]

    clean, dirty = rollout_with(0, 0.0), rollout_with(7, 99.0)
    for name in ("value_BR", "advantage_BR", "return_BR", "score_B"):
        np.testing.assert_allclose(getattr(clean, name), getattr(dirty, name), atol=1e-5)
    gradient = jax.jit(
        jax.grad(lambda p, r: stage.ppo_loss(PPO, NETWORKS, p, r, 1.0, jax.random.key(0))[0])
    )
    for x, y in zip(
        jax.tree.leaves(gradient(trained(params), clean)),
        jax.tree.leaves(gradient(trained(params), dirty)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, atol=1e-5)


def run_update(params, rollout, optimizer, *, num_rows=0, blocks=None, **changes):
    """The state after an update, and its metrics."""
    ppo = replace(PPO, **changes)
    update = jax.jit(partial(stage.update, ppo, NETWORKS, optimizer))
    rollout = rollout._replace(texts=rollout.texts.packed(num_rows))
    data = stage.UpdateData(rollout, blocks or {}, {})
    return update(init_state(trained(params), optimizer, {}), data, jax.random.key(3))


# Moves nothing, and leaves the last gradient as the optimizer's state.
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def whole_gradient(params, rollout, **changes):
    """The gradient of one minibatch that is the whole rollout, and its metrics."""
    state, metrics = run_update(
        params, rollout, RECORDER, num_ppo_epochs=1, num_mini_batches=1, **changes
    )
    return state.opt_state, metrics


def test_learning_rate_zero_keeps_ratio_one_in_every_epoch(params, rollout):
    state, metrics = run_update(params, rollout, optax.sgd(0.0))
    assert abs(float(value(metrics["val/ratio"])) - 1) < 1e-5
    assert float(value(metrics["policy/approxkl_avg"])) < 1e-9
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(trained(params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_quantities_are_frozen_so_later_ratios_differ(params, rollout):
    _, metrics = run_update(params, rollout, optax.sgd(0.5))
    assert float(value(metrics["policy/approxkl_avg"])) > 1e-5
    assert float(metrics["val/ratio_var"]) > 0
    assert float(value(metrics["mismatch/logp_mean"])) < 1e-5  # read before the first step


def test_micro_batches_change_nothing(params, rollout):
    whole, whole_metrics = whole_gradient(params, rollout, num_micro_batches=1)
    parts, parts_metrics = whole_gradient(params, rollout, num_micro_batches=4)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(a).max()) + 1e-8)
    for a, b in zip(jax.tree.leaves(whole_metrics), jax.tree.leaves(parts_metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("micro", [1, 2])
def test_an_update_on_packed_rows_is_the_same_update(params, rollout, micro):
    texts = replace(
        rollout.texts,
        prompt_mask_BP=rollout.texts.prompt_mask_BP & ~length_mask(jnp.full(B, P - 2), P),
        mask_BR=rollout.texts.mask_BR & length_mask(1 + jnp.arange(B) % 3, R),
    )
    rollout = rollout._replace(texts=texts)
    count = jax.jit(partial(stage.count_packed_rows, replace(PPO, num_micro_batches=micro)))
    whole, needed = count(texts, jax.random.key(3))
    assert int(whole) < B
    assert int(needed) < B // 2 // micro
    sgd = optax.sgd(0.5)
    unpacked, metrics = run_update(params, rollout, sgd, num_micro_batches=micro)
    packed, packed_metrics = run_update(
        params, rollout, sgd, num_micro_batches=micro, num_rows=int(needed)
    )
    for a, b in zip(jax.tree.leaves(unpacked.params), jax.tree.leaves(packed.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(jax.tree.leaves(metrics), jax.tree.leaves(packed_metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_target_kl_stops_the_update(params, rollout):
    _, free = run_update(params, rollout, optax.sgd(0.5))
    _, held = run_update(params, rollout, optax.sgd(0.5), target_kl=1e-6)
    assert int(free["policy/minibatches"]) == 4
    assert int(held["policy/minibatches"]) == 2  # the first has KL 0, the second exceeds the target


def test_every_row_exactly_once_per_epoch():
    rows = np.asarray(minibatch_rows(jax.random.key(0), 12, 3, 4))
    assert rows.shape == (12, 3)
    epochs = rows.reshape(3, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()


@pytest.mark.parametrize(("size", "parts"), [(2, 1), (2 * B, 2)])
def test_ptx_gradient_is_added(params, rollout, size, parts):
    block = {
        "tokens_BT": jax.random.randint(jax.random.key(8), (size, 9), 2, V),
        "segments_BT": jnp.ones((size, 9), int),
    }
    ppo = replace(PPO, num_mini_batches=1, ptx_coef=0.5, ptx_batch_size=size)
    assert ppo.ptx_micro_batches == parts
    plain, _ = whole_gradient(params, rollout)
    mixed, metrics = whole_gradient(
        params,
        rollout,
        blocks=jax.tree.map(lambda x: x[None], block),
        ptx_coef=0.5,
        ptx_batch_size=size,
    )

    def lm(policy):
        logits, _ = NETWORKS.policy.apply(
            {"params": policy}, block["tokens_BT"], block["segments_BT"]
        )
        logp = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(logp, block["tokens_BT"][:, 1:, None], axis=-1).mean()

    expected = jax.tree.map(
        lambda a, b: a + 0.5 * b, plain["policy"], jax.jit(jax.grad(lm))(params["policy"])
    )
    for a, b in zip(jax.tree.leaves(mixed["policy"]), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    for a, b in zip(jax.tree.leaves(mixed["value"]), jax.tree.leaves(plain["value"]), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(value(metrics["ptx/loss"]), lm(params["policy"]), rtol=1e-5)


def test_controller_moves_after_the_batch_it_paid():
    ppo = replace(PPO, kl_controller="adaptive", batch_size=512)
    controllers = stage.Controllers(jnp.asarray(0.15), jnp.asarray(1.0), moments())
    state = init_state({"policy": {"w": jnp.ones(2)}}, optax.sgd(0.0), {"controllers": controllers})
    state = stage.after_update(ppo, state, Mean(jnp.asarray(12.0), jnp.asarray(1.0)), moments())
    np.testing.assert_allclose(
        state.extras["controllers"].kl_coef, 0.15 * (1 + 0.2 * 512 / 10_000), rtol=1e-6
    )


def test_weight_average_follows_the_policy():
    ppo = replace(PPO, ema_decay=0.9)
    params = {"policy": {"w": jnp.ones(2)}}
    controllers = stage.Controllers(jnp.asarray(0.1), jnp.asarray(1.0), moments())
    state = init_state(
        params, optax.sgd(0.0), {"controllers": controllers, "ema": {"w": jnp.zeros(2)}}
    )
    state = stage.after_update(ppo, state, Mean(jnp.asarray(1.0), jnp.asarray(1.0)), moments())
    np.testing.assert_allclose(state.extras["ema"]["w"], 0.1, rtol=1e-6)


def _config(**changes):
    config = load_experiment("experiments/menagerie/ppo.py", "tiny")
    with config.unlocked():
        for path, new in changes.items():
            group, name = path.split("__")
            config[group][name] = new
    return build(stage.Config, config)


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"ppo__top_p": 0.9}, 1, "truncated sampling"),
        ({"ppo__top_k": 5}, 1, "truncated sampling"),
        ({"ppo__total_episodes": 33}, 1, "33 is not divisible by 16"),
        ({"ppo__num_mini_batches": 3}, 1, "16 is not divisible by 3"),
        ({"ppo__num_micro_batches": 5}, 1, "8 is not divisible by 5"),
        ({}, 16, "8 is not divisible by 16"),
        ({"ppo__temperature": 0.0}, 1, "greedy|truncated"),
        ({"ppo__sampling_rows": -1}, 1, r"sampling_rows=-1: expected a number of responses"),
        ({"ppo__kl_controller": "adaptive", "ppo__kl_target": 0.0}, 1, "kl_target > 0"),
        ({"ppo__ptx_coef": 1.0}, 1, "ptx_batch_size > 0"),
        ({"lora__rank": 2, "init__value": "random"}, 1, r"init\.value=random with lora\.rank > 0"),
    ],
)
def test_impossible_arithmetic_is_refused(changes, devices, message):
    with pytest.raises(ValueError, match=message):
        stage.check(_config(**changes), devices)


def test_documents_are_asked_for_where_the_mix_is_on():
    config = _config(ppo__ptx_coef=1.0, ppo__ptx_batch_size=8, data__documents=None)
    with pytest.raises(ValueError, match=r"ptx_coef=1.0 needs data\.documents"):
        stage.check(config, 1)


def test_pmap_of_the_pure_update_equals_jit(params, rollout):
    """The same pure gradient under jax.pmap, with the devices' shares summed, gives the same
    update."""
    whole = Objective(
        partial(stage.ppo_loss, PPO, NETWORKS), lambda rollout: rollout.texts.mask_BR.sum()
    )
    key = jax.random.key(0)
    grads, _ = jax.jit(lambda p, r: accumulated_gradients(whole, p, {}, r, key))(
        trained(params), rollout
    )
    devices = 4
    shares = jax.tree.map(lambda x: x.reshape(devices, B // devices, *x.shape[1:]), rollout)
    share = replace(whole, axis_name="d")
    mapped, _ = jax.pmap(
        lambda p, r: accumulated_gradients(share, p, {}, r, key),
        axis_name="d",
        in_axes=(None, 0),
        devices=jax.devices()[:devices],
    )(trained(params), shares)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(mapped), strict=True):
        for device in range(devices):
            np.testing.assert_allclose(a, b[device], atol=1e-6)
