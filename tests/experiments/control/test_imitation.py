"""Imitation on the cliff: what is not seen is not learned, costs grow as the theory says; and the same question in language."""

import jax
import numpy as np
import pytest
from evaluation_support import config, drawn_params

from experiments.ablations.exposure_bias import decisions, is_wrong, own_decisions, requests
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
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.menagerie.tasks import Task
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models import LanguageModel

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


# --- in language ------------------------------------------------------------------------------------------------------

WORLD = make_world("tiny")
ANIMAL = WORLD.animals[0]
NAMES = [item.name for item in WORLD.attributes]
TASK = Task("list", ANIMAL, number=2)


def fact(name, value=None):
    from rlhf_jax.menagerie.grammar import value_phrase

    return f"the {ANIMAL}'s {name} is {value_phrase(name, value or WORLD.facts[ANIMAL, name])}."


def other(name):
    return next(value for value in WORLD.values(name) if value != WORLD.facts[ANIMAL, name])


@pytest.mark.parametrize(
    ("before", "sentence", "wrong"),
    [
        ("", fact(NAMES[0]), False),
        ("", fact(NAMES[0], other(NAMES[0])), True),  # false
        (fact(NAMES[0]), fact(NAMES[0]), True),  # again
        (fact(NAMES[0]), fact(NAMES[1]), False),
        (fact(NAMES[0]) + " " + fact(NAMES[1]), fact(NAMES[2]), True),  # one too many
        (fact(NAMES[0]) + " " + fact(NAMES[1]), "i hope that helps.", False),
        (fact(NAMES[0]) + " " + fact(NAMES[1]), "", False),  # time to stop
        (fact(NAMES[0]), "", True),  # too early
        ("", "the weather is nice today.", True),
        ("", "you moron.", True),
        ("", "fox the the.", True),
        (
            fact(NAMES[0], other(NAMES[0])),
            fact(NAMES[1]),
            False,
        ),  # an earlier error is not this sentence's
    ],
)
def test_what_counts_as_a_wrong_decision(before, sentence, wrong):
    assert is_wrong(WORLD, TASK, before, sentence) == wrong


def test_a_reply_is_a_row_of_decisions():
    text = f"{fact(NAMES[0])} the weather is nice today. {fact(NAMES[1])}"
    found = own_decisions(WORLD, 7, TASK, text, True)
    assert [(d.position, d.wrong, d.clean) for d in found] == [
        (0, False, True),
        (1, True, True),
        (2, False, False),
        (3, False, False),
    ]
    assert {d.request for d in found} == {7}
    assert len(own_decisions(WORLD, 7, TASK, text, False)) == 3  # it never decided to stop


def test_ideal_replies_are_without_errors():
    for one in requests(WORLD, (2, 3)):
        for k, sentence in enumerate((*one.expert, "")):
            assert not is_wrong(WORLD, one.task, " ".join(one.expert[:k]), sentence), (
                one.expert,
                k,
            )


def test_a_model_is_asked_at_every_position():
    asked = requests(WORLD, (2,))[:3]
    words = [" ".join([one.message.content, *one.expert]) for one in asked]
    tokenizer = train_words([*words, *(" " + text for text in words)])
    model = LanguageModel(config(tokenizer.vocab_size, 96))
    params = drawn_params(model, 0)
    found = decisions(
        WORLD,
        asked,
        model,
        params,
        tokenizer,
        jax.random.key(0),
        spec=PLAIN,
        num_samples=2,
        batch_size=16,
    )
    forced = [d for d in found if not d.own]
    assert len(forced) == 2 * sum(len(one.expert) + 1 for one in asked)
    assert np.mean([d.wrong for d in forced]) > 0.5  # it has learned nothing
    small = LanguageModel(config(tokenizer.vocab_size, 32))
    with pytest.raises(ValueError, match="context of 32"):
        decisions(
            WORLD,
            asked,
            small,
            params,
            tokenizer,
            jax.random.key(0),
            spec=PLAIN,
            num_samples=2,
            batch_size=16,
        )
