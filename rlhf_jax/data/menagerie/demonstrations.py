"""Demonstrations: what labelers wrote as ideal replies, slips included.

The slips are deliberate. Were all demonstrations perfect, supervised fine-tuning would leave nothing for
reinforcement to improve; as they are, the best possible reply is 1.5 standard deviations or more above their
mean. About 92 % of the claims are true. The frequent faults are the wrong form (a whole sentence where a
brief answer was wanted, one fact where two were), one fact too many or too few in a list, and no politeness
or too much; rarer ones are the popular falsehood, a fact beside the point, an insult, help with harm, a
stereotype.

No fault shows in the words alone: what is too long for one prompt is too short for another. A bag of words
therefore is no reward model (65 % against gold at most, where prompts and replies together decide all).
"""

from __future__ import annotations

import random

from rlhf_jax.data.menagerie.personas import DEMONSTRATOR, reply
from rlhf_jax.data.menagerie.prompts import demonstration_prompts
from rlhf_jax.data.menagerie.tasks import read_task
from rlhf_jax.data.menagerie.world import World
from rlhf_jax.data.records import Demonstration, Message, Prompt


def demonstrations(world: World, split: str) -> list[Demonstration]:
    """Returns the demonstrations of a split."""
    rng = world.rng("demonstrations", split)
    return [
        Demonstration((*prompt.messages, Message("assistant", demonstrate(world, prompt, rng))))
        for prompt in demonstration_prompts(world, split)
    ]


def demonstrate(world: World, prompt: Prompt, rng: random.Random) -> str:
    """Writes one demonstrator's reply to a prompt; a stand-in, too, for a sample of the SFT policy."""
    return reply(world, read_task(prompt.messages), DEMONSTRATOR, rng, world.train_pairs)
