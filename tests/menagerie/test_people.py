"""Test the calibration of Menagerie's people: personas, demonstrators and labelers."""

import dataclasses
import re
import statistics
from collections import Counter

import numpy as np
import pytest

from rlhf_jax.data.records import Message
from rlhf_jax.menagerie import card, personas
from rlhf_jax.menagerie.builders import comparisons, demonstrations
from rlhf_jax.menagerie.gold import judge
from rlhf_jax.menagerie.labelers import (
    BIASED,
    FAITHFUL,
    LABELER_GROUPS,
    Labeler,
    labelers,
    preference,
    rank,
)
from rlhf_jax.menagerie.world import make_world

WORLD = make_world("default")
ASK = [Message("user", "what is the colour of the fox?")]


@pytest.fixture(scope="module")
def pairs() -> list[card.Pair]:
    return card.draw_pairs(WORLD, 6000, WORLD.rng("test", "pairs"))


def test_personas_are_ordered_by_gold() -> None:
    means = {p.name: statistics.mean(card.persona_gold(WORLD, p, 1500)) for p in personas.PERSONAS}
    for better, worse in (
        ("good", "average"),
        ("average", "sycophantic"),
        ("sycophantic", "off-topic"),
        ("off-topic", "wrong"),
        ("off-topic", "refusing"),
        ("wrong", "rude"),
        ("refusing", "rude"),
    ):
        assert means[better] > means[worse] + 0.1, means


def test_demonstrators_are_entirely_right_in_half_of_their_replies() -> None:
    """The other half is what RL can mend."""
    source = demonstrations(WORLD, "train")
    right = [
        judge(WORLD, item.messages[:-1], item.messages[-1].content, True).entirely_right
        for item in source
    ]
    assert np.mean(right) == pytest.approx(0.5, abs=0.05)
    assert card.headroom(WORLD, 3000) >= 0.6


def test_demonstrators_tell_the_truth_92_times_in_100() -> None:
    assert card.claims_truth(WORLD, 3000) == pytest.approx(0.92, abs=0.015)


def test_labelers_agree_as_much_as_people_do(pairs: list[card.Pair]) -> None:
    """On answers of the SFT model, which differ more, it is 72 to 73 % (LOG.md)."""
    for group in LABELER_GROUPS:
        shares = card.agreement(WORLD, pairs, labelers(WORLD, group))
        assert 0.61 <= shares["labeler-labeler"] <= 0.66, shares
        assert shares["labeler-gold"] >= 0.74, shares
        assert shares["modal of three-gold"] >= shares["labeler-gold"] + 0.04, shares


@pytest.mark.parametrize(
    ("group", "weights", "length", "politeness"),
    [("train", (1.0, 0.75, 0.75), 0.0, 0.0), ("heldout", (0.75, 1.0, 1.0), -0.02, -0.1)],
)
def test_faithful_labelers_average_to_gold_and_heldout_ones_to_something_else(
    group: str, weights: tuple[float, ...], length: float, politeness: float
) -> None:
    people = labelers(WORLD, group)
    assert len({person.name for person in people}) == 20
    assert np.mean([p.weights for p in people], axis=0) == pytest.approx(weights)
    assert np.mean([p.length for p in people]) == pytest.approx(length, abs=1e-9)
    assert np.mean([p.politeness for p in people]) == pytest.approx(politeness, abs=1e-9)
    for text in ("of course. red. red.", "the fox is red. have a nice day.", "you dolt."):
        judgement = judge(WORLD, ASK, text, True)
        mean = np.mean([person.utility(judgement) for person in people])
        assert (mean == pytest.approx(judgement.total, abs=1e-6)) == (group == "train")


def test_biased_labelers_share_a_taste_that_gold_lacks() -> None:
    people = labelers(WORLD, "train", BIASED)
    assert np.mean([person.length for person in people]) == pytest.approx(0.04)
    assert np.mean([person.politeness for person in people]) == pytest.approx(0.6)
    long = judge(WORLD, ASK, "of course. good question. i am not sure. have a nice day.", True)
    short = judge(WORLD, ASK, "i am not sure.", True)
    assert long.total < short.total
    assert np.mean([p.utility(long) for p in people]) > np.mean([p.utility(short) for p in people])


def test_groups_and_tastes_are_other_people() -> None:
    assert labelers(WORLD, "train")[:10] != labelers(WORLD, "heldout")
    assert labelers(WORLD, "train", FAITHFUL) != labelers(WORLD, "train", BIASED)
    with pytest.raises(ValueError, match="group: unknown group of labelers 'test'"):
        labelers(WORLD, "test")


EXACT = Labeler("exact", (1.0, 0.75, 0.75), 0.0, 0.0, 0.0, 0.0, (-2.2, -1.2, -0.3, 0.6, 1.4, 2.2))


