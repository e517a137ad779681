"""Learn from human preferences between segments of behaviour, with simulated humans.

Christiano et al. 2017.

    predictors  E networks r̂(observation, action), trained on preferences between segments
        P̂[σ¹ ≻ σ²] = σ(Σ r̂(σ¹) − Σ r̂(σ²));  loss: cross-entropy under a human who lapses by ε
    for each round:
      1  draw candidate pairs of segments from what the policy did last; ask about those whose
         predicted preference differs most among the predictors (or about random ones)
      2  train every predictor on its own bootstrap draw of all answers but the 1/e that it holds
         out; its weight decay grows while the validation loss exceeds 1.5 times the training loss,
         and shrinks while it is below 1.1 times
      3  reward = mean over predictors of r̂, each standardised on the policy's own transitions;
         iterate PPO with it

The human here compares true returns and, with a probability of its own, answers at random.
Everything is a pure function with fixed shapes (unused places of the answers weigh 0), so whole
runs map over seeds.

Left out on purpose: ties and "can not tell", asking while the policy acts (PPO and questions take
turns), Atari's tricks.
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
# Validation over training loss should lie between these (section 2.2.3).
LOW_GAP, HIGH_GAP = 1.1, 1.5


@dataclass(frozen=True)
class QuerySettings:
    """Say who is asked how often, and how the answers are learned."""

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
        """Number of questions over a whole run."""
        return self.num_rounds * self.labels_per_round


class Answers(NamedTuple):
    """Hold pairs of segments (axis 2) and which was preferred; `mask_L` says what is filled."""

    input_L2KD: jax.Array  # observation and action side by side
    first_L: jax.Array  # 1 if the first was preferred, else 0
    clean_first_L: jax.Array  # the same without lapses: for measuring, never for training
    mask_L: jax.Array


class Predictor(NamedTuple):
    """Hold a predictor's parameters and its share of the answers; an ensemble has axis E first."""

    params: Params
    train_L: jax.Array  # how often it drew an answer
    valid_L: jax.Array
    decay: jax.Array  # its weight decay


class Setup(NamedTuple):
    """Hold what stays the same over a run."""

    agent: Agent
    queries: QuerySettings
    network: MLP


def predicted_rewards(network: MLP, params: Params, inputs: jax.Array) -> jax.Array:
    """Return r̂ of every transition: (..., D) -> (...)."""
    return apply(network, params, inputs)[..., 0]


def segment_gap(network: MLP, params: Params, input_L2KD: jax.Array) -> jax.Array:
    """Return Σ r̂(σ¹) − Σ r̂(σ²) of every pair."""
    total_L2 = predicted_rewards(network, params, input_L2KD).sum(-1)
    return total_L2[:, 0] - total_L2[:, 1]


def preference_loss(
    gap_L: jax.Array, first_L: jax.Array, weight_L: jax.Array, lapse: float
) -> Mean:
    """Return the answers' cross-entropy under a human who lapses; ε = 0 is Bradley-Terry."""
    if lapse > 0:
        return mean(christiano_nll(gap_L, first_L, lapse=lapse), weight_L)
    nll_L = first_L * jax.nn.softplus(-gap_L) + (1 - first_L) * jax.nn.softplus(gap_L)
    return mean(nll_L, weight_L)


def features(agent: Agent, observation: jax.Array, action: jax.Array) -> jax.Array:
    """Return what a predictor sees: observation and action, one-hot where it is a choice."""
    shown = action if agent.env.continuous else jax.nn.one_hot(action, agent.env.num_actions)
    return jnp.concatenate([observation, shown], axis=-1)


