"""README tells the truth: its files exist, its configs load, its commands name modules that are there."""

import re
from importlib.util import find_spec

import pytest
from tests_support import ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"experiments/[\w/]+\.py|colabs/[\w]+\.ipynb", README)))
)
def test_files_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", README))))
def test_modules_exist(module):
    assert find_spec(module) is not None


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("room", re.findall(r"^\| `rlhf_jax/(\w+)/`", README, re.MULTILINE))
def test_rooms_exist(room):
    assert (ROOT / "rlhf_jax" / room).is_dir()
