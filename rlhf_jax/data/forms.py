"""Recognise rows by their columns, and read the records that they hold.

A row that names no shape is read in two steps: first into an `Exchange`, which holds whatever such
rows say (a prompt, the replies to it, what somebody thought of them), then into the record that a
stage asks for. So a row means the same in every stage. `sources` has the table of all forms.

A form is recognised by its columns alone; columns that are null are absent. Where a row has the
columns of two forms, both are read: if they say the same that is the reading, else it is an error
that names both, and `?columns=` chooses. What a conversation lacks to be a record is a reason to
drop the row (`conversations`), which is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Generic, NamedTuple

from rlhf_jax.data import conversations
from rlhf_jax.data.conversations import (
    Turns,
    agree,
    check_turns,
    is_end,
    read_conversation,
    read_turns,
)
from rlhf_jax.data.public.rows import Row, as_number, ranks_of_scores, shorten, text
from rlhf_jax.data.public.transcripts import parse_transcripts
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    Drop,
    LabelledText,
    Message,
    Prompt,
    R,
    Thumb,
    read_integers,
    read_list,
    read_string,
)

# Columns of what was said before the reply, and of replies and opinions of them.
_QUESTIONS = ("prompt", "question", "instruction")
_CONVERSATIONS = ("messages", "conversations")
_BEFORE = ("system", "system_prompt", "history", "tools")
_TEXT_COLUMNS: dict[type, tuple[str, ...]] = {Document: ("text",), LabelledText: ("text", "label")}
_REPLIES = ("completion", "chosen", "rejected", "responses", "ranks", "scores", "best", "output")

_LONG = 20  # letters of a prompt that nobody repeats by chance


@dataclass(frozen=True)
class Exchange:
    """Hold a prompt, the replies to it if there are any, and what somebody thought of them."""

    messages: Turns
    responses: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    label: bool | None = None
    is_conversation: bool = False  # its turns stand in one column, the reply being the last
    remark: str = ""  # what is odd about it


class Reading(NamedTuple, Generic[R]):
    """Hold a record, what was cut to make it, and the columns that it says nothing about."""

    record: R
    remark: str
    passed_over: tuple[str, ...]


class Form(NamedTuple):
    """Say which columns make a form, how it is read, and which records it holds."""

    columns: tuple[str, ...]
    shown: str  # as errors name it
    read: Callable[[Row], Exchange]
    holds: tuple[type, ...]


def read_row(record_type: type[R], row: Any, *, kept: Sequence[str] = ()) -> Reading[R]:
    """Read a row by its columns; `kept` are columns that go to the metadata of any record.

    Raises:
        Drop: for a row that no record can hold.
        ValueError: for columns that make no form, or two that differ, and for what is wrong in one.
    """
    if not isinstance(row, dict):
        kind = "a list" if isinstance(row, list) else type(row).__name__
        raise ValueError(f"{record_type.__name__}: {kind}, expected an object")
    present: Row = {str(name): value for name, value in row.items() if value is not None}
    if record_type in _TEXT_COLUMNS:
        return _read_text(record_type, row, present)
    forms = _matching(record_type, present) or _matching(record_type, row)
    if not forms:
        raise _no_form(record_type, row)
    used: set[str] = _used_columns(forms, present)
    metadata = _read_metadata(present.get("metadata"))
    if record_type is Prompt:  # a reward may ask for anything but the replies
        used = (used | {*_REPLIES, *_CONVERSATIONS}) - {"answer", "label"}
        kept = [name for name in present if name not in used]
    for name in (name for name in kept if name in present):
        value = _as_text(name, present[name])
        if metadata.setdefault(name, value) != value:
            raise _two_readings(name, f"metadata.{name}", ())
    readings = [_as_record(record_type, form.read(dict(row)), metadata) for form in forms]
    for form, (record, _) in zip(forms[1:], readings[1:], strict=True):
        if record != readings[0][0]:
            raise _two_readings(forms[0].shown, form.shown, form.shown.split(" + "))
    # Of readings that agree the one that had to cut nothing speaks.
    record, remark = min(readings, key=lambda reading: bool(reading[1]))
    unread: list[str] = [name for name in present if name not in used and name not in kept]
    return Reading(record, remark, (*unread, *_unread_fields(present, used)))


def holds(record_type: type, row: Any) -> bool:
    """Return whether a row has the columns of a record of this type."""
    if record_type in _TEXT_COLUMNS:
        return isinstance(row, dict) and row.keys() >= set(_TEXT_COLUMNS[record_type])
    return isinstance(row, dict) and bool(_matching(record_type, row))


def read_columns(record_type: type[R], row: Any, *, columns: Sequence[str]) -> R:
    """Read a row as if it had the named columns alone."""
    return read_row(record_type, select_columns(row, columns)).record


def select_columns(row: Any, columns: Sequence[str]) -> Any:
    """Return a row with the named columns alone."""
    if not isinstance(row, dict):
        return row
    return {name: row[name] for name in columns if name in row}


# From columns to forms.


def _matching(record_type: type, row: Mapping[str, Any]) -> list[Form]:
    """Return the forms whose columns a row has; none that is a part of another."""
    forms = _with_columns(record_type, frozenset(row))
    replies = [form for form in forms if form.read not in (_read_question, _read_transcript)]
    # A conversation that waits for a reply is the prompt of the replies beside it.
    waiting = [name for name in _CONVERSATIONS if name in row and not _is_answered(row[name])]
    others = [form for form in replies if form.columns[0] not in waiting]
    # A question counts where there is nothing else, and a text where there is not even one.
    questions = [form for form in forms if form.read is _read_question]
    return others or replies or questions or forms


@lru_cache(maxsize=1024)  # the rows of a source have few sets of columns
def _with_columns(record_type: type, columns: frozenset[str]) -> list[Form]:
    forms = [form for form in FORMS if record_type in form.holds and columns >= {*form.columns}]
    return [
        form for form in forms if not any({*form.columns} < {*other.columns} for other in forms)
    ]


def _used_columns(forms: Sequence[Form], row: Mapping[str, Any]) -> set[str]:
    """Return the columns that the reading of some forms looks at."""
    used = {name for form in forms for name in form.columns} | {"metadata", *_QUESTIONS, *_BEFORE}
    used |= {name for name in _CONVERSATIONS if name in row and not _is_answered(row[name])}
    return used | ({"input"} if "instruction" in row else set())


def _is_answered(turns: Any) -> bool:
    """Return whether the last of some turns is the assistant's, as far as can be told."""
    if isinstance(turns, dict):
        roles = turns.get("role", turns.get("from"))
        last = roles[-1] if isinstance(roles, list | tuple) and roles else roles
    else:
        item = turns[-1] if isinstance(turns, list | tuple) and turns else None
        last = item.get("role", item.get("from")) if isinstance(item, dict) else None
    return last in ("assistant", "gpt")


