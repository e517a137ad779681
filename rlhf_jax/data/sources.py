"""Sources: `load("[SHAPE@]KIND:NAME[?OPTIONS]", record_type, split=...)` reads records, wherever they are kept.

    jsonl:PATH              one JSON object a line; PATH is a file, a pattern with {split}, or a folder of SPLIT.jsonl
    json:PATH               one JSON list of objects; PATH as above
    tsv:PATH                tab-separated columns under a header; PATH is a file or a folder, whose files all belong together
    text:PATH               plain text, one document a file; PATH is a file or a folder of .txt files
    blocks:PATH             plain text, one document a block between blank lines (tiny-shakespeare: a speech)
    tfds:NAME[/CONFIG]      TensorFlow Datasets, as array_record; `menagerie_*` is built on the spot if it is absent
    hf:NAME[:CONFIG][@REV]  a data set of the Hugging Face hub, or a folder of its parquet or jsonl files

SHAPE names a public data set whose rows the source holds (`data/public`). Without one, rows have the fields of the record,
or columns that many data sets share; then nothing may be dropped. Files may be gzipped (.gz), and their names hold no question
mark. Options, joined by &:

    validation=test              read the source's `test` when a run asks for `validation`; likewise train=, test=
    train=train[:90%]            ... and any slice, as in TFDS
    by=topic                     slices are shares of groups, not of rows: a topic is on one side (or by=prompt, by=text)
    seed=1                       another draw of the groups
    duplicates=drop              leave out records that come again; otherwise they are only counted

    hh@jsonl:data/harmless-base?validation=test      ukp@tsv:data/UKPConvArg1Strict-CSV?by=topic&train=train[:80%]&...

Whoever writes JSONL for us means every field, so an unknown one is an error there; data sets of others have columns of no
concern to us, which are passed over. A row that cannot be read is a `ValueError` that says where, which field, what and what
was expected; a row that its shape drops is counted by reason, and `load` prints one line about all of them.

`load` holds all records of a split, `stream` one at a time, for corpora larger than the memory.

Left out on purpose: writing to hubs.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic

from rlhf_jax.data import splits
from rlhf_jax.data.public import ON_HUB, SHAPES
from rlhf_jax.data.public.preferences import PAIRS
from rlhf_jax.data.public.rows import Converter, Located, Row
from rlhf_jax.data.public.transcripts import HH, answered, asked, completed
from rlhf_jax.data.readers import KINDS
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    Drop,
    Dropped,
    LabelledText,
    Prompt,
    R,
    Record,
    read,
    report,
    to_dict,
)

# Rows of sources that name no shape: the fields of our own records, or columns that many data sets share.
#
# Nothing is dropped here, for nobody has said that anything may be: what a shape would drop is an error.
# Columns by which the rows of an unnamed source are recognised; the first that a row has decides.
COLUMNS: dict[type, tuple[tuple[tuple[str, ...], Converter], ...]] = {
    Demonstration: (
        (("prompt", "completion"), completed),
        (("question", "answer"), answered),
        (("prompt", "chosen", "rejected"), PAIRS.converters[Demonstration]),
        (("chosen", "rejected"), HH.converters[Demonstration]),
    ),
    Prompt: (
        (("prompt",), asked),
        (("question",), lambda row: asked({"prompt": row["question"]})),
        (("chosen", "rejected"), HH.converters[Prompt]),
    ),
    Comparison: (
        (("prompt", "chosen", "rejected"), PAIRS.converters[Comparison]),
        (("chosen", "rejected"), HH.converters[Comparison]),
    ),
}
_FIELDS: dict[type, tuple[tuple[str, ...], tuple[str, ...]]] = {
    Document: (("text",), ("text",)),
    Demonstration: (("messages", "metadata"), ("messages",)),
    Prompt: (("messages", "metadata"), ("messages",)),
    Comparison: (
        ("messages", "responses", "ranks", "metadata"),
        ("messages", "responses", "ranks"),
    ),
    LabelledText: (("text", "label"), ("text", "label")),
}
_FOREIGN_FIELDS = {"prompt", "completion", "question", "answer", "chosen", "rejected"}


def read_row(record_type: type[R], row: Any, *, strict: bool) -> R:
    """Reads a row that has the record's own fields or columns that many data sets share.

    Raises:
        ValueError: for a row that does not fit, with `strict` also for a column of no use, and for one to be dropped.
    """
    if not isinstance(row, dict):
        return read(record_type, row)
    for names, convert in COLUMNS.get(record_type, ()):
        if row.keys() >= set(names):
            extra = sorted(row.keys() - _FOREIGN_FIELDS)
            if strict and extra:
                raise ValueError(f"{extra[0]}: unknown field, expected only {', '.join(names)}")
            try:
                return convert(row)
            except Drop as drop:
                raise ValueError(
                    f"row: one {drop}, expected none without a shape that may drop it"
                ) from None
    return read(record_type, row if strict else _own_fields(record_type, row))


def _own_fields(record_type: type, row: Row) -> Row:
    """Returns the record's own fields of a foreign row, in the types that records have."""
    own, required = _FIELDS[record_type]
    if not row.keys() >= set(required):
        shapes = [required, *(names for names, _ in COLUMNS.get(record_type, ()))]
        expected = " or ".join(" + ".join(names) for names in shapes)
        raise ValueError(f"fields: found {', '.join(row)}, expected {expected}")
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


