"""Read records from a source: `load("[SHAPE@]KIND:NAME[?OPTIONS]", record_type, split=...)`.

    jsonl:PATH              one JSON object a line; PATH is a file, a pattern with {split}, or a
                            folder of SPLIT.jsonl
    json:PATH               one JSON list of objects; PATH as above
    tsv:PATH                tab-separated columns under a header; PATH is a file, or a folder whose
                            files all belong together
    text:PATH               plain text; PATH is a document, or a folder of documents named *.txt
    blocks:PATH             as text:, but a blank line ends a document
    tfds:NAME[/CONFIG]      TensorFlow Datasets, prepared as array_record where they are absent
    hf:NAME[:CONFIG][@REV]  a data set of the Hugging Face hub, or a folder of its parquet or jsonl
                            files

SHAPE names a public data set whose rows the source holds (`data/public`). Without one, rows have
the fields of the record, or columns that many data sets share; then nothing may be dropped. Files
may be gzipped (.gz), and their names hold no question mark. Options, joined by &:

    validation=test         read the source's `test` when a run asks for `validation`; likewise
                            train=, test=
    train=train[:90%]       ... and any slice, as in TFDS
    by=topic                slices are shares of groups, not of rows: a topic is on one side; or
                            by=prompt, by=text
    seed=1                  another assignment of the groups
    duplicates=drop         leave out records that repeat another; otherwise they are only counted

    hh@jsonl:data/harmless-base?validation=test
    ukp@tsv:data/UKPConvArg1Strict-CSV?by=topic&train=train[:80%]&validation=train[80%:]

JSON files without a SHAPE are taken to be written for us, so an unknown field is an error there;
other columns of other data sets are ignored. A row that cannot be read is a `ValueError` that says
where, which field, what is wrong and what was expected. Rows that their shape drops are counted by
reason and reported in one line.

Left out on purpose: writing to hubs.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Generic

from rlhf_jax.data import splits
from rlhf_jax.data.public.demonstrations import read_answer, read_completion, read_prompt
from rlhf_jax.data.public.rows import Converter, Located, Row, Shape
from rlhf_jax.data.readers import KINDS
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Drop,
    Prompt,
    R,
    Record,
    from_dict,
    report,
    to_dict,
)

_SPLITS = ("train", "validation", "test")
_OPTIONS = (*_SPLITS, "by", "seed", "duplicates")


def load(source: str, record_type: type[R], *, split: str, data_dir: str) -> Sequence[R]:
    """Read all records of one split, which is a name or a slice such as `train[:90%]`.

    `data_dir` is where TFDS and Hugging Face keep what they prepare.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        ValueError: for an unknown kind of source or split, for the first row that cannot be read,
            and if nothing is left.
    """
    return list(_Records(source, record_type, split, data_dir, count_repeats=True))


def stream(source: str, record_type: type[R], *, split: str, data_dir: str) -> Iterable[R]:
    """Return the records that `load` reads, read again for every iteration and one at a time.

    Records that repeat are not counted; `duplicates=drop` has to hold all records. Raises what
    `load` raises, errors of a row when it is reached.
    """
    return _Records(source, record_type, split, data_dir, count_repeats=False)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write records, one JSON object a line, so that `load("jsonl:PATH", ...)` returns them."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(to_dict(record), ensure_ascii=False) + "\n")


# What a source says.


@dataclasses.dataclass(frozen=True)
class Source:
    """Hold the parts of `[SHAPE@]KIND:NAME[?OPTIONS]`."""

    text: str  # the whole
    shape: str  # the name of `rows`, or ""
    rows: Shape
    kind: str
    name: str
    options: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Source:
        """Parse a source.

        Raises:
            ValueError: for an unknown kind, shape or option.
        """
        address, _, query = text.partition("?")
        match = re.fullmatch(r"(?:(\w+)@)?(\w+):(.+)", address)
        if not match or match[2] not in KINDS:
            known = ", ".join(f"{kind}:NAME" for kind in KINDS)
            raise ValueError(f"source: {text!r}, expected {known}")
        shape, kind, name = match[1] or "", match[2], match[3]
        hub_name = re.split("[:@]", name)[0]
        rows = Shape({})
        if shape or kind == "hf":
            from rlhf_jax.data.public.shapes import ON_HUB, SHAPES  # only who names one needs them

            if not shape and hub_name in ON_HUB:
                shape = ON_HUB[hub_name].shape
            if shape and shape not in SHAPES:
                raise ValueError(f"{text}: shape: {shape!r}, expected one of {', '.join(SHAPES)}")
            rows = SHAPES[shape] if shape else rows
        return cls(text, shape, rows, kind, name, _parse_options(text, query, shape, rows))

    def split(self, requested: str) -> str:
        """Return the split of the source, or slice of one, that stands for the requested one.

        Raises:
            ValueError: for what is no split, and for a slice of a split that an option replaces.
        """
        splits.check_split(requested)
        base = splits.base_split(requested)
        if base not in self.options:
            return requested
        if "[" in requested:
            problem = f"{requested!r} where {base}={self.options[base]} is set"
            raise ValueError(f"split: {problem}, expected the name alone")
        return self.options[base]


def _parse_options(source: str, query: str, name_of_shape: str, shape: Shape) -> dict[str, str]:
    allowed = (*_OPTIONS, *shape.needs, *shape.takes)
    options: dict[str, str] = {}
    for item in query.split("&") if query else []:
        name, equals, value = item.partition("=")
        if name not in allowed or not equals or not value or name in options:
            expected = f"expected NAME=VALUE once for each of {', '.join(allowed)}"
            raise ValueError(f"{source}: option: {item!r}, {expected}")
        options[name] = value
    for name in shape.needs:
        if name not in options:
            expected = f"expected ?{name}=VALUE, which {name_of_shape} needs"
            raise ValueError(f"{source}: option: no {name}, {expected}")
    if options.get("duplicates", "drop") != "drop" or not options.get("seed", "0").isdigit():
        raise ValueError(f"{source}: option: expected duplicates=drop, and a whole number as seed")
    for name in _SPLITS:
        splits.check_split(options.get(name, name))
    train = options.get("train", "train")
    for name in ("validation", "test"):
        if name in options and splits.overlap(train, options[name]):
            problem = f"train={train} and {name}={options[name]} overlap"
            raise ValueError(f"{source}: option: {problem}, expected disjoint parts")
    return options


# Rows become records.


class _Records(Generic[R]):
    """Iterate over the records of one split of a source, reading them again for every iteration."""

    def __init__(
        self, source: str, record_type: type[R], split: str, data_dir: str, *, count_repeats: bool
    ) -> None:
        self._source = Source.parse(source)
        self._record_type: type[R] = record_type
        self._split = self._source.split(split)
        self._data_dir = data_dir
        self._by = self._source.options.get("by")
        self._drops_repeats = "duplicates" in self._source.options
        self._counts_repeats = count_repeats and self._source.shape != ""
        if self._by and "[" not in "".join([split, *self._source.options.values()]):
            expected = "expected shares such as train=train[:90%]"
            raise ValueError(f"{source}: option: by={self._by} without a slice, {expected}")
        converters = self._source.rows.converters
        if converters and record_type not in converters:
            names = ", ".join(known.__name__ for known in converters)
            address = f"{self._source.shape}@{self._source.kind}:{self._source.name}"
            raise ValueError(f"{address}: holds {names}, expected {record_type.__name__}")

    def __iter__(self) -> Iterator[R]:
        source = self._source
        # A slice by groups is taken of the records, any other of the rows while they are read.
        split = splits.base_split(self._split) if self._by else self._split
        rows = KINDS[source.kind](source.name, split, self._data_dir)
        title = f"{source.text} {split}"
        records: Iterable[R] = _convert_rows(source, self._record_type, rows, title)
        if self._drops_repeats or self._counts_repeats:
            records = _count_repeats(list(records), title, drop=self._drops_repeats)
        if self._by and "[" in self._split:
            seed = int(source.options.get("seed", "0"))
            records = splits.take_groups(records, self._split, by=self._by, seed=seed)
        empty = True
        for record in records:
            empty = False
            yield record
        if empty:
            problem = f"split: {self._split!r} has no records"
            raise ValueError(f"{source.text}: {problem}, expected at least one")


def _convert_rows(
    source: Source, record_type: type[R], rows: Iterable[Located], title: str
) -> Iterator[R]:
    """Convert all rows; in the end report those that were dropped in one line."""
    reasons: Counter[str] = Counter()
    total = 0
    for where, row in source.rows.gather(rows) if source.rows.gather else rows:
        total += 1
        try:
            records = _convert_row(source, record_type, row)
        except Drop as drop:
            reasons[str(drop)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        yield from records
    report(title, total, reasons)


def _convert_row(source: Source, record_type: type[R], row: Any) -> Sequence[R]:
    if not source.shape:
        return [_read_row(record_type, row, strict=source.kind in ("jsonl", "json"))]
    options = {name: value for name, value in source.options.items() if name not in _OPTIONS}
    records = source.rows.converters[record_type](row, **options)
    return records if isinstance(records, list) else [records]


def _count_repeats(records: list[R], title: str, *, drop: bool) -> list[R]:
    """Report how many records repeat another but for metadata; leave them out if `drop` says so."""
    unique: dict[tuple[Any, ...], R] = {}
    for record in records:
        fields = dataclasses.fields(record)
        content = tuple(getattr(record, item.name) for item in fields if item.name != "metadata")
        unique.setdefault(content, record)
    count = len(records) - len(unique)
    if count:
        line = f"{count} of {len(records)} records repeat another"
        print(f"   {title}: {line}, {'dropped' if drop else 'kept'}", flush=True)
    return list(unique.values()) if drop else records


# Rows of sources that name no shape: the fields of our own records, or columns that many data sets
# share. Nothing is dropped, because nobody has said that anything may be.

Columns = dict[type, tuple[tuple[tuple[str, ...], Converter], ...]]


@cache
def _columns() -> Columns:
    """Return the columns by which a row is recognised; the first entry that a row has decides."""
    from rlhf_jax.data.public.shapes import SHAPES  # own rows need no converter

    sides = ("chosen", "rejected")
    pairs, hh = SHAPES["pairs"].converters, SHAPES["hh"].converters
    return {
        Demonstration: (
            (("prompt", "completion"), read_completion),
            (("question", "answer"), read_answer),
            (("prompt", *sides), pairs[Demonstration]),
            (sides, hh[Demonstration]),
        ),
        Prompt: (
            (("prompt",), read_prompt),
            (("question",), lambda row: read_prompt({"prompt": row["question"]})),
            (sides, hh[Prompt]),
        ),
        Comparison: ((("prompt", *sides), pairs[Comparison]), (sides, hh[Comparison])),
    }


def _read_row(record_type: type[R], row: Any, *, strict: bool) -> R:
    """Read a row of the record's own fields or common columns; `strict` refuses all others."""
    if not isinstance(row, dict):
        return from_dict(record_type, row)
    for names, convert in _columns().get(record_type, ()):
        if row.keys() >= set(names):
            tables = _columns().values()
            known = {name for table in tables for columns, _ in table for name in columns}
            unused = sorted(row.keys() - known)
            if strict and unused:
                raise ValueError(f"{unused[0]}: unknown field, expected only {', '.join(names)}")
            try:
                return convert(row)
            except Drop as drop:
                expected = "expected none without a shape that may drop it"
                raise ValueError(f"row: one {drop}, {expected}") from None
    return from_dict(record_type, row if strict else _own_fields(record_type, row))


def _own_fields(record_type: type, row: Row) -> Row:
    """Return the record's own fields of a foreign row, in the types that records have."""
    fields = dataclasses.fields(record_type)
    required = [item.name for item in fields if item.default_factory is dataclasses.MISSING]
    if not row.keys() >= set(required):
        alternatives = [required, *(names for names, _ in _columns().get(record_type, ()))]
        expected = " or ".join(" + ".join(names) for names in alternatives)
        raise ValueError(f"fields: found {', '.join(row)}, expected {expected}")
    own = {item.name: row[item.name] for item in fields if row.get(item.name) is not None}
    if isinstance(own.get("metadata"), str):
        own["metadata"] = json.loads(own["metadata"])
    if isinstance(own.get("label"), int):
        own["label"] = str(own["label"])
    if isinstance(own.get("messages"), list):  # without the names and dates of foreign messages
        names = {"role", "content"}
        own["messages"] = [
            {name: turn[name] for name in turn if name in names} if isinstance(turn, dict) else turn
            for turn in own["messages"]
        ]
    return own
