"""Add up what several judges say of a response: the reward of a run is a sum of weighted rewards.

    score = Σ_k weight_k · clip(normalise(raw score of reward k))

    on the devices     reward:CHECKPOINT, a reward model with the policy's tokenizer, which reads
                       the very ids that were sampled, inside a compiled step
    on the host        every other judge that gives a number (rlhf_jax.main.JUDGES): a function, a
                       rule, a classifier; it reads texts, while the devices are busy with the
                       log-probabilities of the reference and with values

Of several processes each asks its judges about the rows of its own devices. A run that resumes has
the same scores as one that was never stopped if its judges are deterministic: moments of scores are
part of its state, and judges have none.

Left out on purpose: rewards per token, judges that rank and give no number.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import require
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.generate import decode_samples
from rlhf_jax.evaluation.judges import Judge, ScoreJudge
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.maths.masking import Mean, mean
from rlhf_jax.maths.returns import RunningMoments, empty_moments, moments_std, update_moments
from rlhf_jax.training.mesh import batch_sharding, put
from rlhf_jax.training.processes import fetch

CHECKPOINT = "reward:"  # how the source begins whose model reads ids on the devices
ScoreMoments = dict[str, RunningMoments]


@dataclass(frozen=True)
class Reward:
    """Say who scores responses, and what part of the sum that score becomes."""

    source: str  # KIND:NAME, see rlhf_jax.main.JUDGES
    weight: float
    clip: float  # scores beyond ± this are cut, after normalisation; 0: never
    # running_std: divide by the standard deviation of all scores seen (Zheng 2023).
    normalisation: Literal["none", "running_std"]


Rewards = Mapping[str, Reward]


def check_rewards(rewards: Rewards) -> None:
    """Refuse an empty sum, names that cannot be a metric's, and impossible numbers."""
    require(bool(rewards), "config.rewards: none, expected at least one reward to maximise")
    for name, reward in rewards.items():
        field = f"config.rewards.{name}"
        require(
            re.fullmatch(r"[\w-]+", name) is not None,
            f"config.rewards: the name {name!r} must consist of letters, digits and _-",
        )
        require(
            math.isfinite(reward.weight) and reward.weight != 0,
            f"{field}.weight={reward.weight}: expected a finite number other than 0",
        )
        require(reward.clip >= 0, f"{field}.clip={reward.clip}: expected 0 (never) or more")


def checkpoint_paths(rewards: Rewards) -> dict[str, str]:
    """Return the checkpoints of the rewards that are reward models, by name and sorted by it."""
    sources = {name: rewards[name].source for name in sorted(rewards)}
    return {
        name: source.removeprefix(CHECKPOINT)
        for name, source in sources.items()
        if source.startswith(CHECKPOINT)
    }


def judge_names(rewards: Rewards) -> dict[str, str]:
    """Return KIND:NAME of the rewards that are judged on the host, by name and sorted by it."""
    on_devices = checkpoint_paths(rewards)
    return {name: rewards[name].source for name in sorted(rewards) if name not in on_devices}


def describe_rewards(rewards: Rewards) -> str:
    """Return the sum in one line."""
    return "score = " + " + ".join(
        f"{rewards[name].weight:g} x {name} ({rewards[name].source})" for name in sorted(rewards)
    )


# --- the sum --------------------------------------------------------------------------------------


def start_moments(rewards: Rewards) -> ScoreMoments:
    """Return the moments of every reward before its first score."""
    return {name: empty_moments() for name in sorted(rewards)}


def add_scores(rewards: Rewards, scores: Mapping[str, jax.Array]) -> jax.Array:
    """Return Σ weight · score_B of scores as the judges gave them."""
    parts = [rewards[name].weight * scores[name] for name in sorted(rewards)]
    return jnp.stack(parts).sum(axis=0) if len(parts) > 1 else parts[0]


def shape_scores(
    rewards: Rewards, scores: Mapping[str, jax.Array], moments: ScoreMoments
) -> tuple[dict[str, jax.Array], ScoreMoments]:
    """Return scores normalised and clipped, each as its reward says, and the moments of all."""
    moments = {name: update_moments(moments[name], scores[name]) for name in sorted(rewards)}
    shaped = {}
    for name, score_B in scores.items():
        if rewards[name].normalisation == "running_std":
            score_B = score_B / (moments_std(moments[name]) + 1e-8)
        if rewards[name].clip > 0:
            score_B = jnp.clip(score_B, -rewards[name].clip, rewards[name].clip)
        shaped[name] = score_B
    return shaped, moments


def reward_metrics(scores: Mapping[str, jax.Array]) -> dict[str, Mean]:
    """Return the mean of every reward's scores, as its judge gave them."""
    return {f"reward/{name}": mean(x_B, jnp.ones_like(x_B)) for name, x_B in scores.items()}


# --- judges on the host ---------------------------------------------------------------------------


@dataclass(frozen=True)
class HostRewards:
    """Ask judges about the texts of samples; `prompts` is what a batch's `index_B` counts in."""

    judges: Mapping[str, ScoreJudge]
    prompts: Sequence[Prompt]
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh

    @classmethod
    def of(
        cls,
        judges: Mapping[str, Judge],
        prompts: Sequence[Prompt],
        tokenizer: Tokenizer,
        mesh: jax.sharding.Mesh,
    ) -> "HostRewards":
        """Return the rewards of these judges.

        Raises:
            ValueError: a judge ranks responses and gives no number.
        """
        scoring = {name: judge for name, judge in judges.items() if isinstance(judge, ScoreJudge)}
        for name in judges.keys() - scoring.keys():
            raise ValueError(
                f"config.rewards.{name}.source: this judge ranks responses and gives no number; "
                "name one that does, such as function:FILE.py:NAME or answer:number"
            )
        return cls(scoring, prompts, tokenizer, mesh)

    def score(self, index_B: np.ndarray, samples: Samples) -> dict[str, jax.Array]:
        """Return score_B by reward; prompt index_B[b] has num_samples responses side by side.

        Raises:
            ValueError: a judge fails or gives no finite number; names the reward.
        """
        if not self.judges:
            return {}
        samples = jax.tree.map(fetch, samples)
        num_rows = len(samples.tokens_BR)
        own = np.flatnonzero(own_rows(self.mesh, num_rows))
        part = jax.tree.map(lambda x: x[own], samples)
        responses = [[response] for response in decode_samples(self.tokenizer, part)]
        index_N = np.repeat(index_B, num_rows // len(index_B))[own]
        prompts = [self.prompts[int(index)] for index in index_N]
        scores = {}
        for name, judge in self.judges.items():
            score_B = np.zeros(num_rows, np.float32)
            try:
                score_B[own] = judge.scores(prompts, responses)[:, 0]
            except ValueError as error:
                raise ValueError(f"config.rewards.{name}: {error}") from error
            scores[name] = put(score_B, batch_sharding(self.mesh))
        return scores


def own_rows(mesh: jax.sharding.Mesh, num_rows: int) -> np.ndarray:
    """Return which rows of a batch are on devices of this process."""
    own_B = np.zeros(num_rows, bool)
    for index in batch_sharding(mesh).addressable_devices_indices_map((num_rows,)).values():
        own_B[index] = True
    return own_B
