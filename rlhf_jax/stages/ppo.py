"""Proximal policy optimisation against a reward model, with a pretraining mix (PPO-ptx).

    for each update:
      1  sample responses from the policy on a batch of prompts                 (stages/rollouts.py)
      2  score them with the reward model; R_t = -β KL_t + 1[t = last] score
      3  advantages and returns by GAE; everything so far is frozen in a Rollout
      4  num_ppo_epochs x num_mini_batches: policy loss (clipped; or one of Table 1 of Schulman 2017) + vf_coef * clipped
         value loss + ptx_coef * language-model loss on pretraining documents (their gradients added up)
      5  the KL controller and the average of weights move once

Policy and value are separate networks (Stiennon 2020 App. G.1); the value network starts from the reward model. The reference
and the reward model are read, never trained. With lora.rank > 0 policy and value train adapters on a frozen base, which the
update takes as an argument; checkpoints that stand on the same base share it, and all four networks cost one copy of it.
Sources: Ouyang 2022 §3.5 and App. C.4, Stiennon 2020, Ziegler 2019, Schulman 2017.

Left out on purpose: truncated sampling (refused: the loss would need to replay the truncation), a shared trunk, dropout
(it makes the ratio differ from 1), asynchronous rollouts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import require, require_divides
from rlhf_jax.data.batches import prompt_batches
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.inference.decoding import SamplingSpec, truncates
from rlhf_jax.inference.packing import row_bucket, rows_needed
from rlhf_jax.inference.scoring import next_token_nll, predicted, response_logps, response_values
from rlhf_jax.maths.kl import k3, ppo2017_update, ziegler_update
from rlhf_jax.maths.losses import ppo_kl_penalty_loss, ppo_policy_loss, ppo_value_loss
from rlhf_jax.maths.masking import Mean, mean, value, whiten
from rlhf_jax.maths.returns import RunningMoments, empty_moments
from rlhf_jax.menagerie.monitor import Monitor, monitor_hooks
from rlhf_jax.models.heads import LanguageModel, ScalarModel, init_params
from rlhf_jax.models.lora import NOTHING_FROZEN, LoraConfig, combine, init_adapters
from rlhf_jax.stages.language import corpus_batches
from rlhf_jax.stages.rollout import (
    Frozen,
    Models,
    RewardRules,
    Rollout,
    make_rollout,
    sample_responses,
    sampler_gap,
)
from rlhf_jax.training.mesh import replicated
from rlhf_jax.training.optimizer import OptimizerConfig, ema_update, global_norm, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import (
    TrainState,
    accumulated_gradients,
    fullest_micro_batch,
    init_state,
    run_epochs,
)

Params = Any


@dataclass(frozen=True)
class Init:
    """Where the parameters come from; a path starting with ../ is relative to the workdir."""

    policy: str  # also the reference
    reward: str
    value: Literal["reward", "policy", "random"]


@dataclass(frozen=True)
class Data:
    """Prompts for the rollouts and documents for the pretraining mix."""

    data_dir: str
    prompts: str
    prompt_length: int
    documents: str


@dataclass(frozen=True)
class PPO:
    """Every detail of the algorithm, under TRL's names where TRL had one."""

    total_episodes: int
    batch_size: int  # episodes per update
    num_ppo_epochs: int
    num_mini_batches: int
    num_micro_batches: int  # per minibatch, see `block_micro_batches`: changes memory, not results
    response_length: int
    sampling_rows: (
        int  # responses sampled at once, a finished one makes room for a waiting one; 0: all
    )
    temperature: float
    top_k: int
    top_p: float
    kl_coef: float
    kl_controller: Literal["fixed", "adaptive"]
    kl_target: float  # nats per response
    kl_horizon: int  # episodes
    kl_estimator: Literal["k1", "k2", "k3"]
    gamma: float
    lam: float
    cliprange: float
    cliprange_value: float
    vf_coef: float
    entropy_coef: float
    policy_loss: Literal["clip", "none", "kl_fixed", "kl_adaptive"]  # Table 1 of Schulman 2017
    kl_penalty_coef: float  # β of KL(π_old ‖ π); where kl_adaptive starts
    kl_penalty_target: float  # nats per token that one update may move the policy
    missing_eos_penalty: float
    missing_eos_mode: Literal["replace", "subtract", "none"]
    score_clip: float
    score_normalisation: Literal["none", "running_std"]
    whiten_rewards: bool
    whiten_advantages: Literal["batch", "minibatch", "none"]
    target_kl: float  # stop an update's epochs when approxkl exceeds it; 0 = never
    ema_decay: float  # 0 = off; the average is what the checkpoint exports
    ptx_coef: float  # γ; multiplies the mean loss per token of the pretraining documents
    ptx_batch_size: int  # documents blocks per minibatch


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["ppo"]
    seed: int
    init: Init
    data: Data
    ppo: PPO
    lora: LoraConfig
    monitor: Monitor
    optimizer: OptimizerConfig
    value_optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig

    @property
    def num_updates(self) -> int:
        """Iterations of sample-then-optimise."""
        return self.ppo.total_episodes // self.ppo.batch_size


