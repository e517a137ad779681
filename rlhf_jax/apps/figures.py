"""Draw the report's figures with matplotlib as SVG that takes the page's colours and font.

Four forms: curves over steps, a reward over KL (Gao et al. 2022, Fig. 1), win rates as bars with
intervals and a line at one half (Ouyang et al. 2022), accuracy over confidence (Guo et al. 2017).
The same data give the same bytes. Text stays text, so that it can be searched and takes the
page's colour, light or dark; names are never read as formulas. Left out on purpose: legends. A
page says once, in HTML, which colour is which model.
"""

import hashlib
import html
import io
import itertools
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_jax.apps.text import format_number, printable, shorten
from rlhf_jax.evaluation.estimates import Estimate
from rlhf_jax.evaluation.table import JUDGED

_INK = "#010203"  # becomes `currentColor`, the page's own
_STYLE: Any = matplotlib.rc_params_from_file(
    Path(__file__).with_name("report.mplstyle"), use_default_template=False
)
_WIDTH = 4.3  # inches: one fills a phone's page, three a desk's
MOST_POINTS = 60
MOST_CURVES = 8
_LARGEST = 1e30  # what is larger has no place on an axis
_GAP = (np.nan,) * 4
_LONGEST_NAME = 28
_LONGEST_TITLE = 52
# Grey, and colours that can be told apart with colour-blind eyes and read on white and on black.
_COLOURS = (
    *("#858b95", "#2b7bba", "#d9661f", "#1a9c78", "#c069a8", "#8f63c9"),
    *("#a5851a", "#c8455a", "#2f93b3", "#7a8f2e", "#9c6b4a"),
)
_USUAL = {"base": 0, "pretrain": 0, "sft": 1, "ppo": 2, "ppo_ptx": 3, "reward": 4}
_DASHES = ("-", "--", ":", "-.")


class Style(NamedTuple):
    """How everything of one model is drawn."""

    colour: str
    dash: str


Styles = Mapping[str, Style]  # by the name of the model


def make_styles(names: Iterable[str]) -> dict[str, Style]:
    """Give every model its own colour, or its own dashes where there are more models than colours.

    The usual stages keep their colours from page to page; other names take the free ones in order.
    """
    names = list(dict.fromkeys(names))
    places: dict[str, int] = {}
    for name in names:
        if name in _USUAL and _USUAL[name] not in places.values():
            places[name] = _USUAL[name]
    styles = [Style(colour, dash) for dash in _DASHES for colour in _COLOURS]
    free = (place for place in range(len(styles)) if place not in set(places.values()))
    for name in names:
        if name not in places:
            places[name] = next(free, len(styles) - 1)
    return {name: styles[place] for name, place in places.items()}


class Axis(NamedTuple):
    """The title of an axis with its unit, its scale, and whether its values are integers."""

    title: str
    scale: Literal["linear", "log", "root"] = "linear"
    integers: bool = False


