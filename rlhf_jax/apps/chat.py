"""Talk to a checkpoint in the terminal, over several turns.

    python -m rlhf_jax.apps.chat --checkpoint=runs/quickstart/ppo
    python -m rlhf_jax.apps.chat --checkpoint=runs/quickstart/sft --prompt="what colour is the fox?"
    python -m rlhf_jax.apps.chat --checkpoint=runs/a/sft --num_samples=4 --reward=runs/a/reward

Lines come from a person or from a pipe; /help lists the commands. Of several samples the one that
the reward model scores highest continues the conversation, without a reward model the first one.

Left out on purpose: printing token by token (the sampler is one compiled program that returns whole
replies), and a cache kept from turn to turn (reading the conversation anew costs less than the
cache's bookkeeping).
"""

import argparse
import dataclasses
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rlhf_jax.apps.arguments import read_chat

if __name__ == "__main__":
    read_chat(sys.argv[1:])  # --help and slips are answered before JAX is imported

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.apps.text import printable
from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.inference import scoring
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.inference.packing import Texts
from rlhf_jax.inference.sampling import Samples, sample
from rlhf_jax.models import LanguageModel, Params, ScalarModel, TransformerConfig, from_dict
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, latest_step
from rlhf_jax.training.pretrained import load_model, read_tokenizer
from rlhf_jax.training.processes import enable_persistent_cache, retain_memory

_HELP = """\
/regen            another reply to the last message
/reset            forget the conversation
/history          show it
/temperature 0.7  set the temperature (0: always the likeliest token)
/top_p 0.9        sample from the smallest set of tokens with this probability (1: off)
/top_k 40         sample from this many likeliest tokens (0: off)
/help             show this
/quit             leave (so does the end of the input)"""
_SETTINGS: dict[str, Callable[[str], float]] = {"temperature": float, "top_p": float, "top_k": int}
_SMALLEST_BUCKET = 32
_KINDS = {  # what a checkpoint holds, and the stages that train it
    CheckpointKind.LANGUAGE_MODEL: ("a language model", "pretrain, sft or ppo"),
    CheckpointKind.SCALAR_MODEL: ("a reward model", "reward"),
    CheckpointKind.CLASSIFIER: ("a classifier", "classify"),
}


# --- the model ----------------------------------------------------------------------------------


class Reply(NamedTuple):
    """One sampled reply; `finished` if it ended by itself, no score without a reward model."""

    text: str
    finished: bool
    score: float | None


class Replies(NamedTuple):
    """The sampled replies, and how many of the oldest messages had to be left out for them."""

    replies: list[Reply]
    forgotten: int


class TooLongError(ValueError):
    """The newest message alone does not leave room for a reply."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model loaded from `path`, with its tokenizer."""

    path: str
    params: Params
    config: TransformerConfig
    tokenizer: Tokenizer
    meta: Meta


def load(path: str | Path, *, kind: CheckpointKind, option: str) -> Checkpoint:
    """Load a checkpoint that has to be of `kind`; errors call it `option`.

    Raises:
        FileNotFoundError: there is no checkpoint or no tokenizer.
        ValueError: it is of another kind or damaged, or the tokenizer is not that of the model.
    """
    runs = [child.name for child in sorted(Path(path).glob("*/")) if latest_step(child) is not None]
    if runs and latest_step(path) is None:
        raise FileNotFoundError(
            f"{option}={path} is a folder of runs: name one of them, {', '.join(runs)}"
        )
    params, meta = load_model(path)
    if meta.kind != kind:
        (noun, stages), (other, _) = _KINDS[kind], _KINDS[meta.kind]
        raise ValueError(
            f"{option}={path} holds {other} (stage {meta.stage}), but {option} needs {noun}: "
            f"name a run of stage {stages}"
        )
    return Checkpoint(str(path), params, from_dict(meta.model), read_tokenizer(path), meta)


