"""Fine-tune a language model on demonstrations: the labelers' answers, and nothing but them.

    L = -(1/N) Σ_{t in assistant's tokens} log π(y_t | x, y_<t)              (Ouyang 2022 §3.5)

Leaving the prompt's tokens out of the loss is our choice.

The end-of-turn token is trained like any other, or the model would never stop. A conversation of
several turns trains all its replies, or with `train_on=last` the last one alone, which also is the
way out where a chat template rewrites earlier replies. Demonstrations are packed several to a row.
`document_rows` rows of pretraining documents, all of whose tokens count, are added to every batch:
InstructGPT's initial policy for PPO had 10 % of them. The exported parameters are the last ones,
those with the lowest held-out loss, or those whose samples a reward model scores highest (Ouyang
2022 App. C.1: validation loss overfits after one epoch while preference still rises).

Left out on purpose: curricula, weighting of labelers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import require
from rlhf_jax.data.batches import Batches, demonstration_batches, prompt_batches
from rlhf_jax.data.chat import TrainOn
from rlhf_jax.data.packing import PackedDemonstrations
from rlhf_jax.data.records import Demonstration, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import sample
from rlhf_jax.inference.scoring import response_scores
from rlhf_jax.maths.masking import length_mask, value
from rlhf_jax.models.heads import LanguageModel, ScalarModel
from rlhf_jax.models.lora import LoraConfig, combine, init_adapters
from rlhf_jax.stages.language import (
    batch_nll,
    check_batches,
    corpus_batches,
    document_batch,
    language_loss,
    mean_nll,
    trained_tokens,
)
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.keys import RunPurpose, run_key, step_key
from rlhf_jax.training.loop import PolicyMonitor, headlines, policy_hooks
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, MonitorConfig, Run
from rlhf_jax.training.updates import Objective, TrainState, init_state, supervised_update

Params = Any
Batch = dict[str, Any]


@dataclass(frozen=True)
class Init:
    """Name the parents; ../ is of the workdir, hf: and hub: of Hugging Face."""

    policy: str
    reward: str | None  # a reward model; read where sft.select is "reward"


@dataclass(frozen=True)
class Data:
    """Name the demonstrations, and what the mix and the selection need."""

    data_dir: str
    demonstrations: str
    documents: str | None  # read where sft.document_rows > 0
    prompts: str | None  # read where sft.select is "reward"
    prompt_length: int | None  # tokens; read with the prompts


@dataclass(frozen=True)
class SFT:
    """Set every detail of the training."""

    num_epochs: float
    batch_size: int  # demonstrations
    num_micro_batches: int  # parts of a batch that are in memory at once
    train_on: TrainOn  # all replies of a demonstration, or the last one alone
    max_length: int  # tokens of a demonstration; longer ones are left out and counted
    row_length: int  # tokens; several demonstrations are packed into a row
    document_rows: int  # rows of pretraining documents in every batch
    dropout_rate: float
    eval_every: int  # steps
    eval_batches: int  # of held-out demonstrations
    select: Literal["last", "loss", "reward"]  # which parameters are exported
    response_length: int | None  # tokens of the samples that select=reward scores


@dataclass(frozen=True)
class Config:
    """List exactly what this stage reads."""

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


def check(config: Config, num_devices: int) -> None:
    """Refuse impossible settings before anything compiles, naming the field and the remedy."""
    sft, data = config.sft, config.data
    check_batches("sft", sft.batch_size, sft.num_micro_batches, num_devices)
    require(sft.document_rows >= 0, f"sft.document_rows={sft.document_rows}: expected 0 or more")
    require(
        sft.document_rows == 0 or data.documents is not None,
        f"sft.document_rows={sft.document_rows} needs data.documents, a source of documents",
    )
    needed = {
        "init.reward, the checkpoint of a reward model": config.init.reward,
        "data.prompts": data.prompts,
        "data.prompt_length": data.prompt_length,
        "sft.response_length": sft.response_length,
    }
    for name, setting in needed.items():
        require(sft.select != "reward" or bool(setting), f"sft.select=reward needs {name}")


def run(config: Config, workdir: str, monitors: Sequence[PolicyMonitor] = ()) -> None:
    """Fine-tune a language model on demonstrations."""
    run = Run.open(config, workdir)
    sft = config.sft
    check(config, run.batch_shards)
    parent = run.parent("policy", config.init.policy, kind=CheckpointKind.LANGUAGE_MODEL)
    require(
        sft.max_length <= sft.row_length <= parent.model.context_length,
        f"sft.max_length={sft.max_length} <= sft.row_length={sft.row_length} <= the model's "
        f"context of {parent.model.context_length} must hold",
    )
    model = LanguageModel(replace(parent.model, dropout_rate=sft.dropout_rate))
    key = jax.random.key(config.seed)

    demonstrations = _demonstrations(config, run, "train", batch_size=sft.batch_size)
    num_steps = round(sft.num_epochs * demonstrations.num_examples / sft.batch_size)
    packed = PackedDemonstrations(
        demonstrations,
        row_length=sft.row_length,
        num_steps=num_steps,
        others=sft.document_rows,
        row_multiple=sft.num_micro_batches * run.batch_shards,
    )
    documents = _documents(config, run)
    optimizer = make_optimizer(config.optimizer, num_steps)
    frozen, trained = init_adapters(parent.params, config.lora, run_key(key, RunPurpose.ADAPTERS))
    frozen = run.place_frozen(frozen)
    state = run.place(init_state(trained, optimizer, _initial_best(sft, trained)))
    run.announce(
        config,
        {"model": trained, "frozen": frozen},
        f"{num_steps} steps x {sft.batch_size} demonstrations = {sft.num_epochs} epochs of "
        f"{demonstrations.num_examples}, packed into {packed.num_rows} rows of {sft.row_length} "
        f"tokens, and {sft.document_rows} rows of documents",
    )
    loss = partial(language_loss, model, 0.0)
    objective = Objective(loss, trained_tokens, sft.num_micro_batches)
    update = run.compile_update(partial(supervised_update, objective, optimizer), state)

    measure_nll = jax.jit(partial(batch_nll, model))
    held_out = _held_out(config, run)
    score = _sample_score(config, run, model) if sft.select == "reward" else None
    keep_best = jax.jit(_keep_best, donate_argnums=0, out_shardings=run.shardings(state))

    def validate(params: Params) -> dict[str, Any]:
        metrics = {"validation/loss": mean_nll(measure_nll, params, held_out)}
        return metrics if score is None else {**metrics, "validation/score": score(params)}

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        batch = packed.batch(step)
        if documents is not None:
            batch = _stacked(batch, document_batch(documents.batch(step)))
        state, metrics = update(state, run.shard(batch), step_key(key, step), frozen)
        if step == 0 or (step + 1) % sft.eval_every == 0 or step + 1 == num_steps:
            measured = validate(combine(frozen, state.params))
            if sft.select != "last":
                state = keep_best(state, _criterion(measured, sft.select))
            metrics = {**metrics, **measured}
        return state, metrics

    def policy_of(state: TrainState) -> Params:
        return combine(frozen, state.params)

    lora = run.lora_link("policy", config.lora)
    meta = run.describe(CheckpointKind.LANGUAGE_MODEL, num_steps, parent.model, **lora)
    run.train(
        state,
        step_fn,
        meta,
        export=lambda s: s.params if sft.select == "last" else s.extras["best"]["params"],
        hooks=policy_hooks(monitors, model, run.tokenizer, policy_of),
        headline=("loss", "validation/loss", *headlines(monitors)),
    )


def _held_out(config: Config, run: Run) -> list[Batch]:
    """Return batches of held-out demonstrations, smaller and fewer where there are few of these.

    None is measured twice, unless there are fewer than the devices that share a batch.
    """
    examples = _demonstrations(config, run, "validation", batch_size=1)
    shards, most = run.batch_shards, min(config.sft.batch_size, examples.num_examples)
    size = max(most - most % shards, 1)
    batches = Batches(examples.arrays, batch_size=size, seed=config.seed)
    count = min(config.sft.eval_batches, examples.num_examples // size)
    held_out = [batches.batch(i) for i in range(count)]
    if size % shards:
        held_out = [{name: np.repeat(x, shards, axis=0) for name, x in held_out[0].items()}]
    return [run.shard(batch) for batch in held_out]


def _demonstrations(config: Config, run: Run, split: str, *, batch_size: int) -> Batches:
    data, sft = config.data, config.sft
    return demonstration_batches(
        load(data.demonstrations, Demonstration, split=split, data_dir=data.data_dir),
        run.tokenizer,
        context_length=sft.max_length,
        batch_size=batch_size,
        seed=config.seed,
        train_on=sft.train_on,
    )


def _documents(config: Config, run: Run) -> Batches | None:
    """The rows of pretraining documents that are added to every batch, None if there are none."""
    sft, data = config.sft, config.data
    if not sft.document_rows or data.documents is None:
        return None
    return corpus_batches(
        run,
        data.documents,
        "train",
        data_dir=data.data_dir,
        context_length=sft.row_length,
        batch_size=sft.document_rows,
        seed=config.seed + 1,
        mask_documents=False,
    )


def _stacked(first: Batch, second: Batch) -> Batch:
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def _sample_score(config: Config, run: Run, model: LanguageModel) -> Callable[[Params], jax.Array]:
    """Make the compiled mean score of one sample per held-out prompt, always of the same key."""
    data, sft = config.data, config.sft
    assert config.init.reward is not None
    assert data.prompts is not None
    assert data.prompt_length is not None
    assert sft.response_length is not None
    reward = run.parent("reward", config.init.reward, kind=CheckpointKind.SCALAR_MODEL)
    run.same_tokenizer("policy", "reward")
    prompts = prompt_batches(
        load(data.prompts, Prompt, split="validation", data_dir=data.data_dir),
        run.tokenizer,
        prompt_length=data.prompt_length,
        batch_size=sft.batch_size,
        seed=config.seed,
    )
    batch = prompts.batch(0)
    prompt_BP = jnp.asarray(batch["prompt_BP"])
    prompt_mask_BP = jnp.asarray(batch["prompt_mask_BP"])
    length = sft.response_length

    @jax.jit
    def score(params: Params) -> jax.Array:
        samples = sample(
            model,
            params,
            prompt_BP,
            prompt_mask_BP,
            jax.random.key(config.seed),
            spec=PLAIN,
            response_length=length,
            stop_tokens=run.tokenizer.stop_ids,
            pad_id=run.tokenizer.pad_id,
        )
        mask_BR = length_mask(samples.length_B, length)
        texts = Texts(prompt_BP, prompt_mask_BP, samples.tokens_BR, mask_BR)
        return response_scores(ScalarModel(reward.model), reward.params, texts).mean()

    return score


def _initial_best(sft: SFT, params: Params) -> dict[str, Any]:
    if sft.select == "last":
        return {}
    best = {
        "params": params,
        "value": jnp.asarray(jnp.inf, jnp.float32),
        "step": jnp.zeros((), jnp.int32),
    }
    return {"best": best}


def _keep_best(state: TrainState, criterion: jax.Array) -> TrainState:
    """Remember the parameters if `criterion` (smaller is better) beats the best so far."""
    best = state.extras["best"]
    current = {"params": state.params, "value": criterion, "step": state.step}
    better = criterion < best["value"]
    kept = jax.tree.map(lambda new, old: jnp.where(better, new, old), current, best)
    return replace(state, extras={**state.extras, "best": kept})


def _criterion(measured: dict[str, Any], select: str) -> jax.Array:
    if select == "loss":
        return value(measured["validation/loss"])
    return -measured["validation/score"]
