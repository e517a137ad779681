"""The report's evaluation: a table of metrics with intervals, and the same prompts answered by every
checkpoint.

`evaluation.json` is checked row by row here, because it is written by one program and read by another: a
row that is not as agreed is named in the report's list of gaps, the others are shown.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from rlhf_jax.apps._html import Html, details, el, join
from rlhf_jax.apps.runs import ORDER, colours, number
from rlhf_jax.apps.svg import Bin, Interval, format_number, interval_chart, reliability_chart
from rlhf_jax.apps.text import shorten, turns

_SAMPLES_SHOWN = 6
_LONG_TABLE = 20
_LONGEST_TEXT = 4000
# The rows of the benchmark stage that a reliability diagram is made of (`evaluation.benchmarks.reward_accuracy`).
_RELIABILITY = "Reward model by confidence"
_BIN = re.compile(r"(accuracy|mean confidence) at confidence (.+)")


@dataclasses.dataclass(frozen=True)
class Value:
    """A measured number with its interval (None: not known) and the number of examples behind it."""

    value: float
    low: float | None
    high: float | None
    n: int | None


@dataclasses.dataclass(frozen=True)
class Row:
    """One metric of all checkpoints; `better` is "higher", "lower" or "none"."""

    metric: str
    group: str
    unit: str
    better: str
    description: str
    values: dict[str, Value]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What evaluation.json says, as far as it could be read."""

    checkpoints: dict[str, dict[str, Any]]
    reference: str
    rows: list[Row]
    samples: list[dict[str, Any]]
    seed: str
    version: str


def _value(raw: Any) -> Value | None:
    value = number(raw.get("value")) if isinstance(raw, dict) else None
    if value is None:
        return None
    n = number(raw.get("n"))
    whole = int(n) if n is not None and math.isfinite(n) else None
    return Value(value, number(raw.get("low")), number(raw.get("high")), whole)


def _row(raw: Any) -> Row | None:
    if not isinstance(raw, dict) or not isinstance(raw.get("values"), dict):
        return None
    read = {str(name): _value(value) for name, value in raw["values"].items()}
    values = {name: value for name, value in read.items() if value}
    if not isinstance(raw.get("metric"), str) or len(values) < len(read):
        return None
    words = {key: str(raw.get(key) or "") for key in ("group", "unit", "better", "description")}
    return Row(metric=raw["metric"], values=values, **words)


def _dicts(raw: Any) -> list[dict[str, Any]]:
    return [one for one in raw if isinstance(one, dict)] if isinstance(raw, list) else []


def _place(name: str, entry: dict[str, Any]) -> int:
    """Where a checkpoint stands in the pipeline: by its own name, else by its stage."""
    places = [ORDER.index(word) for word in (name, str(entry.get("stage", ""))) if word in ORDER]
    return places[0] if places else len(ORDER)


def parse(raw: dict[str, Any], problems: list[str]) -> Evaluation:
    """Read the agreed format; what deviates becomes a sentence in `problems`."""
    table = raw.get("table")
    read = [_row(row) for row in table] if isinstance(table, list) else []
    rows = [row for row in read if row]
    if not isinstance(table, list):
        problems.append("evaluation.json: table is missing")
    elif len(rows) < len(table):
        problems.append(
            f"evaluation.json: {len(table) - len(rows)} of {len(table)} table rows are not as agreed"
        )
    listed = raw.get("checkpoints")
    named = dict(listed) if isinstance(listed, dict) else {}
    for row in rows:
        named |= {name: {} for name in row.values if name not in named}
    known = {str(name): entry if isinstance(entry, dict) else {} for name, entry in named.items()}
    checkpoints = {
        name: known[name] for name in sorted(known, key=lambda name: _place(name, known[name]))
    }
    reference = str(raw.get("reference") or "")
    if reference and reference not in checkpoints:
        problems.append(
            f"evaluation.json: the reference {reference!r} is not among the checkpoints"
        )
    seed, version = (str(raw.get(key, "not recorded")) for key in ("seed", "version"))
    return Evaluation(checkpoints, reference, rows, _dicts(raw.get("samples")), seed, version)


def _decimals(row: Row) -> int:
    """The row's number of decimals: down to the first digit that its narrowest interval leaves uncertain."""
    ends = [end for v in row.values.values() for end in (v.value, v.low, v.high) if end is not None]
    largest = max((abs(end) for end in ends if math.isfinite(end)), default=0.0)
    spans = [
        (v.high - v.low) / 2
        for v in row.values.values()
        if v.low is not None and v.high is not None
    ]
    narrow = min((span for span in spans if math.isfinite(span) and span > 0), default=math.inf)
    needed = -math.floor(math.log10(narrow)) if math.isfinite(narrow) else 3
    coarse = 2 if largest < 10 else 1 if largest < 1000 else 0
    return max(needed, coarse) if 0 < largest < 1e-3 else min(4, max(needed, coarse))


