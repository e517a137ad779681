"""Talk to a checkpoint in the terminal, over several turns.

    python -m rlhf_jax.apps.chat --checkpoint=runs/quickstart/ppo
    python -m rlhf_jax.apps.chat --checkpoint=runs/quickstart/sft --prompt="what is the colour of the fox?"
    python -m rlhf_jax.apps.chat --checkpoint=runs/a/sft --num_samples=4 --reward=runs/a/reward

Reads a conversation line by line, from a person (with line editing) or from a pipe. Commands begin with a
slash; /help lists them. With several samples the conversation goes on from the one that the reward model
scores highest, without a reward model from the first. What the model writes is stripped of control
characters before it reaches the terminal. Left out on purpose: printing token by token; the sampler is one
compiled program that returns the whole reply.
"""

import argparse
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TextIO

import jax

from rlhf_jax.apps.speaker import ChatModel, Replies, Reply, TooLongError, load
from rlhf_jax.apps.text import printable
from rlhf_jax.data.records import Message
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory

HELP = """\
/regen            another reply to the last message
/reset            forget the conversation
/history          show it
/temperature 0.7  set the temperature (0: always the likeliest token)
/top_p 0.9        sample from the smallest set of tokens with this probability (1: off)
/top_k 40         sample from this many likeliest tokens (0: off)
/help             show this
/quit             leave (so does the end of the input)"""


class Answers(Protocol):
    """What a chat needs of a model: `ChatModel`, or a fake in a test."""

    def __call__(
        self, messages: Sequence[Message], key: jax.Array, *, spec: SamplingSpec, num_samples: int
    ) -> Replies: ...


class CommandError(ValueError):
    """A line that cannot be followed; the message says what to type instead."""


@dataclasses.dataclass
class Chat:
    """One conversation: what was said, how to sample, and how many times it has been sampled so far.

    `label` stands before every reply.
    """

    speaker: Answers
    spec: SamplingSpec
    num_samples: int
    seed: int
    label: str = ""
    messages: list[Message] = dataclasses.field(default_factory=list)
    draws: int = 0

    def say(self, line: str) -> Iterator[str]:
        """The lines to print in answer to one line of input. Raises CommandError, TooLongError, EOFError
        (leave)."""
        line = printable(line).strip()
        if not line:
            raise CommandError("the line is empty: type a message, or /help for the commands")
        if line.startswith("/"):
            yield from self._command(*line[1:].split())
        else:
            yield from self._answer([*self.messages, Message("user", line)])

    def _answer(self, messages: list[Message]) -> Iterator[str]:
        key = jax.random.fold_in(jax.random.key(self.seed), self.draws)
        replies, forgotten = self.speaker(
            messages, key, spec=self.spec, num_samples=self.num_samples
        )
        self.draws += 1
        best = max(
            range(len(replies)), key=lambda n: (bool(replies[n].text), replies[n].score or 0.0)
        )
        kept = replies[best].text
        said = messages[forgotten:]
        self.messages = [*said, Message("assistant", kept)] if kept else said[:-1]
        if forgotten:
            yield f"[the oldest {forgotten} messages no longer fit the context and are left out]"
        for index, reply in enumerate(replies):
            mark = f"{index + 1}{'*' if index == best else ' '} " if len(replies) > 1 else ""
            yield self.label + mark + _show(reply)
        if not kept:
            yield "[the reply is empty, so this exchange is not kept]"

    def _command(self, name: str = "", *values: str) -> Iterator[str]:
        match name, values:
            case (("quit" | "exit"), ()):
                raise EOFError
            case "help", ():
                yield HELP
            case "reset", ():
                self.messages = []
                yield "[the conversation is forgotten]"
            case "history", ():
                yield (
                    "\n".join(f"{m.role}: {m.content}" for m in self.messages)
                    or "[nothing has been said yet]"
                )
            case "regen", ():
                if not self.messages:
                    raise CommandError("/regen: there is no reply yet; type a message first")
                yield from self._answer(self.messages[:-1])
            case (("temperature" | "top_p" | "top_k"), (value,)):
                self.spec = _changed(self.spec, name, value)
                yield f"[{name} is {value}]"
            case (("temperature" | "top_p" | "top_k"), _):
                raise CommandError(
                    f"/{name} takes one number; it is {getattr(self.spec, name)} now"
                )
            case _:
                raise CommandError(
                    f"there is no command /{' '.join([name, *values])}: /help lists them"
                )


def _show(reply: Reply) -> str:
    notes = [] if reply.finished else ["cut off at --max_new_tokens"]
    if reply.score is not None:
        notes.append(f"score {reply.score:.3f}")
    tail = f"  [{', '.join(notes)}]" if notes else ""
    return (reply.text or "(empty)") + tail


