"""Reward model from rankings: one scalar per response, trained on every pair of a prompt's K ranked responses at once.

    L = -(1/C(K,2)) Σ_{(w,l)} log σ( r(x, y_w) - r(x, y_l) ),   K = 4..9        (Ouyang 2022 eq. 1)

    1  comparisons of K responses per prompt are read: those that a label stage collected, or a source
    2  a scalar head N(0, 1/(D+1)) replaces the unembedding (Stiennon 2020); one forward pass per response, all C(K,2) pairs
       of a prompt in one batch element, so that a response is in one update per epoch and not in K-1, as it is with
       batching = "shuffled_pairs"
    3  after training the head's bias is moved so that demonstrations score 0 on average (Ouyang 2022 App. C.2); optionally
       a gain as well, before and after, so that samples score mean 0 and variance 1 (Ziegler 2019)

The normalisations are steps of the loop like any other, so that a killed run resumes exactly.
Left out on purpose: margins from confidence ratings, ensembles, training on more than one labeler's ranking of a prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.data.batches import Batches, demonstration_batches
from rlhf_jax.data.records import Demonstration, as_pairs
from rlhf_jax.data.sources import load
from rlhf_jax.inference.scoring import last_token_scores, packed_scores
from rlhf_jax.maths.masking import Mean
from rlhf_jax.maths.preference import PairNorm, ranking_accuracy, ranking_loss
from rlhf_jax.models.heads import ScalarModel, scalar_params_from, shift_scores
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
from rlhf_jax.training.loop import Hook
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import TrainState, init_state, make_supervised_update

Params = Any
Batch = dict[str, Any]


@dataclass(frozen=True)
class Init:
    """The supervised policy whose trunk the reward model starts from; ../ is relative to the workdir."""

    policy: str


@dataclass(frozen=True)
class Data:
    """Comparisons, and demonstrations for the normalisation.

    `comparisons` is ../STAGE for what that label stage collected (options as in a source: ../label?train=train[:300]), or a
    source.
    """

    data_dir: str
    comparisons: str
    earlier: tuple[str, ...]  # more training comparisons, of earlier rounds
    demonstrations: str


@dataclass(frozen=True)
class Reward:
    """The run."""

    num_epochs: float
    batching: Literal[
        "prompts", "shuffled_pairs"
    ]  # all pairs of a prompt together, or every pair an example of its own
    batch_size: int  # prompts, or pairs
    num_micro_batches: int
    max_length: int  # of a rendered response
    row_length: int  # several responses are packed into a row
    max_candidates: int
    pair_norm: PairNorm
    normalise: Literal["none", "bias", "gain_and_bias"]
    normalise_before: bool
    dropout_rate: float
    eval_every: int


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

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
    run, reward = Run.open(config, workdir), config.reward
    check_batches("reward", reward.batch_size, reward.num_micro_batches, run.batch_shards)
    parent = run.parent("policy", config.init.policy, kind="language_model")
    check_lengths("reward", reward, parent.model.context_length)
    model = ScalarModel(replace(parent.model, dropout_rate=reward.dropout_rate))
    key = jax.random.key(config.seed)
    sources = comparison_sources(config.data.comparisons, run.workdir)
    earlier = [comparison_sources(name, run.workdir)["train"] for name in config.data.earlier]
    rankings = _rankings(config, run, [*earlier, sources["train"]], "train")
    num_updates = round(reward.num_epochs * rankings.num_examples / rankings.batch_size)
    batches = pack(
        rankings, reward, run, num_steps=num_updates, num_groups=reward.num_micro_batches
    )

    optimizer = make_optimizer(config.optimizer, num_updates)
    params = scalar_params_from(parent.params, jax.random.fold_in(key, 1 << 30), parent.model)
    base, trained = init_adapters(params, config.lora, jax.random.fold_in(key, (1 << 30) + 1))
    base = run.place_frozen(base)
    state = run.place_state(init_state(trained, optimizer))
    run.announce(
        config,
        {"model": trained, "base": base},
        (
            f"{num_updates} updates x {reward.batch_size} {reward.batching} x up to {reward.max_candidates} responses = "
            f"{reward.num_epochs} epochs of {rankings.num_examples} rankings, packed into up to "
            f"{batches.rows_per_group * reward.num_micro_batches} rows of {reward.row_length} tokens; normalise {reward.normalise}"
        ),
    )
    update = run.compile_update(
        make_supervised_update(
            reward_loss(model, pair_norm=reward.pair_norm, dropout=reward.dropout_rate > 0),
            weigh_prompts,
            optimizer,
            num_micro_batches=reward.num_micro_batches,
        ),
        state,
    )
    normalise = _normaliser(config, run, model, base)

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        step -= reward.normalise_before
        if step < 0 or step == num_updates:
            return normalise(state)
        return update(state, run.shard(batches.batch(step)), jax.random.fold_in(key, step), base)

    run.train(
        state,
        step_fn,
        num_steps=num_updates + 1 + reward.normalise_before,
        kind="scalar_model",
        model=parent.model,
        hooks=[Hook(reward.eval_every, _validator(config, run, model, sources, base))],
        extra=run.lora_link("policy", config.lora),
        headline=("loss", "rm/accuracy", "validation/accuracy_heldout", "validation/accuracy_gold"),
    )


def candidate_scores(
    model: ScalarModel, params: Params, batch: Batch, *, dropout_key: jax.Array | None = None
) -> jax.Array:
    """score_BC of every response: K forward passes per prompt, however many pairs."""
    where = (batch["row_BC"], batch["last_BC"])
    return packed_scores(
        model, params, batch["tokens_NT"], batch["segments_NT"], *where, dropout_key=dropout_key
    )


def reward_loss(model: ScalarModel, *, pair_norm: PairNorm, dropout: bool) -> Callable[..., Any]:
    """The ranking loss summed over prompts and divided by the whole batch's number of prompts."""

    def loss(
        params: Params, batch: Batch, weight: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Mean]]:
        score_BC = candidate_scores(model, params, batch, dropout_key=key if dropout else None)
        ranking = (score_BC, batch["rank_BC"], batch["mask_BC"])
        nll = ranking_loss(*ranking, pair_norm=pair_norm)
        return nll.total / weight, {"loss": nll, "rm/accuracy": ranking_accuracy(*ranking)}

    return loss


