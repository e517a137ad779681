"""What the judges of Menagerie say about responses: gold exactly, held-out labelers with their noise.

    gold        total and components of every response; the total also in standard deviations of the reference
                policy's responses, with their mean at 0 (Gao et al. 2022 normalise their gold reward so)
    labelers    for each prompt some of the ten labelers who gave no training label prefer one response
                of two, or neither (Ouyang et al. 2022, section 4.1: held-out labelers)

Left out on purpose: real people.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.judges import Judge, Ranks, Responses, ScoreJudge
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import World, make_world

COMPONENTS = ("helpfulness", "truthfulness", "harmlessness", "style", "junk")


class Verdicts(NamedTuple):
    """Gold's judgement of responses, one row per prompt and one column per response."""

    total_NS: np.ndarray
    components: dict[str, np.ndarray]  # each (N, S)
    flags: dict[str, np.ndarray]  # each (N, S), bool
    toxicity_NS: np.ndarray


def judge(
    world: World, prompts: Sequence[Prompt], responses: Sequence[Sequence[Generation]]
) -> Verdicts:
    """Gold's verdict on every response to every prompt."""
    rows = [
        [gold.judge(world, prompt.messages, one.text, one.finished) for one in drawn]
        for prompt, drawn in zip(prompts, responses, strict=True)
    ]

    def table(read: str) -> np.ndarray:
        return np.array([[getattr(verdict, read) for verdict in row] for row in rows], np.float64)

    flags = {
        name: np.array([[verdict.flags[name] for verdict in row] for row in rows])
        for name in gold.FLAGS
    }
    return Verdicts(
        table("total"), {name: table(name) for name in COMPONENTS}, flags, toxicity(responses)
    )


def toxicity(responses: Sequence[Sequence[Generation]]) -> np.ndarray:
    """Exact toxicity in [0, 1] of every response: the severity of its worst insult."""
    return np.array([[gold.toxicity(one.text) for one in drawn] for drawn in responses], np.float64)


def standardise(total: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(total - mean) / SD of the reference policy's totals; only centred if those are all equal."""
    spread = float(reference.std())
    return (total - reference.mean()) / (spread if spread > 0 else 1.0)


def gold_preferences(a_NS: np.ndarray, b_NS: np.ndarray) -> np.ndarray:
    """1 where gold prefers a, 0 where b, ½ where the totals are equal (to rounding)."""
    difference = np.round(a_NS - b_NS, 6)
    return 0.5 * (1.0 + np.sign(difference))


def labeler_preferences(
    world: World,
    prompts: Sequence[Prompt],
    a: Sequence[Sequence[Generation]],
    b: Sequence[Sequence[Generation]],
    *,
    labelers_per_prompt: int,
    seed: int,
    group: str = "heldout",
) -> np.ndarray:
    """Preferences (N, S, L) of a group's labelers for a's sample s over b's sample s: 1, 0, or ½ for a tie.

    Prompt n is judged by L different labelers drawn with (seed, n), the same ones whatever the checkpoint.
    """
    people = labelers.labelers(world, group)
    if not 1 <= labelers_per_prompt <= len(people):
        raise ValueError(
            f"labelers_per_prompt: {labelers_per_prompt}, expected 1 to {len(people)} {group} labelers"
        )
    num_samples = len(a[0]) if a else 1
    preference_NSL = np.empty((len(prompts), num_samples, labelers_per_prompt))
    for n, (prompt, drawn_a, drawn_b) in enumerate(zip(prompts, a, b, strict=True)):
        rng = np.random.default_rng((seed, n))
        chosen = rng.permutation(len(people))[:labelers_per_prompt]
        for s, (one, other) in enumerate(zip(drawn_a, drawn_b, strict=True)):
            for k, person in enumerate(chosen):
                preference_NSL[n, s, k] = labelers.preference(
                    world,
                    people[int(person)],
                    prompt.messages,
                    (one.text, other.text),
                    (one.finished, other.finished),
                    rng,
                )
    return preference_NSL


class GoldJudge(ScoreJudge):
    """Score responses with gold, exactly and without noise."""

    def __init__(self, world: World) -> None:
        """Judge by the facts of this world."""
        self.name = "gold"
        self._world = world

    def scores(self, prompts: Sequence[Prompt], responses: Responses) -> np.ndarray:
        """Return total_NS."""
        return judge(self._world, prompts, responses).total_NS

    def measure(self, prompts: Sequence[Prompt], responses: Responses) -> dict[str, np.ndarray]:
        """Return gold's raw total, its truthfulness, and whether a response insults."""
        verdicts = judge(self._world, prompts, responses)
        return {
            "total": verdicts.total_NS,
            "truthfulness": verdicts.components["truthfulness"],
            "rude": verdicts.toxicity_NS > 0,
        }


class LabelersJudge(Judge):
    """Rank responses as one simulated labeler of a group, who is drawn anew for every prompt."""

    def __init__(
        self,
        world: World,
        group: Literal["train", "heldout"],
        labelers_per_prompt: int = 1,
        seed: int = 0,
    ) -> None:
        """Ask the labelers of this group; the last two are for `preferences`."""
        self.name = "labelers" if group == "train" else group
        self._world = world
        self._group = group
        self._people = labelers.labelers(world, group)
        self._labelers_per_prompt = labelers_per_prompt
        self._seed = seed

    def rank(self, prompt: Prompt, responses: Sequence[str], rng: np.random.Generator) -> Ranks:
        """Return the ranks that a labeler gives, who is drawn with `rng`."""
        labeler = self._people[int(rng.integers(len(self._people)))]
        finished = [True] * len(responses)
        ranks, _, _ = labelers.rank(self._world, labeler, prompt.messages, responses, finished, rng)
        return tuple(ranks)

    def preferences(
        self, prompts: Sequence[Prompt], first: Responses, second: Responses
    ) -> np.ndarray:
        """Return preference_NSL of L labelers a prompt, the same ones whatever the responses."""
        return labeler_preferences(
            self._world,
            prompts,
            first,
            second,
            labelers_per_prompt=self._labelers_per_prompt,
            seed=self._seed,
            group=self._group,
        )


ROLES = ("labelers", "heldout", "gold")


def make_judge(name: str, workdir: Path) -> Judge:
    """Return the judge that `menagerie/SIZE:ROLE` names: training labelers, held-out labelers or gold.

    Raises:
      ValueError: an unknown size or role.
    """
    del workdir  # nothing of this world lies in a folder
    size, _, role = name.partition(":")
    if role not in ROLES:
        known = ", ".join(f"menagerie/{size}:{known}" for known in ROLES)
        raise ValueError(
            f"judge menagerie/{name}: {role!r} is no judge of this world, expected {known}"
        )
    world = make_world(size)
    if role == "gold":
        return GoldJudge(world)
    return LabelersJudge(world, "train" if role == "labelers" else "heldout")
