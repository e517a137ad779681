"""Fine-tune a language model to classify texts, with language modelling as an auxiliary loss.

    L3 = -log P(y | x_1..x_m) + lm_coef * L1,   P = softmax(W h_m) at the last token

Source: Radford 2018, equations 3 to 5.

Left out on purpose: the paper's delimiter and multiple-choice input transforms; records here are
one text with one label.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import labelled_batches
from rlhf_jax.data.records import LabelledText
from rlhf_jax.data.sources import load
from rlhf_jax.inference.scoring import classify_texts, predicted
from rlhf_jax.maths.losses import cross_entropy
from rlhf_jax.maths.masking import Mean, mean
from rlhf_jax.models.heads import Classifier, classifier_params_from, init_params
from rlhf_jax.models.lora import merge_adapters
from rlhf_jax.stages.language import check_batches
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.keys import RunPurpose, run_key, step_key
from rlhf_jax.training.loop import Hook
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import (
    Objective,
    TrainState,
    init_state,
    merge_metrics,
    supervised_update,
)

Params = Any
Batch = dict[str, Any]


@dataclass(frozen=True)
class Init:
    """The pretrained model; ../ is relative to the workdir."""

    policy: str
    # False keeps the shape and the tokenizer and starts from scratch: the paper's ablation.
    pretrained: bool


@dataclass(frozen=True)
class Data:
    """Labelled texts."""

    data_dir: str
    texts: str
    max_examples: int  # 0 = all


@dataclass(frozen=True)
class Classify:
    """The run."""

    num_epochs: float
    batch_size: int
    num_micro_batches: int
    max_length: int
    lm_coef: float
    dropout_rate: float
    eval_every: int


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["classify"]
    seed: int
    init: Init
    data: Data
    classify: Classify
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def run(config: Config, workdir: str) -> None:
    """Fine-tune a language model to tell the labels of texts."""
    run, classify = Run.open(config, workdir), config.classify
    check_batches("classify", classify.batch_size, classify.num_micro_batches, run.batch_shards)
    parent = run.parent("policy", config.init.policy, kind=CheckpointKind.LANGUAGE_MODEL)
    require(
        classify.max_length <= parent.model.context_length,
        f"classify.max_length={classify.max_length} exceeds the context of "
        f"{parent.model.context_length}",
    )
    texts = load(config.data.texts, LabelledText, split="train", data_dir=config.data.data_dir)
    labels = tuple(sorted({text.label for text in texts}))
    require(
        len(labels) > 1,
        f"data.texts={config.data.texts} has the single label {labels}: nothing to tell apart",
    )
    train = texts[: config.data.max_examples] if config.data.max_examples else texts
    batches = _batches(config, run, train, labels)
    num_steps = round(classify.num_epochs * batches.num_examples / batches.batch_size)

    model = Classifier(replace(parent.model, dropout_rate=classify.dropout_rate), len(labels))
    key = jax.random.key(config.seed)
    optimizer = make_optimizer(config.optimizer, num_steps)
    params = _initial(config, parent, model, run_key(key, RunPurpose.HEAD))
    state = run.place(init_state(params, optimizer))
    run.announce(
        config,
        {"model": params},
        f"{num_steps} steps x {classify.batch_size} texts, labels {', '.join(labels)}",
    )
    loss = partial(classification_loss, model, classify.lm_coef)
    objective = Objective(loss, loss_denominator, classify.num_micro_batches)
    update = run.compile_update(partial(supervised_update, objective, optimizer), state)
    held_out = _held_out(config, run, labels)
    measure = jax.jit(partial(classification_metrics, model))

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        return update(state, run.shard(batches.batch(step)), step_key(key, step), {})

    def validate(state: TrainState, step: int) -> dict[str, Any]:
        metrics = measure(state.params, held_out[0])
        for batch in held_out[1:]:
            metrics = merge_metrics(metrics, measure(state.params, batch))
        return {f"validation/{name}": metric for name, metric in metrics.items()}

    meta = run.describe(CheckpointKind.CLASSIFIER, num_steps, parent.model, labels=list(labels))
    run.train(
        state,
        step_fn,
        meta,
        hooks=[Hook(classify.eval_every, validate)],
        headline=("loss", "accuracy", "validation/accuracy"),
    )


def classification_loss(
    model: Classifier,
    lm_coef: float,
    params: Params,
    batch: Batch,
    denominators: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[jax.Array, dict[str, Mean]]:
    """Return L3 of a batch: means over texts and over tokens, each over the whole batch's count."""
    dropout_key = key if model.config.dropout_rate > 0 else None
    metrics = classification_metrics(model, params, batch, dropout_key)
    total = metrics["loss"].total / denominators["texts"]
    total += lm_coef * metrics["lm_loss"].total / denominators["tokens"]
    return total, metrics


def classification_metrics(
    model: Classifier, params: Params, batch: Batch, dropout_key: jax.Array | None = None
) -> dict[str, Mean]:
    """Return the losses and the accuracy of one batch as undivided means."""
    outputs = classify_texts(
        model, params, batch["tokens_BT"], batch["segments_BT"], dropout_key=dropout_key
    )
    label_B = batch["label_B"]
    ones_B = jnp.ones(label_B.shape, jnp.float32)
    correct_B = (outputs.logits_BC.argmax(axis=-1) == label_B).astype(jnp.float32)
    return {
        "loss": mean(cross_entropy(outputs.logits_BC, label_B), ones_B),
        "lm_loss": mean(outputs.nll_BT, outputs.valid_BT),
        "accuracy": mean(correct_B, ones_B),
    }


def loss_denominator(batch: Batch) -> dict[str, jax.Array]:
    """Return the numbers of texts, and of tokens that have a predecessor."""
    return {
        "texts": jnp.asarray(float(batch["label_B"].shape[0])),
        "tokens": predicted(batch["segments_BT"]).sum(),
    }


def _initial(config: Config, parent: Any, model: Classifier, key: jax.Array) -> Params:
    if not config.init.pretrained:
        return init_params(model, key)
    plain = merge_adapters(parent.params)
    return classifier_params_from(plain, key, parent.model, model.num_classes)


def _batches(config: Config, run: Run, texts: Any, labels: tuple[str, ...]) -> Any:
    return labelled_batches(
        texts,
        run.tokenizer,
        labels=labels,
        context_length=config.classify.max_length,
        batch_size=config.classify.batch_size,
        seed=config.seed,
    )


def _held_out(config: Config, run: Run, labels: tuple[str, ...]) -> list[Batch]:
    texts = load(config.data.texts, LabelledText, split="validation", data_dir=config.data.data_dir)
    batches = _batches(config, run, texts, labels)
    count = max(1, batches.num_examples // config.classify.batch_size)
    return [run.shard(batches.batch(i)) for i in range(count)]