def _no_form(record_type: type, row: Mapping[str, Any]) -> ValueError:
    shown = dict.fromkeys(form.shown for form in FORMS if record_type in form.holds)
    hint = ""
    if record_type is Comparison and row.keys() >= {"completion", "label"}:
        hint = "; single replies with a thumb train preference.loss=kto alone"
    if record_type is Demonstration and "text" in row:
        hint = "; plain text is for data.documents"
    names = ", ".join(map(str, row)) or "nothing"
    return ValueError(f"fields: found {names}, expected {' or '.join(shown)}{hint}")


def _two_readings(first: str, second: str, columns: Sequence[str]) -> ValueError:
    example = ",".join(columns or (second, "..."))
    return ValueError(
        f"fields: {first} and {second} are two readings that differ, expected one; choose by "
        f"naming its columns, as in ?columns={example}"
    )


# From exchanges to records.


def _as_record(record_type: type, exchange: Exchange, metadata: dict[str, str]) -> tuple[Any, str]:
    """Return the record that an exchange holds, and what had to be cut."""
    messages = exchange.messages
    responses = exchange.responses
    if record_type is Prompt:
        was_cut = exchange.is_conversation and responses
        remark = "prompts without their last turn, which was the assistant's" if was_cut else ""
        return Prompt(messages, metadata), remark
    if record_type is Comparison:
        return Comparison(messages, responses, exchange.ranks, metadata), exchange.remark
    if record_type is Thumb:
        if exchange.label is None:
            raise ValueError("label: null, expected true or false")
        return Thumb(messages, responses[0], exchange.label, metadata), exchange.remark
    if exchange.label is False:
        raise Drop("with a thumb down")
    if responses:
        best = exchange.ranks.index(min(exchange.ranks)) if exchange.ranks else 0
        reply = Message("assistant", responses[best])
        return Demonstration((*messages, reply), metadata), exchange.remark
    if len(messages) < 2 or messages[-2].role != "assistant":
        raise Drop("without a reply")
    remark = "demonstrations without their last turn, which was the user's"
    return Demonstration(messages[:-1], metadata), remark


