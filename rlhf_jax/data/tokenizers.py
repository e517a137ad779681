"""Turn text into ids and back, keeping trusted and untrusted text apart.

Documents come from a trusted corpus and may contain the chat markers; they are encoded with
`special=True`. What a user typed, what a model answered and what a labeler wrote is encoded with
`special=False`, where the string `<|assistant|>` is ordinary letters and can never become the token
that hands the turn to the assistant.

`train_bpe` and `train_words` give the ids 0 `<|pad|>`, 1 `<|eos|>`, 2 `<|user|>`, 3
`<|assistant|>`, and for words 4 `<|unk|>`. A tokenizer of another origin is used as it is: with its
chat template, every token that its model stops at, and the begin-of-text token that it puts before
plain text. Where it has no padding token, end of text serves: masks never depend on ids.

Left out on purpose: truncation and padding, which are explicit in `batches.py`, and BPE dropout. A
file that stores any of them (`tokenizer(..., truncation=True)` and then saving leaves the first two
behind) is read without: texts are neither cut nor padded, and have the same ids every time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from rlhf_jax.data.templates import MARKERS, ChatTemplate, encode_texts

PAD, EOS, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|unk|>"
END_OF_DOCUMENT = "<|endoftext|>"  # the name in GPT-2 and in all tokenizers made like it
SPECIAL_TOKENS = (PAD, EOS, USER, ASSISTANT)


class Tokenizer:
    """Wrap a fast tokenizer of `transformers` in the few methods that other modules need."""

    def __init__(self, fast: Any, *, more_stops: Iterable[int] = ()) -> None:
        """Wrap `fast`, a `transformers.PreTrainedTokenizerFast`.

        `more_stops` are ids that end a response, besides end of text and end of turn.

        Raises:
            ValueError: if it has no end-of-text token.
        """
        if fast.eos_token_id is None:
            expected = "expected one in tokenizer_config.json to end a turn"
            raise ValueError(f"tokenizer: no eos_token, {expected}")
        self.fast = fast
        self.eos_id: int = fast.eos_token_id
        self.pad_id: int = self.eos_id if fast.pad_token_id is None else fast.pad_token_id
        source = fast.chat_template
        # An exported model's template of our own markers is no template here: `chat` writes them.
        own = isinstance(source, str) and source.endswith(MARKERS)
        self.template = ChatTemplate(fast) if source and not own else None
        self._more_stops = sorted({*more_stops} - {self.eos_id})
        self._trusted: tokenizers.Tokenizer = _without_side_effects(fast.backend_tokenizer)
        self._untrusted = tokenizers.Tokenizer.from_str(self._trusted.to_str())
        self._untrusted.encode_special_tokens = True
        added = self._trusted.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special}
        self._special_ids = special.keys() - {fast.unk_token_id}
        document_ends = (i for i, content in special.items() if content == END_OF_DOCUMENT)
        self._document_end = next(document_ends, self.eos_id)
        self.num_ids = 1 + max(self._trusted.get_vocab(with_added_tokens=True).values())

    @property
    def vocab_size(self) -> int:
        """Return the number of all tokens, which is less than `num_ids` where ids have gaps."""
        return self._trusted.get_vocab_size(with_added_tokens=True)

    @cached_property
    def prefix_ids(self) -> list[int]:
        """Return what the tokenizer itself puts before plain text: begin-of-text, or nothing."""
        encoding = self._trusted.encode("a", add_special_tokens=True)
        return encoding.ids[: encoding.special_tokens_mask.index(0)]

    @property
    def start_ids(self) -> list[int]:
        """Return the ids that a document's first token follows.

        This is begin-of-text, or else the end of the text before: <|endoftext|> where there is one,
        because chat models call the end of a turn their end of text (SmolLM2, Qwen 2: <|im_end|>).
        """
        return self.prefix_ids or [self._document_end]

    @property
    def turn_end_id(self) -> int:
        """Return the id that ends the assistant's turn in a rendered conversation."""
        return self.eos_id if self.template is None else self.template.turn_end_id

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Return every id that ends a response: of text, of the turn, and what the files add."""
        return tuple(dict.fromkeys([self.eos_id, self.turn_end_id, *self._more_stops]))

    @property
    def user_id(self) -> int:
        """Return the id of `<|user|>`, which opens a user's turn."""
        return self._marker_id(USER)

    @property
    def assistant_id(self) -> int:
        """Return the id of `<|assistant|>`, which opens the assistant's turn."""
        return self._marker_id(ASSISTANT)

    def tokens_from(self, first_id: int) -> list[tuple[str, bool]]:
        """Return the tokens with ids of `first_id` or more, and whether each is special."""
        added = self.fast.added_tokens_decoder
        vocabulary = self._trusted.get_vocab(with_added_tokens=True)
        tokens = sorted((i, token) for token, i in vocabulary.items() if i >= first_id)
        return [(token, i in added and added[i].special) for i, token in tokens]

    def prepend_begin_of_text(self, ids: list[int]) -> list[int]:
        """Return the ids with `prefix_ids` before them, unless they begin with these already.

        Raises:
            ValueError: if the ids begin with it twice.
        """
        prefix = self.prefix_ids
        ids = ids if ids[: len(prefix)] == prefix else [*prefix, *ids]
        if prefix and ids[len(prefix) : 2 * len(prefix)] == prefix:
            spelling = self._trusted.decode(prefix, skip_special_tokens=False)
            raise ValueError(
                f"tokenizer: a text begins with {spelling} twice, expected once; see its chat "
                "template or the documents"
            )
        return ids

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of `text`; only `special=True` recognises special tokens inside it."""
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the ids of every text, on all cores, without begin-of-text.

        Raises:
            ValueError: without `special`, if a text spells a special token whose letters have no
                other ids.
        """
        if special:
            return encode_texts(self._trusted, texts)
        rows = encode_texts(self._untrusted, texts)
        for text, row in zip(texts, rows, strict=True):
            if not self._special_ids.isdisjoint(row):
                spelling = self._trusted.id_to_token(next(i for i in row if i in self._special_ids))
                raise ValueError(
                    f"tokenizer: {text[:60]!r} spells {spelling}, and this tokenizer has no other "
                    "ids for these letters; remove the spelling from the data"
                )
        return rows

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Return the text of `ids`, by default without padding and tokens that end a response.

        The chat markers are shown either way: a policy cannot hide tokens from its readers.
        """
        dropped = () if keep_special else (self.pad_id, *self.stop_ids)
        kept = [int(i) for i in ids if int(i) not in dropped]
        return self._trusted.decode(kept, skip_special_tokens=False)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the tokenizer's JSON, its padding and stop ids and its template."""
        content = json.loads(self._trusted.to_str())
        content.update(truncation=None, padding=None, pad_id=self.pad_id, eos_id=self.eos_id)
        if self._more_stops:
            content.update(stop_ids=self._more_stops)
        if self.template is not None:
            content["chat_template"] = self.template.source
            content["special_tokens"] = self.fast.special_tokens_map
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, its config and template, and the stop ids, like `transformers`."""
        self.fast.save_pretrained(str(folder))
        if self._more_stops:
            stops = json.dumps({"eos_token_id": [self.eos_id, *self._more_stops]})
            (Path(folder) / "generation_config.json").write_text(stops + "\n")

    def _marker_id(self, marker: str) -> int:
        marker_id = self._trusted.token_to_id(marker)
        if marker_id is None:
            raise ValueError(
                f"tokenizer: no {marker} among its {self.vocab_size} tokens, expected the chat "
                "markers; add them with `with_chat_tokens(tokenizer)`"
            )
        return marker_id


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read a tokenizer that `Tokenizer.save`, or Hugging Face, wrote into a local folder.

    The model stops at end of text, and at the `eos_token_id` of generation_config.json, or of
    config.json where that file is missing or says none, as in transformers.

    Raises:
        FileNotFoundError: if the folder has no `tokenizer.json`.
        ValueError: if a file in it cannot be read.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected a folder that Tokenizer.save wrote")
    auto = import_transformers().AutoTokenizer
    try:
        fast = auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return Tokenizer(fast, more_stops=_read_stops(Path(folder)))
    # `tokenizers` raises bare Exceptions for damaged files.
    except Exception as error:
        expected = "expected a tokenizer in the format of Hugging Face"
        raise ValueError(f"{path}: {error}, {expected}") from error


def _read_stops(folder: Path) -> list[int]:
    """Return the ids under `eos_token_id`, a number or a list, of the first file that has any."""
    for path in (folder / "generation_config.json", folder / "config.json"):
        value = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
        if value is None:
            continue
        stops = value if isinstance(value, list) else [value]
        if not all(isinstance(stop, int) for stop in stops):
            raise ValueError(f"{path.name}: eos_token_id: {stops}, expected ids")
        if stops:
            return stops
    return []


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer (Radford et al. 2019, §2.2) of at most `vocab_size` tokens.

    Any text survives the round trip. Special tokens are cut out of the texts first, so that no
    merge learns their spelling. A small corpus may run out of pairs to merge before `vocab_size`.

    Raises:
        ValueError: if `vocab_size` does not hold the bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        expected = f"expected at least {least}: bytes and special tokens"
        raise ValueError(f"vocab_size: {vocab_size}, {expected}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(_without_special_tokens(texts), trainer)
    return _wrap(backend, pad=PAD, eos=EOS)


def train_words(texts: Iterable[str]) -> Tokenizer:
    """Build a tokenizer whose tokens are the words of `texts`, each with the space before it.

    Text made of known words survives the round trip exactly; an unknown word becomes `<|unk|>`.
    """
    split = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    counts: Counter[str] = Counter()
    for text in _without_special_tokens(texts):
        counts.update(word for word, _ in split.pre_tokenize_str(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL_TOKENS, UNKNOWN, *words))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return _wrap(backend, pad=PAD, eos=EOS)


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer that also has `<|user|>` and `<|assistant|>`, with new ids if need be.

    The model's `vocab_size` has to grow with it.

    Raises:
        ValueError: if the tokenizer has a chat template, which needs no such tokens.
    """
    if tokenizer.template is not None:
        raise ValueError(
            "tokenizer: has a chat template, expected one without: it opens turns by its own tokens"
        )
    markers = (USER, ASSISTANT)
    content = json.loads(tokenizer.fast.backend_tokenizer.to_str())
    if tokenizer.num_ids > tokenizer.vocab_size:
        # The backend numbers a new token by the count of the old ones, which is another token's id
        # where ids have gaps. So the markers get their ids here.
        known = tokenizer.fast.backend_tokenizer.token_to_id
        new = [marker for marker in markers if known(marker) is None]
        content["model"]["vocab"] |= {marker: tokenizer.num_ids + k for k, marker in enumerate(new)}
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.add_special_tokens([AddedToken(token, special=True) for token in markers])
    fast = tokenizer.fast
    return _wrap(backend, pad=fast.pad_token, eos=fast.eos_token, more_stops=tokenizer.stop_ids)


def _without_side_effects(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Switch off what a tokenizer's file may store besides its tokens, and return the tokenizer.

    In place, so that the tokenizer that `save` and the export write is the one that was used.
    """
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    return backend


def _wrap(
    backend: tokenizers.Tokenizer, *, pad: str | None, eos: str, more_stops: Iterable[int] = ()
) -> Tokenizer:
    fast_type = import_transformers().PreTrainedTokenizerFast
    fast = fast_type(tokenizer_object=backend, pad_token=pad, eos_token=eos)
    return Tokenizer(fast, more_stops=more_stops)


def _without_special_tokens(texts: Iterable[str]) -> Iterator[str]:
    pattern = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    return (piece for text in texts for piece in pattern.split(text) if piece)


def import_transformers() -> Any:
    """Import transformers late (it is slow) and without its advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers
