"""Supervised fine-tuning on demonstrations: the labelers' answers, and nothing but them.

    L = -(1/N) Σ_{t in assistant's tokens} log π(y_t | x, y_<t)        (Ouyang 2022 §3.5; masking the prompt is our choice)

The end-of-turn token is trained like any other, or the model would never stop. Demonstrations are packed several to a row.
`document_rows` rows of pretraining documents, all of whose tokens count, are added to every batch: InstructGPT's initial
policy for PPO had 10 % of them.
The exported parameters are the last ones, those with the lowest held-out loss, or those whose samples a reward model
scores highest (Ouyang 2022 App. C.1: validation loss overfits after one epoch while preference still rises).

Left out on purpose: curricula, weighting of labelers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import require, require_given
from rlhf_jax.data.batches import Batches, demonstration_batches, prompt_batches
from rlhf_jax.data.packing import PackedDemonstrations
from rlhf_jax.data.records import Demonstration, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.sampling import sample
from rlhf_jax.inference.scoring import response_scores
from rlhf_jax.maths.masking import length_mask, value
from rlhf_jax.models.heads import LanguageModel, ScalarModel
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters
from rlhf_jax.stages.language import (
    check_batches,
    corpus_batches,
    document_batch,
    language_loss,
    mean_nll,
    weigh_tokens,
)
from rlhf_jax.training.loop import PolicyMonitor, policy_hooks
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, MonitorConfig, Run
from rlhf_jax.training.updates import TrainState, init_state, make_supervised_update

Params = Any


@dataclass(frozen=True)
class Init:
    """Where the parameters come from; a path starting with ../ is relative to the workdir, hf:NAME is of Hugging Face."""

    policy: str
    reward: str | None  # for select=reward


@dataclass(frozen=True)
class Data:
    """Demonstrations, and what the mix and the selection need."""

    data_dir: str
    demonstrations: str
    documents: str | None  # for document_rows > 0
    prompts: str | None  # for select=reward
    prompt_length: int | None  # for select=reward


@dataclass(frozen=True)
class SFT:
    """The run."""

    num_epochs: float
    batch_size: int  # demonstrations
    num_micro_batches: int
    max_length: int  # of a demonstration
    row_length: int  # several demonstrations are packed into a row
    document_rows: int
    dropout_rate: float
    eval_every: int
    eval_batches: int
    select: Literal["last", "loss", "reward"]
    response_length: int | None  # of the samples that select=reward scores


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["sft"]
    seed: int
    init: Init
    data: Data
    sft: SFT
    lora: LoraConfig
    monitor: MonitorConfig | None
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def run(config: Config, workdir: str, monitors: Sequence[PolicyMonitor] = ()) -> None:
    """Fine-tune a language model on demonstrations."""
    run, sft = Run.open(config, workdir), config.sft
    check_batches("sft", sft.batch_size, sft.num_micro_batches, run.batch_shards)
    require(sft.document_rows >= 0, f"sft.document_rows={sft.document_rows}: expected 0 or more")
    parent = run.parent("policy", config.init.policy, kind="language_model")
    require(
        sft.max_length <= sft.row_length <= parent.model.context_length,
        f"sft.max_length={sft.max_length} <= sft.row_length={sft.row_length} <= the model's context of "
        f"{parent.model.context_length} must hold",
    )
    shape = replace(parent.model, dropout_rate=sft.dropout_rate)
    model, key = LanguageModel(shape), jax.random.key(config.seed)

    demonstrations = _demonstrations(config, run)
    num_steps = round(sft.num_epochs * demonstrations.num_examples / sft.batch_size)
    packed = PackedDemonstrations(
        demonstrations,
        row_length=sft.row_length,
        num_steps=num_steps,
        others=sft.document_rows,
        row_multiple=sft.num_micro_batches * run.batch_shards,
    )
    batch_at = _mixed(config, run, packed)
    optimizer = make_optimizer(config.optimizer, num_steps)
    base, trained = init_adapters(parent.params, config.lora, jax.random.fold_in(key, 1 << 30))
    base = run.place_frozen(base)
    state = run.place_state(init_state(trained, optimizer, _initial_best(config, trained)))
    run.announce(
        config,
        {"model": trained, "base": base},
        (
            f"{num_steps} steps x {sft.batch_size} demonstrations = {sft.num_epochs} epochs of {demonstrations.num_examples}, "
            f"packed into {packed.num_rows} rows of {sft.row_length} tokens, and {sft.document_rows} rows of documents"
        ),
    )
    update = run.compile_update(
        make_supervised_update(
            language_loss(model, z_loss_coef=0.0, dropout=sft.dropout_rate > 0),
            weigh_tokens,
            optimizer,
            num_micro_batches=sft.num_micro_batches,
        ),
        state,
    )
    validate = _validator(config, run, model)
    keep_best = jax.jit(_keep_best, donate_argnums=0, out_shardings=run.shardings(state))

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        state, metrics = update(
            state, run.shard(batch_at(step)), jax.random.fold_in(key, step), base
        )
        if step == 0 or (step + 1) % sft.eval_every == 0 or step + 1 == num_steps:
            measured = validate(combine(base, state.params))
            if sft.select != "last":
                state = keep_best(state, _criterion(measured, sft.select))
            metrics = {**metrics, **measured}
        return state, metrics

    run.train(
        state,
        step_fn,
        num_steps=num_steps,
        kind="language_model",
        model=parent.model,
        export=lambda s: s.params if sft.select == "last" else s.extras["best"]["params"],
        hooks=policy_hooks(monitors, model, run.tokenizer, lambda s: combine(base, s.params)),
        headline=("loss", "validation/loss", "gold/total"),
        extra=run.lora_link("policy", config.lora),
    )


def _demonstrations(config: Config, run: Run) -> Batches:
    data, sft = config.data, config.sft
    return demonstration_batches(
        load(data.demonstrations, Demonstration, split="train", data_dir=data.data_dir),
        run.tokenizer,
        context_length=sft.max_length,
        batch_size=sft.batch_size,
        seed=config.seed,
    )


def _mixed(
    config: Config, run: Run, packed: PackedDemonstrations
) -> Callable[[int], dict[str, Any]]:
    """Batches by step: packed demonstrations, and behind them rows of documents if the config asks for some."""
    sft, data = config.sft, config.data
    if not sft.document_rows:
        return packed.batch
    documents = corpus_batches(
        run,
        require_given(data.documents, "sft.document_rows > 0 needs data.documents"),
        "train",
        data_dir=data.data_dir,
        context_length=sft.row_length,
        batch_size=sft.document_rows,
        seed=config.seed + 1,
        mask_documents=False,
    )

    def mixed(step: int) -> dict[str, Any]:
        rows = (packed.batch(step), document_batch(documents.batch(step)))
        return {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}

    return mixed


def _validator(
    config: Config, run: Run, model: LanguageModel
) -> Callable[[Params], dict[str, Any]]:
    sft, data = config.sft, config.data
    held_out = demonstration_batches(
        load(data.demonstrations, Demonstration, split="validation", data_dir=data.data_dir),
        run.tokenizer,
        context_length=sft.max_length,
        batch_size=sft.batch_size,
        seed=config.seed,
    )
    loss = mean_nll(model, run, [held_out.batch(i) for i in range(sft.eval_batches)])
    if sft.select != "reward":
        return lambda params: {"validation/loss": loss(params)}
    score = _sample_score(config, run, model)
    return lambda params: {"validation/loss": loss(params), "validation/score": score(params)}


def _sample_score(config: Config, run: Run, model: LanguageModel) -> Callable[[Params], jax.Array]:
    """Mean reward-model score of one sample per held-out prompt, with the same key every time."""
    checkpoint = require_given(
        config.init.reward, "sft.select=reward needs init.reward, the checkpoint of a reward model"
    )
    source = require_given(config.data.prompts, "sft.select=reward needs data.prompts")
    prompt_length = require_given(
        config.data.prompt_length, "sft.select=reward needs data.prompt_length"
    )
    response_length = require_given(
        config.sft.response_length, "sft.select=reward needs sft.response_length"
    )
    reward = run.parent("reward", checkpoint, kind="scalar_model")
    run.same_tokenizer("policy", "reward")
    prompts = prompt_batches(
        load(source, Prompt, split="validation", data_dir=config.data.data_dir),
        run.tokenizer,
        prompt_length=prompt_length,
        batch_size=config.sft.batch_size,
        seed=config.seed,
    )
    batch = prompts.batch(0)
    prompt = (jnp.asarray(batch["prompt_BP"]), jnp.asarray(batch["prompt_mask_BP"]))
    spec = SamplingSpec(temperature=1.0, top_k=0, top_p=1.0, nucleus="holtzman")

    @jax.jit
    def score(params: Params) -> jax.Array:
        samples = sample(
            model,
            params,
            *prompt,
            jax.random.key(config.seed),
            spec=spec,
            response_length=response_length,
            stop_tokens=run.tokenizer.stop_ids,
            pad_id=run.tokenizer.pad_id,
        )
        mask_BR = length_mask(samples.length_B, response_length)
        return response_scores(
            ScalarModel(reward.model), reward.params, *prompt, samples.tokens_BR, mask_BR
        ).mean()

    return score


def _initial_best(config: Config, params: Params) -> dict[str, Any]:
    if config.sft.select == "last":
        return {}
    return {
        "best": {
            "params": params,
            "value": jnp.asarray(jnp.inf, jnp.float32),
            "step": jnp.zeros((), jnp.int32),
        }
    }


def _keep_best(state: TrainState, new: jax.Array) -> TrainState:
    """Remember the parameters if `new` (smaller is better) beats the best so far."""
    best = state.extras["best"]
    mine = {"params": state.params, "value": new, "step": state.step}
    kept = jax.tree.map(
        lambda ours, theirs: jnp.where(new < best["value"], ours, theirs), mine, best
    )
    return replace(state, extras={**state.extras, "best": kept})


def _criterion(measured: dict[str, Any], select: str) -> jax.Array:
    return value(measured["validation/loss"]) if select == "loss" else -measured["validation/score"]
