"""Train a reward model from rankings: a scalar per response, all pairs of a prompt at once.

    L = -(1/C(K,2)) Σ_{(w,l)} log σ( r(x, y_w) - r(x, y_l) ),   K = 4..9        (Ouyang 2022 eq. 1)

    1  rankings of K responses per prompt are read: what the label stage collected, or files
    2  a scalar head N(0, 1/(D+1)) replaces the unembedding (Stiennon 2020); one forward pass per
       response, all C(K,2) pairs of a prompt in one batch element, so that a response is in one
       update per epoch and not in K-1, as it is with batching = "shuffled_pairs"
    3  after training the head's bias is moved so that demonstrations score 0 on average (Ouyang
       2022 App. C.2); optionally a gain as well, before and after, so that samples score mean 0
       and variance 1 (Ziegler 2019)

The normalisations are steps of the loop like any other, so that a killed run resumes exactly.
Left out on purpose: margins from confidence ratings, ensembles, training on more than one labeler's
ranking of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import Batches, demonstration_batches
from rlhf_jax.data.records import Comparison, Demonstration, Message, as_pairs
from rlhf_jax.data.sources import load
from rlhf_jax.inference.scoring import last_token_scores, packed_scores
from rlhf_jax.maths.masking import Mean
from rlhf_jax.maths.preference import plackett_luce, ranking_accuracy, ranking_loss
from rlhf_jax.models.heads import ScalarModel, scalar_params_from, shift_scores
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters, split_heads
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
from rlhf_jax.training.loop import Hook
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import Objective, TrainState, init_state, supervised_update

Params = Any
Batch = dict[str, Any]
MOST_DEMONSTRATION_BATCHES = 32  # on which the scores are normalised


@dataclass(frozen=True)
class Init:
    """Name the supervised policy whose trunk the reward model starts from."""

    policy: str


@dataclass(frozen=True)
class Data:
    """Name the rankings, and demonstrations for the normalisation.

    `comparisons` is ../STAGE for what that label stage collected (options as in a source:
    ../label?train=train[:300]), or a source of data/sources.py.
    """

    data_dir: str
    comparisons: str
    earlier: tuple[str, ...]  # more training rankings, of earlier rounds
    demonstrations: str | None  # a source; None: the best response of every training ranking


@dataclass(frozen=True)
class Reward(ComparisonConfig):
    """Set every detail of the training."""

    # Of all pairs (Ouyang 2022 eq. 1), or of the whole order (Luce 1959).
    loss: Literal["bradley_terry", "plackett_luce"]
    # All pairs of a prompt together, or every pair an example of its own.
    batching: Literal["prompts", "shuffled_pairs"]
    # Demonstrations to mean 0, or also to variance 1.
    normalise: Literal["none", "bias", "gain_and_bias"]
    normalise_before: bool  # also before training (Ziegler 2019)
    dropout_rate: float
    # From the last token's state (Stiennon 2020), or from all tokens (models/read_out.py).
    read_out: Literal["last_token", "pooled"]
    # Everything, adapters included, or the head on a trunk that stays as it is.
    trained: Literal["all", "head"]


@dataclass(frozen=True)
class Config:
    """List exactly what this stage reads."""

    stage: Literal["reward"]
    seed: int
    init: Init
    data: Data
    reward: Reward
    lora: LoraConfig
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def run(config: Config, workdir: str) -> None:
    """Train a reward model on rankings."""
    run = Run.open(config, workdir)
    settings, data = config.reward, config.data
    check_batches("reward", settings.batch_size, settings.num_micro_batches, run.batch_shards)
    parent = run.parent("policy", config.init.policy, kind=CheckpointKind.LANGUAGE_MODEL)
    check_lengths("reward", settings, parent.model.context_length)
    require(
        settings.trained == "all" or not config.lora.rank,
        f"reward.trained={settings.trained} with lora.rank={config.lora.rank}: adapters change the "
        "trunk; set trained=all or rank=0",
    )
    shape = replace(parent.model, read_out=settings.read_out)
    model = ScalarModel(replace(shape, dropout_rate=settings.dropout_rate))
    key = jax.random.key(config.seed)

    reader = Reader(run, settings, data.data_dir, config.seed)
    sources = comparison_sources(data.comparisons, run.workdir)
    earlier = [comparison_sources(source, run.workdir)[TRAIN] for source in data.earlier]
    comparisons = reader.load([*earlier, sources[TRAIN]], TRAIN)
    rankings = training_rankings(settings, reader, comparisons)
    num_updates = round(settings.num_epochs * rankings.num_examples / rankings.batch_size)
    batches = reader.pack(rankings, num_updates, settings.num_micro_batches)

    optimizer = make_optimizer(config.optimizer, num_updates)
    params = scalar_params_from(parent.params, run_key(key, RunPurpose.HEAD), shape)
    frozen, trained = init_adapters(params, config.lora, run_key(key, RunPurpose.REWARD_ADAPTERS))
    if settings.trained == "head":
        # The gradient is of the trained parameters alone, so no backward pass enters the trunk.
        frozen, trained = split_heads(trained)
    frozen = run.place_frozen(frozen)
    state = run.place(init_state(trained, optimizer))
    num_rows = batches.rows_per_group * settings.num_micro_batches
    run.announce(
        config,
        {"model": trained, "frozen": frozen},
        f"{num_updates} updates x {settings.batch_size} {settings.batching} x up to "
        f"{settings.max_candidates} responses = {settings.num_epochs} epochs of "
        f"{rankings.num_examples} rankings, packed into up to {num_rows} rows of "
        f"{settings.row_length} tokens; normalise {settings.normalise}",
    )
    objective = Objective(
        partial(reward_loss, settings, model), prompts_with_pairs, settings.num_micro_batches
    )
    update = run.compile_update(partial(supervised_update, objective, optimizer), state)
    demonstrations = normalisation_batches(config, run, comparisons)
    score = jax.jit(partial(demonstration_scores, model))

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        step -= settings.normalise_before
        if step < 0 or step == num_updates:
            full = combine(frozen, state.params)
            score_N = jnp.concatenate([score(full, batch) for batch in demonstrations])
            params, metrics = normalised(settings, state.params, score_N)
            return replace(state, params=run.place(params)), metrics
        batch = run.shard(batches.batch(step))
        return update(state, batch, step_key(key, step), frozen)

    measure = jax.jit(partial(measure_rankings, settings, model))
    held_out = {
        judge: [run.shard(batch) for batch in reader.held_out(source)]
        for judge, source in sources.items()
        if judge != TRAIN
    }

    def validate(state: TrainState, step: int) -> dict[str, Any]:
        return dict(measure_held_out(measure, held_out, combine(frozen, state.params)))

    lora = run.lora_link("policy", config.lora)
    num_steps = num_updates + 1 + settings.normalise_before
    meta = run.describe(CheckpointKind.SCALAR_MODEL, num_steps, shape, **lora)
    run.train(
        state,
        step_fn,
        meta,
        # A trunk without adapters has no checkpoint that a head could refer to, so it is saved.
        export=(lambda s: combine(frozen, s.params)) if settings.trained == "head" else None,
        hooks=[Hook(settings.eval_every, validate)],
        headline=("loss", "rm/accuracy", *(f"validation/accuracy_{judge}" for judge in held_out)),
    )


def training_rankings(settings: Reward, reader: Reader, rankings: Sequence[Comparison]) -> Batches:
    """Return the training rankings as batches of prompts, or of single pairs."""
    if settings.batching == "shuffled_pairs":
        pairs = replace(reader, settings=replace(settings, max_candidates=2))
        return pairs.batches(as_pairs(rankings), TRAIN)
    return reader.batches(rankings, TRAIN)


def rankings_nll(settings: Reward, score_BC: jax.Array, batch: Batch) -> Mean:
    """Return the loss of rankings, summed over prompts."""
    if settings.loss == "plackett_luce":
        return plackett_luce(score_BC, batch["rank_BC"], batch["mask_BC"])
    return ranking_loss(score_BC, batch["rank_BC"], batch["mask_BC"], pair_norm=settings.pair_norm)


def reward_loss(
    settings: Reward,
    model: ScalarModel,
    params: Params,
    batch: Batch,
    num_prompts: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return the loss of rankings, divided by the whole batch's number of prompts."""
    dropout_key = key if settings.dropout_rate > 0 else None
    score_BC = packed_scores(model, params, batch, dropout_key)
    nll = rankings_nll(settings, score_BC, batch)
    accuracy = ranking_accuracy(score_BC, batch["rank_BC"], batch["mask_BC"])
    return nll.total / num_prompts, {"loss": nll, "rm/accuracy": accuracy}


