"""Train a policy with PPO against rewards, with a pretraining mix (PPO-ptx).

    for each update:
      sample         responses from the policy to a batch of prompts
      collect        scores, R_t = -β KL_t + 1[t = last] score, advantages and returns by GAE:
                     all that, frozen in a `Rollout`
      update         num_ppo_epochs x num_mini_batches of
        ppo_loss     clipped policy loss (or another of Table 1 of Schulman 2017)
                     + vf_coef * clipped value loss - entropy_coef * entropy
        ptx_loss     ptx_coef * the language model's loss on pretraining documents
      after_update   the KL controller and the average of weights move once

Rewards are reward models or any other judges (rewards.py). Policy and value are separate networks
(Stiennon 2020 App. G.1); the value network starts from a reward model, or from the policy where
there is none. The reference and reward models are read, never trained. With lora.rank > 0 policy
and value train adapters on frozen kernels, which the update takes as an argument; all networks then
cost one copy of the model. Sources: Ouyang 2022 §3.5 and App. C.4, Stiennon 2020, Ziegler
2019, Schulman 2017.

Left out on purpose: truncated sampling (refused: the loss would need to replay the truncation), a
shared trunk, dropout (it makes the ratio differ from 1), asynchronous rollouts.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import require, require_divides
from rlhf_jax.data.batches import prompt_batches
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.evaluation.judges import Judge
from rlhf_jax.inference.decoding import SamplingSpec, truncates
from rlhf_jax.inference.packing import Texts, row_bucket, rows_needed
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.inference.scoring import next_token_nll, predicted, response_logps, response_values
from rlhf_jax.maths.kl import k3, ppo2017_update, ziegler_update
from rlhf_jax.maths.losses import (
    explained_variance,
    ppo_kl_penalty_loss,
    ppo_policy_loss,
    ppo_value_loss,
)
from rlhf_jax.maths.masking import Mean, mean, value, whiten
from rlhf_jax.maths.returns import gae, token_rewards
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters
from rlhf_jax.stages.language import corpus_batches
from rlhf_jax.stages.rewards import (
    HostRewards,
    Reward,
    Rewards,
    ScoreMoments,
    check_rewards,
    checkpoint_paths,
    describe_rewards,
    reward_metrics,
    start_moments,
)
from rlhf_jax.stages.rollout import (
    Networks,
    Parameters,
    Readings,
    RolloutConfig,
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
from rlhf_jax.training.optimizer import OptimizerConfig, ema_update, global_norm, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, MonitorConfig, Parent, Run
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

# --- the config -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Init:
    """Name the parents; ../ is of the workdir, hf: and hub: of Hugging Face."""

    policy: str  # also the reference
    # Where the value network starts; reward: from the reward model, the first by name of several
    # (Ouyang 2022 App. C.4).
    value: Literal["reward", "policy", "random"]


@dataclass(frozen=True)
class Data:
    """Name prompts for the rollouts and documents for the pretraining mix."""

    data_dir: str
    prompts: str  # a source, see data/sources.py
    prompt_length: int  # tokens; longer prompts are left out and counted
    documents: str | None  # a source; read where ppo.ptx_coef > 0


@dataclass(frozen=True)
class PPO(RolloutConfig):
    """Set every detail of the algorithm; the names are TRL's where TRL has one."""

    num_ppo_epochs: int  # passes over a rollout; 1 in Ouyang 2022, 4 in Ziegler 2019
    num_mini_batches: int  # optimizer steps per epoch
    # Parts of a minibatch that are in memory at once: changes memory, not results.
    num_micro_batches: int
    top_k: int  # must be 0: truncated sampling is refused
    top_p: float  # must be 1
    kl_controller: Literal["fixed", "adaptive"]  # whether kl_coef moves (Ziegler 2019 §2.2)
    kl_target: float  # adaptive: nats per response that the controller steers to; 6 in Ziegler 2019
    kl_horizon: int  # adaptive: episodes in which it gets there; 10,000 in Ziegler 2019
    gamma: float  # discount per token; 1 in Ouyang 2022
    lam: float  # λ of GAE; 0.95 in Stiennon 2020
    cliprange: float  # ε of the ratio; 0.2 in Schulman 2017
    # How far a value may move from its old one, in units of reward (OpenAI baselines).
    cliprange_value: float
    vf_coef: float  # weight of the value loss; 0.1 in Ziegler 2019 (OpenAI baselines: 0.5)
    entropy_coef: float  # weight of the entropy bonus; 0 in all RLHF papers
    # Rows of Table 1 of Schulman 2017.
    policy_loss: Literal["clip", "none", "kl_fixed", "kl_adaptive"]
    kl_penalty_coef: float  # β of KL(π_old ‖ π) in kl_fixed; where kl_adaptive starts
    kl_penalty_target: float  # kl_adaptive: nats per token that one update may move the policy
    whiten_rewards: bool  # scale rewards to unit variance, mean kept (Ziegler 2019)
    whiten_advantages: Literal["batch", "minibatch", "none"]  # to mean 0 and variance 1, over what
    target_kl: float  # stop an update's epochs when approxkl, nats per token, exceeds it; 0: never
    # Of the average of weights that the checkpoint exports; 0: off; 0.992 in Ouyang 2022.
    ema_decay: float
    # γ of Ouyang 2022 eq. 2, multiplies the mean loss per token of pretraining documents; 0: PPO.
    ptx_coef: float
    ptx_batch_size: int  # blocks of documents per minibatch

    @property
    def spec(self) -> SamplingSpec:
        """Return how responses are sampled."""
        return SamplingSpec(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, nucleus="holtzman"
        )

    @property
    def passes(self) -> Passes:
        """Return how an update goes over its rollout."""
        return Passes(self.num_ppo_epochs, self.num_mini_batches, self.num_micro_batches)

    @property
    def ptx_micro_batches(self) -> int:
        """Return into how many micro-batches the pretraining blocks of a minibatch are cut.

        Where there are k times as many blocks as episodes it is k times `num_micro_batches`, so
        that as many rows are in memory at once.
        """
        times, rest = divmod(self.ptx_batch_size, self.batch_size // self.num_mini_batches)
        return self.num_micro_batches * (times if times and not rest else 1)


@dataclass(frozen=True)
class Config:
    """List exactly what this stage reads."""

    stage: Literal["ppo"]
    seed: int
    init: Init
    data: Data
    rewards: dict[str, Reward]  # their weighted sum is maximised
    ppo: PPO
    lora: LoraConfig
    monitor: MonitorConfig | None
    optimizer: OptimizerConfig  # of the policy
    value_optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig

    @property
    def num_updates(self) -> int:
        """Return how often the run samples and then optimises."""
        return self.ppo.total_episodes // self.ppo.batch_size


# --- collect: from samples to a rollout -----------------------------------------------------------


class Rollout(NamedTuple):
    """Hold responses with what was true of them when they were sampled; it never changes."""

    texts: Texts
    logp_BR: jax.Array
    value_BR: jax.Array
    advantage_BR: jax.Array
    return_BR: jax.Array
    score_B: jax.Array  # the weighted sum of what the judges gave
    stopped_B: jax.Array  # whether the response ended by itself


class Collected(NamedTuple):
    """Hold a rollout, and what the step needs besides: moments, KL per response, metrics."""

    rollout: Rollout
    score_moments: ScoreMoments
    kl: Mean
    metrics: dict[str, Any]


class Controllers(NamedTuple):
    """Hold the few scalars that live as long as the run."""

    kl_coef: jax.Array
    kl_penalty_coef: jax.Array
    score_moments: ScoreMoments


def collect(
    ppo: PPO,
    rewards: Rewards,
    texts: Texts,
    samples: Samples,
    readings: Readings,
    controllers: Controllers,
) -> Collected:
    """Turn samples and what was read of them into a rollout with advantages and returns."""
    scored, moments = score_samples(
        ppo, rewards, texts, samples, readings, controllers.score_moments
    )
    value_BR, mask_BR = readings.value_BR, texts.mask_BR
    assert value_BR is not None

    reward_BR = token_rewards(scored.score_B, scored.kl_BR, mask_BR, controllers.kl_coef)
    if ppo.whiten_rewards:
        reward_BR = whiten(reward_BR, mask_BR, shift_mean=False)
    advantage_BR, return_BR = gae(reward_BR, value_BR, mask_BR, gamma=ppo.gamma, lam=ppo.lam)
    if ppo.whiten_advantages == "batch":
        advantage_BR = whiten(advantage_BR, mask_BR, shift_mean=True)

    rollout = Rollout(
        texts=texts,
        logp_BR=samples.logp_BR,
        value_BR=value_BR,
        advantage_BR=advantage_BR,
        return_BR=return_BR,
        score_B=scored.raw_score_B,
        stopped_B=samples.stopped_B,
    )
    metrics = objective_metrics(texts, samples, scored, controllers.kl_coef)
    metrics |= reward_metrics(readings.scores)
    metrics |= {
        "val/mean": mean(value_BR, mask_BR),
        "val/var_explained": explained_variance(value_BR, return_BR, mask_BR),
        "returns/mean": mean(return_BR, mask_BR),
    }
    return Collected(rollout, moments, metrics["objective/kl"], metrics)


# --- loss: what one minibatch says ----------------------------------------------------------------


def ppo_loss(
    ppo: PPO,
    networks: Networks,
    params: Params,
    rollout: Rollout,
    num_tokens: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
    """Return the PPO loss of some rows, divided by the whole minibatch's number of tokens.

    L^CLIP + vf_coef L^VF - entropy_coef S, Schulman 2017 eq. 9, negated. With policy_loss "none"
    nothing is clipped; with "kl_fixed" and "kl_adaptive" β KL(π_old ‖ π) stands in the clip's place
    (eq. 8). `key` is not used: PPO has no dropout.
    """
    del key
    texts = rollout.texts
    mask_BR = texts.mask_BR
    logp_BR, entropy_BR = response_logps(networks.policy, params["policy"], texts, spec=ppo.spec)
    value_BR = response_values(networks.value, params["value"], texts)

    cliprange = ppo.cliprange if ppo.policy_loss == "clip" else math.inf
    policy_loss, stats = ppo_policy_loss(
        logp_BR, rollout.logp_BR, rollout.advantage_BR, mask_BR, cliprange=cliprange
    )
    if ppo.policy_loss in ("kl_fixed", "kl_adaptive"):
        kl_BR = k3(rollout.logp_BR, logp_BR)  # unbiased, because π_old drew the tokens
        policy_loss, _ = ppo_kl_penalty_loss(
            logp_BR, rollout.logp_BR, kl_BR, rollout.advantage_BR, mask_BR, beta=ppo.kl_penalty_coef
        )
    value_loss, value_stats = ppo_value_loss(
        value_BR, rollout.value_BR, rollout.return_BR, mask_BR, cliprange_value=ppo.cliprange_value
    )
    entropy = mean(entropy_BR, mask_BR)
    total = policy_loss.total + ppo.vf_coef * value_loss.total - ppo.entropy_coef * entropy.total
    return total / num_tokens, {
        "loss/policy_avg": policy_loss,
        "loss/value_avg": value_loss,
        "policy/entropy_avg": entropy,
        "policy/approxkl_avg": stats["approxkl"],
        "policy/clipfrac_avg": stats["clipfrac"],
        "val/ratio": stats["ratio"],
        "val/clipfrac_avg": value_stats["clipfrac"],
        "mismatch/logp_mean": sampler_gap(logp_BR, rollout.logp_BR, mask_BR),
    }


def ptx_loss(
    ppo: PPO, networks: Networks, params: Params, blocks: Any, num_tokens: jax.Array, key: jax.Array
) -> tuple[jax.Array, dict[str, Any]]:
    """Return ptx_coef times the loss on pretraining blocks (γ in Ouyang 2022 eq. 2)."""
    del key
    nll_BT, valid_BT = next_token_nll(
        networks.policy, params["policy"], blocks["tokens_BT"], blocks["segments_BT"]
    )
    nll = mean(nll_BT, valid_BT)
    return ppo.ptx_coef * nll.total / num_tokens, {"ptx/loss": nll}


# --- update: epochs x minibatches -----------------------------------------------------------------


class UpdateData(NamedTuple):
    """Hold what an update reads; blocks are stacked by minibatch, {} stands for none."""

    rollout: Rollout
    blocks: dict[str, jax.Array]
    frozen: Params


def update(
    ppo: PPO,
    networks: Networks,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    data: UpdateData,
    key: jax.Array,
) -> tuple[TrainState, dict[str, Any]]:
    """Return the state after epochs x minibatches of optimizer steps on a rollout, and metrics.

    Once a minibatch's approxkl exceeds `target_kl` (0: never), the remaining ones leave the state
    as it is. With policy_loss kl_adaptive the penalty's coefficient moves at the end, by how far
    the whole update has moved the policy (Schulman 2017 §4).
    """
    if ppo.policy_loss == "kl_adaptive":
        coef: Any = state.extras["controllers"].kl_penalty_coef
        ppo = replace(ppo, kl_penalty_coef=coef)  # what the losses below see is an array
    episodes = Objective(
        partial(ppo_loss, ppo, networks),
        lambda rollout: rollout.texts.mask_BR.sum(),
        ppo.num_micro_batches,
    )
    documents = Objective(
        partial(ptx_loss, ppo, networks),
        lambda blocks: predicted(blocks["segments_BT"]).sum(),
        ppo.ptx_micro_batches,
    )
    no_dropout = jax.random.key(0)

    def step(carry: tuple[TrainState, jax.Array], inputs: Any) -> Any:
        state, stopped = carry
        rows_b, blocks = inputs
        rollout = jax.tree.map(lambda x: x[rows_b], data.rollout)
        if ppo.whiten_advantages == "minibatch":
            whitened_BR = whiten(rollout.advantage_BR, rollout.texts.mask_BR, shift_mean=True)
            rollout = rollout._replace(advantage_BR=whitened_BR)
        grads, metrics = accumulated_gradients(
            episodes, state.params, data.frozen, rollout, no_dropout
        )
        if ppo.ptx_coef:
            policy = {"policy": state.params["policy"]}
            ptx_grads, ptx_metrics = accumulated_gradients(
                documents, policy, data.frozen, blocks, no_dropout
            )
            summed = jax.tree.map(jnp.add, grads["policy"], ptx_grads["policy"])
            grads = {**grads, "policy": summed}
            metrics = {**metrics, **ptx_metrics}
        new_state = apply_gradients(state, grads, optimizer)
        norms = {f"grad_norm/{name}": global_norm(part) for name, part in grads.items()}
        counted: dict[str, Any] = {**metrics, **norms, "done": ~stopped}
        if ppo.target_kl > 0:
            new_state = jax.tree.map(partial(jnp.where, stopped), state, new_state)
            stopped |= value(metrics["policy/approxkl_avg"]) > ppo.target_kl
        return (new_state, stopped), counted

    rows = minibatch_rows(key, ppo.batch_size, ppo.num_ppo_epochs, ppo.num_mini_batches)
    (state, _), stacked = jax.lax.scan(step, (state, jnp.asarray(False)), (rows, data.blocks))
    metrics = summarise(stacked)
    if ppo.policy_loss == "kl_adaptive":
        state, moved = _adapt_penalty(ppo, networks, state, data)
        metrics |= moved
    return state, metrics


def _adapt_penalty(
    ppo: PPO, networks: Networks, state: TrainState, data: UpdateData
) -> tuple[TrainState, dict[str, Any]]:
    """Move the penalty's coefficient by how far the update moved the policy, per token."""
    params = combine(data.frozen, state.params)["policy"]
    unpacked = data.rollout.texts.packed(0)
    logp_BR, _ = response_logps(networks.policy, params, unpacked, spec=ppo.spec)
    moved = mean(k3(data.rollout.logp_BR, logp_BR), unpacked.mask_BR)
    controllers = state.extras["controllers"]
    coef = ppo2017_update(controllers.kl_penalty_coef, value(moved), target=ppo.kl_penalty_target)
    controllers = controllers._replace(kl_penalty_coef=coef)
    state = replace(state, extras={**state.extras, "controllers": controllers})
    return state, {"policy/kl_penalty_coef": coef, "policy/kl_moved": moved}


def after_update(ppo: PPO, state: TrainState, kl: Mean, moments: ScoreMoments) -> TrainState:
    """Move the KL controller and the average of weights once.

    The rewards of this batch used β from before (Ziegler 2019).
    """
    controllers = state.extras["controllers"]
    kl_coef = controllers.kl_coef
    if ppo.kl_controller == "adaptive":
        kl_coef = ziegler_update(
            kl_coef,
            value(kl),
            target=ppo.kl_target,
            horizon=ppo.kl_horizon,
            num_episodes=ppo.batch_size,
        )
    controllers = controllers._replace(kl_coef=kl_coef, score_moments=moments)
    extras = {**state.extras, "controllers": controllers}
    if ppo.ema_decay:
        extras["ema"] = ema_update(extras["ema"], state.params["policy"], decay=ppo.ema_decay)
    return replace(state, extras=extras)


# --- run ------------------------------------------------------------------------------------------


def run(
    config: Config,
    workdir: str,
    monitors: Sequence[PolicyMonitor] = (),
    judges: Mapping[str, Judge] | None = None,
) -> None:
    """Train a policy with PPO; with `ema_decay` the checkpoint has the average of its weights.

    `judges` are those of the rewards that are judged on the host, by name.
    """
    ppo, data = config.ppo, config.data
    run = Run.open(config, workdir)
    check(config, run.batch_shards)
    policy, rewards = load_parents(
        run, config.init.policy, config.rewards, data.prompt_length + ppo.response_length
    )
    value_parent = next(iter(rewards.values())) if config.init.value == "reward" else policy
    networks = Networks(
        policy=LanguageModel(policy.model),
        rewards={name: ScalarModel(parent.model) for name, parent in rewards.items()},
        value=ScalarModel(value_parent.model),
    )
    key = jax.random.key(config.seed)
    frozen, trained = init_trained(config, networks, policy, value_parent, key)
    # One placement, so that what the networks have in common lies in memory once.
    reward_params = {name: parent.params for name, parent in rewards.items()}
    reference, reward_params, frozen = run.place_frozen((policy.params, reward_params, frozen))
    optimizer = make_optimizers(config)
    state = run.place(initial_state(config, trained, optimizer))

    records = load(data.prompts, Prompt, split="train", data_dir=data.data_dir)
    host = HostRewards.of(judges or {}, records, run.tokenizer, run.mesh)
    prompts = prompt_batches(
        records,
        run.tokenizer,
        prompt_length=data.prompt_length,
        batch_size=ppo.batch_size,
        seed=config.seed,
    )
    documents = ptx_blocks(config, run, policy.model.context_length)
    run.announce(config, {**trained, "frozen": frozen}, describe(config))

    # Four programs: sampling, what networks read, what follows from it, the update. The second and
    # the last are compiled once for every number of packed rows that the texts of a batch need,
    # which is known only when they have been sampled.
    draw = jax.jit(partial(sample_texts, networks.policy, ppo, StopTokens.of(run.tokenizer)))
    read = jax.jit(partial(read_samples, networks, ppo.spec))
    collect_rollout = jax.jit(partial(collect, ppo, config.rewards))
    optimise = run.compile_update(partial(update, ppo, networks, optimizer), state)
    count_rows = jax.jit(partial(count_packed_rows, ppo), out_shardings=replicated(run.mesh))

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        batch = prompts.batch(step)
        placed = run.shard({name: batch[name] for name in ("prompt_BP", "prompt_mask_BP")})
        full = combine(frozen, state.params)
        sampling_key = purpose_key(key, step, Purpose.SAMPLING)
        texts, samples = draw(full["policy"], placed, sampling_key)
        update_key = purpose_key(key, step, Purpose.UPDATE)
        # The update permutes with the same key, so these are its micro-batches. Reading two
        # integers waits for the sampler: the price of not reading padding, which is most of a batch
        # (LOG.md).
        whole, fullest = jax.device_get(count_rows(texts, jax.random.clone(update_key)))
        packed = texts.packed(row_bucket(int(whole), ppo.batch_size, run.batch_shards))
        params = Parameters(full["policy"], reference, reward_params, full["value"])
        readings = read(params, packed)
        # The devices are busy reading while the host judges.
        readings = readings.with_scores(host.score(batch["index_B"], samples))
        collected = collect_rollout(texts, samples, readings, state.extras["controllers"])
        run.show_samples(step, batch, samples, collected.rollout.score_B, readings.scores)

        micro_batch = ppo.batch_size // (ppo.num_mini_batches * ppo.num_micro_batches)
        num_rows = row_bucket(int(fullest), micro_batch, run.batch_shards)
        rollout = collected.rollout._replace(texts=texts.packed(num_rows))
        blocks = run.shard_stack(documents(step)) if documents else {}
        state, metrics = optimise(state, UpdateData(rollout, blocks, frozen), update_key)
        state = after_update(ppo, state, collected.kl, collected.score_moments)
        episode = (step + 1) * ppo.batch_size
        return state, {**collected.metrics, **metrics, "episode": episode}

    def policy_of(state: TrainState) -> Params:
        return combine(frozen, state.params)["policy"]

    lora = run.lora_link("policy", config.lora)
    meta = run.describe(CheckpointKind.LANGUAGE_MODEL, config.num_updates, policy.model, **lora)
    run.train(
        state,
        step_fn,
        meta,
        export=lambda s: s.extras["ema"] if ppo.ema_decay else s.params["policy"],
        hooks=policy_hooks(monitors, networks.policy, run.tokenizer, policy_of),
        headline=("objective/scores", "objective/kl", "rollout/length", *headlines(monitors)),
    )


def check(config: Config, num_devices: int) -> None:
    """Refuse impossible arithmetic before anything compiles; the error names the field."""
    ppo = config.ppo
    check_rollout("ppo", ppo)
    check_rewards(config.rewards)
    require(
        config.init.value != "reward" or bool(checkpoint_paths(config.rewards)),
        "init.value=reward: there is no reward model among config.rewards "
        f"({', '.join(reward.source for reward in config.rewards.values())}); use policy or random",
    )
    require_divides(
        ppo.num_mini_batches,
        ppo.batch_size,
        "ppo.batch_size by ppo.num_mini_batches",
        "choose a divisor",
    )
    rows = ppo.batch_size // ppo.num_mini_batches
    require_divides(
        ppo.num_micro_batches, rows, "minibatch by ppo.num_micro_batches", "choose a divisor"
    )
    require_divides(
        num_devices,
        rows // ppo.num_micro_batches,
        "micro-batch by devices",
        "raise ppo.batch_size or use fewer devices",
    )
    require(
        not truncates(ppo.spec),
        f"ppo.top_k={ppo.top_k}, ppo.top_p={ppo.top_p}: truncated sampling would bias every ratio, "
        "because the loss does not replay the truncation; set top_k=0 and top_p=1.0",
    )
    require(
        ppo.kl_controller == "fixed" or (ppo.kl_target > 0 and ppo.kl_horizon > 0),
        "ppo.kl_controller=adaptive needs ppo.kl_target > 0 nats and ppo.kl_horizon > 0 episodes",
    )
    require(
        not ppo.policy_loss.startswith("kl") or ppo.kl_penalty_coef > 0,
        f"ppo.policy_loss={ppo.policy_loss} needs ppo.kl_penalty_coef > 0, not "
        f"{ppo.kl_penalty_coef}",
    )
    require(
        ppo.policy_loss != "kl_adaptive" or ppo.kl_penalty_target > 0,
        "ppo.policy_loss=kl_adaptive needs ppo.kl_penalty_target > 0 nats, not "
        f"{ppo.kl_penalty_target}",
    )
    require(
        ppo.ptx_coef == 0 or ppo.ptx_batch_size > 0,
        f"ppo.ptx_coef={ppo.ptx_coef} needs ppo.ptx_batch_size > 0",
    )
    require(
        ppo.ptx_coef == 0 or config.data.documents is not None,
        f"ppo.ptx_coef={ppo.ptx_coef} needs data.documents, a source of pretraining documents",
    )
    require_divides(
        ppo.ptx_micro_batches * num_devices,
        ppo.ptx_batch_size if ppo.ptx_coef else 0,
        "ppo.ptx_batch_size by its micro-batches x devices",
        "change one of them",
    )
    require(
        not (config.lora.rank and config.init.value == "random"),
        "init.value=random with lora.rank > 0: adapters on random kernels learn little; use reward "
        "or policy",
    )


def init_trained(
    config: Config, networks: Networks, policy: Parent, value: Parent, key: jax.Array
) -> tuple[Params, Params]:
    """Return what stays frozen and what is trained, of policy and value."""
    if config.init.value == "reward":
        value_params = value.params  # head included (Ouyang 2022 App. C.4)
    else:
        value_params = init_params(networks.value, run_key(key, RunPurpose.VALUE_MODEL))
        if config.init.value == "policy":
            value_params = {**value_params, "trunk": policy.params["trunk"]}
    policy_parts = init_adapters(
        policy.params, config.lora, run_key(key, RunPurpose.POLICY_ADAPTERS)
    )
    value_parts = init_adapters(value_params, config.lora, run_key(key, RunPurpose.VALUE_ADAPTERS))
    frozen = {"policy": policy_parts[0], "value": value_parts[0]}
    trained = {"policy": policy_parts[1], "value": value_parts[1]}
    return frozen, trained


def make_optimizers(config: Config) -> optax.GradientTransformation:
    """Return one optimizer for the policy and one for the value network, side by side."""
    steps = config.num_updates * config.ppo.num_ppo_epochs * config.ppo.num_mini_batches
    parts = {
        "policy": make_optimizer(config.optimizer, steps),
        "value": make_optimizer(config.value_optimizer, steps),
    }
    return optax.multi_transform(parts, {"policy": "policy", "value": "value"})


def initial_state(
    config: Config, params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state before the first update, with its controllers."""
    coefs = jnp.asarray([config.ppo.kl_coef, config.ppo.kl_penalty_coef], jnp.float32)
    moments = start_moments(config.rewards)
    extras: dict[str, Any] = {"controllers": Controllers(coefs[0], coefs[1], moments)}
    if config.ppo.ema_decay:
        extras["ema"] = params["policy"]
    return init_state(params, optimizer, extras)


def count_packed_rows(ppo: PPO, texts: Texts, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the packed rows of a whole rollout, and of the fullest micro-batch of its update."""
    row_length = texts.prompt_BP.shape[1] + texts.response_BR.shape[1]
    fullest = packed_rows_needed(texts.length_B, key, ppo.passes, row_length)
    return rows_needed(texts.length_B, row_length), fullest


def ptx_blocks(
    config: Config, run: Run, context_length: int
) -> Callable[[int], dict[str, Any]] | None:
    """Return pretraining blocks by step, stacked over minibatches, from a seed of their own."""
    if not config.ppo.ptx_coef or config.data.documents is None:
        return None
    per_update = config.ppo.num_ppo_epochs * config.ppo.num_mini_batches
    batches = corpus_batches(
        run,
        config.data.documents,
        "train",
        data_dir=config.data.data_dir,
        context_length=context_length,
        batch_size=config.ppo.ptx_batch_size * per_update,
        seed=config.seed + 1,
        mask_documents=False,
    )

    def blocks(step: int) -> dict[str, Any]:
        return {
            name: x.reshape(per_update, -1, *x.shape[1:]) for name, x in batches.batch(step).items()
        }

    return blocks


def describe(config: Config) -> str:
    """Return the arithmetic of the run in one line."""
    ppo = config.ppo
    rows = ppo.batch_size // ppo.num_mini_batches
    return (
        f"{config.num_updates} updates x {ppo.batch_size} episodes = {ppo.total_episodes} "
        f"episodes; each update {ppo.num_ppo_epochs} epochs x {ppo.num_mini_batches} minibatches "
        f"of {rows} ({ppo.num_micro_batches} micro-batches of {rows // ppo.num_micro_batches}); "
        f"ptx {ppo.ptx_batch_size if ppo.ptx_coef else 0} blocks per minibatch, coefficient "
        f"{ppo.ptx_coef}; {describe_rewards(config.rewards)}"
    )
