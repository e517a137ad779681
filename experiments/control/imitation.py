"""Imitate an expert on the smallest task in which errors compound.

Ross & Bagnell 2010; Ross, Gordon & Bagnell 2011.

    on   a hint says left or right; do as it says and stay on, else fall off.  With probability
         `fog` the hint is hidden: every learner errs with ε = fog/2 there, the expert knows better
    off  costs 1 a step; the one recovery action of this side leads back. The expert never falls
         off, so never shows it

    behaviour cloning  trains on the expert's states:  J = Σ_t 1 − (1 − ε)^t ≈ ε T²/2, J ≤ T² ε
    DAgger             trains on its own states, expert's labels:  J ≈ ε T
    forward training   one policy per time step, trained on the states that the earlier ones lead to
    SMILe              mixes in: π_n = (1−α)ⁿ π* + α Σ_j (1−α)^{j−1} π̂_j, π̂_j from π_{j−1}'s states

The learner is multinomial logistic regression on one-hot observations, with a bias: what it never
saw falls back on the bias, which knows no recovery action. Left out on purpose: learners with
memory, and stochastic policies.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

ON_LEFT, ON_RIGHT, FOG, OFF_LEFT, OFF_RIGHT = range(5)  # observations
# Actions: go left, go right, recover from the left, recover from the right.
NUM_OBSERVATIONS, NUM_ACTIONS = 5, 4
RIDGE = 1e-4  # keeps separable data finite; too small to decide anything


@dataclass(frozen=True)
class Cliff:
    """Describe the task: how often the hint is hidden, and for how many steps one walks."""

    fog: float
    horizon: int

    @property
    def epsilon(self) -> float:
        """Error of the best learner on the expert's states."""
        return self.fog / 2


