"""Sources: `load("KIND:NAME", record_type, split=...)` reads records, wherever they are kept.

    jsonl:PATH              one JSON object a line; PATH is a file, a pattern with {split}, or a folder of SPLIT.jsonl
    tfds:NAME[/CONFIG]      TensorFlow Datasets, as array_record; `menagerie_*` is built on the spot if it is absent
    hf:NAME[:CONFIG]        a data set of the Hugging Face hub, or a folder of its parquet or jsonl files

A split is a name, or a slice of one as in TFDS: `train[:90%]`, `train[100:]`. Rows have the fields of the
record or one of the shapes that public data sets have (`_SHAPES`). Whoever writes JSONL means every field,
so an unknown one is an error there; data sets of others have columns of no concern to us, which are passed
over.

Nothing is skipped: a row that cannot be read is a `ValueError` that says where, which field, what and what
was expected. tensorflow_datasets and datasets are imported when first needed, because they are slow.

Left out on purpose: streaming, and writing to hubs.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    LabelledText,
    Prompt,
    R,
    Record,
    from_dict,
    to_dict,
)

Row = dict[str, Any]
# A row and the place it came from.
Placed = tuple[str, Any]


def load(source: str, record_type: type[R], *, split: str, data_dir: str) -> Sequence[R]:
    """Reads all records of one split; `data_dir` is where TFDS and Hugging Face keep what they prepare.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: for an unknown kind of source or split, and for the first row that cannot be read.
    """
    kind, _, name = source.partition(":")
    if kind not in _KINDS or not name:
        raise ValueError(f"source: {source!r}, expected {', '.join(f'{known}:NAME' for known in _KINDS)}")
    if not re.fullmatch(r"\w+(\[\d*%?:\d*%?\])?", split):
        raise ValueError(f"split: {split!r}, expected a name or a slice such as 'train[:90%]'")
    strict = kind == "jsonl"
    rows = _KINDS[kind](name, split, data_dir)
    records = [_to_record(record_type, row, where=where, strict=strict) for where, row in rows]
    if not records:
        raise ValueError(f"{source}: split: {split!r} has no records, expected at least one")
    return records


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Writes records, one JSON object a line, so that `load("jsonl:PATH", ...)` returns them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")


# JSONL.


def _jsonl(name: str, split: str, data_dir: str) -> list[Placed]:
    base = split.partition("[")[0]
    path = Path(name.replace("{split}", base)).expanduser()
    if path.is_dir():
        path = path / f"{base}.jsonl"
    elif "{split}" not in name and base != "train":
        raise ValueError(
            f"split: {base!r} of the single file {path}, expected 'train'; "
            "give a folder with one file a split, or a path with {split} in it"
        )
    return _take(_jsonl_rows(path), split)


def _jsonl_rows(path: Path) -> list[Placed]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected JSON lines")
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n") if path.stat().st_size else []
    places = [f"{path}:{number}" for number in range(1, len(lines) + 1)]
    return [(place, _read_line(line, place)) for place, line in zip(places, lines, strict=True)]


def _read_line(line: bytes, where: str) -> Any:
    try:
        text = line.decode("utf-8")
        if not text.strip():
            raise ValueError(f"{where}: line: blank, expected a JSON object")
        return json.loads(text)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
        raise ValueError(f"{where}: encoding: {byte}, expected UTF-8") from None
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{where}: json: {what}, expected a JSON object") from None


# TensorFlow Datasets.


def _tfds(name: str, split: str, data_dir: str) -> Iterator[Placed]:
    import tensorflow_datasets as tfds

    builder = _tfds_builder(tfds, name, data_dir)
    base = split.partition("[")[0]
    if base not in builder.info.splits:
        raise ValueError(f"tfds:{name}: split: {base!r}, expected one of {', '.join(sorted(builder.info.splits))}")
    labels = {
        column: feature
        for column, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    try:
        data = builder.as_data_source(split=split)
    except NotImplementedError as error:
        raise ValueError(f"tfds:{name}: file_format: {error}, expected array_record") from error
    # One request for all rows is several times faster than one each.
    for i, row in enumerate(data.__getitems__(list(range(len(data)))) if len(data) else []):
        plain = _plain(row)
        for column, feature in labels.items():
            plain[column] = feature.int2str(plain[column])
        yield f"tfds:{name}/{split}[{i}]", plain


def _tfds_builder(tfds: Any, name: str, data_dir: str) -> Any:
    """Returns a prepared builder, one of Menagerie's or any that TFDS knows or finds in `data_dir`."""
    dataset, _, config = name.partition("/")
    if dataset.startswith("menagerie_"):
        from rlhf_jax.data.menagerie.builders import prepare

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


