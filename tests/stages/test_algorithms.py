"""Every algorithm on a bandit whose optimum is known, through its stage's own functions; and what
each one's settings mean.

KL-regularised reward on three arms has the optimum π* ∝ ρ exp(r/β). The policy, the value and the
reward network are real ones: one prompt, answers of one token, a policy whose logits are its last
bias, a reward model that scores arm i with i.
"""

import importlib
from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax
from tests_support import load_experiment

from experiments import bandit
from experiments.ablations.fits import best_of_n as best_of_n_of_pool
from experiments.bandit import (
    GROUP_NETWORKS,
    POLICY,
    REFERENCE,
    REWARDS,
    SHAPE,
    arms,
    tabular_policy,
)
from rlhf_jax.config import build
from rlhf_jax.data.records import Message, Thumb
from rlhf_jax.inference.scoring import packed_logps
from rlhf_jax.maths.masking import value
from rlhf_jax.maths.returns import RunningMoments, empty_moments
from rlhf_jax.models.heads import LanguageModel, init_params
from rlhf_jax.stages import policy_gradient, preference
from rlhf_jax.stages.policy_gradient import check
from rlhf_jax.stages.rewards import start_moments
from rlhf_jax.stages.rollout import Parameters, ScoredSamples, read_samples
from rlhf_jax.training.updates import (
    Objective,
    accumulated_gradients,
    init_state,
    supervised_update,
)

OPTIMUM, BETA = [0.03666671, 0.16255943, 0.80077385], 0.5
FALLING = optax.cosine_decay_schedule(0.05, 300, alpha=0.02)


def settings_of(name, **changes):
    experiment = importlib.import_module(f"experiments.menagerie.{name}")
    return bandit.group_settings(experiment, **{"kl_coef": BETA, **changes})


def learn_by_groups(name, **changes):
    policy_UA, metrics = bandit.play_groups(
        settings_of(name, **changes), updates=300, learning_rate=0.05
    )
    return policy_UA[-1], metrics


def test_the_closed_forms():
    np.testing.assert_allclose(bandit.optimum(beta=BETA), OPTIMUM, atol=1e-6)
    np.testing.assert_allclose(
        bandit.objective(jnp.array(OPTIMUM), beta=BETA), 1.3063693946, atol=1e-5
    )
    forward = jnp.asarray(bandit.forward_optimum(beta=BETA))

    def value_of(logits):  # E r - β KL(ρ ‖ π)
        return jax.nn.softmax(logits) @ bandit.REWARD - BETA * bandit.categorical(REFERENCE, logits)

    np.testing.assert_allclose(jax.grad(value_of)(jnp.log(forward)), 0.0, atol=1e-5)
    np.testing.assert_allclose(forward.sum(), 1.0, atol=1e-6)


def test_the_reward_model_scores_arm_i_with_i():
    texts, samples = bandit.draw(tabular_policy(), jax.random.key(0))
    settings = settings_of("rloo")
    read = jax.jit(partial(read_samples, GROUP_NETWORKS, settings.spec))
    collect = jax.jit(partial(policy_gradient.collect, settings, REWARDS))
    moments = policy_gradient.Moments(start_moments(REWARDS), empty_moments())
    params = Parameters(tabular_policy(), tabular_policy(), {"arm": bandit.arm_reward()})
    groups, _, score_B, _ = collect(texts, samples, read(params, texts), moments)
    np.testing.assert_allclose(score_B, samples.tokens_BR[:, 0], atol=1e-4)
    np.testing.assert_allclose(
        groups.ref_logp_BNR.ravel(), REFERENCE[samples.tokens_BR[:, 0]], atol=1e-5
    )