# Makes records of a row.
Reader = Callable[[Any], Sequence[Any]]
_OPTIONS = ("train", "validation", "test", "by", "seed", "duplicates")


@dataclasses.dataclass(frozen=True)
class Source:
    """What `[SHAPE@]KIND:NAME[?OPTIONS]` says."""

    shape: str  # "" = none
    kind: str
    name: str
    options: dict[str, str]

    @classmethod
    def parse(cls, source: str) -> Source:
        """Reads a source.

        Raises:
            ValueError: for an unknown kind, shape or option.
        """
        address, _, query = source.partition("?")
        match = re.fullmatch(r"(?:(\w+)@)?(\w+):(.+)", address)
        if not match or match[2] not in KINDS:
            raise ValueError(
                f"source: {source!r}, expected {', '.join(f'{known}:NAME' for known in KINDS)}"
            )
        shape, kind, name = match[1] or "", match[2], match[3]
        hub = re.split("[:@]", name)[0]
        if not shape and kind == "hf" and hub in ON_HUB:
            shape = ON_HUB[hub].shape
        if shape and shape not in SHAPES:
            raise ValueError(f"{source}: shape: {shape!r}, expected one of {', '.join(SHAPES)}")
        return cls(shape, kind, name, _options(source, query, shape))

    def split(self, wanted: str) -> str:
        """The split, or slice of one, of the source that stands for the one that a run asks for.

        Raises:
            ValueError: for what is no split, and if validation or test would hold records of train.
        """
        splits.check(wanted)
        base = splits.base(wanted)
        if base not in self.options:
            return wanted
        if "[" in wanted:
            raise ValueError(
                f"split: {wanted!r} where {base}={self.options[base]} is set, expected the name alone"
            )
        return self.options[base]


def _options(source: str, query: str, shape: str) -> dict[str, str]:
    needed = SHAPES[shape].needs if shape else ()
    allowed = (*_OPTIONS, *needed, *(SHAPES[shape].takes if shape else ()))
    options: dict[str, str] = {}
    for item in query.split("&") if query else []:
        name, equals, value = item.partition("=")
        if name not in allowed or not equals or not value or name in options:
            raise ValueError(
                f"{source}: option: {item!r}, expected NAME=VALUE once for each of {', '.join(allowed)}"
            )
        options[name] = value
    for name in needed:
        if name not in options:
            raise ValueError(
                f"{source}: option: no {name}, expected ?{name}=VALUE, which {shape} needs"
            )
    if options.get("duplicates", "drop") != "drop" or not options.get("seed", "0").isdigit():
        raise ValueError(f"{source}: option: expected duplicates=drop, and a whole number as seed")
    _check_splits(source, options)
    return options


def _check_splits(source: str, options: dict[str, str]) -> None:
    """Refuse splits that are none, and held-out ones that share records with train."""
    for name in ("train", "validation", "test"):
        splits.check(options.get(name, name))
    train = options.get("train", "train")
    for name in ("validation", "test"):
        if name in options and splits.overlap(train, options[name]):
            raise ValueError(
                f"{source}: option: train={train} and {name}={options[name]} overlap, expected disjoint parts"
            )