def _changed(spec: SamplingSpec, name: str, value: str) -> SamplingSpec:
    try:
        if name == "top_k":
            return dataclasses.replace(spec, top_k=int(value))
        if name == "top_p":
            return dataclasses.replace(spec, top_p=float(value))
        return dataclasses.replace(spec, temperature=float(value))
    except ValueError as error:
        raise CommandError(f"/{name} {value}: {error}") from None


def converse(chat: Chat, lines: Iterator[str], out: TextIO, err: TextIO, *, person: bool) -> int:
    """Answer line after line until they end or someone quits; how many could not be answered.

    A `person` who interrupts a reply stays in the conversation; a pipe that is interrupted is done.
    """
    failures = 0
    for line in lines:
        try:
            for shown in chat.say(line):
                print(shown, file=out, flush=True)
        except EOFError:
            break
        except KeyboardInterrupt:
            if not person:
                raise
            print("[stopped; the exchange is not kept]", file=err)
        except (CommandError, TooLongError) as error:
            failures += 1
            print(f"chat: {error}", file=err, flush=True)
    return failures


def typed_lines(read: Callable[[str], str], err: TextIO) -> Iterator[str]:
    """Lines typed at the prompt; Ctrl-C clears the line, Ctrl-D ends."""
    while True:
        try:
            yield read("you> ")
        except EOFError:
            print(file=err)
            return
        except KeyboardInterrupt:
            print("\n[/quit or Ctrl-D leaves]", file=err)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.apps.chat",
        description="Talk to a checkpoint in the terminal.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        help="a run's workdir (its newest checkpoint) or WORKDIR/checkpoints/STEP",
    )
    add("--reward", help="a reward model's run: prints its score of each reply")
    add("--prompt", help="ask this one question, print the reply and leave")
    add("--temperature", type=float, default=0.7, help="0 is greedy (default %(default)s)")
    add("--top_k", type=int, default=0, help="0 is off (default)")
    add("--top_p", type=float, default=1.0, help="1 is off (default)")
    add(
        "--max_new_tokens",
        type=int,
        help="longest reply in tokens (default: half of the context, at most 256)",
    )
    add("--num_samples", type=int, default=1, help="replies per message (default 1)")
    add("--seed", type=int, default=0, help="same seed, same replies (default 0)")
    return parser.parse_args(argv)


def _build(arguments: argparse.Namespace) -> tuple[Chat, ChatModel]:
    """Everything that can be wrong with the arguments is found here, before anyone types a line."""
    if arguments.num_samples < 1:
        raise ValueError(f"--num_samples={arguments.num_samples}: choose 1 or more")
    spec = SamplingSpec(arguments.temperature, arguments.top_k, arguments.top_p, nucleus="holtzman")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ValueError("--prompt is empty: write a question, or leave it out to chat")
    language = load(arguments.checkpoint, kind=CheckpointKind.LANGUAGE_MODEL, option="--checkpoint")
    reward = (
        load(arguments.reward, kind=CheckpointKind.SCALAR_MODEL, option="--reward")
        if arguments.reward
        else None
    )
    limit = (
        min(256, language.config.context_length // 2)
        if arguments.max_new_tokens is None
        else arguments.max_new_tokens
    )
    speaker = ChatModel(language, reward, max_new_tokens=limit)
    return Chat(speaker, spec, arguments.num_samples, arguments.seed), speaker


def _greeting(speaker: ChatModel, chat: Chat) -> str:
    meta = speaker.language.meta
    unfinished = "" if meta.complete else f" of {meta.num_steps}, unfinished"
    return (
        f"{meta.stage}, step {meta.step}{unfinished} · context {speaker.context} tokens, replies up to "
        f"{speaker.max_new_tokens} · temperature {chat.spec.temperature:g}\n"
        "/help lists the commands, /quit leaves. The first reply takes a few seconds: it compiles."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Chat; status 2 if the arguments cannot be followed, or if a piped line or the --prompt could not be
    answered."""
    arguments = _arguments(argv)
    try:
        chat, speaker = _build(arguments)
    except (ValueError, OSError) as error:
        print(f"chat: {error}", file=sys.stderr)
        return 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # no line and no reply may end the chat with an encoding error
    person = sys.stdin.isatty() and arguments.prompt is None
    lines: Iterator[str] = iter(sys.stdin) if arguments.prompt is None else iter([arguments.prompt])
    if person:
        import readline  # noqa: F401  gives input() line editing and history

        print(_greeting(speaker, chat))
        chat.label = f"{speaker.language.meta.stage}> "
        lines = typed_lines(input, sys.stderr)
    try:
        failures = converse(chat, lines, sys.stdout, sys.stderr, person=person)
    except KeyboardInterrupt:
        return 130
    return 2 if failures and not person else 0


if __name__ == "__main__":
    retain_memory()
    enable_persistent_cache()
    sys.exit(main())
