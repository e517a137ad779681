"""Sample responses and score them, once: what PPO and its kin share.

    1  y ~ π(.|x)                      sampling; log π is of the distribution really sampled from
    2  s = Σ_k w_k s_k(x, y)           scores of reward models and other judges (rewards.py), each
                                       normalised and clipped; the sum is penalised where the
                                       response did not end
    3  k_t = k(log π - log π_ref)_t    the distance to the reference, per token (Ziegler 2019,
                                       Ouyang 2022 §3.5)

What an algorithm makes of these (rewards per token, advantages) is frozen in its rollout: the
losses see the rollout and the parameters being trained, nothing else. An "old" quantity cannot be
recomputed with new parameters, which would make every ratio 1.

Left out on purpose: a second inference engine, off-policy correction, stale rollouts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.config import require, require_divides
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.inference.decoding import PLAIN, SamplingSpec
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import Samples, sample
from rlhf_jax.inference.scoring import response_logps, response_scores, response_values
from rlhf_jax.maths import kl
from rlhf_jax.maths.masking import Mean, length_mask, mean
from rlhf_jax.maths.returns import penalise_missing_eos
from rlhf_jax.models.heads import LanguageModel, ScalarModel
from rlhf_jax.stages.rewards import (
    Rewards,
    ScoreMoments,
    add_scores,
    checkpoint_paths,
    shape_scores,
)
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.run import Parent, Run

Params = Any


@dataclass(frozen=True)
class RolloutConfig:
    """Say how responses are sampled and how their scores become rewards, in TRL's names."""

    total_episodes: int  # responses in the whole run
    batch_size: int  # responses per update
    response_length: int  # tokens; a response that has not ended by then is cut
    # Responses sampled at once, a finished one makes room for a waiting one; 0: all.
    sampling_rows: int
    # Of sampling and of every log-probability; 1 in Ouyang 2022, 0.7 in Stiennon 2020.
    temperature: float
    kl_coef: float  # β, reward per nat of distance to the reference (Ouyang 2022 eq. 2)
    kl_estimator: Literal["k1", "k2", "k3"]  # of the distance per token (Schulman 2020)
    # Score of, or taken off, a response that was cut (Huang 2024, detail 23).
    missing_eos_penalty: float
    missing_eos_mode: Literal["replace", "subtract", "none"]

    @property
    def num_samples(self) -> int:
        """Return how many responses are sampled to every prompt."""
        return 1

    @property
    def spec(self) -> SamplingSpec:
        """Return the whole distribution at this temperature: a truncated one biases every ratio."""
        return replace(PLAIN, temperature=self.temperature)


def check_rollout(name: str, settings: RolloutConfig) -> None:
    """Refuse settings with which no rollout can be sampled; `name` is their group in the config."""
    require_divides(
        settings.batch_size,
        settings.total_episodes,
        f"{name}.total_episodes by {name}.batch_size",
        "change one of the two",
    )
    require(
        settings.sampling_rows >= 0,
        f"{name}.sampling_rows={settings.sampling_rows}: expected a number of responses, or "
        "0 for all",
    )
    require(
        settings.temperature > 0,
        f"{name}.temperature must be > 0: greedy rollouts have no log-probability",
    )


class Networks(NamedTuple):
    """Hold the modules, which are static and have no arrays."""

    policy: LanguageModel
    rewards: Mapping[str, ScalarModel]  # of the rewards that are reward models
    value: Any = None  # a ScalarModel; algorithms without a value network leave it out


class Parameters(NamedTuple):
    """Hold the parameters of all networks, adapters already combined with what they stand on."""

    policy: Params
    reference: Params  # read by the policy's module, never trained
    rewards: Mapping[str, Params]  # never trained
    value: Params | None = None


class Readings(NamedTuple):
    """Hold what reference, value network and rewards say of responses."""

    ref_logp_BR: jax.Array
    value_BR: jax.Array | None  # of algorithms that have a value network
    scores: dict[str, jax.Array]  # score_B of every reward, as its judge gave it

    def with_scores(self, scores: Mapping[str, jax.Array]) -> "Readings":
        """Return the same with the scores of more rewards."""
        return self._replace(scores={**self.scores, **scores})


class ScoredSamples(NamedTuple):
    """Hold the distance of responses to the reference, and their scores."""

    ref_logp_BR: jax.Array
    kl_BR: jax.Array  # nats per token, 0 where masked
    raw_score_B: jax.Array  # the weighted sum of what the judges gave
    score_B: jax.Array  # the weighted sum of scores normalised and clipped; penalised


def load_parents(
    run: Run, policy: str, rewards: Rewards, length: int
) -> tuple[Parent, dict[str, Parent]]:
    """Load the policy, and the reward models among the rewards.

    They share a tokenizer, and the policy has room for `length` tokens.
    """
    parent = run.parent("policy", policy, kind=CheckpointKind.LANGUAGE_MODEL)
    reward_models = {}
    for name, path in checkpoint_paths(rewards).items():
        role, field = f"rewards.{name}", f"config.rewards.{name}.source"
        reward_models[name] = run.parent(role, path, kind=CheckpointKind.SCALAR_MODEL, field=field)
        try:
            run.same_tokenizer("policy", role)
        except ValueError as error:
            remedy = "or name hf:FOLDER, which reads texts with a tokenizer of its own"
            raise ValueError(f"{field}: {error}; {remedy}") from None
    require(
        length <= parent.model.context_length,
        f"data.prompt_length + {run.stage}.response_length = {length} exceeds the policy's context "
        f"of {parent.model.context_length}; shorten one of them",
    )
    return parent, reward_models


