"""Check the tokenizer inside a GGUF file: ids of hand-made vocabularies and of a trained one.

The trained one is written as llama.cpp does.
"""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import load_tokenizer
from rlhf_jax.models.huggingface.gguf_tokenizers import gguf_tokenizer

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "It's 2024, and 100 cats don't care.",
    "  two  spaces\n\nand a line",
    "Żółw 😀 <|im_end|> 9 99 999",
    "end ",
]


def trained():
    """A tokenizer in SmolLM's manner, from its own training."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def smollm(backend, **changes):
    vocabulary = backend.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = json.loads(backend.to_str())["model"]["merges"]
    metadata = {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }
    return {name: value for name, value in {**metadata, **changes}.items() if value is not None}


def test_byte_level_ids_are_those_of_the_tokenizer_that_was_written(tmp_path):
    backend = trained()
    tokenizer = gguf_tokenizer(smollm(backend))
    for text in TEXTS:
        assert tokenizer.encode(text, special=True) == backend.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text, special=False), keep_special=True) == text
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.prefix_ids) == (2, 2, [])
    assert tokenizer.start_ids == [0]  # documents follow <|endoftext|>, turns end with <|im_end|>
    assert (
        len(tokenizer.encode("999", special=False)) == 3
    )  # digits one by one, which gpt-2's way of cutting is not
    rendered = render(
        tokenizer,
        [Message("user", "cats?"), Message("assistant", "don't")],
        generation_prompt=False,
    )
    marked = [i for i, trained in zip(rendered.ids, rendered.trained, strict=True) if trained]
    assert marked == [*tokenizer.encode("don't", special=False), 2]
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert [loaded.encode(text, special=True) for text in TEXTS] == [
        tokenizer.encode(text, special=True) for text in TEXTS
    ]


def test_the_ends_of_a_turn_and_of_a_message_stop_a_response(tmp_path):
    named = {
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.eot_token_id": 2,
        "tokenizer.ggml.eom_token_id": 1,
    }
    tokenizer = gguf_tokenizer(smollm(trained(), **named, **{"tokenizer.chat_template": None}))
    assert tokenizer.stop_ids == (0, 1, 2)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).stop_ids == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre: 'tekken' is not supported"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model: 'bert'"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges: missing"),
        ({"tokenizer.ggml.add_eos_token": True}, "add_eos_token"),
        (
            {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None},
            "no tokenizer.ggml.bos_token_id",
        ),
        ({"tokenizer.ggml.eos_token_id": None}, "no eos_token"),
    ],
)
def test_what_we_do_not_know_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer(smollm(trained(), **change))


def gemma(**changes):
    pieces = {
        "<pad>": CONTROL,
        "<eos>": CONTROL,
        "<bos>": CONTROL,
        "<unk>": UNKNOWN,
        "<turn>": CONTROL,
        "\n\n": USER,
        "<0xC3>": BYTE,
        "<0xA9>": BYTE,
        "▁": NORMAL,
        "a": NORMAL,
        "b": NORMAL,
        "c": NORMAL,
        "▁a": NORMAL,
        "ab": NORMAL,
        "bc": NORMAL,
        "▁ab": NORMAL,
    }
    scores = dict.fromkeys(pieces, 0.0) | {"▁a": -3.0, "ab": -2.0, "bc": -1.0, "▁ab": -4.0}
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": list(pieces),
        "tokenizer.ggml.token_type": list(pieces.values()),
        "tokenizer.ggml.scores": list(scores.values()),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_space_prefix": False,
    }
    return gguf_tokenizer({**metadata, **changes})


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        (" ab", ["▁ab"]),  # ab first (-2), then ▁ + ab
        ("abc", ["a", "bc"]),  # bc (-1) before ab (-2)
        (" abc", ["▁a", "bc"]),
        ("a\n\nb", ["a", "\n\n", "b"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("aß", ["a", "<unk>"]),
        ("a<turn>b", ["a", "<turn>", "b"]),
    ],
)
def test_sentencepiece_merges_the_best_score_first(text, pieces):
    tokenizer = gemma()
    assert tokenizer.fast.convert_ids_to_tokens(tokenizer.encode(text, special=True)) == pieces
    if "<unk>" not in pieces:
        assert tokenizer.decode(tokenizer.encode(text, special=True)) == text


def test_sentencepiece_begins_with_bos_and_sometimes_a_space():
    assert gemma().prefix_ids == [2]
    assert gemma(**{"tokenizer.ggml.add_bos_token": False}).prefix_ids == []
    prefixed = gemma(**{"tokenizer.ggml.add_space_prefix": True})
    assert prefixed.fast.convert_ids_to_tokens(prefixed.encode("ab", special=False)) == ["▁ab"]
    assert prefixed.decode(prefixed.encode("ab a", special=False)) == "ab a"
