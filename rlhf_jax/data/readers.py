"""Where rows come from: files, TensorFlow Datasets, Hugging Face. Every row is given with its place, for errors to name.

A kind is a function of a name, a split and a folder for prepared data, and gives row after row without holding them.
`sources.py` says what the names look like.
tensorflow_datasets and datasets are imported when first needed, because they are slow.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, cast

from rlhf_jax.data import splits
from rlhf_jax.data.public import ON_HUB
from rlhf_jax.data.public.rows import Located

_AT_ONCE = 10_000  # rows that are asked for together, which is several times faster than one by one

# Files.


def _jsonl(name: str, split: str, data_dir: str) -> Iterable[Located]:
    path = _split_file(name, split, ".jsonl")
    return splits.take(lambda: read_jsonl(path), split)


def read_jsonl(path: Path) -> Iterator[Located]:
    """The value of every line of a file of JSON lines, with its `file:line`, one line at a time.

    Raises FileNotFoundError without a file, ValueError for a line that is blank, no JSON or not UTF-8.
    """
    with _opened(path, "JSON lines") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            yield f"{path}:{number}", _read_line(text.removesuffix(b"\n"), f"{path}:{number}")


def _read_line(line: bytes, where: str) -> Any:
    text = _decode(line, where)
    if not text.strip():
        raise ValueError(f"{where}: line: blank, expected a JSON object")
    return _parse(text, where)


def _json(name: str, split: str, data_dir: str) -> Iterable[Located]:
    path = _split_file(name, split, ".json")
    rows = _parse(_decode(_read_bytes(path, "a JSON list"), str(path)), str(path))
    if not isinstance(rows, list):
        raise ValueError(
            f"{path}: {type(rows).__name__}, expected a list of objects; JSON lines are read with jsonl:"
        )
    return splits.take(lambda: ((f"{path}[{i}]", row) for i, row in enumerate(rows)), split)


def _tsv(name: str, split: str, data_dir: str) -> Iterable[Located]:
    files = _split_files(name, split, (".tsv", ".csv"))
    return splits.take(lambda: (placed for path in files for placed in _tsv_rows(path)), split)


def _tsv_rows(path: Path) -> Iterator[Located]:
    """Rows by the names in the header, and the file's own name as `file`; quotes have no meaning."""
    file = Path(path.name.removesuffix(".gz")).stem
    text = _decode(_read_bytes(path, "tab-separated columns"), str(path))
    header, *rows = (
        line.removesuffix("\r").split("\t") for line in text.removesuffix("\n").split("\n")
    )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(
                f"{path}:{number}: {len(row)} columns, expected {len(header)} as in the header"
            )
        yield f"{path}:{number}", {**dict(zip(header, row, strict=True)), "file": file}


def _text(name: str, split: str, data_dir: str) -> Iterable[Located]:
    return splits.take(
        lambda: ((where, {"text": text}) for where, text in _plain_texts(name, split)), split
    )


def _blocks(name: str, split: str, data_dir: str) -> Iterable[Located]:
    def rows() -> Iterator[Located]:
        for where, text in _plain_texts(name, split):
            for number, block in enumerate(
                filter(None, re.split(r"(?:\r?\n[ \t]*){2,}", text.strip())), start=1
            ):
                yield f"{where} block {number}", {"text": block}

    return splits.take(rows, split)


def _plain_texts(name: str, split: str) -> Iterator[tuple[str, str]]:
    for path in _split_files(name, split, (".txt",)):
        yield str(path), _decode(_read_bytes(path, "plain text"), str(path))


def _split_file(name: str, split: str, suffix: str) -> Path:
    """The file that holds a split: of a folder SPLIT.suffix, or the path with {split} filled in."""
    base = splits.base(split)
    path = Path(name.replace("{split}", base)).expanduser()
    if path.is_dir():
        path = path / f"{base}{suffix}"
        zipped = path.with_name(path.name + ".gz")
        return zipped if zipped.is_file() and not path.is_file() else path
    _check_single(name, path, base)
    return path