class StopTokens(NamedTuple):
    """Name the tokens that end a response, and the one that fills the places behind it."""

    stop_ids: tuple[int, ...]
    pad_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "StopTokens":
        """Return the tokens of these kinds that a tokenizer has."""
        return cls(tuple(tokenizer.stop_ids), tokenizer.pad_id)


def sample_texts(
    policy: LanguageModel,
    settings: RolloutConfig,
    stop: StopTokens,
    params: Params,
    prompts: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Texts, Samples]:
    """Sample `num_samples` responses to every prompt; those to one prompt are neighbours."""
    prompt_BP, prompt_mask_BP = prompts["prompt_BP"], prompts["prompt_mask_BP"]
    samples = sample(
        policy,
        params,
        prompt_BP,
        prompt_mask_BP,
        key,
        spec=settings.spec,
        response_length=settings.response_length,
        stop_tokens=stop.stop_ids,
        pad_id=stop.pad_id,
        num_samples=settings.num_samples,
        max_rows=settings.sampling_rows,
    )
    texts = Texts(
        prompt_BP=jnp.repeat(prompt_BP, settings.num_samples, axis=0),
        prompt_mask_BP=jnp.repeat(prompt_mask_BP, settings.num_samples, axis=0),
        response_BR=samples.tokens_BR,
        mask_BR=length_mask(samples.length_B, settings.response_length),
    )
    return texts, samples


def read_samples(
    networks: Networks, spec: SamplingSpec, params: Parameters, texts: Texts
) -> Readings:
    """Return what the networks say of samples; the host's rewards are not among the scores yet."""
    ref_logp_BR, _ = response_logps(networks.policy, params.reference, texts, spec=spec)
    scores = {
        name: response_scores(model, params.rewards[name], texts)
        for name, model in networks.rewards.items()
    }
    has_value = networks.value is not None
    value_BR = response_values(networks.value, params.value, texts) if has_value else None
    return Readings(ref_logp_BR, value_BR, scores)


def score_samples(
    settings: RolloutConfig,
    rewards: Rewards,
    texts: Texts,
    samples: Samples,
    readings: Readings,
    moments: ScoreMoments,
) -> tuple[ScoredSamples, ScoreMoments]:
    """Return samples with their scores and their distance to the reference; and the moments.

    Huang 2024, detail 23, sets the scores of responses that were cut to -1.
    """
    shaped, moments = shape_scores(rewards, readings.scores, moments)
    score_B = penalise_missing_eos(
        add_scores(rewards, shaped),
        samples.stopped_B,
        penalty=settings.missing_eos_penalty,
        mode=settings.missing_eos_mode,
    )
    kl_BR = kl.estimate(settings.kl_estimator, samples.logp_BR, readings.ref_logp_BR)
    kl_BR = jnp.where(texts.mask_BR, kl_BR, 0.0)
    raw_score_B = add_scores(rewards, readings.scores)
    return ScoredSamples(readings.ref_logp_BR, kl_BR, raw_score_B, score_B), moments


def objective_metrics(
    texts: Texts, samples: Samples, scored: ScoredSamples, kl_coef: jax.Array
) -> dict[str, Any]:
    """Return the objective of a rollout under TRL's names: sums over tokens, means over episodes.

    objective/kl is Σ_t (log π - log π_ref) whatever estimator the reward uses. It may be negative
    on a finite sample; that it stays negative means that sampler and reference disagree about the
    distribution.
    """
    mask_BR, ones_B = texts.mask_BR, jnp.ones_like(scored.score_B)
    log_ratio_BR = jnp.where(mask_BR, samples.logp_BR - scored.ref_logp_BR, 0.0)
    penalty_B = -kl_coef * scored.kl_BR.sum(axis=1)

    def per_episode(x_B: jax.Array) -> Mean:
        return mean(x_B, ones_B)

    return {
        "objective/kl": per_episode(log_ratio_BR.sum(axis=1)),
        "objective/entropy": per_episode(-samples.logp_BR.sum(axis=1, where=mask_BR)),
        "objective/non_score_reward": per_episode(penalty_B),
        "objective/rlhf_reward": per_episode(scored.score_B + penalty_B),
        "objective/scores": per_episode(scored.raw_score_B),
        # A copy: the state that holds the coefficient is donated to the update.
        "objective/kl_coef": kl_coef + 0.0,
        "rollout/length": per_episode(mask_BR.sum(axis=1).astype(jnp.float32)),
        "rollout/truncated": per_episode((~samples.stopped_B).astype(jnp.float32)),
        "rollout/score_std": scored.raw_score_B.std(),
        "val/num_eos_tokens": samples.stopped_B.sum(),
    }


def sampler_gap(logp_BR: jax.Array, sampled_logp_BR: jax.Array, mask_BR: jax.Array) -> Mean:
    """Return the mean |log π - log π of the sampler| per token.

    Before the first optimizer step it is 0 up to rounding.
    """
    return mean(jnp.where(mask_BR, jnp.abs(logp_BR - sampled_logp_BR), 0.0), mask_BR)
