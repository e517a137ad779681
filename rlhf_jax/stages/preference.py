"""Preference optimisation: train the policy on rankings directly; no reward model, no sampling (DPO, cDPO, IPO, KTO).

    r(x, y) = β log π(y|x) / π_ref(y|x)                    the policy is its own reward model; π_ref is where it starts

    dpo    -log σ(r_w - r_l) of every pair of a prompt; label_smoothing > 0 is cDPO           Rafailov 2023, Mitchell 2023
    ipo    ((r_w - r_l)/β - 1/(2β))²                                                          Azar 2023
    kto    λ_D (1 - σ(r - z)) of responses that win more of their pairs than they lose,
           λ_U (1 - σ(z - r)) of those that lose more; z = β max(0, mean of log π/π_ref over  Ethayarajh 2024
           prompts, each with a response that was given to another prompt)

What differs from PPO: the data are fixed, nobody sees what the policy says meanwhile. What differs from the reward stage: the
score of a response is r instead of a scalar head's; the rankings, their batches and the held-out accuracies are the same, so
the accuracies of both may be compared (Huang 2024, detail 19: r ranks less accurately than a reward model).

Left out on purpose: length normalisation, margins, an SFT term, dropout.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import Batches
from rlhf_jax.data.records import Comparison
from rlhf_jax.inference.scoring import packed_logps
from rlhf_jax.maths.masking import Mean, mean
from rlhf_jax.maths.preference import PairNorm, implicit_loss, kto_loss, majority, ranking_accuracy
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters
from rlhf_jax.stages.comparisons import (
    check_lengths,
    comparison_sources,
    make_validator,
    pack,
    read_rankings,
    weigh_prompts,
)
from rlhf_jax.stages.language import check_batches
from rlhf_jax.training.loop import Hook, PolicyMonitor, policy_hooks
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, MonitorConfig, Run
from rlhf_jax.training.updates import TrainState, init_state, make_supervised_update

Params = Any
Batch = dict[str, Any]


@dataclass(frozen=True)
class Init:
    """The supervised policy, which is also the reference; a path starting with ../ is relative to the workdir."""

    policy: str


@dataclass(frozen=True)
class Data:
    """Comparisons: ../STAGE for what that label stage collected, or a source."""

    data_dir: str
    comparisons: str


@dataclass(frozen=True)
class Preference:
    """The run."""

    loss: Literal["dpo", "ipo", "kto"]
    beta: float
    label_smoothing: float  # dpo: the share of labels taken to be wrong
    better_weight: float  # kto: λ_D
    worse_weight: float  # kto: λ_U
    num_epochs: float
    batch_size: int  # prompts
    num_micro_batches: int
    max_length: int  # of a rendered response
    row_length: int  # several responses are packed into a row
    max_candidates: int
    pair_norm: PairNorm
    eval_every: int


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["preference"]
    seed: int
    init: Init
    data: Data
    preference: Preference
    lora: LoraConfig
    monitor: MonitorConfig | None
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def check(settings: Preference, num_devices: int) -> None:
    """Refuse impossible settings before anything compiles."""
    check_batches("preference", settings.batch_size, settings.num_micro_batches, num_devices)
    require(settings.beta > 0, f"preference.beta={settings.beta}: expected more than 0")
    require(
        0 <= settings.label_smoothing < 0.5,
        f"preference.label_smoothing={settings.label_smoothing}: expected 0 or more, and less than a half",
    )
    require(
        settings.label_smoothing == 0 or settings.loss == "dpo",
        f"preference.label_smoothing={settings.label_smoothing} belongs to loss=dpo, not {settings.loss}",
    )
    require(
        settings.num_micro_batches == 1 or settings.loss != "kto",
        f"preference.num_micro_batches="
        f"{settings.num_micro_batches}: loss=kto needs 1, its reference point is a mean over the whole batch",
    )


def run(config: Config, workdir: str, monitors: Sequence[PolicyMonitor] = ()) -> None:
    """Train a policy on rankings."""
    run, settings = Run.open(config, workdir), config.preference
    check(settings, run.batch_shards)
    parent = run.parent("policy", config.init.policy, kind="language_model")
    check_lengths("preference", settings, parent.model.context_length)
    model, key = LanguageModel(parent.model), jax.random.key(config.seed)
    sources = comparison_sources(config.data.comparisons, run.workdir)
    rankings = _rankings(config, run, sources["train"], "train")
    num_updates = round(settings.num_epochs * rankings.num_examples / rankings.batch_size)
    batches = pack(
        rankings, settings, run, num_steps=num_updates, num_groups=settings.num_micro_batches
    )

    optimizer = make_optimizer(config.optimizer, num_updates)
    base, trained = init_adapters(parent.params, config.lora, jax.random.fold_in(key, 1 << 30))
    reference, base = run.place_frozen((parent.params, base))
    state = run.place_state(init_state(trained, optimizer))
    run.announce(
        config,
        {"policy": trained, "base": base},
        (
            f"{num_updates} updates x {settings.batch_size} prompts x up to {settings.max_candidates} responses = "
            f"{settings.num_epochs} epochs of {rankings.num_examples} rankings; loss {settings.loss}, β {settings.beta}"
        ),
    )
    update = run.compile_update(
        make_supervised_update(
            preference_loss(model, settings),
            partial(weigh, loss=settings.loss),
            optimizer,
            num_micro_batches=settings.num_micro_batches,
        ),
        state,
    )
    refer = jax.jit(partial(reference_logps, model), static_argnames="num_groups")

    def place(batch: Batch, num_groups: int = 1) -> Batch:
        placed = run.shard(batch)
        return {**placed, "ref_logp_BC": refer(reference, placed, num_groups=num_groups)}

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        batch = place(batches.batch(step), settings.num_micro_batches)
        return update(state, batch, jax.random.fold_in(key, step), base)

    held_out = {
        judge: _rankings(config, run, source, "validation")
        for judge, source in sources.items()
        if judge != "train"
    }
    measure = partial(measure_rankings, model, settings)
    validate = make_validator(
        measure, held_out, settings, run, place, lambda state: combine(base, state.params)
    )
    hooks = policy_hooks(monitors, model, run.tokenizer, lambda s: combine(base, s.params))
    run.train(
        state,
        step_fn,
        num_steps=num_updates,
        kind="language_model",
        model=parent.model,
        hooks=[Hook(settings.eval_every, validate), *hooks],
        extra=run.lora_link("policy", config.lora),
        headline=("loss", "rewards/accuracy", "validation/accuracy_heldout", "gold/total"),
    )


def reference_logps(
    model: LanguageModel, params: Params, batch: Batch, *, num_groups: int
) -> jax.Array:
    """logp_BC of a whole batch, whose `row_BC` counts within its micro-batch (`PackedComparisons`)."""
    group_B = jnp.arange(batch["row_BC"].shape[0]) % num_groups
    row_BC = batch["row_BC"] * num_groups + group_B[:, None]
    return packed_logps(
        model,
        params,
        batch["tokens_NT"],
        batch["segments_NT"],
        row_BC,
        batch["last_BC"],
        batch["length_BC"],
    )


def implicit_rewards(
    model: LanguageModel, params: Params, batch: Batch, *, beta: float
) -> jax.Array:
    """r_BC = β log π/π_ref of every response."""
    where = (batch["row_BC"], batch["last_BC"], batch["length_BC"])
    logp_BC = packed_logps(model, params, batch["tokens_NT"], batch["segments_NT"], *where)
    return beta * (logp_BC - batch["ref_logp_BC"])


def preference_loss(model: LanguageModel, settings: Preference) -> Callable[..., Any]:
    """The loss summed over prompts (kto: responses), divided by the whole batch's number of them."""

    def loss(
        params: Params, batch: Batch, weight: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Mean]]:
        del key
        reward_BC = implicit_rewards(model, params, batch, beta=settings.beta)
        nll, metrics = _objective(settings, reward_BC, batch)
        return nll.total / weight, {
            "loss": nll,
            **{f"rewards/{name}": pair for name, pair in metrics.items()},
        }

    return loss


