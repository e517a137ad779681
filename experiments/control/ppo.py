"""Train PPO on a control environment, as pure functions that can be mapped over seeds.

    for each iteration:
      1  num_envs copies of the environment take num_steps steps each; episodes end inside a segment
      2  rewards (the environment's, or any function) -> advantages and returns by GAE
      3  num_ppo_epochs x num_mini_batches: policy loss (clip, or KL penalty) + vf_coef value loss
         - entropy_coef entropy
      4  an adaptive KL penalty moves once, by KL(π_old ‖ π) over the segment after the last epoch

Losses, GAE, whitening, controller and optimizer are those of the language stages. Details as in
Schulman et al. 2017 and Huang et al. 2022 ("37 implementation details"): separate networks,
orthogonal kernels, observations standardised by running moments (frozen while a segment is
collected, so that ratios start at 1) and cut at ±10, rewards divided by the running deviation of
the discounted return and cut at ±10, advantages standardised per minibatch. At a time limit and at
the end of a segment the value of what would have followed is bootstrapped; at a true end it is 0.

Left out on purpose: annealed clip ranges, early stopping, recurrent policies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.control.environments import Environment
from experiments.control.networks import (
    CATEGORICAL,
    GAUSSIAN,
    ActorCritic,
    Distribution,
    init_network,
)
from rlhf_jax.maths.kl import ppo2017_update
from rlhf_jax.maths.losses import (
    explained_variance,
    ppo_kl_penalty_loss,
    ppo_policy_loss,
    ppo_value_loss,
)
from rlhf_jax.maths.masking import Mean, mean, value, whiten
from rlhf_jax.maths.returns import RunningMoments, empty_moments, gae, moments_std, update_moments
from rlhf_jax.models.heads import apply
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.updates import TrainState, apply_gradients, init_state, minibatch_rows

Params = Any
RewardFn = Callable[[jax.Array, jax.Array], jax.Array]  # observations, actions -> rewards
CUT = 10.0  # standardised observations and rewards stay in ±10 (OpenAI baselines)


@dataclass(frozen=True)
class Settings:
    """Hold every detail of the loop but the policy loss, which is data (`Surrogate`)."""

    num_iterations: int
    num_envs: int
    num_steps: int
    num_ppo_epochs: int
    num_mini_batches: int
    hidden: tuple[int, ...]
    gamma: float
    lam: float
    vf_coef: float
    cliprange_value: float | None
    entropy_coef: float
    scale_rewards: bool
    optimizer: OptimizerConfig

    def __post_init__(self) -> None:
        """Raise ValueError where the minibatches do not come out even."""
        if (self.num_envs * self.num_steps) % self.num_mini_batches:
            raise ValueError(
                f"num_envs * num_steps = {self.num_envs * self.num_steps} transitions do not "
                f"divide into num_mini_batches = {self.num_mini_batches}; choose a divisor"
            )


class Surrogate(NamedTuple):
    """Hold the policy loss as arrays, so that the rows of a table share one compiled program.

    Clip range ∞ with β 0 is the plain ratio objective r A; `kl_target` 0 keeps β fixed, else it is
    the controller's target.
    """

    cliprange: jax.Array | float
    beta: jax.Array | float
    kl_target: jax.Array | float


class Segment(NamedTuple):
    """Hold what was collected, frozen: axes B environments, R steps."""

    raw_observation_BRD: jax.Array
    observation_BRD: jax.Array  # standardised
    action_BR: jax.Array  # (B, R, A) where continuous
    outputs_BRO: jax.Array  # of the policy that acted
    logp_BR: jax.Array
    value_BR: jax.Array
    next_value_BR: jax.Array  # of what the action led to, before any reset
    reward_BR: jax.Array  # the environment's, unscaled
    terminated_BR: jax.Array
    truncated_BR: jax.Array


class Batch(NamedTuple):
    """Hold transitions as the losses see them: axis N is environments times steps."""

    observation_ND: jax.Array
    action_N: jax.Array
    outputs_NO: jax.Array
    logp_N: jax.Array
    value_N: jax.Array
    advantage_N: jax.Array
    return_N: jax.Array


class Learner(NamedTuple):
    """Hold all that lives from one iteration to the next."""

    state: TrainState
    beta: jax.Array
    env_state: Any
    observation_BD: jax.Array
    moments: RunningMoments  # of observations, per dimension
    reward_moments: RunningMoments  # of discounted returns
    discounted_B: jax.Array  # return of every running episode so far, discounted to now
    total_B: jax.Array  # undiscounted return of every running episode so far
    key: jax.Array


class Agent(NamedTuple):
    """Hold an environment with the network and the distribution that fit it."""

    env: Environment
    network: ActorCritic
    distribution: Distribution
    settings: Settings


def make_agent(env: Environment, settings: Settings) -> Agent:
    """Make an agent: Gaussian where actions are continuous, else categorical."""
    network = ActorCritic(settings.hidden, env.num_actions, env.continuous)
    return Agent(env, network, GAUSSIAN if env.continuous else CATEGORICAL, settings)


def _optimizer(settings: Settings) -> Any:
    per_iteration = settings.num_ppo_epochs * settings.num_mini_batches
    return make_optimizer(settings.optimizer, settings.num_iterations * per_iteration)


def init_learner(agent: Agent, key: jax.Array, surrogate: Surrogate) -> Learner:
    """Make a fresh policy in freshly reset environments."""
    num_envs, width = agent.settings.num_envs, agent.env.num_observations
    keys = jax.random.split(jax.random.fold_in(key, 0), num_envs)
    env_state, observation_BD = jax.vmap(agent.env.reset)(keys)
    params = init_network(agent.network, jax.random.fold_in(key, 1), width)
    moments = jax.tree.map(lambda x: jnp.broadcast_to(x, (width,)), empty_moments())
    zero_B = jnp.zeros(num_envs)
    return Learner(
        state=init_state(params, _optimizer(agent.settings)),
        beta=jnp.float32(surrogate.beta),
        env_state=env_state,
        observation_BD=observation_BD,
        moments=moments,
        reward_moments=empty_moments(),
        discounted_B=zero_B,
        total_B=zero_B,
        key=jax.random.fold_in(key, 2),
    )


def standardise(moments: RunningMoments, observation: jax.Array) -> jax.Array:
    """Return (x − mean) / deviation per dimension, cut at ±10."""
    shape = (1,) * (observation.ndim - 1) + moments.mean.shape
    std_D = jax.vmap(moments_std)(moments)
    return jnp.clip((observation - moments.mean.reshape(shape)) / std_D.reshape(shape), -CUT, CUT)


def collect(agent: Agent, learner: Learner) -> tuple[Learner, Segment]:
    """Take num_steps steps of every environment; parameters and moments stay as they are."""
    params = learner.state.params
    key, segment_key = jax.random.split(learner.key)

    def step(carry: tuple[Any, jax.Array], t: jax.Array) -> tuple[Any, Segment]:
        env_state, raw_BD = carry
        act_key, step_key = jax.random.split(jax.random.fold_in(segment_key, t))
        observation_BD = standardise(learner.moments, raw_BD)
        outputs_BO, value_B = apply(agent.network, params, observation_BD)
        action_B = agent.distribution.sample(act_key, outputs_BO)
        keys = jax.random.split(step_key, agent.settings.num_envs)
        after = jax.vmap(agent.env.step)(keys, env_state, action_B)
        final_BD = standardise(learner.moments, after.final_observation)
        _, next_value_B = apply(agent.network, params, final_BD)
        row = Segment(
            raw_observation_BRD=raw_BD,
            observation_BRD=observation_BD,
            action_BR=action_B,
            outputs_BRO=outputs_BO,
            logp_BR=agent.distribution.logp(outputs_BO, action_B),
            value_BR=value_B,
            next_value_BR=next_value_B,
            reward_BR=after.reward,
            terminated_BR=after.terminated,
            truncated_BR=after.truncated,
        )
        return (after.state, after.observation), row

    steps = jnp.arange(agent.settings.num_steps)
    (env_state, observation_BD), rows = jax.lax.scan(
        step, (learner.env_state, learner.observation_BD), steps
    )
    segment = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), rows)
    return learner._replace(env_state=env_state, observation_BD=observation_BD, key=key), segment


def running_returns(
    start_B: jax.Array, reward_BR: jax.Array, done_BR: jax.Array, gamma: float
) -> tuple[jax.Array, jax.Array]:
    """Return G_t = γ G_{t−1} + r_t, anew after each end, and what the next segment starts from."""

    def step(before_B: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward_B, done_B = now
        total_B = gamma * before_B + reward_B
        return jnp.where(done_B, 0.0, total_B), total_B

    last_B, total_RB = jax.lax.scan(step, start_B, (reward_BR.T, done_BR.T))
    return total_RB.T, last_B


def advantages(
    segment: Segment, reward_BR: jax.Array, *, gamma: float, lam: float
) -> tuple[jax.Array, jax.Array]:
    """Return GAE over segments of many episodes: no end is crossed, what is cut is bootstrapped."""
    ended_BR = segment.terminated_BR | segment.truncated_BR
    last_BR = jnp.zeros_like(ended_BR).at[:, -1].set(True)
    cut_BR = (segment.truncated_BR | last_BR) & ~segment.terminated_BR
    reward_BR = reward_BR + jnp.where(cut_BR, gamma * segment.next_value_BR, 0.0)
    gamma_BR = jnp.where(ended_BR, 0.0, gamma)
    return gae(reward_BR, segment.value_BR, jnp.ones_like(reward_BR), gamma=gamma_BR, lam=lam)


def policy_value_loss(
    distribution: Distribution,
    settings: Settings,
    outputs_NO: jax.Array,
    value_N: jax.Array,
    batch: Batch,
    surrogate: Surrogate,
    penalty: bool,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return L^CLIP or L^KLPEN + vf_coef L^VF − entropy_coef S of one minibatch.

    Schulman et al. 2017, equations 7 to 9, negated.
    """
    ones_N = jnp.ones_like(value_N)
    logp_N = distribution.logp(outputs_NO, batch.action_N)
    advantage_N = whiten(batch.advantage_N, ones_N, shift_mean=True)
    if penalty:
        kl_N = distribution.kl(jax.lax.stop_gradient(batch.outputs_NO), outputs_NO)
        policy_loss, stats = ppo_kl_penalty_loss(
            logp_N, batch.logp_N, kl_N, advantage_N, ones_N, beta=surrogate.beta
        )
    else:
        policy_loss, stats = ppo_policy_loss(
            logp_N, batch.logp_N, advantage_N, ones_N, cliprange=surrogate.cliprange
        )
    value_loss, _ = ppo_value_loss(
        value_N, batch.value_N, batch.return_N, ones_N, cliprange_value=settings.cliprange_value
    )
    entropy = mean(distribution.entropy(outputs_NO), ones_N)
    total = value(policy_loss) + settings.vf_coef * value(value_loss)
    total -= settings.entropy_coef * value(entropy)
    losses = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": entropy}
    kept = {name: stat for name, stat in stats.items() if name in ("approxkl", "clipfrac")}
    return total, losses | kept


