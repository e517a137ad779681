"""Train a policy without a value network: REINFORCE, RLOO, GRPO and their kin.

Every prompt gets several responses, which are compared with each other or with a baseline.

    for each update:
      sample     N responses to each of B prompts                 (as PPO does, stages/rollout.py)
      collect    scores, R_i = score_i - β Σ_t KL_t (or β k3 in the loss: `kl_in`), compared with a
                 baseline or the prompt's other responses; all this is frozen in `Groups`
      update     num_epochs x num_mini_batches of one loss:

    loss       what differs from PPO                                               source
    reinforce  A_i Σ_t log π: the response is one action; no ratio, no clip        Williams 1992
               baseline leave_one_out is RLOO; batch and moving are plain ones     Ahmadian 2024
    clip       PPO's ratio, one advantage for all tokens; baseline group is GRPO   Shao 2024
               group_std none with reduction fixed_length is Dr. GRPO              Liu 2025
               cliprange_high > cliprange with reduction token_mean is DAPO's      Yu 2025
    dpo, ipo   online DPO: the best and the worst response to a prompt are a pair  Guo 2024
    best       expert iteration: the language model's loss on the best response    Anthony 2017

In dpo and ipo β weighs the loss's log-ratio instead of a KL; best has no KL at all, and each round
goes on from the policy of the round before. Whole prompts, never parts of a group, make up
minibatches. The KL coefficient is fixed.

Left out on purpose: truncated sampling, PPO-ptx, DAPO's filtering and resampling of prompts whose
responses all tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf_jax.config import require, require_divides
from rlhf_jax.data.batches import prompt_batches
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.judges import Judge
from rlhf_jax.inference.packing import Texts, row_bucket, rows_needed
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
from rlhf_jax.models.heads import LanguageModel, ScalarModel
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters
from rlhf_jax.stages.rewards import (
    HostRewards,
    Reward,
    Rewards,
    ScoreMoments,
    check_rewards,
    describe_rewards,
    reward_metrics,
    start_moments,
)
from rlhf_jax.stages.rollout import (
    Networks,
    Parameters,
    Readings,
    RolloutConfig,
    ScoredSamples,
    StopTokens,
    check_rollout,
    load_parents,
    objective_metrics,
    read_samples,
    sample_texts,
    sampler_gap,
    score_samples,
)
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.keys import Purpose, RunPurpose, purpose_key, run_key
from rlhf_jax.training.loop import PolicyMonitor, headlines, policy_hooks
from rlhf_jax.training.mesh import replicated
from rlhf_jax.training.optimizer import OptimizerConfig, global_norm, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, MonitorConfig, Run
from rlhf_jax.training.updates import (
    Objective,
    Passes,
    TrainState,
    accumulated_gradients,
    apply_gradients,
    init_state,
    minibatch_rows,
    packed_rows_needed,
    summarise,
)

Params = Any
WEIGHTED = ("reinforce", "clip")  # losses in which every response counts with its advantage
PAIRS = ("dpo", "ipo")  # losses of the best response against the worst

# --- the config -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Init:
    """Name the parents; ../ is of the workdir, hf: and hub: of Hugging Face."""

    policy: str  # also the reference


@dataclass(frozen=True)
class Data:
    """Name the prompts of the rollouts."""

    data_dir: str
    prompts: str  # a source, see data/sources.py
    prompt_length: int  # tokens; longer prompts are left out and counted


@dataclass(frozen=True)
class PolicyGradient(RolloutConfig):
    """Set every detail of the algorithm, under PPO's names where PPO has one."""

    samples_per_prompt: int  # N; batch_size counts responses, so B = batch_size / N
    num_epochs: int  # passes over a rollout
    num_mini_batches: int  # optimizer steps per epoch
    # Parts of a minibatch that are in memory at once: changes memory, not results.
    num_micro_batches: int
    loss: Literal["reinforce", "clip", "dpo", "ipo", "best"]
    baseline: Literal["none", "batch", "moving", "leave_one_out", "group"]
    group_std: GroupStd  # what baseline group divides by
    group_std_eps: float  # added to it; 1e-4 in TRL
    reduction: Reduction  # of clip and best: what the loss is a mean over
    cliprange: float  # ε of the ratio below 1
    cliprange_high: float  # ε of the ratio above 1; DAPO's clip-higher if larger than cliprange
    kl_in: Literal["reward", "loss"]  # where β k stands; in the loss it is k3 whatever kl_estimator

    @property
    def num_samples(self) -> int:
        """Return how many responses are sampled to every prompt."""
        return self.samples_per_prompt

    @property
    def num_prompts(self) -> int:
        """Return how many prompts an update has."""
        return self.batch_size // self.samples_per_prompt

    @property
    def passes(self) -> Passes:
        """Return how an update goes over its rollout."""
        return Passes(self.num_epochs, self.num_mini_batches, self.num_micro_batches)


