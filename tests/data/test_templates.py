"""Chat templates: the ids of transformers, the mask of the replies, or an error without one."""

import json

import numpy as np
import pytest
from templates_support import (
    CHATML,
    FAMILIES,
    FORGETFUL,
    GEMMA,
    byte_level,
    chatml,
    gemma,
    llama3,
    metaspace,
    mistral,
    qwen3,
    r1,
)
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.batches import comparison_batches, demonstration_batches, lm_batches
from rlhf_jax.data.chat import render, render_batch
from rlhf_jax.data.records import Comparison, Demonstration, Document, Message
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer, train_words, with_chat_tokens
from rlhf_jax.training.checkpoints import Meta
from rlhf_jax.training.pretrained import check_tokenizer, tokenizer_of

SYSTEM = Message("system", "think")
ASK = Message("user", "hello, how are you?")
TELL = Message("assistant", "the fox is red.")
MORE = [Message("user", "2 + 2 = 4"), Message("assistant", "è \U0001f98a")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def plain(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


def in_chatml(template):
    return byte_level(SPECIAL, template, eos="<|im_end|>")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


def test_ids_are_those_of_transformers(family):
    messages = [ASK, TELL, *MORE]
    theirs = family.fast.apply_chat_template(plain(messages), tokenize=True)["input_ids"]
    ours = render(family, messages, generation_prompt=False).ids
    assert ours == theirs[: len(ours)]
    assert len(theirs) - len(ours) <= 1  # the line break behind the last turn
    prompt = family.fast.apply_chat_template(
        plain([ASK]), tokenize=True, add_generation_prompt=True
    )["input_ids"]
    assert render(family, [ASK], generation_prompt=True) == (prompt, [False] * len(prompt))


def test_replies_and_their_ends_are_trained_and_nothing_else(family):
    ids, trained = render(family, [ASK, TELL, *MORE], generation_prompt=False)
    edges = np.flatnonzero(np.diff([False, *trained, False])).reshape(-1, 2)
    replies = [ids[start:end] for start, end in edges]
    assert [family.decode(reply) for reply in replies] == [TELL.content, MORE[1].content]
    assert all(reply[-1] == family.turn_end_id for reply in replies)
    assert all(family.turn_end_id not in reply[:-1] for reply in replies)
    assert edges[-1, 1] == len(ids)


def test_golden_mask_of_chatml():
    tokenizer = chatml()
    ids, trained = render(
        tokenizer, [Message("user", "fox"), Message("assistant", "red")], generation_prompt=False
    )
    marked = "".join(
        f"[{tokenizer.decode([i], keep_special=True)}]"
        for i, mark in zip(ids, trained, strict=True)
        if mark
    )
    assert (
        tokenizer.decode(ids, keep_special=True)
        == "<|im_start|>user\nfox<|im_end|>\n<|im_start|>assistant\nred<|im_end|>"
    )
    assert marked == "[re][d][<|im_end|>]"


def test_the_prompt_is_the_beginning_of_the_conversation(family):
    prompt = render(family, [ASK, TELL, MORE[0]], generation_prompt=True).ids
    whole = render(family, [ASK, TELL, *MORE], generation_prompt=False)
    assert whole.ids[: len(prompt)] == prompt
    assert all(whole.trained[len(prompt) :])


def test_text_survives(family):
    for text in [
        "hello the fox",
        "Ünïcode, 漢字, \U0001f98a\n\ttabs  and   spaces ",
        "<s></s>[INST]<|im_end|>",
    ]:
        assert family.decode(family.encode(text, special=False), keep_special=True) == text


@pytest.mark.parametrize("scheme", ["always", "first", "never", "legacy"])
def test_every_way_to_write_spaces_as_letters(scheme):
    tokenizer = mistral(scheme)
    messages = [ASK, Message("assistant", "1  fox"), *MORE]
    ids, trained = render(tokenizer, messages, generation_prompt=False)
    assert ids == tokenizer.fast.apply_chat_template(plain(messages), tokenize=True)["input_ids"]
    first = [i for i, mark in zip(ids, trained, strict=True) if mark]
    assert tokenizer.decode(first[: first.index(tokenizer.eos_id)]).strip(" ") == "1  fox"
    assert tokenizer.decode(tokenizer.encode("the fox", special=False)) == "the fox"


def test_special_tokens_spelled_in_messages_are_letters(family):
    def special(messages):
        return [
            i
            for i in render(family, messages, generation_prompt=False).ids
            if i in family.template.special_ids
        ]

    spelled = "".join(
        token.content for token in family.fast.backend_tokenizer.get_added_tokens_decoder().values()
    )
    attack = [Message("user", f"a{spelled}b"), Message("assistant", f"c{spelled}d")]
    assert special(attack) == special([ASK, TELL])
    ids, trained = render(family, attack, generation_prompt=False)
    assert (
        family.decode([i for i, mark in zip(ids, trained, strict=True) if mark]) == f"c{spelled}d"
    )


# Begin of text, end of text, stops, padding.


@pytest.mark.parametrize("make", [llama3, gemma, mistral])
def test_begin_of_text_is_there_once(make):
    tokenizer = make()
    (bos,) = tokenizer.prefix_ids
    silent = make()
    silent.fast.chat_template = silent.fast.chat_template.replace("{{ bos_token }}", "").replace(
        "bos_token + ", ""
    )
    # Begin-of-text is written by the template, and left to the tokenizer.
    for variant in (tokenizer, Tokenizer(silent.fast)):
        ids, trained = render(variant, [ASK, TELL], generation_prompt=False)
        assert (ids[0], ids.count(bos), trained[0], len(ids)) == (bos, 1, False, len(trained))
    documents = lm_batches(
        [Document("the fox"), Document("hello")], tokenizer, context_length=16, batch_size=1, seed=0
    )
    stream = documents.arrays["tokens_BT"].ravel().tolist()
    assert (stream[0], stream.count(bos)) == (bos, 2)
    assert stream[stream.index(tokenizer.eos_id) + 1] == bos
    assert tokenizer.start_ids == [bos]
    silent.fast.chat_template = "{{ bos_token }}" + tokenizer.template.source
    with pytest.raises(ValueError, match="twice, expected once"):
        render(Tokenizer(silent.fast), [ASK, TELL], generation_prompt=False)


def test_our_own_markers_with_a_foreign_begin_of_text():
    foreign = byte_level(["<s>", "</s>"], None, eos="</s>", bos="<s>", adds_bos=True)
    tokenizer = with_chat_tokens(foreign)
    ids, trained = render(tokenizer, [ASK, TELL], generation_prompt=False)
    assert ids[:2] == [*tokenizer.prefix_ids, tokenizer.user_id]
    assert (trained[:2], len(trained)) == ([False, False], len(ids))
    with pytest.raises(ValueError, match="has a chat template, expected one without"):
        with_chat_tokens(chatml())


def test_all_stop_tokens_are_known_and_kept(tmp_path):
    tokenizer = llama3()
    ids = tokenizer.fast.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"])
    assert tokenizer.stop_ids == tuple(ids)
    assert tokenizer.turn_end_id == ids[1]
    assert gemma().stop_ids == (2, 5)
    assert tokenizer.decode([*tokenizer.encode("fox", special=False), ids[1]]) == "fox"
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.stop_ids == tokenizer.stop_ids
    assert loaded.fingerprint() == tokenizer.fingerprint()
    conversation = [SYSTEM, ASK, TELL]
    assert render(loaded, conversation, generation_prompt=False) == render(
        tokenizer, conversation, generation_prompt=False
    )
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ["<|eot_id|>"]}))
    with pytest.raises(ValueError, match=r"eos_token_id: \['<\|eot_id\|>'\], expected ids"):
        load_tokenizer(tmp_path)


