"""Sources: written records come back, foreign rows are understood, broken ones are named."""

import gzip
import json
import sys
import types

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    LabelledText,
    Message,
    Prompt,
    Thumb,
)
from rlhf_jax.data.sources import load, stream, write_jsonl

ASK, TELL = Message("user", "colour of the fox?"), Message("assistant", "red.")
ROW = {
    "messages": [{"role": "user", "content": "colour of the fox?"}],
    "responses": ["a", "b"],
    "ranks": [1, 2],
}


def read(path, record_type=Comparison, split="train"):
    return load(f"jsonl:{path}", record_type, split=split, data_dir="unused")


# JSONL.


@pytest.mark.parametrize(
    "records",
    [
        [Document("the fox\nis red \u2028 \U0001f98a"), Document("b")],
        [Demonstration((ASK, TELL))],
        [Prompt((ASK, TELL, ASK), {"task": "ask"}), Prompt((ASK,))],
        [Comparison((ASK,), ("a", "b", "c"), (2, 1, 2), {"labeler": "7"})],
        [Thumb((ASK,), "a", True), Thumb((ASK, TELL, ASK), "b", False, {"labeler": "7"})],
        [LabelledText("fine", "good")],
    ],
)
def test_written_records_come_back(tmp_path, records):
    path = tmp_path / "deep" / "x.jsonl"
    write_jsonl(path, iter(records))
    assert read(path, type(records[0])) == records


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"messages": [', "json: Expecting value at column 15, expected a JSON object"),
        (b'{"text": "caf\xe9"}', "encoding: byte 0xe9 at column 14, expected UTF-8"),
        (b"", "line: blank, expected a JSON object"),
        (b"  \r", "line: blank, expected a JSON object"),
        (b"[1, 2]", "Comparison: a list, expected an object"),
        ({"ranks": None}, "ranks: null, expected a list"),
        ({"ranks": [1]}, "ranks: 1 ranks for 2 responses, expected one rank a response"),
        ({"responses": "ab"}, "responses: a string, expected a list"),
        ({"responses": ["a", ""]}, "responses[1]: empty text, expected at least one character"),
        (
            {"messages": [{"role": "robot", "content": "be good"}]},
            "messages[0].role: unknown role 'robot', expected one of system, user, assistant",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content: missing field"),
        (
            json.dumps({"messages": [], "ranks": [1]}).encode(),
            "fields: found messages, ranks, expected prompt + chosen + rejected or prompt + r",
        ),
    ],
)
def test_broken_lines_are_named(tmp_path, line, complaint):
    path = tmp_path / "x.jsonl"
    bad = json.dumps(ROW | line).encode() if isinstance(line, dict) else line
    path.write_bytes(b"\n".join([json.dumps(ROW).encode(), bad, json.dumps(ROW).encode()]) + b"\n")
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}:2: {complaint}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_stream_reads_row_by_row_and_again(tmp_path, suffix):
    lines = [json.dumps({"text": str(k)}) for k in range(9)] + ["broken"]
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes((gzip.compress if suffix else bytes)("\n".join(lines).encode()))
    records = stream(f"jsonl:{path}", Document, split="train", data_dir="unused")
    for _ in range(2):
        reading = iter(records)
        assert [next(reading).text for _ in range(9)] == [
            str(k) for k in range(9)
        ]  # the broken line is not read yet
        with pytest.raises(ValueError, match=r"x.jsonl.*:10: json"):
            next(reading)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "?train=train[:75%]",
        "?train=train[2:]",
        "?by=text&train=train[:50%]",
        "?duplicates=drop",
    ],
)
def test_a_stream_holds_what_load_loads(tmp_path, options):
    source = f"jsonl:{tmp_path / 'x.jsonl'}{options}"
    write_jsonl(tmp_path / "x.jsonl", [Document(text) for text in "abcdefgaa"])
    records = stream(source, Document, split="train", data_dir="unused")
    assert (
        list(records) == list(records) == load(source, Document, split="train", data_dir="unused")
    )
    assert 0 < len(list(records)) < 9 or not options


def test_a_stream_of_nothing_is_an_error(tmp_path):
    (tmp_path / "x.jsonl").touch()
    records = stream(f"jsonl:{tmp_path / 'x.jsonl'}", Document, split="train", data_dir="unused")
    with pytest.raises(ValueError, match="split: 'train' has no records"):
        list(records)
    with pytest.raises(ValueError, match="by=text without a slice"):
        stream(f"jsonl:{tmp_path / 'x.jsonl'}?by=text", Document, split="train", data_dir="unused")


