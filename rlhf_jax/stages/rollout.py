"""A rollout: everything that policy optimisation needs to know about sampled responses, computed once.

    1  y ~ π(.|x)                          sampling; logp of the distribution really sampled from
    2  s = r_θ(x, y)                       the reward model's score; clipped, normalised, missing end penalised
    3  R_t = -β k(logπ - logπ_ref)_t + 1[t = last] s      per-token reward (Ouyang 2022 §3.5, Ziegler 2019)
    4  Â, R̂ = GAE(R, V)                    advantages and returns; returns before any whitening

The losses see a `Rollout` and the parameters being trained, nothing else: an "old" quantity cannot be recomputed with new
parameters, which would make every ratio 1.

Left out on purpose: a second inference engine, off-policy correction, stale rollouts.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import Samples, sample
from rlhf_jax.inference.scoring import response_logps, response_scores, response_values
from rlhf_jax.maths import kl as kl_maths
from rlhf_jax.maths.losses import explained_variance
from rlhf_jax.maths.masking import Mean, length_mask, mean, whiten
from rlhf_jax.maths.returns import (
    RunningMoments,
    gae,
    moments_std,
    penalise_missing_eos,
    token_rewards,
    update_moments,
)
from rlhf_jax.models.heads import LanguageModel, ScalarModel

Params = Any


class Rollout(NamedTuple):
    """Sampled responses with what was true of them when they were sampled; never changed afterwards."""

    prompt_BP: jax.Array
    prompt_mask_BP: jax.Array
    response_BR: jax.Array
    mask_BR: jax.Array
    logp_BR: jax.Array
    value_BR: jax.Array
    advantage_BR: jax.Array
    return_BR: jax.Array
    score_B: jax.Array  # as the reward model gave it
    stopped_B: jax.Array


class Models(NamedTuple):
    """The module objects; static, hashable, without arrays."""

    policy: LanguageModel
    value: ScalarModel
    reward: ScalarModel


class Frozen(NamedTuple):
    """Parameters that are read and never trained."""

    reference: Params
    reward: Params


class ScoredSamples(NamedTuple):
    """What reference and reward model say of samples, before an algorithm makes rewards and advantages of it."""

    mask_BR: jax.Array
    ref_logp_BR: jax.Array
    kl_BR: jax.Array  # nats per token, 0 where masked
    raw_score_B: jax.Array  # as the reward model gave it
    score_B: jax.Array  # normalised, clipped, penalised


@dataclass(frozen=True)
class ScoreRules:
    """How the reward model's scores are shaped, and how the distance to the reference is estimated."""

    kl_estimator: Literal["k1", "k2", "k3"]
    missing_eos_penalty: float
    missing_eos_mode: Literal["replace", "subtract", "none"]
    score_clip: float  # 0 = off
    score_normalisation: Literal[
        "none", "running_std"
    ]  # divide by the running std of all scores seen (Zheng 2023)


@dataclass(frozen=True)
class RewardRules(ScoreRules):
    """How scores become rewards per token and those become advantages; each field is a published detail."""

    whiten_rewards: bool  # Ziegler 2019: scale rewards to unit variance, mean kept
    whiten_advantages: Literal["batch", "minibatch", "none"]
    gamma: float
    lam: float


def sample_responses(
    model: LanguageModel,
    params: Params,
    prompts: dict[str, jax.Array],
    key: jax.Array,
    *,
    spec: SamplingSpec,
    response_length: int,
    stop_tokens: tuple[int, ...],
    pad_id: int,
    num_samples: int = 1,
    max_rows: int = 0,
) -> Samples:
    """Responses from the policy, `num_samples` to every prompt, in neighbouring rows; at most `max_rows` > 0 at once."""
    return sample(
        model,
        params,
        prompts["prompt_BP"],
        prompts["prompt_mask_BP"],
        key,
        spec=spec,
        response_length=response_length,
        stop_tokens=stop_tokens,
        pad_id=pad_id,
        num_samples=num_samples,
        max_rows=max_rows,
    )


def make_rollout(
    models: Models,
    value_params: Params,
    frozen: Frozen,
    prompts: dict[str, jax.Array],
    samples: Samples,
    kl_coef: jax.Array,
    moments: RunningMoments,
    *,
    spec: SamplingSpec,
    rules: RewardRules,
    num_rows: int = 0,
) -> tuple[Rollout, RunningMoments, dict[str, Any]]:
    """Turn samples into a rollout: reference log-probs, scores, values, rewards, advantages, returns; and the metrics.

    With `num_rows` > 0 the three networks read prompts and responses packed into that many rows.
    """
    prompt = (prompts["prompt_BP"], prompts["prompt_mask_BP"])
    asked = (models.policy, models.reward, frozen, prompt, samples, moments)
    judged, moments = score_samples(*asked, spec=spec, rules=rules, num_rows=num_rows)
    response = (samples.tokens_BR, judged.mask_BR)
    value_BR = response_values(models.value, value_params, *prompt, *response, num_rows=num_rows)
    reward_BR = token_rewards(judged.score_B, judged.kl_BR, judged.mask_BR, kl_coef)
    if rules.whiten_rewards:
        reward_BR = whiten(reward_BR, judged.mask_BR, shift_mean=False)
    advantage_BR, return_BR = gae(
        reward_BR, value_BR, judged.mask_BR, gamma=rules.gamma, lam=rules.lam
    )
    if rules.whiten_advantages == "batch":
        advantage_BR = whiten(advantage_BR, judged.mask_BR, shift_mean=True)
    rollout = Rollout(
        *prompt,
        *response,
        samples.logp_BR,
        value_BR,
        advantage_BR,
        return_BR,
        judged.raw_score_B,
        samples.stopped_B,
    )
    return (
        rollout,
        moments,
        {**objective_metrics(samples, judged, kl_coef), **value_metrics(rollout)},
    )


