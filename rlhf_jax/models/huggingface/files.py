"""Read folders of safetensors one tensor at a time, and write them in shards.

Pickled weights (.bin, .pt, .pth, .ckpt) can run code when they are opened: they never are.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (registers bfloat16 with NumPy)
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Stored:
    """Describe a tensor in a file that is not read yet; `name` is what the file calls it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected the folder of a Hugging Face model")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}, expected JSON") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {type(content).__name__}, expected a JSON object")
    return content


def catalogue(folder: Path) -> dict[str, Stored]:
    """List every tensor of a model's safetensors files, from their headers alone.

    Raises:
        FileNotFoundError: there are no safetensors (pickled weights are not read).
        ValueError: a file is damaged, or the index does not agree with the files.
    """
    if (folder / SINGLE).is_file():
        return _read_header(folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(_explain_missing_weights(folder))
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise ValueError(
            f"{folder / INDEX}: weight_map: {str(weight_map)[:60]}, expected a file for every "
            "tensor; download it again"
        )
    stored: dict[str, Stored] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / INDEX} names {name!r}: no such file in the folder; download it again"
            )
        stored |= _read_header(folder / name)
    strays = [
        name
        for name in sorted(weight_map.keys() | stored)
        if name not in stored or stored[name].file.name != weight_map.get(name)
    ]
    if strays:
        raise ValueError(
            f"{folder / INDEX} and the files it names disagree about {', '.join(strays)}; "
            "download them again"
        )
    return stored


def _explain_missing_weights(folder: Path) -> str:
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if not pickled:
        return f"{folder}: neither {SINGLE} nor {INDEX}, expected the weights of a model"
    return (
        f"{folder}: only pickled weights ({', '.join(pickled)}), which are never opened because "
        "they can run code; convert them where you trust them: transformers' "
        "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) writes safetensors"
    )


def _open(file: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(str(file), framework="numpy"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged or cut short: {error}; download it again") from error


def _read_header(file: Path) -> dict[str, Stored]:
    with ExitStack() as stack:
        opened = _open(file, stack)
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
        return {
            name: Stored(file, name, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def read_tensors(stored: Mapping[str, Stored]) -> Iterator[tuple[str, np.ndarray]]:
    """Read tensors one by one, file by file; nobody but the receiver keeps an array."""
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        with ExitStack() as stack:
            opened = _open(file, stack)
            for name, tensor in stored.items():
                if tensor.file == file:
                    yield name, opened.get_tensor(tensor.name)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read all tensors of one file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected a file of safetensors")
    return dict(read_tensors(_read_header(path)))


def write_tensors(
    folder: Path,
    sizes: Mapping[str, int],
    make: Callable[[str], np.ndarray],
    *,
    max_shard_bytes: int,
) -> None:
    """Write tensors, made one shard at a time, to one file or to several with an index.

    `sizes` are bytes by name.

    Raises:
        FileExistsError: the folder has a model already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix == ".safetensors" or path.name == "config.json"
    )
    if present:
        raise FileExistsError(f"{folder} has {', '.join(present)} already: name a new folder")
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # transformers asks for this note of the framework that wrote the file.
        save_file({name: make(name) for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
