"""What converters share: reading a field of a foreign row, and building records that are fit to learn from.

A field that is absent or of the wrong type is a `ValueError` that names it: the file is not what its name says. A row that
is well-formed and still useless, such as one with an empty response, raises `Drop` with a reason, which `load` counts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_jax.data.records import Comparison, Demonstration, Drop, Message, Prompt, read_string

Row = dict[str, Any]
# A row and the place it came from.
Located = tuple[str, Any]
# Takes a row, and options as strings; returns a record or a list of them.
Converter = Callable[..., Any]


@dataclass(frozen=True)
class Shape:
    """How the rows of one public data set become records, one converter for each kind of record.

    A converter takes a row and, as strings, the options of the source: those it `needs` and those it `takes`. `gather` first
    makes one row of several, where a record is spread over them.
    """

    converters: Mapping[type, Converter]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    gather: Callable[[Iterable[Located]], Iterator[Located]] | None = None


def preferences(compare: Callable[..., Comparison], *, takes: tuple[str, ...] = ()) -> Shape:
    """The shape of a data set of rankings: its prompts, and its best responses as demonstrations, come with it."""

    def ask(row: Row, **options: str) -> Prompt:
        ranking = compare(row, **options)
        return Prompt(ranking.messages, ranking.metadata)

    def show(row: Row, **options: str) -> Demonstration:
        ranking = compare(row, **options)
        best = ranking.responses[ranking.ranks.index(min(ranking.ranks))]
        return Demonstration((*ranking.messages, Message("assistant", best)), ranking.metadata)

    return Shape({Comparison: compare, Prompt: ask, Demonstration: show}, takes=takes)


def demonstrations(show: Callable[[Row], Demonstration]) -> Shape:
    """The shape of a data set of demonstrations; their prompts come with it."""

    def ask(row: Row) -> Prompt:
        example = show(row)
        return Prompt(example.messages[:-1], example.metadata)

    return Shape({Demonstration: show, Prompt: ask})


# Fields.


def field(row: Any, path: str) -> Any:
    """The value at a path such as `info.post`."""
    value, walked = row, ""
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            found = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise ValueError(
                f"{path}: missing field, expected {name!r} in {walked or 'the row'}, found {found}"
            )
        value, walked = value[name], f"{walked}.{name}".lstrip(".")
    return value


def text(row: Any, path: str) -> str:
    """The text at a path, without white space around it."""
    return read_string(path, field(row, path)).strip()


def items(row: Any, path: str) -> list[Any]:
    """The list at a path."""
    value = field(row, path)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}: {type(value).__name__}, expected a list")
    return list(value)


def number(row: Any, path: str) -> float:
    """The number at a path."""
    return as_number(path, field(row, path))


def as_number(name: str, value: object) -> float:
    """The value as a number, which may be written as text."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{name}: {value!r}, expected a number")
    return found


def choice(row: Any, path: str, allowed: Sequence[Any]) -> Any:
    """The value at a path, one of `allowed`."""
    value = field(row, path)
    if isinstance(value, bool) or value not in allowed:
        raise ValueError(f"{path}: {value!r}, expected one of {', '.join(map(repr, allowed))}")
    return value


# Records.


def ask(content: str) -> tuple[Message, ...]:
    """The conversation of one question. Raises Drop if it is empty."""
    if not content.strip():
        raise Drop("with an empty prompt")
    return (Message("user", content),)


def answer(messages: tuple[Message, ...], response: str) -> Demonstration:
    """A demonstration. Raises Drop if the response is empty."""
    if not response.strip():
        raise Drop("with an empty response")
    return Demonstration((*messages, Message("assistant", response)))


def rank(
    messages: tuple[Message, ...], responses: Sequence[str], ranks: Sequence[int], **metadata: str
) -> Comparison:
    """A comparison. Raises Drop if a response is empty, or if all are the same text."""
    if not all(response.strip() for response in responses):
        raise Drop("with an empty response")
    if len(set(responses)) == 1:
        raise Drop("with equal responses")
    return Comparison(messages, tuple(responses), tuple(ranks), metadata)


def ranks_of(scores: Sequence[float]) -> list[int]:
    """Rank 1 + the number of better scores, so that equal scores tie."""
    return [1 + sum(other > score for other in scores) for score in scores]


def without_breaks(html: str) -> str:
    """Text in which `<br />` has become the line break that it stands for."""
    return re.sub(r"[ \t]*<br ?/?>[ \t]*", "\n", html).strip()
