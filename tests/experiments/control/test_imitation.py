"""Imitation on the cliff: what is not seen is not learned, and costs grow as the theory says."""

import numpy as np
import pytest

from experiments.ablations.fits import fit_power_law
from experiments.control.imitation import (
    FOG,
    METHODS,
    OFF_LEFT,
    OFF_RIGHT,
    ON_LEFT,
    ON_RIGHT,
    Cliff,
    cloning_cost,
    expert,
    fit,
    greedy,
    learn,
    recovering_cost,
    walk,
)

HORIZONS = (8, 16, 32)


def test_what_was_never_seen_falls_back_on_the_bias():
    table = fit(np.array([ON_LEFT, ON_LEFT, ON_RIGHT]), np.array([0, 0, 1]))
    assert table[ON_LEFT] == 0
    assert table[ON_RIGHT] == 1
    assert (
        table[OFF_LEFT] == table[OFF_RIGHT] == 0
    )  # the commoner action, which recovers from nothing
    table = fit(np.array([ON_LEFT, ON_RIGHT, OFF_RIGHT]), np.array([0, 1, 3]))
    assert table[OFF_RIGHT] == 3


def test_the_expert_pays_nothing_and_who_never_recovers_pays_the_closed_form():
    task, rng = Cliff(0.2, 16), np.random.default_rng(0)
    shown = walk(task, expert, 500, rng)
    assert shown.cost_N.max() == 0
    assert np.mean(shown.observation_NT == FOG) == pytest.approx(0.2, abs=0.02)
    lost = walk(task, greedy(np.array([0, 1, 0, 0, 0])), 20_000, rng).cost_N
    assert lost.mean() == pytest.approx(cloning_cost(0.1, 16), rel=0.03)
    back = walk(task, greedy(np.array([0, 1, 0, 2, 3])), 20_000, rng).cost_N
    assert back.mean() == pytest.approx(recovering_cost(0.1, 16), rel=0.03)


def test_closed_forms_by_hand():
    """T = 3, ε = ½: 0 + ½ + ¾; with recovery 0 + ½ + ¼."""
    assert cloning_cost(0.5, 3) == pytest.approx(1.25)
    assert recovering_cost(0.5, 3) == pytest.approx(0.75)
    values = [cloning_cost(0.01, horizon) for horizon in (8, 16, 32, 64, 128)]
    np.testing.assert_allclose(values, [0.274, 1.146, 4.498, 16.56, 55.625], rtol=2e-3)


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        ("behaviour cloning", 1.7, 2.2),
        ("DAgger", 0.75, 1.25),
        ("forward training", 0.75, 1.3),
        ("SMILe", 0.8, 1.6),
    ],
)
def test_cost_grows_with_the_horizon_as_the_theory_says(method, low, high):
    costs = []
    for horizon in HORIZONS:
        task, rng = Cliff(0.02, horizon), np.random.default_rng(horizon)
        policy = learn(method, task, 1500, rng, rounds=8, alpha=0.5)
        costs.append(walk(task, policy, 1500, rng).cost_N.mean())
        assert costs[-1] <= horizon**2 * task.epsilon
    assert low < fit_power_law(HORIZONS, costs).exponent < high


def test_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match=METHODS[1]):
        learn("dager", Cliff(0.1, 4), 10, np.random.default_rng(0), rounds=1, alpha=0.5)
