"""Comparisons: ranked replies to training prompts, for reward modelling without a policy at hand.

The replies come from one kind of writer, the demonstrator, like samples of one policy: between replies of
mixed personas tone alone tells good from bad, and a bag of words would pass for a reward model. The real
pipeline samples its own SFT policy and ranks with `labelers.rank`; these are for tests, the TFDS builder and
first runs.
"""

from __future__ import annotations

import numpy as np

from rlhf_jax.data.menagerie.demonstrations import demonstrate
from rlhf_jax.data.menagerie.labelers import FAITHFUL, Tastes, labelers, rank
from rlhf_jax.data.menagerie.prompts import SPLITS, prompts
from rlhf_jax.data.menagerie.world import World
from rlhf_jax.data.records import Comparison


def comparisons(world: World, split: str, tastes: Tastes = FAITHFUL) -> list[Comparison]:
    """Returns K = 4 to 9 distinct replies to each prompt, ranked by one labeler (in test, a held-out one)."""
    source = prompts(world, split)
    count = world.scale.comparisons if split == "train" else 2 * world.scale.evaluation // 5
    group = labelers(world, "heldout" if split == "test" else "train", tastes)
    rng = world.rng("comparisons", split)
    noise = np.random.default_rng([world.seed, SPLITS.index(split)])
    made: list[Comparison] = []
    for k in range(count):
        prompt, labeler = source[k % len(source)], rng.choice(group)
        wanted = rng.randint(4, 9)
        replies = tuple(dict.fromkeys(demonstrate(world, prompt, rng) for _ in range(4 * wanted)))[:wanted]
        ranks, _, _ = rank(world, labeler, prompt.messages, replies, [True] * len(replies), noise)
        made.append(
            Comparison(prompt.messages, replies, tuple(ranks), {**prompt.metadata, "labeler": labeler.name})
        )
    return made
