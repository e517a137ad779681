"""Menagerie as TFDS: rows are what the generators wrote, built again when the code changes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_jax.data.readers import prepare_builder
from rlhf_jax.data.records import Comparison, Demonstration, Document, LabelledText, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.menagerie import builders
from rlhf_jax.menagerie.builders import comparisons, demonstrations
from rlhf_jax.menagerie.corpus import documents, reviews
from rlhf_jax.menagerie.prompts import prompts
from rlhf_jax.menagerie.world import make_world

PARTS = {
    "corpus": (Document, documents),
    "demonstrations": (Demonstration, demonstrations),
    "prompts": (Prompt, prompts),
    "comparisons": (Comparison, comparisons),
    "reviews": (LabelledText, reviews),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.mark.parametrize("part", PARTS)
def test_reading_returns_what_the_generator_wrote(part, data_dir):
    record_type, generator = PARTS[part]
    world = make_world("tiny")
    for split in ("train", "validation", "test"):
        found = load(f"tfds:menagerie_{part}/tiny", record_type, split=split, data_dir=data_dir)
        expected = list(generator(world, split))
        assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_the_order_is_shuffled_and_always_the_same(data_dir, tmp_path):
    source = "tfds:menagerie_prompts/tiny"
    first = load(source, Prompt, split="train", data_dir=data_dir)
    assert load(source, Prompt, split="train", data_dir=str(tmp_path)) == first
    assert first != list(prompts(make_world("tiny"), "train"))
    part = load(source, Prompt, split="train[:10]", data_dir=data_dir)
    assert part == first[:10]


def test_built_once_and_again_when_the_code_changes(tmp_path, monkeypatch):
    def build():
        builder = prepare_builder("menagerie_reviews/tiny", data_dir=str(tmp_path))
        info = Path(builder.data_path) / "dataset_info.json"
        return info.stat().st_mtime_ns, builder.info.metadata["code"]

    first = build()
    assert build() == first
    monkeypatch.setattr(builders, "code_digest", lambda: "other")
    changed = build()
    assert changed != first
    assert changed[1] == "other"
    assert build() == changed


def test_builders_have_three_sizes_and_labels(tmp_path):
    assert set(builders.BUILDERS) == {f"menagerie_{part}" for part in PARTS}
    for name, builder in builders.BUILDERS.items():
        assert builder.name == name
        assert {config.name for config in builder.BUILDER_CONFIGS} == {
            "tiny",
            "default",
            "medium",
            "large",
        }
    assert builders.MenagerieCorpus(data_dir=str(tmp_path)).builder_config.name == "default"


def test_unknown_names_and_sizes(tmp_path):
    with pytest.raises(
        ValueError, match="unknown data set 'menagerie_zoo', expected one of menagerie_c"
    ):
        load("tfds:menagerie_zoo/tiny", Document, split="train", data_dir=str(tmp_path))
    with pytest.raises(
        ValueError,
        match="unknown configuration 'huge', expected one of default, tiny, medium, large",
    ):
        load("tfds:menagerie_corpus/huge", Document, split="train", data_dir=str(tmp_path))


def test_two_runs_may_build_the_same_data_at_once(tmp_path, monkeypatch):
    honest = builders.MenageriePrompts.download_and_prepare

    def overtaken(builder):
        monkeypatch.setattr(builders.MenageriePrompts, "download_and_prepare", honest)
        prepare_builder("menagerie_prompts/tiny", data_dir=str(tmp_path))
        raise FileExistsError("Cannot rename incomplete.1.1.0: exists")

    monkeypatch.setattr(builders.MenageriePrompts, "download_and_prepare", overtaken)
    found = load("tfds:menagerie_prompts/tiny", Prompt, split="train", data_dir=str(tmp_path))
    assert sorted(map(repr, found)) == sorted(map(repr, prompts(make_world("tiny"), "train")))

    def refused(builder):
        raise FileExistsError("something else is in the way")

    monkeypatch.setattr(builders.MenageriePrompts, "download_and_prepare", refused)
    with pytest.raises(FileExistsError, match="something else"):
        prepare_builder("menagerie_prompts/tiny", data_dir=str(tmp_path / "elsewhere"))


def test_the_digest_covers_every_module_that_makes_the_data():
    """The modules that the builders import, and no others, decide whether data are stale."""
    folder = Path(builders.__file__).parent
    reached = set()
    waiting = ["builders"]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_bytes())):
            if isinstance(node, ast.ImportFrom) and node.module == "rlhf_jax.menagerie":
                waiting += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("rlhf_jax.menagerie."):
                waiting.append(node.module.rpartition(".")[2])
    assert sorted(reached) == list(builders.SOURCES)


CHILD = """
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
try:
    load("tfds:menagerie_prompts/tiny", Prompt, split="train", data_dir="{data_dir}")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("written", [False, True])
def test_builders_that_were_not_imported_are_named(written, tmp_path):
    """Without the builder nobody could tell whether written data are stale."""
    if written:
        prepare_builder("menagerie_prompts/tiny", data_dir=str(tmp_path))
    child = CHILD.format(data_dir=tmp_path)
    run = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    (line,) = run.stdout.splitlines()
    assert "import rlhf_jax.menagerie.builders`" in line