def check(config: Config, num_devices: int) -> None:
    """Refuse impossible arithmetic before anything compiles."""
    ppo = config.ppo
    require_divides(
        ppo.batch_size,
        ppo.total_episodes,
        "ppo.total_episodes by ppo.batch_size",
        "change one of the two",
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
        not truncates(sampling_spec(ppo)),
        f"ppo.top_k={ppo.top_k}, ppo.top_p={ppo.top_p}: truncated sampling would bias "
        "every ratio, because the loss does not replay the truncation; set top_k=0 and top_p=1.0",
    )
    require(
        ppo.sampling_rows >= 0,
        f"ppo.sampling_rows={ppo.sampling_rows}: expected a number of responses, or 0 for all",
    )
    require(
        ppo.temperature > 0, "ppo.temperature must be > 0: greedy rollouts have no log-probability"
    )
    require(
        ppo.kl_controller == "fixed" or (ppo.kl_target > 0 and ppo.kl_horizon > 0),
        "ppo.kl_controller=adaptive needs ppo.kl_target > 0 nats and ppo.kl_horizon > 0 episodes",
    )
    require(
        not ppo.policy_loss.startswith("kl") or ppo.kl_penalty_coef > 0,
        f"ppo.policy_loss={ppo.policy_loss} needs ppo.kl_penalty_coef > 0, not {ppo.kl_penalty_coef}",
    )
    require(
        ppo.policy_loss != "kl_adaptive" or ppo.kl_penalty_target > 0,
        f"ppo.policy_loss=kl_adaptive needs ppo.kl_penalty_target > 0 nats, not {ppo.kl_penalty_target}",
    )
    require(
        ppo.ptx_coef == 0 or ppo.ptx_batch_size > 0,
        f"ppo.ptx_coef={ppo.ptx_coef} needs ppo.ptx_batch_size > 0",
    )
    require_divides(
        block_micro_batches(ppo) * num_devices,
        ppo.ptx_batch_size if ppo.ptx_coef else 0,
        "ppo.ptx_batch_size by its micro-batches x devices",
        "change one of them",
    )
    require(
        not (config.lora.rank and config.init.value == "random"),
        "init.value=random with lora.rank > 0: adapters on random kernels learn little; use reward or policy",
    )


