"""Load models of Hugging Face as what a run can start from: safetensors, GGUF, adapters of PEFT.

`pretrained` imports this module when a path begins with hf: or hub:, and describes what such paths
may be.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.data.tokenizers import ASSISTANT, USER, Tokenizer, load_tokenizer, with_chat_tokens
from rlhf_jax.files import json_checksum
from rlhf_jax.models.config import from_dict, to_dict
from rlhf_jax.models.heads import grow_vocabulary
from rlhf_jax.models.huggingface import Place, load_pretrained
from rlhf_jax.models.huggingface.files import catalogue, read_json
from rlhf_jax.models.huggingface.gguf import load_gguf, read_metadata, read_shapes
from rlhf_jax.models.huggingface.gguf_tokenizers import gguf_tokenizer
from rlhf_jax.models.huggingface.peft import is_peft, load_peft, read_base_name
from rlhf_jax.models.lora import add_scales, combine
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, PathLike
from rlhf_jax.training.pretrained import (
    HUB,
    HUGGINGFACE,
    LOCAL,
    Bases,
    Params,
    check_tokenizer,
    link_to_base,
    load_model,
)

_GGUF = ".gguf"
# What a model consists of; weights that are not safetensors are not even downloaded.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}


class Source(NamedTuple):
    """Say where a model lies; `path` names it for good: hf:FOLDER, or hub:ORG/NAME@COMMIT."""

    path: str
    folder: Path  # or a GGUF file
    revision: str  # the commit of a model of the hub, else ""


def find_source(path: PathLike, *, may_download: bool = True) -> Source:
    """Find the local folder or GGUF file of hf:NAME, or the folder of a model of the hub.

    Raises:
        FileNotFoundError: there is none; says how to get the model.
    """
    if str(path).startswith(HUB):
        return _find_on_hub(str(path).removeprefix(HUB), may_download)
    name = str(path).removeprefix(LOCAL)
    if not Path(name).is_dir() and Path(name).suffix != _GGUF:
        raise FileNotFoundError(
            f"{LOCAL}{name}: no such folder, seen from {Path.cwd()}; a model of the Hugging Face "
            f"hub is named {HUB}ORG/NAME"
        )
    return Source(f"{LOCAL}{name}", Path(name), "")


def _find_on_hub(name: str, may_download: bool) -> Source:
    import huggingface_hub

    repository, _, revision = name.partition("@")
    try:
        snapshot = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=_WANTED,
            local_files_only=not may_download,
        )
    except Exception as error:  # A bad name, an unknown model, no network: one type each.
        command = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        if not may_download:
            raise FileNotFoundError(
                f"{HUB}{name}: not on this machine, and only what you name yourself is downloaded; "
                f"if you trust it, run `{command}`"
            ) from error
        reason = (str(error).splitlines() or [""])[0]
        raise FileNotFoundError(
            f"{HUB}{name}: the hub does not give it ({type(error).__name__}: {reason}); without a "
            f"network, run `{command} --local-dir FOLDER` elsewhere and name {LOCAL}FOLDER"
        ) from error
    commit = Path(snapshot).name  # the hub's cache is laid out so: .../snapshots/COMMIT
    return Source(f"{HUB}{repository}@{commit}", Path(snapshot), commit)


def _base_of(folder: Path) -> Source:
    """Find the model that adapters name: a local folder, or one of the hub that is here already."""
    name = read_base_name(folder)
    if Path(name).is_dir() or Path(name).suffix == _GGUF:
        return find_source(f"{LOCAL}{Path(name).absolute()}")
    try:
        return _find_on_hub(name, may_download=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{folder}/adapter_config.json: base_model_name_or_path: {name}: no such folder, and "
            f"as a model of the hub {error}"
        ) from error


def load_foreign(source: Source, bases: Bases, place: Place | None) -> tuple[Params, Meta]:
    """Load the parameters and `Meta` of a model; `bases` and `place` are as in `load_model`."""
    path, folder, _ = source
    if is_peft(folder):
        return _load_adapters(source, bases, place)
    own = _own_tokenizer(folder)
    tokenizer = _with_markers(own)
    kind = CheckpointKind.LANGUAGE_MODEL
    if folder.suffix == _GGUF:
        config, params = load_gguf(folder, **_FLOAT32, place=place)
    else:
        architectures = read_json(folder / "config.json").get("architectures") or [""]
        if architectures[0].endswith("ForSequenceClassification"):
            kind = CheckpointKind.SCALAR_MODEL
        config, params = load_pretrained(folder, kind=kind, **_FLOAT32, place=place)
    known = min(own.num_ids, config.vocab_size)
    _check_rows(path, own, known)
    config, params = grow_vocabulary(config, params, known, tokenizer.num_ids)
    meta = Meta(
        stage=HUGGINGFACE,
        kind=kind,
        num_steps=0,
        model=to_dict(config),
        tokenizer=tokenizer.fingerprint(),
        lineage={},
        fingerprint=json_checksum(checkpoints.tree_checksums(params)),
        extra=_provenance(source),
    )
    return params, meta


def count_foreign_params(source: Source) -> int:
    """Return the number of parameters by the files' headers; of adapters, their base's."""
    if is_peft(source.folder):
        return count_foreign_params(_base_of(source.folder))
    if source.folder.suffix == _GGUF:
        return sum(math.prod(shape) for shape in read_shapes(source.folder).values())
    return sum(math.prod(stored.shape) for stored in catalogue(source.folder).values())


def _provenance(source: Source) -> dict[str, str]:
    """Return what `Meta.extra` says of where a model came from."""
    revision = {"revision": source.revision} if source.revision else {}
    return {"source": source.path, **revision}


def _check_rows(path: str, tokenizer: Tokenizer, known: int) -> None:
    """Refuse ids beyond the embedding's rows, except special ones (Gemma 3: <image_soft_token>)."""
    beyond = tokenizer.tokens_from(known)
    if not all(special for _, special in beyond):
        raise ValueError(
            f"{path}: its tokenizer has ids up to {tokenizer.num_ids - 1}, but its model has "
            f"vocab_size={known}: put the tokenizer of this very model beside it"
        )
    if beyond:
        names = ", ".join(token for token, _ in beyond)
        problem = "special, but without a row in the embedding; given the mean of all rows"
        print(f"   {path}: {names}: {problem}", flush=True)


