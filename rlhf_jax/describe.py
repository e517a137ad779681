"""Say what every field of a config is: its value, where that came from, what it means.

Meanings are the comments in the source of the dataclasses, behind a field or above it, so there is
one text for who reads the code and who asks the command line.
"""

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Mapping, Set
from functools import cache
from typing import Any, NamedTuple

from rlhf_jax.config import present_type


class Field(NamedTuple):
    """Describe one value of a config, or a group of them, whose value is None."""

    path: str
    value: str | None
    origin: str  # file, or flag
    meaning: str


def describe_config(
    cls: type, tree: Mapping[str, Any], given: Set[str], path: str = "config"
) -> Iterator[Field]:
    """Yield the fields of a config that fits `cls`; `given` has the paths that flags set."""
    hints, comments = typing.get_type_hints(cls), field_comments(cls)
    yield Field(path, None, "", first_sentence(cls))
    groups = []
    for field in dataclasses.fields(cls):
        name, value = f"{path}.{field.name}", tree[field.name]
        hint, meaning = present_type(hints[field.name]), comments.get(field.name, "")
        if value is not None and isinstance(hint, type) and dataclasses.is_dataclass(hint):
            groups.append((hint, value, name))
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(_item(hint)):
            groups += [(_item(hint), item, f"{name}.{key}") for key, item in value.items()]
        elif typing.get_origin(hint) is dict and value:
            for key, item in value.items():
                yield _field(f"{name}.{key}", item, given, meaning)
        else:
            yield _field(name, value, given, meaning)
    for hint, value, name in groups:
        yield from describe_config(hint, value, given, name)


def _item(hint: Any) -> Any:
    return typing.get_args(hint)[1]


def _field(path: str, value: Any, given: Set[str], meaning: str) -> Field:
    is_given = any(path == name or path.startswith(f"{name}.") for name in given)
    return Field(path, repr(value), "flag" if is_given else "file", meaning)


def first_sentence(cls: type) -> str:
    """Return the first line of a class' docstring."""
    return (cls.__doc__ or "").strip().split("\n", maxsplit=1)[0]


@cache
def field_comments(cls: type) -> dict[str, str]:
    """Return the comments of a dataclass' fields, of inherited ones, too."""
    comments: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            comments |= read_comments(textwrap.dedent(inspect.getsource(base)))
    return comments


def read_comments(source: str) -> dict[str, str]:
    """Return the comments of the fields of a class' source: above the field, then behind it."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comment_of = {
        token.start[0]: (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
        for token in tokens
        if token.type == tokenize.COMMENT
    }
    comments = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above: list[str] = []
        line = node.lineno - 1
        while line in comment_of and comment_of[line][1]:  # a line of its own
            above.insert(0, comment_of[line][0])
            line -= 1
        behind = [comment_of[node.end_lineno or 0][0]] if node.end_lineno in comment_of else []
        if text := " ".join([*above, *behind]):
            comments[node.target.id] = text
    return comments


def format_fields(fields: Iterator[Field]) -> str:
    """Return the fields, a line each: path, value, (origin), meaning."""
    lines = []
    for path, value, origin, meaning in fields:
        if value is None:
            lines.append(f"\n{path}: {meaning}" if meaning else f"\n{path}")
        else:
            text = f"  {path} = {value}"
            lines.append(f"{text:60s} ({origin})  {'# ' if meaning else ''}{meaning}".rstrip())
    return "\n".join(lines).lstrip("\n")
