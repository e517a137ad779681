"""Forms of rows: every form in every kind of source becomes the records it means, or says why."""

import csv
import gzip
import io
import json
import sys
import types
from datetime import date
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest
from tests_support import ROOT

from rlhf_jax.data import forms
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    LabelledText,
    Message,
    Prompt,
    Thumb,
)
from rlhf_jax.data.sources import holds, load

# Turns as rows have them, and as records have them.


def turn(role, content):
    return {"role": role, "content": content}


def said(*contents, system=None):
    """The messages of a conversation that the user begins."""
    roles = ("user", "assistant")
    first = (Message("system", system),) if system else ()
    return (*first, *(Message(roles[k % 2], content) for k, content in enumerate(contents)))


BE = turn("system", "be brief")
ASK, ANSWER, MORE = turn("user", "q"), turn("assistant", "a"), turn("user", "and?")
GOOD, BAD = turn("assistant", "good"), turn("assistant", "bad")
TOLD, BETTER, WORSE = said("q", "a", "and?"), ("good", "bad"), (1, 2)
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: and?\n\nAssistant: "
# The columns of HuggingFaceH4/ultrafeedback_binarized.
H4 = {
    "prompt": "q",
    "prompt_id": "8f2",
    "chosen": [ASK, GOOD],
    "rejected": [ASK, BAD],
    "messages": [ASK, GOOD],
    "score_chosen": 8.0,
    "score_rejected": 3.5,
}
SHAREGPT = [
    {"from": "human", "value": "q"},
    {"from": "gpt", "value": "a"},
    {"from": "human", "value": "and?"},
]

