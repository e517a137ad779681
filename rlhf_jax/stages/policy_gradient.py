"""Policy optimisation without a value network, from several responses to every prompt: REINFORCE, RLOO, GRPO and their kin.

    for each update:
      1  sample N responses to each of B prompts                                (stages/rollouts.py, as PPO does)
      2  score them with the reward model;  R_i = score_i - β Σ_t KL_t          (or β k3 in the loss: `kl_in`)
      3  compare each with a baseline, or with the other responses to its prompt; everything so far is frozen
      4  num_epochs x num_mini_batches of one loss:

    loss       what differs from PPO                                                                       source
    reinforce  A_i Σ_t log π: the whole response is one action; no ratio, no clip                          Williams 1992
               baseline leave_one_out is RLOO; batch or moving is a plain baseline                         Ahmadian 2024
    clip       PPO's ratio, but one advantage for all tokens of a response; baseline group is GRPO         Shao 2024
               std none with reduction fixed_length is Dr. GRPO (Liu 2025); cliprange_high > cliprange with
               reduction token_mean is DAPO's clip-higher and token mean (Yu 2025)
    dpo, ipo   online DPO: the reward model's best and worst response to a prompt are a pair for DPO       Guo 2024
    best       expert iteration: the language-model loss on the reward model's best response               Anthony 2017

In dpo and ipo β weighs the loss's log-ratio instead of a KL; best has no KL at all, and each round goes on from the policy of
the round before. Whole prompts, never parts of a group, make up minibatches. The KL coefficient is fixed.

Left out on purpose: truncated sampling, PPO-ptx, DAPO's filtering and resampling of prompts whose responses all tie.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.config import require, require_divides
from rlhf_jax.data.batches import prompt_batches
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.packing import row_bucket, rows_needed
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.inference.scoring import response_logps
from rlhf_jax.maths.losses import Reduction, grpo_loss, reduce_tokens, reinforce_loss
from rlhf_jax.maths.masking import Mean, mean
from rlhf_jax.maths.preference import implicit_loss
from rlhf_jax.maths.returns import (
    GroupStd,
    RunningMoments,
    empty_moments,
    grpo_advantages,
    rloo,
    update_moments,
)
from rlhf_jax.menagerie.monitor import Monitor, monitor_hooks
from rlhf_jax.models.heads import LanguageModel, ScalarModel
from rlhf_jax.models.lora import NOTHING_FROZEN, LoraConfig, combine, init_adapters
from rlhf_jax.stages.rollout import (
    Frozen,
    ScoredSamples,
    ScoreRules,
    objective_metrics,
    sample_responses,
    sampler_gap,
    score_samples,
)
from rlhf_jax.training.mesh import replicated
from rlhf_jax.training.optimizer import OptimizerConfig, global_norm, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import (
    TrainState,
    accumulated_gradients,
    fullest_micro_batch,
    init_state,
    run_epochs,
)

# Settings of the policy-gradient stage and the arithmetic that they must satisfy.
WEIGHED = ("reinforce", "clip")  # losses in which every response counts with its advantage
PAIRS = ("dpo", "ipo")  # losses of the best against the worst


@dataclass(frozen=True)
class Init:
    """Where the parameters come from; a path starting with ../ is relative to the workdir."""

    policy: str  # also the reference
    reward: str


@dataclass(frozen=True)
class Data:
    """Prompts for the rollouts."""

    data_dir: str
    prompts: str
    prompt_length: int


@dataclass(frozen=True)
class PolicyGradient:
    """Every detail of the algorithm, under PPO's names where PPO has one."""

    total_episodes: int
    batch_size: int  # episodes per update: prompts x samples_per_prompt
    samples_per_prompt: int
    num_epochs: int
    num_mini_batches: int
    num_micro_batches: int  # per minibatch: changes memory, not results
    response_length: int
    sampling_rows: int  # as ppo's
    temperature: float
    loss: Literal["reinforce", "clip", "dpo", "ipo", "best"]
    baseline: Literal["none", "batch", "moving", "leave_one_out", "group"]
    group_std: GroupStd  # what baseline group divides by
    group_std_eps: float
    reduction: Reduction  # of clip and best
    cliprange: float
    cliprange_high: float  # above 1; DAPO's clip-higher if larger than cliprange
    kl_coef: float
    kl_in: Literal["reward", "loss"]
    kl_estimator: Literal["k1", "k2", "k3"]  # in the reward; in the loss it is k3
    missing_eos_penalty: float
    missing_eos_mode: Literal["replace", "subtract", "none"]
    score_clip: float
    score_normalisation: Literal["none", "running_std"]

    @property
    def num_prompts(self) -> int:
        """Prompts per update."""
        return self.batch_size // self.samples_per_prompt

    @property
    def spec(self) -> SamplingSpec:
        """The whole distribution: a truncated one would bias every ratio."""
        return SamplingSpec(temperature=self.temperature, top_k=0, top_p=1.0, nucleus="holtzman")

    @property
    def rules(self) -> ScoreRules:
        """What is done to scores."""
        return ScoreRules(
            kl_estimator=self.kl_estimator,
            missing_eos_penalty=self.missing_eos_penalty,
            missing_eos_mode=self.missing_eos_mode,
            score_clip=self.score_clip,
            score_normalisation=self.score_normalisation,
        )


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["policy_gradient"]
    seed: int
    init: Init
    data: Data
    policy_gradient: PolicyGradient
    lora: LoraConfig
    monitor: Monitor
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def check(settings: PolicyGradient, num_devices: int) -> None:
    """Refuse impossible arithmetic before anything compiles."""
    name, samples = "policy_gradient", settings.samples_per_prompt
    require_divides(
        settings.batch_size,
        settings.total_episodes,
        f"{name}.total_episodes by {name}.batch_size",
        "change one of the two",
    )
    require_divides(
        samples,
        settings.batch_size,
        f"{name}.batch_size by {name}.samples_per_prompt",
        "choose a divisor",
    )
    require_divides(
        settings.num_mini_batches,
        settings.num_prompts,
        f"prompts per update by {name}.num_mini_batches",
        "choose a divisor: a minibatch has whole groups",
    )
    prompts = settings.num_prompts // settings.num_mini_batches
    require_divides(
        settings.num_micro_batches,
        prompts,
        f"prompts per minibatch by {name}.num_micro_batches",
        "choose a divisor",
    )
    require_divides(
        num_devices,
        prompts // settings.num_micro_batches,
        "prompts per micro-batch by devices",
        f"raise {name}.batch_size or use fewer devices",
    )
    compares = settings.loss in (*PAIRS, "best") or settings.baseline in ("leave_one_out", "group")
    require(
        not compares or samples >= 2,
        f"{name}.samples_per_prompt={samples}: loss={settings.loss} with "
        f"baseline={settings.baseline} compares responses to one prompt and needs at least 2",
    )
    require(
        settings.sampling_rows >= 0,
        f"{name}.sampling_rows={settings.sampling_rows}: expected a number of responses, or 0 for all",
    )
    require(
        settings.temperature > 0,
        f"{name}.temperature must be > 0: greedy rollouts have no log-probability",
    )
    require(
        settings.kl_in == "reward" or settings.loss == "clip",
        f"{name}.kl_in=loss belongs to loss=clip: "
        f"loss={settings.loss} has no place for it; use kl_in=reward",
    )
    require(
        settings.loss not in PAIRS or settings.kl_coef > 0,
        f"{name}.loss={settings.loss} needs {name}.kl_coef > 0: it is DPO's β",
    )


