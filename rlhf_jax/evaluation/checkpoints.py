"""Find the checkpoints that take part in an evaluation, check their names, order and load them."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.config import require
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.models.config import TransformerConfig, from_dict
from rlhf_jax.models.heads import LanguageModel, Params, ScalarModel
from rlhf_jax.training.checkpoints import Meta
from rlhf_jax.training.pretrained import load_model, read_meta, read_tokenizer
from rlhf_jax.training.run import locate


class CheckpointRef(NamedTuple):
    """A checkpoint that has not been loaded yet; `path` is what the config calls it."""

    path: str
    folder: Path
    meta: Meta

    @property
    def model(self) -> TransformerConfig:
        """The shape of its model."""
        return from_dict(self.meta.model)


class LoadedModel(NamedTuple):
    """A language model and its parameters."""

    model: LanguageModel
    params: Params


def find_checkpoint(workdir: Path, path: str) -> CheckpointRef:
    """Find the checkpoint that a config names.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = locate(workdir, path)
    return CheckpointRef(path, folder, read_meta(folder))


def check_names(names: Iterable[str], reference: str) -> None:
    """Refuse names that cannot be part of a file's, and a reference that is not one of them."""
    known = list(names)
    require(
        reference in known, f"reference={reference!r} is not among checkpoints: {', '.join(known)}"
    )
    for name in known:
        require(
            re.fullmatch(r"[\w.-]+", name) is not None,
            f"checkpoints: the name {name!r} must consist of letters, digits and _.-",
        )


def parents_first(checkpoints: Mapping[str, CheckpointRef]) -> dict[str, CheckpointRef]:
    """Sort checkpoints by the number of stages behind them, then by name."""
    stages = ("pretrain", "sft")

    def place(item: tuple[str, CheckpointRef]) -> tuple[int, str]:
        name, checkpoint = item
        stage = checkpoint.meta.stage
        return (stages.index(stage) if stage in stages else len(stages)), name

    return dict(sorted(checkpoints.items(), key=place))


def describe(checkpoints: Mapping[str, CheckpointRef]) -> dict[str, dict[str, Any]]:
    """Return what evaluation.json says of the checkpoints."""
    return {
        name: {
            "path": checkpoint.path,
            "stage": checkpoint.meta.stage,
            "step": checkpoint.meta.step,
            "fingerprint": checkpoint.meta.fingerprint,
        }
        for name, checkpoint in checkpoints.items()
    }


def load_tokenizer_of(checkpoint: CheckpointRef) -> Tokenizer:
    """Load the tokenizer of a checkpoint."""
    return read_tokenizer(checkpoint.folder)


def load_language_model(checkpoint: CheckpointRef) -> LoadedModel:
    """Load a checkpoint of a language model."""
    params, meta = load_model(checkpoint.folder)
    return LoadedModel(LanguageModel(from_dict(meta.model)), params)


def load_scalar_model(checkpoint: CheckpointRef) -> tuple[ScalarModel, Params]:
    """Load a checkpoint of a reward or value model."""
    params, meta = load_model(checkpoint.folder)
    return ScalarModel(from_dict(meta.model)), params