# The name of a form, a row in its original columns, and the record that it is.
FORMS = {
    "pair of texts": (
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        Comparison(said("q"), BETTER, WORSE),
    ),
    "pair of last turns": (
        {"prompt": [ASK, ANSWER, MORE], "chosen": [GOOD], "rejected": [BAD]},
        Comparison(TOLD, BETTER, WORSE),
    ),
    "pair of conversations": (H4, Comparison(said("q"), BETTER, WORSE)),
    "pair of conversations of several turns": (
        H4 | {"chosen": [ASK, ANSWER, MORE, GOOD], "rejected": [ASK, ANSWER, MORE, BAD]},
        Comparison(TOLD, BETTER, WORSE),
    ),
    "pair of conversations with a system turn": (
        {"prompt": "q", "chosen": [BE, ASK, GOOD], "rejected": [BE, ASK, BAD]},
        Comparison(said("q", system="be brief"), BETTER, WORSE),
    ),
    "implicit prompt in messages": (
        {"chosen": [BE, ASK, ANSWER, MORE, GOOD], "rejected": [BE, ASK, ANSWER, MORE, BAD]},
        Comparison(said("q", "a", "and?", system="be brief"), BETTER, WORSE),
    ),
    "implicit prompt in transcripts": (
        {"chosen": f"{HH}good", "rejected": f"{HH}bad"},
        Comparison(TOLD, BETTER, WORSE),
    ),
    "pair of single messages": (  # of LLaMA-Factory
        {
            "conversations": SHAREGPT,
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        Comparison(TOLD, BETTER, WORSE),
    ),
    "pair behind a system column": (  # of Intel/orca_dpo_pairs
        {"system": "be brief", "question": "q", "chosen": "good", "rejected": "bad"},
        Comparison(said("q", system="be brief"), BETTER, WORSE),
    ),
    "pair behind a transcript": (  # of Dahoas/full-hh-rlhf
        {"prompt": HH, "response": " good", "chosen": " good", "rejected": " bad"},
        Comparison(TOLD, BETTER, WORSE),
    ),
    "pair of equal texts": (
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        Comparison(said("q"), ("same", "same"), (1, 1)),
    ),
    "several chosen and rejected": (  # of allenai/reward-bench-2
        {"id": "7", "prompt": "q", "chosen": ["a", "b"], "rejected": ["c", "d"], "num_correct": 2},
        Comparison(said("q"), ("a", "b", "c", "d"), (1, 1, 2, 2)),
    ),
    "responses and ranks": (
        {"messages": [BE, ASK], "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        Comparison(said("q", system="be brief"), ("a", "b", "c"), (2, 1, 2)),
    ),
    "responses and scores": (
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [0.5, 0.5, -1.0]},
        Comparison(said("q"), ("a", "b", "c"), (1, 1, 3)),
    ),
    "responses and the best": (
        {"prompt": [ASK, ANSWER, MORE], "responses": ["a", "b", "c"], "best": 1},
        Comparison(TOLD, ("a", "b", "c"), (2, 1, 2)),
    ),
    "thumb up": (
        {"prompt": "q", "completion": "good", "label": True},
        Thumb(said("q"), "good", True),
    ),
    "thumb down in messages": (  # of trl-lib/kto-mix-14k
        {"prompt": [ASK, ANSWER, MORE], "completion": [BAD], "label": False},
        Thumb(TOLD, "bad", False),
    ),
    "completion": ({"prompt": "q", "completion": "a"}, Demonstration(said("q", "a"))),
    "completion of several turns": (
        {"prompt": [BE, ASK], "completion": [ANSWER, MORE, GOOD]},
        Demonstration(said("q", "a", "and?", "good", system="be brief")),
    ),
    "messages": ({"messages": [BE, ASK, ANSWER]}, Demonstration(said("q", "a", system="be brief"))),
    "messages beside their question": (  # of HuggingFaceH4/no_robots
        {"prompt": "q", "prompt_id": "3", "messages": [ASK, ANSWER, MORE, GOOD], "category": "x"},
        Demonstration(said("q", "a", "and?", "good")),
    ),
    "ShareGPT": (
        {"id": "3", "conversations": [{"from": "system", "value": "be brief"}, *SHAREGPT[:2]]},
        Demonstration(said("q", "a", system="be brief")),
    ),
    "ShareGPT that ends with the user": (
        {"conversations": SHAREGPT},
        Demonstration(said("q", "a")),
    ),
    "Alpaca": (
        {"instruction": "add", "input": "1 2", "output": "3", "text": "Below is an instruction"},
        Demonstration(said("add\n\n1 2", "3")),
    ),
    "Alpaca with empty input": (
        {"instruction": "sing", "input": "", "output": "la"},
        Demonstration(said("sing", "la")),
    ),
    "Alpaca without input": (
        {"instruction": "sing", "output": "la"},
        Demonstration(said("sing", "la")),
    ),
    "question and answer": (
        {"question": "1+1?", "answer": "#### 2"},
        Demonstration(said("1+1?", "#### 2")),
    ),
    "transcript": ({"text": f"{HH}good"}, Demonstration(said("q", "a", "and?", "good"))),
    "best of a pair": (H4, Demonstration(said("q", "good"))),
    "best of a ranking": (
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
        Demonstration(said("q", "b")),
    ),
    "prompt": ({"prompt": "q"}, Prompt(said("q"))),
    "prompt of messages": ({"prompt": [BE, ASK]}, Prompt(said("q", system="be brief"))),
    "prompt of a conversation with its answer": (
        {"messages": [ASK, ANSWER, MORE, GOOD]},
        Prompt(TOLD),
    ),
    "prompt with an answer": (
        {"prompt": "1+1?", "answer": "2", "level": 3},
        Prompt(said("1+1?"), {"answer": "2", "level": "3"}),
    ),
    "prompt of a question and its answer": (
        {"question": "1+1?", "answer": "#### 2"},
        Prompt(said("1+1?"), {"answer": "#### 2"}),
    ),
    "prompt with metadata": (
        {"prompt": "1+1?", "metadata": {"answer": "2", "tests": ["f(1) == 2"]}},
        Prompt(said("1+1?"), {"answer": "2", "tests": '["f(1) == 2"]'}),
    ),
    "prompt of a pair": ({"chosen": f"{HH}good", "rejected": f"{HH}bad"}, Prompt(TOLD)),
    "document": ({"text": "plain"}, Document("plain")),
    "labelled text": ({"text": "fine", "label": "good"}, LabelledText("fine", "good")),
}


# The kinds of source, each as other programs write it. A writer returns the source.


def cells(rows):
    """The text of a CSV file: what is no text stands in its cell as JSON, as str() of a bool."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    for row in rows:
        nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list | dict)}
        writer.writerow(row | nested)
    return file.getvalue()


def text_file(name, write):
    def make(folder, rows, monkeypatch):
        content = write(rows).encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return f"{name.split('.')[1]}:{folder / name}"

    return make


def parquet(folder, rows, monkeypatch):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return f"parquet:{folder}/rows.parquet"


def shards(folder, rows, monkeypatch):
    """A clone of a data set of the hub."""
    (folder / "data").mkdir()
    path = folder / "data" / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return f"hf:{folder}"


def save_to_disk(folder, rows):
    """Write what `datasets.Dataset.save_to_disk` writes, without the package."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    name = "data-00000-of-00001.arrow"
    stream = pyarrow.ipc.new_stream(str(folder / name), table.schema)
    stream.write_table(table)
    stream.close()
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")


def saved(folder, rows, monkeypatch):
    save_to_disk(folder / "saved", rows)
    return f"hf:{folder}/saved"


def saved_splits(folder, rows, monkeypatch):
    save_to_disk(folder / "saved" / "train", rows)
    save_to_disk(folder / "saved" / "test", [{"other": 1}])
    (folder / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    return f"hf:{folder}/saved"


def hub(folder, rows, monkeypatch):
    table = pyarrow.Table.from_pylist(rows).to_pylist()

    class Dataset(list):
        features = types.MappingProxyType({})

    fake = types.SimpleNamespace(load_dataset=lambda *_, **__: Dataset(table), ClassLabel=bytes)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("rlhf_jax.data.readers.find_spec", lambda name: fake)
    return "hub:org/name"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


CONTAINERS = {
    "jsonl": text_file("rows.jsonl", lines),
    "jsonl.gz": text_file("rows.jsonl.gz", lines),
    "json": text_file("rows.json", json.dumps),
    "json.gz": text_file("rows.json.gz", json.dumps),
    "csv": text_file("rows.csv", cells),
    "csv.gz": text_file("rows.csv.gz", cells),
    "parquet": parquet,
    "hf shards": shards,
    "hf saved": saved,
    "hf saved splits": saved_splits,
    "hub": hub,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_kind_of_source(tmp_path, monkeypatch, form, container):
    row, expected = FORMS[form]
    source = CONTAINERS[container](tmp_path, [row, row], monkeypatch)
    if form == "several chosen and rejected" and container.startswith("csv"):
        with pytest.raises(ValueError, match=r"rows\.csv.*:2: chosen: a list of texts, .*several"):
            load(source, type(expected), split="train", data_dir="")
        return
    assert load(source, type(expected), split="train", data_dir="") == [expected] * 2
    assert holds(source, type(expected), split="train", data_dir="")


# What is dropped, cut, passed over, and counted.

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}
TOOL = {"role": "tool", "content": "3"}


@pytest.fixture
def read(tmp_path):
    def read(record_type, *rows, options=""):
        (tmp_path / "rows.jsonl").write_text(lines(rows))
        return load(
            f"jsonl:{tmp_path}/rows.jsonl{options}", record_type, split="train", data_dir=""
        )

    return read


@pytest.mark.parametrize(
    ("record_type", "row", "reason"),
    [
        (Comparison, {"chosen": [ASK, GOOD], "rejected": [MORE, BAD]}, "whose sides differ before"),
        (
            Comparison,
            PAIR | {"chosen": [BE, ASK, GOOD], "rejected": [ASK, BAD]},
            "whose sides diff",
        ),
        (
            Comparison,
            PAIR | {"chosen": [MORE, GOOD], "rejected": [MORE, BAD]},
            "that contradict th",
        ),
        (
            Comparison,
            {"prompt": [ASK, ANSWER, MORE], "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
            "that contradict their prompt",
        ),
        (Comparison, PAIR | {"prompt": [BE, TOOL]}, "with a turn of the role tool"),
        (Comparison, PAIR | {"rejected": " "}, "with an empty response"),
        (Comparison, PAIR | {"prompt": "\n"}, "with an empty prompt"),
        (Comparison, PAIR | {"chosen": []}, "with an empty response"),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b", "a"], "ranks": [1, 2, 3]},
            "with equal responses at different ranks",
        ),
        (Comparison, {"chosen": HH, "rejected": f"{HH}bad"}, "with an empty response"),
        (Comparison, PAIR | {"prompt": [ASK, ANSWER]}, "whose turns do not alternate"),
        (Demonstration, {"messages": [ASK, ASK, ANSWER]}, "whose turns do not alternate"),
        (
            Demonstration,
            {"messages": [ASK, ANSWER, BE, ASK, GOOD]},
            "with a system turn that is no",
        ),
        (Demonstration, {"conversations": SHAREGPT[1:]}, "that begin with the assistant"),
        (
            Demonstration,
            {"messages": [turn("developer", "x"), ASK, GOOD]},
            "with a turn of the role d",
        ),
        (
            Demonstration,
            {"conversations": [SHAREGPT[0], {"from": "function_call", "value": "{}"}]},
            "with a turn of the role function_call",
        ),
        (
            Demonstration,
            {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
            "with a call of a tool",
        ),
        (
            Demonstration,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "with content that is not one part of text",
        ),
        (Demonstration, {"messages": [ASK, turn("assistant", "")]}, "with an empty turn"),
        (Demonstration, {"messages": [ASK]}, "without a reply"),
        (Demonstration, {"question": None, "answer": "a"}, "with an empty prompt"),
        (Prompt, {"prompt": None}, "with an empty prompt"),
        (Demonstration, {"messages": [ASK, ANSWER], "tools": "[{}]"}, "with tools"),
        (Demonstration, {"prompt": "q", "completion": "bad", "label": False}, "with a thumb down"),
        (Thumb, {"prompt": "q", "completion": "", "label": True}, "with an empty response"),
        (Prompt, {"prompt": [BE]}, "without a question"),
        (Prompt, {"prompt": [], "system": "be brief"}, "without a question"),
    ],
)
def test_rows_that_no_record_can_hold_are_dropped_and_counted(
    read, capsys, record_type, row, reason
):
    good = PAIR if record_type is Comparison else {"prompt": "q", "completion": "a", "label": True}
    assert len(read(record_type, good, row, row)) == 1
    printed = capsys.readouterr().out
    assert f"2 of 3 records dropped: 2 {reason}" in printed
    with pytest.raises(ValueError, match=r"1 of 1 records dropped: 1 .*; nothing is left"):
        read(record_type, row)


@pytest.mark.parametrize(
    ("record_type", "row", "complaint"),
    [
        (
            Demonstration,
            {"prompt": "q", "completion": "a", "question": "r"},
            "fields: prompt and question are two readings that differ, expected one; choose by",
        ),
        (
            Demonstration,
            {"question": "q", "answer": "a", "instruction": "q", "output": "b"},
            "fields: question + answer and instruction + output are two readings that differ, "
            "expected one; choose by naming its columns, as in ?columns=instruction,output",
        ),
        (
            Demonstration,
            H4 | {"messages": [ASK, BAD]},
            "fields: messages and prompt + chosen + rejected are two readings that differ",
        ),
        (
            Prompt,
            {"prompt": "other", "messages": [ASK, ANSWER]},
            "fields: prompt and messages are two readings that differ",
        ),
        (Comparison, {"chosen": "good", "rejected": "bad"}, "chosen: a reply without its prompt"),
        (Comparison, {"responses": ["a", "b"], "ranks": [1, 2]}, "responses: no prompt beside it"),
        (
            Comparison,
            {"prompt": "q", "completion": "a", "label": True},
            "fields: found prompt, completion, label, expected prompt + chosen + rejected or pro",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "scores": [1]},
            "ranks: 1 ranks for 2",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, "high"]},
            "scores[1]: 'high', expected a number",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "best": 2},
            "best: 2, expected a whole",
        ),
        (Thumb, {"prompt": "q", "completion": "a", "label": 2}, "label: 2, expected true or false"),
        (
            Thumb,
            {"prompt": "q", "completion": "a", "label": "good"},
            "label: 'good', expected true",
        ),
        (
            Demonstration,
            {"text": "plain"},
            "text: no transcript of Human: and Assistant:, expected",
        ),
        (Demonstration, {"messages": "hello"}, "messages: str, expected messages"),
        (
            Demonstration,
            {"conversations": [{"from": "robot", "value": "x"}]},
            "conversations[0].from: unknown role 'robot', expected one of human, gpt, system",
        ),
        (
            Demonstration,
            {"messages": [{"role": "user"}]},
            "messages[0].content: missing field, expected role and content, found role",
        ),
        (
            Demonstration,
            {"messages": [3]},
            "messages[0]: int, expected an object with role and con",
        ),
        # Sizes and depths that nothing can hold.
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2**31]},
            "ranks[1]: rank 2147483648, expected at most 2147483647",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 10**400]},
            "ranks[1]: rank of more than 20 digits, expected at most 2147483647",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "ranks": [1, -(10**400)]},
            "ranks[1]: rank of more than 20 digits, expected 1 for the best",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, 10**400]},
            "scores[1]: a number of more than 20 digits, expected a number",
        ),
        (
            Comparison,
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, float("inf")]},
            "scores[1]: inf, expected a number",
        ),
    ],
)
def test_errors_name_the_line_the_field_and_the_remedy(read, tmp_path, record_type, row, complaint):
    with pytest.raises(ValueError) as error:
        read(record_type, row)
    assert str(error.value).startswith(f"{tmp_path}/rows.jsonl:1: {complaint}")
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("9" * 5000, "json: a number of more than 4300 digits, expected a JSON object"),
        ("[" * 100_000 + "]" * 100_000, "json: lists or objects nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "json: lists or objects nested too deeply"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_absurd_json_is_an_error_with_its_place(tmp_path, kind, value, complaint):
    row = f'{{"prompt": "q", "responses": ["a", "b"], "ranks": {value}}}'
    content = {
        "jsonl": row,
        "json": f"[{row}]",
        "csv": f'ranks\n"{value.replace(chr(34), chr(34) * 2)}"',
    }
    path = tmp_path / f"rows.{kind}"
    path.write_text(content[kind])
    with pytest.raises(ValueError) as error:
        load(f"{kind}:{path}", Comparison, split="train", data_dir="")
    place = {"jsonl": ":1: ", "json": ": ", "csv": ":2: ranks: "}[kind]
    assert str(error.value).startswith(f"{path}{place}{complaint}")


def test_depth_that_json_allows_is_no_traceback_either(read, tmp_path):
    deep = json.loads("[" * 900 + "]" * 900)
    for row in ({"prompt": "q", "x": deep}, {"prompt": deep}, {"prompt": "q", "metadata": deep}):
        try:
            read(Prompt, row)
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path}/rows.jsonl:1: ")  # noqa: PT017
            assert len(str(error)) < 400  # noqa: PT017


