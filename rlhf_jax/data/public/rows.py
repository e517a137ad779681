"""Read fields of foreign rows, and build records that are fit to learn from, for all converters.

A field that is absent or of the wrong type is a `ValueError` that names it: the file is not what
its name says. A row that is well-formed and still useless, such as one with an empty response,
raises `Drop` with a reason, which `sources` counts.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhf_jax.data.records import Comparison, Demonstration, Drop, Message, Prompt, read_string

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60

Row = dict[str, Any]
# Takes a row, and options as strings; returns a record or a list of them.
Converter = Callable[..., Any]


class Located(NamedTuple):
    """Hold a row and its location, usually `file:line`, for errors to name."""

    where: str
    row: Any


@dataclass(frozen=True)
class Shape:
    """Say how the rows of one public data set become records, by a converter per kind of record.

    A converter takes a row and, as strings, the options of the source that it `needs` and `takes`.
    `gather` first makes one row of several, where a record is spread over them.
    """

    converters: Mapping[type, Converter]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    gather: Callable[[Iterable[Located]], Iterator[Located]] | None = None


def preference_shape(read_comparison: Callable[..., Comparison], **options: Any) -> Shape:
    """Return the shape of a data set of rankings, whose best responses are demonstrations."""

    def read_prompt(row: Row, **options: str) -> Prompt:
        ranking = read_comparison(row, **options)
        return Prompt(ranking.messages, ranking.metadata)

    def read_demonstration(row: Row, **options: str) -> Demonstration:
        ranking = read_comparison(row, **options)
        best = ranking.responses[ranking.ranks.index(min(ranking.ranks))]
        return Demonstration((*ranking.messages, Message("assistant", best)), ranking.metadata)

    converters: dict[type, Converter] = {Comparison: read_comparison, Prompt: read_prompt}
    return Shape({**converters, Demonstration: read_demonstration}, **options)


def demonstration_shape(read_demonstration: Callable[[Row], Demonstration]) -> Shape:
    """Return the shape of a data set of demonstrations, which holds their prompts, too."""

    def read_prompt(row: Row) -> Prompt:
        example = read_demonstration(row)
        return Prompt(example.messages[:-1], example.metadata)

    return Shape({Demonstration: read_demonstration, Prompt: read_prompt})


# Fields.


def field(row: Any, path: str) -> Any:
    """Return the value at a path such as `info.post`."""
    value = row
    parent = ""
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            names = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise ValueError(
                f"{path}: missing field, expected {name!r} in {parent or 'the row'}, found {names}"
            )
        value = value[name]
        parent = f"{parent}.{name}".lstrip(".")
    return value


def text(row: Any, path: str) -> str:
    """Return the text at a path, without white space around it."""
    return read_string(path, field(row, path)).strip()


def items(row: Any, path: str) -> list[Any]:
    """Return the list at a path."""
    value = field(row, path)
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}: {type(value).__name__}, expected a list")
    return list(value)


def number(row: Any, path: str) -> float:
    """Return the number at a path."""
    return as_number(path, field(row, path))


def as_number(name: str, value: object) -> float:
    """Return the value of the field `name` as a finite number, which may be written as text."""
    is_plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    try:
        result = float(value) if is_plain else math.nan  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        result = math.nan
    if not math.isfinite(result):
        raise ValueError(f"{name}: {shorten(value)}, expected a number")
    return result


def choice(row: Any, path: str, allowed: Sequence[Any]) -> Any:
    """Return the value at a path, which is one of `allowed`."""
    value = field(row, path)
    if isinstance(value, bool) or value not in allowed:
        raise ValueError(
            f"{path}: {shorten(value)}, expected one of {', '.join(map(repr, allowed))}"
        )
    return value


def shorten(value: object) -> str:
    """Return a value as an error shows it, whatever its size and depth."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return _SHORT.repr(value)


def replace_breaks(html: str) -> str:
    """Return the text with every `<br />` replaced by the line break that it stands for."""
    return re.sub(r"[ \t]*<br ?/?>[ \t]*", "\n", html).strip()


# Records. Each function raises Drop for what is well-formed and useless.


def user_turn(content: str) -> tuple[Message, ...]:
    """Build the conversation of one question, which may not be empty."""
    if not content.strip():
        raise Drop("with an empty prompt")
    return (Message("user", content),)


def demonstration(messages: tuple[Message, ...], response: str) -> Demonstration:
    """Build a demonstration, whose response may not be empty."""
    if not response.strip():
        raise Drop("with an empty response")
    return Demonstration((*messages, Message("assistant", response)))


def comparison(
    messages: tuple[Message, ...], responses: Sequence[str], ranks: Sequence[int], **metadata: str
) -> Comparison:
    """Build a comparison; no response may be empty, and not all may be the same text."""
    if not all(response.strip() for response in responses):
        raise Drop("with an empty response")
    if len(set(responses)) == 1:
        raise Drop("with equal responses")
    return Comparison(messages, tuple(responses), tuple(ranks), metadata)


def ranks_of_scores(scores: Sequence[float]) -> list[int]:
    """Return 1 + the number of better scores for each score, so that equal scores tie."""
    return [1 + sum(other > score for other in scores) for score in scores]
