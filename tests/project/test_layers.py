"""Imports go one way, to lower layers or the own package, and only models/ knows flax."""

import ast
from pathlib import Path

import pytest

import rlhf_jax
from rlhf_jax import main

ROOT = Path(rlhf_jax.__file__).parent
LAYERS = {
    "config": 0,
    "shipped": 0,
    "options": 1,
    "describe": 1,
    "files": 0,
    "maths": 0,
    "models": 1,
    "data": 1,
    "inference": 2,
    "training": 3,
    "evaluation": 4,
    "stages": 4,
    "menagerie": 5,
    "dry_run": 5,
    "apps": 6,
    "main": 6,
    "command": 7,
}
# Packages of one layer that may look at each other, in this direction: a stage measures with
# evaluation; a GGUF file holds a model and its tokenizer.
NEIGHBOURS = {("stages", "evaluation"), ("models", "data")}
FILES = sorted(ROOT.rglob("*.py"))


def package(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    here = package(path)
    if here == "__init__":
        return
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "rlhf_jax" or len(parts) < 2 or parts[1] not in LAYERS:
            continue
        there = parts[1]
        lower = LAYERS[there] < LAYERS[here]
        assert lower or there == here or (here, there) in NEIGHBOURS, (
            f"{path.name} ({here}) imports {name}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_models_import_flax_and_nobody_unpickles(path):
    tops = {name.split(".")[0] for name in imported_modules(path)}
    assert "flax" not in tops or package(path) == "models"
    assert not tops & {"pickle", "dill", "torch", "tensorflow"}


STAGES = set(main.STAGES)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_never_import_each_other(stage):
    others = {f"rlhf_jax.stages.{other}" for other in STAGES - {stage}}
    assert not others & set(imported_modules(ROOT / "stages" / f"{stage}.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_hidden_defaults(path):
    if package(path) == "apps":
        return  # apps read run folders that may lack anything
    text = path.read_text()
    assert "getattr(config" not in text
    assert "config.get(" not in text
