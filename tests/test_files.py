"""Files and folders are whole whenever they are there, and what is damaged is named."""

import errno
import os

import pytest
from run_files import Death

from rlhf_jax.files import aside, check_file, file_checksum, read_json, write_json


def fail_in(path, error):
    with aside(path) as unfinished:
        unfinished.write_text("{")
        raise error


def die_in(folder):
    with aside(folder) as unfinished:
        unfinished.mkdir()
        (unfinished / "a").write_text("a")
        raise Death


def fill_the_disk(path):
    with aside(path) as unfinished:
        unfinished.write_text("{")
        with open("/dev/full", "w") as full:
            full.write("x")


@pytest.mark.parametrize("error", [Death, RuntimeError])
def test_a_file_that_could_not_be_written_leaves_the_one_before(tmp_path, error):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(error):
        fail_in(path, error)
    assert read_json(path, "") == {"a": 1}
    write_json(path, {"a": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_when_all_its_files_are_there(tmp_path):
    folder = tmp_path / "deep" / "tokenizer"
    with pytest.raises(Death):
        die_in(folder)
    assert not folder.exists()
    with aside(folder) as unfinished:
        unfinished.mkdir()
        (unfinished / "b").write_text("b")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["b"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has a full disk to try")
def test_on_a_full_disk_nothing_half_written_stays(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="No space") as caught:
        fill_the_disk(path)
    assert caught.value.errno == errno.ENOSPC
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert read_json(path, "") == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "it is empty"),
        (b'{"a": ', "Expecting value"),
        (b'{"a": "\xc3', "can't decode"),
        (b"[1]", "a list, not an object"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_damaged_json_is_named_with_its_remedy(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"a\.json: damaged \(.*{reason}.*\); delete it"):
        read_json(path, "delete it")
    with pytest.raises(FileNotFoundError, match=r"b\.json is missing; make it"):
        read_json(tmp_path / "b.json", "make it")


def test_a_file_that_is_not_as_it_was_written_is_refused(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"123456789")
    written = file_checksum(path)
    assert written == {"bytes": 9, "crc32": "cbf43926"}  # the check value of CRC-32
    check_file(path, written, "")
    for content in (b"123456780", b"1234"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cbf43926.*but holds.*; make it again"):
            check_file(path, written, "make it again")
    path.unlink()
    with pytest.raises(ValueError, match="but holds nothing; make it"):
        check_file(path, written, "make it again")
