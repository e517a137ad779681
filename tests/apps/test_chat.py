"""The chat command: commands, trimming, errors, and real tiny models through the whole path."""

import dataclasses
import functools
import io
import sys

import jax
import numpy as np
import pytest
from templates_support import qwen3, r1

from rlhf_jax.apps import chat
from rlhf_jax.apps.chat import Chat, ChatModel, CommandError, Replies, Reply, TooLongError
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import train_words
from rlhf_jax.inference import scoring
from rlhf_jax.inference.decoding import PLAIN, SamplingSpec
from rlhf_jax.inference.sampling import Samples
from rlhf_jax.models import LanguageModel, ScalarModel, gpt, init_params, to_dict
from rlhf_jax.training import checkpoints
from rlhf_jax.training.metrics import CompileCounter

WORDS = "what is the colour of a red fox owl"
SPEC = PLAIN
CONTEXT = 64
# One distribution and length: few programs to compile.
SHORT = ("--max_new_tokens=8", "--temperature=1")


# --- the conversation, with a fake model --------------------------------------------------------


class Echo:
    """Answers with the number of messages it saw, and remembers how it was called."""

    def __init__(self, *replies, forgotten=0):
        self.replies, self.forgotten, self.calls = replies, forgotten, []

    def __call__(self, messages, key, *, spec, num_samples):
        self.calls.append((list(messages), int(jax.random.bits(key)), spec, num_samples))
        replies = self.replies or (Reply(f"reply {len(messages)}", True, None),)
        return Replies(list(replies), self.forgotten)


def conversation(echo, **changes):
    return Chat(**{"model": echo, "spec": SPEC, "num_samples": 1, "seed": 0, **changes})


def say(talk, *lines):
    return [shown for line in lines for shown in talk.say(line)]


def test_turns_accumulate():
    echo = Echo()
    talk = conversation(echo)
    assert say(talk, "hello", " and then? ") == ["reply 1", "reply 3"]
    assert echo.calls[1][0] == ask("hello", "reply 1", "and then?")
    assert say(talk, "/history") == [
        "user: hello\nassistant: reply 1\nuser: and then?\nassistant: reply 3"
    ]


@pytest.mark.parametrize("make", [qwen3, r1])
@pytest.mark.parametrize(
    "said", ["<think>\nhm\n</think>\n\nred", "hm\n</think>\n\nred", "<think>\nhm", "red"]
)
def test_a_reply_that_thinks_may_be_followed_by_a_question(make, said):
    """The template takes the thinking out of the reply, which once was an error."""
    tokenizer = make()

    class Model:
        def __call__(self, messages, key, *, spec, num_samples):
            ids, _ = chat.trim(tokenizer, messages, 200)
            prompts.append(tokenizer.decode(ids, keep_special=True))
            return Replies([Reply(said, True, None)], 0)

    prompts = []
    out, err = io.StringIO(), io.StringIO()
    talk = conversation(Model())
    assert chat.converse(talk, iter(["hello", "think"]), out, err, person=False) == 0
    answer = said.split("</think>")[-1].strip()
    assert answer in prompts[1]
    assert ("hm" in prompts[1]) == ("</think>" not in said and "hm" in said)


def test_what_a_template_refuses_is_one_line_and_no_traceback():
    class Model:
        def __call__(self, messages, key, *, spec, num_samples):
            raise ValueError("chat template: it refuses")

    out, err = io.StringIO(), io.StringIO()
    talk = conversation(Model())
    assert chat.converse(talk, iter(["hello"]), out, err, person=False) == 1
    assert (err.getvalue(), talk.messages) == ("chat: chat template: it refuses\n", [])


def test_every_draw_has_its_own_key_and_the_seed_decides_them():
    first, second, other = Echo(), Echo(), Echo()
    for echo, seed in ((first, 0), (second, 0), (other, 1)):
        say(conversation(echo, seed=seed), "a", "b", "/regen")
    keys = [[call[1] for call in echo.calls] for echo in (first, second, other)]
    assert keys[0] == keys[1]
    assert len(set(keys[0] + keys[2])) == 6