@pytest.mark.parametrize("policy_loss", ["clip", "kl_adaptive"])
def test_ppo_reaches_the_optimum(policy_loss):
    settings = bandit.ppo_settings(kl_coef=BETA, num_ppo_epochs=2, policy_loss=policy_loss)
    policy_UA, metrics = bandit.play_ppo(settings, updates=300, learning_rate=0.05)
    np.testing.assert_allclose(policy_UA[-1], OPTIMUM, atol=1e-2)
    if (
        policy_loss == "kl_adaptive"
    ):  # updates became smaller than the target, so the penalty has been halved again and again
        assert float(metrics["policy/kl_penalty_coef"][-1]) < 1e-3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("reinforce", {}),
        ("rloo", {}),
        ("grpo", {"kl_in": "reward", "group_std_eps": 0.1, "num_epochs": 2}),
        ("dr_grpo", {"kl_in": "reward"}),
    ],
)
def test_group_algorithms_reach_the_optimum(name, changes):
    policy, _ = learn_by_groups(name, **changes)
    np.testing.assert_allclose(policy, OPTIMUM, atol=1e-2)


def test_k3_in_the_loss_leads_to_the_optimum_of_the_other_divergence():
    policy, _ = learn_by_groups("grpo", baseline="batch", num_epochs=1)
    np.testing.assert_allclose(policy, bandit.forward_optimum(beta=BETA), atol=1e-2)


def groups_of_four(policy):
    """Every group of four arms, (81, 4), with its probability."""
    arms_GN = np.array(list(product(range(3), repeat=4)))
    return arms_GN, np.asarray(policy, np.float64)[arms_GN].prod(axis=1)


def test_grpo_as_shipped_reaches_its_own_fixed_point():
    """Divided by each group's own standard deviation, the advantages are no reward's gradient, and
    there is no closed form.

    With k3 in the loss the gradient is E[A e_y] - β (π - ρ), since a group's advantages sum to 0.
    It is 0 at π_y = ρ_y + (1/β) π_y E[A | y], an expectation over all 81 groups of four.
    """

    def gradient(logits):
        policy = softmax(logits)
        arms_GN, probability_G = groups_of_four(policy)
        advantage_GN = arms_GN - arms_GN.mean(axis=1, keepdims=True)
        advantage_GN = advantage_GN / (arms_GN.std(axis=1, ddof=1, keepdims=True) + 1e-4)
        pull = [
            (probability_G[:, None] * advantage_GN * (arms_GN == arm)).sum() / 4 for arm in range(3)
        ]
        return np.array(pull) - BETA * (policy - np.exp(REFERENCE))

    logits = np.asarray(REFERENCE, np.float64)
    for _ in range(1000):
        logits = logits + gradient(logits)
    np.testing.assert_allclose(gradient(logits), 0.0, atol=1e-6)
    policy, _ = learn_by_groups("grpo")
    np.testing.assert_allclose(policy, softmax(logits), atol=1e-2)
    assert np.abs(softmax(logits) - bandit.forward_optimum(beta=BETA)).max() > 0.02


def test_dr_grpo_maximises_the_reward_and_nothing_else():
    """As shipped it has no KL, so that the closed form is the best arm alone, whatever the
    reference."""
    policy, _ = learn_by_groups("dr_grpo", kl_coef=0.0)
    np.testing.assert_allclose(policy, [0.0, 0.0, 1.0], atol=1e-2)


def test_dr_grpo_with_k3_in_the_loss_has_a_larger_beta():
    """The group's mean holds the response itself, hence (N-1)/N of the reward's gradient: β N/(N-1)
    in the closed form."""
    policy, _ = learn_by_groups("dr_grpo")
    np.testing.assert_allclose(policy, bandit.forward_optimum(beta=BETA * 4 / 3), atol=1e-2)


def best_of(n, policy):
    """P(y) = F(y)^n - F(y-)^n: what the highest of n samples of arms is, arm i paying i."""
    return np.diff(np.cumsum(policy) ** n, prepend=0.0)


# --- algorithms that choose: best of n, expert iteration, online DPO ------------------------------