def test_what_no_reader_has_foreseen_is_an_error_of_the_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        lines([{"prompt": {"text": "q", "role": "prompter", "replies": [3]}}])
    )
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: row: AttributeError: .* rows of oasst$"):
        load(f"oasst@jsonl:{tmp_path}/rows.jsonl", Comparison, split="train", data_dir="")


def test_what_is_cut_and_passed_over_is_said_in_a_line_each(read, capsys):
    named = [ASK | {"name": "Ann"}, ANSWER]
    assert read(Prompt, {"messages": named}, {"prompt": "q", "n": 1}) == [
        Prompt(said("q")),
        Prompt(said("q"), {"n": "1"}),
    ]
    assert (
        capsys.readouterr()
        .out.splitlines()[0]
        .endswith(
            "rows.jsonl train: 1 of 2 prompts without their last turn, which was the assistant's"
        )
    )
    rows = {"messages": named, "id": 3}, {"conversations": SHAREGPT, "id": None, "date": "x"}
    assert read(Demonstration, *rows) == [Demonstration(said("q", "a"))] * 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("1 of 2 demonstrations without their last turn, which was the user's")
    assert second.endswith("passed over 3 other columns: id, messages.name, date")
    many = {"text": "x"} | {f"c{k}": k for k in range(20)}
    read(Document, many)
    assert capsys.readouterr().out.endswith(": c0, c1, c2, c3, c4, c5, c6, c7, ...\n")


