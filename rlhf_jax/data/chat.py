"""The chat template: a conversation as token ids, with a mark on those that the assistant has to produce.

    <|user|> question <|assistant|> answer <|eos|> <|user|> question <|assistant|> answer <|eos|> ...

Every assistant turn ends with `<|eos|>`; a user turn is ended by the marker that follows it. What is
trained, the assistant's words and the `<|eos|>` behind them, is noted while the pieces are laid down. No
one searches the ids for markers afterwards, so a padding token that equals `<|eos|>`, or a marker typed by
a user, cannot shift a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import Tokenizer


class Rendered(NamedTuple):
    """A conversation's token ids, and for each whether it is a target of supervised training."""

    ids: list[int]
    trained: list[bool]


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, generation_prompt: bool) -> Rendered:
    """Renders one conversation; `generation_prompt` adds the marker after which the assistant speaks."""
    return render_batch(tokenizer, [messages], generation_prompt=generation_prompt)[0]


def render_batch(
    tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], *, generation_prompt: bool
) -> list[Rendered]:
    """Renders many conversations with one call of the tokenizer.

    Raises:
        ValueError: if a conversation that already ends with the assistant is to get a generation prompt.
    """
    contents = [message.content for messages in conversations for message in messages]
    content_ids = iter(tokenizer.encode_batch(contents, special=False))
    rendered = []
    for messages in conversations:
        result = Rendered([], [])
        for message in messages:
            _add_turn(result, tokenizer, message.role, next(content_ids))
        if generation_prompt:
            _add_generation_prompt(result, tokenizer, messages)
        rendered.append(result)
    return rendered


def _add_turn(rendered: Rendered, tokenizer: Tokenizer, role: str, content_ids: list[int]) -> None:
    if role == "assistant":
        _add(rendered, [tokenizer.assistant_id], trained=False)
        _add(rendered, [*content_ids, tokenizer.eos_id], trained=True)
    else:
        _add(rendered, [tokenizer.user_id, *content_ids], trained=False)


def _add_generation_prompt(rendered: Rendered, tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    if not messages or messages[-1].role != "user":
        role = repr(messages[-1].role) if messages else "no message"
        raise ValueError(f"messages: the last turn is {role}, expected 'user' before a generation prompt")
    _add(rendered, [tokenizer.assistant_id], trained=False)


def _add(rendered: Rendered, ids: list[int], *, trained: bool) -> None:
    rendered.ids.extend(ids)
    rendered.trained.extend([trained] * len(ids))