def make_groups(tokens_BNR, mask_BNR, logp_BNR, ref_logp_BNR, score_BN):
    count = len(tokens_BNR)
    return policy_gradient.Groups(
        prompt_BP=jnp.zeros((count, 1), jnp.int32),
        prompt_mask_BP=jnp.ones((count, 1), bool),
        response_BNR=tokens_BNR,
        mask_BNR=mask_BNR,
        logp_BNR=logp_BNR,
        ref_logp_BNR=ref_logp_BNR,
        advantage_BN=jnp.asarray(score_BN),
    )


def as_groups(tokens_BN, score_BN):
    """Groups of answers that were sampled from the reference."""
    tokens_BNR = jnp.asarray(tokens_BN)[..., None]
    logp_BNR = REFERENCE[tokens_BNR]
    mask_BNR = jnp.ones(tokens_BNR.shape, bool)
    return make_groups(tokens_BNR, mask_BNR, logp_BNR, logp_BNR, score_BN)


def test_a_round_of_expert_iteration_imitates_best_of_n():
    """Of ten thousand groups in the reference's exact proportions; many epochs on the same groups
    are one round's optimum."""
    arms_GN, probability_G = groups_of_four([0.5, 0.3, 0.2])
    tokens_BN = np.repeat(arms_GN, np.rint(1e4 * probability_G).astype(int), axis=0)
    settings = settings_of("expert_iteration")
    chosen = policy_gradient.choose(as_groups(tokens_BN, bandit.REWARD[tokens_BN]), settings)
    assert chosen.response_BNR.shape == (10_000, 1, 1)
    share = np.bincount(np.asarray(chosen.response_BNR).ravel(), minlength=3) / 1e4
    np.testing.assert_allclose(share, best_of(4, [0.5, 0.3, 0.2]), atol=1e-12)

    optimizer = bandit.only("final_norm']['bias", FALLING)
    long = replace(settings, num_epochs=300)
    update = jax.jit(partial(policy_gradient.update, long, POLICY, optimizer))
    data = policy_gradient.UpdateData(chosen, {})
    state, _ = update(init_state(tabular_policy(), optimizer), data, jax.random.key(0))
    np.testing.assert_allclose(arms(state.params), best_of(4, [0.5, 0.3, 0.2]), atol=1e-3)


def test_rounds_of_expert_iteration_end_at_the_best_arm():
    """After k rounds that were fitted to the end the policy is best of n^k of the reference: the
    best arm, and no KL."""
    policy, _ = learn_by_groups("expert_iteration", kl_coef=0.0)
    np.testing.assert_allclose(policy, [0.0, 0.0, 1.0], atol=2e-2)
    np.testing.assert_allclose(
        best_of(4, best_of(4, [0.5, 0.3, 0.2])), best_of(16, [0.5, 0.3, 0.2]), atol=1e-12
    )


def test_best_of_n_from_a_pool_is_the_closed_form():
    """`fits.best_of_n` draws without replacement: from an endless pool, F(y)^n - F(y-)^n."""
    pool = np.repeat(np.arange(3), [50_000, 30_000, 20_000])
    for n in (1, 4, 16):
        share = [best_of_n_of_pool(pool, pool == arm, n) for arm in range(3)]
        np.testing.assert_allclose(share, best_of(n, [0.5, 0.3, 0.2]), atol=1e-3)


def test_online_dpo_finds_the_best_arm():
    """The reward model's labels are certain: no finite gap is their optimum, and whatever β, the
    best arm takes all."""
    policy, metrics = learn_by_groups("online_dpo")
    np.testing.assert_allclose(policy, [0.0, 0.0, 1.0], atol=2e-2)
    assert {
        f"rewards/{name}" for name in ("accuracy", "margin", "chosen_reward", "rejected_reward")
    } <= set(metrics)


