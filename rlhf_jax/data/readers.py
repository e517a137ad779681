"""Read rows from files, TensorFlow Datasets and Hugging Face, each with its location for errors.

A reader is a function of a name, a split and a folder for prepared data, and yields row after row
without holding them. `KINDS` names the readers; `sources.py` says what names look like.
tensorflow_datasets and datasets are imported when first needed, because they are slow.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast, runtime_checkable

from rlhf_jax.data import splits
from rlhf_jax.data.public.rows import Located, Row

# The number of rows that are requested together, several times faster than one by one.
CHUNK = 10_000

# Files.


def read_jsonl(path: Path) -> Iterator[Located]:
    """Yield the value of every line of a file of JSON lines, with its `file:line`, one at a time.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is blank, not JSON or not UTF-8.
    """
    with _open(path, "JSON lines") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            text = _decode(content.removesuffix(b"\n"), where)
            if not text.strip():
                raise ValueError(f"{where}: line: blank, expected a JSON object")
            yield Located(where, _parse_json(text, where))


def _read_json(path: Path) -> Iterator[Located]:
    rows = _parse_json(_read_text(path, "a JSON list"), str(path))
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: {type(rows).__name__}, expected a list of objects; JSON lines are read with "
            "jsonl:"
        )
    yield from (Located(f"{path}[{i}]", row) for i, row in enumerate(rows))


def _read_tsv(path: Path) -> Iterator[Located]:
    """Yield rows by the names in the header and the file's name as `file`; quotes mean nothing."""
    stem = Path(path.name.removesuffix(".gz")).stem
    lines = _read_text(path, "tab-separated columns").removesuffix("\n").split("\n")
    header, *rows = (line.removesuffix("\r").split("\t") for line in lines)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            expected = f"expected {len(header)} as in the header"
            raise ValueError(f"{path}:{number}: {len(row)} columns, {expected}")
        yield Located(f"{path}:{number}", {**dict(zip(header, row, strict=True)), "file": stem})


def _read_document(path: Path) -> Iterator[Located]:
    yield Located(str(path), {"text": _read_text(path, "plain text")})


def _read_blocks(path: Path) -> Iterator[Located]:
    text = _read_text(path, "plain text")
    blocks = filter(None, re.split(r"(?:\r?\n[ \t]*){2,}", text.strip()))
    for number, block in enumerate(blocks, start=1):
        yield Located(f"{path} block {number}", {"text": block})


class _FileKind(NamedTuple):
    """Say how a file is read, which files of a folder count, and whether each is a split."""

    read: Callable[[Path], Iterator[Located]]
    suffixes: tuple[str, ...]
    one_per_split: bool = False


_FILE_KINDS = {
    "jsonl": _FileKind(read_jsonl, (".jsonl",), one_per_split=True),
    "json": _FileKind(_read_json, (".json",), one_per_split=True),
    "tsv": _FileKind(_read_tsv, (".tsv", ".csv")),
    "text": _FileKind(_read_document, (".txt",)),
    "blocks": _FileKind(_read_blocks, (".txt",)),
}


def _read_files(kind: _FileKind, name: str, split: str, data_dir: str) -> Iterable[Located]:
    files = _files_of(kind, name, splits.base_split(split))
    return splits.take(lambda: itertools.chain.from_iterable(map(kind.read, files)), split)


def _files_of(kind: _FileKind, name: str, base: str) -> list[Path]:
    """Return the files that hold a split together: one, or all of a folder."""
    path = Path(name.replace("{split}", base)).expanduser()
    is_folder = path.is_dir()
    if is_folder and kind.one_per_split:
        path = path / f"{base}{kind.suffixes[0]}"
        zipped = path.with_name(path.name + ".gz")
        return [zipped if zipped.is_file() and not path.is_file() else path]
    if "{split}" not in name and base != "train":
        raise ValueError(
            f"split: {base!r} of the single {'folder' if is_folder else 'file'} {path}, expected "
            "'train'; give a path with {split} in it, or say which part of train it is: "
            f"?train=train[:90%]&{base}=train[90%:]"
        )
    if not is_folder:
        return [path]
    names = ((file, Path(file.name.removesuffix(".gz"))) for file in path.rglob("*"))
    files = sorted(file for file, unzipped in names if unzipped.suffix in kind.suffixes)
    if not files:
        raise FileNotFoundError(f"{path}: no {' or '.join(kind.suffixes)} files in the folder")
    return files


