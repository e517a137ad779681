"""What a run can start from: a checkpoint of ours, or a model of Hugging Face.

    runs/sft, runs/sft/checkpoints/200    a run's newest checkpoint, or one of them
    hf:FOLDER, hf:ORG/NAME                a folder of config.json, safetensors and a fast tokenizer, or a model of the hub,
                                          which is downloaded once
    hf:FILE.gguf                          weights and tokenizer in one file of llama.cpp's

A model of Hugging Face has float32 parameters here. Its tokenizer gets the chat markers where it lacks them, and the
vocabulary grows with it; the new rows are the mean of the old ones. Its kind follows from config.json: an architecture
...ForSequenceClassification is a scalar model.

A checkpoint of a run that trained adapters holds adapters and heads, and names in meta.extra["lora"] what they stand on. A
base is loaded once however many runs stand on it, so parents that share one share its arrays.

Left out on purpose: code from the hub, pickled weights.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_jax.data.tokenizers import ASSISTANT, USER, Tokenizer, load_tokenizer, with_chat_tokens
from rlhf_jax.models.config import to_dict
from rlhf_jax.models.heads import grow_vocabulary
from rlhf_jax.models.huggingface import Place, load_pretrained
from rlhf_jax.models.huggingface.files import read_json
from rlhf_jax.models.huggingface.gguf import load_gguf, read_metadata
from rlhf_jax.models.huggingface.gguf_tokenizers import gguf_tokenizer
from rlhf_jax.models.lora import LoraConfig, combine, add_scales
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import (
    Meta,
    PathLike,
    describe,
    fingerprint,
    flatten_named,
    new_meta,
)


# A checkpoint's tokenizer: the one that its model was trained with, or an error.
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
    """Refuse a tokenizer that is not the one a checkpoint names, or has more ids than its model has embeddings.

    Fewer are no fault: many models pad their embeddings.
    """
    if tokenizer.fingerprint() != meta.tokenizer:
        raise ValueError(
            f"{folder} is not the tokenizer of the model that stage {meta.stage} left at step {meta.step} (fingerprint "
            f"{tokenizer.fingerprint()[:12]}, expected {meta.tokenizer[:12]}): copy there the tokenizer/ of "
            "the run that the model started from"
        )
    if tokenizer.num_ids > meta.model["vocab_size"]:
        raise ValueError(
            f"{folder} has ids up to {tokenizer.num_ids - 1}, but the model that stage {meta.stage} left has "
            f"vocab_size={meta.model['vocab_size']}: use the model's own tokenizer, or a model with more embeddings"
        )


GGUF = ".gguf"
HUB, HUGGINGFACE = (
    "hf:",
    "huggingface",
)  # how such a path begins, and the stage that its `Meta` names
# What a model consists of; weights that are not safetensors are not even downloaded.
WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]

Params = Any
Bases = dict[
    str, tuple[Params, Meta]
]  # plain models by the fingerprint of their checkpoint, or their hf: path


def load_model(
    path: PathLike, *, bases: Bases | None = None, place: Place | None = None
) -> tuple[Params, Meta]:
    """Parameters, with adapters if there are any, and `Meta` of what `path` names; `bases` remembers what was loaded.

    `place` is as in `load_pretrained` and only for hf:.

    Raises FileNotFoundError where there is nothing, or no base where a checkpoint says it is; ValueError naming what is
    damaged, does not fit, or is no longer the base that adapters were trained on.
    """
    bases = {} if bases is None else bases
    if str(path).startswith(HUB):
        if str(path) not in bases:
            bases[str(path)] = _from_hub(str(path), place)
        return bases[str(path)]
    folder = checkpoints.resolve(path)
    meta = checkpoints.read_meta(folder)
    if "lora" in meta.extra:
        base = load_model(base_path(folder, meta), bases=bases, place=place)
        return _on_base(folder, meta, *base), meta
    if meta.fingerprint not in bases:
        bases[meta.fingerprint] = checkpoints.load_params(folder)
    return bases[meta.fingerprint][0], meta


def _on_base(folder: Path, meta: Meta, base: Params, base_meta: Meta) -> Params:
    """The union of a base and the adapters and head of a checkpoint."""
    link = meta.extra["lora"]
    if base_meta.fingerprint != link["fingerprint"]:
        raise ValueError(
            f"{folder} has adapters for {link['base']} ({link['fingerprint']}), which now holds {base_meta.fingerprint}; "
            "restore that base"
        )
    if meta.kind != base_meta.kind:
        base = {"trunk": base["trunk"]}
    trained, _ = checkpoints.load_params(folder)
    return combine(add_scales(base, trained, link["alpha"] / link["rank"]), trained)


def base_path(folder: Path, meta: Meta) -> str:
    """What a checkpoint's adapters stand on."""
    base = str(meta.extra["lora"]["base"])
    return base if base.startswith(HUB) else os.path.normpath(folder / base)