def _objective(
    settings: Preference, reward_BC: jax.Array, batch: Batch
) -> tuple[Mean, dict[str, Mean]]:
    if settings.loss != "kto":
        return implicit_loss(
            reward_BC,
            batch["rank_BC"],
            batch["mask_BC"],
            loss=settings.loss,
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            pair_norm=settings.pair_norm,
        )
    foreign = mean(reward_BC[:, 0], batch["mask_BC"][:, 0])
    point = jnp.maximum(foreign.total / jnp.maximum(foreign.weight, 1.0), 0.0)
    rank_BC, mask_BC = _own(batch)
    better_BC, worse_BC = majority(rank_BC, mask_BC)
    weights = {"better_weight": settings.better_weight, "worse_weight": settings.worse_weight}
    nll = kto_loss(reward_BC[:, 1:], better_BC, worse_BC, point, **weights)
    accuracy = ranking_accuracy(reward_BC[:, 1:], rank_BC, mask_BC)
    return nll, {
        "accuracy": accuracy,
        "reference_point": foreign,
        "chosen_reward": mean(reward_BC[:, 1:], better_BC),
        "rejected_reward": mean(reward_BC[:, 1:], worse_BC),
    }


def measure_rankings(
    model: LanguageModel, settings: Preference, params: Params, batch: Batch
) -> dict[str, Mean]:
    """Loss and accuracy of the implicit reward."""
    nll, metrics = _objective(
        settings, implicit_rewards(model, params, batch, beta=settings.beta), batch
    )
    return {"accuracy": metrics["accuracy"], "loss": nll}


def weigh(batch: Batch, *, loss: str) -> jax.Array:
    """What the loss's mean is over: prompts with an untied pair; in kto responses with more wins than losses or fewer."""
    if loss != "kto":
        return weigh_prompts(batch)
    better_BC, worse_BC = majority(*_own(batch))
    return jnp.maximum((better_BC | worse_BC).sum(), 1)


def with_foreign(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Every comparison with a response to the next one's prompt in front: what kto's reference point is estimated on.

    It takes the first rank, so that a ranking in which all tie still looks like one.
    """
    following = [*comparisons[1:], *comparisons[:1]]
    strange = [other.responses[i % len(other.responses)] for i, other in enumerate(following)]
    return [
        replace(item, responses=(one, *item.responses), ranks=(item.ranks[0], *item.ranks))
        for item, one in zip(comparisons, strange, strict=True)
    ]


def _own(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """rank_BC and mask_BC without the foreign response in front."""
    return batch["rank_BC"][:, 1:], batch["mask_BC"][:, 1:]


def _rankings(config: Config, run: Run, source: str, split: str) -> Batches:
    settings = config.preference
    read = partial(
        read_rankings, [source], split, run=run, seed=config.seed, data_dir=config.data.data_dir
    )
    if settings.loss != "kto":
        return read(settings)
    return read(replace(settings, max_candidates=settings.max_candidates + 1), change=with_foreign)