def load(source: str, record_type: type[R], *, split: str, data_dir: str) -> Sequence[R]:
    """Reads all records of one split; `data_dir` is where TFDS and Hugging Face keep what they prepare.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: for an unknown kind of source or split, for the first row that cannot be read, and if nothing is left.
    """
    return list(_Records(source, record_type, split, data_dir, count_repeats=True))


def stream(source: str, record_type: type[R], *, split: str, data_dir: str) -> Iterable[R]:
    """The records that `load` reads, anew whenever they are asked for and one at a time, without holding them.

    Records that repeat are not counted; `duplicates=drop` has to hold them all. Raises what `load` raises, errors of a row when
    it is reached.
    """
    return _Records(source, record_type, split, data_dir, count_repeats=False)


class _Records(Generic[R]):
    """The records of one split of a source, which is read once for every iteration."""

    def __init__(
        self, source: str, record_type: type[R], split: str, data_dir: str, *, count_repeats: bool
    ) -> None:
        self.place: Source = Source.parse(source)
        self.source, self.data_dir = source, data_dir
        self.record_type: type[R] = record_type
        self.split, self.by = self.place.split(split), self.place.options.get("by")
        self.compares = "duplicates" in self.place.options or (
            count_repeats and self.place.shape != ""
        )
        if self.by and "[" not in "".join([split, *self.place.options.values()]):
            raise ValueError(
                f"{source}: option: by={self.by} without a slice, expected shares such as train=train[:90%]"
            )

    def __iter__(self) -> Iterator[R]:
        place, read = self.place, splits.base(self.split) if self.by else self.split
        rows, what = KINDS[place.kind](place.name, read, self.data_dir), f"{self.source} {read}"
        records: Iterable[R] = _records(place, self.record_type, rows, what)
        if self.compares:
            records = _repeats(place, list(records), what)
        if self.by and "[" in self.split:
            records = splits.take_groups(
                records, self.split, by=self.by, seed=int(place.options.get("seed", "0"))
            )
        empty = True
        for record in records:
            empty = False
            yield record
        if empty:
            raise ValueError(
                f"{self.source}: split: {self.split!r} has no records, expected at least one"
            )


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Writes records, one JSON object a line, so that `load("jsonl:PATH", ...)` returns them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")


# Rows become records.


def _records(
    place: Source, record_type: type[R], rows: Iterable[Located], what: str
) -> Iterator[R]:
    """Converts all rows, leaves out what is to be left out, and in the end says so in one line."""
    read = _shape_reader(place, record_type) if place.shape else _own_reader(place, record_type)
    gather = SHAPES[place.shape].gather if place.shape else None
    reasons: Counter[str] = Counter()
    total = 0
    for where, row in gather(rows) if gather else rows:
        total += 1
        try:
            found = read(row)
        except Drop as drop:
            reasons[str(drop)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield from found
    report(what, Dropped(total, dict(reasons)))


def _repeats(place: Source, records: list[R], what: str) -> list[R]:
    """Counts the records that come again, and leaves them out if the source says so."""
    first: dict[tuple[Any, ...], R] = {}
    for record in records:
        first.setdefault(_content(record), record)
    count = len(records) - len(first)
    if count:
        drop = "duplicates" in place.options
        print(
            f"   {what}: {count} of {len(records)} records repeat another, {'dropped' if drop else 'kept'}",
            flush=True,
        )
    return list(first.values()) if "duplicates" in place.options else records


def _content(record: Record) -> tuple[Any, ...]:
    """What a record says, its metadata apart."""
    return tuple(
        getattr(record, item.name) for item in dataclasses.fields(record) if item.name != "metadata"
    )


def _shape_reader(place: Source, record_type: type) -> Reader:
    shape = SHAPES[place.shape]
    if record_type not in shape.converters:
        names = ", ".join(known.__name__ for known in shape.converters)
        raise ValueError(
            f"{place.shape}@{place.kind}:{place.name}: holds {names}, expected {record_type.__name__}"
        )
    taken = {
        name: place.options[name] for name in (*shape.needs, *shape.takes) if name in place.options
    }

    def read(row: Any) -> Sequence[Any]:
        found = shape.converters[record_type](row, **taken)
        return found if isinstance(found, list) else [found]

    return read


def _own_reader(place: Source, record_type: type[R]) -> Reader:
    strict = place.kind in ("jsonl", "json")
    return lambda row: [read_row(record_type, row, strict=strict)]
