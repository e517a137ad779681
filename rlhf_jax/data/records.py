"""The five kinds of record that every stage reads, and their plain JSON form.

    Document       text                                    pretraining
    Demonstration  messages, the last one the assistant's  supervised fine-tuning
    Prompt         messages, the last one the user's       PPO, sampling, evaluation
    Comparison     messages, K responses, K ranks          reward modelling
    LabelledText   text, label                             classification

A record is checked when it is made, so that whoever holds one may trust it: messages alternate between user
and assistant and begin with the user, a system message may stand before them, nothing is empty, and there are
as many ranks as responses. Complaints read `field: what is wrong, expected what`; `from_dict` puts `where`
(usually `file:line`) in front.

Left out on purpose: tools, and system messages anywhere else. Whether a system message can be rendered is the
chat template's affair; one that cannot is an error there rather than a turn that quietly disappears.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

ROLES = ("system", "user", "assistant")
TURNS = ("user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: who speaks, and what."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise _complaint("role", f"unknown role {self.role!r}", f"one of {', '.join(ROLES)}")
        _check_not_empty("content", self.content)


@dataclass(frozen=True)
class Document:
    """Plain text for pretraining; it may contain the chat markers, which are parsed as special tokens."""

    text: str

    def __post_init__(self) -> None:
        _check_not_empty("text", self.text)


@dataclass(frozen=True)
class Demonstration:
    """A conversation that ends with the reply a labeler would have liked to see."""

    messages: tuple[Message, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="assistant")


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's reply."""

    messages: tuple[Message, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="user")


@dataclass(frozen=True)
class Comparison:
    """One prompt with K responses ranked by a labeler: rank 1 is the best, ties share a rank."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="user")
        if len(self.responses) < 2:
            raise _complaint("responses", f"{len(self.responses)} of them", "at least 2 to compare")
        for k, response in enumerate(self.responses):
            _check_not_empty(f"responses[{k}]", response)
        if len(self.ranks) != len(self.responses):
            raise _complaint(
                "ranks",
                f"{len(self.ranks)} ranks for {len(self.responses)} responses",
                "one rank a response",
            )
        for k, rank in enumerate(self.ranks):
            if rank < 1:
                raise _complaint(
                    f"ranks[{k}]", f"rank {rank}", "1 for the best, more for the others"
                )


def as_pairs(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Every untied pair of every ranking as a comparison of two, the better first: what InstructGPT found to overfit."""
    return [
        Comparison(one.messages, (one.responses[i], one.responses[j]), (1, 2), one.metadata)
        for one in comparisons
        for i, better in enumerate(one.ranks)
        for j, worse in enumerate(one.ranks)
        if better < worse
    ]


@dataclass(frozen=True)
class LabelledText:
    """A text and the name of its class."""

    text: str
    label: str

    def __post_init__(self) -> None:
        _check_not_empty("text", self.text)
        _check_not_empty("label", self.label)


Record = Document | Demonstration | Prompt | Comparison | LabelledText
R = TypeVar("R", Document, Demonstration, Prompt, Comparison, LabelledText)
RECORD_TYPES: tuple[type, ...] = (Document, Demonstration, Prompt, Comparison, LabelledText)


def to_dict(record: Record) -> dict[str, Any]:
    """Returns the record as plain JSON values; an empty `metadata` is left out."""
    row: dict[str, Any] = {}
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if item.name == "messages":
            row["messages"] = [
                {"role": message.role, "content": message.content} for message in value
            ]
        elif item.name != "metadata" or value:
            row[item.name] = list(value) if isinstance(value, tuple) else value
    return row


def from_dict(record_type: type[R], row: object, *, where: str) -> R:
    """Reads a record from plain JSON values, strictly.

    Raises:
        ValueError: `where: field: what, expected ...` for a missing, unknown, mistyped, empty or inconsistent
            field.
    """
    try:
        return read(record_type, row)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def read(record_type: type[R], row: object) -> R:
    """`from_dict` for a caller who says where the row stands."""
    return record_type(**_read_fields(record_type, row))


def _read_fields(record_type: type, row: object) -> dict[str, Any]:
    """Checks the names and types of all fields of `row` and returns the constructor's arguments."""
    if not isinstance(row, dict):
        raise _complaint(record_type.__name__, _type_name(row), "an object")
    items = dataclasses.fields(record_type)
    names = [item.name for item in items]
    for name in row:
        if name not in names:
            raise _complaint(str(name), "unknown field", f"only {', '.join(names)}")
    for item in items:
        if item.name not in row and item.default_factory is dataclasses.MISSING:
            raise _complaint(
                item.name, "missing field", f"a {record_type.__name__} with {', '.join(names)}"
            )
    return {name: _READERS[name](name, row[name]) for name in names if name in row}