@dataclass(frozen=True)
class Config:
    """List exactly what this stage reads."""

    stage: Literal["policy_gradient"]
    seed: int
    init: Init
    data: Data
    rewards: dict[str, Reward]  # their weighted sum is maximised
    policy_gradient: PolicyGradient
    lora: LoraConfig
    monitor: MonitorConfig | None
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


# --- collect: from samples to groups --------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """Hold N responses to each of B prompts with what was true when they were sampled.

    In dpo and ipo only the best and the worst response are here, in best only the best. `num_rows`
    is that of `Texts`.
    """

    prompt_BP: jax.Array
    prompt_mask_BP: jax.Array
    response_BNR: jax.Array
    mask_BNR: jax.Array
    logp_BNR: jax.Array
    ref_logp_BNR: jax.Array
    advantage_BN: jax.Array  # in dpo and ipo the scores by which the two were chosen
    num_rows: int = field(default=0, metadata={"static": True})

    @property
    def texts(self) -> Texts:
        """Return every response behind its prompt; those to one prompt are neighbours."""
        count, length = self.mask_BNR.shape[1:]
        return Texts(
            prompt_BP=jnp.repeat(self.prompt_BP, count, axis=0),
            prompt_mask_BP=jnp.repeat(self.prompt_mask_BP, count, axis=0),
            response_BR=self.response_BNR.reshape(-1, length),
            mask_BR=self.mask_BNR.reshape(-1, length),
            num_rows=self.num_rows,
        )


class Moments(NamedTuple):
    """Hold what lives as long as the run: moments of all scores and of all returns seen."""

    scores: ScoreMoments
    rewards: RunningMoments


def collect(
    settings: PolicyGradient,
    rewards: Rewards,
    texts: Texts,
    samples: Samples,
    readings: Readings,
    moments: Moments,
) -> tuple[Groups, Moments, jax.Array, dict[str, Any]]:
    """Turn samples into groups with advantages, or with the responses that were chosen.

    Also returned are the moments, the weighted sums of raw scores and the metrics.
    """
    scored, scores = score_samples(settings, rewards, texts, samples, readings, moments.scores)
    reward_BN, advantage_BN = advantages(scored, moments.rewards, settings)
    count, length = settings.samples_per_prompt, texts.response_BR.shape[1]
    groups = Groups(
        prompt_BP=texts.prompt_BP[::count],
        prompt_mask_BP=texts.prompt_mask_BP[::count],
        response_BNR=texts.response_BR.reshape(-1, count, length),
        mask_BNR=texts.mask_BR.reshape(-1, count, length),
        logp_BNR=samples.logp_BR.reshape(-1, count, length),
        ref_logp_BNR=scored.ref_logp_BR.reshape(-1, count, length),
        advantage_BN=advantage_BN,
    )
    metrics = objective_metrics(texts, samples, scored, jnp.asarray(settings.kl_coef))
    metrics |= reward_metrics(readings.scores)
    metrics["rollout/tied_groups"] = (reward_BN.max(axis=1) == reward_BN.min(axis=1)).mean()
    moments = Moments(scores, update_moments(moments.rewards, reward_BN))
    return choose(groups, settings), moments, scored.raw_score_B, metrics


def advantages(
    scored: ScoredSamples, seen: RunningMoments, settings: PolicyGradient
) -> tuple[jax.Array, jax.Array]:
    """Return R_BN of whole responses and their advantages; where responses are chosen, R twice.

    The moving baseline is the mean of all rewards of earlier updates.
    """
    in_reward = settings.kl_in == "reward" and settings.loss in WEIGHTED
    penalty_B = settings.kl_coef * scored.kl_BR.sum(axis=1) if in_reward else 0.0
    reward_BN = (scored.score_B - penalty_B).reshape(-1, settings.samples_per_prompt)
    if settings.loss not in WEIGHTED:
        return reward_BN, reward_BN
    if settings.baseline == "leave_one_out":
        return reward_BN, rloo(reward_BN)
    if settings.baseline == "group":
        advantage_BN = grpo_advantages(
            reward_BN, std=settings.group_std, eps=settings.group_std_eps
        )
        return reward_BN, advantage_BN
    baselines = {"none": jnp.zeros(()), "batch": reward_BN.mean(), "moving": seen.mean}
    return reward_BN, reward_BN - baselines[settings.baseline]


def choose(groups: Groups, settings: PolicyGradient) -> Groups:
    """Return the responses that the loss learns from: all, best and worst, or the best alone."""
    if settings.loss in WEIGHTED:
        return groups
    best_B = groups.advantage_BN.argmax(axis=1)
    worst_B = groups.advantage_BN.argmin(axis=1)
    chosen = [best_B, worst_B] if settings.loss in PAIRS else [best_B]
    chosen_BM = jnp.stack(chosen, axis=1)

    def take(x: jax.Array) -> jax.Array:
        index = chosen_BM.reshape(*chosen_BM.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, index, axis=1)

    return replace(
        groups,
        response_BNR=take(groups.response_BNR),
        mask_BNR=take(groups.mask_BNR),
        logp_BNR=take(groups.logp_BNR),
        ref_logp_BNR=take(groups.ref_logp_BNR),
        advantage_BN=take(groups.advantage_BN),
    )


# --- loss: what one minibatch says ----------------------------------------------------------------


def group_loss(
    settings: PolicyGradient,
    policy: LanguageModel,
    params: Params,
    groups: Groups,
    denominator: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
    """Return the loss of some groups over the whole minibatch's `loss_denominator`.

    `key` is not used: there is no dropout.
    """
    del key
    texts = groups.texts
    mask_BR = texts.mask_BR
    old_logp_BR = groups.logp_BNR.reshape(mask_BR.shape)
    ref_logp_BR = groups.ref_logp_BNR.reshape(mask_BR.shape)
    advantage_B = groups.advantage_BN.ravel()
    logp_BR, entropy_BR = response_logps(policy, params, texts, spec=settings.spec)
    clipped, stats = grpo_loss(
        logp_BR,
        old_logp_BR,
        ref_logp_BR,
        advantage_B,
        mask_BR,
        cliprange=settings.cliprange,
        cliprange_high=settings.cliprange_high,
        kl_coef=settings.kl_coef if settings.kl_in == "loss" else 0.0,
        reduction=settings.reduction,
    )
    pair_metrics: dict[str, Mean] = {}
    if settings.loss == "clip":
        loss = clipped
    elif settings.loss == "reinforce":
        loss = reinforce_loss(logp_BR, advantage_B, mask_BR)
    elif settings.loss == "best":
        loss = reduce_tokens(-logp_BR, mask_BR, reduction=settings.reduction)
    else:
        log_ratio_B2 = (logp_BR - ref_logp_BR).sum(axis=1).reshape(-1, 2)
        loss, pair_metrics = _pair_loss(settings, log_ratio_B2, groups.advantage_BN)
    return loss.total / denominator, {
        "loss/policy_avg": loss,
        **{f"rewards/{name}": metric for name, metric in pair_metrics.items()},
        "policy/entropy_avg": mean(entropy_BR, mask_BR),
        "policy/approxkl_avg": stats["approxkl"],
        "policy/clipfrac_avg": stats["clipfrac"],
        "policy/ref_kl_avg": stats["kl"],
        "val/ratio": stats["ratio"],
        "mismatch/logp_mean": sampler_gap(logp_BR, old_logp_BR, mask_BR),
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


def loss_denominator(groups: Groups, settings: PolicyGradient) -> jax.Array:
    """Return what the loss's mean is over: responses, tokens, or pairs whose scores differ."""
    if settings.loss in PAIRS:
        return jnp.maximum((groups.advantage_BN[:, 0] > groups.advantage_BN[:, 1]).sum(), 1)
    mask_BR = groups.mask_BNR.reshape(-1, groups.mask_BNR.shape[-1])
    reduction = "response_mean" if settings.loss == "reinforce" else settings.reduction
    return reduce_tokens(mask_BR.astype(jnp.float32), mask_BR, reduction=reduction).weight


