"""A conversation as token ids, with a mark on those that the assistant has to produce.

A tokenizer with a chat template of its own (`templates.py`) writes its own markers. For all others it is

    <|user|> question <|assistant|> answer <|eos|> <|user|> question <|assistant|> answer <|eos|> ...

where a user turn is ended by the marker that follows it. What is trained, the assistant's words and the token
behind them that ends the turn, is noted while the pieces are laid down; where a template lays them, the
trained piece is what the conversation with the reply has more than the prompt that leads to it. No one
searches the ids for markers, so a padding token that equals `<|eos|>`, or a marker typed by a user, cannot
shift a mask. A template for which this cannot be told (it cuts or rewrites earlier turns, ends turns with no
token, has no generation prompt) is an error.

Either way a conversation that ends with the assistant ends with its last trained token, begins with exactly
one begin-of-text token if the tokenizer puts one before plain text, and begins with its prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf_jax.data.records import Message
from rlhf_jax.data.templates import ChatTemplate
from rlhf_jax.data.tokenizers import Tokenizer

Conversation = Sequence[Message]


class Rendered(NamedTuple):
    """A conversation's token ids, and for each whether it is a target of supervised training."""

    ids: list[int]
    trained: list[bool]


def render(tokenizer: Tokenizer, messages: Conversation, *, generation_prompt: bool) -> Rendered:
    """Renders one conversation; `generation_prompt` adds the marker after which the assistant speaks."""
    return render_batch(tokenizer, [messages], generation_prompt=generation_prompt)[0]


def render_batch(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], *, generation_prompt: bool
) -> list[Rendered]:
    """Renders many conversations with one call of the tokenizer.

    Raises:
        ValueError: if a conversation that already ends with the assistant is to get a generation prompt, or the
            tokenizer's template does not give the loss mask (`templates.ChatTemplate` says how).
    """
    if generation_prompt:
        for messages in conversations:
            _check_waits(messages)
    if tokenizer.template is None:
        rendered = _render_with_markers(tokenizer, conversations, generation_prompt)
    else:
        rendered = _render_with_template(tokenizer.template, conversations, generation_prompt)
    return [_begin(one, tokenizer) for one in rendered]


def _check_waits(messages: Conversation) -> None:
    if not messages or messages[-1].role != "user":
        role = repr(messages[-1].role) if messages else "no message"
        raise ValueError(
            f"messages: the last turn is {role}, expected 'user' before a generation prompt"
        )


def _begin(rendered: Rendered, tokenizer: Tokenizer) -> Rendered:
    """Begins with begin-of-text once: most templates write it themselves, some leave it to the tokenizer."""
    ids = tokenizer.begin(rendered.ids)
    return Rendered(ids, [False] * (len(ids) - len(rendered.ids)) + rendered.trained)


# --- our own markers --------------------------------------------------------------------------------------


def _render_with_markers(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], generation_prompt: bool
) -> list[Rendered]:
    contents = [message.content for messages in conversations for message in messages]
    content_ids = iter(tokenizer.encode_batch(contents, special=False))
    rendered = []
    for messages in conversations:
        result = Rendered([], [])
        for message in messages:
            _add_turn(result, tokenizer, message.role, next(content_ids))
        if generation_prompt:
            _add(result, [tokenizer.assistant_id], trained=False)
        rendered.append(result)
    return rendered


def _add_turn(rendered: Rendered, tokenizer: Tokenizer, role: str, content_ids: list[int]) -> None:
    if role == "assistant":
        _add(rendered, [tokenizer.assistant_id], trained=False)
        _add(rendered, [*content_ids, tokenizer.eos_id], trained=True)
    elif role == "user":
        _add(rendered, [tokenizer.user_id, *content_ids], trained=False)
    else:
        raise ValueError(
            f"messages: a {role} message, but the markers <|user|> and <|assistant|> know two roles; "
            "use a tokenizer with a chat template, or move its text into the first user message"
        )


def _add(rendered: Rendered, ids: list[int], *, trained: bool) -> None:
    rendered.ids.extend(ids)
    rendered.trained.extend([trained] * len(ids))


# --- a template of the tokenizer's own ----------------------------------------------------------------------


def _render_with_template(
    template: ChatTemplate, conversations: Sequence[Conversation], generation_prompt: bool
) -> list[Rendered]:
    """Renders every conversation as a whole, and up to the beginning and the end of every reply in it."""
    texts: list[str] = []
    for number, messages in enumerate(conversations):
        views = [(messages, generation_prompt)]
        for k in _replies(messages):
            views += [(messages[:k], True), (messages[: k + 1], False)]
        try:
            texts += [template.text(view, generation_prompt=prompt) for view, prompt in views]
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from error
    ids = iter(template.encode_batch(texts))
    return [_mark_replies(template, messages, next(ids), ids) for messages in conversations]


def _mark_replies(
    template: ChatTemplate, messages: Conversation, whole: list[int], views: Iterator[list[int]]
) -> Rendered:
    trained = [False] * len(whole)
    for k in _replies(messages):
        prompt, turn = next(views), next(views)
        end = template.reply_end(prompt, turn)
        if whole[:end] != turn[:end]:
            raise ValueError(
                f"chat template: what follows messages[{k}] (assistant) changes how it is written, so its tokens cannot be "
                "told; expected a template that only appends, or conversations of one exchange"
            )
        trained[len(prompt) : end] = [True] * (end - len(prompt))
        if k == len(messages) - 1:
            del whole[end:], trained[end:]
    return Rendered(whole, trained)


def _replies(messages: Conversation) -> list[int]:
    return [k for k, message in enumerate(messages) if message.role == "assistant"]