def test_replies_that_repeat_their_prompt_are_pointed_out(read, capsys):
    row = {"prompt": "Tell me about foxes, please."}
    whole = {name: f"{row['prompt']} They are {name}." for name in ("chosen", "rejected")}
    assert read(Comparison, row | whole, PAIR)[0].responses == tuple(whole.values())
    line = "1 of 2 rows have replies that begin with the whole prompt, which is then read twice"
    assert line in capsys.readouterr().out


def test_the_columns_of_one_reading_can_be_chosen(read):
    row = {"prompt": "q", "completion": "a", "question": "r", "answer": "b", "topic": "t"}
    with pytest.raises(ValueError, match=r"two readings"):
        read(Demonstration, row)
    for columns, expected in (
        ("prompt,completion", said("q", "a")),
        ("question,answer", said("r", "b")),
    ):
        options = f"?columns={columns}"
        assert read(Demonstration, row, options=options) == [Demonstration(expected)]
    (kept,) = read(Prompt, row, options="?columns=question,answer")
    assert kept == Prompt(said("r"), {"answer": "b"})


def test_groups_are_split_by_a_plain_column(read):
    rows = [PAIR | {"prompt": f"q{k}", "topic": f"t{k % 5}"} for k in range(40)]
    parts = [
        read(Comparison, *rows, options=f"?by=topic&train=train[{part}]")
        for part in (":50%", "50%:")
    ]
    topics = [{item.metadata["topic"] for item in part} for part in parts]
    assert sum(map(len, parts)) == 40
    assert not topics[0] & topics[1]


