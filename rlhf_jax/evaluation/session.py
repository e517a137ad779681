"""All that is known once every checkpoint has taken the exam: measurements, responses, and what the judges say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_jax.data.menagerie.world import World
from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.evaluation import estimates, judges, reward_model
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.judges import Verdicts
from rlhf_jax.evaluation.measure import restore_responses

Measured = Mapping[str, dict[str, Any]]  # group -> data


@dataclass(frozen=True)
class Session:
    """All checkpoints' measurements, and the judges' verdicts on their responses."""

    world: World
    prompts: Sequence[Prompt]
    reference: str
    measured: Mapping[str, Measured]  # by checkpoint
    responses: Mapping[str, list[list[Generation]]]
    verdicts: Mapping[str, Verdicts]
    labelers_per_prompt: int
    bootstrap: Bootstrap
    seed: int

    @property
    def others(self) -> list[str]:
        """The checkpoints that are compared with the reference."""
        return [name for name in self.measured if name != self.reference]

    @property
    def opponents(self) -> list[str]:
        """The checkpoints that all others are held against: the reference, and the first one (the raw model)."""
        return list(dict.fromkeys([self.reference, next(iter(self.measured))]))

    @property
    def unit(self) -> str:
        """The unit of standardised gold."""
        return f"SD of {self.reference}"

    def standardised(self, name: str) -> np.ndarray:
        """Gold totals in standard deviations of the reference's."""
        return judges.standardise(self.verdicts[name].total_NS, self.verdicts[self.reference].total_NS)

    def clustered(self, values_NS: np.ndarray) -> Estimate:
        """Mean of one number per response; the prompts are the clusters."""
        return estimates.clustered_mean(*self.by_prompt(values_NS), self.bootstrap)

    def share(self, hits_NS: np.ndarray) -> Estimate:
        """Share of responses."""
        return estimates.share(*self.by_prompt(hits_NS), self.bootstrap)

    def lengths(self, name: str) -> np.ndarray:
        """Tokens of every response."""
        return np.array([[one.length for one in few] for few in self.responses[name]], np.float64)

    def by_prompt(self, values_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values in one row, and the prompt of each."""
        return values_NS.ravel(), np.repeat(np.arange(len(values_NS)), values_NS.shape[1])


def open_session(
    world: World,
    prompts: Sequence[Prompt],
    reference: str,
    measured: Mapping[str, Measured],
    *,
    labelers_per_prompt: int,
    bootstrap: Bootstrap,
    seed: int,
) -> Session:
    """Let gold judge all responses."""
    drawn = {name: restore_responses(groups["responses"]) for name, groups in measured.items()}
    verdicts = {name: judges.judge(world, prompts, one) for name, one in drawn.items()}
    return Session(world, prompts, reference, measured, drawn, verdicts, labelers_per_prompt, bootstrap, seed)


def judged_pairs(session: Session, name: str) -> tuple[reward_model.Pairs, np.ndarray, np.ndarray]:
    """Pairs of a checkpoint's own responses; gold's and one held-out labeler's preference for the first."""
    drawn, total_NS = session.responses[name], session.verdicts[name].total_NS
    pairs = reward_model.different_pairs([[one.text for one in few] for few in drawn])
    gold_M = judges.gold_preferences(total_NS[pairs.prompt_M, pairs.first_M], total_NS[pairs.prompt_M, pairs.second_M])
    people_NSL = judges.labeler_preferences(
        session.world,
        [session.prompts[n] for n in pairs.prompt_M],
        [[drawn[n][i]] for n, i in zip(pairs.prompt_M, pairs.first_M, strict=True)],
        [[drawn[n][j]] for n, j in zip(pairs.prompt_M, pairs.second_M, strict=True)],
        labelers_per_prompt=1,
        seed=session.seed,
    )
    return pairs, gold_M, people_NSL[:, 0, 0]


def side_by_side(session: Session, count: int) -> list[dict[str, Any]]:
    """The first prompts with every checkpoint's first response, not chosen by hand."""
    z = {name: session.standardised(name) for name in session.measured}
    samples = []
    for n, prompt in enumerate(session.prompts[:count]):
        answers = {}
        for name, drawn in session.responses.items():
            scores = session.measured[name]["reward"]["scores"][n] if "reward" in session.measured[name] else None
            answers[name] = {
                "text": drawn[n][0].text, "finished": drawn[n][0].finished, "gold": float(z[name][n, 0]),
                "score": None if scores is None else float(scores[0]),
            }  # fmt: skip
        samples.append({"prompt": marked(prompt.messages), "metadata": dict(prompt.metadata), "responses": answers})
    return samples


def marked(messages: Sequence[Message]) -> str:
    """A conversation as the report reads it."""
    return "".join(f"<|{message.role}|>{message.content}" for message in messages)
