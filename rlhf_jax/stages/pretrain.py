"""Pretrain a language model: predict the next token of packed documents.

    L = -(1/N) Σ_t log π(x_t | x_<t)  [ + z_loss_coef log² Z ]

Sources: Radford 2018 eq. 1, Brown 2020; the z-loss is Chowdhery 2022 §5.

Documents are tokenised, joined by the end-of-text token and cut into blocks of the context length;
no token is lost. They are read one by one and the blocks written to the workdir, so that a corpus
may be larger than the memory. The tokenizer is trained on the same documents, or taken from a
folder, and travels with the checkpoint from then on.

Left out on purpose: batch-size ramps, curriculum, deduplication (do that to the data).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax

from rlhf_jax.config import require, require_given
from rlhf_jax.data.batches import Batches
from rlhf_jax.data.records import Document
from rlhf_jax.data.sources import stream
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer, train_bpe, train_words
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.heads import LanguageModel, init_params
from rlhf_jax.stages.language import (
    batch_nll,
    check_batches,
    corpus_batches,
    document_batch,
    language_loss,
    mean_nll,
    num_tokens,
    trained_tokens,
)
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.keys import RunPurpose, run_key, step_key
from rlhf_jax.training.loop import Hook
from rlhf_jax.training.mesh import check_model
from rlhf_jax.training.optimizer import OptimizerConfig, make_optimizer
from rlhf_jax.training.run import CheckpointConfig, MeshConfig, Run
from rlhf_jax.training.updates import Objective, TrainState, init_state, supervised_update


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens: trained on the documents, or read from a folder."""

    kind: Literal["bpe", "words", "folder"]
    vocab_size: int | None  # of a trained BPE
    path: str | None  # of a folder


@dataclass(frozen=True)
class Data:
    """The documents."""

    data_dir: str
    documents: str
    mask_documents: bool  # attention stays inside a document; False is GPT-3's choice


@dataclass(frozen=True)
class Pretrain:
    """The run."""

    num_steps: int
    batch_size: int  # blocks of the context length
    num_micro_batches: int
    z_loss_coef: float
    eval_every: int
    eval_batches: int


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["pretrain"]
    seed: int
    data: Data
    tokenizer: TokenizerConfig
    model: TransformerConfig
    pretrain: Pretrain
    optimizer: OptimizerConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig


def run(config: Config, workdir: str) -> None:
    """Train a language model from scratch."""
    run = Run.open(config, workdir)
    settings = config.pretrain
    shape = config.mesh.run_as(config.model)
    check_batches("pretrain", settings.batch_size, settings.num_micro_batches, run.batch_shards)
    check_model(shape, run.mesh)
    documents = stream(
        config.data.documents, Document, split="train", data_dir=config.data.data_dir
    )
    tokenizer = run.adopt_tokenizer(lambda: make_tokenizer(config.tokenizer, documents))
    require(
        tokenizer.num_ids == shape.vocab_size,
        f"model.vocab_size={shape.vocab_size}, but the tokenizer has {tokenizer.num_ids} tokens; "
        "set model.vocab_size to the latter",
    )

    model = LanguageModel(shape)
    key = jax.random.key(config.seed)
    optimizer = make_optimizer(config.optimizer, settings.num_steps)
    params = init_params(model, run_key(key, RunPurpose.MODEL))
    state = run.place(init_state(params, optimizer))
    validation = _blocks(config, run, "validation")  # the smaller one first: it may be too small
    most = max(validation.num_examples // settings.batch_size, 1)
    require(
        settings.eval_batches <= most,
        f"pretrain.eval_batches={settings.eval_batches}: the validation split has "
        f"{validation.num_examples} blocks, which are {most} batches of pretrain.batch_size="
        f"{settings.batch_size}; set pretrain.eval_batches={most} or less",
    )
    batches = _blocks(config, run, "train")
    epochs = settings.num_steps * batches.batch_size / batches.num_examples
    run.announce(
        config,
        {"model": params},
        f"{settings.num_steps} steps x {settings.batch_size} blocks x {shape.context_length} "
        f"tokens = {epochs:.1f} epochs of {num_tokens(batches):,} tokens",
    )

    loss = partial(language_loss, model, settings.z_loss_coef)
    objective = Objective(loss, trained_tokens, settings.num_micro_batches)
    update = run.compile_update(partial(supervised_update, objective, optimizer), state)
    measure = jax.jit(partial(batch_nll, model))
    held_out = [
        run.shard(document_batch(validation.batch(i))) for i in range(settings.eval_batches)
    ]

    def step_fn(state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        batch = document_batch(batches.batch(step))
        state, metrics = update(state, run.shard(batch), step_key(key, step), {})
        return state, {**metrics, "tokens": batch["tokens_BT"].size}

    def validate(state: TrainState, step: int) -> dict[str, Any]:
        return {"validation/loss": mean_nll(measure, state.params, held_out)}

    meta = run.describe(CheckpointKind.LANGUAGE_MODEL, settings.num_steps, shape)
    run.train(
        state,
        step_fn,
        meta,
        hooks=[Hook(settings.eval_every, validate)],
        headline=("loss", "validation/loss"),
    )


def make_tokenizer(config: TokenizerConfig, documents: Iterable[Document]) -> Tokenizer:
    """Train or read the tokenizer that the config names."""
    if config.kind == "folder":
        return load_tokenizer(
            require_given(config.path, "tokenizer.kind=folder needs tokenizer.path")
        )
    texts = (document.text for document in documents)
    if config.kind == "words":
        return train_words(texts)
    return train_bpe(
        texts, require_given(config.vocab_size, "tokenizer.kind=bpe needs tokenizer.vocab_size")
    )


def _blocks(config: Config, run: Run, split: str) -> Batches:
    return corpus_batches(
        run,
        config.data.documents,
        split,
        data_dir=config.data.data_dir,
        context_length=config.model.context_length,
        batch_size=config.pretrain.batch_size,
        seed=config.seed,
        mask_documents=config.data.mask_documents,
    )