def _optimise(
    agent: Agent,
    state: TrainState,
    batch: Batch,
    surrogate: Surrogate,
    key: jax.Array,
    penalty: bool,
) -> tuple[TrainState, dict[str, Mean]]:
    settings, optimizer = agent.settings, _optimizer(agent.settings)

    def loss(params: Params, rows: Batch) -> tuple[jax.Array, dict[str, Mean]]:
        outputs_NO, value_N = apply(agent.network, params, rows.observation_ND)
        return policy_value_loss(
            agent.distribution, settings, outputs_NO, value_N, rows, surrogate, penalty
        )

    def body(state: TrainState, rows_n: jax.Array) -> tuple[TrainState, dict[str, Mean]]:
        minibatch = jax.tree.map(lambda x: x[rows_n], batch)
        grads, stats = jax.grad(loss, has_aux=True)(state.params, minibatch)
        return apply_gradients(state, grads, optimizer), stats

    num_transitions = settings.num_envs * settings.num_steps
    rows = minibatch_rows(key, num_transitions, settings.num_ppo_epochs, settings.num_mini_batches)
    state, stats = jax.lax.scan(body, state, rows)
    return state, jax.tree.map(lambda x: x.sum(), stats)


def iterate(
    agent: Agent,
    learner: Learner,
    surrogate: Surrogate,
    *,
    penalty: bool,
    reward_fn: RewardFn | None,
) -> tuple[Learner, Segment, dict[str, Any]]:
    """Run one iteration of the loop; `reward_fn`, if given, pays instead of the environment.

    Metrics: `return` is the mean of the *environment's* undiscounted return over the episodes that
    ended in this segment, as a `Mean` pair (weight 0 where none did); `kl` is KL(π_old ‖ π) after
    the last epoch.
    """
    settings = agent.settings
    learner, segment = collect(agent, learner)
    done_BR = segment.terminated_BR | segment.truncated_BR
    total_BR, total_B = running_returns(learner.total_B, segment.reward_BR, done_BR, 1.0)
    reward_BR = segment.reward_BR
    if reward_fn is not None:
        reward_BR = reward_fn(segment.raw_observation_BRD, segment.action_BR)
    discounted_BR, discounted_B = running_returns(
        learner.discounted_B, reward_BR, done_BR, settings.gamma
    )
    reward_moments = update_moments(learner.reward_moments, discounted_BR)
    if settings.scale_rewards:
        reward_BR = jnp.clip(reward_BR / moments_std(reward_moments), -CUT, CUT)
    advantage_BR, return_BR = advantages(segment, reward_BR, gamma=settings.gamma, lam=settings.lam)

    rows = Batch(
        observation_ND=segment.observation_BRD,
        action_N=segment.action_BR,
        outputs_NO=segment.outputs_BRO,
        logp_N=segment.logp_BR,
        value_N=segment.value_BR,
        advantage_N=advantage_BR,
        return_N=return_BR,
    )
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    key, update_key = jax.random.split(learner.key)
    now = surrogate._replace(beta=learner.beta)
    state, losses = _optimise(agent, learner.state, batch, now, update_key, penalty)

    outputs_NO, _ = apply(agent.network, state.params, batch.observation_ND)
    kl = jnp.mean(agent.distribution.kl(batch.outputs_NO, outputs_NO))
    adaptive = surrogate.kl_target > 0
    target = jnp.where(adaptive, surrogate.kl_target, 1.0)
    beta = jnp.where(adaptive, ppo2017_update(learner.beta, kl, target=target), learner.beta)
    raw_ND = segment.raw_observation_BRD.reshape(-1, agent.env.num_observations)
    moments = jax.vmap(update_moments)(learner.moments, raw_ND.T)
    explained = explained_variance(segment.value_BR, return_BR, jnp.ones_like(return_BR))
    row = {
        **losses,
        "return": mean(total_BR, done_BR),
        "kl": kl,
        "beta": beta,
        "explained_variance": explained,
    }
    learner = learner._replace(
        state=state,
        beta=beta,
        moments=moments,
        reward_moments=reward_moments,
        discounted_B=discounted_B,
        total_B=total_B,
        key=key,
    )
    return learner, segment, row


