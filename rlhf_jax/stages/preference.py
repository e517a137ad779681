"""Train a policy on rankings directly, without a reward model or sampling (DPO, cDPO, IPO, KTO).

    r(x, y) = β log π(y|x) / π_ref(y|x)        the policy is its own reward model

    dpo    -log σ(r_w - r_l) of every pair; label_smoothing > 0 is cDPO            Rafailov 2023
    plackett_luce   -log of the probability of a prompt's whole order      Rafailov 2023 App. A.3
    ipo    ((r_w - r_l)/β - 1/(2β))²                                                   Azar 2023
    kto    λ_D (1 - σ(r - z)) of responses with a thumb up, or that win more of their pairs than
           they lose; λ_U (1 - σ(z - r)) of those with a thumb down, or that lose more;
           z = β max(0, mean log π/π_ref) of prompts with responses that were given to other
           prompts                                                            Ethayarajh 2024

What differs from PPO: the data are fixed, nobody sees what the policy says meanwhile. What differs
from the reward stage: the score of a response is r instead of a scalar head's; the rankings, their
batches and the held-out accuracies are the same, so the accuracies of both may be compared (Huang
2024, detail 19: r ranks less accurately than a reward model). Of single replies with a thumb the
accuracy is the share whose r is on the thumb's side of z.

Left out on purpose: length normalisation, margins, an SFT term, dropout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import Batches
from rlhf_jax.data.records import Comparison, Thumb
from rlhf_jax.inference.scoring import packed_logps
from rlhf_jax.maths.masking import Mean, mean, merge
from rlhf_jax.maths.preference import implicit_loss, kto_loss, majority, ranking_accuracy
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters
from rlhf_jax.stages.comparisons import (
    TRAIN,
    ComparisonConfig,
    Reader,
    check_lengths,
    comparison_sources,
    measure_held_out,
    prompts_with_pairs,
)
from rlhf_jax.stages.language import check_batches
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.keys import RunPurpose, run_key, step_key
from rlhf_jax.training.loop import Hook, PolicyMonitor, headlines, policy_hooks
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, MonitorConfig, Run
from rlhf_jax.training.updates import Objective, TrainState, init_state, supervised_update

Params = Any
Batch = dict[str, Any]
THUMB_UP, THUMB_DOWN, NO_RANK = 1, 2, 3  # ranks of a response without others


@dataclass(frozen=True)
class Init:
    """Name the supervised policy, which is also the reference."""

    policy: str


@dataclass(frozen=True)
class Data:
    """Name the rankings: ../STAGE for what that label stage collected, or a source."""

    data_dir: str
    comparisons: str  # with loss=kto also prompt + completion + label, single replies with a thumb


@dataclass(frozen=True)
class Preference(ComparisonConfig):
    """Set every detail of the training."""

    loss: Literal["dpo", "plackett_luce", "ipo", "kto"]
    beta: float  # β: how much a nat of log-ratio is worth
    label_smoothing: float  # dpo: the share of labels taken to be wrong
    better_weight: float  # kto: λ_D
    worse_weight: float  # kto: λ_U


@dataclass(frozen=True)
class Config:
    """List exactly what this stage reads."""

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
    """Refuse impossible settings before anything compiles, naming the field and its value."""
    check_batches("preference", settings.batch_size, settings.num_micro_batches, num_devices)
    require(settings.beta > 0, f"preference.beta={settings.beta}: expected more than 0")
    require(
        0 <= settings.label_smoothing < 0.5,
        f"preference.label_smoothing={settings.label_smoothing}: expected 0 or more, and less than "
        "a half",
    )
    require(
        settings.label_smoothing == 0 or settings.loss == "dpo",
        f"preference.label_smoothing={settings.label_smoothing} belongs to loss=dpo, not "
        f"{settings.loss}",
    )
    require(
        settings.num_micro_batches == 1 or settings.loss != "kto",
        f"preference.num_micro_batches={settings.num_micro_batches}: loss=kto needs 1, its "
        "reference point is a mean over the whole batch",
    )


def run(config: Config, workdir: str, monitors: Sequence[PolicyMonitor] = ()) -> None:
    """Train a policy on rankings."""
    run = Run.open(config, workdir)
    settings, data = config.preference, config.data
    check(settings, run.batch_shards)
    parent = run.parent("policy", config.init.policy, kind=CheckpointKind.LANGUAGE_MODEL)
    check_lengths("preference", settings, parent.model.context_length)
    model = LanguageModel(parent.model)
    key = jax.random.key(config.seed)

    layout = settings
    if settings.loss == "kto":  # a foreign response more to every prompt
        layout = replace(settings, max_candidates=settings.max_candidates + 1)
    reader = Reader(run, layout, data.data_dir, config.seed)
    sources = comparison_sources(data.comparisons, run.workdir)
    rankings = read_rankings(settings, reader, sources[TRAIN], TRAIN)
    num_updates = round(settings.num_epochs * rankings.num_examples / rankings.batch_size)
    batches = reader.pack(rankings, num_updates, settings.num_micro_batches)

    optimizer = make_optimizer(config.optimizer, num_updates)
    frozen, trained = init_adapters(parent.params, config.lora, run_key(key, RunPurpose.ADAPTERS))
    reference, frozen = run.place_frozen((parent.params, frozen))
    state = run.place(init_state(trained, optimizer))
    run.announce(
        config,
        {"policy": trained, "frozen": frozen},
        f"{num_updates} updates x {settings.batch_size} prompts x up to {settings.max_candidates} "
        f"responses = {settings.num_epochs} epochs of {rankings.num_examples} rankings; loss "
        f"{settings.loss}, β {settings.beta}",
    )
    objective = Objective(
        partial(preference_loss, settings, model),
        partial(loss_denominator, settings),
        settings.num_micro_batches,
    )
    update = run.compile_update(partial(supervised_update, objective, optimizer), state)
    read_reference = jax.jit(partial(reference_logps, model), static_argnames="num_groups")

    def place(batch: Batch, num_groups: int = 1) -> Batch:
        placed = run.shard(batch)
        logp_BC = read_reference(reference, placed, num_groups=num_groups)
        return {**placed, "ref_logp_BC": logp_BC}

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        batch = place(batches.batch(step), settings.num_micro_batches)
        return update(state, batch, step_key(key, step), frozen)

    measure = jax.jit(partial(measure_rankings, settings, model))
    held_out = {
        judge: [
            place(batch)
            for batch in reader.in_order(read_rankings(settings, reader, source, "validation"))
        ]
        for judge, source in sources.items()
        if judge != TRAIN
    }

    def validate(state: TrainState, step: int) -> dict[str, Any]:
        return dict(measure_held_out(measure, held_out, combine(frozen, state.params)))

    def policy_of(state: TrainState) -> Params:
        return combine(frozen, state.params)

    lora = run.lora_link("policy", config.lora)
    meta = run.describe(CheckpointKind.LANGUAGE_MODEL, num_updates, parent.model, **lora)
    run.train(
        state,
        step_fn,
        meta,
        hooks=[
            Hook(settings.eval_every, validate),
            *policy_hooks(monitors, model, run.tokenizer, policy_of),
        ],
        headline=(
            *("loss", "rewards/accuracy"),
            *(f"validation/accuracy_{judge}" for judge in held_out),
            *headlines(monitors),
        ),
    )


def read_rankings(settings: Preference, reader: Reader, source: str, split: str) -> Batches:
    """Return the rankings of a source as batches; for kto each has a foreign response in front."""
    if settings.loss != "kto":
        return reader.batches(reader.load([source], split), split)
    thumbs = reader.load_thumbs(source, split)
    if thumbs is None:
        return reader.batches(with_foreign(reader.load([source], split)), split)
    num_up = sum(thumb.label for thumb in thumbs)
    print(f"   {source} {split}: {num_up} thumbs up, {len(thumbs) - num_up} down", flush=True)
    return reader.batches(thumbs_with_foreign(thumbs), split)


def thumbs_with_foreign(thumbs: Sequence[Thumb]) -> list[Comparison]:
    """Return every reply alone behind the reply to the next prompt, with rank 1 for a thumb up.

    A thumb down is rank 2. The foreign reply has a rank that neither has, as no pair is meant.

    Raises:
        ValueError: for fewer than two thumbs: none is foreign to the other.
    """
    if len(thumbs) < 2:
        raise ValueError(f"comparisons: {len(thumbs)} thumb, expected at least 2 for kto")
    following = [*thumbs[1:], *thumbs[:1]]
    return [
        Comparison(
            thumb.messages,
            (other.completion, thumb.completion),
            (NO_RANK, THUMB_UP if thumb.label else THUMB_DOWN),
            thumb.metadata,
        )
        for thumb, other in zip(thumbs, following, strict=True)
    ]


def with_foreign(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return every comparison with a response to the next one's prompt in front of its own.

    KTO estimates its reference point on it. It takes the first rank, so that a ranking in which
    all tie still looks like one.
    """
    following = [*comparisons[1:], *comparisons[:1]]
    foreign = [other.responses[i % len(other.responses)] for i, other in enumerate(following)]
    return [
        replace(
            comparison,
            responses=(response, *comparison.responses),
            ranks=(comparison.ranks[0], *comparison.ranks),
        )
        for comparison, response in zip(comparisons, foreign, strict=True)
    ]


