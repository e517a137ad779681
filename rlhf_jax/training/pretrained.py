"""Load what a run can start from: a checkpoint of a run, or a model of Hugging Face.

    runs/sft, runs/sft/checkpoints/200    a run's newest checkpoint, or one of them
    hf:FOLDER                             a folder of config.json, safetensors and a fast tokenizer
    hf:FOLDER with adapter_config.json    adapters in the files of PEFT, and the base that they name
    hf:FILE.gguf                          weights and tokenizer in one file of llama.cpp's
    hub:ORG/NAME[@REVISION]               such a folder on the Hugging Face hub, downloaded once

A model of Hugging Face has float32 parameters here. Its tokenizer gets the chat markers where it
lacks them, and the vocabulary grows with it by rows that are the mean of the old ones. An
architecture ...ForSequenceClassification is a scalar model.

A checkpoint of adapters and heads names in meta.extra["lora"] the base that they stand on. A base
is loaded once however many runs stand on it, so parents that share one share its arrays. Of a model
of the hub the commit is recorded, and a run goes on with the one that it began with. Only what a
user names is downloaded: a base on the hub that a file names has to be on this machine already.

Left out on purpose: code from the hub, pickled weights.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
from rlhf_jax.models.config import from_dict, num_params
from rlhf_jax.models.lora import LoraConfig, add_scales, combine
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import Meta, PathLike

if TYPE_CHECKING:
    from rlhf_jax.models.huggingface import Place

Params = Any
# Plain models by the fingerprint of their checkpoint, or by their hf: path or hub: commit.
Bases = dict[str, tuple[Params, Meta]]

LOCAL = "hf:"  # how the path of a local folder in the format of Hugging Face begins
HUB = "hub:"  # how the name of a model on the hub begins
HUGGINGFACE = "huggingface"  # the stage that its `Meta` names


# --- models ---------------------------------------------------------------------------------------


def is_foreign(path: PathLike) -> bool:
    """Say whether a path names a model in the format of Hugging Face."""
    return str(path).startswith((LOCAL, HUB))


def pin(path: PathLike, revision: str) -> Path:
    """Return the path of the same model of the hub at one of its commits."""
    return Path(f"{str(path).partition('@')[0]}@{revision}")


def load_model(
    path: PathLike,
    *,
    bases: Bases | None = None,
    place: "Place | None" = None,
    may_download: bool = True,
) -> tuple[Params, Meta]:
    """Load the parameters and `Meta` of what `path` names, with adapters if there are any.

    `bases` remembers plain models. `place` is as in `load_pretrained`, and only for models of
    Hugging Face; `may_download` is for paths that a user has named.

    Raises:
        FileNotFoundError: there is nothing, or no base where a checkpoint says it is.
        ValueError: names what is damaged, does not fit, or is no longer the base of some adapters.
    """
    bases = {} if bases is None else bases
    if is_foreign(path):
        foreign = _foreign()
        source = foreign.find_source(path, may_download=may_download)
        if source.path not in bases:
            bases[source.path] = foreign.load_foreign(source, bases, place)
        return bases[source.path]
    folder = checkpoints.resolve(path)
    meta = checkpoints.read_meta(folder)
    if "lora" in meta.extra:
        base, base_meta = load_model(
            base_path(folder, meta), bases=bases, place=place, may_download=False
        )
        return _on_base(folder, meta, base, base_meta), meta
    if meta.fingerprint not in bases:
        bases[meta.fingerprint] = checkpoints.load_params(folder)
    return bases[meta.fingerprint][0], meta


def read_meta(path: PathLike) -> Meta:
    """Read the `Meta` alone; foreign models are loaded for it: it has their weights' checksum."""
    return load_model(path)[1] if is_foreign(path) else checkpoints.read_meta(path)


def count_params(path: PathLike) -> int:
    """Return a model's number of parameters without reading them; of adapters, their base's."""
    if is_foreign(path):
        foreign = _foreign()
        return int(foreign.count_foreign_params(foreign.find_source(path)))
    return num_params(from_dict(read_meta(path).model))


def _foreign() -> ModuleType:
    """Import what reads models of Hugging Face, GGUF and PEFT: only who names one needs it."""
    from rlhf_jax.training import foreign

    return foreign