def test_one_part_of_text_is_text(read):
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER]
    assert read(Demonstration, {"messages": parts}) == [Demonstration(said("q", "a"))]


def test_history_comes_first(read):
    row = {"instruction": "and?", "output": "good", "system": "be brief", "history": [["q", "a"]]}
    assert read(Demonstration, row) == [
        Demonstration(said("q", "a", "and?", "good", system="be brief"))
    ]


def test_a_text_file_of_one_prompt_a_line(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes("\ufeffwhat?\r\n\nwhy? \u2028 so\n".encode())
    assert load(f"lines:{tmp_path}/prompts.txt", Prompt, split="train", data_dir="") == [
        Prompt(said("what?")),
        Prompt(said("why? \u2028 so")),
    ]
    assert "1 of 3 records dropped: 1 with an empty prompt" in capsys.readouterr().out


def test_a_question_with_its_answer_is_no_conversation_that_was_cut(read, capsys):
    read(Prompt, {"question": "q", "answer": "a"}, {"prompt": "q", "completion": "a"})
    assert capsys.readouterr().out == ""


# Kinds of source.


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "rows.csv"
    quoted = '\ufeffprompt,completion\r\n"say ""hi"",\r\nplease","[""a""]"\r\n\r\nq,{x}\r\n'
    path.write_bytes(quoted.encode())

    def read(record_type=Demonstration):
        return load(f"csv:{path}", record_type, split="train", data_dir="")

    assert read() == [
        Demonstration(said('say "hi",\r\nplease', '["a"]')),
        Demonstration(said("q", "{x}")),
    ]
    path.write_text(f"prompt,completion\nq,{'a' * 200_000}\n")  # longer than csv's own limit
    assert len(read()[0].messages[-1].content) == 200_000
    for content, complaint in {
        'prompt,completion\n"a\nb",c\nd\n': ":4: 1 columns, expected 2 as in the header",
        "prompt,prompt\na,b\n": ":1: column 'prompt' twice, expected once",
        'prompt,completion\na,"b\n': ":2: csv: unexpected end of data, expected a CSV file",
        "prompt;completion\na;b\n": ":2: fields: found prompt;completion, expected messages or",
        "prompt,completion\nq,\"[{'role': 'assistant', 'content': 'a'}]\"\n": (
            ":2: completion: messages as Python prints them, expected JSON in the cell"
        ),
        "prompt,chosen,rejected\nq,\"['a' 'b']\",\"['c']\"\n": ":2: chosen: a list of texts, which",
        "messages\n[1\n": ":2: messages: json: Expecting ',' delimiter at column 3, expected",
    }.items():
        path.write_text(content)
        with pytest.raises(ValueError) as error:
            read()
        assert str(error.value).startswith(f"{path}{complaint}")
    path.write_text("")
    with pytest.raises(ValueError, match="has no records"):
        read()


def test_splits_of_every_kind_of_folder(tmp_path):
    rows = [{"text": str(k)} for k in range(4)]

    def texts(source, split):
        return [item.text for item in load(source, Document, split=split, data_dir="")]

    save_to_disk(tmp_path / "one", rows)
    assert texts(f"hf:{tmp_path}/one", "train[1:50%]") == ["1"]
    with pytest.raises(ValueError, match=r"split: 'test' of the single data set .*\?train=train"):
        texts(f"hf:{tmp_path}/one", "test")
    for split in ("train", "test"):
        save_to_disk(tmp_path / "both" / split, [{"text": split}])
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(f"hf:{tmp_path}/both", "test") == ["test"]
    assert texts(f"hf:{tmp_path}:both", "train") == ["train"]
    with pytest.raises(FileNotFoundError, match=r"split: 'dev', expected one of train, test"):
        texts(f"hf:{tmp_path}/both", "dev")
    for k in (0, 1):
        table = pyarrow.Table.from_pylist(rows[2 * k : 2 * k + 2])
        pyarrow.parquet.write_table(table, tmp_path / f"train-0000{k}-of-00002.parquet")
    assert texts(f"parquet:{tmp_path}", "train") == ["0", "1", "2", "3"]
    assert texts(f"parquet:{tmp_path}/train-00001-of-00002.parquet", "train") == ["2", "3"]
    (tmp_path / "test.csv").write_text("text\nx\n")
    (tmp_path / "dev.json.gz").write_bytes(gzip.compress(b'[{"text": "y"}]'))
    assert texts(f"hf:{tmp_path}", "test") == ["x"]
    assert texts(f"hf:{tmp_path}", "dev") == ["y"]
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"split: 'test' as \.csv and \.json, expected files of one"
    ):
        texts(f"hf:{tmp_path}", "test")


