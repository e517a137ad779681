"""Deep reinforcement learning from human preferences (Christiano et al. 2017), with simulated humans.

    predictors  E networks r̂(observation, action), trained on preferences between segments of behaviour
        P̂[σ¹ ≻ σ²] = σ(Σ r̂(σ¹) − Σ r̂(σ²));    loss: cross-entropy under a human who lapses with probability ε
    for each round:
      1  draw candidate pairs of segments from what the policy did last; ask about those whose predicted preference differs
         most among the predictors (or about random ones)
      2  train every predictor on its own bootstrap draw of all answers but the 1/e that it holds out; its weight decay grows
         while the validation loss exceeds 1.5 times the training loss, and shrinks while it is below 1.1 times
      3  reward = mean over predictors of r̂, each standardised on the policy's own transitions; iterate PPO with it

The human here compares true returns and, with a probability of its own, answers at random. Everything is a pure function with
fixed shapes (unused places of the answers weigh 0), so whole runs map over seeds.

Left out on purpose: ties and "can not tell", asking while the policy acts (PPO and questions take turns), Atari's tricks.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.control.networks import MLP, init_network
from experiments.control.ppo import (
    Agent,
    Learner,
    RewardFn,
    Segment,
    Surrogate,
    init_learner,
    iterate,
)
from rlhf_jax.maths.masking import Mean, mean, value
from rlhf_jax.maths.preference import christiano_nll
from rlhf_jax.models.heads import apply
from rlhf_jax.training.optimizer import scale_by_adam

Params = Any
LOW_GAP, HIGH_GAP = (
    1.1,
    1.5,
)  # validation over training loss should lie between these (Christiano et al. 2017, section 2.2.3)


@dataclass(frozen=True)
class QuerySettings:
    """Who is asked how often, and how the answers are learned."""

    num_rounds: int
    labels_per_round: int
    iterations_per_round: int  # of PPO
    segment_steps: int
    num_predictors: int
    active: bool  # ask where predictors disagree; else at random
    candidates_per_label: int  # pairs to choose from, where active
    bootstrap: bool  # draw answers with replacement and hold 1/e out; else every predictor sees all
    model_lapse: float  # ε that the loss assumes; 0 = plain Bradley-Terry
    human_lapse: float  # share of answers that are random
    hidden: tuple[int, ...]
    learning_rate: float
    num_updates: int  # of every predictor, each round
    batch_size: int
    weight_decay: float  # to begin with

    @property
    def num_labels(self) -> int:
        """Questions asked over a whole run."""
        return self.num_rounds * self.labels_per_round


class Answers(NamedTuple):
    """Pairs of segments (axis 2) and which the human preferred: L places, of which `mask_L` are filled."""

    input_L2KD: jax.Array  # observation and action side by side
    first_L: jax.Array  # 1 if the first was preferred, else 0
    clean_first_L: jax.Array  # the same without lapses: for measuring, never for training
    mask_L: jax.Array


class Ensemble(NamedTuple):
    """E predictors: parameters, what each may train and validate on, and each one's weight decay."""

    params_E: Params
    train_EL: jax.Array  # how often a predictor drew an answer
    valid_EL: jax.Array
    decay_E: jax.Array


def predicted_rewards(network: MLP, params: Params, inputs: jax.Array) -> jax.Array:
    """r̂ of every transition: (..., D) -> (...)."""
    return apply(network, params, inputs)[..., 0]


def segment_gap(network: MLP, params: Params, input_L2KD: jax.Array) -> jax.Array:
    """Σ r̂(σ¹) − Σ r̂(σ²) of every pair."""
    total_L2 = predicted_rewards(network, params, input_L2KD).sum(-1)
    return total_L2[:, 0] - total_L2[:, 1]


def preference_loss(
    gap_L: jax.Array, first_L: jax.Array, weight_L: jax.Array, lapse: float
) -> Mean:
    """Cross-entropy of the answers under the human of `christiano_nll`; ε = 0 is Bradley-Terry."""
    if lapse > 0:
        return mean(christiano_nll(gap_L, first_L, lapse=lapse), weight_L)
    return mean(
        first_L * jax.nn.softplus(-gap_L) + (1 - first_L) * jax.nn.softplus(gap_L), weight_L
    )


def features(agent: Agent, observation: jax.Array, action: jax.Array) -> jax.Array:
    """What a predictor sees: observation and action, one-hot where it is a choice."""
    shown = action if agent.env.continuous else jax.nn.one_hot(action, agent.env.num_actions)
    return jnp.concatenate([observation, shown], axis=-1)


def candidate_pairs(
    agent: Agent, segment: Segment, count: int, steps: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`count` pairs of pieces of `steps` steps, and the true return of each piece: input_C2KD, return_C2.

    Pieces may run over the end of an episode, as clips of behaviour do.
    """
    num_envs, num_steps = segment.reward_BR.shape
    row_key, start_key = jax.random.split(key)
    row_C2 = jax.random.randint(row_key, (count, 2), 0, num_envs)
    start_C2 = jax.random.randint(start_key, (count, 2), 0, num_steps - steps + 1)
    column_C2K = start_C2[..., None] + jnp.arange(steps).reshape(1, 1, steps)
    row_C2K = jnp.broadcast_to(row_C2[..., None], column_C2K.shape)
    inputs = features(agent, segment.raw_observation_BRD, segment.action_BR)
    return inputs[row_C2K, column_C2K], segment.reward_BR[row_C2K, column_C2K].sum(-1)


def human(return_C2: jax.Array, lapse: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The answers, with and without lapses: 1 where the first has the higher return (a fair coin if equal)."""
    lapse_key, guess_key, tie_key = jax.random.split(key, 3)
    gap_C = return_C2[:, 0] - return_C2[:, 1]
    clean_C = jnp.where(gap_C == 0, jax.random.bernoulli(tie_key, 0.5, gap_C.shape), gap_C > 0)
    lapsed_C = jax.random.bernoulli(lapse_key, lapse, gap_C.shape)
    guess_C = jax.random.bernoulli(guess_key, 0.5, gap_C.shape)
    return jnp.where(lapsed_C, guess_C, clean_C).astype(jnp.float32), clean_C.astype(jnp.float32)


def disagreement(network: MLP, params_E: Params, input_C2KD: jax.Array) -> jax.Array:
    """Variance over predictors of P̂[σ¹ ≻ σ²]."""
    gap_EC = jax.vmap(lambda params: segment_gap(network, params, input_C2KD))(params_E)
    return jnp.var(jax.nn.sigmoid(gap_EC), axis=0)


def ask(
    agent: Agent,
    asking: QuerySettings,
    network: MLP,
    ensemble: Ensemble,
    answers: Answers,
    segment: Segment,
    round_: jax.Array,
    key: jax.Array,
) -> tuple[Answers, Ensemble]:
    """Asks `labels_per_round` questions and hands every predictor its bootstrap draw of the answers."""
    count, place = asking.labels_per_round, round_ * asking.labels_per_round
    pair_key, human_key, draw_key, hold_key = jax.random.split(key, 4)
    choices = count * (asking.candidates_per_label if asking.active else 1)
    input_C2KD, return_C2 = candidate_pairs(agent, segment, choices, asking.segment_steps, pair_key)
    if asking.active:
        _, best = jax.lax.top_k(disagreement(network, ensemble.params_E, input_C2KD), count)
        input_C2KD, return_C2 = input_C2KD[best], return_C2[best]
    first_C, clean_C = human(return_C2, asking.human_lapse, human_key)
    new = Answers(input_C2KD, first_C, clean_C, jnp.ones(count))
    answers = jax.tree.map(
        lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, place, 0), answers, new
    )

    shape = (asking.num_predictors, count)
    if asking.bootstrap:
        # Poisson(1) draws per answer are the bootstrap of a growing sample (Oza & Russell 2001).
        held_EC = jax.random.bernoulli(hold_key, jnp.exp(-1.0), shape)
        drawn_EC = jnp.where(held_EC, 0, jax.random.poisson(draw_key, 1.0, shape)).astype(
            jnp.float32
        )
    else:
        held_EC, drawn_EC = jnp.zeros(shape, bool), jnp.ones(shape)
    train_EL = jax.lax.dynamic_update_slice_in_dim(ensemble.train_EL, drawn_EC, place, 1)
    valid_EL = jax.lax.dynamic_update_slice_in_dim(
        ensemble.valid_EL, held_EC.astype(jnp.float32), place, 1
    )
    return answers, ensemble._replace(train_EL=train_EL, valid_EL=valid_EL)


def fit(
    asking: QuerySettings,
    network: MLP,
    params: Params,
    answers: Answers,
    train_L: jax.Array,
    valid_L: jax.Array,
    decay: jax.Array,
    key: jax.Array,
) -> tuple[Params, jax.Array, jax.Array, jax.Array]:
    """Trains one predictor by AdamW on minibatches drawn by weight; returns it, its next weight decay, both losses."""
    adam = scale_by_adam(0.9, 0.999, 1e-8, style="torch")
    log_weight_L = jnp.where(train_L > 0, jnp.log(jnp.maximum(train_L, 1.0)), -jnp.inf)

    def loss(params: Params, rows: Answers, weight_L: jax.Array) -> jax.Array:
        gap_L = segment_gap(network, params, rows.input_L2KD)
        return value(preference_loss(gap_L, rows.first_L, weight_L, asking.model_lapse))

    def step(carry: tuple[Params, Any], t: jax.Array) -> tuple[tuple[Params, Any], None]:
        params, moments = carry
        rows_b = jax.random.categorical(
            jax.random.fold_in(key, t), log_weight_L, shape=(asking.batch_size,)
        )
        batch = jax.tree.map(lambda x: x[rows_b], answers)
        grads = jax.grad(loss)(params, batch, batch.mask_L)
        updates, moments = adam.update(grads, moments)
        params = jax.tree.map(
            lambda p, u: p - asking.learning_rate * (u + decay * p), params, updates
        )
        return (params, moments), None

    (params, _), _ = jax.lax.scan(step, (params, adam.init(params)), jnp.arange(asking.num_updates))
    train, valid = loss(params, answers, train_L), loss(params, answers, valid_L)
    ratio = valid / train
    factor = jnp.where(ratio > HIGH_GAP, 2.0, jnp.where(ratio < LOW_GAP, 0.5, 1.0))
    return params, decay * (factor if asking.bootstrap else 1.0), train, valid


def ensemble_reward(agent: Agent, network: MLP, params_E: Params, segment: Segment) -> RewardFn:
    """Mean over predictors of r̂, each first brought to mean 0 and deviation 1 on the transitions of `segment`."""
    inputs = features(agent, segment.raw_observation_BRD, segment.action_BR)
    seen_E = jax.vmap(lambda params: predicted_rewards(network, params, inputs))(params_E)
    mu_E, sd_E = seen_E.mean((1, 2)), seen_E.std((1, 2)) + 1e-8

    def reward(observation: jax.Array, action: jax.Array) -> jax.Array:
        shown = features(agent, observation, action)

        def one(params: Params, mu: jax.Array, sd: jax.Array) -> jax.Array:
            return (predicted_rewards(network, params, shown) - mu) / sd

        return jax.vmap(one)(params_E, mu_E, sd_E).mean(0)

    return reward


def accuracy(
    network: MLP, ensemble: Ensemble, input_C2KD: jax.Array, return_C2: jax.Array
) -> jax.Array:
    """Share of pairs that the mean of the predictors' gaps orders as the true returns do; equal returns are left out."""
    gap_C = jax.vmap(lambda params: segment_gap(network, params, input_C2KD))(
        ensemble.params_E
    ).mean(0)
    true_C = return_C2[:, 0] - return_C2[:, 1]
    return value(mean(jnp.sign(gap_C) == jnp.sign(true_C), true_C != 0))