def candidate_pairs(
    agent: Agent, segment: Segment, count: int, steps: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw pairs of pieces of `steps` steps: input_C2KD, and the true return of each, return_C2.

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
    """Answer with and without lapses: 1 where the first return is higher (a coin if equal)."""
    lapse_key, guess_key, tie_key = jax.random.split(key, 3)
    gap_C = return_C2[:, 0] - return_C2[:, 1]
    clean_C = jnp.where(gap_C == 0, jax.random.bernoulli(tie_key, 0.5, gap_C.shape), gap_C > 0)
    lapsed_C = jax.random.bernoulli(lapse_key, lapse, gap_C.shape)
    guess_C = jax.random.bernoulli(guess_key, 0.5, gap_C.shape)
    return jnp.where(lapsed_C, guess_C, clean_C).astype(jnp.float32), clean_C.astype(jnp.float32)


def disagreement(network: MLP, params_E: Params, input_C2KD: jax.Array) -> jax.Array:
    """Return the variance over predictors of P̂[σ¹ ≻ σ²]."""
    gap_EC = jax.vmap(lambda params: segment_gap(network, params, input_C2KD))(params_E)
    return jnp.var(jax.nn.sigmoid(gap_EC), axis=0)


def ask(
    setup: Setup,
    ensemble: Predictor,
    answers: Answers,
    segment: Segment,
    place: jax.Array,
    key: jax.Array,
) -> tuple[Answers, Predictor]:
    """Ask `labels_per_round` questions, and give every predictor its bootstrap draw of the answers.

    They are written from `place` on.
    """
    queries = setup.queries
    count = queries.labels_per_round
    pair_key, human_key, draw_key, hold_key = jax.random.split(key, 4)
    choices = count * (queries.candidates_per_label if queries.active else 1)
    pairs = candidate_pairs(setup.agent, segment, choices, queries.segment_steps, pair_key)
    input_C2KD, return_C2 = pairs
    if queries.active:
        variance_C = disagreement(setup.network, ensemble.params, input_C2KD)
        _, best = jax.lax.top_k(variance_C, count)
        input_C2KD, return_C2 = input_C2KD[best], return_C2[best]
    first_C, clean_C = human(return_C2, queries.human_lapse, human_key)

    shape = (queries.num_predictors, count)
    if queries.bootstrap:
        # Poisson(1) draws per answer are the bootstrap of a growing sample (Oza & Russell 2001).
        held_EC = jax.random.bernoulli(hold_key, jnp.exp(-1.0), shape)
        draws_EC = jnp.where(held_EC, 0, jax.random.poisson(draw_key, 1.0, shape))
    else:
        held_EC, draws_EC = jnp.zeros(shape, bool), jnp.ones(shape)

    def write(old: jax.Array, new: jax.Array, axis: int = 0) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(jnp.float32), place, axis)

    answers = jax.tree.map(write, answers, Answers(input_C2KD, first_C, clean_C, jnp.ones(count)))
    train_EL = write(ensemble.train_L, draws_EC, 1)
    return answers, ensemble._replace(train_L=train_EL, valid_L=write(ensemble.valid_L, held_EC, 1))


def fit(
    setup: Setup, predictor: Predictor, answers: Answers, key: jax.Array
) -> tuple[Predictor, jax.Array, jax.Array]:
    """Train one predictor by AdamW on minibatches drawn by weight.

    Returns it with its next weight decay, and the losses of training and validation.
    """
    queries, network = setup.queries, setup.network
    train_L, decay = predictor.train_L, predictor.decay
    adam = scale_by_adam(0.9, 0.999, 1e-8, style="torch")
    log_weight_L = jnp.where(train_L > 0, jnp.log(jnp.maximum(train_L, 1.0)), -jnp.inf)

    def loss(params: Params, rows: Answers, weight_L: jax.Array) -> jax.Array:
        gap_L = segment_gap(network, params, rows.input_L2KD)
        return value(preference_loss(gap_L, rows.first_L, weight_L, queries.model_lapse))

    def step(carry: tuple[Params, Any], t: jax.Array) -> tuple[tuple[Params, Any], None]:
        params, moments = carry
        shape, step_key = (queries.batch_size,), jax.random.fold_in(key, t)
        rows_b = jax.random.categorical(step_key, log_weight_L, shape=shape)
        batch = jax.tree.map(lambda x: x[rows_b], answers)
        grads = jax.grad(loss)(params, batch, batch.mask_L)
        updates, moments = adam.update(grads, moments)
        rate = queries.learning_rate
        params = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates)
        return (params, moments), None

    start = (predictor.params, adam.init(predictor.params))
    (params, _), _ = jax.lax.scan(step, start, jnp.arange(queries.num_updates))
    train, valid = loss(params, answers, train_L), loss(params, answers, predictor.valid_L)
    ratio = valid / train
    factor = jnp.where(ratio > HIGH_GAP, 2.0, jnp.where(ratio < LOW_GAP, 0.5, 1.0))
    decay = decay * (factor if queries.bootstrap else 1.0)
    return predictor._replace(params=params, decay=decay), train, valid


