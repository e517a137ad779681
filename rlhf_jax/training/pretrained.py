"""Load what a run can start from: a checkpoint of a run, or a model of Hugging Face.

    runs/sft, runs/sft/checkpoints/200    a run's newest checkpoint, or one of them
    hf:FOLDER, hf:ORG/NAME                a folder of config.json, safetensors and a fast tokenizer,
                                          or a model of the hub, which is downloaded once
    hf:FOLDER with adapter_config.json    adapters in the files of PEFT, and the base that they name
    hf:FILE.gguf                          weights and tokenizer in one file of llama.cpp's

A model of Hugging Face has float32 parameters here. Its tokenizer gets the chat markers where it
lacks them, and the vocabulary grows with it by rows that are the mean of the old ones. An
architecture ...ForSequenceClassification is a scalar model.

A checkpoint of adapters and heads names in meta.extra["lora"] the base that they stand on. A base
is loaded once however many runs stand on it, so parents that share one share its arrays.

Left out on purpose: code from the hub, pickled weights.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_jax.data.tokenizers import ASSISTANT, USER, Tokenizer, load_tokenizer, with_chat_tokens
from rlhf_jax.models.config import from_dict, to_dict
from rlhf_jax.models.heads import grow_vocabulary
from rlhf_jax.models.huggingface import Place, load_pretrained
from rlhf_jax.models.huggingface.files import read_json
from rlhf_jax.models.huggingface.gguf import load_gguf, read_metadata
from rlhf_jax.models.huggingface.gguf_tokenizers import gguf_tokenizer
from rlhf_jax.models.huggingface.peft import load_peft
from rlhf_jax.models.lora import LoraConfig, add_scales, combine
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, PathLike

Params = Any
# Plain models by the fingerprint of their checkpoint, or by their hf: path.
Bases = dict[str, tuple[Params, Meta]]

HUB = "hf:"  # how the path of a model of Hugging Face begins
HUGGINGFACE = "huggingface"  # the stage that its `Meta` names
_GGUF = ".gguf"
_PEFT = "adapter_config.json"
# What a model consists of; weights that are not safetensors are not even downloaded.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}


# --- models ---------------------------------------------------------------------------------------


def load_model(
    path: PathLike, *, bases: Bases | None = None, place: Place | None = None
) -> tuple[Params, Meta]:
    """Load the parameters and `Meta` of what `path` names, with adapters if there are any.

    `bases` remembers plain models. `place` is as in `load_pretrained`, and only for hf:.

    Raises:
        FileNotFoundError: there is nothing, or no base where a checkpoint says it is.
        ValueError: names what is damaged, does not fit, or is no longer the base of some adapters.
    """
    bases = {} if bases is None else bases
    if str(path).startswith(HUB):
        if str(path) not in bases:
            bases[str(path)] = _load_foreign(str(path), bases, place)
        return bases[str(path)]
    folder = checkpoints.resolve(path)
    meta = checkpoints.read_meta(folder)
    if "lora" in meta.extra:
        base, base_meta = load_model(base_path(folder, meta), bases=bases, place=place)
        return _on_base(folder, meta, base, base_meta), meta
    if meta.fingerprint not in bases:
        bases[meta.fingerprint] = checkpoints.load_params(folder)
    return bases[meta.fingerprint][0], meta


def read_meta(path: PathLike) -> Meta:
    """Read the `Meta` alone; hf: is loaded for it, as its fingerprint is that of its weights."""
    return load_model(path)[1] if str(path).startswith(HUB) else checkpoints.read_meta(path)


def _on_base(folder: Path, meta: Meta, base: Params, base_meta: Meta) -> Params:
    """Return the union of a base and the adapters and head of a checkpoint."""
    link = meta.extra["lora"]
    if base_meta.fingerprint != link["fingerprint"]:
        raise ValueError(
            f"{folder} has adapters for {link['base']} ({link['fingerprint']}), which now holds "
            f"{base_meta.fingerprint}; restore that base"
        )
    if meta.kind != base_meta.kind:
        base = {"trunk": base["trunk"]}
    trained, _ = checkpoints.load_params(folder)
    return combine(add_scales(base, trained, link["alpha"] / link["rank"]), trained)


def base_path(path: PathLike, meta: Meta) -> str:
    """Return the path of the model that the adapters of the checkpoint at `path` stand on."""
    base = str(meta.extra["lora"]["base"])
    return base if base.startswith(HUB) else os.path.normpath(checkpoints.resolve(path) / base)


def describe_link(
    workdir: Path, parent: PathLike, meta: Meta, config: LoraConfig
) -> dict[str, Any]:
    """Return what a run in `workdir` writes into meta.extra about the base it takes from `parent`.

    The base's path is as seen from any checkpoint of the run.
    """
    base = str(parent)
    fingerprint = meta.fingerprint
    if "lora" in meta.extra:
        base = base_path(parent, meta)
        fingerprint = meta.extra["lora"]["fingerprint"]
    if not base.startswith(HUB):
        base_folder = checkpoints.resolve(base).absolute()
        base = os.path.relpath(base_folder, checkpoints.checkpoint_folder(workdir, 0).absolute())
    return _link(base, fingerprint, config)


def _link(base: str, fingerprint: str, config: LoraConfig) -> dict[str, Any]:
    link = {"base": base, "fingerprint": fingerprint, "rank": config.rank, "alpha": config.alpha}
    return {"lora": {**link, "modules": list(config.modules)}}


# --- models of Hugging Face -----------------------------------------------------------------------


def _load_foreign(path: str, bases: Bases, place: Place | None) -> tuple[Params, Meta]:
    source = local_folder(path)
    if (source / _PEFT).exists():
        return _load_adapters(path, source, bases, place)
    own = _own_tokenizer(source)
    tokenizer = _with_markers(own)
    kind = CheckpointKind.LANGUAGE_MODEL
    if source.suffix == _GGUF:
        config, params = load_gguf(source, **_FLOAT32, place=place)
    else:
        architectures = read_json(source / "config.json").get("architectures") or [""]
        if architectures[0].endswith("ForSequenceClassification"):
            kind = CheckpointKind.SCALAR_MODEL
        config, params = load_pretrained(source, kind=kind, **_FLOAT32, place=place)
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
        fingerprint=checkpoints.json_checksum(checkpoints.tree_checksums(params)),
        extra={"source": path},
    )
    return params, meta


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


def _load_adapters(
    path: str, folder: Path, bases: Bases, place: Place | None
) -> tuple[Params, Meta]:
    """Put adapters in the files of PEFT on the base that they name."""
    base_name = _base_of_adapters(folder)
    base, base_meta = load_model(base_name, bases=bases, place=place)
    has_adapters = "lora" in base_meta.extra
    if base_meta.kind != CheckpointKind.LANGUAGE_MODEL or has_adapters:
        raise ValueError(
            f"{folder / _PEFT}: base_model_name_or_path: {base_name} is a {base_meta.kind}"
            f"{' with adapters' if has_adapters else ''}, expected a language model"
        )
    trained, config = load_peft(folder, from_dict(base_meta.model))
    params = combine(add_scales(base, trained, config.scale), trained)
    checksums = {"base": base_meta.fingerprint, "adapters": checkpoints.tree_checksums(trained)}
    tokenizer = read_tokenizer(path)
    meta = replace(
        base_meta,
        tokenizer=tokenizer.fingerprint(),
        lineage={},
        fingerprint=checkpoints.json_checksum(checksums),
        extra={"source": path, **_link(base_name, base_meta.fingerprint, config)},
    )
    check_tokenizer(tokenizer, folder, meta)
    return params, meta


def _base_of_adapters(folder: Path) -> str:
    base = read_json(folder / _PEFT).get("base_model_name_or_path")
    if not base:
        raise ValueError(
            f"{folder / _PEFT}: base_model_name_or_path = {base!r}: expected the folder or the "
            "hub's name of the model that these adapters were trained on"
        )
    return f"{HUB}{base}"


def local_folder(path: PathLike) -> Path:
    """Return the local folder of hf:NAME: the folder or GGUF file NAME, or a snapshot of the hub's.

    Raises:
        FileNotFoundError: there is neither; says how to get the model without a network.
    """
    name = str(path).removeprefix(HUB)
    if Path(name).is_dir() or Path(name).suffix == _GGUF:
        return Path(name)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_WANTED))
    except Exception as error:  # A bad name, an unknown model, no network: one type each.
        reason = (str(error).splitlines() or [""])[0]
        raise FileNotFoundError(
            f"{HUB}{name}: no such folder, and the hub does not give it "
            f"({type(error).__name__}: {reason}); without a network, run `hf download {name} "
            f"--local-dir FOLDER` elsewhere and name {HUB}FOLDER"
        ) from error


# --- tokenizers -----------------------------------------------------------------------------------


def read_tokenizer(path: PathLike) -> Tokenizer:
    """Load the tokenizer that belongs to a model; without a chat template it has the chat markers.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another than the model was trained with.
    """
    if not str(path).startswith(HUB):
        folder = checkpoints.resolve(path)
        return tokenizer_of(folder.parent.parent, checkpoints.read_meta(folder))
    source = local_folder(path)
    if (source / _PEFT).exists() and not (source / "tokenizer.json").exists():
        return read_tokenizer(_base_of_adapters(source))
    return _with_markers(_own_tokenizer(source))


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