def test_damaged_tables_are_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"x\.parquet: parquet: .*, expected a whole parquet file"):
        load(f"parquet:{tmp_path}/x.parquet", Document, split="train", data_dir="")
    with pytest.raises(FileNotFoundError, match=r"y\.parquet: no such file, expected parquet"):
        load(f"parquet:{tmp_path}/y.parquet", Document, split="train", data_dir="")
    save_to_disk(tmp_path / "saved", [{"text": "x"}])
    (tmp_path / "saved" / "data-00000-of-00001.arrow").write_bytes(b"1234567890")
    with pytest.raises(ValueError, match=r"arrow: .*, expected a file of save_to_disk"):
        load(f"hf:{tmp_path}/saved", Document, split="train", data_dir="")
    (tmp_path / "saved" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no such file, though state\.json beside it names"
    ):
        load(f"hf:{tmp_path}/saved", Document, split="train", data_dir="")


def test_classes_have_their_names_in_tables_of_hugging_face(tmp_path):
    names = {"_type": "ClassLabel", "names": ["neg", "pos"]}
    info = json.dumps({"info": {"features": {"text": {"_type": "Value"}, "label": names}}})
    table = pyarrow.Table.from_pylist([{"text": "x", "label": 1}])
    table = table.replace_schema_metadata({"huggingface": info})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    for source in (f"parquet:{tmp_path}/train.parquet", f"hf:{tmp_path}"):
        found = load(source, LabelledText, split="train", data_dir="")
        assert found == [LabelledText("x", "pos")]


