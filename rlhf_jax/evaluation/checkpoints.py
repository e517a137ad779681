"""Checkpoints that take part in an evaluation: found, checked, put in order, loaded. What `evaluate` and `benchmark` share."""

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
    """A checkpoint that has not been loaded yet."""

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


def find(workdir: Path, path: str) -> CheckpointRef:
    """The checkpoint that a config names; FileNotFoundError if there is none."""
    folder = locate(workdir, path)
    return CheckpointRef(path, folder, read_meta(folder))


def check_names(names: Iterable[str], reference: str) -> None:
    """Refuse names that cannot be part of a file's, and a reference that is not one of them."""
    named = list(names)
    require(
        reference in named, f"reference={reference!r} is not among checkpoints: {', '.join(named)}"
    )
    for name in named:
        require(
            re.fullmatch(r"[\w.-]+", name) is not None,
            f"checkpoints: the name {name!r} must consist of letters, digits and _.-",
        )


def in_order(entrants: dict[str, CheckpointRef]) -> dict[str, CheckpointRef]:
    """Parents before children: by the number of stages behind a checkpoint, then by name."""
    stages = ("pretrain", "sft")
    rank = {
        name: stages.index(one.meta.stage) if one.meta.stage in stages else 2
        for name, one in entrants.items()
    }
    return dict(sorted(entrants.items(), key=lambda item: (rank[item[0]], item[0])))


def described(entrants: Mapping[str, CheckpointRef]) -> dict[str, dict[str, Any]]:
    """What evaluation.json says of them."""
    return {
        name: {
            "path": one.path,
            "stage": one.meta.stage,
            "step": one.meta.step,
            "fingerprint": one.meta.fingerprint,
        }
        for name, one in entrants.items()
    }


def load_tokenizer_of(one: CheckpointRef) -> Tokenizer:
    """The tokenizer of its model."""
    return read_tokenizer(one.folder)


def load_language_model(one: CheckpointRef) -> LoadedModel:
    """Its language model and parameters."""
    params, meta = load_model(one.folder)
    return LoadedModel(LanguageModel(from_dict(meta.model)), params)


def load_scalar_model(one: CheckpointRef) -> tuple[ScalarModel, Any]:
    """Its scalar model and parameters."""
    params, meta = load_model(one.folder)
    return ScalarModel(from_dict(meta.model)), params
