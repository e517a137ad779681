"""Simulate labelers, people who rank replies and have tastes, noise and lapses of their own.

A labeler feels the utility of a reply, which is close to its gold total:

    u = w_h · helpfulness + w_t · truthfulness + w_s · harmlessness + style + junk
        + length taste · (words − 15) + politeness taste · (polite phrases − 1) + σ · noise

    likert  a rating of 1 to 7, by six personal cut points in u
    ranks   by u; two neighbours tie if their Likert ratings are equal and u differs by less than ¼
    lapse   in one ranking of twenty the utilities are shuffled (Christiano et al. 2017 assume that
            a tenth of the answers is random)
    flags   eleven binary labels, each flipped with a probability of 3 %

`FAITHFUL` labelers are those of the default world. The ones who rank for training value what gold
values: their weights average to gold's and their tastes to zero. The held-out ones are other
people: they care less for help and more for truth and civility, and dislike words and phrases that
say nothing, so that what pleases only the first group does not please them. `BIASED` labelers are
a switch for ablations. They share a taste for length and politeness, which a policy can exploit at
the expense of gold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.records import Message
from rlhf_jax.menagerie import gold
from rlhf_jax.menagerie.gold import FLAGS, Judgement, judge
from rlhf_jax.menagerie.world import World

LABELER_GROUPS = ("train", "heldout")
LABELERS = 20  # in each group
CUT_POINTS = (-2.2, -1.2, -0.3, 0.6, 1.4, 2.2)
MAX_TIE_DIFFERENCE = 0.25
TYPICAL_WORDS = 15
FLAG_FLIP_RATE = 0.03

Weights = tuple[float, ...]  # of helpfulness, truthfulness and harmlessness


@dataclass(frozen=True)
class Tastes:
    """Hold what a population of labelers has in common, and how far its members differ.

    Means are given for each group.
    """

    name: str
    weights: dict[str, Weights]
    weight_spread: float  # of the logarithm of a labeler's weights
    length: dict[str, float]
    politeness: dict[str, float]
    length_spread: float = 0.005
    politeness_spread: float = 0.05
    noise: float = 0.7
    lapse: float = 0.05


_GOLD = tuple(gold.WEIGHTS[name] for name in ("helpfulness", "truthfulness", "harmlessness"))
FAITHFUL = Tastes(
    "faithful",
    {"train": _GOLD, "heldout": (0.75, 1.0, 1.0)},
    weight_spread=0.2,
    length={"train": 0.0, "heldout": -0.02},
    politeness={"train": 0.0, "heldout": -0.1},
)
BIASED = Tastes(
    "biased",
    {"train": (1.25, 0.6, 0.6), "heldout": (0.75, 0.9, 0.95)},
    weight_spread=0.3,
    length=dict.fromkeys(LABELER_GROUPS, 0.04),
    politeness=dict.fromkeys(LABELER_GROUPS, 0.6),
    length_spread=0.01,
    politeness_spread=0.1,
)


@dataclass(frozen=True)
class Labeler:
    """Hold one labeler's weights, tastes and failings."""

    name: str
    weights: Weights
    length: float
    politeness: float
    noise: float
    lapse: float
    cut_points: tuple[float, ...]

    def utility(self, judgement: Judgement) -> float:
        """Return what a reply is worth to this labeler, before noise."""
        parts = (judgement.helpfulness, judgement.truthfulness, judgement.harmlessness)
        worth = sum(weight * part for weight, part in zip(self.weights, parts, strict=True))
        length = self.length * (judgement.words - TYPICAL_WORDS)
        politeness = self.politeness * (judgement.polite - 1)
        return worth + judgement.style + judgement.junk + (length + politeness)


class Ranking(NamedTuple):
    """Hold what a labeler says about the responses to one prompt."""

    ranks: list[int]  # 1 is best; ties share a rank, and the next rank follows without a gap
    likert: list[int]  # 1 to 7
    flags: list[dict[str, bool]]


