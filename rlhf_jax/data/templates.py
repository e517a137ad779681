"""Render messages by a chat template written in Jinja, as chat models of other origin bring along.

    text = template.text(messages)         special tokens spelled in messages are shielded
    ids  = template.encode_batch([text])   one encoding of the whole text, as in `transformers`

What a template writes is trusted, what it quotes is not. Before rendering, every special token
spelled inside a message is replaced by a secret word. Afterwards the template's own special tokens
are replaced by secret names of those tokens, and the words by the letters they stand for. So no
text typed by anyone can end a turn, and a text without such spellings gets the ids that its model
was trained on. A template that asks for the date gets `DATE`: no run depends on the day.

Templates of reasoning models take the thinking, everything up to `</think>`, out of earlier replies
(Qwen 3) or out of all (R1), and R1's generation prompt opens the thinking itself. The last reply is
then written as a policy samples it: behind the generation prompt, and ended as a turn ends.

Left out on purpose: tools, documents, switches of single templates (`enable_thinking`).
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from rlhf_jax.data.records import Message

# The date that the templates of Llama 3 write where nobody gives them one.
DATE = datetime.date(2024, 7, 26)
CHUNK = 10_000  # texts encoded at once: `tokenizers` keeps ten times the weight of the ids
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
# Our own markers as a template, for other programs: `chat.render` writes the same ids without it.
MARKERS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('the markers know two roles, user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_PROBE = (Message("user", "a"), Message("assistant", "b"))
# What to do where a template writes a reply in another way as soon as more follows.
LAST_ALONE = (
    "expected a template that only appends, conversations of one exchange, or sft.train_on=last, "
    "which trains on the last reply alone"
)
THINK, END_OF_THINK = "<think>", "</think>"
_MARKER = re.compile(r"<\S+>|\[\S+\]")
_OPENED_THINKING = re.compile(rf"{THINK}\s*\Z")


def encode_texts(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of every text, on all cores, without tokens that the tokenizer would add."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        ids += [item.ids for item in backend.encode_batch_fast(chunk, add_special_tokens=False)]
    return ids


class ChatTemplate:
    """Turn messages into ids by the chat template of a fast tokenizer."""

    def __init__(self, fast: Any) -> None:
        """Wrap `fast`, a `transformers.PreTrainedTokenizerFast` that has a chat template.

        Raises:
            ValueError: for several templates without one called "default", or one that asks for the
                date in a format that it computes.
        """
        self._fast = fast
        self.source: str = fast.get_chat_template()
        self._jinja = _CLOCK.sub(lambda call: repr(DATE.strftime(call[2])), self.source)
        if "strftime_now(" in self._jinja:
            problem = "calls strftime_now with a computed format"
            raise ValueError(f"chat template: {problem}, expected a constant one")
        content = json.loads(fast.backend_tokenizer.to_str())
        markers = self._turn_markers()
        special = [
            token
            for token in content["added_tokens"]
            if token["special"] or token["content"] in markers
        ]
        self.special_ids = frozenset(int(token["id"]) for token in special)
        # Where two spellings match, the longer one wins.
        spellings = sorted((token["content"] for token in special), key=len, reverse=True)
        numbered = list(enumerate(spellings))
        self._name_prefix = f"\ue000{secrets.token_hex(8)}-"
        self._names = {spelling: f"{self._name_prefix}{i}\ue002" for i, spelling in numbered}
        self._words = {text: f"\ue001{secrets.token_hex(8)}-{i}\ue002" for i, text in numbered}
        self._spelling_pattern = _any_of(self._words)
        self._restored = {**self._names, **{word: text for text, word in self._words.items()}}
        self._restored_pattern = _any_of(self._restored)

    def text(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """Render messages as text, with special tokens under their secret names.

        Raises:
            ValueError: if the template refuses the messages, or rewrites one of them.
        """
        text, shielded = self._apply_shielded(messages, generation_prompt)
        for number, (turn, content) in enumerate(zip(messages, shielded, strict=True)):
            if turn.role == "assistant" and content.strip() not in text:
                content = content.rpartition(END_OF_THINK)[2]
            if content.strip() not in text:
                raise ValueError(
                    f"chat template: messages[{number}] ({turn.role}) is left out or rewritten, "
                    "expected a template that quotes every turn as it is"
                )
        return self._restore(text)

    def check_quoted(self, messages: Sequence[Message], replies: Sequence[int]) -> None:
        """Raise a ValueError if the conversation lacks the thinking of the `replies`."""
        text, shielded = self._apply_shielded(messages, False) if replies else ("", [])
        for k in replies:
            if shielded[k].strip() not in text:
                raise ValueError(
                    f"chat template: messages[{k}] (assistant) is left out or rewritten as soon as "
                    f"more follows; {LAST_ALONE}"
                )

    def reply_texts(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Render the prompt that leads to the last reply, and the conversation with that reply.

        Where the template takes thinking out of the reply, or its generation prompt opens thinking
        that it does not write itself, the reply stands behind the generation prompt as it is. An
        opening tag that both have is written once.

        Raises:
            ValueError: as `text`.
        """
        prompt = self.text(messages[:-1], generation_prompt=True)
        turn = self.text(messages, generation_prompt=False)
        reply = self._restore(self._shield(messages[-1].content))
        opened = _OPENED_THINKING.search(prompt)
        appended = turn.startswith(prompt)
        thinks = THINK in reply or END_OF_THINK in reply
        quoted = appended and turn[len(prompt) :].lstrip().startswith(reply.strip())
        if (appended or not opened) and (quoted or not thinks):
            return prompt, turn
        if opened:
            reply = reply.lstrip().removeprefix(THINK).lstrip("\n")
        return prompt, prompt + reply + self._turn_end

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts.

        Raises:
            ValueError: if the tokenizer makes a special token of letters.
        """
        backend, original_ids = self._renamed_backend
        rows = [[original_ids.get(i, i) for i in ids] for ids in encode_texts(backend, texts)]
        counted_ids = self.special_ids - {self._fast.unk_token_id}
        for text, ids in zip(texts, rows, strict=True):
            if sum(i in counted_ids for i in ids) > text.count(self._name_prefix):
                raise ValueError(
                    "tokenizer: a message spells one of its special tokens, and it has no other "
                    "ids for these letters; remove the spelling from the data"
                )
        return rows

    def reply_end(self, prompt: Sequence[int], turn: Sequence[int]) -> int:
        """Return the index in `turn` behind the reply that follows `prompt` in it.

        The reply is everything behind the prompt up to the first special token, which ends it. What
        the template writes behind that (the line break of ChatML) belongs to the next turn.

        Raises:
            ValueError: if the turn does not begin with the prompt, or no special token ends it.
        """
        start = len(prompt)
        if list(turn[:start]) != list(prompt):
            raise ValueError(
                "chat template: the prompt is not the beginning of the same conversation with its "
                "reply, so the reply's tokens cannot be determined; expected a template that only "
                "appends"
            )
        end = next((t for t in range(start, len(turn)) if turn[t] in self.special_ids), None)
        if end is None:
            raise ValueError(
                "chat template: no special token ends the assistant's turn, so a model could not "
                "learn to stop; expected the end-of-text token there"
            )
        if end == start:
            raise ValueError(
                "chat template: the generation prompt does not open the assistant's turn, so its "
                "marker would be trained; expected a template that heeds add_generation_prompt"
            )
        return end + 1

    @cached_property
    def turn_end_id(self) -> int:
        """Return the id of the special token that ends the assistant's turn in a rendered one."""
        prompt = self.text(_PROBE[:1], generation_prompt=True)
        turn = self.text(_PROBE, generation_prompt=False)
        if not turn.startswith(prompt):  # R1's prompt opens thinking that its turn does not have
            prompt = _OPENED_THINKING.sub("", prompt)
        prompt_ids, turn_ids = self.encode_batch([prompt, turn])
        return turn_ids[self.reply_end(prompt_ids, turn_ids) - 1]

    @cached_property
    def _turn_end(self) -> str:
        """Return the secret name of the token that ends the assistant's turn."""
        return self._names[self._fast.convert_ids_to_tokens(self.turn_end_id)]

    def _apply_shielded(
        self, messages: Sequence[Message], generation_prompt: bool
    ) -> tuple[str, list[str]]:
        """Return what the template writes, and the contents of the messages as it got them."""
        shielded = [self._shield(turn.content) for turn in messages]
        roles = [turn.role for turn in messages]
        chat = [{"role": r, "content": c} for r, c in zip(roles, shielded, strict=True)]
        try:
            return self._apply(chat, generation_prompt), shielded
        # A template may raise anything, from an error of its own to a TypeError.
        except Exception as error:
            raise ValueError(f"chat template: {error}") from error

    def _apply(self, chat: Sequence[dict[str, str]], generation_prompt: bool) -> str:
        text: str = self._fast.apply_chat_template(
            chat,
            chat_template=self._jinja,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            date_string=DATE.strftime("%d %b %Y"),
        )
        return text

    def _turn_markers(self) -> set[str]:
        """Return the added tokens by which the template marks turns, special by name or not.

        R1's files call `<｜User｜>` an ordinary token, though it hands the turn to the user. Added
        tokens without brackets (Gemma's runs of line breaks) are letters.
        """
        chat = [{"role": turn.role, "content": turn.content} for turn in _PROBE]
        try:
            text = self._apply(chat, False) + self._apply(chat[:1], True)
        except Exception:  # `text` reports what the template says against every message
            return set()
        added = (token.content for token in self._fast.added_tokens_decoder.values())
        markers = {token for token in added if _MARKER.fullmatch(token) and token in text}
        return markers - {THINK, END_OF_THINK}

    def _shield(self, content: str) -> str:
        return self._spelling_pattern.sub(lambda match: self._words[match[0]], content)

    def _restore(self, text: str) -> str:
        return self._restored_pattern.sub(lambda match: self._restored[match[0]], text)

    @cached_property
    def _renamed_backend(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """Return a tokenizer whose special tokens have secret names, and the ids this has moved."""
        content = json.loads(self._fast.backend_tokenizer.to_str())
        content.update(truncation=None, padding=None, post_processor=None)
        for token in content["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        original_ids = {
            backend.token_to_id(token["content"]): int(token["id"])
            for token in content["added_tokens"]
        }
        return backend, {new: old for new, old in original_ids.items() if new is not None}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for any of the texts, of which an earlier one wins; none matches nothing."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")