def train_from_preferences(
    agent: Agent, asking: QuerySettings, key: jax.Array, surrogate: Surrogate
) -> dict[str, jax.Array]:
    """A whole run without sight of the true reward: metrics per round. Map it over keys.

    `return` is the environment's, as a `Mean` pair over the episodes of a round; `accuracy` is on fresh pairs of what the
    policy does at the end of a round, against true returns.
    """
    env, num_answers = agent.env, asking.num_labels
    width = env.num_observations + env.num_actions
    network = MLP(asking.hidden, 1, 1.0)
    keys = jax.random.split(jax.random.fold_in(key, 0), asking.num_predictors)
    nothing_EL = jnp.zeros((asking.num_predictors, num_answers))
    ensemble = Ensemble(
        jax.vmap(lambda k: init_network(network, k, width))(keys),
        nothing_EL,
        nothing_EL,
        jnp.full(asking.num_predictors, asking.weight_decay),
    )
    empty_L = jnp.zeros(num_answers)
    answers = Answers(
        jnp.zeros((num_answers, 2, asking.segment_steps, width)), empty_L, empty_L, empty_L
    )
    learner = init_learner(agent, jax.random.fold_in(key, 1), surrogate)
    # The first questions are about what an untrained policy does: an iteration with no reward leaves it as good as that.
    learner, segment, _ = iterate(
        agent, learner, surrogate, penalty=False, reward_fn=lambda o, a: jnp.zeros(o.shape[:2])
    )

    def one_round(
        carry: tuple[Learner, Segment, Ensemble, Answers], round_: jax.Array
    ) -> tuple[Any, dict[str, Any]]:
        learner, segment, ensemble, answers = carry
        ask_key, fit_key, test_key = jax.random.split(jax.random.fold_in(key, 2 + round_), 3)
        answers, ensemble = ask(agent, asking, network, ensemble, answers, segment, round_, ask_key)
        fit_keys = jax.random.split(fit_key, asking.num_predictors)
        params_E, decay_E, train_E, valid_E = jax.vmap(
            lambda p, t, v, d, k: fit(asking, network, p, answers, t, v, d, k)
        )(ensemble.params_E, ensemble.train_EL, ensemble.valid_EL, ensemble.decay_E, fit_keys)
        ensemble = ensemble._replace(params_E=params_E, decay_E=decay_E)
        reward = ensemble_reward(agent, network, params_E, segment)

        def improve(
            carry: tuple[Learner, Segment], _: None
        ) -> tuple[tuple[Learner, Segment], dict[str, Any]]:
            learner, segment, metrics = iterate(
                agent, carry[0], surrogate, penalty=False, reward_fn=reward
            )
            return (learner, segment), metrics["return"]

        (learner, segment), episodes = jax.lax.scan(
            improve, (learner, segment), None, length=asking.iterations_per_round
        )
        pairs = candidate_pairs(agent, segment, 512, asking.segment_steps, test_key)
        metrics = {
            "return": jax.tree.map(jnp.sum, episodes),
            "accuracy": accuracy(network, ensemble, *pairs),
            "train_loss": train_E.mean(),
            "valid_loss": valid_E.mean(),
            "weight_decay": decay_E.mean(),
        }
        return (learner, segment, ensemble, answers), metrics

    _, metrics = jax.lax.scan(
        one_round, (learner, segment, ensemble, answers), jnp.arange(asking.num_rounds)
    )
    return metrics


def accuracy_of_one_fit(
    agent: Agent, asking: QuerySettings, key: jax.Array, surrogate: Surrogate
) -> dict[str, jax.Array]:
    """How well one predictor learns from lapsing humans, apart from all else: its accuracy on pairs it has not seen.

    The pairs are of a policy that learns from the true reward, `labels_per_round` of each of `num_rounds` iterations, so that
    runs which differ in `model_lapse` alone have the same answers.
    """
    network = MLP(asking.hidden, 1, 1.0)
    learner = init_learner(agent, jax.random.fold_in(key, 0), surrogate)

    def step(learner: Learner, round_: jax.Array) -> tuple[Learner, Any]:
        learner, segment, _ = iterate(agent, learner, surrogate, penalty=False, reward_fn=None)
        pair_key = jax.random.fold_in(key, 3 + round_)
        return learner, candidate_pairs(
            agent, segment, 2 * asking.labels_per_round, asking.segment_steps, pair_key
        )

    _, pairs = jax.lax.scan(step, learner, jnp.arange(asking.num_rounds))
    (shown, returns), unseen = (
        tuple(x[:, part].reshape(-1, *x.shape[2:]) for x in pairs)
        for part in (slice(None, asking.labels_per_round), slice(asking.labels_per_round, None))
    )
    first_L, clean_L = human(returns, asking.human_lapse, jax.random.fold_in(key, 1))
    ones_L = jnp.ones_like(first_L)
    params = init_network(network, jax.random.fold_in(key, 2), shown.shape[-1])
    params, decay, loss, _ = fit(
        asking,
        network,
        params,
        Answers(shown, first_L, clean_L, ones_L),
        ones_L,
        ones_L,
        jnp.float32(asking.weight_decay),
        jax.random.fold_in(key, 3 + asking.num_rounds),
    )
    one = Ensemble(jax.tree.map(lambda x: x[None], params), ones_L[None], ones_L[None], decay[None])
    return {"accuracy": accuracy(network, one, *unseen), "train_loss": loss}