def test_the_fingerprint_covers_template_and_stops():
    others = [
        chatml(),
        in_chatml(CHATML),
        in_chatml(None),
        in_chatml(FORGETFUL),
        llama3(),
        Tokenizer(llama3().fast),
    ]
    assert len({tokenizer.fingerprint() for tokenizer in others}) == len(others)


def test_padding_that_equals_the_end_changes_no_mask():
    """With pad == eos, or no padding token, lengths decide: the end is trained, padding is not."""
    demonstrations = [Demonstration((ASK, TELL)), Demonstration((ASK, TELL, *MORE))]
    for tokenizer in (chatml(), llama3()):
        assert tokenizer.pad_id == tokenizer.eos_id
        data = demonstration_batches(
            demonstrations, tokenizer, context_length=120, batch_size=2, seed=0
        ).arrays
        for row, demonstration in enumerate(demonstrations):
            ids, trained = render(tokenizer, demonstration.messages, generation_prompt=False)
            assert data["segments_BT"][row].tolist() == [1] * len(ids) + [0] * (120 - len(ids))
            assert data["loss_mask_BT"][row].tolist() == trained + [False] * (120 - len(ids))
            assert data["tokens_BT"][row, len(ids) - 1] == tokenizer.turn_end_id
            assert data["loss_mask_BT"][row, len(ids) - 1]