# --- update: epochs x minibatches -----------------------------------------------------------------


class UpdateData(NamedTuple):
    """Hold what an update reads: the groups, and the frozen kernels under adapters ({}: none)."""

    groups: Groups
    frozen: Params


def update(
    settings: PolicyGradient,
    policy: LanguageModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    data: UpdateData,
    key: jax.Array,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state after num_epochs x num_mini_batches optimizer steps, and the metrics."""
    objective = Objective(
        partial(group_loss, settings, policy),
        partial(loss_denominator, settings=settings),
        settings.num_micro_batches,
    )
    no_dropout = jax.random.key(0)

    def step(state: TrainState, rows_b: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        groups = jax.tree.map(lambda x: x[rows_b], data.groups)
        grads, metrics = accumulated_gradients(
            objective, state.params, data.frozen, groups, no_dropout
        )
        counted = {"grad_norm": global_norm(grads), "done": jnp.asarray(True)}
        return apply_gradients(state, grads, optimizer), {**counted, **metrics}

    num_prompts = data.groups.prompt_BP.shape[0]
    rows = minibatch_rows(key, num_prompts, settings.num_epochs, settings.num_mini_batches)
    state, stacked = jax.lax.scan(step, state, rows)
    return state, summarise(stacked)


# --- run ------------------------------------------------------------------------------------------


def run(
    config: Config,
    workdir: str,
    monitors: Sequence[PolicyMonitor] = (),
    judges: Mapping[str, Judge] | None = None,
) -> None:
    """Train a policy on groups of its own responses.

    `judges` are those of the rewards that are judged on the host, by name.
    """
    settings, data = config.policy_gradient, config.data
    run = Run.open(config, workdir)
    check(settings, run.batch_shards)
    check_rewards(config.rewards)
    row_length = data.prompt_length + settings.response_length
    policy, rewards = load_parents(run, config.init.policy, config.rewards, row_length)
    networks = Networks(
        policy=LanguageModel(policy.model),
        rewards={name: ScalarModel(parent.model) for name, parent in rewards.items()},
    )
    key = jax.random.key(config.seed)
    frozen, trained = init_adapters(policy.params, config.lora, run_key(key, RunPurpose.ADAPTERS))
    # One placement, so that what the networks have in common lies in memory once.
    reward_params = {name: parent.params for name, parent in rewards.items()}
    reference, reward_params, frozen = run.place_frozen((policy.params, reward_params, frozen))
    num_updates = settings.total_episodes // settings.batch_size
    num_steps = num_updates * settings.num_epochs * settings.num_mini_batches
    optimizer = make_optimizer(config.optimizer, num_steps)
    extras = {"moments": Moments(start_moments(config.rewards), empty_moments())}
    state = run.place(init_state(trained, optimizer, extras))
    records = load(data.prompts, Prompt, split="train", data_dir=data.data_dir)
    host = HostRewards.of(judges or {}, records, run.tokenizer, run.mesh)
    prompts = prompt_batches(
        records,
        run.tokenizer,
        prompt_length=data.prompt_length,
        batch_size=settings.num_prompts,
        seed=config.seed,
    )
    arithmetic = f"{describe(settings)}; {describe_rewards(config.rewards)}"
    run.announce(config, {"policy": trained, "frozen": frozen}, arithmetic)

    # Four programs as in PPO, compiled for few numbers of packed rows; which ones is known only
    # from the samples.
    draw = jax.jit(partial(sample_texts, networks.policy, settings, StopTokens.of(run.tokenizer)))
    read = jax.jit(partial(read_samples, networks, settings.spec))
    collect_groups = jax.jit(partial(collect, settings, config.rewards))
    optimise = run.compile_update(partial(update, settings, networks.policy, optimizer), state)
    count_whole = jax.jit(
        lambda texts: rows_needed(texts.length_B, row_length), out_shardings=replicated(run.mesh)
    )
    count_fullest = jax.jit(
        partial(count_packed_rows, settings), out_shardings=replicated(run.mesh)
    )

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        batch = prompts.batch(step)
        index_B = batch.pop("index_B")
        full = combine(frozen, state.params)
        sampling_key = purpose_key(key, step, Purpose.SAMPLING)
        texts, samples = draw(full, run.shard(batch), sampling_key)
        whole = jax.device_get(count_whole(texts))
        packed = texts.packed(row_bucket(int(whole), settings.batch_size, run.batch_shards))
        readings = read(Parameters(full, reference, reward_params), packed)
        # The devices are busy reading while the host judges.
        readings = readings.with_scores(host.score(index_B, samples))
        moments = state.extras["moments"]
        groups, moments, score_B, metrics = collect_groups(texts, samples, readings, moments)
        repeats = settings.samples_per_prompt
        repeated = {name: np.repeat(x, repeats, axis=0) for name, x in batch.items()}
        run.show_samples(step, repeated, samples, score_B, readings.scores)

        update_key = purpose_key(key, step, Purpose.UPDATE)
        # The update permutes with the same key, so these are its micro-batches.
        fullest = jax.device_get(count_fullest(groups, jax.random.clone(update_key)))
        num_parts = settings.num_mini_batches * settings.num_micro_batches
        micro_batch = groups.advantage_BN.size // num_parts  # responses
        num_rows = row_bucket(int(fullest), micro_batch, run.batch_shards)
        groups = replace(groups, num_rows=num_rows)
        state, update_metrics = optimise(state, UpdateData(groups, frozen), update_key)
        state = replace(state, extras={**state.extras, "moments": moments})
        return state, {**metrics, **update_metrics, "episode": (step + 1) * settings.batch_size}

    def policy_of(state: TrainState) -> Params:
        return combine(frozen, state.params)

    lora = run.lora_link("policy", config.lora)
    meta = run.describe(CheckpointKind.LANGUAGE_MODEL, num_updates, policy.model, **lora)
    run.train(
        state,
        step_fn,
        meta,
        hooks=policy_hooks(monitors, networks.policy, run.tokenizer, policy_of),
        headline=("objective/scores", "objective/kl", "rollout/length", *headlines(monitors)),
    )


def check(settings: PolicyGradient, num_devices: int) -> None:
    """Refuse impossible arithmetic before anything compiles; the error names the field."""
    name = "policy_gradient"
    samples = settings.samples_per_prompt
    check_rollout(name, settings)
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
        settings.kl_in == "reward" or settings.loss == "clip",
        f"{name}.kl_in=loss belongs to loss=clip: "
        f"loss={settings.loss} has no place for it; use kl_in=reward",
    )
    require(
        settings.loss not in PAIRS or settings.kl_coef > 0,
        f"{name}.loss={settings.loss} needs {name}.kl_coef > 0: it is DPO's β",
    )


def count_packed_rows(settings: PolicyGradient, groups: Groups, key: jax.Array) -> jax.Array:
    """Return the packed rows that a micro-batch of the update with this key needs at most."""
    length_BN = groups.prompt_mask_BP.sum(axis=1)[:, None] + groups.mask_BNR.sum(axis=2)
    row_length = groups.prompt_BP.shape[1] + groups.mask_BNR.shape[2]
    return packed_rows_needed(length_BN, key, settings.passes, row_length)


def describe(settings: PolicyGradient) -> str:
    """Return the arithmetic of the run in one line."""
    return (
        f"{settings.total_episodes // settings.batch_size} updates x {settings.num_prompts} "
        f"prompts x {settings.samples_per_prompt} responses = {settings.total_episodes} episodes; "
        f"each update {settings.num_epochs} epochs x {settings.num_mini_batches} minibatches; "
        f"loss {settings.loss}"
    )