def bucket(length: int, limit: int) -> int:
    """Return the length to pad a prompt to: a power of two, at most `limit`.

    Without padding every length would be compiled anew.
    """
    size = _SMALLEST_BUCKET
    while size < length:
        size *= 2
    return min(size, limit)


def trim(tokenizer: Tokenizer, messages: Sequence[Message], limit: int) -> tuple[list[int], int]:
    """Return a prompt of at most `limit` tokens, and how many of the oldest messages it lacks.

    Whole exchanges (a question with its answer) are left out; a system message stays.

    Raises:
        TooLongError: the last message alone is longer.
    """
    num_system = int(messages[0].role == "system")
    system, turns = messages[:num_system], messages[num_system:]
    forgotten = 0
    ids = render(tokenizer, messages, generation_prompt=True).ids
    while len(ids) > limit and forgotten + 2 < len(turns):
        forgotten += 2
        ids = render(tokenizer, [*system, *turns[forgotten:]], generation_prompt=True).ids
    if len(ids) > limit:
        raise TooLongError(
            f"the message is {len(ids):,} tokens long and only {limit:,} fit beside the reply: "
            "shorten it, or lower --max_new_tokens"
        )
    return ids, forgotten


# The model is static: modules hold no arrays and are hashable. Compiled once per model and shape.
_scores = jax.jit(scoring.response_scores, static_argnums=0)


class ChatModel:
    """Answers conversations with a language model; a reward model, if given, scores the replies."""

    def __init__(
        self, language: Checkpoint, reward: Checkpoint | None, *, max_new_tokens: int
    ) -> None:
        """Check that the two models fit together and that a prompt and a reply fit the context."""
        context = language.config.context_length
        if reward is not None:
            if reward.meta.tokenizer != language.meta.tokenizer:
                raise ValueError(
                    f"the reward model in {reward.path} has another tokenizer than the language "
                    f"model in {language.path}: name a reward model that was trained from the "
                    "same pretraining run"
                )
            context = min(context, reward.config.context_length)
        if not 1 <= max_new_tokens < context:
            raise ValueError(
                f"--max_new_tokens={max_new_tokens} does not fit a context of {context} tokens: "
                f"choose 1 to {context - 1}, and leave room for the conversation"
            )
        self.language = language
        self.reward = reward
        self.tokenizer = language.tokenizer
        self.max_new_tokens = max_new_tokens
        self.context = context
        self.prompt_limit = context - max_new_tokens
        self.stop_tokens = tuple(self.tokenizer.stop_ids)
        if self.tokenizer.template is None:
            # A policy that goes on as the user has ended its turn, with or without an end token.
            self.stop_tokens += (self.tokenizer.user_id,)

    def __call__(
        self, messages: Sequence[Message], key: jax.Array, *, spec: SamplingSpec, num_samples: int
    ) -> Replies:
        """Sample replies to a conversation that ends with the user. Raises TooLongError."""
        ids, forgotten = trim(self.tokenizer, messages, self.prompt_limit)
        size = bucket(len(ids), self.prompt_limit)
        prompt_BP = np.full((1, size), self.tokenizer.pad_id, np.int32)
        prompt_BP[0, size - len(ids) :] = ids
        mask_BP = np.arange(size)[None] >= size - len(ids)
        samples = sample(
            LanguageModel(self.language.config),
            self.language.params,
            jnp.asarray(prompt_BP),
            jnp.asarray(mask_BP),
            key,
            spec=spec,
            response_length=self.max_new_tokens,
            stop_tokens=self.stop_tokens,
            pad_id=self.tokenizer.pad_id,
            num_samples=num_samples,
        )
        samples = jax.tree.map(np.asarray, samples)  # to the host
        replies = []
        for n, score in enumerate(self._score(prompt_BP, mask_BP, samples)):
            finished = bool(samples.stopped_B[n])
            words = samples.tokens_BR[n, : samples.length_B[n] - finished]
            text = printable(self.tokenizer.decode(words.tolist())).strip()
            replies.append(Reply(text, finished, score))
        return Replies(replies, forgotten)

    def _score(
        self, prompt_BP: np.ndarray, mask_BP: np.ndarray, samples: Samples
    ) -> list[float | None]:
        """Return each reply's score as in training: of prompt, response and its end token."""
        batch, response_length = samples.tokens_BR.shape
        if self.reward is None:
            return [None] * batch
        is_end_BR = np.arange(response_length) == samples.length_B[:, None] - 1
        is_end_BR &= samples.stopped_B[:, None]
        response_BR = np.where(is_end_BR, self.tokenizer.turn_end_id, samples.tokens_BR)
        response_mask_BR = np.arange(response_length) < samples.length_B[:, None]
        texts = Texts(
            prompt_BP=jnp.asarray(np.repeat(prompt_BP, batch, axis=0)),
            prompt_mask_BP=jnp.asarray(np.repeat(mask_BP, batch, axis=0)),
            response_BR=jnp.asarray(response_BR),
            mask_BR=jnp.asarray(response_mask_BR),
        )
        score_B = _scores(ScalarModel(self.reward.config), self.reward.params, texts)
        return [float(score) for score in np.asarray(score_B)]


