"""Every algorithm on a bandit whose optimum is known, through its stage's own functions; and what each one's settings mean.

KL-regularised reward on three arms has the optimum π* ∝ ρ exp(r/β). The policy, the value and the reward network are real
ones: one prompt, answers of one token, a policy whose logits are its last bias, a reward model that scores arm i with i.
"""

import importlib
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests_support import load_experiment

from experiments import bandit
from experiments.bandit import POLICY, REFERENCE, SHAPE, SPEC, arms, tabular_policy
from rlhf_jax.inference.scoring import packed_logps
from rlhf_jax.maths.masking import value
from rlhf_jax.maths.returns import RunningMoments, empty_moments
from rlhf_jax.models.heads import LanguageModel, init_params
from rlhf_jax.stages import policy_gradient, preference
from rlhf_jax.stages.configuration import build
from rlhf_jax.stages.policy_gradient_config import check
from rlhf_jax.stages.rollouts import Frozen, Judged
from rlhf_jax.training.gradients import accumulated_gradients, make_supervised_update
from rlhf_jax.training.state import init_state

OPTIMUM, BETA = [0.03666671, 0.16255943, 0.80077385], 0.5
FALLING = optax.cosine_decay_schedule(0.05, 300, alpha=0.02)


def settings_of(name, **changes):
    experiment = importlib.import_module(f"experiments.menagerie.{name}")
    return bandit.group_settings(experiment, kl_coef=BETA, **changes)


def learn_by_groups(name, **changes):
    policy_UA, metrics = bandit.play_groups(settings_of(name, **changes), updates=300, learning_rate=0.05)
    return policy_UA[-1], metrics


def test_the_closed_forms():
    np.testing.assert_allclose(bandit.optimum(beta=BETA), OPTIMUM, atol=1e-6)
    np.testing.assert_allclose(bandit.objective(jnp.array(OPTIMUM), beta=BETA), 1.3063693946, atol=1e-5)
    forward = jnp.asarray(bandit.forward_optimum(beta=BETA))

    def value_of(logits):  # E r - β KL(ρ ‖ π)
        return jax.nn.softmax(logits) @ bandit.REWARD - BETA * bandit.categorical(REFERENCE, logits)

    np.testing.assert_allclose(jax.grad(value_of)(jnp.log(forward)), 0.0, atol=1e-5)
    np.testing.assert_allclose(forward.sum(), 1.0, atol=1e-6)


def test_the_reward_model_scores_arm_i_with_i():
    samples = bandit.draw(tabular_policy(), jax.random.key(0))
    settings, models = settings_of("rloo"), policy_gradient.Models(POLICY, bandit.SCALAR)
    judge = jax.jit(partial(policy_gradient.judge_groups, models, settings=settings, spec=SPEC))
    moments = policy_gradient.Moments(empty_moments(), empty_moments())
    frozen = Frozen(tabular_policy(), bandit.arm_reward())
    groups, _, score_B, _ = judge(frozen, bandit.prompts(settings.num_prompts), samples, moments)
    np.testing.assert_allclose(score_B, samples.tokens_BR[:, 0], atol=1e-4)
    np.testing.assert_allclose(groups.ref_logp_BNR.ravel(), REFERENCE[samples.tokens_BR[:, 0]], atol=1e-5)


@pytest.mark.parametrize("policy_loss", ["clip", "kl_adaptive"])
def test_ppo_reaches_the_optimum(policy_loss):
    settings = bandit.ppo_settings(kl_coef=BETA, num_ppo_epochs=2, policy_loss=policy_loss)
    policy_UA, metrics = bandit.play_ppo(settings, updates=300, learning_rate=0.05)
    np.testing.assert_allclose(policy_UA[-1], OPTIMUM, atol=1e-2)
    if policy_loss == "kl_adaptive":  # updates became smaller than the target, so the penalty has been halved again and again
        assert float(metrics["policy/kl_penalty_coef"][-1]) < 1e-3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("reinforce", {}),
        ("rloo", {}),
        ("grpo", {"kl_in": "reward", "group_std_eps": 0.1, "num_epochs": 2}),
    ],
)
def test_group_algorithms_reach_the_optimum(name, changes):
    policy, _ = learn_by_groups(name, **changes)
    np.testing.assert_allclose(policy, OPTIMUM, atol=1e-2)


def test_k3_in_the_loss_leads_to_the_optimum_of_the_other_divergence():
    policy, _ = learn_by_groups("grpo", baseline="batch", num_epochs=1)
    np.testing.assert_allclose(policy, bandit.forward_optimum(beta=BETA), atol=1e-2)


@pytest.mark.parametrize("loss", ["dpo", "best"])
def test_choosing_by_the_reward_model_finds_the_best_arm(loss):
    policy, metrics = learn_by_groups("online_dpo", loss=loss)
    assert policy[2] > 0.95
    if loss == "dpo":
        assert {f"rewards/{name}" for name in ("accuracy", "margin", "chosen_reward", "rejected_reward")} <= set(metrics)