def _read_text(record_type: type[R], row: Mapping[str, Any], present: Row) -> Reading[R]:
    """Read a document or a labelled text, whose label may be a number."""
    names = _TEXT_COLUMNS[record_type]
    if not row.keys() >= set(names):
        raise ValueError(f"fields: found {', '.join(map(str, row))}, expected {' + '.join(names)}")
    values = {name: row[name] for name in names}
    if isinstance(values.get("label"), int):
        values["label"] = str(values["label"])
    texts: dict[str, Any] = {name: read_string(name, value) for name, value in values.items()}
    record = record_type(**texts)
    return Reading(record, "", tuple(name for name in present if name not in names))


def _read_metadata(value: Any) -> dict[str, str]:
    """Return metadata as text; tables keep it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise ValueError(f"metadata: {shorten(value)}, expected an object") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"metadata: {type(value).__name__}, expected an object")
    return {
        str(name): _as_text(f"metadata.{name}", item)
        for name, item in value.items()
        if item is not None
    }


def _as_text(name: str, value: Any) -> str:
    """Return text, dates and decimals as text, and what JSON has as JSON."""
    if isinstance(value, list | tuple | dict | bool | int | float):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return read_string(name, str(value))


def _unread_fields(row: Row, used: Iterable[str]) -> list[str]:
    """Return the fields of turns that are not read, as messages.name."""
    return [
        f"{name}.{field}"
        for name in row
        if name in used and isinstance(row[name], list | tuple)
        for field in dict.fromkeys(
            field
            for turn in row[name]
            if isinstance(turn, dict)
            for field, value in turn.items()
            if value is not None and field not in conversations.TURN_FIELDS
        )
    ]


# What was said before the reply.


def _read_before(row: Row) -> Turns | None:
    """Return what all columns of a prompt say together, None without one."""
    before: Turns | None = None
    names: list[str] = []
    for name in (*_QUESTIONS, *_CONVERSATIONS):
        if row.get(name) is None:
            continue
        if name in _CONVERSATIONS and _is_answered(row[name]):
            continue  # a conversation with a reply of its own is another form
        turns = _read_asked(row, name)
        longer = turns if before is None else agree(before, turns)
        if longer is None:
            raise _two_readings(names[-1], name, ())
        before = longer
        names.append(name)
    return before if before is None else _behind_system(row, before)


def _read_asked(row: Row, name: str) -> Turns:
    """Return what one column of a prompt says."""
    if name in _CONVERSATIONS:
        return read_turns(name, row[name])
    if name == "prompt":
        return read_conversation(name, row[name])
    question = text(row, name)
    material = text(row, "input") if name == "instruction" and row.get("input") else ""
    if not question:
        raise Drop("with an empty prompt")
    return (Message("user", f"{question}\n\n{material}" if material else question),)


def _behind_system(row: Row, turns: Turns) -> Turns:
    """Put the columns `system` and `history` in front; a row with tools is dropped."""
    if row.get("tools") and str(row["tools"]).strip() not in ("[]", "{}"):
        raise Drop("with tools")
    history: list[Message] = []
    for k, pair in enumerate(read_list("history", row.get("history") or [])):
        texts = read_list(f"history[{k}]", pair)
        if len(texts) != 2:
            raise ValueError(
                f"history[{k}]: {len(texts)} items, expected a question and its answer"
            )
        for role, content in zip(("user", "assistant"), texts, strict=True):
            history.append(Message(role, read_string(f"history[{k}]", content)))
    turns = (*history, *turns)
    for name in ("system", "system_prompt"):
        content = row.get(name)
        if content is None or (isinstance(content, str) and not content.strip()):
            continue
        system = Message("system", read_string(name, content))
        if not turns or turns[0].role != "system":
            turns = (system, *turns)
        elif turns[0] != system:
            raise Drop(f"whose column {name} contradicts the system turn")
    return turns


# The forms.


def _read_question(row: Row) -> Exchange:
    """Read a prompt without a reply."""
    before = _read_before(row)
    if before is None:
        raise Drop("with an empty prompt")
    return _as_exchange(before)


def _as_exchange(turns: Turns) -> Exchange:
    """Return a conversation as its last reply and what was before, or as what waits for one."""
    check_turns(turns)
    if not turns or turns[-1].role == "system":
        raise Drop("without a question")
    if turns[-1].role == "user":
        return Exchange(turns, is_conversation=True)
    return Exchange(turns[:-1], (turns[-1].content,), is_conversation=True)


def _read_messages(row: Row, *, name: str) -> Exchange:
    """Read a conversation in one column; a question beside it has to be a part of it."""
    turns = read_turns(name, row[name])
    for other in _QUESTIONS:
        if row.get(other) is not None and agree(turns, _read_asked(row, other)) != turns:
            before = turns[:-1]
            if agree(before, _read_asked(row, other)) != before:
                raise _two_readings(other, name, (name,))
    return _as_exchange(_behind_system(row, turns))


def _read_transcript(row: Row) -> Exchange:
    """Read a whole transcript from the column `text`."""
    value = read_string("text", row.get("text"))
    if not conversations.is_transcript(value):
        raise ValueError(
            "text: no transcript of Human: and Assistant:, expected one, or messages or prompt + "
            "completion; plain text is for data.documents"
        )
    return _as_exchange(conversations.parse_transcript(value))


def _read_answer(row: Row) -> Exchange:
    value = row["answer"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _one_reply(row, _as_text("answer", value) if is_number else text(row, "answer"))


def _read_output(row: Row) -> Exchange:
    return _one_reply(row, text(row, "output"))


def _one_reply(row: Row, reply: str) -> Exchange:
    if not reply.strip():
        raise Drop("with an empty response")
    before = _read_before(row)
    if before is None:
        raise Drop("with an empty prompt")
    whole = _as_exchange((*before, Message("assistant", reply)))
    return replace(whole, is_conversation=False)


def _read_completion(row: Row) -> Exchange:
    """Read a prompt and what followed, one reply or several turns, perhaps with a thumb."""
    before = _read_before(row)
    side = _read_side("completion", row["completion"], strip=_is_transcript(row))
    exchange = _as_exchange(_with_before("completion", before, side))
    remark = _repeated_prompt(row, [row["completion"]])
    exchange = replace(exchange, is_conversation=False, remark=remark)
    return exchange if row.get("label") is None else replace(exchange, label=_read_label(row))


def _read_label(row: Row) -> bool:
    """Return a thumb, which tables may hold as a number or as text."""
    value = row["label"]
    words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
    label = (
        words.get(str(value).strip().lower())
        if isinstance(value, bool | int | float | str)
        else None
    )
    if label is None:
        raise ValueError(
            f"label: {shorten(value)}, expected true or false; to read the rows without "
            "it, name the others as in ?columns=prompt,completion"
        )
    return label


def _read_pair(row: Row) -> Exchange:
    """Read what was chosen and rejected: one of each as a reply or as whole conversations, or many.

    What both conversations share is the prompt.
    """
    values = {name: row[name] for name in ("chosen", "rejected")}
    if any(_is_list_of_text(value) for value in values.values()):
        return _read_many(row, values)
    before = _read_before(row)
    if all(isinstance(side, str) and conversations.is_transcript(side) for side in values.values()):
        texts = [read_string(name, side) for name, side in values.items()]
        sides = dict(zip(values, parse_transcripts(texts), strict=True))
    else:
        strip = _is_transcript(row)
        sides = {name: _read_side(name, side, strip=strip) for name, side in values.items()}
    chosen, rejected = (_with_before(name, before, side) for name, side in sides.items())
    if chosen[:-1] != rejected[:-1]:
        raise Drop("whose sides differ before the last turn")
    messages = chosen[:-1] if before is not None else _behind_system(row, chosen[:-1])
    exchange = _as_ranking(messages, [chosen[-1].content, rejected[-1].content], [1, 2])
    return replace(exchange, remark=_repeated_prompt(row, exchange.responses))


def _is_transcript(row: Row) -> bool:
    """Return whether the prompt is a transcript, whose turns stand between white space."""
    prompt = row.get("prompt")
    return isinstance(prompt, str) and conversations.is_transcript(prompt)


def _repeated_prompt(row: Row, replies: Sequence[Any]) -> str:
    """Return a remark on texts that begin with the prompt; short ones may well answer so."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or len(prompt) < _LONG:
        return ""
    if not all(isinstance(reply, str) and reply.startswith(prompt) for reply in replies):
        return ""
    return "rows have replies that begin with the whole prompt, which is then read twice"


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _read_many(row: Row, values: Mapping[str, Any]) -> Exchange:
    """Read several chosen and several rejected replies, which tie among themselves."""
    sides = []
    for name, value in values.items():
        items = [value] if isinstance(value, str) else read_list(name, value)
        replies = [read_string(f"{name}[{k}]", item) for k, item in enumerate(items)]
        if not replies or not all(reply.strip() for reply in replies):
            raise Drop("with an empty response")
        sides.append(replies)
    ranks = [rank for rank, replies in enumerate(sides, start=1) for _ in replies]
    return _as_ranking(_needed_before(row, "chosen"), [*sides[0], *sides[1]], ranks)