def test_a_path_without_its_kind_says_which(tmp_path):
    (tmp_path / "x.jsonl").touch()
    with pytest.raises(ValueError, match=r"x\.jsonl: a file, expected a folder; a file is jsonl:"):
        load(f"hf:{tmp_path}/x.jsonl", Document, split="train", data_dir="")
    with pytest.raises(ValueError, match=rf"; for this file jsonl:{tmp_path}/x\.jsonl$"):
        load(f"{tmp_path}/x.jsonl", Document, split="train", data_dir="")
    with pytest.raises(ValueError, match=rf"; for this folder hf:{tmp_path}$"):
        load(str(tmp_path), Document, split="train", data_dir="")


# The example files.


@pytest.mark.parametrize(
    ("source", "record_type"),
    [
        ("jsonl:{}/demonstrations.jsonl", Demonstration),
        ("jsonl:{}/demonstrations.jsonl", Prompt),
        ("jsonl:{}/comparisons.jsonl", Comparison),
        ("jsonl:{}/comparisons.jsonl", Demonstration),
        ("jsonl:{}/comparisons.jsonl", Prompt),
        ("jsonl:{}/thumbs.jsonl", Thumb),
        ("lines:{}/prompts.txt", Prompt),
        ("jsonl:{}/prompts_with_answers.jsonl", Prompt),
    ],
)
def test_example_files_hold_five_records_each(source, record_type):
    source = source.format(f"{ROOT}/experiments/yours/examples")
    assert len(load(source, record_type, split="train", data_dir="")) == 5


