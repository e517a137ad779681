"""Splits: groups stay whole whatever happens to other data; options rename parts of a source."""

import json

import pytest

from rlhf_jax.data.records import Comparison, Demonstration, Document, Message, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.splits import group_of, group_position, overlap, take_groups

Q = (Message("user", "q"),)


def comparison(topic, number):
    return Comparison(Q, (f"a{number}", "b"), (1, 2), {"topic": topic})


RECORDS = [comparison(f"t{i % 40}", i) for i in range(400)]


def topic(record):
    return record.metadata["topic"]


def groups_of(records, split, seed):
    return list(take_groups(records, split, by="topic", seed=seed))


def test_groups_are_whole_and_nothing_is_lost():
    shares = ("train[:70%]", "train[70%:90%]", "train[90%:]")
    parts = [groups_of(RECORDS, share, seed=0) for share in shares]
    groups = [{topic(record) for record in part} for part in parts]
    assert sorted(r.responses[0] for part in parts for r in part) == sorted(
        r.responses[0] for r in RECORDS
    )
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    assert [len(group) for group in groups] == [33, 4, 3]
    assert [groups_of(RECORDS, share, seed=1) for share in shares] != parts


def test_a_groups_side_depends_on_its_name_alone():
    first = groups_of(RECORDS, "train[:50%]", seed=3)
    fewer = groups_of(RECORDS[::-3], "train[:50%]", seed=3)
    assert {topic(record) for record in fewer} <= {topic(record) for record in first}
    # Literals: another Python, or another machine, draws the same split.
    assert group_position("t0", seed=0) == pytest.approx(0.9925388291104159, abs=1e-15)
    assert group_position("t0", seed=1) != group_position("t0", seed=0)


def test_names_of_groups():
    talk = (Message("user", "hello"), Message("assistant", "hi"), Message("user", "why?"))
    assert group_of(Prompt(talk, {"task": "x"}), "prompt") == "hello"
    assert group_of(Demonstration(talk[:2], {"task": "x"}), "task") == "x"
    assert group_of(Document("abc"), "text") == "abc"
    with pytest.raises(ValueError, match="by: 'topic', expected one of prompt, task"):
        group_of(Prompt(talk, {"task": "x"}), "topic")


@pytest.fixture
def source(tmp_path):
    rows = [
        {"topic": f"t{i % 40}", "stance": "yes", "label": "a1", "a1": f"a{i}", "a2": "b"}
        for i in range(400)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"ukp@jsonl:{tmp_path}/pairs.jsonl"


def test_a_source_is_split_by_topic(source):
    options = "?by=topic&seed=5&train=train[:60%]&validation=train[60%:80%]&test=train[80%:]"
    parts = [
        load(source + options, Comparison, split=name, data_dir="")
        for name in ("train", "validation", "test")
    ]
    assert sum(map(len, parts)) == 400
    whole = load(source, Comparison, split="train", data_dir="")
    positions = [group_position(topic(record), seed=5) for record in whole]
    assert parts == [
        [record for record, u in zip(whole, positions, strict=True) if low <= u < high]
        for low, high in ((0.0, 0.6), (0.6, 0.8), (0.8, 1.0))
    ]
    shown = load(source + options, Demonstration, split="validation", data_dir="")
    assert [item.messages[-1].content for item in shown] == [item.responses[0] for item in parts[1]]


def test_validation_may_be_another_name(source, tmp_path):
    (tmp_path / "test.jsonl").write_text((tmp_path / "pairs.jsonl").read_text().split("\n")[0])
    folder = f"ukp@jsonl:{tmp_path}?validation=test"
    assert len(load(folder, Comparison, split="validation", data_dir="")) == 1
    assert (
        len(
            load(
                source + "?validation=train[90%:]&train=train[:90%]",
                Comparison,
                split="validation",
                data_dir="",
            )
        )
        == 40
    )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            "?validation=train[90%:]",
            r"train=train and validation=train\[90%:\] overlap, expected disjoint",
        ),
        ("?train=train[:90%]&test=train[80%:]", r"overlap"),
        ("?validation=train[9]", r"split: 'train\[9\]', expected a name or a slice"),
        (
            "?topic=x",
            r"option: 'topic=x', expected NAME=VALUE once for each of train, validation, test, by",
        ),
        ("?by", r"option: 'by', expected NAME=VALUE"),
        ("?by=topic", r"by=topic without a slice"),
        ("?by=topic&train=train[:9]", r"split: 'train\[:9\]' of groups, expected percentages"),
        ("?by=colour&train=train[:50%]", r"by: 'colour', expected one of prompt, topic, stance"),
        ("?seed=x", r"whole number as seed"),
        ("?duplicates=keep", r"duplicates=drop"),
    ],
)
def test_options_that_do_not_fit(source, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        load(source + options, Comparison, split="train", data_dir="")


def test_a_mapped_split_is_not_sliced_again(source):
    with pytest.raises(ValueError, match=r"split: 'train\[:5\]' where train=train\[:90%\] is set"):
        load(source + "?train=train[:90%]", Comparison, split="train[:5]", data_dir="")


def test_overlap():
    assert overlap("train", "train[90%:]")
    assert overlap("train[:11]", "train[10:]")
    assert not overlap("train[:90%]", "train[90%:]")
    assert not overlap("train", "test")
    assert not overlap("train[:100]", "train[50%:]")  # not known before the data are read


def test_repeated_records_are_counted_and_dropped_on_request(source, tmp_path, capsys):
    row = json.dumps({"topic": "t", "stance": "s", "label": "a1", "a1": "x", "a2": "y"})
    (tmp_path / "pairs.jsonl").write_text(f"{row}\n{row.replace('x', 'z')}\n{row}\n")
    assert len(load(source, Comparison, split="train", data_dir="")) == 3
    assert "1 of 3 records repeat another, kept" in capsys.readouterr().out
    left = load(source + "?duplicates=drop", Comparison, split="train", data_dir="")
    assert [item.responses[0] for item in left] == ["x", "z"]
    assert "1 of 3 records repeat another, dropped" in capsys.readouterr().out
