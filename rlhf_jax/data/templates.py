"""Chat templates written in Jinja, as chat models of other origin bring them along.

    text = template(messages)        contents shielded: a special token spelled in them is not one
    ids  = one encoding of the whole text, as `transformers` would encode it

What a template writes is trusted, what it quotes is not. Before rendering, every special token spelled inside a
message becomes a secret word; afterwards the template's own special tokens become secret names of those tokens, and
the words turn back into letters. So no text typed by anyone can end a turn, and a text without such spellings gets the
ids that its model was trained on.

A template reads the clock at `DATE`, or a run would depend on the day. It runs in the sandbox of `transformers`.
Left out on purpose: tools, documents, switches of single templates (`enable_thinking`).
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import tokenizers

from rlhf_jax.data.records import Message

DATE = datetime.date(
    2024, 7, 26
)  # what the templates of Llama 3 say where nobody tells them the date
_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
_PROBE = (Message("user", "a"), Message("assistant", "b"))


CHUNK = (
    10_000  # texts encoded at once: what `tokenizers` keeps beside the ids weighs ten times as much
)


def batch_ids(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Returns the ids of every text, on all cores, and nothing that the tokenizer would add around them."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        ids += [item.ids for item in backend.encode_batch_fast(chunk, add_special_tokens=False)]
    return ids


class ChatTemplate:
    """The chat template of a fast tokenizer: messages to ids."""

    def __init__(self, fast: Any) -> None:
        """Wraps `fast`, a `transformers.PreTrainedTokenizerFast` that has a chat template.

        Raises:
            ValueError: for several templates without one called "default", or one that reads the clock in its own way.
        """
        self._fast = fast
        self.source: str = fast.get_chat_template()
        self._jinja = _CLOCK.sub(lambda call: repr(DATE.strftime(call[2])), self.source)
        if "strftime_now(" in self._jinja:
            raise ValueError(
                "chat template: calls strftime_now with a computed format, expected a constant one"
            )
        content = json.loads(fast.backend_tokenizer.to_str())
        special = [token for token in content["added_tokens"] if token["special"]]
        self.special_ids = frozenset(int(token["id"]) for token in special)
        spellings = sorted(
            (token["content"] for token in special), key=len, reverse=True
        )  # the longest match wins
        self._name = f"\ue000{secrets.token_hex(8)}-"  # begins every secret name
        self._names = {spelling: f"{self._name}{i}\ue002" for i, spelling in enumerate(spellings)}
        words = {
            spelling: f"\ue001{secrets.token_hex(8)}-{i}\ue002"
            for i, spelling in enumerate(spellings)
        }
        self._shield = _replacer(words)
        self._unshield = _replacer(
            {**self._names, **{word: spelling for spelling, word in words.items()}}
        )

    def text(self, messages: Sequence[Message], *, generation_prompt: bool) -> str:
        """Renders messages, special tokens under their secret names.

        Raises:
            ValueError: if the template refuses the messages, or does not quote each of them as it is.
        """
        chat = [{"role": one.role, "content": self._shield(one.content)} for one in messages]
        try:
            text: str = self._fast.apply_chat_template(
                chat,
                chat_template=self._jinja,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                date_string=DATE.strftime("%d %b %Y"),
            )
        except (
            Exception
        ) as error:  # whatever a template may do wrong, from its own complaints to a type error
            raise ValueError(f"chat template: {error}") from error
        for number, one in enumerate(chat):
            if one["content"].strip() not in text:
                raise ValueError(
                    f"chat template: messages[{number}] ({one['role']}) is left out or rewritten, expected "
                    "a template that quotes every turn as it is"
                )
        return self._unshield(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of rendered texts.

        Raises:
            ValueError: if the tokenizer makes a special token of letters.
        """
        backend, restored = self._backend
        rows = [[restored.get(i, i) for i in ids] for ids in batch_ids(backend, texts)]
        for text, ids in zip(texts, rows, strict=True):
            if sum(
                i in self.special_ids and i != self._fast.unk_token_id for i in ids
            ) > text.count(self._name):
                raise ValueError(
                    "tokenizer: a message spells one of its special tokens, and it has no other ids for "
                    "these letters; remove the spelling from the data"
                )
        return rows

    def reply_end(self, prompt: Sequence[int], turn: Sequence[int]) -> int:
        """Returns where the reply ends in `turn`, the ids of a conversation up to and with a reply; `prompt` leads to it.

        The reply is what the model would have to write: everything behind the prompt up to the first special token,
        which ends it. What the template writes behind that (the line break of ChatML) belongs to the next turn.

        Raises:
            ValueError: if the prompt does not begin the turn, or the reply does not end with a special token.
        """
        start = len(prompt)
        if list(turn[:start]) != list(prompt):
            raise ValueError(
                "chat template: the prompt is not the beginning of the same conversation with its reply, so "
                "the reply cannot be told apart; expected a template that only appends"
            )
        end = next((t for t in range(start, len(turn)) if turn[t] in self.special_ids), None)
        if end is None:
            raise ValueError(
                "chat template: no special token ends the assistant's turn, so a model could not learn to stop; "
                "expected the end-of-text token there"
            )
        if end == start:
            raise ValueError(
                "chat template: the generation prompt does not open the assistant's turn, so its marker would be "
                "trained; expected a template that heeds add_generation_prompt"
            )
        return end + 1

    @cached_property
    def turn_end_id(self) -> int:
        """The id of the special token that ends the assistant's turn, found by rendering one."""
        prompt, turn = (
            self.text(_PROBE[:1], generation_prompt=True),
            self.text(_PROBE, generation_prompt=False),
        )
        prompt_ids, turn_ids = self.encode_batch([prompt, turn])
        return turn_ids[self.reply_end(prompt_ids, turn_ids) - 1]

    @cached_property
    def _backend(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """The tokenizer with its special tokens under their secret names, and the ids that this has moved."""
        content = json.loads(self._fast.backend_tokenizer.to_str())
        content.update(truncation=None, padding=None, post_processor=None)
        for token in content["added_tokens"]:
            token["content"] = self._names.get(token["content"], token["content"])
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        moved = {
            backend.token_to_id(token["content"]): int(token["id"])
            for token in content["added_tokens"]
        }
        return backend, {i: old for i, old in moved.items() if i is not None}


def _replacer(new: dict[str, str]) -> Callable[[str], str]:
    """A function that replaces every key of `new` in a text, in one pass; of two keys that match the first wins."""
    keys = re.compile("|".join(map(re.escape, new)) or "(?!)")  # (?!) matches nothing
    return lambda text: keys.sub(lambda found: new[found[0]], text)