def ensemble_reward(setup: Setup, params_E: Params, segment: Segment) -> RewardFn:
    """Return the mean of r̂ over predictors, each standardised on the transitions of `segment`."""
    agent, network = setup.agent, setup.network
    inputs = features(agent, segment.raw_observation_BRD, segment.action_BR)
    seen_E = jax.vmap(lambda params: predicted_rewards(network, params, inputs))(params_E)
    mu_E, sd_E = seen_E.mean((1, 2)), seen_E.std((1, 2)) + 1e-8

    def reward(observation: jax.Array, action: jax.Array) -> jax.Array:
        shown = features(agent, observation, action)

        def standardised(params: Params, mu: jax.Array, sd: jax.Array) -> jax.Array:
            return (predicted_rewards(network, params, shown) - mu) / sd

        return jax.vmap(standardised)(params_E, mu_E, sd_E).mean(0)

    return reward


def accuracy(
    network: MLP, params_E: Params, input_C2KD: jax.Array, return_C2: jax.Array
) -> jax.Array:
    """Return the share of pairs that the predictors' mean gap orders as the true returns do.

    Equal returns are left out.
    """
    gap_EC = jax.vmap(lambda params: segment_gap(network, params, input_C2KD))(params_E)
    true_C = return_C2[:, 0] - return_C2[:, 1]
    return value(mean(jnp.sign(gap_EC.mean(0)) == jnp.sign(true_C), true_C != 0))


class _Carry(NamedTuple):
    learner: Learner
    segment: Segment
    ensemble: Predictor
    answers: Answers


def _start(setup: Setup, key: jax.Array, surrogate: Surrogate) -> _Carry:
    """Return untrained predictors without answers, and what an untrained policy does."""
    agent, queries = setup.agent, setup.queries
    width = agent.env.num_observations + agent.env.num_actions
    keys = jax.random.split(jax.random.fold_in(key, 0), queries.num_predictors)
    nothing_EL = jnp.zeros((queries.num_predictors, queries.num_labels))
    ensemble = Predictor(
        params=jax.vmap(lambda k: init_network(setup.network, k, width))(keys),
        train_L=nothing_EL,
        valid_L=nothing_EL,
        decay=jnp.full(queries.num_predictors, queries.weight_decay),
    )
    empty_L = jnp.zeros(queries.num_labels)
    shape = (queries.num_labels, 2, queries.segment_steps, width)
    answers = Answers(jnp.zeros(shape), empty_L, empty_L, empty_L)
    learner = init_learner(agent, jax.random.fold_in(key, 1), surrogate)
    # An iteration with no reward leaves the policy as good as untrained.
    learner, segment, _ = iterate(
        agent, learner, surrogate, penalty=False, reward_fn=lambda o, a: jnp.zeros(o.shape[:2])
    )
    return _Carry(learner, segment, ensemble, answers)