Params = Any


class Models(NamedTuple):
    """The module objects; static, hashable, without arrays."""

    policy: LanguageModel
    reward: ScalarModel


class Groups(NamedTuple):
    """Responses to B prompts with what was true of them when they were sampled; never changed afterwards.

    N is samples_per_prompt; in dpo and ipo only the best and the worst response are here, in best only the best.
    """

    prompt_BP: jax.Array
    prompt_mask_BP: jax.Array
    response_BNR: jax.Array
    mask_BNR: jax.Array
    logp_BNR: jax.Array
    ref_logp_BNR: jax.Array
    advantage_BN: jax.Array  # in dpo and ipo the scores by which the two were chosen


class Moments(NamedTuple):
    """The few scalars that live as long as the run: all scores and all rewards seen."""

    scores: RunningMoments
    rewards: RunningMoments


def run(config: Config, workdir: str) -> None:
    """Train a policy on groups of its own responses."""
    run, settings = Run.open(config, workdir), config.policy_gradient
    check(settings, run.batch_shards)
    policy = run.parent("policy", config.init.policy, kind="language_model")
    reward = run.parent("reward", config.init.reward, kind="scalar_model")
    run.same_tokenizer("policy", "reward")
    need = config.data.prompt_length + settings.response_length
    require(
        need <= policy.model.context_length,
        f"data.prompt_length + policy_gradient.response_length = {need} exceeds the policy's context of "
        f"{policy.model.context_length}; shorten one of them",
    )

    models, spec = Models(LanguageModel(policy.model), ScalarModel(reward.model)), settings.spec
    key, tokenizer, repeats = (
        jax.random.key(config.seed),
        run.tokenizer,
        settings.samples_per_prompt,
    )
    base, params = init_adapters(policy.params, config.lora, jax.random.fold_in(key, 1 << 30))
    frozen, base = run.place_frozen((Frozen(policy.params, reward.params), base))
    num_updates = settings.total_episodes // settings.batch_size
    optimizer = make_optimizer(
        config.optimizer, num_updates * settings.num_epochs * settings.num_mini_batches
    )
    extras = {"moments": Moments(empty_moments(), empty_moments())}
    state = run.place_state(init_state(params, optimizer, extras))
    prompts = prompt_batches(
        load(config.data.prompts, Prompt, split="train", data_dir=config.data.data_dir),
        tokenizer,
        prompt_length=config.data.prompt_length,
        batch_size=settings.num_prompts,
        seed=config.seed,
    )
    run.announce(
        config,
        {"policy": params, "base": base},
        (
            f"{num_updates} updates x {settings.num_prompts} prompts x {repeats} responses = {settings.total_episodes} episodes; "
            f"each update {settings.num_epochs} epochs x {settings.num_mini_batches} minibatches; loss {settings.loss}"
        ),
    )

    draw = jax.jit(
        partial(
            sample_responses,
            models.policy,
            spec=spec,
            response_length=settings.response_length,
            max_rows=settings.sampling_rows,
            stop_tokens=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            num_samples=repeats,
        )
    )
    judge = jax.jit(
        partial(judge_groups, models, settings=settings, spec=spec), static_argnames="num_rows"
    )
    update_of = partial(make_update, models.policy, optimizer, settings, spec)
    optimise = cache(lambda rows: run.compile_update(update_of(num_rows=rows), state))
    count = jax.jit(partial(rows_needed, row_length=need), out_shardings=replicated(run.mesh))
    count_fullest = jax.jit(partial(rows_needed_by, settings), out_shardings=replicated(run.mesh))

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        step_key = jax.random.fold_in(key, step)
        batch = {name: prompts.batch(step)[name] for name in ("prompt_BP", "prompt_mask_BP")}
        placed = run.shard(batch)
        samples = draw(combine(base, state.params), placed, jax.random.fold_in(step_key, 0))
        repeated = {name: np.repeat(x, repeats, axis=0) for name, x in batch.items()}
        needed = count(jnp.asarray(repeated["prompt_mask_BP"].sum(axis=1)) + samples.length_B)
        judge_rows = row_bucket(int(needed), settings.batch_size, run.batch_shards)
        groups, moments, score_B, metrics = judge(
            frozen, placed, samples, state.extras["moments"], num_rows=judge_rows
        )
        update_key = jax.random.fold_in(step_key, 1)
        needed = count_fullest(groups, jax.random.clone(update_key))  # the same minibatches
        update_rows = row_bucket(int(needed), _micro_batch(settings, groups), run.batch_shards)
        run.show_samples(step, repeated, samples, score_B)
        state, update_metrics = optimise(update_rows)(state, groups, update_key, base)
        state = replace(state, extras={**state.extras, "moments": moments})
        return state, {**metrics, **update_metrics, "episode": (step + 1) * settings.batch_size}

    run.train(
        state,
        step_fn,
        num_steps=num_updates,
        kind="language_model",
        model=policy.model,
        hooks=monitor_hooks(
            config.monitor,
            models.policy,
            tokenizer,
            lambda s: combine(base, s.params),
            data_dir=config.data.data_dir,
            seed=config.seed,
        ),
        extra=run.lora_link("policy", config.lora),
        headline=("objective/scores", "objective/kl", "rollout/length", "gold/total"),
    )


