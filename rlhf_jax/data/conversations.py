"""Read conversations as they are written elsewhere, and say why one is of no use.

    [{"role": "user", "content": "..."}, ...]       messages; a content may be one part of text
    [{"from": "human", "value": "..."}, ...]        ShareGPT's turns: human, gpt, system
    {"role": [...], "content": [...]}               either as columns, as a Sequence is stored
    "\\n\\nHuman: ... \\n\\nAssistant: ..."             a transcript as in Anthropic's data
    "..."                                           one question

A value of another type, a missing field and an unknown role are errors that name the field. Dropped
with a reason are turns of tools, functions and developers, calls of tools, content of several parts
or of images, empty turns, and turns that do not alternate: a record would have to leave part of
them out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.data.records import ROLES, TURNS, Drop, Message, read_string

Turns = tuple[Message, ...]

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKER_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", **{role: role for role in ROLES}}
# Roles that are well known and that records have no place for.
_FOREIGN_ROLES = (
    *("tool", "tool_call", "tool_response", "function", "function_call", "function_response"),
    *("developer", "ipython", "observation"),
)
# The fields of a turn that are read.
TURN_FIELDS = frozenset(("role", "content", "from", "value", "tool_calls", "function_call"))


def read_conversation(name: str, value: Any) -> Turns:
    """Read the value of the field `name`: messages, a transcript, or the text of one question.

    Raises:
        Drop: for a conversation that no record can hold.
        ValueError: for what is none of them.
    """
    if is_turns(value):
        return read_turns(name, value)
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__}, expected text or messages")
    if is_transcript(value):
        return parse_transcript(read_string(name, value))
    if not value.strip():
        raise Drop("with an empty prompt")
    return (Message("user", read_string(name, value)),)


def is_turns(value: Any) -> bool:
    """Return whether a value is made like messages: a list, or columns of roles and contents."""
    return isinstance(value, list | tuple | dict)


def is_transcript(value: str) -> bool:
    """Return whether a text begins with a speaker, `Human:` or `Assistant:`."""
    return bool(_SPEAKER.match("\n\n" + value.lstrip()))


def read_turns(name: str, value: Any) -> Turns:
    """Read messages, or ShareGPT's turns, that may be the whole or the end of a conversation."""
    items = _as_list(value)
    if isinstance(items, str) or not isinstance(items, Sequence):
        kind = "null" if value is None else type(value).__name__
        raise ValueError(f"{name}: {kind}, expected messages")
    return tuple(_read_turn(f"{name}[{k}]", item) for k, item in enumerate(items))


def _as_list(value: Any) -> Any:
    """Return the turns of columns of roles and contents, one message in a list, all else as is."""
    if not isinstance(value, dict):
        return value
    for names in (("role", "content"), ("from", "value")):
        columns: list[Any] = [value.get(name) for name in names]
        if all(isinstance(column, list | tuple) for column in columns):
            if len(set(map(len, columns))) > 1:
                raise ValueError(f"{names[1]}: not as many as {names[0]}, expected one a turn")
            return [dict(zip(names, turn, strict=True)) for turn in zip(*columns, strict=True)]
    return [value]


def _read_turn(where: str, item: Any) -> Message:
    if not isinstance(item, dict):
        kind = type(item).__name__
        raise ValueError(f"{where}: {kind}, expected an object with role and content")
    is_sharegpt = "from" in item and "role" not in item
    names = ("from", "value") if is_sharegpt else ("role", "content")
    for name in names:
        if name not in item:
            raise ValueError(
                f"{where}.{name}: missing field, expected {names[0]} and {names[1]}, found "
                f"{', '.join(map(str, item))}"
            )
    role = read_string(f"{where}.{names[0]}", item[names[0]])
    if role in _FOREIGN_ROLES:
        raise Drop(f"with a turn of the role {role}")
    if item.get("tool_calls") or item.get("function_call"):
        raise Drop("with a call of a tool")
    role = _SHAREGPT_ROLES.get(role, role) if is_sharegpt else role
    if role not in ROLES:
        known = ", ".join(_SHAREGPT_ROLES if is_sharegpt else ROLES)
        raise ValueError(f"{where}.{names[0]}: unknown role {role!r}, expected one of {known}")
    content = _read_content(f"{where}.{names[1]}", item[names[1]])
    if not content.strip():
        raise Drop("with an empty turn")
    return Message(role, content)


def _read_content(name: str, value: Any) -> str:
    """Return the text of a content, which may be the only one of a list of parts."""
    if isinstance(value, list | tuple):
        parts = [part for part in value if not isinstance(part, str)]
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        is_text = [isinstance(part, dict) and part.get("type") == "text" for part in parts]
        if len(value) != 1 or is_text != [True]:
            raise Drop("with content that is not one part of text")
        value = texts[0]
    return read_string(name, value)


def check_turns(turns: Turns) -> None:
    """Raise `Drop` if the turns do not alternate behind a system turn, beginning with the user."""
    first = int(bool(turns) and turns[0].role == "system")
    roles = [turn.role for turn in turns[first:]]
    if "system" in roles:
        raise Drop("with a system turn that is not the first")
    if roles[:1] == ["assistant"]:
        raise Drop("that begin with the assistant")
    if roles != [TURNS[k % 2] for k in range(len(roles))]:
        raise Drop("whose turns do not alternate")


def parse_transcript(value: str) -> Turns:
    """Return the turns of a transcript; if it waits for a reply it may end with `Assistant:`.

    Raises:
        Drop: if turns do not alternate, or one is empty.
    """
    parts = _SPEAKER.split("\n\n" + value.strip())
    if parts[0].strip() or len(parts) == 1:
        raise Drop("that begin with no speaker")
    roles = [_SPEAKER_ROLES[speaker] for speaker in parts[1::2]]
    contents = [content.strip() for content in parts[2::2]]
    if roles != [TURNS[k % 2] for k in range(len(roles))]:
        raise Drop("whose speakers do not alternate")
    if not all(contents[:-1]):
        raise Drop("with an empty turn")
    turns = zip(roles, contents, strict=True)
    return tuple(Message(role, content) for role, content in turns if content)


def agree(first: Turns, second: Turns) -> Turns | None:
    """Return the longer of two accounts of what was said, or None if they contradict each other.

    They agree if one is the end of the other, or its beginning behind a system turn: a column may
    hold the question alone, the first question, or all of it.
    """
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    whole, part = _comparable(longer), _comparable(shorter)
    behind_system = whole[1:] if whole and whole[0][0] == "system" else whole
    beginnings = (whole[: len(part)], behind_system[: len(part)])
    return longer if part in beginnings or is_end(longer, shorter) else None


def is_end(turns: Turns, end: Turns) -> bool:
    """Return whether turns end with some others."""
    return len(end) <= len(turns) and _comparable(turns[len(turns) - len(end) :]) == _comparable(
        end
    )


def _comparable(turns: Iterable[Message]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content.strip()) for turn in turns]
