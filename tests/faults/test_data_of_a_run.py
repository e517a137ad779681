"""A run remembers what it read, and does not go on with other data."""

import json

import pytest
from run_files import Death, die_at, same_bits
from tour import tiny_plans

from rlhf_jax import main
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load, remembered, remembering, stream


def test_what_is_read_to_its_end_is_remembered(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    source, where = f"jsonl:{path}", {"split": "train", "data_dir": ""}
    with remembering():
        load(source, Prompt, **where)
        next(iter(stream(source, Prompt, **where)))  # not to its end
        first = remembered()
        load(source, Prompt, **where)
        path.write_text('{"prompt": "a"}\n{"prompt": "c"}\n')
        load(source, Prompt, **where)
        again = remembered()
    assert remembered() == {}
    assert list(first) == ["Prompt train 1"]
    assert list(again) == ["Prompt train 1", "Prompt train 2", "Prompt train 3"]
    assert again["Prompt train 1"] == first["Prompt train 1"] == again["Prompt train 2"]
    assert first["Prompt train 1"]["records"] == again["Prompt train 3"]["records"] == 2
    assert first["Prompt train 1"]["crc32"] != again["Prompt train 3"]["crc32"]
    load(source, Prompt, **where)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A finished pretraining run, and the config of SFT beside it on a file of twenty rows."""
    folder = tmp_path_factory.mktemp("data")
    plans = tiny_plans(folder / "data")
    plans["pretrain"]["pretrain"] |= {"num_steps": 2, "eval_every": 2}
    plans["pretrain"]["optimizer"]["warmup_steps"] = 1
    main.run(plans["pretrain"], str(folder / "pretrain"))
    plan = plans["sft"]
    rows = [{"prompt": f"say {n}", "completion": f"{n} is said"} for n in range(40)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan["data"]["demonstrations"] = f"jsonl:{folder}/{{split}}.jsonl"
    plan["checkpoint"]["save_every"] = 1
    return folder, plan


@pytest.mark.parametrize("change", ["one more", "another", "order"])
def test_data_that_changed_between_a_kill_and_its_continuation_are_refused(
    folders, monkeypatch, change
):
    folder, plan = folders
    workdir = folder / f"sft {change}"
    with monkeypatch.context() as patch:
        die_at(patch, 1)
        with pytest.raises(Death):
            main.run(plan, str(workdir))
    path = folder / "train.jsonl"
    honest = path.read_text()
    lines = honest.splitlines(keepends=True)
    changed = {
        "one more": [*lines, lines[0]],
        "another": [*lines[:-1], '{"prompt": "say 39", "completion": "40 is said"}\n'],
        "order": lines[::-1],
    }[change]
    number = 41 if change == "one more" else 40
    path.write_text("".join(changed))
    message = rf"begun with 40 records \(CRC-32 \w+\) of jsonl:.*, but now there are {number} rec"
    with pytest.raises(ValueError, match=message):
        main.run(plan, str(workdir))
    path.write_text(honest)
    main.run(plan, str(workdir))
    main.run(plan, str(folder / "uninterrupted"))
    assert same_bits(workdir, folder / "uninterrupted")


def test_documents_are_remembered_too(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with remembering():
        list(stream(f"text:{tmp_path}/a.txt", Document, split="train", data_dir=""))
        assert remembered()["Document train 1"]["records"] == 1
