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
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.masking import Mean, length_mask, value
from rlhf_jax.maths.returns import RunningMoments
from rlhf_jax.models.config import gpt
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.stages import ppo as stage
from rlhf_jax.stages.rollout import Frozen, Models, RewardRules, make_rollout, sample_responses
from rlhf_jax.training.updates import accumulated_gradients, init_state, minibatch_rows

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
SPEC = SamplingSpec(temperature=0.7, top_k=0, top_p=1.0, nucleus="holtzman")
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
    score_clip=0.0,
    score_normalisation="none",
    whiten_rewards=False,
    whiten_advantages="batch",
    target_kl=0.0,
    ema_decay=0.0,
    ptx_coef=0.0,
    ptx_batch_size=0,
)
MODELS = Models(LanguageModel(SHAPE), ScalarModel(SHAPE), ScalarModel(SHAPE))
RULES = stage.reward_rules(PPO)


def moments():
    return RunningMoments(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


@pytest.fixture(scope="module")
def params():
    policy = init_params(MODELS.policy, jax.random.key(0))
    reward = init_params(MODELS.reward, jax.random.key(1))
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
def samples(params, prompts):
    return sample_responses(
        MODELS.policy,
        params["policy"],
        prompts,
        jax.random.key(2),
        spec=SPEC,
        response_length=R,
        stop_tokens=(EOS,),
        pad_id=0,
    )


@cache
def compiled_judge(rules):
    return jax.jit(partial(make_rollout, MODELS, spec=SPEC, rules=rules))


def judge(params, prompts, samples, *, reference=None, kl_coef=0.1, rules=RULES):
    frozen = Frozen(params["policy"] if reference is None else reference, params["reward"])
    return compiled_judge(rules)(
        params["value"], frozen, prompts, samples, jnp.asarray(kl_coef), moments()
    )


@cache
def compiled_loss(spec):
    return jax.jit(partial(stage.minibatch_loss, MODELS, PPO, spec))


@pytest.fixture(scope="module")
def other(params):
    return jax.tree.map(lambda x: 0.8 * x, params["policy"])


@pytest.fixture(scope="module")
def rollout(params, prompts, samples, other):
    return judge(params, prompts, samples, reference=other)[0]


def trained(params):
    return {"policy": params["policy"], "value": params["value"]}


def test_kl_to_itself_is_zero(params, prompts, samples):
    _, _, metrics = judge(params, prompts, samples)
    assert abs(float(value(metrics["objective/kl"]))) < 1e-5
    assert abs(float(value(metrics["objective/non_score_reward"]))) < 1e-6


def test_first_minibatch_has_ratio_one_and_loss_zero(params, rollout):
    _, metrics = compiled_loss(SPEC)(
        trained(params), rollout, rollout.mask_BR.sum(), jax.random.key(0)
    )
    assert abs(float(value(metrics["val/ratio"])) - 1) < 1e-5
    assert float(value(metrics["policy/approxkl_avg"])) < 1e-9
    assert float(value(metrics["policy/clipfrac_avg"])) == 0
    # -mean(ratio * whitened advantage) = -mean(whitened advantage) = 0
    assert abs(float(value(metrics["loss/policy_avg"]))) < 1e-5
    assert float(value(metrics["mismatch/logp_mean"])) < 1e-5


def test_a_forgotten_temperature_would_be_seen(params, rollout):
    wrong = replace(SPEC, temperature=1.0)
    _, metrics = compiled_loss(wrong)(
        trained(params), rollout, rollout.mask_BR.sum(), jax.random.key(0)
    )
    assert float(value(metrics["mismatch/logp_mean"])) > 1e-2


def test_rewards_sum_to_score_minus_kl(params, prompts, samples, other):
    rules = replace(RULES, gamma=1.0, lam=1.0, whiten_advantages="none")
    zero_value = jax.tree.map(jnp.zeros_like, params["value"])
    rollout, _, _ = judge(
        {**params, "value": zero_value}, prompts, samples, reference=other, rules=rules
    )
    # With V = 0, γ = λ = 1 the first return is the whole reward of the response.
    ref = judge(
        {**params, "value": zero_value}, prompts, samples, reference=other, kl_coef=0.0, rules=rules
    )[0]
    log_ratio_B = (ref.return_BR[:, 0] - rollout.return_BR[:, 0]) / 0.1
    expected = jnp.where(samples.stopped_B, rollout.score_B, -1.0)
    np.testing.assert_allclose(ref.return_BR[:, 0], expected, atol=1e-5)
    _, _, metrics = judge(
        {**params, "value": zero_value}, prompts, samples, reference=other, rules=rules
    )
    np.testing.assert_allclose(log_ratio_B.mean(), value(metrics["objective/kl"]), atol=1e-3)


def test_missing_end_is_penalised_by_the_samplers_reason(params, prompts, samples):
    forced = samples._replace(stopped_B=jnp.zeros(B, bool))
    rules = replace(RULES, gamma=1.0, lam=1.0, whiten_advantages="none")
    for mode, expected in (
        ("replace", lambda s: -1.0 + 0 * s),
        ("subtract", lambda s: s - 1.0),
        ("none", lambda s: s),
    ):
        rollout, _, _ = judge(
            params, prompts, forced, kl_coef=0.0, rules=replace(rules, missing_eos_mode=mode)
        )
        last_B = rollout.mask_BR.sum(axis=1) - 1
        final_B = jnp.take_along_axis(rollout.return_BR, last_B[:, None], axis=1)[:, 0]
        np.testing.assert_allclose(final_B, expected(rollout.score_B), atol=1e-5)


def test_value_starts_as_the_reward_model(params, prompts, samples):
    # V read one token later than the last response token would be the score itself; before it, it is finite and not constant.
    rollout, _, metrics = judge(params, prompts, samples)
    assert np.isfinite(float(metrics["val/var_explained"]))
    assert float(rollout.value_BR.std()) > 0


def test_garbage_after_the_end_changes_nothing(params, prompts, other):
    length_B = jnp.full(B, 3)
    tokens = jax.random.randint(jax.random.key(5), (B, R), 2, V)
    logp = jnp.full((B, R), -1.3)
    mask = length_mask(length_B, R)
    clean = Samples(
        jnp.where(mask, tokens, 0), jnp.where(mask, logp, 0), length_B, jnp.ones(B, bool)
    )
    dirty = Samples(
        jnp.where(mask, tokens, 7), jnp.where(mask, logp, 99.0), length_B, jnp.ones(B, bool)
    )
    a = judge(params, prompts, clean, reference=other)[0]
    b = judge(params, prompts, dirty, reference=other)[0]
    for x, y in zip(a[5:], b[5:], strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    grad = jax.jit(
        jax.grad(
            lambda p, r: stage.minibatch_loss(MODELS, PPO, SPEC, p, r, 1.0, jax.random.key(0))[0]
        )
    )
    for x, y in zip(
        jax.tree.leaves(grad(trained(params), a)),
        jax.tree.leaves(grad(trained(params), b)),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, atol=1e-5)


def run_update(params, rollout, learning_rate, *, num_rows=0, **changes):
    ppo = replace(PPO, **changes)
    optimizer = optax.sgd(learning_rate)
    update = jax.jit(stage.make_update(MODELS, optimizer, ppo, SPEC, num_rows=num_rows))
    return update(init_state(trained(params), optimizer, {}), (rollout, {}), jax.random.key(3))


def test_learning_rate_zero_keeps_ratio_one_in_every_epoch(params, rollout):
    state, metrics = run_update(params, rollout, 0.0)
    assert abs(float(value(metrics["val/ratio"])) - 1) < 1e-5
    assert float(value(metrics["policy/approxkl_avg"])) < 1e-9
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(trained(params)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_old_quantities_are_frozen_so_later_ratios_differ(params, rollout):
    _, metrics = run_update(params, rollout, 0.5)
    assert float(value(metrics["policy/approxkl_avg"])) > 1e-5
    assert float(metrics["val/ratio_var"]) > 0
    assert float(value(metrics["mismatch/logp_mean"])) < 1e-5  # read before the first step


def test_micro_batches_change_nothing(params, rollout):
    def gradients(count):
        ppo = replace(PPO, num_micro_batches=count)
        return jax.jit(stage.make_gradients(MODELS, ppo, SPEC))(trained(params), rollout, {})

    (one, one_metrics), (four, four_metrics) = gradients(1), gradients(4)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(a).max()) + 1e-8)
    for name in one_metrics:
        np.testing.assert_allclose(
            value(one_metrics[name]), value(four_metrics[name]), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("micro", [1, 2])
def test_an_update_on_packed_rows_is_the_same_update(params, rollout, micro):
    short_BP = rollout.prompt_mask_BP & ~length_mask(jnp.full(B, P - 2), P)
    rollout = rollout._replace(
        prompt_mask_BP=short_BP, mask_BR=rollout.mask_BR & length_mask(1 + jnp.arange(B) % 3, R)
    )
    count = jax.jit(partial(stage.rows_needed_by, replace(PPO, num_micro_batches=micro)))
    whole, needed = count(rollout.prompt_mask_BP, rollout.mask_BR.sum(1), jax.random.key(3))
    assert int(whole) < B
    assert int(needed) < B // 2 // micro
    one_each, metrics = run_update(params, rollout, 0.5, num_micro_batches=micro)
    packed, packed_metrics = run_update(
        params, rollout, 0.5, num_micro_batches=micro, num_rows=int(needed)
    )
    for a, b in zip(jax.tree.leaves(one_each.params), jax.tree.leaves(packed.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(jax.tree.leaves(metrics), jax.tree.leaves(packed_metrics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_target_kl_stops_the_update(params, rollout):
    _, free = run_update(params, rollout, 0.5)
    _, held = run_update(params, rollout, 0.5, target_kl=1e-6)
    assert int(free["policy/minibatches"]) == 4
    assert int(held["policy/minibatches"]) == 2  # the first has KL 0, the second exceeds the target


def test_every_row_exactly_once_per_epoch():
    rows = np.asarray(minibatch_rows(jax.random.key(0), 12, 3, 4))
    assert rows.shape == (12, 3)
    epochs = rows.reshape(3, 12)
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()


@pytest.mark.parametrize(
    ("size", "parts"), [(2, 1), (PPO.batch_size // PPO.num_mini_batches * 2, 2)]
)
def test_ptx_gradient_is_added(params, rollout, size, parts):
    block = {
        "tokens_BT": jax.random.randint(jax.random.key(8), (size, 9), 2, V),
        "segments_BT": jnp.ones((size, 9), int),
    }
    ppo = replace(PPO, ptx_coef=0.5, ptx_batch_size=size)
    assert stage.block_micro_batches(ppo) == parts
    plain, _ = jax.jit(stage.make_gradients(MODELS, PPO, SPEC))(trained(params), rollout, {})
    mixed, metrics = jax.jit(stage.make_gradients(MODELS, ppo, SPEC))(
        trained(params), rollout, block
    )

    def lm(policy):
        logits, _ = MODELS.policy.apply(
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
    state = stage._after_update(state, ppo, Mean(jnp.asarray(12.0), jnp.asarray(1.0)), moments())
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
    state = stage._after_update(state, ppo, Mean(jnp.asarray(1.0), jnp.asarray(1.0)), moments())
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


def test_pmap_of_the_pure_update_equals_jit(params, rollout):
    """The same pure gradient under jax.pmap, with the devices' shares summed, gives the same update."""
    loss = partial(stage.minibatch_loss, MODELS, PPO, SPEC)
    weights = lambda r: r.mask_BR.sum()  # noqa: E731
    key = jax.random.key(0)
    grads, _ = jax.jit(
        lambda p, r: accumulated_gradients(loss, weights, p, r, key, num_micro_batches=1)
    )(trained(params), rollout)
    devices = 4
    shares = jax.tree.map(lambda x: x.reshape(devices, B // devices, *x.shape[1:]), rollout)
    mapped, _ = jax.pmap(
        lambda p, r: accumulated_gradients(
            loss, weights, p, r, key, num_micro_batches=1, axis_name="d"
        ),
        axis_name="d",
        in_axes=(None, 0),
        devices=jax.devices()[:devices],
    )(trained(params), shares)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(mapped), strict=True):
        for device in range(devices):
            np.testing.assert_allclose(a, b[device], atol=1e-6)


def test_reward_rules_are_read():
    assert set(RewardRules.__dataclass_fields__) <= set(stage.PPO.__dataclass_fields__)
