"""Define the six kinds of record that every stage reads, and their plain JSON form.

    Document       text                                    pretraining
    Demonstration  messages, the last one the assistant's  supervised fine-tuning
    Prompt         messages, the last one the user's       PPO, sampling, evaluation
    Comparison     messages, K responses, K ranks          reward modelling, preference training
    Thumb          messages, completion, label             preference training by KTO
    LabelledText   text, label                             classification

A record is checked when it is constructed, so every record in memory is valid: messages alternate
between user and assistant and begin with the user, a system message may precede them, nothing is
empty, and there are as many ranks as responses. Errors read `field: what is wrong, expected what`;
`sources` puts the `file:line` in front.

Left out on purpose: tools, and system messages anywhere else. A chat template that cannot render a
system message raises an error.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

ROLES = ("system", "user", "assistant")
TURNS = ("user", "assistant")
LARGEST_RANK = 2**31 - 1  # what an array of int32 holds


# The records.


@dataclass(frozen=True)
class Message:
    """Hold one turn of a conversation: its speaker and its text."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise _field_error("role", f"unknown role {self.role!r}", f"one of {', '.join(ROLES)}")
        _check_not_empty("content", self.content)


@dataclass(frozen=True)
class Document:
    """Hold plain text for pretraining; chat markers in it are parsed as special tokens."""

    text: str

    def __post_init__(self) -> None:
        _check_not_empty("text", self.text)


@dataclass(frozen=True)
class Demonstration:
    """Hold a conversation that ends with the reply a labeler would have liked to see."""

    messages: tuple[Message, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="assistant")


@dataclass(frozen=True)
class Prompt:
    """Hold a conversation that waits for the assistant's reply."""

    messages: tuple[Message, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="user")


@dataclass(frozen=True)
class Comparison:
    """Hold one prompt with K responses and their ranks: 1 is the best, ties share a rank."""

    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="user")
        size = len(self.responses)
        if size < 2:
            raise _field_error("responses", f"{size} of them", "at least 2 to compare")
        for k, response in enumerate(self.responses):
            _check_not_empty(f"responses[{k}]", response)
        if len(self.ranks) != size:
            counts = f"{len(self.ranks)} ranks for {size} responses"
            raise _field_error("ranks", counts, "one rank a response")
        expected = "1 for the best, more for the others"
        for k, rank in enumerate(self.ranks):
            if rank < 1:
                raise _field_error(f"ranks[{k}]", f"rank {_short(rank)}", expected)
            if rank > LARGEST_RANK:
                problem = f"rank {_short(rank)}"
                raise _field_error(f"ranks[{k}]", problem, f"at most {LARGEST_RANK}")


@dataclass(frozen=True)
class Thumb:
    """Hold one reply that somebody found good (`label` is true) or bad, compared with no other."""

    messages: tuple[Message, ...]
    completion: str
    label: bool
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_turns(self.messages, last="user")
        _check_not_empty("completion", self.completion)


@dataclass(frozen=True)
class LabelledText:
    """Hold a text and the name of its class."""

    text: str
    label: str

    def __post_init__(self) -> None:
        _check_not_empty("text", self.text)
        _check_not_empty("label", self.label)


Record = Document | Demonstration | Prompt | Comparison | Thumb | LabelledText
R = TypeVar("R", Document, Demonstration, Prompt, Comparison, Thumb, LabelledText)


