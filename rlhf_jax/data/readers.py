"""Read rows from files, TensorFlow Datasets and Hugging Face, each with its location for errors.

A reader is a function of a name, a split and a folder for prepared data, and yields row after row
without holding them. `KINDS` names the readers; `sources.py` says what names look like.
tensorflow_datasets and datasets are imported when first needed, because they are slow.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
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
_LARGEST_CELL = 2**31 - 1  # letters; csv stops at 131,072
# Columns of a CSV file whose cells are JSON, and columns whose cells may be text or messages.
_JSON_COLUMNS = ("messages", "conversations", "responses", "ranks", "scores", "history", "metadata")
_TURN_COLUMNS = ("prompt", "completion", "chosen", "rejected")
# What pandas and `datasets` make of messages, and of a list of texts, in a CSV file.
_PYTHON_TURNS = re.compile(r"\s*\[?\s*\{\s*'(role|content|from|value)'\s*:")
_PYTHON_TEXTS = re.compile(r"\s*\[\s*(['\"]).*\1\s*\]\s*", re.DOTALL)
Labels = dict[str, Callable[[int], str]]  # the names of the classes of columns

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


def _read_csv(path: Path) -> Iterator[Located]:
    """Yield rows by the names in the header, each with the line where it starts."""
    csv.field_size_limit(_LARGEST_CELL)
    content = _read_text(path, "comma-separated columns")
    if not content.strip():
        return
    lines = csv.reader(io.StringIO(content, newline=""), strict=True)
    start = 1
    header: list[str] = []
    while True:
        where = f"{path}:{start}"
        try:
            row = next(lines, None)
        except csv.Error as error:
            raise ValueError(f"{where}: csv: {error}, expected a CSV file") from None
        if row is None:
            return
        start = lines.line_num + 1
        if not header:
            repeated = next((name for name in row if row.count(name) > 1), None)
            if repeated is not None:
                raise ValueError(f"{where}: column {repeated!r} twice, expected once")
            header = row
        elif row:  # a blank line is no row
            if len(row) != len(header):
                expected = f"expected {len(header)} as in the header"
                raise ValueError(f"{where}: {len(row)} columns, {expected}")
            cells = zip(header, row, strict=True)
            yield Located(where, {name: _read_cell(name, cell, where) for name, cell in cells})


def _read_cell(name: str, cell: str, where: str) -> Any:
    """Return the value of a cell: JSON in columns that have no other form, messages, or text."""
    if name in _JSON_COLUMNS:
        return _parse_json(cell, f"{where}: {name}") if cell.strip() else None
    if name not in _TURN_COLUMNS or not cell.lstrip().startswith(("[", "{")):
        return cell
    if _PYTHON_TURNS.match(cell):
        raise ValueError(
            f"{where}: {name}: messages as Python prints them, expected JSON in the cell, or JSON "
            "lines or parquet, which keep lists"
        )
    try:
        value = json.loads(cell)
    except (RecursionError, ValueError):
        value = [""] if _PYTHON_TEXTS.fullmatch(cell) else None
    turns = value if isinstance(value, list) else [value]
    if turns and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns):
        return value
    if name in ("chosen", "rejected") and turns and all(isinstance(turn, str) for turn in turns):
        raise ValueError(
            f"{where}: {name}: a list of texts, which in a CSV file may be several replies or the "
            "text of one, expected responses + ranks, or JSON lines"
        )
    return cell


def _read_parquet(path: Path) -> Iterator[Located]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected parquet")
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            labels = _label_names(file.schema_arrow)
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=CHUNK))
            for i, row in enumerate(itertools.chain.from_iterable(batches), start=1):
                yield Located(f"{path}:{i}", _name_labels(row, labels))
    except pyarrow.ArrowException as error:
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise ValueError(f"{path}: parquet: {problem}, expected a whole parquet file") from None


def _read_arrow(path: Path) -> Iterator[Located]:
    """Yield the rows of a file that `datasets.save_to_disk` wrote."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, though state.json beside it names it")
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
            labels = _label_names(batches.schema)
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
            for i, row in enumerate(rows, start=1):
                yield Located(f"{path}:{i}", _name_labels(row, labels))
    except pyarrow.ArrowException as error:
        problem = (str(error).splitlines() or ["damaged"])[0]
        raise ValueError(f"{path}: arrow: {problem}, expected a file of save_to_disk") from None


def _label_names(schema: Any) -> Labels:
    """Return the names of classes for every column that `datasets` stored as a ClassLabel."""
    info = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(info)["info"]["features"] if info else {}
    return {
        name: feature["names"].__getitem__
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def _read_lines(path: Path) -> Iterator[Located]:
    text = _read_text(path, "plain text").removesuffix("\n")
    for number, line in enumerate(text.split("\n") if text else [], start=1):
        yield Located(f"{path}:{number}", {"prompt": line.removesuffix("\r")})


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
    "csv": _FileKind(_read_csv, (".csv",), one_per_split=True),
    "parquet": _FileKind(_read_parquet, (".parquet",), one_per_split=True),
    "text": _FileKind(_read_document, (".txt",)),
    "blocks": _FileKind(_read_blocks, (".txt",)),
    "lines": _FileKind(_read_lines, (".txt",)),
}