@dataclass(frozen=True)
class Line:
    """One model's curve, point after point of its training; what is not finite is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Bin(NamedTuple):
    """Pairs of which a model is about equally sure: its mean confidence, and its accuracy."""

    confidence: float
    accuracy: Estimate


def _short(text: str, limit: int = _LONGEST_NAME) -> str:
    return shorten(" ".join(printable(text).split()), limit)


def _new_axes(height: float, left: float, right: float = 0.97) -> tuple[Figure, Axes]:
    """Return a figure of the usual width, with margins that do not depend on what is drawn."""
    figure = Figure(figsize=(_WIDTH, height))
    bottom, top = 0.42 / height, 1 - 0.32 / height
    return figure, figure.add_axes((left, bottom, right - left, top - bottom))


def _write(figure: Figure, label: str) -> Markup:
    """Write a figure as <svg> without fixed size, date, or ids that another figure could have."""
    buffer = io.StringIO()
    # Matplotlib warns of letters that its own font lacks; but the page's font draws them.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.savefig(buffer, format="svg", transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", svg, count=5)
    svg = re.sub(r' id="[a-z0-9]+_\d+"', "", svg)
    # Clip paths and markers keep their ids, with a prefix that belongs to this drawing alone.
    prefix = hashlib.sha256(svg.encode(errors="replace")).hexdigest()[:8]
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>f{prefix}-", svg)
    svg = svg.replace(_INK, "currentColor")
    label = html.escape(printable(label))
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))


def _finite(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    return np.where(np.abs(array) < _LARGEST, array, np.nan)


def _block_means(x: np.ndarray, y: np.ndarray, scale: str) -> tuple[np.ndarray, ...]:
    """Return means of x and y over at most `MOST_POINTS` stretches, and each stretch's range of y.

    The stretches are equally long on the scale of the axis, so that the steep beginning of a
    curve is kept on a logarithmic one. No more points than that are returned as they are. Gaps
    (NaN) are left out of the means.
    """
    ends = np.linspace(0, x.size, min(x.size, MOST_POINTS) + 1)
    if scale == "log" and x.size > MOST_POINTS:
        ends = np.concatenate([[0], np.geomspace(1, x.size, MOST_POINTS)])
    parts = []
    for start, end in itertools.pairwise(np.unique(ends.round().astype(int))):
        known = np.isfinite(x[start:end]) & np.isfinite(y[start:end])
        x_known, y_known = x[start:end][known], y[start:end][known]
        part = (
            (x_known.mean(), y_known.mean(), y_known.min(), y_known.max()) if known.any() else _GAP
        )
        parts.append(part)
    return tuple(np.array(parts, np.float64).T)


def draw_lines(lines: Sequence[Line], styles: Styles, x: Axis, y: Axis) -> Markup | None:
    """Draw the curves of several models over one axis, or return None where no point is finite.

    Of a long curve the means over `MOST_POINTS` stretches are drawn, and a faint band from each
    stretch's lowest to its highest value. The band does not stretch the axis, so that a single
    spike does not flatten the curve.
    """
    lengths = {line.name: len(line.x) for line in lines if len(line.x)}
    curves = {
        line.name: _block_means(_finite(line.x), _finite(line.y), x.scale)
        for line in lines
        if line.name in lengths
    }
    curves = {name: curve for name, curve in curves.items() if np.isfinite(curve[1]).any()}
    if not curves:
        return None
    with matplotlib.rc_context(_STYLE), np.errstate(all="ignore"):
        figure, axes = _new_axes(2.5, left=0.13)
        for name, (x_mean, y_mean, _, _) in curves.items():
            colour, dash = styles[name]
            # The fewer the points, the more a reader should see that they are points.
            marker = "o" if x_mean.size <= 12 else ""
            axes.plot(x_mean, y_mean, dash, color=colour, marker=marker, markersize=3.5)
        _set_scales(axes, x, y)
        limits = axes.get_ylim()
        for name, (x_mean, _, y_low, y_high) in curves.items():
            if x_mean.size < lengths[name]:
                colour = styles[name].colour
                axes.fill_between(x_mean, y_low, y_high, color=colour, alpha=0.15, lw=0)
        axes.set_ylim(limits)
        axes.set_xlabel(_short(x.title, _LONGEST_TITLE))
        axes.set_title(_short(y.title, _LONGEST_TITLE), x=-0.14)
        return _write(figure, f"{y.title} over {x.title}: {', '.join(map(_short, curves))}")


def _set_scales(axes: Axes, x: Axis, y: Axis) -> None:
    """Scale both axes; a logarithmic axis of values that are not all positive stays linear."""
    if x.scale == "root":
        axes.set_xscale("function", functions=(lambda v: np.sqrt(np.maximum(v, 0.0)), np.square))
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4))  # the right end is dense
    for letter, axis in (("x", x), ("y", y)):
        part = axes.xaxis if letter == "x" else axes.yaxis
        low, high = getattr(axes.dataLim, f"interval{letter}")
        if axis.integers:
            part.set_major_locator(ticker.MaxNLocator(6, integer=True))
        if axis.scale != "log" or not 0 < low < high:
            continue
        axes.set(**{f"{letter}scale": "log"})
        # Matplotlib's labels are powers of ten: few, and written as formulas.
        dense = ticker.MaxNLocator(5, integer=axis.integers)
        part.set_major_locator(dense if high < 20 * low else ticker.LogLocator(subs=(1.0, 3.0)))
        part.set_major_formatter(ticker.FuncFormatter(lambda value, _: format_number(value)))
        part.set_minor_locator(ticker.NullLocator())


# What a stage is first judged by; the rest of its eight curves come in the order of `AXES`.
_JUDGES = "<what judges say>"  # stands for `judged`
_FIRST = {
    "ppo": (
        *("objective/kl", "objective/scores", _JUDGES, "ptx/loss", "rollout/length"),
        *("objective/entropy", "val/var_explained", "policy/clipfrac_avg"),
    ),
    "policy_gradient": (
        *("objective/kl", "objective/scores", _JUDGES, "rollout/length", "objective/entropy"),
        *("policy/clipfrac_avg", "policy/approxkl_avg", "grad_norm"),
    ),
    "preference": (
        *("loss", "rewards/accuracy", "rewards/margin", _JUDGES, "validation/accuracy_heldout"),
    ),
}
AXES = {
    "loss": Axis("training loss", "log"),
    "validation/loss": Axis("validation loss", "log"),
    "rm/accuracy": Axis("training pairs in the right order"),
    "accuracy": Axis("training accuracy"),
    "validation/accuracy": Axis("validation accuracy"),
    "validation/accuracy_heldout": Axis("pairs ordered as held-out labelers do"),
    "validation/accuracy_gold": Axis("pairs ordered as gold does"),
    "validation/loss_heldout": Axis("loss on held-out labelers' pairs"),
    "validation/loss_gold": Axis("loss on gold's pairs"),
    f"{JUDGED}gold": Axis("gold, the exact judge"),
    "gold/truthfulness": Axis("truthfulness by gold"),
    "ptx/loss": Axis("pretraining loss in the mix [nats/token]", "log"),
    "val/var_explained": Axis("variance of returns explained by the value"),
    "policy/clipfrac_avg": Axis("share of ratios clipped"),
    "policy/approxkl_avg": Axis("KL of one update [nats/token]", "log"),
    "objective/kl": Axis("KL from the reference [nats/response]"),
    "objective/scores": Axis("score by the reward model"),
    "objective/entropy": Axis("entropy [nats/response]"),
    "rollout/length": Axis("length of responses [tokens]"),
    "rewards/accuracy": Axis("pairs in the right order by implicit reward"),
    "rewards/margin": Axis("margin of implicit rewards [nats]"),
    "grad_norm": Axis("norm of the gradient", "log"),
    "grad_norm/policy": Axis("norm of the policy's gradient", "log"),
}


def judged(metrics: Iterable[str]) -> list[str]:
    """Return the metrics that are a judge's main number of a policy in training."""
    return sorted(name for name in metrics if name.startswith(JUDGED))


