"""Three drawings as inline SVG: curves over steps, intervals on a shared axis, and accuracy against confidence.

Colours are CSS variables (`--c0` ... `--c7`), so one drawing serves light and dark. A curve is drawn twice:
what was measured, faint, and a local fit (a centred moving mean) over about 1/30 of the points; the axis
spans the mean and the middle 98 % of what was measured, so that one spike does not flatten the rest. Left
out on purpose: a plotting library, whose SVG would be twenty times larger and could not follow the reader's
colour scheme.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from rlhf_jax.apps._html import Html, el

NUM_COLOURS = 8
_MOST_POINTS = 240

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Line:
    """A named curve and the number of its colour."""

    name: str
    colour: int
    steps: Sequence[int]
    values: Sequence[float]


def format_number(value: float, *, digits: int = 3) -> str:
    """Three significant digits, thousands with commas, powers of ten only where zeros would have to be
    counted."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    shown = f"{value:,.{decimals}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return shown.replace("-", "−")


def format_ticks(values: Sequence[float]) -> list[str]:
    """Labels of an axis: just the decimals that tell its ticks apart, k and M for thousands and millions."""
    largest = max(map(abs, values), default=0.0)
    spacing = min((b - a for a, b in itertools.pairwise(values)), default=largest or 1.0)
    if 0 < largest < 1e-3 or largest >= 1e12:
        return [format_number(value) for value in values]
    size, letter = next(
        (pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * pair[0]), (1, "")
    )
    decimals = max(0, math.ceil(-math.log10(spacing / size) - 1e-9))
    return [
        f"{value / size:,.{decimals}f}{letter if value else ''}".replace("-", "−")
        for value in values
    ]


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, about `count` of them."""
    span = high - low
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    unit = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / unit - 1e-9)
    last = math.floor(high / unit + 1e-9)
    return [
        round(index * unit, 12 - math.floor(math.log10(unit))) for index in range(first, last + 1)
    ]


def _local_fit(values: np.ndarray, half: int) -> np.ndarray:
    """At each point, the straight line fitted to the finite values at most `half` away, read at that
    point."""
    size = len(values)
    known = np.isfinite(values)
    x = np.arange(size) - size / 2
    y = np.where(known, values, 0.0)
    low, high = np.maximum(np.arange(size) - half, 0), np.minimum(np.arange(size) + half + 1, size)
    columns = (known, x * known, x * x * known, y, x * y)
    running = [np.concatenate([[0.0], np.cumsum(column)]) for column in columns]
    count, sx, sxx, sy, sxy = (sums[high] - sums[low] for sums in running)
    count = np.maximum(count, 1.0)
    spread = sxx - sx * sx / count
    slope = np.where(spread > 1e-6, (sxy - sx * sy / count) / np.maximum(spread, 1e-6), 0.0)
    return np.where(known, sy / count + slope * (x - sx / count), np.nan)


def smooth(values: Sequence[float]) -> list[float]:
    """Local straight-line fit over about 1/30 of the points, twice.

    Inside it is a centred moving mean (no lag); at the ends the line keeps it from being pulled to the
    middle. Gaps (NaN) are left out of the fit and stay gaps.
    """
    half = len(values) // 60
    means = np.asarray(values, float)
    for _ in range(2 if half else 0):
        means = _local_fit(means, half)
    return [float(mean) for mean in means]


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Keep the lowest and the highest point of each of most/2 stretches: what the eye would see of all of
    them."""
    if len(points) <= most:
        return list(points)
    kept = []
    stretches = most // 2
    for index in range(stretches):
        part = points[index * len(points) // stretches : (index + 1) * len(points) // stretches]
        numbers = [point for point in part if math.isfinite(point[1])]
        ends = (
            {min(numbers, key=lambda p: p[1]), max(numbers, key=lambda p: p[1])}
            if numbers
            else {part[0]}
        )
        kept += sorted(ends)
    return kept


def _range(raw: Iterable[float], means: Iterable[float]) -> tuple[float, float]:
    """The axis: all of the mean, the middle 98 % of the raw values, and a little air."""
    numbers = sorted(value for value in raw if math.isfinite(value))
    cut = len(numbers) // 100
    shown = numbers[cut : len(numbers) - cut] + [value for value in means if math.isfinite(value)]
    low, high = min(shown), max(shown)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-30):
        air = abs(low) * 0.1 or 1.0
        return low - air, high + air
    air = (high - low) * 0.06
    return (0.0 if 0 <= low < air else low - air), high + air


def _segments(points: Iterable[Point]) -> list[list[Point]]:
    """Cut at gaps."""
    found: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return [segment for segment in found if segment]


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Where a chart's data lie on the drawing."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, point: Point) -> tuple[float, float]:
        across = (point[0] - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (point[1] - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * self.width, self.top + (1 - up) * self.height


def _polylines(frame: _Frame, points: Sequence[Point], **attributes: object) -> list[Html]:
    drawn = []
    for segment in _segments(points):
        if len(segment) == 1:
            x, y = frame.at(segment[0])
            drawn.append(
                el(
                    "circle",
                    cx=f"{x:.1f}",
                    cy=f"{y:.1f}",
                    r="2",
                    **{**attributes, "data_name": None},
                )
            )
        where = " ".join("{:.1f},{:.1f}".format(*frame.at(point)) for point in segment)
        drawn.append(el("polyline", points=where, **attributes))
    return drawn


def _axes(frame: _Frame, across: Sequence[float]) -> list[Html]:
    """Grid and labels; those of the x axis at `across`."""
    drawn = []
    marks = ticks(*frame.y, 4)
    for value, shown in zip(marks, format_ticks(marks), strict=True):
        _, y = frame.at((frame.x[0], value))
        drawn.append(
            el(
                "line",
                x1=frame.left,
                x2=frame.left + frame.width,
                y1=f"{y:.1f}",
                y2=f"{y:.1f}",
                class_="grid",
            )
        )
        drawn.append(el("text", shown, x=frame.left - 6, y=f"{y + 3.5:.1f}", text_anchor="end"))
    floor = frame.top + frame.height
    drawn.append(
        el("line", x1=frame.left, x2=frame.left + frame.width, y1=floor, y2=floor, class_="axis")
    )
    for value, shown in zip(across, format_ticks(across), strict=True):
        x, _ = frame.at((value, frame.y[0]))
        drawn.append(
            el("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=floor, y2=floor + 3, class_="axis")
        )
        drawn.append(el("text", shown, x=f"{x:.1f}", y=floor + 15, text_anchor="middle"))
    return drawn


def line_chart(
    lines: Sequence[Line], *, label: str, width: int = 280, height: int = 158
) -> Html | None:
    """Curves over steps; None if no line has a finite value."""
    lines = [line for line in lines if any(map(math.isfinite, line.values))]
    if not lines:
        return None
    means = [smooth(line.values) for line in lines]
    x = (min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines))
    y = _range(
        (value for line in lines for value in line.values),
        (value for mean in means for value in mean),
    )
    frame = _Frame(48, 8, width - 48 - 16, height - 8 - 22, x, y)
    steps = [value for value in ticks(*x, 4) if value == int(value)] if x[1] > x[0] else [x[0]]
    drawn: list[Html] = []
    for line, mean in zip(lines, means, strict=True):
        colour = f"stroke:var(--c{line.colour});fill:none"
        raw = list(zip(line.steps, line.values, strict=True))
        if (
            len(raw) > 30
        ):  # below that the mean is over one point: drawing both would draw the same twice
            drawn += _polylines(frame, thin(raw, _MOST_POINTS), style=colour, class_="raw")
        if len(raw) <= 12:
            drawn += [
                el(
                    "circle",
                    cx=f"{cx:.1f}",
                    cy=f"{cy:.1f}",
                    r="2.2",
                    style=f"fill:var(--c{line.colour})",
                )
                for cx, cy in (frame.at(point) for point in raw if math.isfinite(point[1]))
            ]
        points = list(zip(line.steps, mean, strict=True))
        drawn += _polylines(
            frame, thin(points, _MOST_POINTS), style=colour, class_="mean", data_name=line.name
        )
    # A nested <svg> clips what lies outside of the axis (raw spikes), and needs no id unique in the page.
    inner = {
        "x": frame.left,
        "y": frame.top - 3,
        "width": frame.width + 4,
        "height": frame.height + 3,
    }
    curves = el("svg", drawn, viewBox=" ".join(map(str, inner.values())), **inner)
    box = " ".join(
        map(
            str,
            (frame.left, frame.top, frame.width, frame.height, *map(float, (*frame.x, *frame.y))),
        )
    )
    return el(
        "svg",
        _axes(frame, steps),
        curves,
        viewBox=f"0 0 {width} {height}",
        class_="chart",
        role="img",
        aria_label=label,
        data_box=box,
    )


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value with its interval (None: not known) and the number of its colour."""

    name: str
    colour: int
    value: float
    low: float | None
    high: float | None


def interval_chart(
    intervals: Sequence[Interval | None], *, label: str, width: int = 190, lane: int = 11
) -> Html | None:
    """One lane per checkpoint on a shared axis: a dot for the value, a line for the interval."""
    known = [one for one in intervals if one]
    ends = [
        end
        for one in known
        for end in (one.value, one.low, one.high)
        if end is not None and math.isfinite(end)
    ]
    if not ends:
        return None
    low, high = _range(ends, [])
    height = lane * len(intervals) + 2
    frame = _Frame(4, 1, width - 8, height - 2, (low, high), (0.0, 1.0))
    drawn = []
    if low < 0 < high:
        zero = frame.at((0.0, 0.0))[0]
        drawn.append(el("line", x1=f"{zero:.1f}", x2=f"{zero:.1f}", y1=0, y2=height, class_="zero"))
    for index, one in enumerate(intervals):
        if one is None or not math.isfinite(one.value):
            continue
        y = 1 + lane * (index + 0.5)
        colour = f"var(--c{one.colour})"
        if (
            one.low is not None
            and one.high is not None
            and math.isfinite(one.low)
            and math.isfinite(one.high)
        ):
            x1, x2 = (frame.at((end, 0.0))[0] for end in (one.low, one.high))
            drawn.append(
                el(
                    "line",
                    x1=f"{x1:.1f}",
                    x2=f"{x2:.1f}",
                    y1=y,
                    y2=y,
                    style=f"stroke:{colour}",
                    class_="ci",
                )
            )
        x = frame.at((one.value, 0.0))[0]
        drawn.append(
            el("circle", cx=f"{x:.1f}", cy=y, r="3.4", style=f"fill:{colour}", class_="dot")
        )
    return el(
        "svg",
        drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


@dataclasses.dataclass(frozen=True)
class Bin:
    """Answers of about one confidence: its mean, the share that is right with its interval (None: not known), their number."""

    confidence: float
    accuracy: float
    low: float | None
    high: float | None
    count: int


def reliability_chart(
    bins: Sequence[Bin], colour: int, *, label: str, width: int = 280, height: int = 200
) -> Html | None:
    """Accuracy over confidence in [½, 1] with the diagonal of a calibrated model; a dot's area is its bin's share of all."""
    bins = [
        one
        for one in bins
        if math.isfinite(one.confidence) and math.isfinite(one.accuracy) and one.count > 0
    ]
    if not bins:
        return None
    frame = _Frame(48, 8, width - 48 - 16, height - 8 - 36, (0.5, 1.0), (0.0, 1.0))
    (x1, y1), (x2, y2) = frame.at((0.5, 0.5)), frame.at((1.0, 1.0))
    drawn = [
        el("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_="zero")
    ]
    total = sum(one.count for one in bins)
    for one in bins:
        x, y = frame.at((one.confidence, one.accuracy))
        if (
            one.low is not None
            and one.high is not None
            and math.isfinite(one.low)
            and math.isfinite(one.high)
        ):
            ends = (f"{frame.at((one.confidence, end))[1]:.1f}" for end in (one.low, one.high))
            x1_x2 = {"x1": f"{x:.1f}", "x2": f"{x:.1f}"}
            drawn.append(
                el(
                    "line",
                    **x1_x2,
                    **dict(zip(("y1", "y2"), ends, strict=True)),
                    style=f"stroke:var(--c{colour})",
                    class_="ci",
                )
            )
        pairs = f"{one.count:,} pair{'s' if one.count > 1 else ''}"
        said = f"{pairs}: confidence {format_number(one.confidence)}, accuracy {format_number(one.accuracy)}"
        radius = max(2.0, 14 * math.sqrt(one.count / total))
        dot = el(
            "circle",
            cx=f"{x:.1f}",
            cy=f"{y:.1f}",
            r=f"{radius:.1f}",
            style=f"fill:var(--c{colour})",
            class_="dot",
        )
        drawn.append(el("g", el("title", said), dot))
    middle = frame.left + frame.width / 2
    return el(
        "svg",
        _axes(frame, ticks(*frame.x, 5)),
        drawn,
        el("text", "confidence", x=middle, y=height - 4, text_anchor="middle"),
        viewBox=f"0 0 {width} {height}",
        style="width:100%;height:auto;display:block",  # not the class `chart`, whose script reads steps under the pointer
        role="img",
        aria_label=label,
    )