def _on_base(folder: Path, meta: Meta, base: Params, base_meta: Meta) -> Params:
    """Return the union of a base and the adapters and head of a checkpoint."""
    link = meta.extra["lora"]
    if base_meta.fingerprint != link["fingerprint"]:
        raise ValueError(
            f"{folder} has adapters for {link['base']} ({link['fingerprint']}), which now holds "
            f"{base_meta.fingerprint}; restore that base"
        )
    if meta.kind != base_meta.kind:
        names = ("trunk", "lm_head") if meta.model.get("read_out") == "pooled" else ("trunk",)
        base = {name: base[name] for name in names if name in base}
    trained, _ = checkpoints.load_params(folder)
    return combine(add_scales(base, trained, link["alpha"] / link["rank"]), trained)


def base_path(path: PathLike, meta: Meta) -> str:
    """Return the path of the model that the adapters of the checkpoint at `path` stand on."""
    base = str(meta.extra["lora"]["base"])
    return base if is_foreign(base) else os.path.normpath(checkpoints.resolve(path) / base)


def describe_link(
    workdir: Path, parent: PathLike, meta: Meta, config: LoraConfig
) -> dict[str, Any]:
    """Return what a run in `workdir` writes into meta.extra about the base it takes from `parent`.

    The base's path is as seen from any checkpoint of the run; that of a local folder of Hugging
    Face is absolute, and a model of the hub is named with its commit.
    """
    base = str(parent)
    fingerprint = meta.fingerprint
    if "lora" in meta.extra:
        base = base_path(parent, meta)
        fingerprint = meta.extra["lora"]["fingerprint"]
    elif is_foreign(base):
        base = meta.extra["source"]
        if base.startswith(LOCAL):
            base = f"{LOCAL}{Path(base.removeprefix(LOCAL)).absolute()}"
    if not is_foreign(base):
        base_folder = checkpoints.resolve(base).absolute()
        base = os.path.relpath(base_folder, checkpoints.checkpoint_folder(workdir, 0).absolute())
    return link_to_base(base, fingerprint, config)


def link_to_base(base: str, fingerprint: str, config: LoraConfig) -> dict[str, Any]:
    """Return the entry of meta.extra that names what adapters stand on."""
    link = {"base": base, "fingerprint": fingerprint, "rank": config.rank, "alpha": config.alpha}
    return {"lora": {**link, "modules": list(config.modules)}}


# --- tokenizers -----------------------------------------------------------------------------------


def read_tokenizer(path: PathLike) -> Tokenizer:
    """Load the tokenizer that belongs to a model; without a chat template it has the chat markers.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another than the model was trained with.
    """
    if not is_foreign(path):
        folder = checkpoints.resolve(path)
        return tokenizer_of(folder.parent.parent, checkpoints.read_meta(folder))
    foreign = _foreign()
    return foreign.read_foreign_tokenizer(foreign.find_source(path))


def tokenizer_of(run: Path, meta: Meta) -> Tokenizer:
    """Load the tokenizer beside a run's checkpoints.

    Raises:
        FileNotFoundError: the run has none.
        ValueError: as `check_tokenizer`.
    """
    tokenizer = load_tokenizer(run / "tokenizer")
    check_tokenizer(tokenizer, run / "tokenizer", meta)
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, folder: Path, meta: Meta) -> None:
    """Refuse a tokenizer that a checkpoint does not name, or with more ids than it has rows."""
    if tokenizer.fingerprint() != meta.tokenizer:
        raise ValueError(
            f"{folder} is not the tokenizer of the model that stage {meta.stage} left at step "
            f"{meta.step} (fingerprint {tokenizer.fingerprint()[:12]}, expected "
            f"{meta.tokenizer[:12]}): copy there the tokenizer/ of the run that the model started "
            "from"
        )
    if tokenizer.num_ids > meta.model["vocab_size"]:
        raise ValueError(
            f"{folder} has ids up to {tokenizer.num_ids - 1}, but the model that stage "
            f"{meta.stage} left has vocab_size={meta.model['vocab_size']}: use the model's own "
            "tokenizer, or a model with more embeddings"
        )
