"""Tokenizers: text to ids and back, with two doors for text that must not be mixed up.

Documents come from a trusted corpus and may contain the chat markers; they go in by `special=True`. What a
user typed, what a model answered and what a labeler wrote goes in by `special=False`, where the string
`<|assistant|>` is ordinary letters and can never become the token that hands the turn to the assistant.

`train_bpe` (byte-level: any text survives the round trip) and `train_words` (word-level, for tests) give
the ids 0 `<|pad|>`, 1 `<|eos|>`, 2 `<|user|>`, 3 `<|assistant|>`, and for words 4 `<|unk|>`. A tokenizer of
another origin is used as it is; where it has no padding token, the end-of-text token serves, because masks
never look at ids.

Left out on purpose: truncation, padding, and templates written in Jinja. `batches.py` and `chat.py` do
these in the open.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

PAD, EOS, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|unk|>"
SPECIAL_TOKENS = (PAD, EOS, USER, ASSISTANT)
CHUNK = 10_000  # texts encoded at once: the offsets that `tokenizers` keeps weigh ten times the ids.


class Tokenizer:
    """A transformers fast tokenizer behind the few methods that the rest of the code needs."""

    def __init__(self, fast: Any) -> None:
        """Wraps `fast`, a `transformers.PreTrainedTokenizerFast`.

        Raises:
            ValueError: if it has no end-of-text token.
        """
        if fast.eos_token_id is None:
            raise ValueError("tokenizer: no eos_token, expected one in tokenizer_config.json to end a turn")
        self.fast = fast
        self.eos_id: int = fast.eos_token_id
        self.pad_id: int = self.eos_id if fast.pad_token_id is None else fast.pad_token_id
        self._trusted: tokenizers.Tokenizer = fast.backend_tokenizer
        self._untrusted = tokenizers.Tokenizer.from_str(self._trusted.to_str())
        self._untrusted.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """The number of ids, special tokens included."""
        return self._trusted.get_vocab_size(with_added_tokens=True)

    @property
    def user_id(self) -> int:
        """The id of `<|user|>`, which opens a user's turn."""
        return self._marker_id(USER)

    @property
    def assistant_id(self) -> int:
        """The id of `<|assistant|>`, which opens the assistant's turn."""
        return self._marker_id(ASSISTANT)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Returns the ids of `text`; only with `special=True` are special tokens recognised inside it."""
        return self.encode_batch([text], special=special)[0]

    def encode_batch(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Returns the ids of every text, on all cores."""
        backend = self._trusted if special else self._untrusted
        ids: list[list[int]] = []
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            ids += [item.ids for item in backend.encode_batch_fast(chunk, add_special_tokens=False)]
        return ids

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Returns the text of `ids`, by default without padding and end-of-text tokens.

        The chat markers are shown either way, so that a policy cannot hide tokens from whoever reads its
        responses.
        """
        dropped = () if keep_special else (self.pad_id, self.eos_id)
        kept = [int(i) for i in ids if int(i) not in dropped]
        return self._trusted.decode(kept, skip_special_tokens=False)

    def fingerprint(self) -> str:
        """Returns the SHA-256 of the tokenizer's canonical JSON and of its padding and end-of-text ids."""
        content = json.loads(self._trusted.to_str())
        content.update(truncation=None, padding=None, pad_id=self.pad_id, eos_id=self.eos_id)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, which `transformers` can read too."""
        self.fast.save_pretrained(str(folder))

    def _marker_id(self, marker: str) -> int:
        marker_id = self._trusted.token_to_id(marker)
        if marker_id is None:
            raise ValueError(
                f"tokenizer: no {marker} among its {self.vocab_size} tokens, "
                "expected the chat markers; add them with `with_chat_tokens(tokenizer)`"
            )
        return marker_id


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Reads a tokenizer that `save`, or Hugging Face, wrote into a local folder.

    Raises:
        FileNotFoundError: if the folder has no `tokenizer.json`.
        ValueError: if `tokenizer.json` cannot be read as a tokenizer.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found, expected a folder that Tokenizer.save wrote")
    auto = _transformers().AutoTokenizer
    try:
        return Tokenizer(auto.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    except Exception as error:  # `tokenizers` raises bare Exceptions for damaged files.
        raise ValueError(f"{path}: {error}, expected a tokenizer in the format of Hugging Face") from error


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer (Radford et al. 2019, §2.2) of at most `vocab_size` tokens.

    Special tokens are cut out of the texts first, so that no merge learns their spelling. A small corpus
    may run out of pairs to merge; then `tokenizer.vocab_size` is smaller than asked.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size: {vocab_size}, expected at least {smallest}: bytes and special tokens")
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
    return _wrap(backend)


def train_words(texts: Iterable[str]) -> Tokenizer:
    """Builds a tokenizer whose tokens are the words of `texts`, each with the space before it.

    Text made of known words survives the round trip exactly; an unknown word becomes `<|unk|>`.
    """
    split = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    counts: Counter[str] = Counter()
    for text in _without_special_tokens(texts):
        counts.update(word for word, _ in split.pre_tokenize_str(text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocab = {word: i for i, word in enumerate((*SPECIAL_TOKENS, UNKNOWN, *words))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    backend.pre_tokenizer = split
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return _wrap(backend)


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer that also has `<|user|>` and `<|assistant|>`, with new ids if need be.

    The model's `vocab_size` has to grow with it.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.fast.backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(token, special=True) for token in (USER, ASSISTANT)])
    return _wrap(backend, pad=tokenizer.fast.pad_token, eos=tokenizer.fast.eos_token)


def _wrap(backend: tokenizers.Tokenizer, *, pad: str | None = PAD, eos: str = EOS) -> Tokenizer:
    fast = _transformers().PreTrainedTokenizerFast
    return Tokenizer(fast(tokenizer_object=backend, pad_token=pad, eos_token=eos))


def _without_special_tokens(texts: Iterable[str]) -> Iterator[str]:
    pattern = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)))
    return (piece for text in texts for piece in pattern.split(text) if piece)


def _transformers() -> Any:
    """Imports transformers late (it is slow) and without its advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers
