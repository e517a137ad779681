"""Tiny tokenizers of other origin, with the chat templates of well-known families written anew in
their style."""

import json

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.tokenizers import Tokenizer

CORPUS = [
    "hello, how are you today?",
    "system user assistant model INST",
    "the fox is red. 2 + 2 = 4",
    "think about it",
]

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}"
    "{% set turn = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.first %}"
    "{% set turn = bos_token + turn %}{% endif %}{{ turn }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}"
    "{% endif %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Thoughts of earlier turns are taken out, as in Qwen 3 and DeepSeek R1.
FORGETFUL = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' and not loop.last %}"
    "{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + text + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Qwen 3: an empty block of thoughts where the last answer has none, thoughts as they are in it, and
# none in the answers before.
QWEN3 = (
    "{% for m in messages %}{% set text = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set thoughts = '' %}{% if '</think>' in text %}"
    "{% set thoughts = text.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}{% if loop.last %}"
    "{% set text = '<think>\\n' + thoughts + '\\n</think>\\n\\n' + text %}{% endif %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + text + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# DeepSeek R1 and what is distilled from it: thoughts are taken out of every answer, and the
# generation prompt opens them.
R1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)


def byte_level(
    special: list[str],
    template: str | None,
    *,
    eos: str,
    bos: str | None = None,
    pad: str | None = None,
    adds_bos: bool = False,
    more_stops: tuple[int, ...] = (),
    ordinary: tuple[str, ...] = (),
) -> Tokenizer:
    """GPT-2's kind; the special tokens come after the vocabulary, as in Llama 3 and Qwen."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in ordinary])
    return _finish(
        backend,
        special,
        template,
        eos=eos,
        bos=bos,
        pad=pad,
        adds_bos=adds_bos,
        more_stops=more_stops,
    )


def metaspace(
    special: list[str],
    template: str | None,
    *,
    eos: str,
    bos: str | None = None,
    pad: str | None = None,
    scheme: str = "always",
    adds_bos: bool = False,
) -> Tokenizer:
    """SentencePiece's kind, with byte fallback; the special tokens are in the vocabulary, as in
    Llama 2, Mistral, Gemma."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", *special, *bytes_], show_progress=False
    )
    if scheme == "legacy":  # Llama 2: a space goes before every piece of text, by the normalizer
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), behavior="merged_with_next")
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(
        steps if scheme == "never" else [*steps, decoders.Strip(" ", 1, 0)]
    )
    backend.train_from_iterator(CORPUS, trainer)
    content = json.loads(backend.to_str())  # the trainer took the bytes for special tokens
    content["added_tokens"] = [
        token for token in content["added_tokens"] if token["content"] not in bytes_
    ]
    backend = Backend.from_str(json.dumps(content))
    return _finish(backend, special, template, eos=eos, bos=bos, pad=pad, adds_bos=adds_bos)


def _finish(backend, special, template, *, eos, bos, pad, adds_bos, more_stops=()):
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    if adds_bos:
        ids = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=ids
        )
    names = {"eos_token": eos, "bos_token": bos, "pad_token": pad}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: token for name, token in names.items() if token}
    )
    fast.chat_template = template
    return Tokenizer(fast, more_stops=more_stops)


def chatml() -> Tokenizer:
    """pad == eos, and a bos_token that opens every turn, as in SmolLM2."""
    return byte_level(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        CHATML,
        eos="<|im_end|>",
        bos="<|im_start|>",
        pad="<|im_end|>",
    )


def llama3() -> Tokenizer:
    """Both the template and the tokenizer itself write begin-of-text; several stop tokens; no
    padding token."""
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    ]
    return byte_level(
        special,
        LLAMA3,
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        adds_bos=True,
        more_stops=(304,),
    )


def gemma() -> Tokenizer:
    """The assistant is called model; its turn does not end with the end-of-text token."""
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    return metaspace(
        special, GEMMA, eos="<eos>", bos="<bos>", pad="<pad>", scheme="never", adds_bos=True
    )


def mistral(scheme: str = "always") -> Tokenizer:
    """Turns are marked by ordinary letters; the prompt needs no generation prompt."""
    return metaspace(["<s>", "</s>"], MISTRAL, eos="</s>", bos="<s>", scheme=scheme, adds_bos=True)


def qwen3() -> Tokenizer:
    """The tags of thoughts are added tokens, and not special."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    thoughts = ("<think>", "</think>")
    return byte_level(special, QWEN3, eos="<|im_end|>", pad="<|endoftext|>", ordinary=thoughts)


def r1() -> Tokenizer:
    """The markers of turns are added tokens, and not special either."""
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    ordinary = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
    begin, end = special
    return byte_level(special, R1, eos=end, bos=begin, pad=end, adds_bos=True, ordinary=ordinary)


FAMILIES = {"chatml": chatml, "llama3": llama3, "gemma": gemma, "mistral": mistral}