def _read_files(kind: _FileKind, name: str, split: str, data_dir: str) -> Iterable[Located]:
    files = _files_of(kind, name, splits.base_split(split))
    return splits.take(lambda: itertools.chain.from_iterable(map(kind.read, files)), split)


def _files_of(kind: _FileKind, name: str, base: str) -> list[Path]:
    """Return the files that hold a split together: one, or all of a folder."""
    path = Path(name.replace("{split}", base)).expanduser()
    is_folder = path.is_dir()
    if is_folder and kind.one_per_split:
        parts = sorted(path.glob(f"{base}-*{kind.suffixes[0]}"))
        path = path / f"{base}{kind.suffixes[0]}"
        if parts and not path.is_file():
            return parts
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
        return json.loads(text, object_pairs_hook=partial(_to_object, where))
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if error.lineno > 1 else ""
        problem = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{where}{line}: json: {problem}, expected a JSON object") from None
    except RecursionError:
        problem = "lists or objects nested too deeply"
        raise ValueError(f"{where}: json: {problem}, expected a JSON object") from None
    except _RepeatedNameError:
        raise
    except ValueError:  # of int(), which refuses numbers that take long
        problem = "a number of more than 4300 digits"
        raise ValueError(f"{where}: json: {problem}, expected a JSON object") from None


class _RepeatedNameError(ValueError):
    """Say that an object has a name twice."""


def _to_object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; Python alone would keep the last of two values of one name."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise _RepeatedNameError(f"{where}: json: field {repeated!r} twice, expected once")
    return result


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
        path = Path(folder).expanduser()
        if path.is_dir():
            if _is_saved(path / subfolder):
                return _hf_saved(path / subfolder, split)
            return _hf_folder(path, subfolder, split)
    if Path(name).expanduser().is_file():
        raise ValueError(
            f"hf:{name}: a file, expected a folder; a file is jsonl:, parquet:, csv: ..."
        )
    raise FileNotFoundError(
        f"hf:{name}: no such folder, expected one of files such as train.parquet or "
        f"train-00000.jsonl, or what save_to_disk wrote; a data set of the hub is hub:{name}"
    )


def _is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` of the package `datasets` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _hf_saved(folder: Path, split: str) -> Iterable[Located]:
    """Return the rows of a saved data set, or of one split of several."""
    base = splits.base_split(split)
    if (folder / "dataset_dict.json").is_file():
        present = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        if base not in present:
            raise FileNotFoundError(
                f"{folder}: split: {base!r}, expected one of {', '.join(present)}"
            )
        folder = folder / base
    elif base != "train":
        raise ValueError(
            f"split: {base!r} of the single data set {folder}, expected 'train'; say which part of "
            f"train it is: ?train=train[:90%]&{base}=train[90%:]"
        )
    state = json.loads((folder / "state.json").read_text())
    files = [folder / item["filename"] for item in state["_data_files"]]
    return splits.take(lambda: itertools.chain.from_iterable(map(_read_arrow, files)), split)


def _hf_folder(folder: Path, config: str, split: str) -> Iterable[Located]:
    base = splits.base_split(split)
    suffixes = tuple(f"{suffix}{gz}" for suffix in _HF_READERS for gz in ("", ".gz"))
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
    suffixes = tuple(sorted({_suffix(path) for path in files}))
    if len(suffixes) > 1:
        problem = f"{base!r} as {' and '.join(suffixes)}"
        raise ValueError(f"{folder / config}: split: {problem}, expected files of one kind")
    read = _HF_READERS[suffixes[0]]
    return splits.take(lambda: itertools.chain.from_iterable(map(read, files)), split)


def _suffix(path: Path) -> str:
    """Return the last suffix of a file's name, the one before .gz."""
    return Path(path.name.removesuffix(".gz")).suffix


_HF_READERS: dict[str, Callable[[Path], Iterator[Located]]] = {
    ".parquet": _read_parquet,
    ".jsonl": read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
}


def _hub(name: str, split: str, data_dir: str) -> Iterator[Located]:
    if find_spec("datasets") is None:
        raise ValueError(
            f"hub:{name}: the package `datasets` is not installed; expected `pip install "
            "datasets`, or a local copy: hf:FOLDER, or a file such as jsonl:PATH"
        )
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
            f"hub:{name}: {reason}, expected a data set of the hub, or a local copy: "
            "hf:FOLDER or SHAPE@jsonl:PATH"
        ) from error
    labels = _label_columns(data.features, datasets.ClassLabel)
    for i, row in enumerate(data):
        yield Located(f"hub:{name}/{split}[{i}]", _name_labels(row, labels))


def _label_columns(features: Any, label_type: Any) -> Labels:
    return {
        name: label.int2str for name, label in features.items() if isinstance(label, label_type)
    }


def _name_labels(row: Row, labels: Labels) -> Row:
    """Replace class numbers by names; a number that stands for no class is left as it is."""
    numbers = {name: row[name] for name in labels if row[name] is not None and row[name] >= 0}
    return row | {name: labels[name](number) for name, number in numbers.items()}


KINDS: dict[str, Callable[[str, str, str], Iterable[Located]]] = {
    **{name: partial(_read_files, kind) for name, kind in _FILE_KINDS.items()},
    "tfds": _tfds,
    "hf": _hf,
    "hub": _hub,
}