def pairs_of_arms(counts):
    """Packed pairs (preferred, other) of arms, each as often as `counts` says; every response has a row."""
    pairs = np.array([(i, j) for i in range(3) for j in range(3) for _ in range(counts[i][j])])
    size = len(pairs)
    return {
        "tokens_NT": jnp.stack([jnp.zeros(2 * size, int), pairs.reshape(-1)], axis=1),
        "segments_NT": jnp.ones((2 * size, 2), int),
        "row_BC": jnp.arange(2 * size).reshape(size, 2), "last_BC": jnp.ones((size, 2), int),
        "length_BC": jnp.ones((size, 2), int), "rank_BC": jnp.tile(jnp.array([[1, 2]]), (size, 1)),
        "mask_BC": jnp.ones((size, 2), bool), "ref_logp_BC": REFERENCE[pairs],
    }  # fmt: skip


def preferences(**changes):
    config = load_experiment("experiments/menagerie/dpo.py", "tiny").to_dict()
    return replace(build(preference.Config, config).preference, **changes)


def test_dpo_reaches_the_optimum_with_as_many_pairs_as_labels_have_noise():
    """Labels P(i ≻ j) = σ(r_i - r_j): many pairs make DPO's minimum RL's optimum."""
    counts = [[round(200 / (1 + np.exp(j - i))) if i != j else 0 for j in range(3)] for i in range(3)]
    batch, settings, optimizer = pairs_of_arms(counts), preferences(beta=BETA), bandit.only("final_norm']['bias", FALLING)
    loss, weigh = preference.preference_loss(POLICY, settings), partial(preference.weigh, loss="dpo")
    update = jax.jit(make_supervised_update(loss, weigh, optimizer, num_micro_batches=1))
    state = init_state(tabular_policy(), optimizer)
    for _ in range(300):
        state, metrics = update(state, batch, jax.random.key(0))
    np.testing.assert_allclose(arms(state.params), OPTIMUM, atol=1e-2)
    # The accuracy of the optimum is that of the labels: Σ_{i>j} σ(r_i - r_j) / 3.
    np.testing.assert_allclose(value(metrics["rewards/accuracy"]), (2 * 0.7310586 + 0.8807971) / 3, atol=5e-3)


# --- what the settings mean -----------------------------------------------------------------------------------