def test_last_line_may_lack_its_end_but_not_be_blank(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\r\n{"text": "b"}')
    assert read(path, Document) == [Document("a"), Document("b")]
    path.write_text('{"text": "a"}\n\n')
    with pytest.raises(ValueError, match="jsonl:2: line: blank"):
        read(path, Document)


def test_splits_are_files_of_a_folder_or_of_a_pattern(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [Document(split)])
    assert read(tmp_path, Document, "test") == [Document("test")]
    assert read(tmp_path / "{split}.jsonl", Document, "test") == [Document("test")]
    assert read(tmp_path / "train.jsonl", Document, "train") == [Document("train")]
    with pytest.raises(FileNotFoundError, match=r"validation\.jsonl: no such file"):
        read(tmp_path, Document, "validation")
    with pytest.raises(
        ValueError, match=r"split: 'test' of the single file .*expected 'train'; give a path with"
    ):
        read(tmp_path / "train.jsonl", Document, "test")


def test_slices_of_splits(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(path, [Document(str(i)) for i in range(10)])

    def numbers(split):
        return [int(doc.text) for doc in read(path, Document, split)]

    assert numbers("train[2:4]") == [2, 3]
    assert numbers("train[:90%]") + numbers("train[90%:]") == list(range(10))
    assert numbers("train[:]") == numbers("train") == list(range(10))
    for split in ("train[3]", "train[a:b]", ""):
        with pytest.raises(
            ValueError, match=r"split: .*, expected a name or a slice such as 'train\[:90%\]'"
        ):
            numbers(split)
    with pytest.raises(
        ValueError, match=r"split: 'train\[10:\]' has no records, expected at least one"
    ):
        numbers("train[10:]")


def test_empty_files_and_unknown_kinds(tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    with pytest.raises(ValueError, match="has no records"):
        read(tmp_path / "x.jsonl", Document)
    for source in ("xml:x", "x.jsonl", "jsonl:"):
        with pytest.raises(
            ValueError, match=f"source: '{source}', expected jsonl:NAME, json:NAME, tsv:NAME"
        ):
            load(source, Document, split="train", data_dir="")


# Shapes of foreign rows.

TURN = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
Q, A = Message("user", "q"), Message("assistant", "a")


@pytest.mark.parametrize(
    ("record_type", "row", "expected"),
    [
        (Demonstration, {"prompt": "q", "completion": "a"}, Demonstration((Q, A))),
        (Demonstration, {"prompt": TURN[:1], "completion": TURN[1:]}, Demonstration((Q, A))),
        (Demonstration, {"question": "q", "answer": "a"}, Demonstration((Q, A))),
        (Demonstration, HH, Demonstration((Q, A))),
        (Prompt, {"prompt": "q", "completion": "a"}, Prompt((Q,))),
        (Prompt, {"prompt": [*TURN, TURN[0]]}, Prompt((Q, A, Q))),
        (Prompt, {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q"}, Prompt((Q, A, Q))),
        (Prompt, HH, Prompt((Q,))),
        (
            Comparison,
            {"prompt": "q", "chosen": "a", "rejected": "b"},
            Comparison((Q,), ("a", "b"), (1, 2)),
        ),
        (
            Comparison,
            {
                "prompt": "q",
                "chosen": TURN,
                "rejected": [TURN[0], {"role": "assistant", "content": "b"}],
            },
            Comparison((Q,), ("a", "b"), (1, 2)),
        ),
        (Comparison, HH, Comparison((Q,), ("a", "b"), (1, 2))),
    ],
)
def test_common_shapes(tmp_path, capsys, record_type, row, expected):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row))
    assert read(path, record_type) == [expected]
    assert capsys.readouterr().out == ""
    path.write_text(json.dumps(row | {"source": "web", "score": 3.5}))
    if record_type is Prompt:  # a reward may ask for them
        expected = Prompt(expected.messages, {"source": "web", "score": "3.5"})
    for source in (f"hf:{tmp_path}", f"jsonl:{path}"):
        assert load(source, record_type, split="train", data_dir="") == [expected]
        line = f"   {source} train: passed over 2 other columns: source, score\n"
        assert capsys.readouterr().out == ("" if record_type is Prompt else line)


@pytest.mark.parametrize(
    ("record_type", "row", "complaint"),
    [
        (Document, {"body": "x"}, "fields: found body, expected text"),
        (
            Demonstration,
            {"prompt": "x"},
            "fields: found prompt, expected messages or prompt + completion or question + answer",
        ),
        (
            Comparison,
            HH | {"rejected": "\n\nHuman: z\n\nAssistant: b"},
            " train: 1 of 1 records dropped: 1 whose sides differ before the last turn",
        ),
        (
            Comparison,
            {"prompt": "q", "chosen": "a", "rejected": TURN[:1]},
            "rejected: the last message is not",
        ),
        (
            Comparison,
            {"prompt": "q", "chosen": "a", "rejected": ""},
            " train: 1 of 1 records dropped: 1 with an empty response; nothing is left",
        ),
        (
            Comparison,
            {"prompt": "q", "chosen": "a", "rejected": None},
            "rejected: null, expected a string",
        ),
        (Prompt, {"prompt": 3}, "prompt: int, expected text or messages"),
        (
            Prompt,
            {"messages": TURN[1:]},
            " train: 1 of 1 records dropped: 1 that begin with the as",
        ),
    ],
)
def test_foreign_rows_that_do_not_fit(tmp_path, record_type, row, complaint):
    (tmp_path / "train-0.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError) as error:
        load(f"hf:{tmp_path}", record_type, split="train", data_dir="")
    place = f"hf:{tmp_path}" if complaint[0] == " " else f"{tmp_path}/train-0.jsonl:1: "
    assert str(error.value).startswith(f"{place}{complaint}")


# Hugging Face.


def test_folder_of_parquet_files(tmp_path):
    rows = [{"text": f"{i}", "label": i % 2, "extra": None} for i in range(4)]
    (tmp_path / "data").mkdir()
    for part in (0, 1):
        table = pyarrow.Table.from_pylist(rows[2 * part : 2 * part + 2])
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"train-0000{part}-of-00002.parquet")
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows[:1]), tmp_path / "data" / "training.parquet"
    )
    found = load(f"hf:{tmp_path}", LabelledText, split="train", data_dir="")
    assert found == [LabelledText(str(i), str(i % 2)) for i in range(4)]
    assert load(f"hf:{tmp_path}", Document, split="train[3:]", data_dir="") == [Document("3")]
    with pytest.raises(
        FileNotFoundError, match=r"split: 'test' among .*train-00000.*, expected test\.jsonl"
    ):
        load(f"hf:{tmp_path}", Document, split="test", data_dir="")


def test_a_folder_of_several_configurations_needs_one_named(tmp_path):
    for config in ("main", "socratic"):
        (tmp_path / "set" / config).mkdir(parents=True)
        (tmp_path / "set" / config / "train-0.jsonl").write_text(json.dumps({"text": config}))
        (tmp_path / "set" / config / "train-1.jsonl").write_text(json.dumps({"text": config}))
    (tmp_path / "set" / "main" / "test.jsonl").write_text(json.dumps({"text": "alone"}))
    folder = f"hf:{tmp_path}/set"
    with pytest.raises(
        ValueError,
        match=rf"set: split: 'train' in main, socratic, expected .* one .*as in {folder}:socratic",
    ):
        load(folder, Document, split="train", data_dir="")
    for named in (f"{folder}:main", f"{folder}/main"):
        assert load(named, Document, split="train[1:]", data_dir="") == [Document("main")]
    assert load(folder, Document, split="test", data_dir="") == [
        Document("alone")
    ]  # which no other folder has
    with pytest.raises(
        FileNotFoundError,
        match=r"set/small: split: 'train' among main, socratic, expected train\.jsonl",
    ):
        load(f"{folder}:small", Document, split="train", data_dir="")
    (tmp_path / "set" / "train.jsonl").write_text(json.dumps({"text": "above"}))
    with pytest.raises(
        ValueError, match=r"split: 'train' in \., main, socratic, expected files of one folder"
    ):
        load(folder, Document, split="train", data_dir="")


def test_hub_without_the_package_says_what_to_do(monkeypatch):
    monkeypatch.setattr("rlhf_jax.data.readers.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match="hub:no/where: the package `datasets` is not installed; expected `pip"
    ):
        load("hub:no/where", Document, split="train", data_dir="")


def test_a_folder_is_never_asked_of_the_hub(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked the hub")

    fake = types.SimpleNamespace(load_dataset=refuse, ClassLabel=int)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("rlhf_jax.data.readers.find_spec", lambda name: fake)
    for name in ("exported/data", "Anthropic/hh-rlhf:harmless-base"):
        with pytest.raises(
            FileNotFoundError, match=f"hf:{name}: no such folder, expected .*; .* is hub:{name}$"
        ):
            load(f"hf:{name}", Document, split="train", data_dir="")


def test_hub_through_the_package(monkeypatch):
    class ClassLabel:
        def int2str(self, i):
            return ("neg", "pos")[i]

    class Dataset(list):
        features = types.MappingProxyType({"text": "string", "label": ClassLabel()})

    asked = []

    def load_dataset(path, *, trust_remote_code, **options):
        assert not trust_remote_code
        if path == "no/where":
            raise ConnectionError("Couldn't reach 'no/where'")
        asked.append((path, options))
        return Dataset(
            [{"text": "x", "label": 1, "id": 9}, {"text": "y", "label": -1, "id": 9}][
                : 1 if len(asked) == 1 else 2
            ]
        )

    fake = types.SimpleNamespace(load_dataset=load_dataset, ClassLabel=ClassLabel)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    monkeypatch.setattr("rlhf_jax.data.readers.find_spec", lambda name: fake)
    found = load("hub:org/name:small", LabelledText, split="train[:1]", data_dir="cache")
    assert found == [LabelledText("x", "pos")]
    assert asked == [
        (
            "org/name",
            {"name": "small", "revision": None, "split": "train[:1]", "cache_dir": "cache"},
        )
    ]
    kept = load("hub:stanfordnlp/imdb@refs/pr/1", LabelledText, split="test", data_dir="cache")
    assert kept == [
        LabelledText("x", "pos")
    ]  # by the shape that the hub's name has: no label, no record
    assert asked[1] == (
        "stanfordnlp/imdb",
        {"name": None, "revision": "refs/pr/1", "split": "test", "cache_dir": "cache"},
    )
    with pytest.raises(
        ValueError, match=r"hub:Anthropic/hh-rlhf:harmless-base/test\[0\]: chosen: missing field"
    ):
        load(
            "hub:Anthropic/hh-rlhf:harmless-base?validation=test",
            Comparison,
            split="validation",
            data_dir="cache",
        )
    assert asked[2][1]["data_dir"] == "harmless-base"
    with pytest.raises(
        ValueError, match=r"hub:no/where: Couldn't reach 'no/where', expected a data set of the hub"
    ):
        load("hub:no/where", LabelledText, split="test", data_dir="cache")


# TensorFlow Datasets of others.


@pytest.fixture(scope="module")
def foreign():
    """A TFDS data set in the shapes that others use, known to TFDS by its name."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text()

    class RoomForeign(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "prompt": text,
                "chosen": text,
                "rejected": text,
                "messages": tfds.features.Sequence({"role": text, "content": text}),
                "text": text,
                "label": tfds.features.ClassLabel(names=["bad", "good"]),
                "score": tfds.features.Scalar(np.float32),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(4), "test": self._generate_examples(1)}

        def _generate_examples(self, count):
            pair = {"prompt": "q", "chosen": "a", "rejected": "b", "messages": TURN}
            for i in range(count):
                yield i, pair | {"text": f"é{i}", "label": 1, "score": 0.5}

    tfds.disable_progress_bar()
    return RoomForeign


def test_foreign_tfds(foreign, tmp_path):
    def get(record_type, split="train"):
        return load("tfds:room_foreign", record_type, split=split, data_dir=str(tmp_path))

    assert sorted(doc.text for doc in get(Document)) == ["é0", "é1", "é2", "é3"]
    assert get(Comparison) == [Comparison((Q,), ("a", "b"), (1, 2))] * 4
    assert get(Demonstration, "test") == [Demonstration((Q, A))]
    prompts = get(Prompt, "train[:50%]")
    assert [prompt.messages for prompt in prompts] == [(Q,)] * 2
    assert prompts[0].metadata == {
        "label": "good",
        "score": "0.5",
        "text": get(Document, "train[:1]")[0].text,
    }
    assert get(LabelledText, "test") == [LabelledText("é0", "good")]
    with pytest.raises(
        ValueError, match="tfds:room_foreign: split: 'dev', expected one of test, train"
    ):
        get(Document, "dev")


def test_unknown_tfds(tmp_path):
    with pytest.raises(ValueError, match=r"tfds:no_such_thing: .*, expected one of TFDS or of"):
        load("tfds:no_such_thing", Document, split="train", data_dir=str(tmp_path))
