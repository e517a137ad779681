"""The results as one table: rows of metrics, columns of checkpoints; as JSON for the report and as text for
the terminal.

{"checkpoints": {name: {"path", "stage", "step"}}, "reference": name,
 "table": [{"metric", "group", "unit", "better", "description", "key", "subject",
            "values": {name: {"value", "low", "high", "n"}}}],
 "samples": [{"prompt", "metadata", "responses": {name: {"text", "finished", "gold", "score"}}}],
 "seed", "version"}
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_jax.evaluation.estimates import Estimate

Better = Literal["higher", "lower", "none"]
# What programs look for in a table: win rates by their judge, and the two sides of a reliability diagram.
Key = Literal["", "win_rate_labelers", "win_rate_gold", "win_rate_model", "reliability_accuracy", "reliability_confidence"]

Verdict = Literal["", "better", "worse"]
_COLOURS: dict[Verdict, str] = {"": "", "better": "green", "worse": "red"}


class Row(NamedTuple):
    """One metric of every checkpoint that has it; titles are for people, `key` and `subject` for programs."""

    group: str
    metric: str
    unit: str
    better: Better
    description: str
    values: dict[str, Estimate]
    key: Key = ""
    subject: str = ""  # what the key is about: the opponent of a win rate, the bin of a reliability diagram


def row_to_json(row: Row) -> dict[str, Any]:
    """The row as JSON; an end that is not finite becomes null, a value that is not finite is left out."""
    values = {
        name: {"value": e.value, "low": _finite(e.low), "high": _finite(e.high), "n": e.n}
        for name, e in row.values.items()
        if math.isfinite(e.value)
    }
    return {**{name: part for name, part in row._asdict().items() if name != "values"}, "values": values}


def row_from_json(raw: Any) -> Row | None:
    """Read a row back from JSON that may hold anything; None if it is not what `row_to_json` writes."""
    if not isinstance(raw, dict) or not isinstance(raw.get("values"), dict) or raw.get("better") not in get_args(Better):
        return None
    texts = [raw.get(name) for name in ("group", "metric", "unit", "description")]
    values = {name: _estimate_from_json(value) for name, value in raw["values"].items()}
    known = {name: value for name, value in values.items() if value is not None}
    if not all(isinstance(text, str) for text in texts) or len(known) < len(values):
        return None
    group, metric, unit, description = map(str, texts)
    # Files from before rows had a key lack it; a key of a later version is one that this version does not look for.
    key: Key = raw["key"] if raw.get("key") in get_args(Key) else ""
    return Row(group, metric, unit, raw["better"], description, known, key, str(raw.get("subject", "")))


def _estimate_from_json(raw: Any) -> Estimate | None:
    """Read one value; numbers that JSON writes as something else or beyond float64 make it None."""
    if not isinstance(raw, dict) or not _is_real(raw.get("value")):
        return None
    low, high, n = raw.get("low"), raw.get("high"), raw.get("n")
    if not all(end is None or _is_real(end) for end in (low, high)) or not isinstance(n, int):
        return None
    return Estimate(float(raw["value"]), low, high, n)


def _is_real(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None


def write_json(path: Path, content: Any, *, indent: int | None = None) -> None:
    """Write under a temporary name, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def print_table(rows: Sequence[Row], checkpoints: Mapping[str, str], reference: str, console: Console) -> None:
    """Print the table; `checkpoints` maps names to what is said below them.

    Green and red: the interval does not touch that of the reference and lies on the better or the worse side.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.add_column("metric", no_wrap=True)
    for name, below in checkpoints.items():
        heading = Text(name, style="bold")
        heading.append(f"\n{below}" + ("\nreference" if name == reference else ""), style="dim not bold")
        table.add_column(heading, justify="right", no_wrap=True)
    group = ""
    for row in rows:
        if row.group != group:
            table.add_row(Text(row.group, style="bold cyan"))
            group = row.group
        table.add_row(_label(row), *(_cell(row, name, reference) for name in checkpoints))
    # Where output goes to a file or a narrow window, rich would cut the numbers.
    console.width = max(console.width, console.measure(table, options=console.options.update(width=1000)).maximum)
    console.print(table)
    console.print(Text(
        "↑ higher is better, ↓ lower is better; ± is half of the 95 % interval, which resamples prompts; "
        f"green and red: interval clear of {reference}'s.", style="dim",
    ))  # fmt: skip


def _label(row: Row) -> Text:
    arrow = {"higher": " ↑", "lower": " ↓", "none": ""}[row.better]
    label = Text("  " + row.metric + arrow)
    if row.unit:
        label.append(f" [{row.unit}]", style="dim")
    return label


def _cell(row: Row, name: str, reference: str) -> Text:
    found = row.values.get(name)
    if found is None or not math.isfinite(found.value):
        return Text("–", style="dim")
    text = Text(f"{round(found.value, 3) + 0.0:.3f}", style=_COLOURS[verdict(row, name, reference)])
    if found.low is not None and found.high is not None:
        text.append(f" ±{(found.high - found.low) / 2:.3f}", style="dim")
    return text


def verdict(row: Row, name: str, reference: str) -> Verdict:
    """Return "better" or "worse" if a checkpoint's interval lies wholly on one side of the reference's, else ""."""
    value, base = row.values.get(name), row.values.get(reference)
    if name == reference or value is None or base is None or row.better == "none":
        return ""
    if value.low is None or value.high is None or base.low is None or base.high is None:
        return ""
    if value.low <= base.high and base.low <= value.high:
        return ""
    return "better" if (value.low > base.high) == (row.better == "higher") else "worse"
