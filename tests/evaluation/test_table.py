"""The table as text and as JSON, and measurements that survive a killed evaluation."""

import io
import json

import numpy as np
import pytest
from evaluation_support import say
from rich.console import Console

from rlhf_jax.evaluation import table
from rlhf_jax.evaluation.estimates import Estimate
from rlhf_jax.evaluation.table import Cache
from rlhf_jax.files import write_json

ROWS = [
    table.Row(
        "Gold",
        "gold",
        "SD",
        "higher",
        "sum",
        {"sft": Estimate(-1e-9, -0.1, 0.1, 9), "ppo": Estimate(0.5, 0.4, 0.6, 9)},
    ),
    table.Row(
        "Price",
        "loss",
        "",
        "lower",
        "",
        {"sft": Estimate(1.0, 0.9, 1.1, 9), "ppo": Estimate(1.5, 1.4, 1.6, 9)},
    ),
    table.Row("Price", "KL", "", "none", "", {"ppo": Estimate(float("nan"), None, None, 0)}),
]


def printed(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    table.print_table(ROWS, {"sft": "sft 10", "ppo": "ppo 20"}, "sft", console)
    return console.file.getvalue()


def test_the_printed_table_marks_what_is_clearly_better_and_worse():
    lines = printed(100).splitlines()
    gold, loss, kl = (next(line for line in lines if f"  {row.metric}" in line) for row in ROWS)
    green, red = "\x1b[32m", "\x1b[31m"
    assert f"{green}0.500" in gold
    assert " 0.000" in gold  # not -0.000
    assert "±0.100" in gold
    assert f"{red}1.500" in loss
    assert green not in loss
    assert kl.count("–") == 2
    assert "±0.100" in printed(20)  # never cut


def test_numbers_that_are_not_finite_do_not_reach_the_file(tmp_path):
    assert table.row_to_json(ROWS[2])["values"] == {}
    assert table.row_to_json(ROWS[0])["values"]["ppo"] == {
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
        "n": 9,
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_the_cache_measures_once_per_key(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"x": np.array([0.1, 1 / 3]), "y": [say("a")]}

    cache = Cache(tmp_path / "partial")
    first, was_kept = cache.get("sft", "facts", {"seed": 0}, measure)
    assert not was_kept
    again, was_kept = cache.get("sft", "facts", {"seed": 0}, measure)
    assert was_kept
    assert first == again == {"x": [0.1, 1 / 3], "y": [["a", [5, 1], True]]}
    cache.get("sft", "facts", {"seed": 1}, measure)
    assert len(calls) == 2
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["sft-facts.json"]
    assert json.loads((tmp_path / "partial" / "sft-facts.json").read_text())["data"] == first