def _hf(name: str, split: str, data_dir: str) -> Iterable[Placed]:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _hf_folder(folder, split)
    if find_spec("datasets") is None:
        raise ValueError(
            f"hf:{name}: no such folder, and the package `datasets` is not installed; expected "
            "`pip install datasets`, or a folder with files such as train.parquet or train-00000.jsonl"
        )
    return _hf_hub(name, split, data_dir)


def _hf_folder(folder: Path, split: str) -> list[Placed]:
    base = split.partition("[")[0]
    found = sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".jsonl"))
    files = [path for path in found if re.match(rf"{base}([-_.]|$)", path.stem)]
    if not files:
        names = ", ".join(str(path.relative_to(folder)) for path in found) or "nothing"
        expected = f"{base}.jsonl, {base}-*.parquet or the like"
        raise FileNotFoundError(f"{folder}: split: {base!r} among {names}, expected {expected}")
    rows = [_parquet_rows(path) if path.suffix == ".parquet" else _jsonl_rows(path) for path in files]
    return _take(list(itertools.chain.from_iterable(rows)), split)


def _parquet_rows(path: Path) -> list[Placed]:
    import pyarrow.parquet

    return [(f"{path}:{i}", row) for i, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)]


def _hf_hub(name: str, split: str, data_dir: str) -> Iterator[Placed]:
    import datasets

    path, _, config = name.partition(":")
    data = datasets.load_dataset(path, config or None, split=split, cache_dir=data_dir)
    labels = {column: item for column, item in data.features.items() if isinstance(item, datasets.ClassLabel)}
    for i, row in enumerate(data):
        yield (
            f"hf:{name}/{split}[{i}]",
            row | {column: item.int2str(row[column]) for column, item in labels.items()},
        )


_KINDS: dict[str, Callable[[str, str, str], Iterable[Placed]]] = {"jsonl": _jsonl, "tfds": _tfds, "hf": _hf}


def _take(rows: list[Placed], split: str) -> list[Placed]:
    """Returns the slice of rows that a split such as `train[10%:]` asks for."""
    _, bracket, bounds = split.rstrip("]").partition("[")
    start, _, stop = bounds.partition(":")

    def place(bound: str, default: int) -> int:
        if not bound:
            return default
        return len(rows) * int(bound[:-1]) // 100 if bound.endswith("%") else int(bound)

    return rows[place(start, 0) : place(stop, len(rows))] if bracket else rows


# Shapes of rows.


def _to_record(record_type: type[R], row: Any, *, where: str, strict: bool) -> R:
    """Reads a row that has the record's own fields or a known shape of others."""
    if not isinstance(row, dict):
        return from_dict(record_type, row, where=where)
    for names, convert in _SHAPES[record_type]:
        if row.keys() >= set(names):
            extra = sorted(row.keys() - _FOREIGN_FIELDS)
            if strict and extra:
                raise ValueError(f"{where}: {extra[0]}: unknown field, expected only {', '.join(names)}")
            try:
                own = convert(row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            return from_dict(record_type, own, where=where)
    return from_dict(record_type, row if strict else _own_fields(record_type, row, where), where=where)


def _own_fields(record_type: type, row: Row, where: str) -> Row:
    """Returns the record's own fields of a foreign row, in the types that records have."""
    own, required = _FIELDS[record_type]
    if not row.keys() >= set(required):
        shapes = [required, *(names for names, _ in _SHAPES[record_type])]
        expected = " or ".join(" + ".join(names) for names in shapes)
        raise ValueError(f"{where}: fields: found {', '.join(row)}, expected {expected}")
    kept = {name: row[name] for name in own if row.get(name) is not None}
    if isinstance(kept.get("metadata"), str):
        kept["metadata"] = json.loads(kept["metadata"])
    if isinstance(kept.get("label"), int):
        kept["label"] = str(kept["label"])
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_role_and_content(message) for message in kept["messages"]]
    return kept