def train_from_preferences(
    agent: Agent, queries: QuerySettings, key: jax.Array, surrogate: Surrogate
) -> dict[str, jax.Array]:
    """Run without sight of the true reward and return metrics per round. Map it over keys.

    `return` is the environment's, as a `Mean` pair over the episodes of a round; `accuracy` is on
    fresh pairs of what the policy does at the end of a round, against true returns.
    """
    setup = Setup(agent, queries, MLP(queries.hidden, 1, 1.0))

    def run_round(carry: _Carry, round_: jax.Array) -> tuple[_Carry, dict[str, Any]]:
        learner, segment, ensemble, answers = carry
        ask_key, fit_key, test_key = jax.random.split(jax.random.fold_in(key, 2 + round_), 3)
        place = round_ * queries.labels_per_round
        answers, ensemble = ask(setup, ensemble, answers, segment, place, ask_key)
        fit_keys = jax.random.split(fit_key, queries.num_predictors)
        ensemble, train_E, valid_E = jax.vmap(
            lambda predictor, fit_key: fit(setup, predictor, answers, fit_key)
        )(ensemble, fit_keys)
        reward = ensemble_reward(setup, ensemble.params, segment)

        def improve(
            carry: tuple[Learner, Segment], _: None
        ) -> tuple[tuple[Learner, Segment], dict[str, Any]]:
            learner, segment, metrics = iterate(
                agent, carry[0], surrogate, penalty=False, reward_fn=reward
            )
            return (learner, segment), metrics["return"]

        (learner, segment), episodes = jax.lax.scan(
            improve, (learner, segment), None, length=queries.iterations_per_round
        )
        pairs = candidate_pairs(agent, segment, 512, queries.segment_steps, test_key)
        metrics = {
            "return": jax.tree.map(jnp.sum, episodes),
            "accuracy": accuracy(setup.network, ensemble.params, *pairs),
            "train_loss": train_E.mean(),
            "valid_loss": valid_E.mean(),
            "weight_decay": ensemble.decay.mean(),
        }
        return _Carry(learner, segment, ensemble, answers), metrics

    start = _start(setup, key, surrogate)
    _, metrics = jax.lax.scan(run_round, start, jnp.arange(queries.num_rounds))
    return metrics


def accuracy_of_one_fit(
    agent: Agent, queries: QuerySettings, key: jax.Array, surrogate: Surrogate
) -> dict[str, jax.Array]:
    """Measure how well one predictor learns from lapsing humans: its accuracy on unseen pairs.

    The pairs are of a policy that learns from the true reward, `labels_per_round` of each of
    `num_rounds` iterations, so that runs which differ in `model_lapse` alone have the same answers.
    """
    setup, count = Setup(agent, queries, MLP(queries.hidden, 1, 1.0)), queries.labels_per_round
    learner = init_learner(agent, jax.random.fold_in(key, 0), surrogate)

    def step(learner: Learner, round_: jax.Array) -> tuple[Learner, Any]:
        learner, segment, _ = iterate(agent, learner, surrogate, penalty=False, reward_fn=None)
        pair_key = jax.random.fold_in(key, 3 + round_)
        pairs = candidate_pairs(agent, segment, 2 * count, queries.segment_steps, pair_key)
        return learner, pairs

    def joined(x: jax.Array) -> jax.Array:
        return x.reshape(-1, *x.shape[2:])

    _, pairs = jax.lax.scan(step, learner, jnp.arange(queries.num_rounds))
    shown, returns = (joined(x[:, :count]) for x in pairs)
    unseen = [joined(x[:, count:]) for x in pairs]
    first_L, clean_L = human(returns, queries.human_lapse, jax.random.fold_in(key, 1))
    ones_L = jnp.ones_like(first_L)
    params = init_network(setup.network, jax.random.fold_in(key, 2), shown.shape[-1])
    predictor = Predictor(params, ones_L, ones_L, jnp.float32(queries.weight_decay))
    answers = Answers(shown, first_L, clean_L, ones_L)
    fit_key = jax.random.fold_in(key, 3 + queries.num_rounds)
    predictor, loss, _ = fit(setup, predictor, answers, fit_key)
    params_E = jax.tree.map(lambda x: x[None], predictor.params)
    return {"accuracy": accuracy(setup.network, params_E, *unseen), "train_loss": loss}
