"""What a wheel has beside the package: the experiment files, which run from an empty folder."""

import ast
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests_support import ROOT

from rlhf_jax import command


class _BuildPy:
    """Stand in for setuptools, which is needed to build and not to test."""

    build_lib: str
    editable_mode = False

    def run(self):
        """Leave the package itself to the test."""


@pytest.fixture(scope="module")
def setup():
    """What setup.py says."""
    said = {}
    fakes = {
        "setuptools": {
            "find_packages": lambda include: include,
            "setup": lambda **keywords: said.update(keywords),
        },
        "setuptools.command": {},
        "setuptools.command.build_py": {"build_py": _BuildPy},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name, content in fakes.items():
            module = ModuleType(name)
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
        runpy.run_path(str(Path(ROOT, "setup.py")))
    return said


@pytest.fixture(scope="module")
def installed(setup, tmp_path_factory):
    """A folder with what a wheel has."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(Path(ROOT, "rlhf_jax"), folder / "rlhf_jax")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        build = setup["cmdclass"]["build_py"]()
        build.build_lib = str(folder)
        build.run()
    return folder


def test_the_command_is_installed(setup):
    (entry,) = setup["entry_points"]["console_scripts"]
    assert entry == f"rlhf-jax = {command.__name__}:{command.main.__name__}"


def test_what_ships_imports_only_what_ships(installed):
    experiments = installed / "rlhf_jax/experiments"
    paths = sorted(experiments.rglob("*.py"))
    assert len(paths) > 50
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module and module.startswith("experiments."):
                place = experiments.joinpath(*module.split(".")[1:])
                assert place.is_dir() or place.with_suffix(".py").exists(), f"{path}: {module}"


def test_nothing_of_an_editable_install_is_copied(setup, tmp_path):
    build = setup["cmdclass"]["build_py"]()
    build.build_lib, build.editable_mode = str(tmp_path), True
    build.run()
    assert list(tmp_path.iterdir()) == []


def test_yours_runs_from_an_empty_folder_without_a_checkout(installed, tmp_path):
    model = Path(ROOT, "tests/fixtures/huggingface/gpt2")
    examples = next(installed.rglob("yours/examples"))
    parts = "?train=train[:4]&validation=train[4:]&test=train[4:]"
    facts = f"comparisons=jsonl:{examples}/comparisons.jsonl{parts} "
    facts += f"prompts=lines:{examples}/prompts.txt{parts}"
    config = f"--config=experiments/yours/pipeline.py:model=hf:{model} {facts}"
    environment = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)  # one device, as on a laptop
    result = subprocess.run(
        [sys.executable, "-m", "rlhf_jax.command", "train", config, "--workdir=w", "--dry_run"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    stages = [line for line in result.stdout.splitlines() if line.startswith("== ")]
    assert stages == ["== reward: w/reward", "== ppo: w/ppo", "== evaluate: w/evaluate"]
    assert list(tmp_path.iterdir()) == []
    names = {path.name for path in examples.iterdir()}
    assert names == {path.name for path in Path(ROOT, "experiments/yours/examples").iterdir()}