def test_online_dpo_reaches_the_optimum_if_its_labels_are_noisy():
    """With Gumbel noise on the scores the higher of two is i with probability σ(r_i - r_j): DPO's
    optimum on any pairs."""
    settings = settings_of("online_dpo", samples_per_prompt=2)
    optimizer = bandit.only("final_norm']['bias", FALLING)
    update = partial(policy_gradient.update, settings, POLICY, optimizer)

    def iterate(state, key):
        drawing, noise, order = jax.random.split(key, 3)
        _, samples = bandit.draw(state.params, drawing)
        tokens_BN = samples.tokens_BR.reshape(-1, 2)
        score_BN = bandit.REWARD[tokens_BN] + jax.random.gumbel(noise, tokens_BN.shape)
        pairs = policy_gradient.choose(as_groups(tokens_BN, score_BN), settings)
        return update(state, policy_gradient.UpdateData(pairs, {}), order)[0], None

    state = init_state(tabular_policy(), optimizer)
    state, _ = jax.jit(partial(jax.lax.scan, iterate))(
        state, jax.random.split(jax.random.key(0), 300)
    )
    np.testing.assert_allclose(arms(state.params), OPTIMUM, atol=1e-2)


# --- algorithms that learn from rankings ----------------------------------------------------------


def labels(share, size=200):
    """How often arm i is preferred to arm j of `size` comparisons, share(r_i - r_j) of them as
    exactly as may be."""
    return [[round(size * share(i - j)) if i != j else 0 for j in range(3)] for i in range(3)]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pairs_of_arms(counts, foreign=None):
    """Packed pairs (preferred, other) of arms, each as often as `counts` says; every response has a
    row.

    With `foreign` the arms in it take turns in front of the pairs, as kto needs.
    """
    pairs = np.array([(i, j) for i in range(3) for j in range(3) for _ in range(counts[i][j])])
    ranks = [1, 2]
    if foreign is not None:
        pairs, ranks = np.column_stack([np.resize(foreign, len(pairs)), pairs]), [1, 1, 2]
    size, candidates = pairs.shape
    return {
        "tokens_NT": jnp.stack([jnp.zeros(pairs.size, int), pairs.reshape(-1)], axis=1),
        "segments_NT": jnp.ones((pairs.size, 2), int),
        "row_BC": jnp.arange(pairs.size).reshape(pairs.shape),
        "last_BC": jnp.ones(pairs.shape, int),
        "length_BC": jnp.ones(pairs.shape, int),
        "rank_BC": jnp.tile(jnp.array([ranks]), (size, 1)),
        "mask_BC": jnp.ones((size, candidates), bool),
        "ref_logp_BC": REFERENCE[pairs],
    }


def preferences(name="dpo", **changes):
    config = load_experiment(f"experiments/menagerie/{name}.py", "tiny").to_dict()
    return replace(build(preference.Config, config).preference, **changes)


def learn_from(batch, settings, learning_rate=0.05, updates=300):
    """The policy's probabilities after updates on the whole batch, by the stage's own functions;
    and the metrics."""
    optimizer = bandit.only(
        "final_norm']['bias", optax.cosine_decay_schedule(learning_rate, updates, alpha=0.02)
    )
    objective = Objective(
        partial(preference.preference_loss, settings, POLICY),
        partial(preference.loss_denominator, settings),
    )

    def step(state, key):
        return supervised_update(objective, optimizer, state, batch, key, {})

    keys = jax.random.split(jax.random.key(0), updates)
    state, metrics = jax.jit(partial(jax.lax.scan, step))(
        init_state(tabular_policy(), optimizer), keys
    )
    return np.asarray(arms(state.params)), jax.tree.map(lambda x: x[-1], metrics)


def test_dpo_reaches_the_optimum_with_as_many_pairs_as_labels_have_noise():
    """Labels P(i ≻ j) = σ(r_i - r_j): many pairs make DPO's minimum RL's optimum."""
    policy, metrics = learn_from(pairs_of_arms(labels(sigmoid)), preferences(beta=BETA))
    np.testing.assert_allclose(policy, OPTIMUM, atol=1e-2)
    # The accuracy of the optimum is that of the labels: Σ_{i>j} σ(r_i - r_j) / 3.
    np.testing.assert_allclose(
        value(metrics["rewards/accuracy"]), (2 * 0.7310586 + 0.8807971) / 3, atol=5e-3
    )


