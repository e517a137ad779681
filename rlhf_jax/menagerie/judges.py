"""What the judges of Menagerie say about responses: gold exactly, held-out labelers with their noise.

    gold        total and components of every response; the total also in standard deviations of the reference
                policy's responses, with their mean at 0 (Gao et al. 2022 normalise their gold reward so)
    labelers    for each prompt some of the ten labelers who gave no training label prefer one response
                of two, or neither (Ouyang et al. 2022, section 4.1: held-out labelers)

Left out on purpose: real people.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import World

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


def labeler_preferences(
    world: World,
    prompts: Sequence[Prompt],
    a: Sequence[Sequence[Generation]],
    b: Sequence[Sequence[Generation]],
    *,
    labelers_per_prompt: int,
    seed: int,
) -> np.ndarray:
    """Preferences (N, S, L) of held-out labelers for a's sample s over b's sample s: 1, 0, or ½ for a tie.

    Prompt n is judged by L different labelers drawn with (seed, n), the same ones whatever the checkpoint.
    """
    people = labelers.labelers(world, "heldout")
    if not 1 <= labelers_per_prompt <= len(people):
        raise ValueError(
            f"labelers_per_prompt: {labelers_per_prompt}, expected 1 to {len(people)} held-out labelers"
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