def reference_logps(
    model: LanguageModel, params: Params, batch: Batch, *, num_groups: int
) -> jax.Array:
    """Return logp_BC of a whole batch; its `row_BC` counts within a micro-batch."""
    group_B = jnp.arange(batch["row_BC"].shape[0]) % num_groups
    row_BC = batch["row_BC"] * num_groups + group_B[:, None]
    return packed_logps(model, params, {**batch, "row_BC": row_BC})


def implicit_rewards(
    settings: Preference, model: LanguageModel, params: Params, batch: Batch
) -> jax.Array:
    """Return r_BC = β log π/π_ref of every response."""
    return settings.beta * (packed_logps(model, params, batch) - batch["ref_logp_BC"])


def preference_loss(
    settings: Preference,
    model: LanguageModel,
    params: Params,
    batch: Batch,
    denominator: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the loss of rankings over the whole batch's `loss_denominator`; no dropout."""
    del key
    nll, metrics = rewards_loss(settings, implicit_rewards(settings, model, params, batch), batch)
    named = {f"rewards/{name}": metric for name, metric in metrics.items()}
    return nll.total / denominator, {"loss": nll, **named}


def rewards_loss(
    settings: Preference, reward_BC: jax.Array, batch: Batch
) -> tuple[Mean, dict[str, Mean]]:
    """Return the loss of implicit rewards and what it says of them."""
    if settings.loss == "kto":
        return _kto(settings, reward_BC, batch)
    return implicit_loss(
        reward_BC,
        batch["rank_BC"],
        batch["mask_BC"],
        loss=settings.loss,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        pair_norm=settings.pair_norm,
    )


def _kto(settings: Preference, reward_BC: jax.Array, batch: Batch) -> tuple[Mean, dict[str, Mean]]:
    """KTO's loss; column 0 is the foreign response, the others are the prompt's own."""
    foreign = mean(reward_BC[:, 0], batch["mask_BC"][:, 0])
    point = jnp.maximum(foreign.total / jnp.maximum(foreign.weight, 1.0), 0.0)
    own_BC = reward_BC[:, 1:]
    rank_BC, mask_BC = batch["rank_BC"][:, 1:], batch["mask_BC"][:, 1:]
    better_BC, worse_BC = desirable(rank_BC, mask_BC)
    nll = kto_loss(
        own_BC,
        better_BC,
        worse_BC,
        point,
        better_weight=settings.better_weight,
        worse_weight=settings.worse_weight,
    )
    return nll, {
        "accuracy": merge(
            ranking_accuracy(own_BC, rank_BC, mask_BC),
            thumb_accuracy(own_BC - point, rank_BC, mask_BC),
        ),
        "reference_point": foreign,
        "chosen_reward": mean(own_BC, better_BC),
        "rejected_reward": mean(own_BC, worse_BC),
    }


def desirable(rank_BC: jax.Array, mask_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return which responses are desirable and which undesirable.

    Of several these are the ones that win more of their pairs than they lose, and vice versa; one
    alone has a thumb.
    """
    better_BC, worse_BC = majority(rank_BC, mask_BC)
    alone_BC = _alone(mask_BC)
    return (
        better_BC | (alone_BC & (rank_BC == THUMB_UP)),
        worse_BC | (alone_BC & (rank_BC == THUMB_DOWN)),
    )


def thumb_accuracy(gain_BC: jax.Array, rank_BC: jax.Array, mask_BC: jax.Array) -> Mean:
    """Return how often the gain of a response with a thumb has the thumb's sign."""
    right_BC = jnp.where(rank_BC == THUMB_UP, gain_BC > 0, gain_BC < 0)
    return mean(right_BC, _alone(mask_BC))


def _alone(mask_BC: jax.Array) -> jax.Array:
    """Return a bool_BC that is True at responses whose prompt has no other."""
    mask_BC = mask_BC > 0
    return mask_BC & (mask_BC.sum(axis=1, keepdims=True) == 1)


def measure_rankings(
    settings: Preference, model: LanguageModel, params: Params, batch: Batch
) -> dict[str, Mean]:
    """Return loss and accuracy of the implicit reward."""
    nll, metrics = rewards_loss(settings, implicit_rewards(settings, model, params, batch), batch)
    return {"accuracy": metrics["accuracy"], "loss": nll}


def loss_denominator(settings: Preference, batch: Batch) -> jax.Array:
    """Return what the loss's mean is over: prompts with an untied pair, in kto responses.

    Those count that are desirable or undesirable.
    """
    if settings.loss != "kto":
        return prompts_with_pairs(batch)
    better_BC, worse_BC = desirable(batch["rank_BC"][:, 1:], batch["mask_BC"][:, 1:])
    return jnp.maximum((better_BC | worse_BC).sum(), 1)
