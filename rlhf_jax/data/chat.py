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
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Literal, NamedTuple

from rlhf_jax.data.records import Message
from rlhf_jax.data.templates import ChatTemplate
from rlhf_jax.data.tokenizers import Tokenizer

Conversation = Sequence[Message]
TrainOn = Literal["all", "last"]  # every reply of a conversation, or its last one


class Rendered(NamedTuple):
    """Hold a conversation's token ids, and for each whether supervised training predicts it."""

    ids: list[int]
    trained: list[bool]


def render(tokenizer: Tokenizer, messages: Conversation, *, generation_prompt: bool) -> Rendered:
    """Render one conversation; `generation_prompt` adds the marker that opens the reply."""
    return render_batch(tokenizer, [messages], generation_prompt=generation_prompt)[0]


def render_batch(
    tokenizer: Tokenizer,
    conversations: Sequence[Conversation],
    *,
    generation_prompt: bool,
    train_on: TrainOn = "all",
) -> list[Rendered]:
    """Render many conversations with one call of the tokenizer.

    With `train_on="last"` only the last reply of each is marked, and a template need not keep the
    earlier ones as they were.

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
    if tokenizer.template is None:
        rendered = _render_with_markers(tokenizer, conversations, generation_prompt)
    else:
        rendered = _render_with_template(
            tokenizer.template, conversations, generation_prompt, train_on
        )
    if train_on == "last":
        rendered = [_mark_last(conversation) for conversation in rendered]
    return [_prepend_begin_of_text(conversation, tokenizer) for conversation in rendered]


def _mark_last(rendered: Rendered) -> Rendered:
    """Keep the marks of the last run of trained tokens, which is the last reply."""
    trained = rendered.trained
    end = max((i + 1 for i, mark in enumerate(trained) if mark), default=0)
    start = max((i + 1 for i in range(end) if not trained[i]), default=0)
    return Rendered(rendered.ids, [start <= i < end for i in range(len(trained))])


def _prepend_begin_of_text(rendered: Rendered, tokenizer: Tokenizer) -> Rendered:
    """Begin with begin-of-text once: most templates write it, some leave it to the tokenizer."""
    ids = tokenizer.prepend_begin_of_text(rendered.ids)
    num_new = len(ids) - len(rendered.ids)
    return Rendered(ids, [False] * num_new + rendered.trained)


# Our own markers.


def _render_with_markers(
    tokenizer: Tokenizer, conversations: Sequence[Conversation], generation_prompt: bool
) -> list[Rendered]:
    contents = [message.content for messages in conversations for message in messages]
    content_ids = iter(tokenizer.encode_batch(contents, special=False))
    opening = [tokenizer.assistant_id] if generation_prompt else []
    rendered = []
    for messages in conversations:
        turns = [_turn(tokenizer, message.role, next(content_ids)) for message in messages]
        turns.append((opening, []))
        ids = [i for given, reply in turns for i in (*given, *reply)]
        marks = ([False] * len(given) + [True] * len(reply) for given, reply in turns)
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


def _render_with_template(
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    generation_prompt: bool,
    train_on: TrainOn,
) -> list[Rendered]:
    """Render every conversation whole, and up to the start and the end of its trained replies."""
    texts: list[str] = []
    for number, messages in enumerate(conversations):
        views = [(messages, generation_prompt)]
        for k in _reply_indices(messages, train_on):
            views += [(messages[:k], True), (messages[: k + 1], False)]
        try:
            texts += [template.text(view, generation_prompt=prompt) for view, prompt in views]
        except ValueError as error:
            raise ValueError(f"conversation {number}: {error}") from error
    ids = iter(template.encode_batch(texts))
    return [
        _mark_replies(template, messages, _reply_indices(messages, train_on), ids)
        for messages in conversations
    ]


def _mark_replies(
    template: ChatTemplate,
    messages: Conversation,
    replies: Sequence[int],
    views: Iterator[list[int]],
) -> Rendered:
    """Mark the trained replies; `views` yields the whole conversation, then two per reply."""
    whole = next(views)
    trained = [False] * len(whole)
    for k in replies:
        prompt = next(views)
        turn = next(views)
        end = template.reply_end(prompt, turn)
        if whole[:end] != turn[:end]:
            raise ValueError(
                f"chat template: what follows messages[{k}] (assistant) changes how it is written, "
                "so its tokens cannot be determined; expected a template that only appends, "
                "conversations of one exchange, or sft.train_on=last"
            )
        trained[len(prompt) : end] = [True] * (end - len(prompt))
        if k == len(messages) - 1:
            del whole[end:], trained[end:]
    return Rendered(whole, trained)


def _reply_indices(messages: Conversation, train_on: TrainOn) -> list[int]:
    replies = [k for k, message in enumerate(messages) if message.role == "assistant"]
    return replies if train_on == "all" else replies[-1:]
