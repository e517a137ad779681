"""Render a conversation as token ids, and mark those that the assistant has to produce.

A tokenizer with a chat template of its own (`templates.py`) writes its own markers. All others get

    <|user|> question <|assistant|> answer <|eos|> <|user|> question <|assistant|> answer <|eos|>

where the next marker ends a user's turn. Trained are the assistant's words and the token behind
them that ends the turn: with a template, what the conversation with the reply has more than the
prompt that leads to it. Ids are never searched for markers, so neither a padding token that equals
`<|eos|>` nor a marker typed by a user can shift a mask.

Either way a conversation that ends with the assistant ends with its last trained token, begins with
exactly one begin-of-text token if the tokenizer puts one before plain text, and begins with its
prompt.

Templates of reasoning models (Qwen 3, R1) take the thinking out of every reply but the last. The
earlier replies then are not what the model would say, so only the last can be trained on:
`train_on="last"`, which is all that prompts, rankings and rewards need.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Literal, NamedTuple

from rlhf_jax.data.records import Message
from rlhf_jax.data.templates import LAST_ALONE, ChatTemplate
from rlhf_jax.data.tokenizers import Tokenizer

Conversation = Sequence[Message]
TrainOn = Literal["all", "last"]  # the replies of a conversation that training predicts


class Rendered(NamedTuple):
    """Hold a conversation's token ids, and for each whether supervised training predicts it."""

    ids: list[int]
    trained: list[bool]


def render(
    tokenizer: Tokenizer,
    messages: Conversation,
    *,
    generation_prompt: bool,
    train_on: TrainOn = "all",
) -> Rendered:
    """Render one conversation; `generation_prompt` adds the marker that opens the reply."""
    return render_batch(
        tokenizer, [messages], generation_prompt=generation_prompt, train_on=train_on
    )[0]


def render_batch(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    *,
    generation_prompt: bool,
    train_on: TrainOn = "all",
) -> list[Rendered]:
    """Render many conversations with one call of the tokenizer.

    `train_on` says which replies are marked: all, or only the one that ends a conversation. With a
    generation prompt none is.

    Raises:
        ValueError: if a conversation that already ends with the assistant is to get a generation
            prompt, or if the loss mask cannot be determined from the tokenizer's template
            (`templates.ChatTemplate` says why).
    """
    for messages in conversations if generation_prompt else ():
        if not messages or messages[-1].role != "user":
            role = repr(messages[-1].role) if messages else "no message"
            expected = "expected 'user' before a generation prompt"
            raise ValueError(f"messages: the last turn is {role}, {expected}")
    trained = [
        [] if generation_prompt else _trained_replies(messages, train_on)
        for messages in conversations
    ]
    if tokenizer.template is None:
        rendered = _render_with_markers(tokenizer, conversations, trained, generation_prompt)
    elif generation_prompt:
        rendered = _render_prompts(tokenizer.template, conversations)
    else:
        rendered = _render_with_template(tokenizer.template, conversations, trained)
    return [_prepend_begin_of_text(conversation, tokenizer) for conversation in rendered]


def _trained_replies(messages: Conversation, train_on: TrainOn) -> list[int]:
    """Return the indices of the assistant's messages that training predicts."""
    if train_on == "last":
        last = len(messages) - 1
        return [last] if messages and messages[last].role == "assistant" else []
    return [k for k, message in enumerate(messages) if message.role == "assistant"]


def _prepend_begin_of_text(rendered: Rendered, tokenizer: Tokenizer) -> Rendered:
    """Begin with begin-of-text once: most templates write it, some leave it to the tokenizer."""
    ids = tokenizer.prepend_begin_of_text(rendered.ids)
    num_new = len(ids) - len(rendered.ids)
    return Rendered(ids, [False] * num_new + rendered.trained)


# Our own markers.


def _render_with_markers(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    trained: Sequence[Sequence[int]],
    generation_prompt: bool,
) -> list[Rendered]:
    contents = [message.content for messages in conversations for message in messages]
    content_ids = iter(tokenizer.encode_batch(contents, special=False))
    opening = [tokenizer.assistant_id] if generation_prompt else []
    rendered = []
    for messages, replies in zip(conversations, trained, strict=True):
        turns = [_turn(tokenizer, message.role, next(content_ids)) for message in messages]
        turns.append((opening, []))
        ids = [i for given, reply in turns for i in (*given, *reply)]
        marks = (
            [False] * len(given) + [k in replies] * len(reply)
            for k, (given, reply) in enumerate(turns)
        )
        rendered.append(Rendered(ids, list(chain.from_iterable(marks))))
    return rendered


def _turn(tokenizer: Tokenizer, role: str, content_ids: list[int]) -> tuple[list[int], list[int]]:
    """Return the tokens of a turn that are given, and those that the assistant has to produce."""
    if role == "assistant":
        return [tokenizer.assistant_id], [*content_ids, tokenizer.eos_id]
    if role == "user":
        return [tokenizer.user_id, *content_ids], []
    raise ValueError(
        f"messages: a {role} message, but the markers <|user|> and <|assistant|> know two roles; "
        "use a tokenizer with a chat template, or move its text into the first user message"
    )


# The tokenizer's own template.


def _render_prompts(
    template: ChatTemplate, conversations: Sequence[Conversation]
) -> list[Rendered]:
    texts = []
    for number, messages in enumerate(conversations):
        with _numbered(number):
            texts.append(template.text(messages, generation_prompt=True))
    return [Rendered(ids, [False] * len(ids)) for ids in template.encode_batch(texts)]


def _render_with_template(
    template: ChatTemplate, conversations: Sequence[Conversation], trained: Sequence[Sequence[int]]
) -> list[Rendered]:
    """Render every conversation whole, and up to the start and the end of its trained replies."""
    texts: list[str] = []
    for number, (messages, replies) in enumerate(zip(conversations, trained, strict=True)):
        with _numbered(number):
            views = [template.reply_texts(messages[: k + 1]) for k in replies]
            last = len(messages) - 1
            if replies and replies[-1] == last:
                template.check_quoted(messages, replies[:-1])
                whole = views[-1][1]
            else:
                template.check_quoted(messages, replies)
                whole = template.text(messages, generation_prompt=False)
            texts += chain([whole], *views)
    ids = iter(template.encode_batch(texts))
    rendered = []
    for number, (messages, replies) in enumerate(zip(conversations, trained, strict=True)):
        with _numbered(number):
            last = len(messages) - 1
            rendered.append(_mark_replies(template, next(ids), replies, ids, last=last))
    return rendered


@contextmanager
def _numbered(number: int) -> Iterator[None]:
    """Say in an error which conversation it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"conversation {number}: {error}") from error


def _mark_replies(
    template: ChatTemplate,
    whole: list[int],
    replies: Sequence[int],
    views: Iterator[list[int]],
    *,
    last: int,
) -> Rendered:
    """Mark the replies in `whole`, the ids of a conversation; `views` yields two per reply."""
    trained = [False] * len(whole)
    for k in replies:
        prompt = next(views)
        turn = next(views)
        end = template.reply_end(prompt, turn)
        if whole[:end] != turn[:end]:
            raise ValueError(
                f"chat template: what follows messages[{k}] (assistant) changes how it is written, "
                f"so its tokens cannot be determined; {LAST_ALONE}"
            )
        trained[len(prompt) : end] = [True] * (end - len(prompt))
        if k == last:
            del whole[end:], trained[end:]
    return Rendered(whole, trained)