def _split_files(name: str, split: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The files that hold a split together: one, or all of a folder."""
    base = splits.base(split)
    path = Path(name.replace("{split}", base)).expanduser()
    _check_single(name, path, base)
    if not path.is_dir():
        return [path]
    files = sorted(
        file for file in path.rglob("*") if Path(file.name.removesuffix(".gz")).suffix in suffixes
    )
    if not files:
        raise FileNotFoundError(f"{path}: no {' or '.join(suffixes)} files in the folder")
    return files


def _check_single(name: str, path: Path, base: str) -> None:
    if "{split}" not in name and base != "train":
        kind = "folder" if path.is_dir() else "file"
        raise ValueError(
            f"split: {base!r} of the single {kind} {path}, expected 'train'; give a path with {{split}} in it, or say which "
            f"part of train it is: ?train=train[:90%]&{base}=train[90%:]"
        )


@contextmanager
def _opened(path: Path, expected: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, unzipped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected {expected}")
    if path.suffix != ".gz":
        with path.open("rb") as plain:
            yield plain
        return
    try:
        with gzip.open(path) as unzipped:
            yield cast(IO[bytes], unzipped)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: gzip: {error}, expected a whole .gz file") from None


def _read_bytes(path: Path, expected: str) -> bytes:
    with _opened(path, expected) as file:
        return file.read().removeprefix(codecs.BOM_UTF8)


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line = f":{data[:start].count(10) + 1}" if b"\n" in data else ""
        byte = f"byte 0x{data[error.start]:02x} at column {error.start - start + 1}"
        raise ValueError(f"{where}{line}: encoding: {byte}, expected UTF-8") from None


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        what = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{where}{line}: json: {what}, expected a JSON object") from None


# TensorFlow Datasets.


def _tfds(name: str, split: str, data_dir: str) -> Iterator[Located]:
    import tensorflow_datasets as tfds

    builder = _tfds_builder(tfds, name, data_dir)
    base = splits.base(split)
    if base not in builder.info.splits:
        raise ValueError(
            f"tfds:{name}: split: {base!r}, expected one of {', '.join(sorted(builder.info.splits))}"
        )
    labels = {
        column: feature
        for column, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    try:
        data = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(f"tfds:{name}: file_format: {error}, expected array_record") from error
    for first in range(0, len(data), _AT_ONCE):
        numbers = range(first, min(first + _AT_ONCE, len(data)))
        for i, row in zip(numbers, data.__getitems__(list(numbers)), strict=True):
            plain = _plain(row)
            for column, feature in labels.items():
                plain[column] = _label(feature, plain[column])
            yield f"tfds:{name}/{split}[{i}]", plain


def _tfds_builder(tfds: Any, name: str, data_dir: str) -> Any:
    """Returns a prepared builder, one of Menagerie's or any that TFDS knows or finds in `data_dir`."""
    dataset, _, config = name.partition("/")
    if dataset.startswith("menagerie_"):
        from rlhf_jax.menagerie.builders import prepare

        return prepare(dataset, config, data_dir=data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"tfds:{name}: {reason}, expected one of TFDS or of {data_dir}") from error
    if not builder.is_prepared():
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    return builder


def _plain(value: Any) -> Any:
    """Returns a decoded TFDS example as JSON values; messages come as lists of their fields."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        plain = {key: _plain(item) for key, item in value.items()}
        if {"role", "content"} <= plain.keys() and isinstance(plain["role"], list):
            turns = zip(plain["role"], plain["content"], strict=True)
            return [{"role": role, "content": content} for role, content in turns]
        return plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


# Hugging Face.


def _hf(name: str, split: str, data_dir: str) -> Iterable[Located]:
    address, _, config = name.partition(":")
    for folder, inside in ((name, ""), (address, config)):
        # A folder has no revisions: NAME:CONFIG@REV is the hub's, whatever lies here.
        if Path(folder).expanduser().is_dir() and "@" not in inside:
            return _hf_folder(Path(folder).expanduser(), inside, split)
    if find_spec("datasets") is None:
        raise ValueError(
            f"hf:{name}: no such folder, and the package `datasets` is not installed; expected "
            "`pip install datasets`, or a folder with files such as train.parquet or train-00000.jsonl"
        )
    return _hf_hub(name, split, data_dir)


def _hf_folder(folder: Path, config: str, split: str) -> Iterable[Located]:
    base = splits.base(split)
    found = sorted(
        path
        for path in (folder / config).rglob("*")
        if path.name.endswith((".parquet", ".jsonl", ".jsonl.gz"))
    )
    files = [path for path in found if re.match(rf"{base}([-_.]|$)", path.stem)]
    if not files:
        some = found or sorted(path for path in folder.iterdir() if path.is_dir())
        names = ", ".join(str(path.relative_to(folder)) for path in some) or "nothing"
        expected = f"{base}.jsonl, {base}-*.parquet or the like"
        raise FileNotFoundError(
            f"{folder / config}: split: {base!r} among {names}, expected {expected}"
        )
    places = sorted({str(path.parent.relative_to(folder)) for path in files})
    if (
        len(places) > 1
    ):  # the configurations of a data set, which are other records or the same ones told otherwise
        raise ValueError(
            f"{folder / config}: split: {base!r} in {', '.join(places)}, expected files of one folder: name one "
            f"as in hf:{folder}:{places[-1]}"
        )
    readers = [_parquet_rows if path.suffix == ".parquet" else read_jsonl for path in files]
    return splits.take(
        lambda: (
            placed for read, path in zip(readers, files, strict=True) for placed in read(path)
        ),
        split,
    )


def _parquet_rows(path: Path) -> Iterator[Located]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=_AT_ONCE)
        rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((f"{path}:{i}", row) for i, row in enumerate(rows, 1))


def _hf_hub(name: str, split: str, data_dir: str) -> Iterator[Located]:
    import datasets

    address, _, revision = name.partition("@")
    path, _, config = address.partition(":")
    part = (
        {"data_dir": config or None}
        if path in ON_HUB and ON_HUB[path].folders
        else {"name": config or None}
    )
    options = {**part, "revision": revision or None, "split": split, "cache_dir": data_dir}
    try:
        data = datasets.load_dataset(path, **options, trust_remote_code=False)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"hf:{name}: {reason}, expected a data set of the hub, or a local copy: SHAPE@jsonl:PATH"
        ) from error
    labels = {
        column: item
        for column, item in data.features.items()
        if isinstance(item, datasets.ClassLabel)
    }
    for i, row in enumerate(data):
        yield (
            f"hf:{name}/{split}[{i}]",
            row | {column: _label(item, row[column]) for column, item in labels.items()},
        )


def _label(feature: Any, value: Any) -> Any:
    """The name of a class; the number of none is left as it is."""
    return value if value is None or value < 0 else feature.int2str(value)


KINDS: dict[str, Callable[[str, str, str], Iterable[Located]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "tsv": _tsv,
    "text": _text,
    "blocks": _blocks,
    "tfds": _tfds,
    "hf": _hf,
}