def test_cdpo_reaches_the_optimum_if_its_noise_is_missing_from_the_labels():
    """cDPO adds noise ε to labels P; if P(1-ε) + (1-P)ε = σ(r_i - r_j) for all pairs, its minimum
    is RL's optimum."""
    counts = labels(lambda gap: (sigmoid(gap) - 0.1) / 0.8)
    policy, _ = learn_from(pairs_of_arms(counts), preferences("cdpo", beta=BETA))
    np.testing.assert_allclose(policy, OPTIMUM, atol=1e-2)


def test_ipo_reaches_the_optimum_of_winning():
    """π* ∝ ρ exp(P(y wins)/β), P against an arm drawn evenly, itself included (Azar 2023, Ψ the
    identity).

    The loss pulls every gap of log-ratios to (2 P(i ≻ j) - 1)/(2β); where all pairs are compared
    equally often, least squares over them is h_i = Σ_j P(i ≻ j)/3β.
    """
    counts = labels(sigmoid)
    wins = (np.array(counts) / 200 + np.eye(3) / 2).mean(axis=1)
    policy, _ = learn_from(pairs_of_arms(counts), preferences("ipo", beta=BETA))
    np.testing.assert_allclose(policy, softmax(np.asarray(REFERENCE) + wins / BETA), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "gap"),
    [
        ("dpo", np.log(3.0) / BETA),  # σ(β gap) = p = 3/4
        ("cdpo", np.log(0.7 / 0.3) / BETA),  # σ(β gap) = p(1-ε) + (1-p)ε = 0.7
        ("ipo", (2 * 0.75 - 1) / (2 * BETA)),  # the mean of ±1/(2β) with probabilities p and 1-p
    ],
)
def test_the_gap_between_two_arms_is_the_closed_form(name, gap):
    """Of two arms the better is preferred with probability p = 3/4; learned is the difference of
    their log π/ρ."""
    policy, _ = learn_from(
        pairs_of_arms([[0, 0, 0], [0, 0, 2], [0, 6, 0]]), preferences(name, beta=BETA)
    )
    log_ratio = np.log(policy) - np.asarray(REFERENCE)
    np.testing.assert_allclose(log_ratio[2] - log_ratio[1], gap, atol=1e-3)


def kto_surplus(counts, better_weight):
    """λ_D times how often an arm is desirable, less how often it is undesirable."""
    return better_weight * np.sum(counts, axis=1) - np.sum(counts, axis=0)


def test_kto_has_a_closed_form_at_beta_one():
    """π_i = c √(w_i ρ_i) - ρ_i, w_i the surplus of arm i and c such that they sum to 1.

    1 - σ(r - z) and 1 - σ(z - r) = σ(r - z) add up to a constant less Σ w_i σ(r_i - z). At β = 1
    and z = 0, σ(r_i) = π_i/(π_i + ρ_i), and the multiplier of Σ π = 1 is w_i ρ_i/(π_i + ρ_i)². No
    KL is in it, and no closed form at another β, where it is w_i β σ(r_i) σ(-r_i)/π_i. The
    reference point is 0 because the foreign arms are in the reference's proportions: their mean of
    log π/ρ is -KL(ρ ‖ π).
    """
    counts = labels(lambda gap: sigmoid(gap / 2))
    root_weight = np.sqrt(kto_surplus(counts, 4.0) * np.exp(REFERENCE))
    expected = 2.0 * root_weight / root_weight.sum() - np.exp(REFERENCE)
    batch = pairs_of_arms(counts, foreign=np.repeat(np.arange(3), [5, 3, 2]))
    policy, metrics = learn_from(batch, preferences("kto", beta=1.0, better_weight=4.0))
    np.testing.assert_allclose(policy, expected, atol=1e-3)
    assert float(value(metrics["rewards/reference_point"])) < 0  # and the loss takes 0