def score_samples(
    policy: LanguageModel,
    reward: ScalarModel,
    frozen: Frozen,
    prompt: tuple[jax.Array, jax.Array],
    samples: Samples,
    moments: RunningMoments,
    *,
    spec: SamplingSpec,
    rules: ScoreRules,
    num_rows: int,
) -> tuple[ScoredSamples, RunningMoments]:
    """Ask reference and reward model about samples; the moments have then seen their scores. `num_rows` as in scoring."""
    mask_BR = length_mask(samples.length_B, samples.tokens_BR.shape[1])
    response = (samples.tokens_BR, mask_BR)
    ref_logp_BR, _ = response_logps(
        policy, frozen.reference, *prompt, *response, spec=spec, num_rows=num_rows
    )
    raw_score_B = response_scores(reward, frozen.reward, *prompt, *response, num_rows=num_rows)
    score_B, moments = shape_scores(raw_score_B, samples.stopped_B, moments, rules)
    kl_BR = jnp.where(
        mask_BR, kl_maths.estimate(rules.kl_estimator, samples.logp_BR, ref_logp_BR), 0.0
    )
    return ScoredSamples(mask_BR, ref_logp_BR, kl_BR, raw_score_B, score_B), moments


def shape_scores(
    score_B: jax.Array, stopped_B: jax.Array, moments: RunningMoments, rules: ScoreRules
) -> tuple[jax.Array, RunningMoments]:
    """Normalise and clip scores, then penalise responses that did not end (Huang 2024, detail 23: score := -1)."""
    moments = update_moments(moments, score_B)
    if rules.score_normalisation == "running_std":
        score_B = score_B / (moments_std(moments) + 1e-8)
    if rules.score_clip > 0:
        score_B = jnp.clip(score_B, -rules.score_clip, rules.score_clip)
    score_B = penalise_missing_eos(
        score_B, stopped_B, penalty=rules.missing_eos_penalty, mode=rules.missing_eos_mode
    )
    return score_B, moments


def objective_metrics(
    samples: Samples, judged: ScoredSamples, kl_coef: jax.Array
) -> dict[str, Any]:
    """The objective of a rollout under TRL's names; sums over tokens, means over episodes.

    objective/kl is Σ_t (logπ - logπ_ref) whatever estimator the reward uses; it may be negative on a finite sample, but starts
    at exactly 0 in expectation, and a persistent negative value means sampler and reference disagree about the distribution.
    """
    mask_BR, ones_B = judged.mask_BR, jnp.ones_like(judged.score_B)
    log_ratio_BR = jnp.where(mask_BR, samples.logp_BR - judged.ref_logp_BR, 0.0)
    penalty_B = -kl_coef * judged.kl_BR.sum(axis=1)

    def per_episode(x_B: jax.Array) -> Mean:
        return mean(x_B, ones_B)

    return {
        "objective/kl": per_episode(log_ratio_BR.sum(axis=1)),
        "objective/entropy": per_episode(-samples.logp_BR.sum(axis=1, where=mask_BR)),
        "objective/non_score_reward": per_episode(penalty_B),
        "objective/rlhf_reward": per_episode(judged.score_B + penalty_B),
        "objective/scores": per_episode(judged.raw_score_B),
        "objective/kl_coef": kl_coef
        + 0.0,  # a copy: the state that holds it is donated to the update
        "rollout/length": per_episode(mask_BR.sum(axis=1).astype(jnp.float32)),
        "rollout/truncated": per_episode((~samples.stopped_B).astype(jnp.float32)),
        "rollout/score_std": judged.raw_score_B.std(),
        "val/num_eos_tokens": samples.stopped_B.sum(),
    }


def value_metrics(rollout: Rollout) -> dict[str, Any]:
    """How well the value network knew what came."""
    return {
        "val/mean": mean(rollout.value_BR, rollout.mask_BR),
        "val/var_explained": explained_variance(
            rollout.value_BR, rollout.return_BR, rollout.mask_BR
        ),
        "returns/mean": mean(rollout.return_BR, rollout.mask_BR),
    }


def sampler_gap(logp_BR: jax.Array, sampled_logp_BR: jax.Array, mask_BR: jax.Array) -> Mean:
    """Mean |log π - log π of the sampler| per token; before the first optimizer step it must be 0 up to rounding."""
    return mean(jnp.where(mask_BR, jnp.abs(logp_BR - sampled_logp_BR), 0.0), mask_BR)
