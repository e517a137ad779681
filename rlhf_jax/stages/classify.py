"""Discriminative fine-tuning of a language model, with language modelling as an auxiliary loss.

    L3 = -log P(y | x_1..x_m) + lm_coef * L1,   P = softmax(W h_m) at the last token            (Radford 2018 eqs. 3-5)

Left out on purpose: the paper's delimiter and multiple-choice input transforms; records here are one text with one label.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import labelled_batches
from rlhf_jax.data.records import LabelledText
from rlhf_jax.data.sources import load
from rlhf_jax.inference.scoring import classify_texts, predicted
from rlhf_jax.maths.losses import cross_entropy
from rlhf_jax.maths.masking import Mean, mean, merge
from rlhf_jax.models.heads import Classifier, classifier_params_from, init_params
from rlhf_jax.models.lora import merge_adapters
from rlhf_jax.stages.language import check_batches
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.loop import Hook
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import TrainState, init_state, make_supervised_update

Params = Any
Batch = dict[str, Any]


@dataclass(frozen=True)
class Init:
    """The pretrained model; ../ is relative to the workdir."""

    policy: str
    pretrained: bool  # False keeps the shape and the tokenizer and starts from scratch: the paper's ablation


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
        f"classify.max_length={classify.max_length} exceeds the context of {parent.model.context_length}",
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

    model, key = (
        Classifier(replace(parent.model, dropout_rate=classify.dropout_rate), len(labels)),
        jax.random.key(config.seed),
    )
    optimizer = make_optimizer(config.optimizer, num_steps)
    params = _initial(config, parent, model, key)
    state = run.place(init_state(params, optimizer))
    run.announce(
        config,
        {"model": params},
        f"{num_steps} steps x {classify.batch_size} texts, labels {', '.join(labels)}",
    )
    update = run.compile_update(
        make_supervised_update(
            classification_loss(model, lm_coef=classify.lm_coef, dropout=classify.dropout_rate > 0),
            weigh,
            optimizer,
            num_micro_batches=classify.num_micro_batches,
        ),
        state,
    )

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        return update(state, run.shard(batches.batch(step)), jax.random.fold_in(key, step))

    run.train(
        state,
        step_fn,
        num_steps=num_steps,
        kind=CheckpointKind.CLASSIFIER,
        model=parent.model,
        hooks=[Hook(classify.eval_every, _validator(config, run, model, labels))],
        headline=("loss", "accuracy", "validation/accuracy"),
        extra={"labels": list(labels)},
    )


def classification_loss(model: Classifier, *, lm_coef: float, dropout: bool) -> Callable[..., Any]:
    """L3 of a batch: means over texts and over tokens, each divided by the whole batch's weight."""

    def loss(
        params: Params, batch: Batch, weights: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, Mean]]:
        out = classify_texts(
            model,
            params,
            batch["tokens_BT"],
            batch["segments_BT"],
            dropout_key=key if dropout else None,
        )
        ones_B = jnp.ones(batch["label_B"].shape, jnp.float32)
        nll = mean(cross_entropy(out.logits_BC, batch["label_B"]), ones_B)
        lm = mean(out.nll_BT, out.valid_BT)
        correct = mean(
            (out.logits_BC.argmax(axis=-1) == batch["label_B"]).astype(jnp.float32), ones_B
        )
        total = nll.total / weights["texts"] + lm_coef * lm.total / weights["tokens"]
        return total, {"loss": nll, "lm_loss": lm, "accuracy": correct}

    return loss


def weigh(batch: Batch) -> dict[str, jax.Array]:
    """Texts, and tokens that have a predecessor."""
    return {
        "texts": jnp.asarray(float(batch["label_B"].shape[0])),
        "tokens": predicted(batch["segments_BT"]).sum(),
    }


def _initial(config: Config, parent: Any, model: Classifier, key: jax.Array) -> Params:
    head_key = jax.random.fold_in(key, 1 << 30)
    if not config.init.pretrained:
        return init_params(model, head_key)
    return classifier_params_from(
        merge_adapters(parent.params), head_key, parent.model, model.num_classes
    )


def _batches(config: Config, run: Run, texts: Any, labels: tuple[str, ...]) -> Any:
    return labelled_batches(
        texts,
        run.tokenizer,
        labels=labels,
        context_length=config.classify.max_length,
        batch_size=config.classify.batch_size,
        seed=config.seed,
    )


def _validator(
    config: Config, run: Run, model: Classifier, labels: tuple[str, ...]
) -> Callable[[TrainState, int], dict[str, Any]]:
    held_out = load(
        config.data.texts, LabelledText, split="validation", data_dir=config.data.data_dir
    )
    batches = _batches(config, run, held_out, labels)
    chunks = [
        run.shard(batches.batch(i))
        for i in range(max(1, batches.num_examples // config.classify.batch_size))
    ]
    loss = classification_loss(model, lm_coef=config.classify.lm_coef, dropout=False)
    measure = jax.jit(lambda params, batch: loss(params, batch, weigh(batch), jax.random.key(0))[1])

    def validate(state: TrainState, step: int) -> dict[str, Any]:
        total = measure(state.params, chunks[0])
        for chunk in chunks[1:]:
            more = measure(state.params, chunk)
            total = {name: merge(total[name], more[name]) for name in total}
        return {f"validation/{name}": pair for name, pair in total.items()}

    return validate
