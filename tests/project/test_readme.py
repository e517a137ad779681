"""The READMEs tell the truth: links lead somewhere; modules, configs and fields are there."""

import re
import shlex
from importlib.util import find_spec

import pytest
from absl import flags
from ml_collections import config_flags
from tests_support import ROOT

from rlhf_jax import main
from rlhf_jax.training import trackers

README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/**/README.md")))
    if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)
}
BLOCKS = [
    (page, block)
    for page, text in PAGES.items()
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
]
COMMANDS = sorted(
    {
        (page, line.strip())
        for page, block in BLOCKS
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    }
)


def anchors(text):
    """Every anchor that GitHub makes of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_built(page, path):
    """Whether `path` stands below the folder of `page` or below the root."""
    return (ROOT / page).parent.joinpath(path).exists() or (ROOT / path).exists()


def test_readme_fits_a_screen():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert [line for line in lines if len(line) > 120] == []


def test_there_are_pages_and_commands():
    assert {"README.md", "CONTRIBUTING.md", "experiments/README.md"} <= PAGES.keys()
    assert {"experiments/public/README.md", "benchmarks/README.md"} <= PAGES.keys()
    assert sum("rlhf_jax.main" in command for _, command in COMMANDS) >= 12


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (ROOT / page).parent / path if path else ROOT / page
        assert goal.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(goal.read_text()), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_exist(page):
    named = r"\b(?:rlhf_jax|experiments|tests|colabs|benchmarks)/[\w./]*"
    for path in re.findall(named, PAGES[page]):
        if "NAME" not in path:
            assert is_built(page, path.rstrip(".")), f"{page}: {path}"


def test_configs_named_without_their_folder_exist():
    for page, folder in (
        ("experiments/README.md", "menagerie"),
        ("experiments/public/README.md", "public"),
    ):
        for row in re.findall(r"^\|.*\|$", PAGES[page], re.MULTILINE):
            for name in re.findall(r"`(\w+\.py)`", row):
                assert (ROOT / "experiments" / folder / name).exists(), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_modules_exist(page):
    for module in re.findall(r"python -m ([\w.]+)", PAGES[page]):
        assert find_spec(module) is not None, f"{page}: {module}"


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, command) for page, command in COMMANDS if "rlhf_jax.main" in command],
)
def test_configs_build_with_the_flags_of_the_command(page, command, monkeypatch):
    # A page names models that are not here; of these the configs want the size alone.
    monkeypatch.setattr("experiments.yours.facts.count_params", lambda path: 135_000_000)
    monkeypatch.setattr("experiments.yours.facts.count_records", lambda name, source: 1000)
    words = shlex.split(command, comments=True)
    argv = words[words.index("rlhf_jax.main") :]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", lock_config=True, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("track", "", "", flag_values=values)
    values(argv)
    plan = config.value
    assert values["workdir"].value, f"{page}: {command}"
    assert set(values["track"].value.split(",")) <= {"", *trackers.TRACKERS}, f"{page}: {command}"
    stages = main.plan_pipeline(plan) if plan.stage == "pipeline" else {"": plan}
    for stage in stages.values():
        main.build_settings(stage)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {
        target
        for _, command in COMMANDS
        for target in re.findall(r"^make (\w+)", command, re.MULTILINE)
    }
    assert {"quickstart", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_reading_order_counts_lines_honestly():
    rows = re.findall(r"^\d\. \[`[\w/.]+`\]\((\S+)\), (\d+) lines", README, re.MULTILINE)
    assert len(rows) == 6
    for path, lines in rows:
        assert int(lines) == pytest.approx(len((ROOT / path).read_text().splitlines()), rel=0.1)


def test_the_tree_has_every_package():
    packages = {path.parent.name for path in (ROOT / "rlhf_jax").glob("*/__init__.py")}
    assert packages == set(re.findall(r"^rlhf_jax/(\w+)/ ", README, re.MULTILINE))


def test_licence_and_citation_agree_with_setup():
    citation = (ROOT / "CITATION.cff").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "license: Apache-2.0" in citation
    version = (ROOT / "rlhf_jax" / "VERSION").read_text().strip()
    assert f"version: {version}\n" in citation


def test_what_is_not_python_is_shipped():
    setup = (ROOT / "setup.py").read_text()
    package = ROOT / "rlhf_jax"
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert f'"{path.relative_to(package)}"' in setup, path