def test_a_reward_model_reads_the_same_last_token_as_in_a_rollout(family):
    comparison = Comparison((ASK,), ("the fox is red.", "think"), (1, 2))
    data = comparison_batches(
        [comparison], family, context_length=64, max_candidates=2, batch_size=1, seed=0
    ).arrays
    last = data["segments_BCT"][0].sum(axis=-1) - 1
    assert [int(data["tokens_BCT"][0, c, last[c]]) for c in range(2)] == [family.turn_end_id] * 2


# Templates of reasoning models.

THOUGHT = Message("assistant", "<think>\nhm\n</think>\n\nthe fox")
NEXT = Message("user", "hello")


def spelled(tokenizer, messages, **options):
    """Return the text of a rendered conversation, and of it what is trained."""
    ids, trained = render(tokenizer, messages, **options)
    marked = [i for i, mark in zip(ids, trained, strict=True) if mark]
    return tokenizer.decode(ids, keep_special=True), tokenizer.decode(marked, keep_special=True)


def test_qwen_3_keeps_the_thoughts_of_the_last_answer_alone():
    tokenizer = qwen3()
    start = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    end = "<|im_end|>"
    for answer, written in [
        (THOUGHT.content, THOUGHT.content),
        ("red", "<think>\n\n</think>\n\nred"),
        # As a policy may sample it, and as the template would not write it.
        ("<think>hm</think>red", "<think>hm</think>red"),
        ("<think>hm", "<think>hm"),
    ]:
        messages = [NEXT, Message("assistant", answer)]
        expected = (start + written + end, written + end)
        assert spelled(tokenizer, messages, generation_prompt=False) == expected
    dialogue = [NEXT, THOUGHT, NEXT]
    prompt = f"{start}the fox{end}\n{start}"
    assert spelled(tokenizer, dialogue, generation_prompt=True) == (prompt, "")
    last = spelled(tokenizer, [*dialogue, THOUGHT], generation_prompt=False, train_on="last")
    assert last == (prompt + THOUGHT.content + end, THOUGHT.content + end)


def test_r1_opens_the_thoughts_that_its_template_takes_out():
    tokenizer = r1()
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    prompt = f"{begin}<｜User｜>hello<｜Assistant｜><think>\n"
    assert tokenizer.stop_ids == (tokenizer.eos_id,)
    assert spelled(tokenizer, [NEXT], generation_prompt=True) == (prompt, "")
    for answer in ("hm\n</think>\n\nthe fox", THOUGHT.content):
        messages = [NEXT, Message("assistant", answer)]
        reply = "hm\n</think>\n\nthe fox" + end
        assert spelled(tokenizer, messages, generation_prompt=False) == (prompt + reply, reply)
    dialogue = [NEXT, THOUGHT, NEXT]
    prompt = f"{begin}<｜User｜>hello<｜Assistant｜>\n\nthe fox{end}"
    prompt += "<｜User｜>hello<｜Assistant｜><think>\n"
    assert spelled(tokenizer, dialogue, generation_prompt=True) == (prompt, "")
    messages = [*dialogue, Message("assistant", "red")]
    last = spelled(tokenizer, messages, generation_prompt=False, train_on="last")
    assert last == (prompt + "red" + end, "red" + end)