def _format(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return "not finite"
    if decimals > 4:  # zeros that would have to be counted
        return format_number(value)
    return f"{round(value, decimals) + 0.0:,.{decimals}f}".replace(
        "-", "−"
    )  # + 0.0: never minus zero


def _best(row: Row) -> set[str]:
    """The checkpoints with the best value; nobody where direction has no meaning or all are equal."""
    sign = {"higher": 1.0, "lower": -1.0}.get(row.better)
    finite = {name: v.value for name, v in row.values.items() if math.isfinite(v.value)}
    if sign is None or len(set(finite.values())) < 2:
        return set()
    top = max(sign * value for value in finite.values())
    return {name for name, value in finite.items() if sign * value == top}


def _verdict(row: Row, name: str, reference: str) -> str:
    """ "better" or "worse" if the interval lies wholly on one side of the reference's, else ""."""
    mine, theirs = row.values.get(name), row.values.get(reference)
    if name == reference or mine is None or theirs is None or row.better not in ("higher", "lower"):
        return ""
    if mine.low is None or mine.high is None or theirs.low is None or theirs.high is None:
        return ""
    above, below = mine.low > theirs.high, mine.high < theirs.low
    if not above and not below:
        return ""
    return "better" if above == (row.better == "higher") else "worse"


def _cell(row: Row, name: str, reference: str, best: set[str]) -> Html:
    value = row.values.get(name)
    if value is None:
        return el("td", el("span", "–", class_="missing"), class_="num", title="not measured")
    decimals = _decimals(row)
    classes = " ".join(
        filter(None, [_verdict(row, name, reference), "best" if name in best else ""])
    )
    shown = el("span", _format(value.value, decimals), class_=classes or None)
    known = value.low is not None and value.high is not None
    ends = " … ".join(_format(end, decimals) for end in (value.low, value.high) if end is not None)
    title = f"{row.metric}, {name}: n = {value.n:,}" if value.n is not None else None
    return el(
        "td",
        shown,
        el("span", ends if known else "no interval", class_="range"),
        class_="num",
        title=title,
    )


def _metric_cell(row: Row) -> Html:
    counts = {value.n for value in row.values.values() if value.n is not None}
    arrow = {"higher": " ↑", "lower": " ↓"}.get(row.better, "")
    many = f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{counts.pop():,}" if len(counts) == 1 else ""
    below = ". ".join(filter(None, [row.description.rstrip("."), many]))
    unit = el("span", f" {row.unit}", class_="unit") if row.unit else None
    small = el("small", below) if below else None
    return el("td", row.metric + arrow, unit, small, class_="metric")


def _table_row(row: Row, names: list[str], reference: str, colour: dict[str, int]) -> Html:
    best = _best(row)
    lanes: list[Interval | None] = []
    for name in names:
        value = row.values.get(name)
        lanes.append(
            Interval(name, colour[name], value.value, value.low, value.high) if value else None
        )
    chart = interval_chart(lanes, label=f"{row.metric} of each checkpoint with its interval")
    cells = (_cell(row, name, reference, best) for name in names)
    return el("tr", _metric_cell(row), cells, el("td", chart, class_="strip"))


def _head(name: str, entry: dict[str, Any], colour: int) -> Html:
    step = number(entry.get("step"))
    below = f"step {int(step):,}" if step is not None and math.isfinite(step) else ""
    mark = el("span", class_="swatch", style=f"background:var(--c{colour})")
    return el("th", mark, name, el("span", below, class_="range"), class_="num")


def results_table(evaluation: Evaluation, rows: Sequence[Row], *, grouped: bool) -> Html:
    """Metrics by checkpoints with a strip of intervals on each row's own axis; groups as headings if `grouped`."""
    names = list(evaluation.checkpoints)
    colour = colours(names)
    heads = (_head(name, evaluation.checkpoints[name], colour[name]) for name in names)
    head = el("thead", el("tr", el("th", "Metric"), heads, el("th", "", class_="strip")))
    lines, group = [], None
    for row in rows:
        if grouped and row.group != group and row.group:
            lines.append(el("tr", el("td", row.group, colspan=str(len(names) + 2)), class_="group"))
        group = row.group
        lines.append(_table_row(row, names, evaluation.reference, colour))
    return el("div", el("table", head, el("tbody", lines), class_="results"), class_="scroll")


def headline(rows: Sequence[Row]) -> list[Row]:
    """The first metric of each group, with the group's name before its own."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.group, row)
    return [
        dataclasses.replace(row, metric=f"{group}: {row.metric}" if group else row.metric)
        for group, row in first.items()
    ]


def reliability_bins(rows: Sequence[Row], name: str) -> list[Bin]:
    """A checkpoint's bins of confidence that have both a mean confidence and an accuracy."""
    found: dict[str, dict[str, Value]] = {}
    for row in rows:
        match = _BIN.fullmatch(row.metric)
        if row.group == _RELIABILITY and match and name in row.values:
            found.setdefault(match[2], {})[match[1]] = row.values[name]
    pairs = [
        (both["mean confidence"], both["accuracy"]) for both in found.values() if len(both) == 2
    ]
    return [
        Bin(sure.value, right.value, right.low, right.high, right.n or 0) for sure, right in pairs
    ]


def _reliability(evaluation: Evaluation) -> Html | None:
    """A reliability diagram for every checkpoint that has bins."""
    names = list(evaluation.checkpoints)
    colour = colours(names)
    figures = []
    for name in names:
        bins = reliability_bins(evaluation.rows, name)
        chart = reliability_chart(
            bins, colour[name], label=f"accuracy of {name} over its confidence"
        )
        if chart:
            many = el("span", f"{sum(one.count for one in bins):,} pairs", class_="last")
            figures.append(
                el("figure", el("figcaption", el("span", name, class_="name"), many), chart)
            )
    if not figures:
        return None
    words = "Up: the share of ranked pairs that the scores order as people did, with its interval; across: how sure the scores "
    words += "are, σ(|Δscore|). A calibrated model lies on the dotted line, an overconfident one below it. The larger a dot, "
    words += "the more pairs it stands for."
    return join(
        [
            el("h3", "Reliability"),
            el("p", words, class_="note"),
            el("div", figures, class_="charts"),
        ]
    )


def results_section(evaluation: Evaluation, title: str, anchor: str) -> Html:
    """The table with one paragraph on how to read it, a long one folded below a short one; then reliability diagrams."""
    rows, reference = evaluation.rows, evaluation.reference
    words = "↑ higher is better, ↓ lower is better; the best value is bold. "
    words += "Small numbers and lines are the intervals. "
    if reference:
        words += (
            f"Green (better) and red (worse): the interval does not overlap that of {reference}. "
        )
    words += f"Seed {evaluation.seed}."
    if not rows:
        body = el("p", "The table is empty.", class_="missing")
    elif len(rows) <= _LONG_TABLE:
        body = results_table(evaluation, rows, grouped=True)
    else:
        words += " Shown first: the first metric of each group, in the order of the evaluation."
        short = results_table(evaluation, headline(rows), grouped=False)
        every = results_table(evaluation, rows, grouped=True)
        body = join([short, details(f"All {len(rows)} metrics", every)])
    return el(
        "section",
        el("h2", title),
        el("p", words, class_="note"),
        body,
        _reliability(evaluation),
        id=anchor,
    )


def conversation(text: str) -> Html:
    """A prompt as its turns; text without chat markers is one turn without a role."""
    said = turns(shorten(text, _LONGEST_TEXT)) or [("", "(empty)")]
    roles = [role for role, _ in said]
    label = {"user": "user", "assistant": "assistant", "system": "system"}
    return join(
        el(
            "div",
            el("span", label.get(role, "prompt" if roles == [""] else ""), class_="role"),
            el("bdi", words, class_="said"),
            class_="turn",
        )
        for role, words in said
    )


def _reply(name: str, raw: Any, colour: int) -> Html:
    entry = raw if isinstance(raw, dict) else {}
    facts = [
        f"{key} {format_number(value)}"
        for key in ("gold", "score")
        if (value := number(entry.get(key))) is not None
    ]
    if entry.get("finished") is False:
        facts.append("cut off")
    words = entry.get("text")
    if not isinstance(words, str):
        said = el("div", "no response recorded", class_="said missing")
    elif not words.strip():
        said = el("div", "(empty response)", class_="said missing")
    else:
        said = el("div", el("bdi", shorten(words.strip(), _LONGEST_TEXT)), class_="said")
    who = el("div", name, el("span", " · ".join(facts)), class_="who")
    return el("div", who, said, class_="reply", style=f"border-top-color:var(--c{colour})")


def _sample(sample: dict[str, Any], names: Sequence[str], colour: dict[str, int]) -> Html:
    metadata = sample.get("metadata")
    facts = metadata.items() if isinstance(metadata, dict) else ()
    chips = [el("span", shorten(f"{key}: {value}", 120), class_="chip") for key, value in facts]
    responses = sample.get("responses")
    given = responses if isinstance(responses, dict) else {}
    shown = [name for name in names if name in given] + [
        name for name in given if name not in names
    ]
    replies = el(
        "div", (_reply(name, given[name], colour.get(name, 0)) for name in shown), class_="replies"
    )
    prompt = el("div", conversation(str(sample.get("prompt", ""))), class_="prompt")
    return el("div", el("div", chips) if chips else None, prompt, replies, class_="sample")


def samples_section(evaluation: Evaluation, title: str, anchor: str) -> Html | None:
    """The same prompt, side by side; the first few open, the rest one click away."""
    if not evaluation.samples:
        return None
    names = list(evaluation.checkpoints)
    colour = colours(names)
    drawn = [_sample(sample, names, colour) for sample in evaluation.samples]
    rest = drawn[_SAMPLES_SHOWN:]
    more = details(f"{len(rest)} more prompts", *rest) if rest else None
    note = "Not chosen by hand: in the order in which the evaluation wrote them. gold is the true reward, "
    note += "score what the reward model says."
    return el(
        "section",
        el("h2", title),
        el("p", note, class_="note"),
        *drawn[:_SAMPLES_SHOWN],
        more,
        id=anchor,
    )