def _read_side(name: str, value: Any, *, strip: bool = False) -> Turns:
    """Read a reply, or turns that end with one; `strip` takes white space from a text."""
    if conversations.is_turns(value):
        turns = read_turns(name, value)
        if not turns or turns[-1].role != "assistant":
            problem = "the last message is not the assistant's"
            raise ValueError(f"{name}: {problem}, expected its reply")
        return turns
    reply = read_string(name, value)
    if not reply.strip():
        raise Drop("with an empty response")
    return (Message("assistant", reply.strip() if strip else reply),)


def _with_before(name: str, before: Turns | None, turns: Turns) -> Turns:
    """Return a whole conversation of turns that continue the prompt, or repeat it."""
    if turns[0].role == "assistant":
        if before is None:
            raise ValueError(
                f"{name}: a reply without its prompt, expected a column prompt, messages that "
                "begin with the prompt, or a transcript '\\n\\nHuman: ... \\n\\nAssistant: ...'"
            )
        return (*before, *turns)
    if before is None:
        return turns
    # A side may leave out the beginning that the prompt has, never its end.
    if is_end(before, turns[:-1]):
        return (*before, turns[-1])
    if len(before) >= len(turns) or agree(before, turns[:-1]) is None:
        raise Drop("that contradict their prompt")
    return turns