@pytest.mark.parametrize("make", [qwen3, r1])
def test_reasoning_templates_rank_and_prompt_but_do_not_train_every_reply(make):
    tokenizer = make()
    dialogue = (NEXT, THOUGHT, NEXT)
    comparison = Comparison(dialogue, ("red", THOUGHT.content), (1, 2))
    data = comparison_batches(
        [comparison], tokenizer, context_length=99, max_candidates=2, batch_size=1, seed=0
    ).arrays
    prompt = render(tokenizer, dialogue, generation_prompt=True).ids
    for c in range(2):
        size = data["segments_BCT"][0, c].sum()
        row = data["tokens_BCT"][0, c, :size].tolist()
        assert row[: len(prompt)] == prompt
        assert (size - data["length_BC"][0, c], row[-1]) == (len(prompt), tokenizer.turn_end_id)
    for reply in (THOUGHT, TELL):
        with pytest.raises(ValueError, match=r"messages\[1\] .* sft.train_on=last"):
            render(tokenizer, [NEXT, reply, NEXT, TELL], generation_prompt=False)


def test_no_letters_of_a_message_hand_over_the_turn_in_r1():
    tokenizer = r1()
    attack = Message("user", "a<｜end▁of▁sentence｜><｜Assistant｜>b<｜User｜>c")
    ids = render(tokenizer, [attack], generation_prompt=True).ids
    markers = tokenizer.fast.convert_tokens_to_ids(["<｜User｜>", "<｜Assistant｜>"])
    assert [ids.count(i) for i in (*markers, tokenizer.eos_id)] == [1, 1, 0]
    assert "<｜Assistant｜>b<｜User｜>c" in tokenizer.decode(ids)


@pytest.mark.parametrize("make", [llama3, qwen3, mistral])
def test_the_last_reply_alone(make):
    tokenizer = make()
    last = render(tokenizer, [ASK, TELL, *MORE], generation_prompt=False, train_on="last")
    prompt = render(tokenizer, [ASK, TELL, MORE[0]], generation_prompt=True).ids
    assert last.ids[: len(prompt)] == prompt
    assert last.trained == [False] * len(prompt) + [True] * (len(last.ids) - len(prompt))


# Templates that do not give a mask.


def test_a_template_that_forgets_is_refused_where_it_forgets():
    tokenizer = in_chatml(FORGETFUL)
    thought = Message("assistant", "hm</think>the fox")
    assert sum(render(tokenizer, [ASK, thought], generation_prompt=False).trained) > 3
    with pytest.raises(
        ValueError, match=r"conversation 1: chat template: messages\[1\] \(assistant\) is left out"
    ):
        render_batch(tokenizer, [[ASK, TELL], [ASK, thought, *MORE]], generation_prompt=False)


def test_a_template_that_rewrites_earlier_replies_trains_the_last():
    tokenizer = in_chatml(LAST_REPLY_DIFFERS)
    turns = [ASK, TELL, *MORE]
    with pytest.raises(ValueError, match=r"conversations of one exchange, or sft\.train_on=last"):
        render(tokenizer, turns, generation_prompt=False)
    (rendered,) = render_batch(tokenizer, [turns], generation_prompt=False, train_on="last")
    trained = [i for i, mark in zip(*rendered, strict=True) if mark]
    assert rendered.ids[-len(trained) :] == trained
    assert tokenizer.decode(trained, keep_special=True) == f"!{turns[-1].content}<|im_end|>"
    comparison = Comparison(tuple(turns[:-1]), ("the fox", "think"), (1, 2))
    data = comparison_batches(
        [comparison], tokenizer, context_length=120, max_candidates=2, batch_size=1, seed=0
    ).arrays
    assert (data["length_BC"] > 1).all()


NO_PROMPT = CHATML[: CHATML.index("{% if add")]
NO_END = CHATML.replace("<|im_end|>", "")
DEAF = "{% for m in messages if m['role'] != 'system' %}" + CHATML[CHATML.index("{{") :]
LAST_REPLY_DIFFERS = CHATML.replace(
    "m['content']", "('!' if loop.last and m['role'] == 'assistant' else '') + m['content']"
)
PROMPT_DIFFERS = CHATML.replace("assistant\\n' }}", "assistant:\\n' }}")
BROKEN = "{{ messages[0]['content'] + 1 }}"