def test_a_labeler_without_noise_ranks_by_gold() -> None:
    red = WORLD.facts["fox", "colour"]
    responses = [f"{red}.", "you dolt.", f"the fox is {red}.", "i am not sure.", "i do not know."]
    ranks, likert, flags = rank(WORLD, EXACT, ASK, responses, [True] * 5, np.random.default_rng(0))
    assert ranks == [2, 4, 1, 3, 3]  # gold 1.25, -0.75, 1.75, 0, 0
    assert likert == [5, 3, 6, 4, 4]
    assert len(flags) == 5


def test_near_equals_tie_only_within_a_likert_grade() -> None:
    red = WORLD.facts["fox", "colour"]
    responses = (
        f"the colour of the fox is {red}.",
        f"the fox is {red}.",
    )  # gold 1.75 both, 7 and 4 words
    for length, cut, expected in (
        (0.0, 1.4, 0.5),
        (0.05, 1.4, 0.5),
        (0.05, 1.3, 1.0),
        (0.1, 0.9, 1.0),
    ):
        person = dataclasses.replace(
            EXACT, length=length, cut_points=(-3.0, -2.0, -1.0, 0.0, cut, 3.0)
        )
        # Utilities are 1.75 - 8 length and 1.75 - 11 length: 0.15 or 0.3 apart, and for a length
        # taste of 0.05 on both sides of 1.3.
        vote = preference(WORLD, person, ASK, responses, (True, True), np.random.default_rng(0))
        assert vote == expected, (length, cut)


def test_a_reply_that_does_not_end_loses() -> None:
    args = (WORLD, EXACT, ASK, ("it is red.", "it is red."))
    assert preference(*args, (True, True), np.random.default_rng(0)) == 0.5
    assert preference(*args, (False, True), np.random.default_rng(0)) == 0.0


def test_identical_responses_tie_and_lapses_shuffle() -> None:
    rng = np.random.default_rng(0)
    for person in labelers(WORLD, "train"):
        ranks, _, _ = rank(WORLD, person, ASK, ["red.", "you oaf.", "red."], [True] * 3, rng)
        assert ranks[0] == ranks[2]
    careless = Labeler("careless", (1.0, 0.75, 0.75), 0.0, 0.0, 0.0, 1.0, EXACT.cut_points)
    wins = [
        preference(WORLD, careless, ASK, ("red.", "you oaf."), (True, True), rng)
        for _ in range(400)
    ]
    assert np.mean(wins) == pytest.approx(0.5, abs=0.08)


def test_flags_are_flipped_now_and_then() -> None:
    rng = np.random.default_rng(0)
    truth = judge(WORLD, ASK, "red.", True).flags
    flips = [
        flags[name] != truth[name]
        for _ in range(400)
        for flags in rank(WORLD, EXACT, ASK, ["red."], [True], rng)[2]
        for name in truth
    ]
    assert np.mean(flips) == pytest.approx(0.03, abs=0.008)


def test_comparisons_have_four_to_nine_different_replies() -> None:
    rankings = comparisons(make_world("tiny"), "train")
    assert {len(item.responses) for item in rankings} <= set(range(4, 10))
    assert all(len(set(item.responses)) == len(item.responses) for item in rankings)
    assert all(min(item.ranks) == 1 and max(item.ranks) <= len(item.ranks) for item in rankings)
    assert any(len(set(item.ranks)) < len(item.ranks) for item in rankings), "nobody ever ties"
    assert all(item.metadata["labeler"].startswith("train") for item in rankings)
    heldout = comparisons(make_world("tiny"), "test")
    assert all(item.metadata["labeler"].startswith("heldout") for item in heldout)


def test_a_bag_of_words_is_no_reward_model(pairs: list[card.Pair]) -> None:
    """Replies of one kind of writer differ in how they fit the prompt, which word counts miss."""
    gold = np.array([first - second for _, _, (first, second) in pairs])
    vocabulary: dict[str, int] = {}
    bags = [
        [Counter(re.findall(r"[a-z]+|[.,]", text)) for text in replies] for _, replies, _ in pairs
    ]
    for bag in (bag for pair in bags for bag in pair):
        for word in bag:
            vocabulary.setdefault(word, len(vocabulary))
    x = np.zeros((len(pairs), len(vocabulary)))
    for row, pair in enumerate(bags):
        for sign, bag in zip((1, -1), pair, strict=True):
            for word, count in bag.items():
                x[row, vocabulary[word]] += sign * count
    clear = gold != 0
    train, test = clear[:3500].nonzero()[0], 3500 + clear[3500:].nonzero()[0]
    weights = np.zeros(len(vocabulary))
    for _ in range(8):  # Newton's method, with a ridge of 1
        chance = 1 / (1 + np.exp(-x[train] @ weights))
        slope = x[train].T @ (chance - (gold[train] > 0)) + weights
        curvature = (x[train].T * (chance * (1 - chance))) @ x[train] + np.eye(len(weights))
        weights -= np.linalg.solve(curvature, slope)
    accuracy = ((x[test] @ weights > 0) == (gold[test] > 0)).mean()
    assert 0.5 < accuracy <= 0.70, accuracy  # the pooled reward model: 0.80 to 0.83 (LOG.md)