def test_the_answers_of_the_example_reach_a_reward():
    source = f"jsonl:{ROOT}/experiments/yours/examples/prompts_with_answers.jsonl"
    prompts = load(source, Prompt, split="train", data_dir="")
    answers = [prompt.metadata["answer"] for prompt in prompts]
    assert answers == ["5", "8", "8", "9", "It is one more than 1.\n#### 2"]
    assert prompts[-1].metadata["level"] == "easy"
    assert prompts[3].messages[0].role == "system"


# Found by reading odd files of other people.


def _read_one(tmp_path, record_type, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    return load(f"jsonl:{path}", record_type, split="train", data_dir="")[0]


def test_a_question_may_have_a_number_for_an_answer(tmp_path):
    line = '{"question": "What is 4 + 4?", "answer": 8}'
    assert _read_one(tmp_path, Prompt, line).metadata == {"answer": "8"}
    assert _read_one(tmp_path, Demonstration, line).messages[-1].content == "8"


def test_a_column_that_contradicts_the_metadata_is_an_error(tmp_path):
    same = '{"prompt": "p", "answer": 5, "metadata": {"answer": "5"}}'
    assert _read_one(tmp_path, Prompt, same).metadata == {"answer": "5"}
    with pytest.raises(ValueError, match=r"answer and metadata\.answer are two readings"):
        _read_one(tmp_path, Prompt, '{"prompt": "p", "answer": 5, "metadata": {"answer": "6"}}')


def test_decimals_and_dates_of_tables_have_no_quotes():
    row = {"prompt": "p", "answer": Decimal("3.10"), "when": date(2020, 1, 2)}
    assert forms.read_row(Prompt, row).record.metadata == {"answer": "3.10", "when": "2020-01-02"}


def test_transcripts_that_repeat_their_prompt_are_not_said_to_be_read_twice():
    prompt = "\n\nHuman: what do bees make?\n\nAssistant:"
    row = {"prompt": prompt, "chosen": prompt + " Honey.", "rejected": prompt + " Jam."}
    record, remark, _ = forms.read_row(Comparison, row)
    assert record.responses == ("Honey.", "Jam.")
    assert remark == ""


@pytest.mark.parametrize(
    "line", ['{"prompt": "p", "prompt": "q"}', '{"prompt": "p", "metadata": {"a": 1, "a": 2}}']
)
def test_a_field_that_stands_twice_in_an_object_is_an_error(tmp_path, line):
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: json: field '(prompt|a)' twice"):
        _read_one(tmp_path, Prompt, line)


def test_rows_that_share_a_system_turn_are_held_out_by_their_questions(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"system": "be brief", "prompt": f"q{k}", "completion": "a"} for k in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = f"jsonl:{path}?by=prompt&train=train[:50%]&validation=train[50%:]"
    sizes = [
        len(load(source, Demonstration, split=split, data_dir=""))
        for split in ("train", "validation")
    ]
    assert sum(sizes) == 50
    assert min(sizes) > 10