def describe_link(
    workdir: Path, parent: PathLike, meta: Meta, config: LoraConfig
) -> dict[str, Any]:
    """What a run in `workdir` writes into meta.extra about the base it takes from `parent`: its path as seen from any
    checkpoint of the run, its fingerprint, and the adapters' config."""
    base, fingerprint = str(parent), meta.fingerprint
    if "lora" in meta.extra:
        base, fingerprint = (
            base_path(checkpoints.resolve(parent), meta),
            meta.extra["lora"]["fingerprint"],
        )
    if not base.startswith(HUB):
        base = os.path.relpath(
            checkpoints.resolve(base).absolute(),
            checkpoints.checkpoint_folder(workdir, 0).absolute(),
        )
    return {
        "lora": {
            "base": base,
            "fingerprint": fingerprint,
            "rank": config.rank,
            "alpha": config.alpha,
            "modules": list(config.modules),
        }
    }


def read_meta(path: PathLike) -> Meta:
    """The `Meta` alone; a model of Hugging Face is loaded for it, because its fingerprint is that of its weights."""
    return load_model(path)[1] if str(path).startswith(HUB) else checkpoints.read_meta(path)


def read_tokenizer(path: PathLike) -> Tokenizer:
    """The tokenizer that belongs to the model; without a chat template it has the chat markers.

    Raises FileNotFoundError if there is none, ValueError if it is another than the model was trained with.
    """
    if not str(path).startswith(HUB):
        folder = checkpoints.resolve(path)
        return tokenizer_of(folder.parent.parent, checkpoints.read_meta(folder))
    return _with_markers(_own_tokenizer(local_folder(path)))


def _own_tokenizer(place: Path) -> Tokenizer:
    if place.suffix != GGUF:
        return load_tokenizer(place)
    metadata = read_metadata(place)
    try:
        return gguf_tokenizer(metadata)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _with_markers(tokenizer: Tokenizer) -> Tokenizer:
    complete = (
        tokenizer.template is not None or {USER, ASSISTANT} <= tokenizer.fast.get_vocab().keys()
    )
    return tokenizer if complete else with_chat_tokens(tokenizer)


def _from_hub(path: str, place: Place | None) -> tuple[Any, Meta]:
    source = local_folder(path)
    own = _own_tokenizer(source)
    tokenizer = _with_markers(own)
    kind, dtypes = "language_model", {"param_dtype": "float32", "compute_dtype": "float32"}
    if source.suffix == GGUF:
        config, params = load_gguf(source, **dtypes, place=place)
    else:
        architectures = read_json(source / "config.json").get("architectures") or [""]
        kind = "scalar_model" if architectures[0].endswith("ForSequenceClassification") else kind
        config, params = load_pretrained(source, kind=kind, **dtypes, place=place)
    known = min(own.num_ids, config.vocab_size)
    beyond = own.beyond(known)
    if not all(special for _, special in beyond):
        raise ValueError(
            f"{path}: its tokenizer has ids up to {own.num_ids - 1}, but its model has vocab_size={config.vocab_size}: put the "
            "tokenizer of this very model beside it"
        )
    if beyond:  # as Gemma 3's <image_soft_token>, which its language model alone never sees
        names = ", ".join(token for token, _ in beyond)
        print(
            f"   {path}: {names}: special, but without a row in the embedding; given the mean of all rows",
            flush=True,
        )
    config, params = grow_vocabulary(config, params, known, tokenizer.num_ids)
    meta = new_meta(
        stage=HUGGINGFACE,
        kind=kind,
        num_steps=0,
        model=to_dict(config),
        tokenizer=tokenizer.fingerprint(),
        lineage={},
        extra={"source": path},
    )
    leaves = {name: describe(leaf) for name, leaf in flatten_named(params).items()}
    return params, replace(meta, fingerprint=fingerprint(leaves))


def local_folder(path: PathLike) -> Path:
    """The local folder of hf:NAME: the folder or GGUF file NAME if there is one, else a snapshot of the hub's model."""
    name = str(path).removeprefix(HUB)
    if Path(name).is_dir() or Path(name).suffix == GGUF:
        return Path(name)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=WANTED))
    except (
        Exception
    ) as error:  # Names that cannot be, models that are not there, no network: one type each.
        reason = (str(error).splitlines() or [""])[0]
        raise FileNotFoundError(
            f"{HUB}{name}: no such folder, and the hub does not give it ({type(error).__name__}: {reason}); without a "
            f"network, run `hf download {name} --local-dir FOLDER` elsewhere and name {HUB}FOLDER"
        ) from error