@contextmanager
def _open(path: Path, expected: str) -> Iterator[IO[bytes]]:
    """Open a file as bytes, unzipped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected {expected}")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(IO[bytes], file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: gzip: {error}, expected a whole .gz file") from None


def _read_text(path: Path, expected: str) -> str:
    with _open(path, expected) as file:
        return _decode(file.read().removeprefix(codecs.BOM_UTF8), str(path))


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = f":{data[:start].count(10) + 1}" if b"\n" in data else ""
        byte = f"byte 0x{data[error.start]:02x} at column {error.start - start + 1}"
        raise ValueError(f"{where}{line}: encoding: {byte}, expected UTF-8") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        problem = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{where}{line}: json: {problem}, expected a JSON object") from None


# TensorFlow Datasets.


@runtime_checkable
class Regenerable(Protocol):
    """Describe a TFDS builder whose data are a function of the code that its metadata name."""

    def is_stale(self) -> bool:
        """Return whether the written data, which exist, are those of other code."""


def _tfds(name: str, split: str, data_dir: str) -> Iterator[Located]:
    import tensorflow_datasets as tfds

    builder = prepare_builder(name, data_dir=data_dir)
    base = splits.base_split(split)
    if base not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise ValueError(f"tfds:{name}: split: {base!r}, expected one of {known}")
    labels = _label_columns(builder.info.features, tfds.features.ClassLabel)
    try:
        data = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(f"tfds:{name}: file_format: {error}, expected array_record") from error
    for first in range(0, len(data), CHUNK):
        numbers = range(first, min(first + CHUNK, len(data)))
        for i, example in zip(numbers, data.__getitems__(list(numbers)), strict=True):
            yield Located(f"tfds:{name}/{split}[{i}]", _name_labels(_to_json(example), labels))


def prepare_builder(name: str, *, data_dir: str) -> Any:
    """Return the builder of a TFDS data set, with its data written as array_record if need be.

    Known are the data sets of TFDS, those whose builder has been imported, and those in `data_dir`.
    A `Regenerable` builder's data that other code has written are replaced.

    Raises:
        ValueError: for an unknown name or configuration, and for data of a `Regenerable` builder
            that has not been imported: nobody could tell whether they are stale.
    """
    builder = _find_builder(name, data_dir)
    if _is_written(builder) and _is_stale(builder, name):
        shutil.rmtree(builder.data_dir)
    if not _is_written(builder):
        # A new builder, because the old one may have read the description of stale data.
        builder = _find_builder(name, data_dir, file_format="array_record")
        try:
            builder.download_and_prepare()
        except FileExistsError:
            # Another process wrote the same data meanwhile: they are as good.
            builder = _find_builder(name, data_dir)
            if not _is_written(builder):
                raise
    return builder


def _find_builder(name: str, data_dir: str, **options: str) -> Any:
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    try:
        return tfds.builder(name, data_dir=data_dir, **options)
    except tfds.core.DatasetNotFoundError:
        prefix = dataset.partition("_")[0] + "_"
        known = tfds.list_builders(with_community_datasets=False)
        similar = [other for other in known if other.startswith(prefix)]
        expected = ", ".join(similar) or (
            f"TFDS or of {data_dir}; import first the module of any other builder, as by "
            "`import rlhf_jax.menagerie.builders`"
        )
        problem = f"unknown data set {dataset!r}"
    except ValueError as error:
        expected = ", ".join(_config_names(dataset)) or f"TFDS or of {data_dir}"
        problem = str(error).splitlines()[0]
        if f"BuilderConfig {config} not found" in problem:
            problem = f"unknown configuration {config!r}"
    raise ValueError(f"tfds:{name}: {problem}, expected one of {expected}")


def _config_names(dataset: str) -> list[str]:
    import tensorflow_datasets as tfds

    try:
        return list(tfds.builder_cls(dataset).builder_configs)
    except ValueError:
        return []


def _is_written(builder: Any) -> bool:
    """Return whether the data are complete, like `builder.is_prepared` but without its warning."""
    return (builder.data_path / "dataset_info.json").exists()


def _is_stale(builder: Any, name: str) -> bool:
    if isinstance(builder, Regenerable):
        return builder.is_stale()
    if "code" in (builder.info.metadata or {}):
        module = builder.info.module_name
        problem = f"written by {module}, which has not been imported"
        raise ValueError(f"tfds:{name}: {problem}; expected `import {module}`")
    return False


def _to_json(value: Any) -> Any:
    """Return a decoded TFDS example as JSON values; messages come as lists of their fields."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        plain = {key: _to_json(item) for key, item in value.items()}
        if {"role", "content"} <= plain.keys() and isinstance(plain["role"], list):
            turns = zip(plain["role"], plain["content"], strict=True)
            return [{"role": role, "content": content} for role, content in turns]
        return plain
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    return _to_json(value.tolist()) if hasattr(value, "tolist") else value