def _read_ranked(row: Row) -> Exchange:
    """Read responses and their ranks, 1 for the best."""
    values = [
        int(item) if isinstance(item, float) and item.is_integer() else item
        for item in read_list("ranks", row["ranks"])
    ]
    ranks = read_integers("ranks", values)
    return _as_ranking(_needed_before(row, "responses"), _read_responses(row), ranks)


def _read_scored(row: Row) -> Exchange:
    """Read responses and their scores, of which more is better and equal ones tie."""
    items = read_list("scores", row["scores"])
    scores = [as_number(f"scores[{k}]", item) for k, item in enumerate(items)]
    return _as_ranking(
        _needed_before(row, "responses"), _read_responses(row), ranks_of_scores(scores)
    )


def _read_best(row: Row) -> Exchange:
    """Read responses and the index of the best, counted from 0; the others tie."""
    responses = _read_responses(row)
    best = as_number("best", row["best"])
    if best not in range(len(responses)):
        expected = f"a whole number from 0 to {len(responses) - 1}"
        raise ValueError(f"best: {best:g}, expected {expected}")
    ranks = [1 if k == best else 2 for k in range(len(responses))]
    return _as_ranking(_needed_before(row, "responses"), responses, ranks)


def _read_responses(row: Row) -> list[str]:
    items = read_list("responses", row["responses"])
    replies = []
    for k, item in enumerate(items):
        name = f"responses[{k}]"
        if conversations.is_turns(item):
            turns = _read_side(name, item)
            if len(turns) > 1:
                raise ValueError(f"{name}: {len(turns)} turns, expected one reply")
            item = turns[0].content
        replies.append(read_string(name, item))
    return replies


