"""Sample responses and score them, once: what PPO and its kin share.

    1  y ~ π(.|x)                      sampling; log π is of the distribution really sampled from
    2  s = r_θ(x, y)                   the reward model's score, normalised, clipped, and
                                       penalised where the response did not end
    3  k_t = k(log π - log π_ref)_t    the distance to the reference, per token (Ziegler 2019,
                                       Ouyang 2022 §3.5)

What an algorithm makes of these (rewards per token, advantages) is frozen in its rollout: the
losses see the rollout and the parameters being trained, nothing else. An "old" quantity cannot be
recomputed with new parameters, which would make every ratio 1.

Left out on purpose: a second inference engine, off-policy correction, stale rollouts.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.config import require, require_divides
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.inference.decoding import PLAIN, SamplingSpec
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import Samples, sample
from rlhf_jax.inference.scoring import response_logps, response_scores
from rlhf_jax.maths import kl
from rlhf_jax.maths.masking import Mean, length_mask, mean
from rlhf_jax.maths.returns import RunningMoments, moments_std, penalise_missing_eos, update_moments
from rlhf_jax.models.heads import LanguageModel, ScalarModel
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
    score_clip: float  # scores beyond ± this are cut; 0: never
    # Divide by the std of all scores seen (Zheng 2023).
    score_normalisation: Literal["none", "running_std"]

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
    reward: ScalarModel
    value: Any = None  # a ScalarModel; algorithms without a value network leave it out


class Parameters(NamedTuple):
    """Hold the parameters of all networks, adapters already combined with what they stand on."""

    policy: Params
    reference: Params  # read by the policy's module, never trained
    reward: Params  # never trained
    value: Params | None = None


class ScoredSamples(NamedTuple):
    """Hold what reference and reward model say of responses."""

    ref_logp_BR: jax.Array
    kl_BR: jax.Array  # nats per token, 0 where masked
    raw_score_B: jax.Array  # as the reward model gave it
    score_B: jax.Array  # normalised, clipped, penalised


def load_parents(run: Run, policy: str, reward: str, length: int) -> tuple[Parent, Parent]:
    """Load policy and reward model, which share a tokenizer and have room for `length` tokens."""
    parent = run.parent("policy", policy, kind=CheckpointKind.LANGUAGE_MODEL)
    judge = run.parent("reward", reward, kind=CheckpointKind.SCALAR_MODEL)
    run.same_tokenizer("policy", "reward")
    require(
        length <= parent.model.context_length,
        f"data.prompt_length + {run.stage}.response_length = {length} exceeds the policy's context "
        f"of {parent.model.context_length}; shorten one of them",
    )
    return parent, judge


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


def score_samples(
    networks: Networks,
    params: Parameters,
    texts: Texts,
    samples: Samples,
    moments: RunningMoments,
    settings: RolloutConfig,
) -> tuple[ScoredSamples, RunningMoments]:
    """Return what reference and reward model say of samples, and the moments of all scores."""
    ref_logp_BR, _ = response_logps(networks.policy, params.reference, texts, spec=settings.spec)
    raw_score_B = response_scores(networks.reward, params.reward, texts)
    score_B, moments = shape_scores(raw_score_B, samples.stopped_B, moments, settings)
    kl_BR = kl.estimate(settings.kl_estimator, samples.logp_BR, ref_logp_BR)
    kl_BR = jnp.where(texts.mask_BR, kl_BR, 0.0)
    return ScoredSamples(ref_logp_BR, kl_BR, raw_score_B, score_B), moments


def shape_scores(
    score_B: jax.Array, stopped_B: jax.Array, moments: RunningMoments, settings: RolloutConfig
) -> tuple[jax.Array, RunningMoments]:
    """Return scores normalised and clipped, with those of cut responses penalised.

    Huang 2024, detail 23, sets these to -1.
    """
    moments = update_moments(moments, score_B)
    if settings.score_normalisation == "running_std":
        score_B = score_B / (moments_std(moments) + 1e-8)
    if settings.score_clip > 0:
        score_B = jnp.clip(score_B, -settings.score_clip, settings.score_clip)
    score_B = penalise_missing_eos(
        score_B, stopped_B, penalty=settings.missing_eos_penalty, mode=settings.missing_eos_mode
    )
    return score_B, moments


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
