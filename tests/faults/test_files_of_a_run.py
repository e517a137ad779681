"""Whatever a kill or a hand does to the files of a run is repaired, or refused by name."""

import json
import shutil

import pytest
from run_files import Death, same_bits
from tour import tiny_plans

from rlhf_jax import main
from rlhf_jax.data.batches import lm_batches
from rlhf_jax.data.records import Document
from rlhf_jax.data.tokenizers import Tokenizer, load_tokenizer
from rlhf_jax.training import checkpoints
from rlhf_jax.training.metrics import JsonlWriter, read_rows
from rlhf_jax.training.run import is_complete


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of pretraining with four steps, and its config."""
    folder = tmp_path_factory.mktemp("finished")
    plan = tiny_plans(folder / "data")["pretrain"]
    plan["pretrain"] |= {"num_steps": 4, "eval_every": 4}
    plan["optimizer"]["warmup_steps"] = 1
    plan["checkpoint"]["save_every"] = 2
    main.run(plan, str(folder / "pretrain"))
    return folder / "pretrain", plan


@pytest.fixture
def pretrain(finished, tmp_path):
    """A copy of it."""
    shutil.copytree(finished[0], tmp_path / "pretrain")
    return tmp_path / "pretrain", finished[1]


def begin_again(folder):
    """Leave of a finished run what there is before its first checkpoint."""
    shutil.rmtree(folder / "checkpoints")


def test_killed_between_two_files_of_the_tokenizer(finished, pretrain, monkeypatch):
    folder, plan = pretrain
    begin_again(folder)
    shutil.rmtree(folder / "tokenizer")
    honest = Tokenizer.save

    def mortal(tokenizer, target):
        honest(tokenizer, target)
        next(path for path in target.iterdir() if path.name != "tokenizer.json").unlink()
        (target / "tokenizer.json").write_text("{")
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "save", mortal)
        with pytest.raises(Death):
            main.run(plan, str(folder))
    main.run(plan, str(folder))
    assert same_bits(folder, finished[0])


@pytest.mark.parametrize("name", ["tokens_BT.int32", "segments_BT.int32"])
@pytest.mark.parametrize("kind", ["cut", "altered", "gone"])
def test_blocks_of_tokens_that_were_cut_or_altered(finished, tmp_path, name, kind):
    tokenizer = load_tokenizer(finished[0] / "tokenizer")

    def blocks(documents):
        return lm_batches(
            documents, tokenizer, context_length=8, batch_size=1, seed=0, folder=tmp_path / "train"
        )

    blocks([Document("the fox is red. " * 9)])
    path = tmp_path / "train" / name
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-32], "altered": b"\7" + data[1:], "gone": b""}[kind])
    with pytest.raises(ValueError, match=rf"train/{name} was written as .*; delete .*train, it is"):
        blocks([])


def test_an_empty_description_of_blocks_is_named(pretrain):
    folder, plan = pretrain
    begin_again(folder)
    (folder / "corpus" / "train" / "cut.json").write_text("")
    with pytest.raises(ValueError, match=r"corpus/train/cut.json: damaged \(it is empty\); delete"):
        main.run(plan, str(folder))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 3}'])
def test_a_damaged_config_is_named(pretrain, text):
    folder, plan = pretrain
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"pretrain/config.json: damaged .*; delete it"):
        main.run(plan, str(folder))
    (folder / "config.json").unlink()
    main.run(plan, str(folder))
    assert json.loads((folder / "config.json").read_text())["stage"] == "pretrain"


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_last_line_that_ends_inside_a_character_is_dropped(tmp_path, name):
    path = tmp_path / name
    path.write_bytes('{"step": 1, "x": "ü"}\n{"step": 2, "x": "'.encode() + "ü".encode()[:1])
    JsonlWriter(tmp_path).truncate_after(2)
    assert read_rows(path) == [{"step": 1, "x": "ü"}]
    path.write_bytes(b'{"step": 1, "x": "\xc3"}\n{"step": 2}\n')
    with pytest.raises(ValueError, match=rf"{name}:1: not JSON .*delete the line"):
        read_rows(path)


@pytest.mark.parametrize("text", ["", '{"checkpoints": {', "[]"])
@pytest.mark.parametrize("name", ["evaluation.json", "label.json"])
def test_results_that_were_cut_short_do_not_count_as_complete(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert not is_complete(tmp_path)
    (tmp_path / name).write_text('{"policy": {}}')
    assert is_complete(tmp_path)


def test_a_checkpoint_under_another_name_is_refused(pretrain):
    folder, plan = pretrain
    step = checkpoints.latest_step(folder)
    root = folder / "checkpoints"
    (root / str(step)).rename(root / str(step + 10))
    with pytest.raises(ValueError, match=rf"{step + 10} is of step {step}: rename it to {step}"):
        main.run(plan, str(folder))


@pytest.mark.parametrize("name", ["007", "٧", "７"])
def test_only_plain_numbers_name_a_checkpoint(pretrain, name):
    folder, _ = pretrain
    root = folder / "checkpoints"
    steps = checkpoints.all_steps(folder)
    (root / str(steps[-1])).rename(root / name)
    assert checkpoints.all_steps(folder) == steps[:-1]
    with pytest.raises(FileNotFoundError):
        checkpoints.resolve(root / name)