# --- the conversation ---------------------------------------------------------------------------


class CommandError(ValueError):
    """A line that cannot be followed; the message says what to type instead."""


@dataclasses.dataclass
class Chat:
    """One conversation: its messages, how to sample, and how often that has been done so far."""

    model: ChatModel
    spec: SamplingSpec
    num_samples: int
    seed: int
    label: str = ""  # stands before every reply
    messages: list[Message] = dataclasses.field(default_factory=list)
    draws: int = 0

    def say(self, line: str) -> Iterator[str]:
        """Yield the lines to print in answer to one line of input.

        Raises:
            CommandError, TooLongError: there is no answer; the message says what to do.
            EOFError: the line asks to leave.
        """
        line = printable(line).strip()
        if not line:
            raise CommandError("the line is empty: type a message, or /help for the commands")
        if line.startswith("/"):
            yield from self._command(*line[1:].split())
        else:
            yield from self._answer([*self.messages, Message("user", line)])

    def _answer(self, messages: list[Message]) -> Iterator[str]:
        key = jax.random.fold_in(jax.random.key(self.seed), self.draws)
        samples = self.model(messages, key, spec=self.spec, num_samples=self.num_samples)
        replies, forgotten = samples.replies, samples.forgotten
        self.draws += 1
        best = max(replies, key=lambda reply: (bool(reply.text), reply.score or 0.0))
        self.messages = messages[forgotten:]
        if best.text:
            self.messages.append(Message("assistant", best.text))
        else:
            self.messages.pop()  # the question
        if forgotten:
            yield f"[the oldest {forgotten} messages no longer fit the context and are left out]"
        for number, reply in enumerate(replies, start=1):
            mark = f"{number}{'*' if reply is best else ' '} " if len(replies) > 1 else ""
            yield self.label + mark + _format_reply(reply)
        if not best.text:
            yield "[the reply is empty, so this exchange is not kept]"

    def _command(self, name: str = "", *values: str) -> Iterator[str]:
        if name in _SETTINGS:
            self._set(name, *values)
            yield f"[{name} is {values[0]}]"
            return
        match name, values:
            case (("quit" | "exit"), ()):
                raise EOFError
            case "help", ():
                yield _HELP
            case "reset", ():
                self.messages = []
                yield "[the conversation is forgotten]"
            case "history", ():
                lines = [f"{message.role}: {message.content}" for message in self.messages]
                yield "\n".join(lines) or "[nothing has been said yet]"
            case "regen", ():
                if not self.messages:
                    raise CommandError("/regen: there is no reply yet; type a message first")
                yield from self._answer(self.messages[:-1])
            case _:
                line = " ".join([name, *values])
                raise CommandError(f"there is no command /{line}: /help lists them")

    def _set(self, name: str, *values: str) -> None:
        if len(values) != 1:
            raise CommandError(f"/{name} takes one number; it is {getattr(self.spec, name)} now")
        try:
            change: dict[str, Any] = {name: _SETTINGS[name](values[0])}
            self.spec = dataclasses.replace(self.spec, **change)
        except ValueError as error:
            raise CommandError(f"/{name} {values[0]}: {error}") from None


