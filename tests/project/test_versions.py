"""Check that what setup.py allows, the lock files pin and the code names of others still agree."""

import re
from pathlib import Path

import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).parents[2]
ORBAX = re.compile(r"\bocp((?:\.\w+)+)")


def test_orbax_still_has_every_name_that_checkpoints_use():
    code = (ROOT / "rlhf_jax" / "training" / "checkpoints.py").read_text()
    names = set(ORBAX.findall(code))
    assert {".Checkpointer", ".CompositeCheckpointHandler", ".args.PyTreeSave"} <= names
    for name in names:
        there = ocp
        for part in name[1:].split("."):
            assert hasattr(there, part), f"orbax.checkpoint{name} is gone"
            there = getattr(there, part)


def test_what_changes_between_minor_versions_has_an_upper_bound():
    setup = (ROOT / "setup.py").read_text()
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "transformers"):
        assert re.search(rf'"{name}>=[\d.]+,<[\d.]+"', setup), name
    assert all("<" in extra for extra in re.findall(r'"jax\[\w+\][^"]*"', setup))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-control.lock"])
def test_every_line_of_a_lock_file_has_hashes_and_no_address(name):
    text = (ROOT / name).read_text()
    pinned = re.findall(r"^[A-Za-z][^\n]*==[^\n]*\n(?:    [^\n]*\n)+", text, re.MULTILINE)
    assert "".join(pinned) == text
    assert all("--hash=sha256:" in lines for lines in pinned)
    assert not re.search(r"://|--index|--find-links", text)


def test_the_lock_file_pins_a_jax_for_every_python():
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^jax==([\d.]+) ; python_full_version (<|>=) '3\.12'", text, re.MULTILINE)
    assert [sign for _, sign in pins] == ["<", ">="]