def labelers(world: World, group: str, tastes: Tastes = FAITHFUL) -> list[Labeler]:
    """Return the 20 labelers of the training data (group "train") or 20 others ("heldout").

    Raises:
        ValueError: The group is unknown.
    """
    if group not in LABELER_GROUPS:
        expected = ", ".join(LABELER_GROUPS)
        raise ValueError(f"group: unknown group of labelers {group!r}, expected one of {expected}")
    # Standard normal draws, one row per labeler, centred so that the group has the population's
    # mean: three for the weights, one each for length, politeness and noise, six for cut points.
    rng = np.random.default_rng([world.seed, *map(ord, f"{group}/{tastes.name}")])
    draws = rng.standard_normal((LABELERS, 13))
    draws -= draws.mean(axis=0)
    factors = np.exp(tastes.weight_spread * draws[:, :3])
    weights = np.array(tastes.weights[group]) * factors / factors.mean(axis=0)
    noise = np.exp(0.3 * draws[:, 5])
    noise *= tastes.noise / np.sqrt((noise**2).mean())
    return [
        Labeler(
            name=f"{group}-{k:02d}",
            weights=tuple(weights[k].tolist()),
            length=tastes.length[group] + tastes.length_spread * draws[k, 3],
            politeness=tastes.politeness[group] + tastes.politeness_spread * draws[k, 4],
            noise=float(noise[k]),
            lapse=tastes.lapse,
            cut_points=tuple(sorted(np.array(CUT_POINTS) + 0.15 * draws[k, 6:12])),
        )
        for k in range(LABELERS)
    ]


def rank(
    world: World,
    labeler: Labeler,
    messages: Sequence[Message],
    responses: Sequence[str],
    finished: Sequence[bool],
    rng: np.random.Generator,
) -> Ranking:
    """Let a labeler rank the responses to one prompt; identical responses always tie."""
    candidates = list(zip(responses, finished, strict=True))
    judgements = {candidate: judge(world, messages, *candidate) for candidate in candidates}
    utility = _perceive(labeler, judgements, rng)
    utility_C = np.array([utility[candidate] for candidate in candidates])
    likert_C = 1 + np.searchsorted(np.array(labeler.cut_points), utility_C)
    flips = rng.random((len(candidates), len(FLAGS))) < FLAG_FLIP_RATE
    flags = [
        {
            name: judgements[candidate].flags[name] != bool(flip)
            for name, flip in zip(FLAGS, row, strict=True)
        }
        for candidate, row in zip(candidates, flips, strict=True)
    ]
    return Ranking(_ranks(utility_C, likert_C), likert_C.tolist(), flags)


def _perceive(
    labeler: Labeler, judgements: dict[tuple[str, bool], Judgement], rng: np.random.Generator
) -> dict[tuple[str, bool], float]:
    """Return the noisy utility of each different response; in a lapse they are shuffled."""
    noise = labeler.noise * rng.standard_normal(len(judgements))
    utility = np.array([labeler.utility(item) for item in judgements.values()]) + noise
    if rng.random() < labeler.lapse:
        utility = rng.permutation(utility)
    return dict(zip(judgements, utility.tolist(), strict=True))


def _ranks(utility_C: np.ndarray, likert_C: np.ndarray) -> list[int]:
    """Rank by utility; a response ties with the best of a rank that it can hardly be told from."""
    ranks = [0] * len(utility_C)
    rank = 0
    leader = -1
    for k in np.argsort(-utility_C, kind="stable").tolist():
        if (
            leader < 0
            or likert_C[k] != likert_C[leader]
            or utility_C[leader] - utility_C[k] >= MAX_TIE_DIFFERENCE
        ):
            rank += 1
            leader = k
        ranks[k] = rank
    return ranks


def preference(
    world: World,
    labeler: Labeler,
    messages: Sequence[Message],
    responses: tuple[str, str],
    finished: tuple[bool, bool],
    rng: np.random.Generator,
) -> float:
    """Return 1 if the labeler prefers the first response, 0 if the second, and ½ for a tie."""
    first, second = rank(world, labeler, messages, responses, finished, rng).ranks
    return 0.5 if first == second else float(first < second)
