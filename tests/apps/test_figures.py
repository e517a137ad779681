"""Figures are the same bytes for the same data, stand alone in a page, and survive any number."""

import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest

from rlhf_jax.apps import figures
from rlhf_jax.apps.figures import Axis, Bin, Line, Style
from rlhf_jax.evaluation.estimates import Estimate

BLUE = Style("#0000ff", "-")
STEP, LOSS = Axis("step", integers=True), Axis("loss [nats]", "log")


def draw(values, x=STEP, y=LOSS):
    return figures.draw_lines([Line("m", range(1, len(values) + 1), values)], {"m": BLUE}, x, y)


def texts(svg):
    return re.findall(r"<text[^>]*>(.*?)</text>", svg)


def curve_points(svg):
    """The points of every curve and band edge in the model's colour."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*stroke: #0000ff', svg)
    return [len(re.findall(r"[ML] ", path)) for path in paths]


def test_the_same_data_are_the_same_bytes():
    values = list(np.random.default_rng(0).uniform(1, 2, 300))
    assert draw(values) == draw(values)
    assert draw(values) != draw(values[:-1])


def test_a_figure_can_stand_in_a_page():
    svg = draw([3.0, 2.0, 1.5])
    assert svg.startswith('<svg role="img" aria-label="loss [nats] over step: m"')
    assert not re.search(r"https?:|xmlns|<style|<metadata|<!--|<\?xml|DOCTYPE|\d{4}-\d\d-\d\d", svg)
    root = xml.etree.ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert {"width", "height"} & set(root.attrib) == set()
    assert "currentColor" in svg
    assert "#010203" not in svg


def test_ids_of_two_figures_differ_and_every_reference_has_one():
    first, second = draw([3.0, 2.0, 1.5]), draw([3.0, 2.0, 1.4])
    ids = [re.findall(r' id="([^"]*)"', svg) for svg in (first, second)]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r"url\(#([^)]*)\)|xlink:href=\"#([^\"]*)\"", first)) != set()
    for pair in re.findall(r"url\(#([^)]*)\)|xlink:href=\"#([^\"]*)\"", first):
        assert next(filter(None, pair)) in ids[0]


def test_names_are_text_never_markup_nor_formulas():
    name = "$x^2$ --><script>\x07"
    lines = [Line(name, [1, 2], [1.0, 2.0])]
    curves = figures.draw_lines(lines, {name: BLUE}, STEP, Axis(name))
    bars = figures.draw_win_rates([{name: Estimate(0.5, 0.4, 0.6, 9)}], {name: BLUE}, name)
    for svg in (curves, bars):
        assert "$x^2$ --&gt;&lt;script&gt;" in texts(svg)
        assert "<script" not in svg
        assert "\x07" not in svg


def test_long_curves_become_means_and_keep_their_level():
    x, y = np.arange(1.0, 6001.0), np.random.default_rng(0).normal(5.0, 1.0, 6000)
    x_mean, y_mean, low, high = figures._block_means(x, y, "linear")
    assert x_mean.size == figures.MOST_POINTS
    np.testing.assert_allclose(x_mean[:2], [50.5, 150.5])
    assert abs(y_mean - 5.0).max() < 0.5
    assert ((low < y_mean) & (y_mean < high)).all()
    log_x, *_ = figures._block_means(x, y, "log")
    assert log_x[0] == 1.0
    assert log_x.size <= figures.MOST_POINTS


def test_short_curves_are_drawn_as_they_are_and_gaps_stay_gaps():
    y = np.array([1.0, math.nan, 3.0])
    x_mean, y_mean, *_ = figures._block_means(np.array([1.0, 2.0, 3.0]), y, "linear")
    np.testing.assert_array_equal(y_mean, y)
    assert np.isnan(x_mean[1])
    assert draw([math.nan, math.nan]) is None
    assert figures.draw_lines([], {}, STEP, LOSS) is None
    assert figures.draw_lines([Line("m", [], [])], {"m": BLUE}, STEP, LOSS) is None


@pytest.mark.parametrize(
    "values",
    [
        [3.0],
        [0.0, 0.0],
        [1e-300, 2e-300],
        [-1e300, 1e300, 1.0],
        [5.0, 5.0 + 1e-12],
        [-1.0, 2.0],
        [1e-9, 1e9],
    ],
)
@pytest.mark.parametrize("scale", ["linear", "log", "root"])
def test_awkward_ranges_have_finite_coordinates(values, scale):
    for svg in (draw(values, y=Axis("y", "log")), draw(values, x=Axis("x", scale))):
        assert not re.search(r"\b(nan|inf)\b", svg)


def test_axes_have_titles_and_plain_numbers():
    shown = texts(draw(list(np.geomspace(6.0, 1.0, 50))))
    assert "step" in shown
    assert "loss [nats]" in shown
    numbers = [text for text in shown if text not in ("step", "loss [nats]")]
    assert len(numbers) >= 6
    assert all(re.fullmatch(r"−?[\d,.]+", text) for text in numbers)


def test_steps_are_whole_numbers():
    shown = texts(draw([1.0, 2.0, 3.0], y=Axis("y")))
    assert {"1", "2", "3"} <= set(shown)
    assert "1.5" not in shown[: shown.index("step")]


def lines_drawn(svg, width):
    """The ends of all straight lines of one width, in the figure's points."""
    number = r"(-?[\d.]+)"
    path = rf'<path d="M {number} {number} \nL {number} {number} \n" [^>]*stroke-width: {width}[;"]'
    return [tuple(map(float, ends)) for ends in re.findall(path, svg)]


