"""Load models of Hugging Face as what a run can start from: safetensors, GGUF, adapters of PEFT.

`pretrained` imports this module when a path begins with hf:, and describes what such a path may be.
"""

from dataclasses import replace
from pathlib import Path

from rlhf_jax.data.tokenizers import ASSISTANT, USER, Tokenizer, load_tokenizer, with_chat_tokens
from rlhf_jax.models.config import from_dict, to_dict
from rlhf_jax.models.heads import grow_vocabulary
from rlhf_jax.models.huggingface import Place, load_pretrained
from rlhf_jax.models.huggingface.files import read_json
from rlhf_jax.models.huggingface.gguf import load_gguf, read_metadata
from rlhf_jax.models.huggingface.gguf_tokenizers import gguf_tokenizer
from rlhf_jax.models.huggingface.peft import is_peft, load_peft, read_base_name
from rlhf_jax.models.lora import add_scales, combine
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, PathLike
from rlhf_jax.training.pretrained import (
    HUB,
    HUGGINGFACE,
    Bases,
    Params,
    check_tokenizer,
    link_to_base,
    load_model,
    read_tokenizer,
)

_GGUF = ".gguf"
# What a model consists of; weights that are not safetensors are not even downloaded.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}


def load_foreign(path: str, bases: Bases, place: Place | None) -> tuple[Params, Meta]:
    """Load the parameters and `Meta` of hf:NAME; `bases` and `place` are as in `load_model`."""
    source = local_folder(path)
    if is_peft(source):
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
    base_name = f"{HUB}{read_base_name(folder)}"
    base, base_meta = load_model(base_name, bases=bases, place=place)
    has_adapters = "lora" in base_meta.extra
    if base_meta.kind != CheckpointKind.LANGUAGE_MODEL or has_adapters:
        raise ValueError(
            f"{folder}/adapter_config.json: base_model_name_or_path: {base_name} is a "
            f"{base_meta.kind}"
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
        extra={"source": path, **link_to_base(base_name, base_meta.fingerprint, config)},
    )
    check_tokenizer(tokenizer, folder, meta)
    return params, meta


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


def read_foreign_tokenizer(path: str) -> Tokenizer:
    """Load the tokenizer of hf:NAME, with chat markers where it has no chat template."""
    source = local_folder(path)
    if is_peft(source) and not (source / "tokenizer.json").exists():
        return read_tokenizer(f"{HUB}{read_base_name(source)}")
    return _with_markers(_own_tokenizer(source))


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