def test_regen_asks_the_same_again():
    echo = Echo()
    talk = conversation(echo)
    say(talk, "a", "b", "/regen")
    assert echo.calls[2][0] == echo.calls[1][0]
    assert len(talk.messages) == 4


def test_reset_forgets():
    talk = conversation(Echo())
    say(talk, "a", "/reset")
    assert talk.messages == []
    assert say(talk, "/history") == ["[nothing has been said yet]"]
    with pytest.raises(CommandError, match="type a message first"):
        say(talk, "/regen")


def test_switches_change_the_distribution_that_is_sampled():
    echo = Echo()
    say(conversation(echo), "/temperature 0.5", "/top_p .9", "/top_k 7", "a")
    assert echo.calls[0][2] == SamplingSpec(0.5, 7, 0.9, "holtzman")


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("", "/help"),
        ("  ", "/help"),
        ("\x07", "/help"),
        ("/temperature", "takes one number; it is 1.0 now"),
        ("/temperature hot", "could not convert"),
        ("/temperature -1", "positive"),
        ("/temperature nan", "positive"),
        ("/top_k 1.5", "invalid literal"),
        ("/top_p 2", "top_p <= 1"),
        ("/fly", "no command /fly: /help"),
        ("/", "/help"),
        ("/reset now", "/help"),
    ],
)
def test_lines_that_cannot_be_followed_change_nothing(line, remedy):
    echo = Echo()
    talk = conversation(echo)
    with pytest.raises(CommandError, match=remedy):
        say(talk, line)
    assert (talk.spec, talk.messages, echo.calls) == (SPEC, [], [])


@pytest.mark.parametrize("line", ["/quit", "/exit"])
def test_quit_leaves(line):
    with pytest.raises(EOFError):
        say(conversation(Echo()), line)


def test_help_names_every_command():
    shown = say(conversation(Echo()), "/help")[0]
    for name in ("regen", "reset", "history", "temperature", "top_p", "top_k", "help", "quit"):
        assert f"/{name}" in shown


def test_highest_score_goes_on_with_several_samples():
    replies = [Reply("low", True, -2.0), Reply("high", False, -1.0), Reply("middle", True, -1.5)]
    talk = conversation(Echo(*replies), num_samples=3)
    assert say(talk, "a") == [
        "1  low  [score -2.000]",
        "2* high  [cut off at --max_new_tokens, score -1.000]",
        "3  middle  [score -1.500]",
    ]
    assert talk.messages[-1] == Message("assistant", "high")


def test_an_empty_sample_never_goes_on_while_another_has_words():
    talk = conversation(Echo(Reply("", True, 9.0), Reply("words", True, -9.0)), num_samples=2)
    say(talk, "a")
    assert talk.messages[-1].content == "words"


def test_first_sample_goes_on_without_a_reward_model():
    talk = conversation(Echo(Reply("one", True, None), Reply("two", True, None)), num_samples=2)
    assert say(talk, "a")[0] == "1* one"
    assert talk.messages[-1].content == "one"


def test_forgotten_turns_are_said_and_dropped_from_the_history():
    talk = conversation(Echo(forgotten=2))
    talk.messages = [Message("user", "old"), Message("assistant", "older")]
    assert (
        say(talk, "new")[0] == "[the oldest 2 messages no longer fit the context and are left out]"
    )
    assert [m.content for m in talk.messages] == ["new", "reply 3"]


def test_an_empty_reply_is_shown_and_not_kept():
    talk = conversation(Echo(Reply("", True, None)))
    assert say(talk, "a") == ["(empty)", "[the reply is empty, so this exchange is not kept]"]
    assert talk.messages == []


def test_converse_counts_failures_and_goes_on():
    out, err = io.StringIO(), io.StringIO()
    lines = iter(["hi\n", "\n", "/nope\n", "again\n", "/quit\n", "never\n"])
    failures = chat.converse(conversation(Echo()), lines, out, err, person=False)
    assert failures == 2
    assert out.getvalue() == "reply 1\nreply 3\n"
    assert [line.startswith("chat: ") for line in err.getvalue().splitlines()] == [True, True]


