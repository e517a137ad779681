"""Anthropic's helpful and harmless preferences (Bai et al. 2022): two transcripts that differ in the last turn.

    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "\\n\\nHuman: ...\\n\\nAssistant: ..."}

The subsets are folders: helpful-base, helpful-online, helpful-rejection-sampled, harmless-base. Crowd workers chose what to
say next, so a conversation that goes on holds the better reply of each earlier turn. About 1 row in 100 has an empty reply
or one speaker twice in a row; such rows are dropped with the reason.

Left out on purpose: the red-team transcripts, which hold no pairs.
"""

from __future__ import annotations

import re
from typing import Any

from rlhf_jax.data.public.rows import Row, answer, ask, field, preferences, rank, text
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    Drop,
    Message,
    Prompt,
    read_string,
)


# Columns that many data sets share: prompt + completion, question + answer, chosen + rejected, text (+ label).
#
# They are what an unnamed source may hold besides the fields of our own records.
def conversation(name: str, value: Any) -> tuple[Message, ...]:
    """Reads messages, a transcript of `Human:` and `Assistant:`, or the plain text of one question."""
    if isinstance(value, list):
        return tuple(_message(f"{name}[{k}]", item) for k, item in enumerate(value))
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__}, expected text or messages")
    return transcript(value) if is_transcript(value) else ask(read_string(name, value))


def reply(name: str, value: Any) -> str:
    """Reads a response given as text or as messages, of which it is the last."""
    if isinstance(value, list):
        if not value or not isinstance(value[-1], dict) or value[-1].get("role") != "assistant":
            raise ValueError(f"{name}: the last message is not the assistant's, expected its reply")
        value = value[-1].get("content")
    return read_string(name, value)


def asked(row: Row) -> Prompt:
    """The prompt of a row; what it was answered does not matter."""
    return Prompt(conversation("prompt", field(row, "prompt")))


def completed(row: Row) -> Demonstration:
    """A prompt and its completion."""
    return answer(
        conversation("prompt", field(row, "prompt")), reply("completion", field(row, "completion"))
    )


def answered(row: Row) -> Demonstration:
    """A question and its answer."""
    return answer(ask(text(row, "question")), text(row, "answer"))


def document(row: Row) -> Document:
    """The text of a row."""
    words = read_string("text", field(row, "text"))
    if not words.strip():
        raise Drop("with no text")
    return Document(words)


def _message(where: str, item: Any) -> Message:
    """A foreign message without the fields that records lack, such as names and dates."""
    if not isinstance(item, dict):
        raise ValueError(
            f"{where}: {type(item).__name__}, expected an object with role and content"
        )
    try:
        return Message(*(read_string(name, field(item, name)) for name in ("role", "content")))
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from None


_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: str) -> bool:
    """Whether the text begins with a speaker."""
    return _SPEAKER.match("\n\n" + value.lstrip()) is not None


def transcript(value: str) -> tuple[Message, ...]:
    """The turns of a transcript; one that waits for its reply may end with a bare `Assistant:`.

    Raises:
        Drop: if turns do not alternate, or one is empty.
    """
    parts = _SPEAKER.split("\n\n" + value.strip())
    if parts[0].strip() or len(parts) == 1:
        raise Drop("that begin with no speaker")
    turns = [
        (_ROLES[name], words.strip()) for name, words in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if [role for role, _ in turns] != [("user", "assistant")[k % 2] for k in range(len(turns))]:
        raise Drop("whose speakers do not alternate")
    if not all(words for _, words in turns[:-1]):
        raise Drop("with an empty turn")
    return tuple(Message(role, words) for role, words in turns if words)


def compare(row: Row) -> Comparison:
    """The pair of a row: what both transcripts share is the prompt."""
    sides = [text(row, name) for name in ("chosen", "rejected")]
    chosen, rejected = map(transcript, sides)
    shorter, longer = sorted((chosen, rejected), key=len)
    if (
        longer[-1].role == "user" or longer[:-1] == shorter
    ):  # a bare `Assistant:`, a worker's choice of silence
        raise Drop("with an empty response")
    if chosen[:-1] != rejected[:-1]:
        raise Drop("whose sides differ before the last turn")
    return rank(chosen[:-1], [chosen[-1].content, rejected[-1].content], [1, 2])


HH = preferences(compare)