def choose_curves(stage: str, metrics: Collection[str]) -> list[str]:
    """Return at most eight of a stage's metrics, the most telling first.

    Where fewer than four of them are known here, as in a stage of the user's own, the others fill
    the eight.
    """
    names = (*_FIRST.get(stage, ()), *AXES, _JUDGES)
    parts = (judged(metrics) if name == _JUDGES else [name] for name in names)
    wanted = dict.fromkeys(itertools.chain.from_iterable(parts))
    known = [metric for metric in wanted if metric in metrics]
    others = sorted(m for m in metrics if m not in wanted and not m.startswith("perf/"))
    return [*known, *(others if len(known) < 4 else [])][:MOST_CURVES]


def _drawable(interval: Estimate | None) -> bool:
    """Return True for a share that has a place between 0 and 1."""
    return interval is not None and 0 <= interval.value <= 1


def _ends(interval: Estimate) -> np.ndarray:
    """Return both ends of a share's interval, NaN (which draws nothing) where one is not known."""
    ends = [math.nan if end is None else end for end in (interval.low, interval.high)]
    return np.clip(ends, 0, 1) if np.isfinite(ends).all() else np.full(2, np.nan)


def draw_win_rates(
    rates: Sequence[Mapping[str, Estimate]], styles: Styles, title: str
) -> Markup | None:
    """Draw win rates as bars with intervals and a line at one half; None where nobody has one.

    Every mapping is one judge's rates by model; the first judge's bars are dark, the others' pale.
    """
    names = [name for name in styles if any(_drawable(judge.get(name)) for judge in rates)]
    if not names:
        return None
    size = 0.8 / len(rates)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_axes(0.8 + (0.12 + 0.2 * len(rates)) * len(names), left=0.3, right=0.93)
        for place, judge in enumerate(rates):
            for row, name in enumerate(names):
                if not _drawable(judge.get(name)):
                    continue
                y, percent = row + (place - (len(rates) - 1) / 2) * size, 100 * judge[name].value
                colour, alpha = styles[name].colour, 0.4 if place else 0.9
                axes.barh(y, percent, size * 0.88, color=colour, alpha=alpha, lw=0)
                axes.plot(100 * _ends(judge[name]), [y, y], color=_INK, lw=1.2)
                axes.text(101, y, f"{percent:.0f}", va="center", fontsize=8)
        axes.axvline(50, color=_INK, lw=0.9, ls=(0, (3, 2)))
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set(xlim=(0, 100), ylim=(len(names) - 0.5, -0.5), xlabel="% of comparisons")
        axes.grid(visible=False, axis="y")
        axes.set_title(_short(title, _LONGEST_TITLE), x=-0.42)
        return _write(figure, f"{title}: {', '.join(map(_short, names))}")


def draw_reliability(bins: Sequence[Bin], style: Style, name: str) -> Markup | None:
    """Draw accuracy over confidence with a calibrated model's diagonal; None without any pairs.

    The area of a point is its share of all pairs.
    """
    bins = [b for b in bins if 0 <= b.confidence <= 1 and _drawable(b.accuracy) and b.accuracy.n]
    total = sum(b.accuracy.n or 0 for b in bins)
    if not bins:
        return None
    with matplotlib.rc_context(_STYLE):
        figure, axes = _new_axes(2.9, left=0.13)
        axes.plot([0.5, 1], [0.5, 1], color=_INK, lw=0.9, ls=(0, (3, 2)))
        for confidence, accuracy in bins:
            area = 300 * (accuracy.n or 0) / total
            axes.plot([confidence] * 2, _ends(accuracy), color=style.colour, lw=1.3, alpha=0.6)
            axes.scatter(confidence, accuracy.value, area, color=style.colour)
        axes.set(xlim=(0.49, 1.01), ylim=(-0.02, 1.02), xlabel="confidence, σ(|score difference|)")
        axes.set_title(f"accuracy of {_short(name)} on {total:,} pairs", x=-0.14)
        return _write(figure, f"accuracy of {name} over its confidence")