def _rankings(config: Config, run: Run, sources: Sequence[str], split: str) -> Batches:
    read = partial(
        read_rankings, sources, split, run=run, seed=config.seed, data_dir=config.data.data_dir
    )
    if split == "train" and config.reward.batching == "shuffled_pairs":
        return read(layout=replace(config.reward, max_candidates=2), change=as_pairs)
    return read(layout=config.reward)


def _validator(
    config: Config, run: Run, model: ScalarModel, sources: dict[str, str], base: Params
) -> Callable[[TrainState, int], dict[str, Any]]:
    def measure(params: Params, batch: Batch) -> dict[str, Mean]:
        ranking = (candidate_scores(model, params, batch), batch["rank_BC"], batch["mask_BC"])
        return {
            "accuracy": ranking_accuracy(*ranking),
            "loss": ranking_loss(*ranking, pair_norm=config.reward.pair_norm),
        }

    judges = {judge: source for judge, source in sources.items() if judge != "train"}
    held_out = {
        judge: _rankings(config, run, [source], "validation") for judge, source in judges.items()
    }
    return make_validator(
        measure, held_out, config.reward, run, run.shard, lambda state: combine(base, state.params)
    )


def _normaliser(
    config: Config, run: Run, model: ScalarModel, base: Params
) -> Callable[[TrainState], Any]:
    """A step that folds gain and bias into the head: demonstrations get mean 0 (and variance 1)."""
    demonstrations = demonstration_batches(
        load(
            config.data.demonstrations, Demonstration, split="train", data_dir=config.data.data_dir
        ),
        run.tokenizer,
        context_length=config.reward.max_length,
        batch_size=config.reward.batch_size,
        seed=config.seed,
    )
    count = max(1, min(demonstrations.num_examples // config.reward.batch_size, 32))
    chunks = [run.shard(demonstrations.batch(i)) for i in range(count)]
    score = jax.jit(
        lambda params, batch: last_token_scores(
            model, params, batch["tokens_BT"], batch["segments_BT"]
        )
    )

    def normalise(state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        score_N = jnp.concatenate([score(combine(base, state.params), chunk) for chunk in chunks])
        gain = (
            1.0 / jnp.maximum(score_N.std(), 1e-6)
            if config.reward.normalise == "gain_and_bias"
            else jnp.ones(())
        )
        bias = -gain * score_N.mean() if config.reward.normalise != "none" else jnp.zeros(())
        params = run.place(shift_scores(state.params, gain, bias))
        metrics = {
            "rm/demonstrations_mean": score_N.mean(),
            "rm/demonstrations_std": score_N.std(),
            "rm/gain": gain,
            "rm/bias": bias,
        }
        return replace(state, params=params), metrics

    return normalise