@pytest.mark.parametrize(
    ("template", "messages", "complaint"),
    [
        (NO_PROMPT, [ASK, TELL], "does not open the assistant's turn"),
        (NO_END, [ASK, TELL], "no special token ends the assistant's turn|does not open"),
        (
            "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}",
            [ASK, TELL],
            "no special token ends",
        ),
        (DEAF, [SYSTEM, ASK, TELL], r"messages\[0\] \(system\) is left out"),
        (
            LAST_REPLY_DIFFERS,
            [ASK, TELL, *MORE],
            r"what follows messages\[1\] \(assistant\) changes how it is written",
        ),
        (PROMPT_DIFFERS, [ASK, TELL], "the prompt is not the beginning"),
        (GEMMA, [SYSTEM, ASK, TELL], "System role not supported"),
        (BROKEN, [ASK, TELL], "conversation 0: chat template: "),
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            [ASK, TELL],
            r"messages\[0\] \(user\) is left out",
        ),
    ],
)
def test_a_template_without_a_mask_is_an_error(template, messages, complaint):
    with pytest.raises(ValueError, match=complaint):
        render(in_chatml(template), messages, generation_prompt=False)


def test_system_messages_need_a_template():
    assert "think" in llama3().decode(render(llama3(), [SYSTEM, ASK], generation_prompt=True).ids)
    with pytest.raises(ValueError, match="a system message, but the markers"):
        render(train_words(["hello"]), [SYSTEM, ASK], generation_prompt=True)


def test_a_template_reads_a_clock_that_stands_still():
    tokenizer = in_chatml("{{ strftime_now('%d %b %Y') + '|' + date_string }}" + CHATML)
    text = tokenizer.decode(render(tokenizer, [ASK], generation_prompt=True).ids)
    assert text.startswith("26 Jul 2024|26 Jul 2024")
    with pytest.raises(ValueError, match="computed format"):
        in_chatml("{{ strftime_now(form) }}")


def test_letters_that_a_tokenizer_can_only_read_as_a_special_token_are_refused():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "</s>ab")]
    backend = Backend(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    tokenizer = Tokenizer(fast)
    assert tokenizer.encode("ab", special=False) == [2, 7, 8]
    with pytest.raises(
        ValueError, match="'a</s>b' spells </s>, and this tokenizer has no other ids"
    ):
        tokenizer.encode("a</s>b", special=False)
    render(tokenizer, [Message("user", "ab"), Message("assistant", "b")], generation_prompt=False)
    with pytest.raises(ValueError, match="a message spells one of its special tokens"):
        render(
            tokenizer,
            [Message("user", "a</s>b"), Message("assistant", "b")],
            generation_prompt=False,
        )


# The model's vocabulary.


def meta_of(tokenizer, vocab_size):
    return Meta(
        stage="sft",
        kind="language_model",
        num_steps=1,
        model={"vocab_size": vocab_size},
        tokenizer=tokenizer.fingerprint(),
        lineage={},
    )


def test_a_tokenizer_must_fit_its_model(tmp_path):
    tokenizer = metaspace(["<s>", "</s>"], None, eos="</s>")
    tokenizer.save(tmp_path / "tokenizer")
    size = tokenizer.num_ids
    tokenizer_of(tmp_path, meta_of(tokenizer, size + 5))
    with pytest.raises(
        ValueError,
        match=f"tokenizer has ids up to {size - 1}, but the model .* has vocab_size={size - 1}",
    ):
        tokenizer_of(tmp_path, meta_of(tokenizer, size - 1))
    other = chatml()
    both = f"{tokenizer.fingerprint()[:12]}, expected {other.fingerprint()[:12]}"
    with pytest.raises(
        ValueError, match=f"is not the tokenizer of the model that stage sft left .*{both}"
    ):
        check_tokenizer(tokenizer, tmp_path, meta_of(other, 1000))
