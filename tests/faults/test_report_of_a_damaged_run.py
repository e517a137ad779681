"""The report says what it could not read, whatever that is, and never raises or waits for ever."""

import json
import os

import pytest
from run_support import curve, parent, row, value, write_evaluation, write_stage

from rlhf_jax.apps import report
from rlhf_jax.apps.report import Provenance

WRITTEN = Provenance("date", "commit", "machine", "versions")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "q"
    write_stage(folder / "sft", "sft", curve("loss"))
    lineage = {"policy": parent("sft")}
    write_stage(folder / "ppo", "ppo", curve("objective/kl", "objective/scores"), lineage=lineage)
    write_evaluation(folder / "evaluate")
    return folder


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "link to itself"])
@pytest.mark.parametrize(
    "name",
    [
        "ppo/metrics.jsonl",
        "ppo/config.json",
        "ppo/checkpoints/4/meta/metadata",
        "evaluate/evaluation.json",
    ],
)
def test_what_is_no_file_is_noted(run, name, kind):
    """A pipe, and a device without an end, once kept the report waiting for ever."""
    path = run / name
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to(path.name)
    page = report.render(run, WRITTEN)
    assert name.rsplit("/", 1)[0].replace("/checkpoints/4/meta", "") in page


@pytest.mark.parametrize(
    "step", ["Infinity", "NaN", "1e308", "-1e308", "1" + "0" * 400, "1" + "0" * 5000, "null", "[1]"]
)
def test_absurd_steps_and_numbers(run, step):
    lines = [f'{{"step": {step}, "objective/kl": 1}}', f'{{"step": 1, "objective/kl": {step}}}']
    (run / "ppo" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    report.render(run, WRITTEN)


@pytest.mark.parametrize("numbers", [(1e308, -1e308, 1e308), (5e-324, 1e-323), (1e308, 1.7e308)])
def test_numbers_at_the_ends_of_float64(run, numbers):
    steps = enumerate(numbers, start=1)
    text = "".join(
        json.dumps({"step": step, "objective/kl": x, "objective/scores": x}) + "\n"
        for step, x in steps
    )
    (run / "ppo" / "metrics.jsonl").write_text(text)
    report.render(run, WRITTEN)


def test_a_table_of_numbers_at_the_ends_of_float64(run):
    values = {"sft": value(1e308, 1e308), "ppo": value(-1e308, 1e308)}
    content = {"table": [row("gold", "higher", values)], "reference": "sft"}
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(content))
    report.render(run, WRITTEN)


@pytest.mark.parametrize("name", ["²", "٤", "007", "9" * 200])
def test_odd_names_of_checkpoints(run, name):
    root = run / "ppo" / "checkpoints"
    (root / "4").rename(root / name)
    report.render(run, WRITTEN)


def test_nul_in_names_and_files_and_circles_of_links(run):
    (run / "sft" / "metrics.jsonl").write_bytes(bytes(1000))
    config = {"stage": "ppo\0", "config": {"init": {"policy": "..\0/x"}}}
    (run / "ppo" / "config.json").write_text(json.dumps(config))
    (run / "again").symlink_to(run)
    (run / "me").symlink_to("me")
    assert "metrics.jsonl" in report.render(run, WRITTEN)


def test_thousands_of_metrics(run):
    names = [f"m{i}" for i in range(5000)]
    text = "".join(
        json.dumps({"step": step, **dict.fromkeys(names, float(step))}) + "\n"
        for step in range(1, 10)
    )
    (run / "ppo" / "metrics.jsonl").write_text(text)
    report.render(run, WRITTEN)