def as_pairs(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return every untied pair of every ranking as a comparison of two responses, the better first.

    Ouyang et al. 2022 (§3.5) found that a reward model overfits on such pairs in shuffled order.
    """
    return [
        replace(ranking, responses=(ranking.responses[i], ranking.responses[j]), ranks=(1, 2))
        for ranking in comparisons
        for i, better in enumerate(ranking.ranks)
        for j, worse in enumerate(ranking.ranks)
        if better < worse
    ]


def _check_turns(messages: tuple[Message, ...], *, last: str) -> None:
    """Check that turns alternate, that the user begins, and that `last` has the last word."""
    if not messages:
        raise _field_error("messages", "none", f"at least one, the last of role {last}")
    first = int(messages[0].role == "system")
    for k, message in enumerate(messages[first:], first):
        turn = TURNS[(k - first) % 2]
        if message.role != turn:
            expected = f"{turn!r}: turns alternate"
            raise _field_error(f"messages[{k}].role", repr(message.role), expected)
    if messages[-1].role != last:
        name = f"messages[{len(messages) - 1}].role"
        raise _field_error(name, repr(messages[-1].role), f"{last!r} to have the last word")


def _short(number: int) -> str:
    """Return a number as an error shows it, whatever its size."""
    return str(number) if abs(number) < 10**20 else "of more than 20 digits"


def _check_not_empty(name: str, text: str) -> None:
    if not text:
        raise _field_error(name, "empty text", "at least one character")


def _field_error(name: str, problem: str, expected: str) -> ValueError:
    return ValueError(f"{name}: {problem}, expected {expected}")


# Their JSON form.


def to_dict(record: Record) -> dict[str, Any]:
    """Return the record as plain JSON values, without an empty `metadata`."""
    row = dataclasses.asdict(record)
    row = {name: list(value) if isinstance(value, tuple) else value for name, value in row.items()}
    return {name: value for name, value in row.items() if name != "metadata" or value}


def from_dict(record_type: type[R], row: object) -> R:
    """Build a record from plain JSON values, strictly.

    Raises:
        ValueError: `field: problem, expected ...` for a missing, unknown, mistyped, empty or
            inconsistent field.
    """
    return record_type(**_read_fields(record_type, row))


def read_string(name: str, value: object) -> str:
    """Return the value of the field `name` if it is a string that UTF-8 can hold, else raise."""
    if not isinstance(value, str):
        raise _field_error(name, _type_name(value), "a string")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _field_error(name, "half of a surrogate pair", "text that UTF-8 can hold")
    return value


def _read_fields(record_type: type, row: object) -> dict[str, Any]:
    """Return the constructor's arguments from a row whose names and types are checked."""
    if not isinstance(row, dict):
        raise _field_error(record_type.__name__, _type_name(row), "an object")
    items = dataclasses.fields(record_type)
    names = [item.name for item in items]
    for name in row:
        if name not in names:
            raise _field_error(str(name), "unknown field", f"only {', '.join(names)}")
    for item in items:
        if item.name not in row and item.default_factory is dataclasses.MISSING:
            expected = f"a {record_type.__name__} with {', '.join(names)}"
            raise _field_error(item.name, "missing field", expected)
    readers = {item.name: _READERS_OF_TYPES[str(item.type)] for item in items}
    return {name: readers[name](name, row[name]) for name in names if name in row}


def _read_strings(name: str, value: object) -> tuple[str, ...]:
    items = read_list(name, value)
    return tuple(read_string(f"{name}[{k}]", item) for k, item in enumerate(items))


def read_integers(name: str, value: object) -> tuple[int, ...]:
    """Return the value of the field `name` if it is a list of integers, else raise."""
    for k, item in enumerate(read_list(name, value)):
        if isinstance(item, bool) or not isinstance(item, int):
            raise _field_error(f"{name}[{k}]", _type_name(item), "an integer")
    return tuple(value)  # type: ignore[arg-type]


def _read_metadata(name: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _field_error(name, _type_name(value), "an object of strings")
    return {str(key): read_string(f"{name}.{key}", item) for key, item in value.items()}


def _read_messages(name: str, value: object) -> tuple[Message, ...]:
    messages = []
    for k, item in enumerate(read_list(name, value)):
        if not isinstance(item, dict):
            expected = "an object with role and content"
            raise _field_error(f"{name}[{k}]", _type_name(item), expected)
        try:
            messages.append(Message(**_read_fields(Message, item)))
        except ValueError as error:
            raise ValueError(f"{name}[{k}].{error}") from None
    return tuple(messages)


def read_list(name: str, value: object) -> Sequence[object]:
    """Return the value of the field `name` if it is a list, else raise."""
    if not isinstance(value, list | tuple):
        raise _field_error(name, _type_name(value), "a list")
    return value


def _read_boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _field_error(name, _type_name(value), "true or false")
    return value


# By the types of the records' fields as they are written above.
_READERS_OF_TYPES: dict[str, Callable[[str, object], Any]] = {
    "str": read_string,
    "bool": _read_boolean,
    "tuple[Message, ...]": _read_messages,
    "tuple[str, ...]": _read_strings,
    "tuple[int, ...]": read_integers,
    "dict[str, str]": _read_metadata,
}
_TYPE_NAMES = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
_TYPE_NAMES |= {int: "a number", float: "a number", type(None): "null"}


def _type_name(value: object) -> str:
    """Return the name of a value's type in JSON's own words."""
    return _TYPE_NAMES.get(type(value), type(value).__name__)


# Records that are left out.

Item = TypeVar("Item")


class Drop(Exception):
    """Signal a row that holds nothing to learn from; the reason is worded as "with no text"."""


def select(
    source: str, items: Sequence[Item], reason_to_drop: Callable[[Item], str | None]
) -> list[int]:
    """Return the indices of the items without a reason to drop them, and report the others.

    Raises:
        ValueError: if nothing is left.
    """
    reasons = [reason_to_drop(item) for item in items]
    report(source, len(items), Counter(reason for reason in reasons if reason is not None))
    return [i for i, reason in enumerate(reasons) if reason is None]


def report(source: str, total: int, reasons: Mapping[str, int]) -> None:
    """Print one line about the records of `source` that were dropped, counted by reason.

    Raises:
        ValueError: if nothing is left of the `total`.
    """
    count = sum(reasons.values())
    if not count:
        return
    details = "; ".join(f"{number} {reason}" for reason, number in reasons.items())
    line = f"{source}: {count} of {total} records dropped: {details}"
    if count == total:
        raise ValueError(f"{line}; nothing is left, expected a larger limit or other records")
    print(f"   {line}", flush=True)