def judged(score, kl):
    score_B = jnp.asarray(score)
    kl_BR = jnp.asarray(kl)[:, None]
    return Judged(jnp.ones(kl_BR.shape, bool), kl_BR, kl_BR, score_B, score_B)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"baseline": "leave_one_out"}, [[1.0 - 0.25, -0.75], [0.0, 0.0]]),  # R = (1, 0.25), (2, 2)
        ({"baseline": "group"}, [[0.375, -0.375], [0.0, 0.0]]),
        ({"baseline": "batch"}, [[1.0 - 1.3125, 0.25 - 1.3125], [2 - 1.3125, 2 - 1.3125]]),
        ({"baseline": "moving"}, [[1.0 - 3.0, 0.25 - 3.0], [-1.0, -1.0]]),
        ({"baseline": "none"}, [[1.0, 0.25], [2.0, 2.0]]),
        ({"baseline": "none", "loss": "clip", "kl_in": "loss"}, [[1.0, 0.5], [2.0, 2.0]]),
    ],
)
def test_advantages_by_hand(changes, expected):
    settings = settings_of("rloo", samples_per_prompt=2, **changes)
    seen = RunningMoments(jnp.asarray(4.0), jnp.asarray(3.0), jnp.asarray(1.0))
    _, advantage_BN = policy_gradient.advantages(judged([1.0, 0.5, 2.0, 2.0], [0.0, 0.5, 0.0, 0.0]), seen, settings)
    np.testing.assert_allclose(advantage_BN, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def groups():
    """Four prompts with four responses of up to three tokens; the last prompt's responses all have one score."""
    rng = np.random.default_rng(0)
    length_BN = rng.integers(1, 4, (4, 4))
    mask = jnp.asarray(np.arange(3) < length_BN[..., None])
    logp = jnp.where(mask, -rng.uniform(0.5, 2.0, (4, 4, 3)), 0.0)
    score = jnp.asarray(rng.normal(size=(4, 4))).at[3].set(1.0)
    prompt = bandit.prompts(4)
    tokens = jnp.asarray(rng.integers(0, 3, (4, 4, 3)))
    return policy_gradient.Groups(prompt["prompt_BP"], prompt["prompt_mask_BP"], tokens, mask, logp, logp - 0.1, score)


def test_pairs_are_the_best_and_the_worst_and_ties_count_for_nothing(groups):
    settings = settings_of("online_dpo")
    chosen = policy_gradient.choose(groups, settings)
    for prompt in range(3):
        best, worst = int(groups.advantage_BN[prompt].argmax()), int(groups.advantage_BN[prompt].argmin())
        np.testing.assert_array_equal(chosen.response_BNR[prompt], groups.response_BNR[prompt][jnp.array([best, worst])])
    assert int(policy_gradient.weight_of(chosen, settings=settings)) == 3
    tied = jax.tree.map(lambda x: x[3:], chosen)
    weight = policy_gradient.weight_of(tied, settings=settings)
    loss = partial(policy_gradient.minibatch_loss, POLICY, settings, SPEC)
    grads, _ = jax.jit(jax.grad(loss, has_aux=True))(tabular_policy(), tied, weight, jax.random.key(0))
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("loss", ["clip", "dpo"])
def test_micro_batches_of_whole_groups_change_nothing(groups, loss):
    settings = settings_of("grpo", loss=loss, kl_in="loss" if loss == "clip" else "reward")
    chosen = policy_gradient.choose(groups, settings)
    run = partial(policy_gradient.minibatch_loss, POLICY, settings, SPEC)
    weigh = partial(policy_gradient.weight_of, settings=settings)

    def gradients(count):
        return jax.jit(lambda p: accumulated_gradients(run, weigh, p, chosen, jax.random.key(0), num_micro_batches=count))(
            tabular_policy()
        )

    (one, metrics), (two, others) = gradients(1), gradients(2)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(value(metrics[name]), value(others[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "devices", "message"),
    [
        ("rloo", {"samples_per_prompt": 1}, 1, r"=1: loss=reinforce with baseline=leave_one_out .* at least 2"),
        ("online_dpo", {"samples_per_prompt": 1}, 1, "needs at least 2"),
        ("rloo", {"samples_per_prompt": 3}, 1, "16 is not divisible by 3"),
        ("grpo", {"num_mini_batches": 3}, 1, "4 is not divisible by 3; choose a divisor: a minibatch has whole groups"),
        ("grpo", {"num_micro_batches": 3}, 1, "2 is not divisible by 3"),
        ("grpo", {}, 8, "prompts per micro-batch by devices: 2 is not divisible by 8"),
        ("rloo", {"total_episodes": 33}, 1, "33 is not divisible by 16"),
        ("rloo", {"temperature": 0.0}, 1, "greedy"),
        ("rloo", {"sampling_rows": -1}, 1, "sampling_rows=-1: expected a number of responses"),
        ("rloo", {"kl_in": "loss"}, 1, "kl_in=loss belongs to loss=clip"),
        ("online_dpo", {"kl_coef": 0.0}, 1, "kl_coef > 0"),
    ],
)
def test_impossible_settings_are_refused(name, changes, devices, message):
    config = load_experiment(f"experiments/menagerie/{name}.py", "tiny").to_dict()
    settings = replace(build(policy_gradient.Config, config).policy_gradient, **changes)
    with pytest.raises(ValueError, match=message):
        check(settings, devices)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta=0.0: expected more than 0"),
        ({"label_smoothing": 0.5}, "less than a half"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "belongs to loss=dpo, not ipo"),
        ({"loss": "kto", "num_micro_batches": 2}, "loss=kto needs 1"),
        ({"num_micro_batches": 3}, "8 is not divisible by 3"),
    ],
)
def test_impossible_preferences_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        preference.check(preferences(**changes), 1)


# --- log-probabilities of packed responses ----------------------------------------------------------------------


def test_packed_log_probabilities_are_those_of_each_response_alone():
    shape = replace(SHAPE, vocab_size=9, context_length=16, width=8)
    model = LanguageModel(shape)
    params = jax.tree.map(lambda x: 4 * x, init_params(model, jax.random.key(1)))
    texts, lengths = ([1, 2, 3, 4], [1, 5, 6], [7, 8, 1, 2, 3]), (2, 1, 3)
    tokens, segments = np.zeros((2, 10), int), np.zeros((2, 10), int)
    where = [(0, 3), (0, 6), (1, 4)]
    for number, (text, (row, last)) in enumerate(zip(texts, where, strict=True), start=1):
        tokens[row, last + 1 - len(text) : last + 1] = text
        segments[row, last + 1 - len(text) : last + 1] = number
    row_BC, last_BC = (jnp.array([[x[0], x[1], x[2], 0]]) for x in zip(*where, strict=True))
    where_BC = (row_BC, last_BC, jnp.array([[*lengths, 0]]))
    logp_BC = jax.jit(partial(packed_logps, model))(params, jnp.asarray(tokens), jnp.asarray(segments), *where_BC)
    for c, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        logits, _ = jax.jit(model.apply)({"params": params}, jnp.array([text]), jnp.ones((1, len(text)), int))
        logp = jax.nn.log_softmax(logits[0, :-1])[jnp.arange(len(text) - 1), jnp.array(text[1:])]
        np.testing.assert_allclose(logp_BC[0, c], logp[-length:].sum(), rtol=1e-5)
    assert logp_BC[0, 3] == 0