def judge_groups(
    models: Models,
    frozen: Frozen,
    prompts: dict[str, jax.Array],
    samples: Samples,
    moments: Moments,
    *,
    settings: PolicyGradient,
    spec: SamplingSpec,
    num_rows: int = 0,
) -> tuple[Groups, Moments, jax.Array, dict[str, Any]]:
    """Turn samples into groups: rewards, advantages or a choice among the responses; also every score, and the metrics.

    With `num_rows` > 0 reference and reward model read prompts and responses packed into that many rows.
    """
    count = settings.samples_per_prompt
    prompt = (prompts["prompt_BP"], prompts["prompt_mask_BP"])
    repeated = (jnp.repeat(prompt[0], count, axis=0), jnp.repeat(prompt[1], count, axis=0))
    judged, scores = score_samples(
        models.policy,
        models.reward,
        frozen,
        repeated,
        samples,
        moments.scores,
        spec=spec,
        rules=settings.rules,
        num_rows=num_rows,
    )
    reward_BN, advantage_BN = advantages(judged, moments.rewards, settings)
    drawn = (samples.tokens_BR, judged.mask_BR, samples.logp_BR, judged.ref_logp_BR)
    response_BNR, mask_BNR, logp_BNR, ref_logp_BNR = (
        x.reshape(-1, count, x.shape[-1]) for x in drawn
    )
    groups = Groups(*prompt, response_BNR, mask_BNR, logp_BNR, ref_logp_BNR, advantage_BN)
    metrics = objective_metrics(samples, judged, jnp.asarray(settings.kl_coef))
    metrics["rollout/tied_groups"] = (reward_BN.max(axis=1) == reward_BN.min(axis=1)).mean()
    moments = Moments(scores, update_moments(moments.rewards, reward_BN))
    return choose(groups, settings), moments, judged.raw_score_B, metrics


