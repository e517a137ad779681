"""Records: the JSON form survives a round trip, and every way to break it is named."""

import pytest

from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    LabelledText,
    Message,
    Prompt,
    Thumb,
    from_dict,
    to_dict,
)

ASK = {"role": "user", "content": "what is the colour of the fox?"}
TELL = {"role": "assistant", "content": "red."}
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.mark.parametrize(
    ("record_type", "row"),
    [
        (Document, {"text": "the fox is red."}),
        (LabelledText, {"text": "a fine reply", "label": "good"}),
        (Thumb, {"messages": [ASK], "completion": "red.", "label": False}),
        (Prompt, {"messages": [ASK, TELL, ASK], "metadata": {"task": "ask"}}),
        (Prompt, {"messages": [ASK]}),
        (Prompt, {"messages": [SYSTEM, ASK, TELL, ASK]}),
        (Demonstration, {"messages": [ASK, TELL]}),
        (
            Comparison,
            {"messages": [ASK], "responses": ["red.", "blue.", "sky"], "ranks": [1, 2, 2]},
        ),
    ],
)
def test_round_trip(record_type, row):
    record = from_dict(record_type, row)
    assert isinstance(record, record_type)
    assert to_dict(record) == row
    assert from_dict(record_type, to_dict(record)) == record


def test_reading_makes_tuples_and_messages():
    record = from_dict(Comparison, {"messages": [ASK], "responses": ["a", "b"], "ranks": [2, 1]})
    assert record == Comparison((Message(**ASK),), ("a", "b"), (2, 1), {})


@pytest.mark.parametrize(
    ("record_type", "row", "complaint"),
    [
        (Thumb, {"messages": [ASK], "completion": "x", "label": 1}, "label: a number, expected tr"),
        (Thumb, {"messages": [ASK], "completion": "", "label": True}, "completion: empty text"),
        (Document, ["text"], "Document: a list, expected an object"),
        (Document, {}, "text: missing field, expected a Document with text"),
        (Document, {"text": 3}, "text: a number, expected a string"),
        (Document, {"text": None}, "text: null, expected a string"),
        (Document, {"text": ""}, "text: empty text, expected at least one character"),
        (
            Document,
            {"text": "a\ud800"},
            "text: half of a surrogate pair, expected text that UTF-8 can hold",
        ),
        (Document, {"text": "a", "txt": "b"}, "txt: unknown field, expected only text"),
        (LabelledText, {"text": "a", "label": ""}, "label: empty text"),
        (LabelledText, {"text": "a", "label": True}, "label: a boolean, expected a string"),
        (Prompt, {"messages": []}, "messages: none, expected at least one, the last of role user"),
        (Prompt, {"messages": "hello"}, "messages: a string, expected a list"),
        (
            Prompt,
            {"messages": ["hello"]},
            "messages[0]: a string, expected an object with role and content",
        ),
        (Prompt, {"messages": [{"role": "user"}]}, "messages[0].content: missing field"),
        (Prompt, {"messages": [{**ASK, "name": "Ann"}]}, "messages[0].name: unknown field"),
        (
            Prompt,
            {"messages": [{"role": "robot", "content": "be good"}, ASK]},
            "messages[0].role: unknown role 'robot', expected one of system, user, assistant",
        ),
        (
            Prompt,
            {"messages": [ASK, SYSTEM]},
            "messages[1].role: 'system', expected 'assistant': turns alternate",
        ),
        (
            Prompt,
            {"messages": [SYSTEM, SYSTEM, ASK]},
            "messages[1].role: 'system', expected 'user': turns alternate",
        ),
        (
            Prompt,
            {"messages": [SYSTEM]},
            "messages[0].role: 'system', expected 'user' to have the last word",
        ),
        (
            Prompt,
            {"messages": [ASK, ASK]},
            "messages[1].role: 'user', expected 'assistant': turns alternate",
        ),
        (Prompt, {"messages": [TELL]}, "messages[0].role: 'assistant', expected 'user'"),
        (
            Prompt,
            {"messages": [ASK, TELL]},
            "messages[1].role: 'assistant', expected 'user' to have",
        ),
        (
            Prompt,
            {"messages": [ASK], "metadata": {"n": 3}},
            "metadata.n: a number, expected a string",
        ),
        (
            Prompt,
            {"messages": [ASK], "metadata": []},
            "metadata: a list, expected an object of strings",
        ),
        (
            Demonstration,
            {"messages": [ASK]},
            "messages[0].role: 'user', expected 'assistant' to have",
        ),
        (
            Demonstration,
            {"messages": [ASK, {**TELL, "content": ""}]},
            "messages[1].content: empty text",
        ),
    ],
)
def test_broken_rows_are_named(record_type, row, complaint):
    with pytest.raises(ValueError) as error:
        from_dict(record_type, row)
    assert str(error.value).startswith(complaint)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"ranks": [1]}, "ranks: 1 ranks for 2 responses, expected one rank a response"),
        ({"ranks": [1, 2**31]}, "ranks[1]: rank 2147483648, expected at most 2147483647"),
        ({"ranks": [0, 1]}, "ranks[0]: rank 0, expected 1 for the best"),
        ({"ranks": [1, 1.5]}, "ranks[1]: a number, expected an integer"),
        ({"ranks": [True, 2]}, "ranks[0]: a boolean, expected an integer"),
        ({"ranks": "12"}, "ranks: a string, expected a list"),
        ({"responses": ["a"], "ranks": [1]}, "responses: 1 of them, expected at least 2"),
        ({"responses": ["a", ""]}, "responses[1]: empty text, expected at least one character"),
        ({"responses": ["a", 2]}, "responses[1]: a number, expected a string"),
        ({"messages": [ASK, TELL]}, "messages[1].role: 'assistant', expected 'user'"),
    ],
)
def test_broken_comparisons_are_named(changes, complaint):
    row = {"messages": [ASK], "responses": ["a", "b"], "ranks": [1, 2], **changes}
    with pytest.raises(ValueError) as error:
        from_dict(Comparison, row)
    assert str(error.value).startswith(complaint)


def test_records_made_in_code_are_checked_too():
    with pytest.raises(ValueError, match="unknown role 'robot'"):
        Message("robot", "hello")
    with pytest.raises(ValueError, match="1 ranks for 2 responses"):
        Comparison((Message("user", "hello"),), ("a", "b"), (1,))
