"""Build a fast tokenizer from the one inside a GGUF file (llama.cpp).

    tokenizer = gguf_tokenizer(read_metadata("model.Q4_1.gguf"))

    tokenizer.ggml.model = gpt2     byte-level BPE: tokens and merges; tokenizer.ggml.pre names how
                                    text is cut up before (`_PRE_TOKENIZERS`)
    tokenizer.ggml.model = llama    SentencePiece's BPE: tokens and scores; a pair may merge where
                                    the result is a token, the best score first (Kudo & Richardson
                                    2018); bytes that are no token fall back to <0x00> ... <0xFF>

A way of cutting that we do not know is an error, because a wrong one changes the ids of some texts
and nobody would notice. The file itself is read by `gguf`. Left out on purpose: WordPiece, Unigram,
and templates by name other than the file's first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from rlhf_jax.data.tokenizers import Tokenizer, import_transformers

_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(digits: str) -> Any:
    split = pre_tokenizers.Split(Regex(_WORDS.replace("DIGITS", digits)), behavior="isolated")
    return pre_tokenizers.Sequence([split, _BYTES])


# How llama.cpp's names cut text, as the tokenizer.json of the same models says it.
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    "llama-bpe": _words("{1,3}"),
    "qwen2": _words(""),
}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # tokenizer.ggml.token_type
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}  # ours -> the file's
Metadata = Mapping[str, Any]


def gguf_tokenizer(metadata: Metadata) -> Tokenizer:
    """Return the tokenizer with its special tokens, chat template and begin-of-text token.

    `metadata` are all fields of a file.

    Raises:
        ValueError: names the field that is missing or that we do not know.
    """
    own = {
        name.removeprefix("tokenizer."): value
        for name, value in metadata.items()
        if name.startswith("tokenizer.")
    }
    try:
        return _tokenizer(own)
    except KeyError as error:
        raise ValueError(
            f"tokenizer.{error.args[0]}: missing, expected a file with its tokenizer inside"
        ) from None


def _tokenizer(metadata: Metadata) -> Tokenizer:
    tokens = metadata["ggml.tokens"]
    kind = metadata["ggml.model"]
    if kind not in ("gpt2", "llama"):
        raise ValueError(
            f"tokenizer.ggml.model: {kind!r} is not supported, expected gpt2 (byte-level BPE) or "
            "llama"
        )
    if metadata.get("ggml.add_eos_token", False):
        raise ValueError("tokenizer.ggml.add_eos_token: true is not supported, expected false")
    ids = {role: metadata.get(f"ggml.{name}_token_id") for role, name in _ROLES.items()}
    special = {role: tokens[number] for role, number in ids.items() if number is not None}
    if kind == "gpt2":
        backend = _byte_level(metadata)
    else:
        backend = _sentencepiece(metadata, special.get("unk"))
    for number, (token, use) in enumerate(zip(tokens, metadata["ggml.token_type"], strict=True)):
        if use in (_CONTROL, _USER_DEFINED):
            backend.add_tokens([AddedToken(token, special=use == _CONTROL, normalized=False)])
            assert backend.token_to_id(token) == number  # known already: only its role is new
    # llama.cpp's rule where the file does not say.
    default = kind == "llama" or metadata.get("ggml.pre") == "llama-bpe"
    if metadata.get("ggml.add_bos_token", default):
        if "bos" not in special:
            raise ValueError(
                "tokenizer.ggml.add_bos_token: true, but there is no tokenizer.ggml.bos_token_id"
            )
        bos = special["bos"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, ids["bos"])]
        )
    fast = import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("chat_template"),
        **{f"{role}_token": token for role, token in special.items()},
    )
    # LLaMA 3's ends of a turn and of a message.
    stops = (metadata.get(f"ggml.{name}_token_id") for name in ("eot", "eom"))
    return Tokenizer(fast, more_stops=[stop for stop in stops if stop is not None])


def _byte_level(metadata: Metadata) -> tokenizers.Tokenizer:
    name = metadata["ggml.pre"]
    if name not in _PRE_TOKENIZERS:
        raise ValueError(
            f"tokenizer.ggml.pre: {name!r} is not supported, expected one of "
            f"{', '.join(_PRE_TOKENIZERS)}"
        )
    merges = []
    for merge in metadata["ggml.merges"]:
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    backend = tokenizers.Tokenizer(
        models.BPE(_vocabulary(metadata), merges, ignore_merges=name == "llama-bpe")
    )
    backend.pre_tokenizer = _PRE_TOKENIZERS[name]
    backend.decoder = decoders.ByteLevel()
    if name == "qwen2":
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(metadata: Metadata, unknown: str | None) -> tokenizers.Tokenizer:
    vocabulary = _vocabulary(metadata)
    types = zip(metadata["ggml.tokens"], metadata["ggml.token_type"], strict=True)
    learned = {token for token, use in types if use == _NORMAL}
    merges = _merges(vocabulary, learned, metadata["ggml.scores"])
    backend = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    prefixed = metadata.get("ggml.add_space_prefix", True)
    prepend = [normalizers.Prepend("▁")] if prefixed else []
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges(
    vocabulary: Mapping[str, int], learned: set[str], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Return every way to make a learned token of two, the best score first.

    Of equal ones the shorter left part is last.
    """
    candidates = [
        (scores[vocabulary[token]], cut, token)
        for token in learned
        for cut in range(1, len(token))
        if token[:cut] in learned and token[cut:] in learned
    ]
    return [(token[:cut], token[cut:]) for _, cut, token in sorted(candidates, reverse=True)]


def _vocabulary(metadata: Metadata) -> dict[str, int]:
    vocabulary = {token: number for number, token in enumerate(metadata["ggml.tokens"])}
    if len(vocabulary) < len(metadata["ggml.tokens"]):
        raise ValueError("tokenizer.ggml.tokens: some stand twice, expected different ones")
    return vocabulary