def read_string(name: str, value: object) -> str:
    """Returns the value if it is a string that UTF-8 can hold, else complains about the field `name`."""
    if not isinstance(value, str):
        raise _complaint(name, _type_name(value), "a string")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _complaint(name, "half of a surrogate pair", "text that UTF-8 can hold")
    return value


def read_strings(name: str, value: object) -> tuple[str, ...]:
    return tuple(
        read_string(f"{name}[{k}]", item) for k, item in enumerate(_read_list(name, value))
    )


def _read_integers(name: str, value: object) -> tuple[int, ...]:
    for k, item in enumerate(_read_list(name, value)):
        if isinstance(item, bool) or not isinstance(item, int):
            raise _complaint(f"{name}[{k}]", _type_name(item), "an integer")
    return tuple(value)  # type: ignore[arg-type]


def _read_metadata(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _complaint(name, _type_name(value), "an object of strings")
    return {str(key): read_string(f"{name}.{key}", item) for key, item in value.items()}


def _read_messages(name: str, value: object) -> tuple[Message, ...]:
    messages = []
    for k, item in enumerate(_read_list(name, value)):
        if not isinstance(item, dict):
            raise _complaint(f"{name}[{k}]", _type_name(item), "an object with role and content")
        try:
            messages.append(Message(**_read_fields(Message, item)))
        except ValueError as error:
            raise ValueError(f"{name}[{k}].{error}") from None
    return tuple(messages)


def _read_list(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise _complaint(name, _type_name(value), "a list")
    return value


_READERS: dict[str, Callable[[str, object], Any]] = {
    "role": read_string,
    "content": read_string,
    "text": read_string,
    "label": read_string,
    "messages": _read_messages,
    "responses": read_strings,
    "ranks": _read_integers,
    "metadata": _read_metadata,
}


def _check_turns(messages: tuple[Message, ...], *, last: str) -> None:
    """Checks that messages alternate, that the user begins (after a system message), and that `last` has the last word."""
    if not messages:
        raise _complaint("messages", "none", f"at least one, the last of role {last}")
    first = int(messages[0].role == "system")
    for k, message in enumerate(messages[first:], first):
        turn = TURNS[(k - first) % 2]
        if message.role != turn:
            raise _complaint(
                f"messages[{k}].role", repr(message.role), f"{turn!r}: turns alternate"
            )
    if messages[-1].role != last:
        k = len(messages) - 1
        raise _complaint(
            f"messages[{k}].role", repr(messages[k].role), f"{last!r} to have the last word"
        )


def _check_not_empty(name: str, text: str) -> None:
    if not text:
        raise _complaint(name, "empty text", "at least one character")


def _complaint(name: str, what: str, expected: str) -> ValueError:
    return ValueError(f"{name}: {what}, expected {expected}")


def _type_name(value: object) -> str:
    """Names a JSON value's type in JSON's own words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(
        type(value), "a number" if isinstance(value, int | float) else type(value).__name__
    )


# What is left out is counted by reason and said in one line; nothing is skipped in silence.
#
# `Drop` is raised by whoever finds a record unfit, with a reason that continues "3 of 10 records dropped: 3 ...". `select` is
# the one place where records are left out of a list, for whatever reason: their tokens, their length, their ties.
Item = TypeVar("Item")


class Drop(Exception):
    """A well-formed row that holds nothing to learn from; the message is the reason."""


@dataclass(frozen=True)
class Dropped:
    """How many of `total` records were left out, by reason."""

    total: int
    reasons: dict[str, int]

    @property
    def count(self) -> int:
        """The number of records left out."""
        return sum(self.reasons.values())

    def __str__(self) -> str:
        reasons = "; ".join(f"{count} {reason}" for reason, count in self.reasons.items())
        return f"{self.count} of {self.total} records dropped" + (f": {reasons}" if reasons else "")


def report(what: str, dropped: Dropped) -> None:
    """Prints the one line, if there is something to say.

    Raises:
        ValueError: if nothing is left.
    """
    if dropped.total and dropped.count == dropped.total:
        raise ValueError(
            f"{what}: {dropped}; nothing is left, expected a larger limit or other records"
        )
    if dropped.count:
        print(f"   {what}: {dropped}", flush=True)


def select(
    what: str, items: Sequence[Item], reason: Callable[[Item], str | None]
) -> tuple[list[int], Dropped]:
    """Returns the places of the items without a reason to drop them, and the counts, which are printed."""
    reasons = [reason(item) for item in items]
    keep = [i for i, why in enumerate(reasons) if why is None]
    dropped = Dropped(len(items), dict(Counter(why for why in reasons if why is not None)))
    report(what, dropped)
    return keep, dropped