def test_stopping_a_reply_keeps_the_chat_alive_for_a_person_only():
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    out, err = io.StringIO(), io.StringIO()
    assert chat.converse(conversation(interrupted), iter(["hi"]), out, err, person=True) == 0
    assert "not kept" in err.getvalue()
    with pytest.raises(KeyboardInterrupt):
        chat.converse(conversation(interrupted), iter(["hi"]), out, err, person=False)


def test_typed_lines_survive_ctrl_c_and_end_at_ctrl_d():
    answers = iter(["a", KeyboardInterrupt, "b", EOFError])

    def read(prompt):
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    assert list(chat.typed_lines(read, io.StringIO())) == ["a", "b"]


# --- real models --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return train_words([WORDS])


def config(tokenizer, context=CONTEXT):
    return gpt(
        vocab_size=tokenizer.vocab_size,
        context_length=context,
        width=16,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        compute_dtype="float32",
        param_dtype="float32",
        remat="none",
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """A language model's and a reward model's run, saved as training saves them."""
    root = tmp_path_factory.mktemp("runs")
    for name, kind, model in (
        ("sft", "language_model", LanguageModel(config(tokenizer))),
        ("reward", "scalar_model", ScalarModel(config(tokenizer))),
    ):
        meta = checkpoints.Meta(
            stage=name,
            kind=kind,
            num_steps=7,
            model=to_dict(model.config),
            tokenizer=tokenizer.fingerprint(),
            lineage={},
        )
        checkpoints.save(
            root / name, 7, init_params(model, jax.random.key(1)), {"step": 7}, meta, keep=1
        )
        tokenizer.save(root / name / "tokenizer")
    return root


@pytest.fixture(scope="module")
def language(runs):
    return chat.load(runs / "sft", kind="language_model", option="--checkpoint")


@pytest.fixture(scope="module")
def reward(runs):
    return chat.load(runs / "reward", kind="scalar_model", option="--reward")


def ask(*contents):
    roles = ("user", "assistant")
    return [Message(roles[i % 2], content) for i, content in enumerate(contents)]


def test_bucket_is_a_power_of_two_up_to_the_limit():
    assert [chat.bucket(n, 200) for n in (1, 32, 33, 64, 65, 129, 200)] == [
        32,
        32,
        64,
        64,
        128,
        200,
        200,
    ]


def test_trim_drops_whole_exchanges_from_the_oldest(tokenizer):
    messages = ask("red fox", "a owl", "what is the", "red", "colour of")
    full = len(render(tokenizer, messages, generation_prompt=True).ids)
    assert chat.trim(tokenizer, messages, full) == (
        render(tokenizer, messages, generation_prompt=True).ids,
        0,
    )
    ids, forgotten = chat.trim(tokenizer, messages, full - 1)
    assert (ids, forgotten) == (render(tokenizer, messages[2:], generation_prompt=True).ids, 2)
    assert chat.trim(tokenizer, messages, 4)[1] == 4  # <user> colour of <assistant>
    with pytest.raises(TooLongError, match="4 tokens long and only 3 fit"):
        chat.trim(tokenizer, messages, 3)


def test_same_key_same_reply_and_padding_to_a_bucket_changes_nothing(language, monkeypatch):
    # Ten times the initial scale, so that what the model says depends on what it has read.
    loud = dataclasses.replace(
        language, params=jax.tree.map(lambda leaf: 10 * leaf, language.params)
    )
    model = ChatModel(loud, None, max_new_tokens=8)
    messages = ask("what is the colour of a fox")

    def sampled_replies():
        return model(messages, jax.random.key(0), spec=SPEC, num_samples=2)

    first = sampled_replies()
    assert first == sampled_replies()
    monkeypatch.setattr(chat, "bucket", lambda length, limit: length)
    assert first == sampled_replies()


def test_turns_of_one_bucket_compile_once(language):
    model, counter = ChatModel(language, None, max_new_tokens=8), CompileCounter()
    for words in ("red", "what is the colour", "a a a a a owl"):
        with counter:
            model(ask(words), jax.random.key(0), spec=SPEC, num_samples=1)
    assert counter.after_first_call == 0


def test_score_is_the_reward_models_at_the_last_token(language, reward, tokenizer):
    model = ChatModel(language, reward, max_new_tokens=4)
    prompt = [tokenizer.pad_id] * 3 + render(tokenizer, ask("red owl"), generation_prompt=True).ids
    prompt_BP = np.array([prompt], np.int32)
    mask_BP = np.arange(len(prompt))[None] >= 3
    user, eos, pad, word = tokenizer.user_id, tokenizer.eos_id, tokenizer.pad_id, 5
    tokens_BR = np.array(
        [[word, eos, pad, pad], [word, user, pad, pad], [word, word, word, word]], np.int32
    )
    samples = Samples(
        tokens_BR, np.zeros((3, 4)), np.array([2, 2, 4]), np.array([True, True, False])
    )
    scores = model._score(prompt_BP, mask_BP, samples)

    scores_of = jax.jit(
        functools.partial(scoring.last_token_scores, ScalarModel(reward.config), reward.params)
    )

    def alone(*response):
        tokens_BT = np.array([[*prompt[3:], *response]], np.int32)
        return float(scores_of(tokens_BT, np.ones_like(tokens_BT))[0])

    # A user marker ends the turn as well, and is scored as the end token that training would
    # have shown.
    expected = [alone(word, eos), alone(word, eos), alone(word, word, word, word)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_finished_replies_lose_their_end_token_and_cut_ones_say_so(
    language, tokenizer, monkeypatch
):
    tokens_BR = np.array([[5, 6, tokenizer.eos_id, 0], [5, tokenizer.user_id, 0, 0], [5, 6, 5, 6]])
    samples = Samples(
        tokens_BR, np.zeros((3, 4)), np.array([3, 2, 4]), np.array([True, True, False])
    )
    monkeypatch.setattr(chat, "sample", lambda *_, **__: samples)
    model = ChatModel(language, None, max_new_tokens=4)
    replies = model(ask("a"), jax.random.key(0), spec=SPEC, num_samples=3).replies
    texts = [tokenizer.decode(ids).strip() for ids in ([5, 6], [5], [5, 6, 5, 6])]
    assert replies == [
        Reply(text, end, None) for text, end in zip(texts, (True, True, False), strict=True)
    ]


def test_control_characters_of_the_model_never_reach_the_terminal(language, monkeypatch):
    samples = Samples(np.array([[5, 6]]), np.zeros((1, 2)), np.array([2]), np.array([False]))
    monkeypatch.setattr(chat, "sample", lambda *_, **__: samples)
    monkeypatch.setattr(
        type(language.tokenizer), "decode", lambda *_: "\x1b[2Jclean\x07\x9b \u202eword"
    )
    model = ChatModel(language, None, max_new_tokens=4)
    assert (
        model(ask("a"), jax.random.key(0), spec=SPEC, num_samples=1).replies[0].text == "clean word"
    )


# --- the command --------------------------------------------------------------------------------


def command(monkeypatch, capsys, *arguments, typed="", person=False):
    stdin = io.StringIO(typed)
    stdin.isatty = lambda: person
    monkeypatch.setattr(sys, "stdin", stdin)
    try:
        status = chat.main([*map(str, arguments)])
    except SystemExit as left:  # argparse
        status = left.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_one_question(runs, monkeypatch, capsys):
    arguments = ("--checkpoint", runs / "sft", *SHORT, "--prompt=what is the red owl")
    status, out, err = command(monkeypatch, capsys, *arguments)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert command(monkeypatch, capsys, *arguments) == (0, out, "")
    assert command(monkeypatch, capsys, *arguments, "--seed=1")[1] != out


def test_piped_conversation_with_a_reward_model(runs, monkeypatch, capsys):
    arguments = ("--checkpoint", runs / "sft" / "checkpoints" / "7", "--reward", runs / "reward")
    typed = "red fox\n/temperature 1\nwhat is the owl\n/regen\n/history\n"
    arguments += (*SHORT, "--num_samples=2")
    status, out, err = command(monkeypatch, capsys, *arguments, typed=typed)
    assert (status, err) == (0, "")
    assert out.count("score ") == 6
    assert out.count("user: red fox") == 1


def test_piped_mistakes_are_said_and_counted_in_the_status(runs, monkeypatch, capsys):
    arguments = ("--checkpoint", runs / "sft", *SHORT)
    typed = "\nred\n" + "red " * 60 + "\n/nope\n"
    status, out, err = command(monkeypatch, capsys, *arguments, typed=typed)
    assert status == 2
    assert len(out.splitlines()) == 1
    for line, part in zip(
        err.splitlines(), ("is empty", "tokens long and only 56 fit", "no command"), strict=True
    ):
        assert line.startswith("chat: ")
        assert part in line


def test_long_conversations_forget_their_beginning(runs, monkeypatch, capsys):
    typed = "what is the colour of the red fox\n" * 7
    arguments = ("--checkpoint", runs / "sft", *SHORT)
    status, out, err = command(monkeypatch, capsys, *arguments, typed=typed)
    assert (status, err) == (0, "")
    assert "no longer fit the context" in out


def test_a_person_is_greeted_and_mistakes_are_forgiven(runs, monkeypatch, capsys):
    typed = iter(["", "red fox", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    arguments = ("--checkpoint", runs / "sft", *SHORT)
    status, out, err = command(monkeypatch, capsys, *arguments, person=True)
    assert status == 0
    assert out.startswith("sft, step 7 · context 64 tokens, replies up to 8 · temperature 1\n/help")
    assert "sft> " in out
    assert "is empty" in err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--checkpoint=ROOT"], ["is a folder of runs: name one of them, reward, sft"]),
        (
            ["--checkpoint=ROOT/nothing"],
            ["no checkpoint at", "train the model first: python -m rlhf_jax.main"],
        ),
        (
            ["--checkpoint=ROOT/reward"],
            ["holds a reward model (stage reward)", "a run of stage pretrain, sft or ppo"],
        ),
        (
            ["--checkpoint=ROOT/sft", "--reward=ROOT/sft"],
            ["--reward needs a reward model", "stage reward"],
        ),
        (
            ["--checkpoint=ROOT/sft", "--max_new_tokens=64"],
            ["does not fit a context of 64", "choose 1 to 63"],
        ),
        (["--checkpoint=ROOT/sft", "--max_new_tokens=0"], ["choose 1 to 63"]),
        (["--checkpoint=ROOT/sft", "--prompt= "], ["--prompt is empty"]),
        (["--checkpoint=ROOT/sft", "--num_samples=0"], ["--num_samples=0"]),
        (["--checkpoint=ROOT/sft", "--top_p=2"], ["top_p = 2"]),
        (["--checkpoint=ROOT/sft", "--temperature=warm"], ["--temperature", "warm"]),
        (["--checkpoint=ROOT/sft", "--temp=1"], ["--temp=1"]),
        ([], ["--checkpoint"]),
    ],
)
def test_errors_are_one_clear_message_with_status_2(runs, monkeypatch, capsys, arguments, parts):
    status, out, err = command(
        monkeypatch, capsys, *(word.replace("ROOT", str(runs)) for word in arguments)
    )
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_another_tokenizer_is_refused(runs, language, reward, tmp_path):
    other = dataclasses.replace(reward, meta=dataclasses.replace(reward.meta, tokenizer="other"))
    with pytest.raises(ValueError, match="another tokenizer"):
        ChatModel(language, other, max_new_tokens=8)
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "checkpoints").symlink_to(runs / "sft" / "checkpoints")
    train_words(["other words"]).save(tmp_path / "sft" / "tokenizer")
    with pytest.raises(ValueError, match="is not the tokenizer of the model"):
        chat.load(tmp_path / "sft", kind="language_model", option="--checkpoint")


def test_a_shorter_reward_context_limits_the_conversation(language, reward, tokenizer):
    short = dataclasses.replace(reward, config=config(tokenizer, context=32))
    assert ChatModel(language, short, max_new_tokens=8).prompt_limit == 24
