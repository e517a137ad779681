"""Read conversations as other data sets write them: as messages, plain text or transcripts.

Anthropic's helpful and harmless preferences (Bai et al. 2022) are pairs of transcripts that differ
in the last turn:

    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...",
     "rejected": "\\n\\nHuman: ...\\n\\nAssistant: ..."}

The subsets are folders: helpful-base, helpful-online, helpful-rejection-sampled, harmless-base.
About 1 row in 100 has an empty reply or one speaker twice in a row; such rows are dropped.

Left out on purpose: the red-team transcripts, which hold no pairs.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf_jax.data.public.rows import Row, comparison, field, text, user_turn
from rlhf_jax.data.records import TURNS, Comparison, Drop, Message, read_string

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def read_conversation(name: str, value: Any) -> tuple[Message, ...]:
    """Read messages, a transcript of `Human:` and `Assistant:`, or the text of one question."""
    if isinstance(value, list):
        return tuple(_read_message(f"{name}[{k}]", item) for k, item in enumerate(value))
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__}, expected text or messages")
    if _SPEAKER.match("\n\n" + value.lstrip()):
        return parse_transcript(value)
    return user_turn(read_string(name, value))


def _read_message(where: str, item: Any) -> Message:
    """Read a foreign message without the fields that records lack, such as names and dates."""
    if not isinstance(item, dict):
        kind = type(item).__name__
        raise ValueError(f"{where}: {kind}, expected an object with role and content")
    try:
        return Message(*(read_string(name, field(item, name)) for name in ("role", "content")))
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


def read_reply(name: str, value: Any) -> str:
    """Read a response given as text or as messages, of which it is the last."""
    if isinstance(value, list):
        if not value or not isinstance(value[-1], dict) or value[-1].get("role") != "assistant":
            raise ValueError(f"{name}: the last message is not the assistant's, expected its reply")
        value = value[-1].get("content")
    return read_string(name, value)


def parse_transcript(value: str) -> tuple[Message, ...]:
    """Return the turns of a transcript; if it waits for a reply it may end with `Assistant:`.

    Raises:
        Drop: if turns do not alternate, or one is empty.
    """
    parts = _SPEAKER.split("\n\n" + value.strip())
    if parts[0].strip() or len(parts) == 1:
        raise Drop("that begin with no speaker")
    roles = [_ROLES[speaker] for speaker in parts[1::2]]
    contents = [content.strip() for content in parts[2::2]]
    if roles != [TURNS[k % 2] for k in range(len(roles))]:
        raise Drop("whose speakers do not alternate")
    if not all(contents[:-1]):
        raise Drop("with an empty turn")
    turns = zip(roles, contents, strict=True)
    return tuple(Message(role, content) for role, content in turns if content)


def read_transcript_pair(row: Row) -> Comparison:
    """Read two transcripts whose last turns are the responses; what they share is the prompt."""
    sides = [text(row, name) for name in ("chosen", "rejected")]
    chosen, rejected = map(parse_transcript, sides)
    shorter, longer = sorted((chosen, rejected), key=len)
    # Where a worker chose silence, a side ends with the user or is the prompt alone.
    if longer[-1].role == "user" or longer[:-1] == shorter:
        raise Drop("with an empty response")
    if chosen[:-1] != rejected[:-1]:
        raise Drop("whose sides differ before the last turn")
    return comparison(chosen[:-1], [chosen[-1].content, rejected[-1].content], [1, 2])