def _load_adapters(source: Source, bases: Bases, place: Place | None) -> tuple[Params, Meta]:
    """Put adapters in the files of PEFT on the base that they name."""
    folder = source.folder
    base_source = _base_of(folder)
    base, base_meta = load_model(base_source.path, bases=bases, place=place, may_download=False)
    has_adapters = "lora" in base_meta.extra
    if base_meta.kind != CheckpointKind.LANGUAGE_MODEL or has_adapters:
        raise ValueError(
            f"{folder}/adapter_config.json: base_model_name_or_path: {base_source.path} is a "
            f"{base_meta.kind}"
            f"{' with adapters' if has_adapters else ''}, expected a language model"
        )
    trained, config = load_peft(folder, from_dict(base_meta.model))
    params = combine(add_scales(base, trained, config.scale), trained)
    checksums = {"base": base_meta.fingerprint, "adapters": checkpoints.tree_checksums(trained)}
    tokenizer = read_foreign_tokenizer(source)
    link = link_to_base(base_source.path, base_meta.fingerprint, config)
    meta = replace(
        base_meta,
        tokenizer=tokenizer.fingerprint(),
        lineage={},
        fingerprint=json_checksum(checksums),
        extra={**_provenance(source), **link},
    )
    check_tokenizer(tokenizer, folder, meta)
    return params, meta


def read_foreign_tokenizer(source: Source) -> Tokenizer:
    """Load the tokenizer of a model, with chat markers where it has no chat template."""
    if is_peft(source.folder) and not (source.folder / "tokenizer.json").exists():
        return read_foreign_tokenizer(_base_of(source.folder))
    return _with_markers(_own_tokenizer(source.folder))


def _own_tokenizer(source: Path) -> Tokenizer:
    if source.suffix != _GGUF:
        return load_tokenizer(source)
    metadata = read_metadata(source)
    try:
        return gguf_tokenizer(metadata)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _with_markers(tokenizer: Tokenizer) -> Tokenizer:
    markers = {USER, ASSISTANT}
    if tokenizer.template is not None or markers <= tokenizer.fast.get_vocab().keys():
        return tokenizer
    return with_chat_tokens(tokenizer)
