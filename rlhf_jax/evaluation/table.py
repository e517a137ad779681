"""Write results as a table of metrics by checkpoints, as JSON and for the terminal.

{"checkpoints": {name: {"path", "stage", "step"}}, "reference": name,
 "table": [{"metric", "group", "unit", "better", "description", "key", "subject", "judge",
            "values": {name: {"value", "low", "high", "n"}}}],
 "samples": [{"prompt", "metadata",
              "responses": {name: {"text", "finished", "score", judge: score}}}],
 "controls": {name: {"heading", "description"}}, "warnings": [sentence],
 "seed", "version"}
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_jax.data.records import Message
from rlhf_jax.evaluation.estimates import Estimate
from rlhf_jax.files import json_checksum, read_json, write_json

Better = Literal["higher", "lower", "none"]
# What programs look for: win rates by their judge, and the two sides of a reliability diagram.
WinRateKey = Literal["win_rate_labelers", "win_rate_gold", "win_rate_model"]
Key = Literal[
    "",
    WinRateKey,
    "entirely_right",
    "reward_accuracy",
    "reliability_accuracy",
    "reliability_confidence",
]
# How the name of the metric begins that is the main number of a judge of a policy in training.
JUDGED = "judge/"
Data = dict[str, Any]  # what one measurement of one checkpoint gives
Verdict = Literal["", "better", "worse"]
_COLOURS: dict[Verdict, str] = {"": "", "better": "green", "worse": "red"}


class Row(NamedTuple):
    """One metric of every checkpoint that has it.

    Programs read `key`, `subject` and `judge`, not titles.
    """

    group: str
    metric: str
    unit: str
    better: Better
    description: str
    values: dict[str, Estimate]
    key: Key = ""
    # What the key is about: the opponent of a win rate, the bin of a reliability diagram, whose
    # accuracy it is, of a reward model or of what stands beside it, with "/KIND" of prompts.
    subject: str = ""
    judge: str = ""  # by whom, as the config calls the judge


def row_to_json(row: Row) -> dict[str, Any]:
    """Return the row as JSON; an end that is not finite becomes null, such a value is left out."""
    values = {
        name: {"value": e.value, "low": _finite(e.low), "high": _finite(e.high), "n": e.n}
        for name, e in row.values.items()
        if math.isfinite(e.value)
    }
    rest = {name: part for name, part in row._asdict().items() if name != "values"}
    return {**rest, "values": values}


def row_from_json(raw: Any) -> Row | None:
    """Read a row back from JSON that may hold anything; None if `row_to_json` does not write it."""
    if not isinstance(raw, dict) or not isinstance(raw.get("values"), dict):
        return None
    texts: dict[str, Any] = {
        name: raw.get(name) for name in ("group", "metric", "unit", "description")
    }
    estimates = {name: _estimate_from_json(value) for name, value in raw["values"].items()}
    values = {name: value for name, value in estimates.items() if value is not None}
    is_row = raw.get("better") in get_args(Better) and all(
        isinstance(t, str) for t in texts.values()
    )
    if not is_row or len(values) < len(estimates):
        return None
    key: Key = raw["key"] if raw.get("key") in get_args(Key) else ""  # of a later version: unknown
    subject, judge = (str(raw.get(name, "")) for name in ("subject", "judge"))
    better: Better = raw["better"]
    return Row(**texts, better=better, values=values, key=key, subject=subject, judge=judge)


def _estimate_from_json(raw: Any) -> Estimate | None:
    """Read one value; None for numbers that JSON writes as something else or beyond float64."""
    if not isinstance(raw, dict) or not _is_real(raw.get("value")):
        return None
    low, high, n = raw.get("low"), raw.get("high"), raw.get("n")
    ends_are_real = all(end is None or _is_real(end) for end in (low, high))
    if not ends_are_real or not isinstance(n, int):
        return None
    return Estimate(float(raw["value"]), low, high, n)


def _is_real(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def format_conversation(messages: Sequence[Message]) -> str:
    """Write a conversation as one text in which `<|role|>` stands before every message."""
    return "".join(f"<|{message.role}|>{message.content}" for message in messages)


def print_table(
    rows: Sequence[Row], checkpoints: Mapping[str, str], reference: str, console: Console
) -> None:
    """Print the table; `checkpoints` maps names to what is said below them.

    Green and red: the interval does not touch that of the reference and lies on the better or the
    worse side.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name, below in checkpoints.items():
        heading = Text(name, style="bold")
        mark = "\nreference" if name == reference else ""
        heading.append(f"\n{below}{mark}", style="dim not bold")
        table.add_column(heading, justify="right", no_wrap=True)
    group = ""
    for row in rows:
        if row.group != group:
            table.add_row(Text(row.group, style="bold cyan"))
            group = row.group
        table.add_row(_label(row), *(_cell(row, name, reference) for name in checkpoints))
    # Where output goes to a file or a narrow window, rich would cut the numbers.
    measured = console.measure(table, options=console.options.update(width=1000))
    console.width = max(console.width, measured.maximum)
    console.print(table)
    arrows = "↑ higher is better, ↓ lower is better"
    interval = "± is half of the 95 % interval, which resamples prompts"
    colours = f"green and red: interval clear of {reference}'s."
    console.print(Text(f"{arrows}; {interval}; {colours}", style="dim"))