def test_win_rates_are_bars_with_intervals_and_a_line_at_one_half():
    first = {
        "a": Estimate(0.61, 0.5, 0.75, 9),
        "b": Estimate(0.4, None, None, 9),
        "c": Estimate(1e300, 0, 1, 9),
    }
    second = {"a": Estimate(0.55, -3.0, math.inf, 9)}
    svg = figures.draw_win_rates([first, second], dict.fromkeys("abcd", BLUE), "title")
    shown = texts(svg)
    assert [number in shown for number in ("61", "40", "55", "a", "b")] == [True] * 5
    assert "c" not in shown  # a share beyond 1 has no place
    assert "d" not in shown
    ((half, _, end, _),) = lines_drawn(svg, 0.9)
    ((low, _, high, _),) = lines_drawn(svg, 1.2)  # of the one interval that is known
    assert half == end == pytest.approx(low)
    left, right = 0.3 * 4.3 * 72, 0.93 * 4.3 * 72
    assert half == pytest.approx((left + right) / 2, abs=0.01)
    assert high == pytest.approx(left + 0.75 * (right - left), abs=0.01)
    assert figures.draw_win_rates([{}], {"a": BLUE}, "title") is None


@pytest.mark.parametrize("strange", [math.nan, math.inf, -3.0, 1e300])
def test_reliability_of_strange_bins_has_finite_coordinates(strange):
    bins = [
        Bin(0.7, Estimate(0.6, strange, strange, 3)),
        Bin(strange, Estimate(0.5, None, None, 5)),
        Bin(0.6, Estimate(0.5, 0.4, 0.6, 0)),
    ]
    svg = figures.draw_reliability(bins, BLUE, "m")
    assert not re.search(r"\b(nan|inf)\b", svg)
    assert "accuracy of m on 3 pairs" in svg
    assert figures.draw_reliability(bins[1:], BLUE, "m") is None


def test_every_model_has_its_own_style_and_usual_stages_keep_theirs():
    many = figures.make_styles([*(f"m{i}" for i in range(30)), "ppo", "sft"])
    assert len(set(many.values())) == 32
    few = figures.make_styles(["sft", "ppo", "mine"])
    assert few["sft"].colour == many["sft"].colour
    assert few["ppo"].colour == many["ppo"].colour
    both = figures.make_styles(["base", "pretrain"])
    assert both["base"] != both["pretrain"]
    assert len(figures.make_styles(map(str, range(1000)))) == 1000


def test_at_most_eight_curves_and_the_most_telling_first():
    logged = [
        "loss",
        "ptx/loss",
        "objective/kl",
        "objective/scores",
        "judge/gold",
        "perf/x",
        *(f"z{i}" for i in range(9)),
    ]
    chosen = figures.choose_curves("ppo", logged)
    assert chosen == ["objective/kl", "objective/scores", "judge/gold", "ptx/loss", "loss"]
    own = [name.replace("judge/gold", "judge/mine") for name in logged]
    assert figures.choose_curves("ppo", own)[:3] == [*chosen[:2], "judge/mine"]
    # What a judge says is known by the beginning of its name, not by how it happens to end.
    assert figures.judged(["validation/score", "tokens/total", "judge/mine"]) == ["judge/mine"]
    assert figures.choose_curves("my_stage", ["z1", "loss", "perf/x", "a"]) == ["loss", "a", "z1"]
    assert len(figures.choose_curves("my_stage", [f"z{i}" for i in range(20)])) == 8
    assert len(figures.choose_curves("ppo", list(figures.AXES))) == 8