def _format_reply(reply: Reply) -> str:
    notes = [] if reply.finished else ["cut off at --max_new_tokens"]
    if reply.score is not None:
        notes.append(f"score {reply.score:.3f}")
    return (reply.text or "(empty)") + (f"  [{', '.join(notes)}]" if notes else "")


# --- the terminal -------------------------------------------------------------------------------


def converse(chat: Chat, lines: Iterator[str], out: TextIO, err: TextIO, *, person: bool) -> int:
    """Answer line after line until they end, and return how many could not be answered.

    A person who interrupts a reply stays in the conversation; a pipe that is interrupted is done.
    """
    failures = 0
    for line in lines:
        try:
            for answer in chat.say(line):
                print(answer, file=out, flush=True)
        except EOFError:
            break
        except KeyboardInterrupt:
            if not person:
                raise
            print("[stopped; the exchange is not kept]", file=err)
        except ValueError as error:  # also what a chat template refuses
            failures += 1
            print(f"chat: {error}", file=err, flush=True)
    return failures


def typed_lines(read: Callable[[str], str], err: TextIO) -> Iterator[str]:
    """Yield the lines that a person types; Ctrl-C clears the line, Ctrl-D ends."""
    while True:
        try:
            yield read("you> ")
        except EOFError:
            print(file=err)
            return
        except KeyboardInterrupt:
            print("\n[/quit or Ctrl-D leaves]", file=err)


def _open_chat(arguments: argparse.Namespace) -> Chat:
    """Load the models, so that whatever is wrong is said before anyone types a line."""
    if arguments.num_samples < 1:
        raise ValueError(f"--num_samples={arguments.num_samples}: choose 1 or more")
    spec = SamplingSpec(arguments.temperature, arguments.top_k, arguments.top_p, nucleus="holtzman")
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise ValueError("--prompt is empty: write a question, or leave it out to chat")
    language = load(arguments.checkpoint, kind=CheckpointKind.LANGUAGE_MODEL, option="--checkpoint")
    reward = None
    if arguments.reward:
        reward = load(arguments.reward, kind=CheckpointKind.SCALAR_MODEL, option="--reward")
    limit = arguments.max_new_tokens
    if limit is None:
        limit = min(256, language.config.context_length // 2)
    model = ChatModel(language, reward, max_new_tokens=limit)
    return Chat(model, spec, arguments.num_samples, arguments.seed)


def _greeting(chat: Chat) -> str:
    model, meta = chat.model, chat.model.language.meta
    unfinished = "" if meta.complete else f" of {meta.num_steps}, unfinished"
    return (
        f"{meta.stage}, step {meta.step}{unfinished} · context {model.context} tokens, "
        f"replies up to {model.max_new_tokens} · temperature {chat.spec.temperature:g}\n"
        "/help lists the commands, /quit leaves. The first reply takes a few seconds: it compiles."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Chat, and return 2 if the arguments, the --prompt or a piped line could not be followed."""
    arguments = read_chat(argv)
    try:
        chat = _open_chat(arguments)
    except (ValueError, OSError) as error:
        print(f"chat: {error}", file=sys.stderr)
        return 2
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # No line and no reply may end the chat with an encoding error.
            stream.reconfigure(errors="replace")
    person = sys.stdin.isatty() and arguments.prompt is None
    lines: Iterator[str] = iter(sys.stdin) if arguments.prompt is None else iter([arguments.prompt])
    if person:
        import readline  # noqa: F401  gives input() line editing and history

        print(_greeting(chat))
        chat.label = f"{chat.model.language.meta.stage}> "
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