def _role_and_content(message: Any) -> Any:
    """Returns a foreign message without the fields that records lack, such as names and dates."""
    if not isinstance(message, dict):
        return message
    return {name: message[name] for name in ("role", "content") if name in message}


def _conversation(name: str, value: Any) -> list[Any]:
    """Reads messages, a transcript of `Human:` and `Assistant:`, or the plain text of one question."""
    if isinstance(value, list):
        return [_role_and_content(message) for message in value]
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__}, expected text or messages")
    parts = re.split(r"\n\n(Human|Assistant): ?", value)
    if len(parts) == 1 or parts[0].strip():
        return [{"role": "user", "content": value}]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": text.strip()}
        for speaker, text in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _reply(name: str, value: Any) -> Any:
    """Reads a response given as text or as messages, of which it is the last."""
    if isinstance(value, list):
        if not value or not isinstance(value[-1], dict) or value[-1].get("role") != "assistant":
            raise ValueError(f"{name}: the last message is not the assistant's, expected its reply")
        return value[-1].get("content")
    return value


def _answered(prompt: str, completion: str) -> Callable[[Row], Row]:
    def convert(row: Row) -> Row:
        reply = {"role": "assistant", "content": _reply(completion, row[completion])}
        return {"messages": [*_conversation(prompt, row[prompt]), reply]}

    return convert


def _asked(prompt: str) -> Callable[[Row], Row]:
    return lambda row: {"messages": _conversation(prompt, row[prompt])}


def _compared(row: Row) -> Row:
    """Reads a pair; without a prompt of its own, the turns that both sides share are the prompt."""
    if "prompt" in row:
        messages = _conversation("prompt", row["prompt"])
        responses = [_reply(name, row[name]) for name in ("chosen", "rejected")]
        return {"messages": messages, "responses": responses, "ranks": [1, 2]}
    chosen, rejected = (_conversation(name, row[name]) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("rejected: differs from chosen before the last turn, expected the same prompt")
    responses = [_reply("chosen", chosen), _reply("rejected", rejected)]
    return {"messages": chosen[:-1], "responses": responses, "ranks": [1, 2]}


def _chosen(row: Row) -> Row:
    pair = _compared(row)
    return {"messages": [*pair["messages"], {"role": "assistant", "content": pair["responses"][0]}]}


_FIELDS: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Document: (("text",), ("text",)),
    Demonstration: (("messages",), ("messages",)),
    Prompt: (("messages", "metadata"), ("messages",)),
    Comparison: (("messages", "responses", "ranks", "metadata"), ("messages", "responses", "ranks")),
    LabelledText: (("text", "label"), ("text", "label")),
}
_SHAPES: dict[type, tuple[tuple[tuple[str, ...], Callable[[Row], Row]], ...]] = {
    Document: (),
    Demonstration: (
        (("prompt", "completion"), _answered("prompt", "completion")),
        (("question", "answer"), _answered("question", "answer")),
        (("chosen", "rejected"), _chosen),
    ),
    Prompt: (
        (("prompt",), _asked("prompt")),
        (("question",), _asked("question")),
        (("chosen", "rejected"), lambda row: {"messages": _compared(row)["messages"]}),
    ),
    Comparison: ((("chosen", "rejected"), _compared),),
    LabelledText: (),
}
_FOREIGN_FIELDS = {"prompt", "completion", "question", "answer", "chosen", "rejected"}
