"""One command for every program, from any folder, and what is wrong at the door is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import ROOT

from rlhf_jax import command, options, shipped
from rlhf_jax.training import trackers

PPO = "experiments/menagerie/ppo.py"


def call(arguments, folder, *, module="rlhf_jax.command"):
    """Run a program in a folder, as its own process."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_lists_its_commands_and_knows_its_version(capsys):
    assert command.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, entry in command.COMMANDS.items():
        assert [line for line in text.splitlines() if name in line and entry.help in line]
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rlhf_jax {Path(ROOT, 'rlhf_jax/VERSION').read_text()}"
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no command 'trian': choose one of")


def test_the_default_of_track_is_that_of_the_trackers():
    assert options.TRACK.default == ",".join(trackers.DEFAULT)
    assert all(name in str(options.flags.FLAGS["track"].help) for name in trackers.TRACKERS)


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = Path(ROOT, PPO)
    assert shipped.find_config(PPO) == str(ours)
    assert shipped.find_config(f"{PPO}:tiny") == f"{ours}:tiny"
    for elsewhere in ("mine.py", "experiments/nowhere.py", str(ours), "/nowhere/experiments/a.py"):
        assert shipped.find_config(elsewhere) == elsewhere
    words = [f"--config={PPO}", "--workdir", "w", "--config", PPO, f"--config.name={PPO}"]
    found = [f"--config={ours}", "--workdir", "w", "--config", str(ours), f"--config.name={PPO}"]
    assert shipped.find_configs(words) == found
    (tmp_path / "experiments/menagerie").mkdir(parents=True)
    (tmp_path / PPO).touch()  # what lies here comes first
    assert shipped.find_config(PPO) == PPO


@pytest.mark.parametrize("module", ["rlhf_jax.command", "rlhf_jax.main"])
def test_a_field_is_described_from_an_empty_folder(module, tmp_path):
    words = ["train"] if module == "rlhf_jax.command" else []
    words += [f"--config={PPO}:tiny", "--describe", "--config.ppo.kl_coef=0.25"]
    result = call(words, tmp_path, module=module)
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "kl_coef = 0.25" in line]
    assert "(flag)" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("rlhf_jax.command", ["train", "--help"]),
        ("rlhf_jax.main", ["--help"]),
        ("rlhf_jax.command", ["chat", "--help"]),
        ("rlhf_jax.apps.chat", ["--help"]),
        ("rlhf_jax.command", ["export", "--help"]),
        ("rlhf_jax.command", ["report", "--help"]),
        ("rlhf_jax.apps.report", ["--help"]),
        ("rlhf_jax.apps.export", ["--help"]),
    ],
)
def test_help_imports_nothing_heavy(module, words):
    heavy = ("jax", "flax", "transformers", "tensorflow_datasets", "orbax", "numpy")
    probe = (
        "import atexit, runpy, sys\n"
        f"sys.argv = [{module!r}, *{words!r}]\n"
        f"atexit.register(lambda: print('HEAVY', [n for n in {heavy!r} if n in sys.modules]))\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "--" in result.stdout
    assert "HEAVY []" in result.stdout


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        (None, "--workdir is missing: name the run's folder"),
        ("", "--workdir is empty: name the run's folder"),
        (" ", "--workdir is empty: name the run's folder"),
        ("a\0b", "--workdir: a path cannot hold the character 0"),
        ("FOLDER/file/run", "FOLDER/file is a file, not a folder; name another folder"),
        ("FOLDER/file", "FOLDER/file is a file, not a folder; name another folder"),
        ("FOLDER/dangling", "FOLDER/dangling is a link to nowhere; name another folder"),
        ("FOLDER/" + "x" * 300, "has 300 characters; take one of at most 255"),
    ],
)
def test_an_impossible_workdir_is_refused(workdir, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    folder = str(tmp_path)
    with pytest.raises(ValueError) as caught:
        options.check_workdir(workdir and workdir.replace("FOLDER", folder))
    assert message.replace("FOLDER", folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    options.check_workdir(str(tmp_path / "new/run"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ValueError, match=r"may not be written by you; name another folder"):
        options.check_workdir(str(tmp_path / "new/run"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=experiments/menagerie/ppo.py", "--workdir="], "--workdir is empty"),
        (["--workdir=x"], "--config is missing"),
        (["--config=experiments/menagerie/ppo.py", "--workdir=x", "y"], "unexpected arguments: y"),
    ],
)
def test_a_mistake_at_the_door_is_one_line(words, message, tmp_path):
    result = call(["train", *words], tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_label_and_evaluate_take_configs_of_their_stage(tmp_path):
    result = call(["label", f"--config={PPO}", "--workdir=x"], tmp_path)
    assert result.returncode == 1
    assert result.stderr == (
        "error: rlhf-jax label needs a config of the stage label, this one is of ppo: rlhf-jax "
        "train runs any\n"
    )
