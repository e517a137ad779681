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
from rlhf_jax.evaluation.judges import Judge, Responses, ScoreJudge
from rlhf_jax.evaluation.table import Key
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import World, make_world

COMPONENTS = ("helpfulness", "truthfulness", "harmlessness", "style", "junk")
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
    """Labelers of one group, drawn anew for every prompt."""

    def __init__(self, world: World, group: str, *, labelers_per_prompt: int, seed: int) -> None:
        self.people = _labelers(world, group, labelers_per_prompt)
        self.name = group
        self.description = f"{labelers_per_prompt} {GROUPS[group]} labelers per prompt"
        self.world = world
        self.labelers_per_prompt = labelers_per_prompt
        self.seed = seed

    def rank(
        self, prompt: Prompt, responses: Sequence[str], rng: np.random.Generator
    ) -> tuple[int, ...]:
        """Return one labeler's ranking of finished responses; ties share a rank."""
        labeler = self.people[int(rng.integers(len(self.people)))]
        finished = [True] * len(responses)
        ranks, _, _ = labelers.rank(self.world, labeler, prompt.messages, responses, finished, rng)
        return tuple(ranks)

    def preferences(
        self, prompts: Sequence[Prompt], first: Responses, second: Responses
    ) -> np.ndarray:
        """Return preference_NSL of `labelers_per_prompt` labelers, as `labeler_preferences`."""
        return labeler_preferences(
            self.world,
            prompts,
            first,
            second,
            labelers_per_prompt=self.labelers_per_prompt,
            seed=self.seed,
            group=self.name,
        )


class GoldJudge(ScoreJudge):
    """The exact judge of a world."""

    name = "gold"
    description = "the exact judge of the world"
    score_description = "the exact judge's total"
    row_key: Key = "win_rate_gold"

    def __init__(self, world: World) -> None:
        self.world = world

    def scores(self, prompts: Sequence[Prompt], responses: Responses) -> np.ndarray:
        """Return gold's total for every response to every prompt."""
        return judge(self.world, prompts, responses).total_NS


def open_judge(source: str, *, labelers_per_prompt: int, seed: int) -> Judge:
    """Return the judge that a config names: menagerie/SIZE:gold, menagerie/SIZE:heldout or :train.

    Raises:
        ValueError: there is no such judge or world.
    """
    size, _, name = source.removeprefix("menagerie/").partition(":")
    world = make_world(size)
    if name == "gold":
        return GoldJudge(world)
    if name in GROUPS:
        return LabelerJudge(world, name, labelers_per_prompt=labelers_per_prompt, seed=seed)
    raise ValueError(f"judges: {source!r} is not menagerie/{size}:{{gold, {', '.join(GROUPS)}}}")
