"""Judge responses as Menagerie's judges do: gold exactly, labelers with their noise.

    gold        total and components of every response
    labelers    for each prompt some of the twenty labelers of a group prefer one of two responses,
                or neither; "heldout" ones gave no training label (Ouyang et al. 2022, 4.1)

Left out on purpose: real people.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation.judges import (
    Judge,
    JudgeSettings,
    Prompts,
    Random,
    Ranks,
    Responses,
    ScoreJudge,
)
from rlhf_jax.evaluation.table import Key
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import World, make_world

COMPONENTS = tuple(gold.WEIGHTS)
ROLES = ("labelers", "heldout", "gold")  # training labelers, held-out ones, the exact judge
GROUPS = {"train": "training", "heldout": "held-out"}  # of labelers, in the words of the table


class Verdicts(NamedTuple):
    """Gold's judgement of responses: one row per prompt, one column per response."""

    total_NS: np.ndarray
    components: dict[str, np.ndarray]  # each (N, S)
    flags: dict[str, np.ndarray]  # each (N, S), bool
    toxicity_NS: np.ndarray
    entirely_right_NS: np.ndarray  # bool


def judge(world: World, prompts: Prompts, responses: Responses) -> Verdicts:
    """Return gold's verdict on every response to every prompt."""
    rows = [
        [gold.judge(world, prompt.messages, sample.text, sample.finished) for sample in samples]
        for prompt, samples in zip(prompts, responses, strict=True)
    ]

    def table(field: str) -> np.ndarray:
        return np.array([[getattr(verdict, field) for verdict in row] for row in rows], np.float64)

    flags = {name: np.array([[v.flags[name] for v in row] for row in rows]) for name in gold.FLAGS}
    components = {name: table(name) for name in COMPONENTS}
    right_NS = table("entirely_right").astype(bool)
    return Verdicts(table("total"), components, flags, toxicity(responses), right_NS)


def toxicity(responses: Responses) -> np.ndarray:
    """Return the exact toxicity in [0, 1] of every response: the severity of its worst insult."""
    return np.array(
        [[gold.toxicity(sample.text) for sample in samples] for samples in responses], np.float64
    )


class LabelerJudge(Judge):
    """Let labelers of one group judge, drawn anew for every prompt."""

    def __init__(self, world: World, group: str, settings: JudgeSettings) -> None:
        """Ask the labelers of "train" or "heldout"; the settings are for `preferences`.

        Raises:
            ValueError: there are not so many labelers.
        """
        self.people = labelers.labelers(world, group)
        count = settings.labelers_per_prompt
        if not 1 <= count <= len(self.people):
            expected = f"expected 1 to {len(self.people)} {GROUPS[group]} labelers"
            raise ValueError(f"labelers_per_prompt: {count}, {expected}")
        self.name = "labelers" if group == "train" else group
        self.description = f"{count} {GROUPS[group]} labelers per prompt"
        self.world = world
        self.settings = settings

    def rank(self, prompt: Prompt, responses: Sequence[str], rng: Random) -> Ranks:
        """Return the ranks that one labeler gives, who is drawn with `rng`."""
        labeler = self.people[int(rng.integers(len(self.people)))]
        finished = [True] * len(responses)
        ranks, _, _ = labelers.rank(self.world, labeler, prompt.messages, responses, finished, rng)
        return tuple(ranks)

    def preferences(self, prompts: Prompts, first: Responses, second: Responses) -> np.ndarray:
        """Return preference_NSL of L different labelers per prompt, ½ for a tie.

        Those of prompt n are drawn with (seed, n): the same ones whatever the responses.
        """
        num_labelers = self.settings.labelers_per_prompt
        num_samples = len(first[0]) if first else 1
        preference_NSL = np.empty((len(prompts), num_samples, num_labelers))
        for n, (prompt, first_S, second_S) in enumerate(zip(prompts, first, second, strict=True)):
            rng = np.random.default_rng((self.settings.seed, n))
            chosen = rng.permutation(len(self.people))[:num_labelers]
            for s, pair in enumerate(zip(first_S, second_S, strict=True)):
                texts = (pair[0].text, pair[1].text)
                finished = (pair[0].finished, pair[1].finished)
                preference_NSL[n, s] = [
                    labelers.preference(
                        self.world, self.people[int(k)], prompt.messages, texts, finished, rng
                    )
                    for k in chosen
                ]
        return preference_NSL


class GoldJudge(ScoreJudge):
    """Score responses with gold, exactly and without noise."""

    name = "gold"
    description = "the exact judge of the world"
    score_description = "the exact judge's total"
    main_number = "total"
    row_key: Key = "win_rate_gold"

    def __init__(self, world: World) -> None:
        """Judge by the facts of this world."""
        self.world = world

    def scores(self, prompts: Prompts, responses: Responses) -> np.ndarray:
        """Return gold's total for every response to every prompt."""
        return judge(self.world, prompts, responses).total_NS

    def measure(self, prompts: Prompts, responses: Responses) -> dict[str, np.ndarray]:
        """Return gold's raw total, its truthfulness, and whether a response insults."""
        verdicts = judge(self.world, prompts, responses)
        return {
            "total": verdicts.total_NS,
            "truthfulness": verdicts.components["truthfulness"],
            "rude": verdicts.toxicity_NS > 0,
        }


def make_judge(name: str, settings: JudgeSettings) -> Judge:
    """Return the judge that `menagerie/SIZE:ROLE` names, one of `ROLES`.

    Raises:
        ValueError: an unknown size or role.
    """
    size, _, role = name.partition(":")
    if role not in ROLES:
        known = ", ".join(f"menagerie/{size}:{known}" for known in ROLES)
        message = f"judge menagerie/{name}: {role!r} is no judge of this world, expected {known}"
        raise ValueError(message)
    world = make_world(size)
    if role == "gold":
        return GoldJudge(world)
    return LabelerJudge(world, "train" if role == "labelers" else role, settings)
