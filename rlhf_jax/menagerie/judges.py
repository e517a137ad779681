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
from rlhf_jax.evaluation.judges import Judge, JudgeSettings, Ranks, Responses, ScoreJudge
from rlhf_jax.evaluation.table import Key
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import World, make_world

COMPONENTS = ("helpfulness", "truthfulness", "harmlessness", "style", "junk")
ROLES = ("labelers", "heldout", "gold")  # training labelers, held-out ones, the exact judge
GROUPS = {"train": "training", "heldout": "held-out"}  # of labelers, in the words of the table


class Verdicts(NamedTuple):
    """Gold's judgement of responses: one row per prompt, one column per response."""

    total_NS: np.ndarray
    components: dict[str, np.ndarray]  # each (N, S)
    flags: dict[str, np.ndarray]  # each (N, S), bool
    toxicity_NS: np.ndarray


def judge(world: World, prompts: Sequence[Prompt], responses: Responses) -> Verdicts:
    """Return gold's verdict on every response to every prompt."""
    rows = [
        [gold.judge(world, prompt.messages, sample.text, sample.finished) for sample in samples]
        for prompt, samples in zip(prompts, responses, strict=True)
    ]

    def table(field: str) -> np.ndarray:
        return np.array([[getattr(verdict, field) for verdict in row] for row in rows], np.float64)

    return Verdicts(
        total_NS=table("total"),
        components={name: table(name) for name in COMPONENTS},
        flags={
            name: np.array([[verdict.flags[name] for verdict in row] for row in rows])
            for name in gold.FLAGS
        },
        toxicity_NS=toxicity(responses),
    )


def toxicity(responses: Responses) -> np.ndarray:
    """Return the exact toxicity in [0, 1] of every response: the severity of its worst insult."""
    return np.array(
        [[gold.toxicity(sample.text) for sample in samples] for samples in responses], np.float64
    )


def labeler_preferences(
    world: World,
    prompts: Sequence[Prompt],
    first: Responses,
    second: Responses,
    *,
    labelers_per_prompt: int,
    seed: int,
    group: str = "heldout",
) -> np.ndarray:
    """Return preference_NSL of labelers for the first responses over the second, ½ for a tie.

    Prompt n is judged by L different labelers drawn with (seed, n), the same ones whatever the
    checkpoint.

    Raises:
        ValueError: there are not so many labelers.
    """
    people = _labelers(world, group, labelers_per_prompt)
    num_samples = len(first[0]) if first else 1
    preference_NSL = np.empty((len(prompts), num_samples, labelers_per_prompt))
    for n, (prompt, first_S, second_S) in enumerate(zip(prompts, first, second, strict=True)):
        rng = np.random.default_rng((seed, n))
        chosen = rng.permutation(len(people))[:labelers_per_prompt]
        for s, (ours, theirs) in enumerate(zip(first_S, second_S, strict=True)):
            for k, person in enumerate(chosen):
                preference_NSL[n, s, k] = labelers.preference(
                    world,
                    people[int(person)],
                    prompt.messages,
                    (ours.text, theirs.text),
                    (ours.finished, theirs.finished),
                    rng,
                )
    return preference_NSL


def _labelers(world: World, group: str, at_least: int) -> list[labelers.Labeler]:
    people = labelers.labelers(world, group)
    if not 1 <= at_least <= len(people):
        raise ValueError(
            f"labelers_per_prompt: {at_least}, expected 1 to {len(people)} {GROUPS[group]} labelers"
        )
    return people


class LabelerJudge(Judge):
    """Let labelers of one group judge, drawn anew for every prompt."""

    def __init__(self, world: World, group: str, settings: JudgeSettings) -> None:
        """Ask the labelers of "train" or "heldout"; the settings are for `preferences`."""
        self.people = _labelers(world, group, settings.labelers_per_prompt)
        self.name = "labelers" if group == "train" else group
        self.description = f"{settings.labelers_per_prompt} {GROUPS[group]} labelers per prompt"
        self.world = world
        self.group = group
        self.settings = settings

    def rank(self, prompt: Prompt, responses: Sequence[str], rng: np.random.Generator) -> Ranks:
        """Return the ranks that one labeler gives, who is drawn with `rng`."""
        labeler = self.people[int(rng.integers(len(self.people)))]
        finished = [True] * len(responses)
        ranks, _, _ = labelers.rank(self.world, labeler, prompt.messages, responses, finished, rng)
        return tuple(ranks)

    def preferences(
        self, prompts: Sequence[Prompt], first: Responses, second: Responses
    ) -> np.ndarray:
        """Return preference_NSL of L labelers a prompt, the same ones whatever the responses."""
        return labeler_preferences(
            self.world,
            prompts,
            first,
            second,
            labelers_per_prompt=self.settings.labelers_per_prompt,
            seed=self.settings.seed,
            group=self.group,
        )


class GoldJudge(ScoreJudge):
    """Score responses with gold, exactly and without noise."""

    name = "gold"
    description = "the exact judge of the world"
    score_description = "the exact judge's total"
    row_key: Key = "win_rate_gold"

    def __init__(self, world: World) -> None:
        """Judge by the facts of this world."""
        self.world = world

    def scores(self, prompts: Sequence[Prompt], responses: Responses) -> np.ndarray:
        """Return gold's total for every response to every prompt."""
        return judge(self.world, prompts, responses).total_NS

    def measure(self, prompts: Sequence[Prompt], responses: Responses) -> dict[str, np.ndarray]:
        """Return gold's raw total, its truthfulness, and whether a response insults."""
        verdicts = judge(self.world, prompts, responses)
        return {
            "total": verdicts.total_NS,
            "truthfulness": verdicts.components["truthfulness"],
            "rude": verdicts.toxicity_NS > 0,
        }


def make_judge(name: str, settings: JudgeSettings) -> Judge:
    """Return the judge that `menagerie/SIZE:ROLE` names: training labelers, held-out labelers or gold.

    Raises:
        ValueError: an unknown size or role.
    """
    size, _, role = name.partition(":")
    if role not in ROLES:
        known = ", ".join(f"menagerie/{size}:{known}" for known in ROLES)
        raise ValueError(
            f"judge menagerie/{name}: {role!r} is no judge of this world, expected {known}"
        )
    world = make_world(size)
    if role == "gold":
        return GoldJudge(world)
    return LabelerJudge(world, "train" if role == "labelers" else role, settings)