def _needed_before(row: Row, name: str) -> Turns:
    before = _read_before(row)
    if before is None:
        raise ValueError(f"{name}: no prompt beside it, expected a column prompt or messages")
    return before


def _as_ranking(messages: Turns, responses: Sequence[str], ranks: Sequence[int]) -> Exchange:
    """Return a ranking; equal texts tie, or at different ranks among others are no ranking."""
    check_turns(messages)
    if not messages or messages[-1].role != "user":
        raise Drop("whose turns do not alternate")
    if len(set(responses)) == 1:
        ranks = [1] * len(ranks)
    ranks_of: dict[str, int] = {}
    if len(ranks) == len(responses):  # else the record complains
        for response, rank in zip(responses, ranks, strict=True):
            if ranks_of.setdefault(response, rank) != rank:
                raise Drop("with equal responses at different ranks")
    return Exchange(messages, tuple(responses), tuple(ranks))


_DIALOGUE = (Demonstration, Prompt)
_RANKING = (Comparison, Demonstration, Prompt)

FORMS = (
    Form(("messages",), "messages", partial(_read_messages, name="messages"), _DIALOGUE),
    Form(("completion",), "prompt + completion", _read_completion, _DIALOGUE),
    Form(("question", "answer"), "question + answer", _read_answer, _DIALOGUE),
    Form(("instruction", "output"), "instruction + output", _read_output, _DIALOGUE),
    Form(
        ("conversations",),
        "conversations",
        partial(_read_messages, name="conversations"),
        _DIALOGUE,
    ),
    Form(
        ("completion", "label"),
        "prompt + completion + label",
        _read_completion,
        (Thumb, *_DIALOGUE),
    ),
    Form(("chosen", "rejected"), "prompt + chosen + rejected", _read_pair, _RANKING),
    Form(("responses", "ranks"), "prompt + responses + ranks", _read_ranked, _RANKING),
    Form(("responses", "scores"), "prompt + responses + scores", _read_scored, _RANKING),
    Form(("responses", "best"), "prompt + responses + best", _read_best, _RANKING),
    *(Form((name,), name, _read_question, (Prompt,)) for name in _QUESTIONS),
    Form(("text",), "text", _read_transcript, _DIALOGUE),
)