def fit(observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Fit multinomial logistic regression with bias; return the table of its greedy actions."""
    counts = np.zeros((NUM_OBSERVATIONS, NUM_ACTIONS))
    np.add.at(counts, (observations.ravel(), actions.ravel()), 1.0)
    share, total = counts / counts.sum(), counts.sum(1, keepdims=True) / counts.sum()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(NUM_OBSERVATIONS + 1, NUM_ACTIONS)  # the last row is the bias
        logp = special.log_softmax(weights[:-1] + weights[-1:], axis=1)
        slope = total * np.exp(logp) - share
        gradient = np.concatenate([slope, slope.sum(0, keepdims=True)]) + RIDGE * weights
        return -np.sum(share * logp) + 0.5 * RIDGE * np.sum(weights**2), gradient.ravel()

    start = np.zeros((NUM_OBSERVATIONS + 1) * NUM_ACTIONS)
    weights = optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x.reshape(-1, NUM_ACTIONS)
    return np.argmax(weights[:-1] + weights[-1:], axis=1)


@dataclass(frozen=True)
class Walks:
    """Hold trajectories: observations, what the expert would do there, and steps spent off."""

    observation_NT: np.ndarray
    expert_NT: np.ndarray
    cost_N: np.ndarray


# Who acts: time, observations, what the expert would do -> actions
Policy = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def expert(t: int, observation_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
    """Act as the expert does, who sees through fog."""
    return expert_N


def greedy(table: np.ndarray) -> Policy:
    """Return a policy that looks its action up, per observation or per time and observation."""

    def act(t: int, observation_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
        return (table if table.ndim == 1 else table[t])[observation_N]

    return act


def mixture(policies: Sequence[Policy], weights: np.ndarray, rng: np.random.Generator) -> Policy:
    """Return a policy that draws one of the policies anew at every step."""

    def act(t: int, observation_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
        actions = np.stack([policy(t, observation_N, expert_N) for policy in policies])
        policy_N = rng.choice(len(policies), size=len(observation_N), p=weights)
        return actions[policy_N, np.arange(len(observation_N))]

    return act


def walk(task: Cliff, policy: Policy, count: int, rng: np.random.Generator) -> Walks:
    """Take `count` walks under a policy; a step costs 1 where it begins off."""
    side_N = np.full(count, -1)  # on which the walker has fallen off, -1 while on
    cost_N = np.zeros(count)
    seen, known = [], []
    for t in range(task.horizon):
        hint_N = rng.integers(2, size=count)
        foggy_N = rng.random(count) < task.fog
        off_N = side_N >= 0
        observation_N = np.where(off_N, OFF_LEFT + side_N, np.where(foggy_N, FOG, hint_N))
        expert_N = np.where(off_N, 2 + side_N, hint_N)
        right_N = policy(t, observation_N, expert_N) == expert_N
        cost_N += off_N
        # Who errs on the way falls off on the side that the hint did not name.
        side_N = np.where(right_N, -1, np.where(off_N, side_N, 1 - hint_N))
        seen.append(observation_N)
        known.append(expert_N)
    return Walks(np.stack(seen, 1), np.stack(known, 1), cost_N)


def clone(task: Cliff, count: int, rng: np.random.Generator) -> Policy:
    """Clone behaviour: fit the expert on `count` of its own trajectories."""
    shown = walk(task, expert, count, rng)
    return greedy(fit(shown.observation_NT, shown.expert_NT))


def dagger(task: Cliff, count: int, rng: np.random.Generator, *, rounds: int) -> Policy:
    """Run DAgger with β_i = I(i = 1): on the expert's walks, then on each round's policy's.

    Returns the policy whose own walks cost least. The last one may not: should it choose the other
    side in fog than those before, it falls where nobody has been.
    """
    walks, policies = [walk(task, expert, count // rounds, rng)], []
    for _ in range(rounds):
        table = fit(
            np.concatenate([w.observation_NT for w in walks]),
            np.concatenate([w.expert_NT for w in walks]),
        )
        policies.append(greedy(table))
        walks.append(walk(task, policies[-1], count // rounds, rng))
    best = int(np.argmin([w.cost_N.mean() for w in walks[1:]]))
    return policies[best]


def smile(
    task: Cliff, count: int, rng: np.random.Generator, *, rounds: int, alpha: float
) -> Policy:
    """Run SMILe; in the end the learned policies share what is left of the expert."""
    learned: list[Policy] = []
    for n in range(rounds):
        weights = np.append(alpha * (1 - alpha) ** np.arange(n), (1 - alpha) ** n)
        shown = walk(task, mixture([*learned, expert], weights, rng), count // rounds, rng)
        learned.append(greedy(fit(shown.observation_NT, shown.expert_NT)))
    weights = alpha * (1 - alpha) ** np.arange(rounds)
    return mixture(learned, weights / weights.sum(), rng)


def forward(task: Cliff, count: int, rng: np.random.Generator) -> Policy:
    """Train forward: fit the policy of step t on where the policies before it have led."""
    table_TO = np.zeros((task.horizon, NUM_OBSERVATIONS), int)

    def learn_and_act(t: int, observation_N: np.ndarray, expert_N: np.ndarray) -> np.ndarray:
        table_TO[t] = fit(observation_N, expert_N)
        return table_TO[t][observation_N]

    walk(task, learn_and_act, count, rng)
    return greedy(table_TO)


METHODS = ("behaviour cloning", "DAgger", "forward training", "SMILe")


def learn(
    method: str, task: Cliff, count: int, rng: np.random.Generator, *, rounds: int, alpha: float
) -> Policy:
    """Return the policy that a method makes of `count` trajectories.

    Raises:
        ValueError: the method is unknown.
    """
    if method == "behaviour cloning":
        return clone(task, count, rng)
    if method == "DAgger":
        return dagger(task, count, rng, rounds=rounds)
    if method == "forward training":
        return forward(task, count, rng)
    if method == "SMILe":
        return smile(task, count, rng, rounds=rounds, alpha=alpha)
    raise ValueError(f"method: got {method!r}, expected one of {METHODS}")


def cloning_cost(epsilon: float, horizon: int) -> float:
    """Return J of cloning, which never recovers: Σ_{t<T} 1 − (1 − ε)^t = T − (1 − (1 − ε)^T)/ε."""
    return horizon - (1 - (1 - epsilon) ** horizon) / epsilon


def recovering_cost(epsilon: float, horizon: int) -> float:
    """Return J of a policy that errs as often but always recovers in one step.

    J = Σ_{t<T} p_t, with p_{t+1} = (1 − p_t) ε and p_0 = 0.
    """
    off, total = 0.0, 0.0
    for _ in range(horizon):
        total += off
        off = (1 - off) * epsilon
    return total
