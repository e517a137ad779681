"""The verdicts of a workdir's ablations as one Markdown table: what was claimed, what was measured, whether it held.

Left out on purpose: ablations without a verdict.json. One that was not run has no row.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEADER = "| ablation | paper, figure | claim | measured | | seeds |\n|---|---|---|---|---|---|"


def verdict_table(workdir: Path) -> str:
    """A line for every criterion of every ablation in `workdir`. Raises FileNotFoundError if it has none."""
    found = sorted(workdir.glob("*/verdict.json"))
    if not found:
        raise FileNotFoundError(f"{workdir}: no verdict.json in its folders; run an ablation with --workdir={workdir} first")
    return "\n".join([HEADER, *(line for path in found for line in _lines(path.parent.name, json.loads(path.read_text())))])


def _lines(name: str, verdict: Mapping[str, Any]) -> Iterator[str]:
    first = f"`{name}`, {verdict['size']}, {verdict['minutes']:g} min | {verdict['paper']}"
    for one in verdict["criteria"]:
        interval = "" if one["low"] is None else f" [{_number(one['low'])}, {_number(one['high'])}]"
        holds = "holds" if one["passed"] else "**fails**"
        yield f"| {first} | {one['name']}: {one['text']} | {_number(one['value'])}{interval} | {holds} | {one['num_seeds']} |"
        first = " | "  # said once


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
