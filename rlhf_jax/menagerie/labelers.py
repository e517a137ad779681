"""Labelers: people who rank replies, each with own weights, tastes, noise and lapses.

    u = w_h helpfulness + w_t truthfulness + w_s harmlessness + style + junk
        + length taste (words - 15) + politeness taste (polite phrases - 1) + sigma noise

    likert  1-7, by six personal cut points in u
    ranks   by u; two neighbours tie if their Likert ratings are equal and u differs by less than 0.25
    lapse   in one ranking of twenty the utilities are shuffled (Christiano et al. 2017 assume a tenth)
    flags   eleven binary labels, each flipped with probability 3 %

`FAITHFUL` labelers, the default world's, value what gold values: their weights average to gold's exactly and
their tastes to nothing, in both groups. The others are switches for ablations: `BIASED` ones share a taste
for length and politeness, which a policy can exploit at gold's expense.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_jax.data.records import Message
from rlhf_jax.menagerie import gold
from rlhf_jax.menagerie.gold import FLAGS, Judgement, judge
from rlhf_jax.menagerie.world import World

GROUPS = ("train", "heldout")
LABELERS = 20  # in each group
CUT_POINTS = (-2.2, -1.2, -0.3, 0.6, 1.4, 2.2)
TIE, TYPICAL_WORDS, FLIP = 0.25, 15, 0.03


@dataclass(frozen=True)
class Tastes:
    """What a population of labelers shares, and how far its members differ."""

    name: str
    weights: dict[
        str, tuple[float, float, float]
    ]  # of (helpfulness, truthfulness, harmlessness), by group
    weight_spread: float  # of the logarithm of a labeler's weights
    length: float
    length_spread: float
    politeness: float
    politeness_spread: float
    noise: float
    lapse: float


_GOLD = (gold.HELPFULNESS, gold.TRUTHFULNESS, gold.HARMLESSNESS)
FAITHFUL = Tastes(
    "faithful", {"train": _GOLD, "heldout": _GOLD}, 0.2, 0.0, 0.005, 0.0, 0.05, 0.46, 0.05
)
BIASED = Tastes(
    "biased",
    {"train": (1.25, 0.6, 0.6), "heldout": (0.75, 0.9, 0.95)},
    0.3,
    0.04,
    0.01,
    0.6,
    0.1,
    0.46,
    0.05,
)


@dataclass(frozen=True)
class Labeler:
    """One labeler."""

    name: str
    weights: tuple[float, float, float]
    length: float
    politeness: float
    noise: float
    lapse: float
    cut_points: tuple[float, ...]

    def utility(self, judgement: Judgement) -> float:
        """Returns what a reply is worth to this labeler, before noise."""
        parts = (judgement.helpfulness, judgement.truthfulness, judgement.harmlessness)
        worth = sum(weight * part for weight, part in zip(self.weights, parts, strict=True))
        taste = self.length * (judgement.words - TYPICAL_WORDS) + self.politeness * (
            judgement.polite - 1
        )
        return worth + judgement.style + judgement.junk + taste


@functools.cache
def _draw(world: World, group: str, name: str, size: int) -> tuple[tuple[float, ...], ...]:
    """Draws standard normal numbers for a group, one row a labeler, centred over the group."""
    rng = np.random.default_rng([world.seed, *map(ord, f"{group}/{name}")])
    draws = rng.standard_normal((size, 13))
    draws -= draws.mean(axis=0)
    return tuple(map(tuple, draws.tolist()))


def labelers(world: World, group: str, tastes: Tastes = FAITHFUL) -> list[Labeler]:
    """Returns the 20 labelers of the training data (group "train") or 20 others ("heldout").

    Raises:
        ValueError: for an unknown group.
    """
    if group not in GROUPS:
        raise ValueError(
            f"group: unknown group of labelers {group!r}, expected one of {', '.join(GROUPS)}"
        )
    rows = np.array(_draw(world, group, tastes.name, LABELERS))
    factors = np.exp(tastes.weight_spread * rows[:, :3])
    weights = np.array(tastes.weights[group]) * factors / factors.mean(axis=0)
    noise = np.exp(0.3 * rows[:, 5])
    noise *= tastes.noise / np.sqrt((noise**2).mean())
    return [
        Labeler(
            f"{group}-{k:02d}",
            tuple(weights[k].tolist()),
            tastes.length + tastes.length_spread * row[3],
            tastes.politeness + tastes.politeness_spread * row[4],
            float(noise[k]),
            tastes.lapse,
            tuple(
                sorted(cut + 0.15 * draw for cut, draw in zip(CUT_POINTS, row[6:12], strict=True))
            ),
        )
        for k, row in enumerate(rows)
    ]


def rank(
    world: World,
    labeler: Labeler,
    messages: Sequence[Message],
    responses: Sequence[str],
    finished: Sequence[bool],
    rng: np.random.Generator,
) -> tuple[list[int], list[int], list[dict[str, bool]]]:
    """Lets a labeler rank responses to one prompt.

    Returns:
        ranks (1 = best; ties share a rank, and the next follows without a gap), Likert ratings 1-7, and
        the eleven flags of each response. Identical responses always tie.
    """
    judgements = [judge(world, messages, *pair) for pair in zip(responses, finished, strict=True)]
    utility = _perceive(labeler, judgements, responses, finished, rng)
    likert = 1 + np.searchsorted(np.array(labeler.cut_points), utility)
    flips = rng.random((len(responses), len(FLAGS))) < FLIP
    flags = [
        {name: judgement.flags[name] != bool(flip) for name, flip in zip(FLAGS, row, strict=True)}
        for judgement, row in zip(judgements, flips, strict=True)
    ]
    return _ranks(utility, likert), likert.tolist(), flags


def _perceive(
    labeler: Labeler,
    judgements: Sequence[Judgement],
    responses: Sequence[str],
    finished: Sequence[bool],
    rng: np.random.Generator,
) -> np.ndarray:
    """Returns noisy utilities, the same for identical responses; in a lapse they are shuffled."""
    keys = list(dict.fromkeys(zip(responses, finished, strict=True)))
    clean = {
        key: labeler.utility(j)
        for key, j in zip(zip(responses, finished, strict=True), judgements, strict=True)
    }
    noisy = np.array([clean[key] for key in keys]) + labeler.noise * rng.standard_normal(len(keys))
    if rng.random() < labeler.lapse:
        noisy = rng.permutation(noisy)
    seen = dict(zip(keys, noisy.tolist(), strict=True))
    return np.array([seen[key] for key in zip(responses, finished, strict=True)])


def _ranks(utility: np.ndarray, likert: np.ndarray) -> list[int]:
    """Ranks by utility; a response ties with the best of its rank if the two can hardly be told apart."""
    ranks = [0] * len(utility)
    rank_now, leader = 0, -1
    for k in np.argsort(-utility, kind="stable").tolist():
        if leader < 0 or likert[k] != likert[leader] or utility[leader] - utility[k] >= TIE:
            rank_now, leader = rank_now + 1, k
        ranks[k] = rank_now
    return ranks


def preference(
    world: World,
    labeler: Labeler,
    messages: Sequence[Message],
    responses: tuple[str, str],
    finished: tuple[bool, bool],
    rng: np.random.Generator,
) -> float:
    """Returns 1.0 if the labeler prefers the first response, 0.0 the second, 0.5 for a tie."""
    first, second = rank(world, labeler, messages, responses, finished, rng)[0]
    return 0.5 if first == second else float(first < second)