def test_kto_counts_from_its_reference_point():
    """At z > 0 and β = 1, π_i = c √(w_i ρ_i) - e^z ρ_i.

    With arm 2 as everyone's foreign response e^z = π_2/ρ_2, hence c = 2 e^z √(ρ_2/w_2), and the
    arms sum to 1. No gradient flows through z. Arm 0 wins too seldom to keep any probability.
    """
    counts = labels(lambda gap: sigmoid(gap / 2))
    rho = np.exp(np.asarray(REFERENCE, np.float64))
    root_weight = np.sqrt(kto_surplus(counts, 4.0) * rho)
    over_rho = 2.0 * rho[2] * root_weight[1:] / root_weight[2] - rho[1:]  # π / e^z
    settings = preferences("kto", beta=1.0, better_weight=4.0)
    policy, metrics = learn_from(pairs_of_arms(counts, foreign=[2]), settings, learning_rate=0.1)
    np.testing.assert_allclose(policy, [0.0, *over_rho / over_rho.sum()], atol=1e-2)
    np.testing.assert_allclose(
        value(metrics["rewards/reference_point"]), -np.log(over_rho.sum()), atol=1e-2
    )


def test_kto_of_two_thumbs_is_kto_of_their_pair():
    """A thumb up and one down lose what the pair loses; its accuracy is the sign of r - z."""
    settings = preferences("kto", beta=0.1, better_weight=1.5)
    ask = (Message("user", "a"),)
    thumbs = [Thumb(ask, "good", True), Thumb(ask, "bad", False)]
    found = preference.thumbs_with_foreign(thumbs)
    assert [item.responses for item in found] == [("bad", "good"), ("good", "bad")]
    assert len({item.ranks for item in found}) == 2
    pair = {"rank_BC": jnp.array([[1, 1, 2]]), "mask_BC": jnp.ones((1, 3), bool)}
    alone = {
        "rank_BC": jnp.array([[*item.ranks, 0] for item in found]),
        "mask_BC": jnp.array([[True, True, False]] * 2),
    }
    rewards = jnp.array([[0.25, 0.75, -0.5]])  # of the foreign response, the good and the bad one
    rewards_alone = jnp.array([[0.25, 0.75, 9.0], [0.25, -0.5, 9.0]])
    expected, _ = preference.rewards_loss(settings, rewards, pair)
    loss, metrics = preference.rewards_loss(settings, rewards_alone, alone)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    by_hand = 1.5 * sigmoid(-(0.75 - 0.25)) + sigmoid(-0.5 - 0.25)
    np.testing.assert_allclose(loss, [by_hand, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(metrics["accuracy"], [2.0, 2.0])
    assert preference.loss_denominator(settings, alone) == 2
    worse = preference.rewards_loss(settings, rewards_alone.at[:, 0].set(0.9), alone)[1]
    np.testing.assert_array_equal(worse["accuracy"], [1.0, 2.0])  # the good one is below z


@pytest.mark.parametrize("beta", [0.1, BETA])
def test_kto_as_shipped_finds_the_arm_that_wins_most(beta):
    """With both weights 1 and Bradley-Terry labels only arm 2 wins more than it loses: its closed
    form is probability 1."""
    counts = labels(sigmoid)
    np.testing.assert_array_equal(np.sign(kto_surplus(counts, 1.0)), [-1, 0, 1])
    batch = pairs_of_arms(counts, foreign=np.repeat(np.arange(3), [5, 3, 2]))
    policy, _ = learn_from(batch, preferences("kto", beta=beta))
    np.testing.assert_allclose(policy, [0.0, 0.0, 1.0], atol=1e-2)


# --- what the settings mean -----------------------------------------------------------------------


def judged(score, kl):
    score_B = jnp.asarray(score)
    kl_BR = jnp.asarray(kl)[:, None]
    return ScoredSamples(ref_logp_BR=kl_BR, kl_BR=kl_BR, raw_score_B=score_B, score_B=score_B)


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
    _, advantage_BN = policy_gradient.advantages(
        judged([1.0, 0.5, 2.0, 2.0], [0.0, 0.5, 0.0, 0.0]), seen, settings
    )
    np.testing.assert_allclose(advantage_BN, expected, rtol=1e-6)


@pytest.fixture(scope="module")
def groups():
    """Four prompts with four responses of up to three tokens; the last prompt's responses all have
    one score."""
    rng = np.random.default_rng(0)
    length_BN = rng.integers(1, 4, (4, 4))
    mask = jnp.asarray(np.arange(3) < length_BN[..., None])
    logp = jnp.where(mask, -rng.uniform(0.5, 2.0, (4, 4, 3)), 0.0)
    score = jnp.asarray(rng.normal(size=(4, 4))).at[3].set(1.0)
    tokens = jnp.asarray(rng.integers(0, 3, (4, 4, 3)))
    return make_groups(tokens, mask, logp, logp - 0.1, score)


def test_pairs_are_the_best_and_the_worst_and_ties_count_for_nothing(groups):
    settings = settings_of("online_dpo")
    chosen = policy_gradient.choose(groups, settings)
    for prompt in range(3):
        best, worst = (
            int(groups.advantage_BN[prompt].argmax()),
            int(groups.advantage_BN[prompt].argmin()),
        )
        np.testing.assert_array_equal(
            chosen.response_BNR[prompt], groups.response_BNR[prompt][jnp.array([best, worst])]
        )
    assert int(policy_gradient.loss_denominator(chosen, settings)) == 3
    tied = jax.tree.map(lambda x: x[3:], chosen)
    denominator = policy_gradient.loss_denominator(tied, settings)
    loss = partial(policy_gradient.group_loss, settings, POLICY)
    grads, _ = jax.jit(jax.grad(loss, has_aux=True))(
        tabular_policy(), tied, denominator, jax.random.key(0)
    )
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("loss", ["clip", "dpo"])
def test_micro_batches_of_whole_groups_change_nothing(groups, loss):
    settings = settings_of("grpo", loss=loss, kl_in="loss" if loss == "clip" else "reward")
    chosen = policy_gradient.choose(groups, settings)
    whole = Objective(
        partial(policy_gradient.group_loss, settings, POLICY),
        partial(policy_gradient.loss_denominator, settings=settings),
    )

    def gradients(count):
        objective = replace(whole, num_micro_batches=count)
        return jax.jit(
            lambda p: accumulated_gradients(objective, p, {}, chosen, jax.random.key(0))
        )(tabular_policy())

    (one, metrics), (two, others) = gradients(1), gradients(2)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(value(metrics[name]), value(others[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes", "devices", "message"),
    [
        (
            "rloo",
            {"samples_per_prompt": 1},
            1,
            r"=1: loss=reinforce with baseline=leave_one_out .* at least 2",
        ),
        ("online_dpo", {"samples_per_prompt": 1}, 1, "needs at least 2"),
        ("rloo", {"samples_per_prompt": 3}, 1, "16 is not divisible by 3"),
        (
            "grpo",
            {"num_mini_batches": 3},
            1,
            "4 is not divisible by 3; choose a divisor: a minibatch has whole groups",
        ),
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


# --- log-probabilities of packed responses --------------------------------------------------------


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
    batch = {"tokens_NT": jnp.asarray(tokens), "segments_NT": jnp.asarray(segments)}
    batch |= {"row_BC": row_BC, "last_BC": last_BC, "length_BC": jnp.array([[*lengths, 0]])}
    logp_BC = jax.jit(partial(packed_logps, model))(params, batch)
    for c, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        logits, _ = jax.jit(model.apply)(
            {"params": params}, jnp.array([text]), jnp.ones((1, len(text)), int)
        )
        logp = jax.nn.log_softmax(logits[0, :-1])[jnp.arange(len(text) - 1), jnp.array(text[1:])]
        np.testing.assert_allclose(logp_BC[0, c], logp[-length:].sum(), rtol=1e-5)
    assert logp_BC[0, 3] == 0
