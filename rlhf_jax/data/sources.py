"""Read records from a source: `load("[SHAPE@]KIND:NAME[?OPTIONS]", record_type, split=...)`.

    jsonl:PATH              one JSON object a line; PATH is a file, a pattern with {split}, or a
                            folder of SPLIT.jsonl
    json:PATH               one JSON list of objects; PATH as above
    csv:PATH                columns under a header, quoted as RFC 4180 says; PATH as above. Lists
                            and messages stand in a cell as JSON
    parquet:PATH            PATH as above, or a folder of SPLIT-*.parquet
    tsv:PATH                tab-separated columns under a header; PATH is a file, or a folder whose
                            files all belong together
    text:PATH               plain text; PATH is a document, or a folder of documents named *.txt
    blocks:PATH             as text:, but a blank line ends a document
    lines:PATH              as text:, but every line is a prompt
    tfds:NAME[/CONFIG]      TensorFlow Datasets, prepared as array_record where they are absent
    hf:FOLDER[:CONFIG]      a folder in Hugging Face's formats: what `save_to_disk` wrote, or files
                            SPLIT.* or SPLIT-*.* of parquet, JSON lines, JSON or CSV
    hub:NAME[:CONFIG][@REV] a data set of the Hugging Face hub

Files of text may be gzipped (.gz), and their names hold no question mark. SHAPE names a public data
set whose rows the source holds (`data/public`). Rows without one are recognised by their columns,
the same ones in every kind of source and for every stage:

    columns                               what the row holds                  read as
    text                                  a document; as a dialogue it has    Document, D P
                                          to be a transcript (*)
    text, label                           a text and its class                LabelledText
    messages                              a conversation (**)                 D P
    conversations                         the same in ShareGPT's words        D P
                                          (from, value)
    PROMPT, completion                    a reply: text, or messages of one   D P
                                          turn or several
    question, answer                      a reply                             D P
    instruction, [input,] output          a reply (Alpaca)                    D P
    PROMPT, completion, label             a reply and a thumb: true, false,   Thumb, D P
                                          1, 0; one down is no demonstration
    PROMPT, chosen, rejected              two replies: texts, or messages     Comparison, D P
                                          that hold the reply alone or the
                                          whole conversation
    chosen, rejected                      two whole conversations: messages   Comparison, D P
                                          or transcripts (*); what they
                                          share is the prompt
    PROMPT, chosen, rejected              several of each, in lists of texts  Comparison, D P
    PROMPT, responses, ranks              K replies, 1 for the best           Comparison, D P
    PROMPT, responses, scores             K replies, more is better           Comparison, D P
    PROMPT, responses, best               K replies, the index of the best    Comparison, D P
    PROMPT                                a question                          P

    PROMPT   one of `prompt` (text, a transcript or messages), `question`, `instruction` [with
             `input`], `messages`, `conversations`; several have to agree: one may hold a part of
             another
    D        a Demonstration: of rankings the best reply
    P        a Prompt: of a conversation that ends with the assistant all before its last turn
    (*)      "\\n\\nHuman: ... \\n\\nAssistant: ..."
    (**)     turns {"role", "content"}; `data/conversations.py` has the other ways to write them

Beside a form may stand `system` (or `system_prompt`), `history` (pairs of question and answer),
which come first, and `metadata`, an object. Prompts keep all columns that are no part of the
conversation and no reply in their metadata, as text or JSON: `answer`, `label`, `id`, whatever a
reward may ask for. All other records keep `metadata` and the column that `by=` names; further
columns are passed over, and one line counts them.

Equal texts on both sides, equal ranks and equal scores tie. Where two readings are possible and say
different things, the row is an error that names both. Dropped and counted by reason in one line are
rows whose sides differ before their last turn or contradict `prompt`, whose turns do not alternate,
with roles of tools or developers, calls of tools, content in parts, empty prompts or replies.
Anything else that cannot be read is a `ValueError` that says where, which field, what is wrong and
what was expected. Options, joined by &:

    validation=test         read the source's `test` when a run asks for `validation`; likewise
                            train=, test=
    train=train[:90%]       ... and any slice, as in TFDS
    by=topic                slices are shares of groups, not of rows: a topic is on one side; or
                            by=prompt, by=text
    seed=1                  another assignment of the groups
    duplicates=drop         leave out records that repeat another; otherwise they are only counted
    columns=prompt,answer   read rows as if they had these columns alone

    hh@jsonl:data/harmless-base?validation=test
    ukp@tsv:data/UKPConvArg1Strict-CSV?by=topic&train=train[:80%]&validation=train[80%:]

Left out on purpose: writing to hubs.
"""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Generic

from rlhf_jax.data import forms, splits
from rlhf_jax.data.public.rows import Located, Shape
from rlhf_jax.data.readers import KINDS
from rlhf_jax.data.records import Drop, R, Record, report, to_dict

_SPLITS = ("train", "validation", "test")
_OPTIONS = (*_SPLITS, "by", "seed", "duplicates", "columns")
_MOST_NAMES = 8  # of columns in a line


# What was read since `remembering`, by record, split and number: number and CRC-32 of the records.
Readings = dict[str, dict[str, Any]]
_READINGS: ContextVar[Readings | None] = ContextVar("readings", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Remember in the body what is read to its end; `remembered` returns it."""
    token = _READINGS.set({})
    try:
        yield
    finally:
        _READINGS.reset(token)


def remembered() -> Readings:
    """Return what was read since `remembering`, in the order in which it came to its end."""
    return dict(_READINGS.get() or {})


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
            raise ValueError(f"source: {text!r}, expected {known}{_hint(address)}")
        shape, kind, name = match[1] or "", match[2], match[3]
        hub_name = re.split("[:@]", name)[0]
        rows = Shape({})
        if shape or kind == "hub":
            from rlhf_jax.data.public.shapes import ON_HUB, SHAPES  # only who names one needs them

            if not shape and kind == "hub" and hub_name in ON_HUB:
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


def _hint(address: str) -> str:
    """Return what a path without its kind may have meant."""
    path = Path(address)
    if ":" in address or not path.exists():
        return ""
    kind = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".txt": "text"}.get(
        Path(path.name.removesuffix(".gz")).suffix, "parquet" if path.is_file() else "hf"
    )
    return f"; for this {'file' if path.is_file() else 'folder'} {kind}:{address}"


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
    if name_of_shape and "columns" in options:
        problem = f"columns= with the shape {name_of_shape}"
        raise ValueError(f"{source}: option: {problem}, expected one of the two")
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
        readings, count, crc = _READINGS.get(), 0, 0
        for record in records:
            count += 1
            if readings is not None:
                crc = zlib.crc32(repr(record).encode(errors="surrogatepass"), crc)
            yield record
        if not count:
            problem = f"split: {self._split!r} has no records"
            raise ValueError(f"{source.text}: {problem}, expected at least one")
        if readings is not None:
            name = f"{self._record_type.__name__} {self._split}"
            number = sum(key.startswith(name + " ") for key in readings) + 1
            reading = {"source": source.text, "records": count, "crc32": f"{crc:08x}"}
            readings[f"{name} {number}"] = reading


def _convert_rows(
    source: Source, record_type: type[R], rows: Iterable[Located], title: str
) -> Iterator[R]:
    """Convert all rows; in the end report what was dropped, cut and passed over, in a line each."""
    reasons: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    columns: Counter[str] = Counter()
    total = 0
    for where, row in source.rows.gather(rows) if source.rows.gather else rows:
        total += 1
        try:
            if source.shape:
                yield from _convert_row(source, record_type, row)
                continue
            record, remark, passed_over = _read_row(source, record_type, row)
        except Drop as drop:
            reasons[str(drop)] += 1
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        # What no reader has foreseen is an error of the row as well, with the place that it is at.
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            problem = f"{type(error).__name__}: {str(error)[:200]}"
            raise ValueError(f"{where}: row: {problem}, expected {_expected(source)}") from error
        if remark:
            remarks[remark] += 1
        columns.update(passed_over)
        yield record
    report(title, total, reasons)
    for remark, count in remarks.items():
        print(f"   {title}: {count} of {total} {remark}", flush=True)
    if columns:
        names = ", ".join(list(columns)[:_MOST_NAMES]) + ", ..." * (len(columns) > _MOST_NAMES)
        plural = "columns" if len(columns) > 1 else "column"
        print(f"   {title}: passed over {len(columns)} other {plural}: {names}", flush=True)


def _expected(source: Source) -> str:
    return f"the rows of {source.shape}" if source.shape else "a row of one of the known forms"


def _read_row(source: Source, record_type: type[R], row: Any) -> forms.Reading[R]:
    """Read a row by its columns, or by those that an option names."""
    by = source.options.get("by", "")
    if "columns" in source.options:
        row = forms.select_columns(row, source.options["columns"].split(","))
    return forms.read_row(record_type, row, kept=[by] if by not in ("", "prompt", "text") else [])


def _convert_row(source: Source, record_type: type[R], row: Any) -> Sequence[R]:
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


# What a source holds.


def holds(source: str, record_type: type[Record], *, split: str, data_dir: str) -> bool:
    """Return whether the first row of a source has the columns of a record of this type.

    Raises what `load` raises.
    """
    parsed = Source.parse(source)
    if parsed.shape:
        return record_type in parsed.rows.converters
    first = splits.base_split(parsed.split(split))
    rows = iter(KINDS[parsed.kind](parsed.name, first, data_dir))
    columns = parsed.options.get("columns")
    for _, row in rows:
        chosen = row if columns is None else forms.select_columns(row, columns.split(","))
        return forms.holds(record_type, chosen)
    return False