def measure_rankings(
    settings: Reward, model: ScalarModel, params: Params, batch: Batch
) -> dict[str, Mean]:
    """Return accuracy and loss on rankings, without dropout."""
    score_BC = packed_scores(model, params, batch)
    accuracy = ranking_accuracy(score_BC, batch["rank_BC"], batch["mask_BC"])
    return {"accuracy": accuracy, "loss": rankings_nll(settings, score_BC, batch)}


def normalisation_batches(
    config: Config, run: Run, comparisons: Sequence[Comparison]
) -> list[Batch]:
    """Return the demonstrations on which scores are normalised, as batches on the mesh."""
    source, data_dir = config.data.demonstrations, config.data.data_dir
    demonstrations = demonstration_batches(
        load(source, Demonstration, split="train", data_dir=data_dir)
        if source is not None
        else best_responses(comparisons),
        run.tokenizer,
        context_length=config.reward.max_length,
        batch_size=config.reward.batch_size,
        seed=config.seed,
        train_on="last",
    )
    full_batches = demonstrations.num_examples // config.reward.batch_size
    count = max(1, min(full_batches, MOST_DEMONSTRATION_BATCHES))
    return [run.shard(demonstrations.batch(i)) for i in range(count)]


def best_responses(comparisons: Sequence[Comparison]) -> list[Demonstration]:
    """Return every prompt with the response that was ranked first, of several the earlier one."""
    return [
        Demonstration((*ranking.messages, Message("assistant", ranking.responses[best])))
        for ranking in comparisons
        for best in [ranking.ranks.index(min(ranking.ranks))]
    ]


def demonstration_scores(model: ScalarModel, params: Params, batch: Batch) -> jax.Array:
    """Return score_B of demonstrations."""
    return last_token_scores(model, params, batch["tokens_BT"], batch["segments_BT"])


def normalised(
    settings: Reward, params: Params, score_N: jax.Array
) -> tuple[Params, dict[str, Any]]:
    """Fold a gain and a bias into the head: demonstrations get mean 0 (and variance 1)."""
    gain, bias = jnp.ones(()), jnp.zeros(())
    if settings.normalise == "gain_and_bias":
        gain = 1.0 / jnp.maximum(score_N.std(), 1e-6)
    if settings.normalise != "none":
        bias = -gain * score_N.mean()
    metrics = {
        "rm/demonstrations_mean": score_N.mean(),
        "rm/demonstrations_std": score_N.std(),
        "rm/gain": gain,
        "rm/bias": bias,
    }
    return shift_scores(params, gain, bias), metrics