def block_micro_batches(ppo: PPO) -> int:
    """Into how many micro-batches a minibatch's pretraining blocks are cut: where there are several times as many blocks as
    episodes, so often `num_micro_batches`, so that as many rows are in memory at once."""
    times, rest = divmod(ppo.ptx_batch_size, ppo.batch_size // ppo.num_mini_batches)
    return ppo.num_micro_batches * (times if times and not rest else 1)


class Controllers(NamedTuple):
    """The few scalars that live as long as the run."""

    kl_coef: jax.Array
    kl_penalty_coef: jax.Array
    score_moments: RunningMoments


def run(config: Config, workdir: str) -> None:
    """Train a policy with PPO; leaves its parameters (their average with `ema_decay`) as the checkpoint."""
    run = Run.open(config, workdir)
    check(config, run.batch_shards)
    policy = run.parent("policy", config.init.policy, kind="language_model")
    reward = run.parent("reward", config.init.reward, kind="scalar_model")
    run.same_tokenizer("policy", "reward")
    tokenizer, spec = run.tokenizer, sampling_spec(config.ppo)
    need = config.data.prompt_length + config.ppo.response_length
    require(
        need <= policy.model.context_length,
        f"data.prompt_length + ppo.response_length = {need} exceeds the policy's context of "
        f"{policy.model.context_length}; shorten one of them",
    )

    models = Models(
        LanguageModel(policy.model),
        ScalarModel(_value_shape(config, policy, reward)),
        ScalarModel(reward.model),
    )
    key = jax.random.key(config.seed)
    base, params = _start(config, policy, _initial_value(config, models, policy, reward, key), key)
    # One placement, so that what reference, reward model, policy and value have in common lies in memory once.
    frozen, base = run.place_frozen((Frozen(policy.params, reward.params), base))
    optimizer = make_optimizers(config)
    state = run.place_state(initial_state(config, params, optimizer))

    prompts = prompt_batches(
        load(config.data.prompts, Prompt, split="train", data_dir=config.data.data_dir),
        tokenizer,
        prompt_length=config.data.prompt_length,
        batch_size=config.ppo.batch_size,
        seed=config.seed,
    )
    ptx = _ptx_stream(config, run, policy.model.context_length)
    run.announce(
        config,
        {"policy": params["policy"], "value": params["value"], "base": base},
        _arithmetic(config),
    )

    draw = jax.jit(
        partial(
            sample_responses,
            models.policy,
            spec=spec,
            response_length=config.ppo.response_length,
            max_rows=config.ppo.sampling_rows,
            stop_tokens=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
        )
    )
    judge = jax.jit(
        partial(make_rollout, models, spec=spec, rules=reward_rules(config.ppo)),
        static_argnames="num_rows",
    )
    optimise = cache(
        lambda rows: run.compile_update(
            make_update(models, optimizer, config.ppo, spec, num_rows=rows), state
        )
    )
    count_rows = jax.jit(partial(rows_needed_by, config.ppo), out_shardings=replicated(run.mesh))

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        step_key = jax.random.fold_in(key, step)
        batch = prompts.batch(step)
        placed = run.shard({name: batch[name] for name in ("prompt_BP", "prompt_mask_BP")})
        full = combine(base, state.params)
        samples = draw(full["policy"], placed, jax.random.fold_in(step_key, 0))
        kl_coef, _, moments = state.extras["controllers"]
        update_key = jax.random.fold_in(step_key, 1)
        lengths = (placed["prompt_mask_BP"], samples.length_B)
        needed = jax.device_get(
            count_rows(*lengths, jax.random.clone(update_key))
        )  # the same minibatches
        judge_rows = row_bucket(int(needed[0]), config.ppo.batch_size, run.batch_shards)
        update_rows = row_bucket(int(needed[1]), _micro_batch(config.ppo), run.batch_shards)
        rollout, moments, metrics = judge(
            full["value"], frozen, placed, samples, kl_coef, moments, num_rows=judge_rows
        )
        run.show_samples(step, batch, samples, rollout.score_B)
        blocks = run.shard_stack(ptx(step)) if ptx else {}
        state, update_metrics = optimise(update_rows)(state, (rollout, blocks), update_key, base)
        state = _after_update(state, config.ppo, metrics["objective/kl"], moments)
        return state, {**metrics, **update_metrics, "episode": (step + 1) * config.ppo.batch_size}

    run.train(
        state,
        step_fn,
        num_steps=config.num_updates,
        kind="language_model",
        model=policy.model,
        export=lambda s: s.extras["ema"] if config.ppo.ema_decay else s.params["policy"],
        hooks=monitor_hooks(
            config.monitor,
            models.policy,
            tokenizer,
            lambda s: combine(base, s.params)["policy"],
            data_dir=config.data.data_dir,
            seed=config.seed,
        ),
        extra=run.lora_link("policy", config.lora),
        headline=("objective/scores", "objective/kl", "rollout/length", "gold/total"),
    )


def make_update(
    models: Models,
    optimizer: optax.GradientTransformation,
    ppo: PPO,
    spec: SamplingSpec,
    *,
    num_rows: int = 0,
) -> Callable[[TrainState, tuple[Rollout, Any], jax.Array], tuple[TrainState, dict[str, Any]]]:
    """The pure update of one rollout: epochs x minibatches in one scan.

        (state, (rollout, blocks), key, frozen base) -> (state, metrics)

    The losses see the base joined with the state's parameters; by default there is no base. With `num_rows` > 0 the networks
    read each micro-batch packed into that many rows. With policy_loss kl_adaptive the penalty's coefficient moves at the end,
    by how far the whole update has moved the policy (Schulman 2017 §4).
    """

    def update(
        state: TrainState, data: tuple[Rollout, Any], key: jax.Array, base: Params = NOTHING_FROZEN
    ) -> tuple[TrainState, dict[str, Any]]:
        adaptive = ppo.policy_loss == "kl_adaptive"
        penalty_coef = state.extras["controllers"].kl_penalty_coef if adaptive else None
        gradients = make_gradients(
            models, ppo, spec, kl_penalty_coef=penalty_coef, num_rows=num_rows
        )
        rollout, blocks = data
        state, metrics = run_epochs(
            state,
            partial(gradients, base=base),
            optimizer,
            rollout,
            blocks,
            key,
            norms=_norms,
            num_epochs=ppo.num_ppo_epochs,
            num_mini_batches=ppo.num_mini_batches,
            target_kl=ppo.target_kl,
        )
        if adaptive:
            moved = _moved(models.policy, combine(base, state.params)["policy"], rollout, spec)
            controllers = state.extras["controllers"]
            coef = ppo2017_update(
                controllers.kl_penalty_coef, value(moved), target=ppo.kl_penalty_target
            )
            state = replace(
                state,
                extras={**state.extras, "controllers": controllers._replace(kl_penalty_coef=coef)},
            )
            metrics |= {"policy/kl_penalty_coef": coef, "policy/kl_moved": moved}
        return state, metrics

    return update


def _norms(grads: Params) -> dict[str, jax.Array]:
    return {f"grad_norm/{name}": global_norm(part) for name, part in grads.items()}


def _moved(model: LanguageModel, params: Params, rollout: Rollout, spec: SamplingSpec) -> Mean:
    """KL(π_old ‖ π) per token after an update, on the tokens that π_old sampled."""
    prompt, response = (
        (rollout.prompt_BP, rollout.prompt_mask_BP),
        (rollout.response_BR, rollout.mask_BR),
    )
    logp_BR, _ = response_logps(model, params, *prompt, *response, spec=spec)
    return mean(k3(rollout.logp_BR, logp_BR), rollout.mask_BR)


def make_gradients(
    models: Models,
    ppo: PPO,
    spec: SamplingSpec,
    *,
    kl_penalty_coef: jax.Array | None = None,
    num_rows: int = 0,
) -> Callable[..., tuple[Params, dict[str, Any]]]:
    """Gradients of L^CLIP + vf_coef L^VF - entropy_coef S + ptx_coef L^LM (Schulman 2017 eq. 9; Ouyang 2022 eq. 2).

    `policy_objective` has the other policy losses that may stand in L^CLIP's place.
    """

    def ptx_loss(params: Params, block: Any, weight: jax.Array, key: jax.Array) -> Any:
        nll_BT, valid_BT = next_token_nll(
            models.policy, params["policy"], block["tokens_BT"], block["segments_BT"]
        )
        nll = mean(nll_BT, valid_BT)
        return ppo.ptx_coef * nll.total / weight, {"ptx/loss": nll}

    def gradients(
        params: Params, minibatch: Rollout, block: Any, base: Params = NOTHING_FROZEN
    ) -> tuple[Params, dict[str, Any]]:
        def on_base(loss: Callable[..., Any]) -> Callable[..., Any]:
            return lambda trained, *rest: loss(combine(base, trained), *rest)

        key = jax.random.key(0)  # no dropout in PPO: no loss reads it
        if ppo.whiten_advantages == "minibatch":
            whitened_BR = whiten(minibatch.advantage_BR, minibatch.mask_BR, shift_mean=True)
            minibatch = minibatch._replace(advantage_BR=whitened_BR)
        settled = partial(
            minibatch_loss, models, ppo, spec, kl_penalty_coef=kl_penalty_coef, num_rows=num_rows
        )
        ppo_loss = on_base(settled)
        grads, metrics = accumulated_gradients(
            ppo_loss,
            lambda r: r.mask_BR.sum(),
            params,
            minibatch,
            key,
            num_micro_batches=ppo.num_micro_batches,
        )
        if ppo.ptx_coef:
            predicted_tokens = lambda blocks: predicted(blocks["segments_BT"]).sum()  # noqa: E731
            ptx_grads, ptx_metrics = accumulated_gradients(
                on_base(ptx_loss),
                predicted_tokens,
                {"policy": params["policy"]},
                block,
                key,
                num_micro_batches=block_micro_batches(ppo),
            )
            grads = {**grads, "policy": jax.tree.map(jnp.add, grads["policy"], ptx_grads["policy"])}
            metrics = {**metrics, **ptx_metrics}
        return grads, metrics

    return gradients


def minibatch_loss(
    models: Models,
    ppo: PPO,
    spec: SamplingSpec,
    params: Params,
    rollout: Rollout,
    weight: jax.Array,
    key: jax.Array,
    *,
    kl_penalty_coef: jax.Array | None = None,
    num_rows: int = 0,
) -> tuple[jax.Array, dict[str, Any]]:
    """The PPO loss of some rows of a rollout, divided by the whole minibatch's number of tokens.

    `kl_penalty_coef` is an adapted one; without it the config's holds.
    """
    del key
    prompt, response = (
        (rollout.prompt_BP, rollout.prompt_mask_BP),
        (rollout.response_BR, rollout.mask_BR),
    )
    logp_BR, entropy_BR = response_logps(
        models.policy, params["policy"], *prompt, *response, spec=spec, num_rows=num_rows
    )
    value_BR = response_values(models.value, params["value"], *prompt, *response, num_rows=num_rows)
    coef = ppo.kl_penalty_coef if kl_penalty_coef is None else kl_penalty_coef
    policy_loss, stats = policy_objective(ppo, logp_BR, rollout, coef)
    value_loss, value_stats = ppo_value_loss(
        value_BR,
        rollout.value_BR,
        rollout.return_BR,
        rollout.mask_BR,
        cliprange_value=ppo.cliprange_value,
    )
    entropy = mean(entropy_BR, rollout.mask_BR)
    total = policy_loss.total + ppo.vf_coef * value_loss.total - ppo.entropy_coef * entropy.total
    return total / weight, {
        "loss/policy_avg": policy_loss,
        "loss/value_avg": value_loss,
        "policy/entropy_avg": entropy,
        "policy/approxkl_avg": stats["approxkl"],
        "policy/clipfrac_avg": stats["clipfrac"],
        "val/ratio": stats["ratio"],
        "val/clipfrac_avg": value_stats["clipfrac"],
        "mismatch/logp_mean": sampler_gap(logp_BR, rollout.logp_BR, rollout.mask_BR),
    }


def policy_objective(
    ppo: PPO, logp_BR: jax.Array, rollout: Rollout, kl_penalty_coef: jax.Array | float
) -> tuple[Mean, dict[str, Mean]]:
    """The rows of Table 1 of Schulman 2017: clipped, neither clipped nor penalised, or penalised by β KL(π_old ‖ π)."""
    old = (rollout.logp_BR, rollout.advantage_BR, rollout.mask_BR)
    clipped, stats = ppo_policy_loss(
        logp_BR, *old, cliprange=ppo.cliprange if ppo.policy_loss == "clip" else math.inf
    )
    if ppo.policy_loss in ("clip", "none"):
        return clipped, stats
    kl_BR = k3(rollout.logp_BR, logp_BR)  # unbiased: π_old drew the tokens
    penalised, _ = ppo_kl_penalty_loss(
        logp_BR, rollout.logp_BR, kl_BR, *old[1:], beta=kl_penalty_coef
    )
    return penalised, stats


def rows_needed_by(
    ppo: PPO, prompt_mask_BP: jax.Array, length_B: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Packed rows that a rollout needs: read whole, and at most in one of the micro-batches of the update with this key."""
    row_length = prompt_mask_BP.shape[1] + ppo.response_length
    total_B = prompt_mask_BP.sum(axis=1) + length_B
    fullest = fullest_micro_batch(
        total_B,
        key,
        row_length=row_length,
        num_epochs=ppo.num_ppo_epochs,
        num_mini_batches=ppo.num_mini_batches,
        num_micro_batches=ppo.num_micro_batches,
    )
    return rows_needed(total_B, row_length), fullest


def _micro_batch(ppo: PPO) -> int:
    return ppo.batch_size // (ppo.num_mini_batches * ppo.num_micro_batches)


def _after_update(state: TrainState, ppo: PPO, kl: Mean, moments: RunningMoments) -> TrainState:
    # The rewards of this batch used β from before; the controller moves it for the next one (Ziegler 2019).
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
    extras = {
        **state.extras,
        "controllers": controllers._replace(kl_coef=kl_coef, score_moments=moments),
    }
    if ppo.ema_decay:
        extras["ema"] = ema_update(extras["ema"], state.params["policy"], decay=ppo.ema_decay)
    return replace(state, extras=extras)


def sampling_spec(ppo: PPO) -> SamplingSpec:
    return SamplingSpec(
        temperature=ppo.temperature, top_k=ppo.top_k, top_p=ppo.top_p, nucleus="holtzman"
    )


def reward_rules(ppo: PPO) -> RewardRules:
    return RewardRules(
        kl_estimator=ppo.kl_estimator,
        missing_eos_penalty=ppo.missing_eos_penalty,
        missing_eos_mode=ppo.missing_eos_mode,
        score_clip=ppo.score_clip,
        score_normalisation=ppo.score_normalisation,
        whiten_rewards=ppo.whiten_rewards,
        whiten_advantages=ppo.whiten_advantages,
        gamma=ppo.gamma,
        lam=ppo.lam,
    )


def make_optimizers(config: Config) -> optax.GradientTransformation:
    steps = config.num_updates * config.ppo.num_ppo_epochs * config.ppo.num_mini_batches
    parts = {
        "policy": make_optimizer(config.optimizer, steps),
        "value": make_optimizer(config.value_optimizer, steps),
    }
    return optax.multi_transform(parts, {"policy": "policy", "value": "value"})


def _value_shape(config: Config, policy: Any, reward: Any) -> Any:
    return reward.model if config.init.value == "reward" else policy.model


def _initial_value(
    config: Config, models: Models, policy: Any, reward: Any, key: jax.Array
) -> Params:
    if config.init.value == "reward":
        return reward.params  # head included (Ouyang 2022 App. C.4)
    fresh = init_params(models.value, jax.random.fold_in(key, 1 << 30))
    return fresh if config.init.value == "random" else {**fresh, "trunk": policy.params["trunk"]}


def _start(
    config: Config, policy: Any, value_params: Params, key: jax.Array
) -> tuple[Params, Params]:
    """What stays and what is trained, of policy and value."""
    parts = {"policy": policy.params, "value": value_params}
    started = {
        name: init_adapters(params, config.lora, jax.random.fold_in(key, (1 << 30) + 1 + i))
        for i, (name, params) in enumerate(parts.items())
    }
    base, trained = ({name: one[which] for name, one in started.items()} for which in (0, 1))
    return base, trained


def initial_state(
    config: Config, params: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    kl_coef, kl_penalty_coef = jnp.asarray(
        [config.ppo.kl_coef, config.ppo.kl_penalty_coef], jnp.float32
    )
    extras: dict[str, Any] = {"controllers": Controllers(kl_coef, kl_penalty_coef, empty_moments())}
    if config.ppo.ema_decay:
        extras["ema"] = params["policy"]
    return init_state(params, optimizer, extras)


def _ptx_stream(config: Config, run: Run, context_length: int) -> Callable[[int], Any] | None:
    """Pretraining blocks for every minibatch of an update, stacked along the scan's axis; its own stream and seed."""
    if not config.ppo.ptx_coef:
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

    def stream(step: int) -> Any:
        return jax.tree.map(lambda x: x.reshape(per_update, -1, *x.shape[1:]), batches.batch(step))

    return stream


def _arithmetic(config: Config) -> str:
    ppo = config.ppo
    rows = ppo.batch_size // ppo.num_mini_batches
    return (
        f"{config.num_updates} updates x {ppo.batch_size} episodes = {ppo.total_episodes} episodes; each update "
        f"{ppo.num_ppo_epochs} epochs x {ppo.num_mini_batches} minibatches of {rows} "
        f"({ppo.num_micro_batches} micro-batches of {rows // ppo.num_micro_batches}); "
        f"ptx {ppo.ptx_batch_size if ppo.ptx_coef else 0} blocks per minibatch, coefficient {ppo.ptx_coef}"
    )