def advantages(
    judged: ScoredSamples, seen: RunningMoments, settings: PolicyGradient
) -> tuple[jax.Array, jax.Array]:
    """R_BN of whole responses, and what is better than the baseline in them; where responses are chosen, R itself.

    The moving baseline is the mean of all rewards of earlier updates.
    """
    in_reward = settings.kl_in == "reward" and settings.loss in WEIGHED
    penalty_B = settings.kl_coef * judged.kl_BR.sum(axis=1) if in_reward else 0.0
    reward_BN = (judged.score_B - penalty_B).reshape(-1, settings.samples_per_prompt)
    if settings.loss not in WEIGHED:
        return reward_BN, reward_BN
    if settings.baseline == "leave_one_out":
        return reward_BN, rloo(reward_BN)
    if settings.baseline == "group":
        return reward_BN, grpo_advantages(
            reward_BN, std=settings.group_std, eps=settings.group_std_eps
        )
    baselines = {"none": jnp.zeros(()), "batch": reward_BN.mean(), "moving": seen.mean}
    return reward_BN, reward_BN - baselines[settings.baseline]


def choose(groups: Groups, settings: PolicyGradient) -> Groups:
    """All responses, or those that the loss learns from: best and worst, or the best alone."""
    if settings.loss in WEIGHED:
        return groups
    best_B, worst_B = groups.advantage_BN.argmax(axis=1), groups.advantage_BN.argmin(axis=1)
    chosen_BM = jnp.stack([best_B, worst_B] if settings.loss in PAIRS else [best_B], axis=1)

    def take(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(
            x, chosen_BM.reshape(*chosen_BM.shape, *[1] * (x.ndim - 2)), axis=1
        )

    return Groups(*groups[:2], *(take(x) for x in groups[2:]))


def make_update(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    settings: PolicyGradient,
    spec: SamplingSpec,
    *,
    num_rows: int = 0,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """The pure update of one rollout, (state, groups, key, frozen base) -> (state, metrics); by default there is no base.

    With `num_rows` > 0 the policy reads each micro-batch packed into that many rows.
    """

    def update(
        state: TrainState, groups: Groups, key: jax.Array, base: Params = NOTHING_FROZEN
    ) -> tuple[TrainState, dict[str, Any]]:
        def loss(trained: Params, *rest: Any) -> Any:
            return minibatch_loss(
                model, settings, spec, combine(base, trained), *rest, num_rows=num_rows
            )

        def gradients(params: Params, minibatch: Groups, _: Any) -> tuple[Params, dict[str, Any]]:
            weigh, no_dropout = partial(weight_of, settings=settings), jax.random.key(0)
            return accumulated_gradients(
                loss,
                weigh,
                params,
                minibatch,
                no_dropout,
                num_micro_batches=settings.num_micro_batches,
            )

        return run_epochs(
            state,
            gradients,
            optimizer,
            groups,
            {},
            key,
            norms=lambda grads: {"grad_norm": global_norm(grads)},
            num_epochs=settings.num_epochs,
            num_mini_batches=settings.num_mini_batches,
            target_kl=0.0,
        )

    return update


def weight_of(groups: Groups, *, settings: PolicyGradient) -> jax.Array:
    """What the loss's mean is over: responses, tokens, or pairs whose scores differ."""
    if settings.loss in PAIRS:
        return jnp.maximum((groups.advantage_BN[:, 0] > groups.advantage_BN[:, 1]).sum(), 1)
    mask_BR = groups.mask_BNR.reshape(-1, groups.mask_BNR.shape[-1])
    reduction: Reduction = "response_mean" if settings.loss == "reinforce" else settings.reduction
    return reduce_tokens(mask_BR.astype(jnp.float32), mask_BR, reduction=reduction).weight


def minibatch_loss(
    model: LanguageModel,
    settings: PolicyGradient,
    spec: SamplingSpec,
    params: Params,
    groups: Groups,
    weight: jax.Array,
    key: jax.Array,
    *,
    num_rows: int = 0,
) -> tuple[jax.Array, dict[str, Any]]:
    """The loss of some groups, divided by the whole minibatch's weight."""
    del key
    count = groups.mask_BNR.shape[1]
    prompt = (
        jnp.repeat(groups.prompt_BP, count, axis=0),
        jnp.repeat(groups.prompt_mask_BP, count, axis=0),
    )
    response_BR, mask_BR, old_BR, ref_BR = (x.reshape(-1, x.shape[-1]) for x in groups[2:6])
    logp_BR, entropy_BR = response_logps(
        model, params, *prompt, response_BR, mask_BR, spec=spec, num_rows=num_rows
    )
    clipped, stats = grpo_loss(
        logp_BR,
        old_BR,
        ref_BR,
        groups.advantage_BN.ravel(),
        mask_BR,
        cliprange=settings.cliprange,
        cliprange_high=settings.cliprange_high,
        kl_coef=settings.kl_coef if settings.kl_in == "loss" else 0.0,
        reduction=settings.reduction,
    )
    more: dict[str, Mean] = {}
    if settings.loss == "clip":
        loss = clipped
    elif settings.loss == "reinforce":
        loss = reinforce_loss(logp_BR, groups.advantage_BN.ravel(), mask_BR)
    elif settings.loss == "best":
        loss = reduce_tokens(-logp_BR, mask_BR, reduction=settings.reduction)
    else:
        loss, more = _pair_loss(
            settings, (logp_BR - ref_BR).sum(axis=1).reshape(-1, 2), groups.advantage_BN
        )
    return loss.total / weight, {
        "loss/policy_avg": loss,
        **{f"rewards/{name}": pair for name, pair in more.items()},
        "policy/entropy_avg": mean(entropy_BR, mask_BR),
        "policy/approxkl_avg": stats["approxkl"],
        "policy/clipfrac_avg": stats["clipfrac"],
        "policy/ref_kl_avg": stats["kl"],
        "val/ratio": stats["ratio"],
        "mismatch/logp_mean": sampler_gap(logp_BR, old_BR, mask_BR),
    }


def _pair_loss(
    settings: PolicyGradient, log_ratio_B2: jax.Array, score_B2: jax.Array
) -> tuple[Mean, dict[str, Mean]]:
    """DPO's or IPO's loss of pairs (best, worst); equal scores are no pair."""
    rank_B2 = jnp.where(score_B2 == score_B2[:, :1], 1, 2)
    return implicit_loss(
        settings.kl_coef * log_ratio_B2,
        rank_B2,
        jnp.ones_like(rank_B2),
        loss=settings.loss,
        beta=settings.kl_coef,
        label_smoothing=0.0,
        pair_norm="num_valid_pairs",
    )


def rows_needed_by(settings: PolicyGradient, groups: Groups, key: jax.Array) -> jax.Array:
    """Packed rows that one of the micro-batches of the update with this key needs at most."""
    return fullest_micro_batch(
        groups.prompt_mask_BP.sum(axis=1)[:, None] + groups.mask_BNR.sum(axis=2),
        key,
        row_length=groups.prompt_BP.shape[1] + groups.mask_BNR.shape[2],
        num_epochs=settings.num_epochs,
        num_mini_batches=settings.num_mini_batches,
        num_micro_batches=settings.num_micro_batches,
    )


def _micro_batch(settings: PolicyGradient, groups: Groups) -> int:
    """Responses in a micro-batch."""
    return groups.advantage_BN.size // (settings.num_mini_batches * settings.num_micro_batches)
