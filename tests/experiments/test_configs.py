"""Every shipped experiment is built by its stage at every size; no field is misspelt or missing."""

from pathlib import Path

import pytest
from tests_support import ROOT, load_experiment

from rlhf_jax import main
from rlhf_jax.config import build

FILES = sorted(
    str(path.relative_to(ROOT))
    for path in Path(ROOT, "experiments").rglob("*.py")
    if "def get_config" in path.read_text()
    and "choose(text" not in path.read_text()  # of facts instead of a size: test_yours.py
)


@pytest.mark.parametrize("size", ["tiny", "default", "medium", "large"])
@pytest.mark.parametrize("path", FILES)
def test_builds(path, size):
    config = load_experiment(path, size)
    stages = main.plan_pipeline(config) if config.stage == "pipeline" else {"": config}
    for stage in stages.values():
        build(main.STAGES[stage["stage"]].Config, stage)


@pytest.mark.parametrize("path", FILES)
def test_docstring_has_its_command(path):
    text = Path(ROOT, path).read_text()
    assert f"--config={path}" in text.split('"""')[1], (
        "the docstring shows the command that runs this file"
    )


def test_unknown_size_is_named():
    with pytest.raises(ValueError, match="'huge' is not one of tiny, default, medium, large"):
        load_experiment("experiments/menagerie/ppo.py", "huge")


def test_unknown_key_on_the_command_line_is_named():
    config = load_experiment("experiments/menagerie/ppo.py", "tiny")
    with pytest.raises((KeyError, AttributeError), match="kl_coef"):
        config.ppo.kl_coeff = 0.1