def train(
    agent: Agent, key: jax.Array, surrogate: Surrogate, *, penalty: bool
) -> dict[str, jax.Array]:
    """Run on the environment's own reward; return metrics stacked over iterations."""

    def step(learner: Learner, _: None) -> tuple[Learner, dict[str, Any]]:
        learner, _segment, metrics = iterate(
            agent, learner, surrogate, penalty=penalty, reward_fn=None
        )
        return learner, metrics

    _, metrics = jax.lax.scan(
        step, init_learner(agent, key, surrogate), None, length=agent.settings.num_iterations
    )
    return metrics


def over_seeds(run: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `run(key, *shared)` for many keys at once: results have seeds as first axis.

    On a CPU, matrix products stay on one thread: batched ones inside a scan can wait for XLA's own
    thread pool for ever (seen with jaxlib 0.10.2 on two cores).
    """

    def mapped(keys: jax.Array, *shared: Any) -> Any:
        return jax.vmap(lambda key: run(key, *shared))(keys)

    return jax.jit(mapped, compiler_options={"xla_cpu_multi_thread_eigen": False})


def late_return(metrics: dict[str, Any], share: float) -> jax.Array:
    """Return the mean return of episodes that ended in the last `share` of iterations, or NaN."""
    episodes = metrics["return"]
    first = round(episodes.total.shape[-1] * (1 - share))
    return episodes.total[..., first:].sum(-1) / episodes.weight[..., first:].sum(-1)