# Hugging Face.


def _hf(name: str, split: str, data_dir: str) -> Iterable[Located]:
    address, _, config = name.partition(":")
    for folder, subfolder in ((name, ""), (address, config)):
        # A folder has no revisions: NAME:CONFIG@REV is the hub's, even if there is a folder NAME.
        if Path(folder).expanduser().is_dir() and "@" not in subfolder:
            return _hf_folder(Path(folder).expanduser(), subfolder, split)
    if find_spec("datasets") is None:
        raise ValueError(
            f"hf:{name}: no such folder, and the package `datasets` is not installed; expected "
            "`pip install datasets`, or a folder with files such as train.parquet or "
            "train-00000.jsonl"
        )
    return _hf_hub(name, split, data_dir)


def _hf_folder(folder: Path, config: str, split: str) -> Iterable[Located]:
    base = splits.base_split(split)
    suffixes = (".parquet", ".jsonl", ".jsonl.gz")
    present = (folder / config).rglob("*")
    all_files = sorted(file for file in present if file.name.endswith(suffixes))
    files = [path for path in all_files if re.match(rf"{base}([-_.]|$)", path.stem)]
    if not files:
        nearby = all_files or sorted(path for path in folder.iterdir() if path.is_dir())
        names = ", ".join(str(path.relative_to(folder)) for path in nearby) or "nothing"
        raise FileNotFoundError(
            f"{folder / config}: split: {base!r} among {names}, expected {base}.jsonl, "
            f"{base}-*.parquet or the like"
        )
    # Several folders are configurations of a data set: other records, or the same in another form.
    parents = sorted({str(path.parent.relative_to(folder)) for path in files})
    if len(parents) > 1:
        raise ValueError(
            f"{folder / config}: split: {base!r} in {', '.join(parents)}, expected files of one "
            f"folder: name one as in hf:{folder}:{parents[-1]}"
        )
    return splits.take(lambda: itertools.chain.from_iterable(map(_hf_file, files)), split)


def _hf_file(path: Path) -> Iterator[Located]:
    if path.suffix != ".parquet":
        yield from read_jsonl(path)
        return
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=CHUNK))
        for i, row in enumerate(itertools.chain.from_iterable(batches), start=1):
            yield Located(f"{path}:{i}", row)


def _hf_hub(name: str, split: str, data_dir: str) -> Iterator[Located]:
    import datasets

    from rlhf_jax.data.public.shapes import ON_HUB

    address, _, revision = name.partition("@")
    path, _, config = address.partition(":")
    config_argument = "data_dir" if path in ON_HUB and ON_HUB[path].folders else "name"
    options = {config_argument: config or None, "revision": revision or None, "split": split}
    try:
        data = datasets.load_dataset(path, **options, cache_dir=data_dir, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"hf:{name}: {reason}, expected a data set of the hub, or a local copy: "
            "SHAPE@jsonl:PATH"
        ) from error
    labels = _label_columns(data.features, datasets.ClassLabel)
    for i, row in enumerate(data):
        yield Located(f"hf:{name}/{split}[{i}]", _name_labels(row, labels))


def _label_columns(features: Any, label_type: type) -> dict[str, Any]:
    return {name: label for name, label in features.items() if isinstance(label, label_type)}


def _name_labels(row: Row, labels: dict[str, Any]) -> Row:
    """Replace class numbers by names; a number that stands for no class is left as it is."""
    numbers = {name: row[name] for name in labels if row[name] is not None and row[name] >= 0}
    return row | {name: labels[name].int2str(number) for name, number in numbers.items()}


KINDS: dict[str, Callable[[str, str, str], Iterable[Located]]] = {
    **{name: partial(_read_files, kind) for name, kind in _FILE_KINDS.items()},
    "tfds": _tfds,
    "hf": _hf,
}