def _label(row: Row) -> Text:
    arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[row.better]
    label = Text("  " + row.metric + arrow)
    if row.unit:
        label.append(f" [{row.unit}]", style="dim")
    return label


def _cell(row: Row, name: str, reference: str) -> Text:
    estimate = row.values.get(name)
    if estimate is None or not math.isfinite(estimate.value):
        return Text("–", style="dim")
    colour = _COLOURS[verdict(row, name, reference)]
    text = Text(f"{round(estimate.value, 3) + 0.0:.3f}", style=colour)
    if estimate.low is not None and estimate.high is not None:
        text.append(f" ±{(estimate.high - estimate.low) / 2:.3f}", style="dim")
    return text


def verdict(row: Row, name: str, reference: str) -> Verdict:
    """Say "better" or "worse" if a checkpoint's interval is clear of the reference's, else ""."""
    value, base = row.values.get(name), row.values.get(reference)
    if name == reference or value is None or base is None or row.better == "none":
        return ""
    if value.low is None or value.high is None or base.low is None or base.high is None:
        return ""
    if value.low <= base.high and base.low <= value.high:
        return ""
    return "better" if (value.low > base.high) == (row.better == "higher") else "worse"


class Cache:
    """Keep measurements in one folder, so that a killed evaluation continues.

        partial/<checkpoint>-<group>.json =
            {"key": sha256 of all that it depends on, "crc32": of the data, "data": ...}

    A file whose key differs is measured again. A fresh measurement goes through the same text form
    as one that is read back, so a resumed evaluation gives the same file as an uninterrupted one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def timed(
        self,
        checkpoint: str,
        group: str,
        depends_on: Mapping[str, Any],
        measure: Callable[[], Data],
    ) -> Data:
        """Return what `get` returns, and print how long it took."""
        start = time.perf_counter()
        data, was_kept = self.get(checkpoint, group, depends_on, measure)
        took = "kept" if was_kept else f"{time.perf_counter() - start:.1f} s"
        print(f"   {checkpoint:12s} {group:24s} {took}", flush=True)
        return data

    def get(
        self,
        checkpoint: str,
        group: str,
        depends_on: Mapping[str, Any],
        measure: Callable[[], Data],
    ) -> tuple[Data, bool]:
        """Return what `measure()` returns, or returned before, and whether it was there already.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / f"{checkpoint}-{group}.json"
        key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        if path.exists():
            remedy = "delete it and run again, it is measured anew"
            kept = read_json(path, remedy)
            checksum = json_checksum(kept.get("data"))
            if kept.get("crc32") != checksum:
                raise ValueError(
                    f"{path}: damaged (its data have the CRC-32 {checksum}, written was "
                    f"{kept.get('crc32')}); {remedy}"
                )
            if kept.get("key") == key:
                return kept["data"], True
        data = json.loads(json.dumps(plain(measure())))
        write_json(path, {"key": key, "crc32": json_checksum(data), "data": data})
        return data, False


def plain(tree: Any) -> Any:
    """Return arrays as nested lists, and mappings and sequences as JSON has them."""
    if isinstance(tree, Mapping):
        return {str(name): plain(part) for name, part in tree.items()}
    if isinstance(tree, list | tuple):
        return [plain(part) for part in tree]
    return tree.tolist() if isinstance(tree, np.ndarray | np.generic) else tree
