"""The report: one page from whatever a run left behind, with all foreign text escaped and every gap said."""

import html
import html.parser
import json
import math
import re

import numpy as np
import pytest

from rlhf_jax.apps import report, runs, svg, text
from rlhf_jax.apps._html import Html, el
from rlhf_jax.apps._results import parse, results_table, samples_section
from rlhf_jax.apps.graph import Node, stage_graph
from rlhf_jax.data.records import Comparison, Message
from rlhf_jax.evaluation.benchmarks import reward_accuracy
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import row_to_json

SCRIPT = "<script>alert('pwned')</script>"
MODEL = {"num_layers": 2, "width": 32, "context_length": 64}


def drawn_table(table=None):
    evaluation = parse(EVALUATION if table is None else EVALUATION | {"table": table}, [])
    return str(results_table(evaluation, evaluation.rows, grouped=True))


def write_stage(
    folder,
    stage,
    rows,
    *,
    lineage=None,
    config=None,
    samples=(),
    steps=4,
    planned=4,
    fingerprint=None,
):
    """A workdir as training leaves it, with the meta file in the checkpoints' own format."""
    meta_folder = folder / "checkpoints" / str(steps) / "meta"
    meta_folder.mkdir(parents=True)
    meta = {
        "stage": stage,
        "step": steps,
        "num_steps": planned,
        "model": MODEL,
        "lineage": lineage or {},
        "fingerprint": fingerprint or folder.name,
    }
    (meta_folder / "metadata").write_text(json.dumps({"meta": meta, "leaves": {}, "crc32": 0}))
    (folder / "config.json").write_text(
        json.dumps({"stage": stage, "config": config or {"seed": 0}, "version": "9.9"})
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if samples:
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))


def curve(name, num=4, start=1.0):
    return [{"step": step, name: start / step} for step in range(1, num + 1)]


def value(middle, half=0.1, n=100):
    return {"value": middle, "low": middle - half, "high": middle + half, "n": n}


def row(metric, better, values, **changes):
    words = {
        "group": "Alignment",
        "unit": "share",
        "better": better,
        "description": f"about {metric}",
    }
    return {"metric": metric, **words, "values": values, **changes}


EVALUATION = {
    "checkpoints": {
        "sft": {"path": "runs/q/sft", "stage": "sft", "step": 4},
        "ppo": {"path": "runs/q/ppo"},
    },
    "reference": "sft",
    "table": [
        row("gold", "higher", {"sft": value(0.0), "ppo": value(0.6)}),
        row("rude", "lower", {"sft": value(0.2), "ppo": value(0.21)}),
        row(
            "length",
            "none",
            {"sft": value(9.0), "ppo": {"value": 12.0, "low": None, "high": None, "n": 5}},
        ),
    ],
    "samples": [
        {
            "prompt": f"<|user|>hi {SCRIPT}<|assistant|>",
            "metadata": {SCRIPT: SCRIPT},
            "responses": {
                "sft": {"text": SCRIPT, "finished": True, "gold": 1.0, "score": None},
                SCRIPT: {"text": "", "finished": False, "gold": None, "score": 0.5},
            },
        }
    ],
    "seed": 3,
    "version": "9.9",
}


def parent(name, fingerprint=None):
    return {
        "path": f"elsewhere/q/{name}",
        "stage": name,
        "step": 4,
        "fingerprint": fingerprint or name,
    }


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "q"
    write_stage(folder / "pretrain", "pretrain", curve("loss"))
    write_stage(folder / "sft", "sft", curve("loss"), lineage={"policy": parent("pretrain")})
    write_stage(
        folder / "reward", "reward", curve("rm/accuracy"), lineage={"policy": parent("sft")}
    )
    both = {"policy": parent("sft"), "reward": parent("reward")}
    samples = [
        {
            "step": 4,
            "prompt": f"<|user|>{SCRIPT}",
            "response": SCRIPT,
            "score": 1.5,
            "finished": True,
        }
    ]
    for name, coefficient in (("ppo", 0.0), ("ppo_ptx", 0.5)):
        config = {"seed": 0, "ppo": {"ptx_coef": coefficient, "note": SCRIPT}}
        write_stage(
            folder / name,
            "ppo",
            curve("objective/kl"),
            lineage=both,
            config=config,
            samples=samples,
        )
    (folder / "evaluate").mkdir()
    (folder / "evaluate" / "config.json").write_text(
        json.dumps({"stage": "evaluate", "config": {}})
    )
    (folder / "evaluate" / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


class Reader(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects text, tags and attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "hr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def read(path, *more):
    return Reader(report.render([path, *more]))


def gaps(path):
    page = report.render([path])
    return html.unescape(" ".join(re.findall(r"<li>(.*?)</li>", page)))


def test_a_whole_run_has_no_gaps_and_shows_every_part(run):
    page = read(run)
    said = " ".join(page.words)
    for part in (
        "Lineage",
        "Results",
        "Pretraining",
        "Supervised fine-tuning",
        "Reward model",
        "PPO",
        "Samples",
    ):
        assert part in said
    assert "Gaps" not in said
    assert "2 layers × 32, context 64" in said
    assert (
        page.tags.count("polyline") == 5
    )  # one mean per stage and metric: 3 stages, and both PPOs in one chart


def test_command_writes_one_file_that_fetches_nothing(run, capsys):
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert str(run / "report.html") in capsys.readouterr().out
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    attributes = dict(Reader(page).attributes)
    assert "default-src 'none'" in html.unescape(page)
    assert not {"src", "srcset", "action", "onclick", "onload"} & set(attributes)
    assert [link for link in re.findall(r'href="([^"]*)"', page) if not link.startswith("#")] == []


def test_output_can_be_elsewhere_and_missing_folders_are_an_error(run, tmp_path, capsys):
    assert report.main([str(run / "ppo"), f"--output={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").exists()
    assert report.main([str(tmp_path / "nothing")]) == 2
    assert report.main([str(tmp_path / "page.html")]) == 2
    assert report.main([str(run), "--output=/nowhere/page.html"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["not there" in errors[0], "a file" in errors[1], "--output" in errors[2]] == [True] * 3


def test_foreign_text_never_becomes_markup(run):
    page = report.render([run])
    reader = Reader(page)
    assert reader.tags.count("script") == 1  # ours
    assert "alert" not in [name for name, _ in reader.attributes]
    assert SCRIPT not in page
    said = "".join(reader.words)
    assert (
        said.count(SCRIPT) >= 6
    )  # prompt, metadata, name, response, config, training samples: shown as text


def test_script_matches_the_policy_that_allows_it(run):
    import base64
    import hashlib

    page = report.render([run])
    body = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page


@pytest.mark.parametrize("tag", ["p", "td"])
def test_el_escapes_text_and_attributes(tag):
    assert el(tag, "a<b", title='"&') == f'<{tag} title="&quot;&amp;">a&lt;b</{tag}>'
    assert el(tag, Html("<b>x</b>"), None, ["y", el("br")]) == f"<{tag}><b>x</b>y<br></{tag}>"


def test_el_refuses_what_is_neither_text_nor_markup():
    with pytest.raises(TypeError, match="not int"):
        el("p", 3)


# --- gaps -----------------------------------------------------------------------------------------


def test_empty_folder_is_a_page_that_says_so(tmp_path):
    assert "no stage has written anything" in gaps(tmp_path)


def test_half_run_says_what_is_missing_and_shows_the_rest(tmp_path):
    write_stage(tmp_path / "q" / "pretrain", "pretrain", curve("loss"), planned=9)
    (tmp_path / "q" / "sft").mkdir()
    (tmp_path / "q" / "ppo").mkdir()
    (tmp_path / "q" / "ppo" / "config.json").write_text(
        '{"stage": "ppo", "config": {"init": {"policy": "q/sft"}}}'
    )
    said = gaps(tmp_path / "q")
    for part in (
        "q/sft: nothing written yet",
        "q/ppo: metrics.jsonl is missing",
        "checkpoints/ is missing",
        "no evaluation.json found",
    ):
        assert part in said
    words = " ".join(read(tmp_path / "q").words)
    assert "step 4 of 9, not finished" in words
    assert "not in this folder" in words  # the parent that config.init names


def test_half_written_last_line_is_left_out_and_said(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    with (tmp_path / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    found = runs.read_workdir(tmp_path / "sft", "sft")
    assert found.metrics["loss"].steps == (1, 2, 3, 4)
    assert found.problems == ["metrics.jsonl:5 is half-written and left out"]


def test_broken_lines_are_counted_by_number(tmp_path):
    problems = []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 2}\nnonsense\n[1]\n{"step": 2, "loss": 1}\n\xff\xfe\n'
        + b"[" * 10**5
        + b"\n"
    )
    assert [r["step"] for r in runs.read_rows(path, problems)] == [1, 2]
    assert problems == [
        "metrics.jsonl: 4 line(s) are not JSON objects and left out (line 2, 3, 5, 6)"
    ]


@pytest.mark.parametrize(
    "name", ["config.json", "evaluation.json", "metrics.jsonl", "checkpoints/4/meta/metadata"]
)
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"meta": 3}', "\x00", '{"table": 5, "stage": {}, "config": 7}'],
)
def test_damaged_files_never_crash_the_report(tmp_path, name, content):
    write_stage(tmp_path / "q" / "sft", "sft", curve("loss"))
    (tmp_path / "q" / "sft" / "evaluation.json").write_text(json.dumps(EVALUATION))
    (tmp_path / "q" / "sft" / name).write_text(content)
    read(tmp_path / "q")


def test_unreadable_file_is_named(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    (tmp_path / "sft" / "metrics.jsonl").unlink()
    (tmp_path / "sft" / "metrics.jsonl").mkdir()
    assert "metrics.jsonl cannot be read" in gaps(tmp_path / "sft")


def test_unfinished_checkpoints_do_not_count(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    (tmp_path / "sft" / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir()
    assert list(runs.read_workdir(tmp_path / "sft", "sft").metas) == [4]


def test_strange_values_in_metrics_are_gaps_not_crashes(tmp_path):
    rows = [
        {"step": 1, "loss": math.nan, "name": "x", "flag": True, "big": 10**400, "list": [1]},
        {"step": 2, "loss": math.inf, "none": None, "late": 3},
        {"step": "3", "loss": 1.0},
        {"loss": 1.0},
        {"step": 4, "loss": -1e300},
        {"step": 4, "loss": 2.0},
    ]
    write_stage(tmp_path / "sft", "sft", rows)
    metrics = runs.read_workdir(tmp_path / "sft", "sft").metrics
    assert metrics["loss"].steps == (1, 2, 4)
    assert np.isnan(metrics["loss"].values[:2]).all()
    assert metrics["loss"].values[2] == 2.0
    assert set(metrics) == {"loss", "big", "late"}
    read(tmp_path / "sft")


# --- lineage --------------------------------------------------------------------------------------


def test_lineage_follows_recorded_parents_even_after_a_move(run):
    workdirs = runs.read_run(run, "q", [])
    nodes = report.lineage_nodes([w for w in workdirs if not w.is_evaluation], many=False)
    names = [node.title for node in nodes]
    assert names == ["pretrain", "sft", "reward", "ppo", "ppo_ptx"]
    parents = {node.title: [names[p] for p in node.parents] for node in nodes}
    assert parents["ppo"] == ["sft", "reward"]
    assert parents["sft"] == ["pretrain"]
    assert parents["pretrain"] == []


def test_retrained_parent_is_said(tmp_path):
    folder = tmp_path / "q"
    write_stage(folder / "pretrain", "pretrain", curve("loss"), fingerprint="new")
    write_stage(folder / "sft", "sft", curve("loss"), lineage={"policy": parent("pretrain", "old")})
    assert "sft: its policy (pretrain, step 4) has been trained anew since" in gaps(folder)


def test_parent_outside_of_the_folder_is_dashed(run):
    nodes = report.lineage_nodes([runs.read_workdir(run / "ppo", "ppo")], many=False)
    assert [(node.title, node.dashed) for node in nodes] == [
        ("ppo", False),
        ("sft", True),
        ("reward", True),
    ]


def test_arrows_get_a_free_lane_past_other_boxes():
    chain = [Node("a", (), 0, ()), Node("b", (), 0, (0,)), Node("c", (), 0, (0, 1))]
    drawn = str(stage_graph(chain, label="x"))
    boxes = [float(y) for y in re.findall(r'<rect x="[^"]*" y="([^"]*)" width="196"', drawn)]
    past = float(re.search(r"M198\.0,[\d.]+ C[\d.]+,[\d.]+ [\d.]+,([\d.]+) 244\.0", drawn)[1])
    assert not boxes[1] - 1 <= past <= boxes[1] + 75


def test_circular_lineage_is_drawn_not_followed_for_ever():
    assert "<svg" in stage_graph([Node("a", (), 0, (1, 0)), Node("b", (), 0, (0,))], label="x")


# --- results --------------------------------------------------------------------------------------


def test_verdicts_need_disjoint_intervals_and_a_direction():
    said = drawn_table()
    assert '<span class="better best">0.6</span>' in said.replace("0.60", "0.6")
    assert (
        said.count("better best") == 1
    )  # rude is worse by less than its interval, length has no direction
    assert said.count("worse") == 0
    assert "no interval" in said


def test_lower_is_better_is_worse_when_higher():
    table = [row("rude", "lower", {"sft": value(0.2), "ppo": value(0.6)})]
    said = drawn_table(table)
    assert re.search(r'class="worse">0\.60<', said)
    assert re.search(r'class="best">0\.20<', said)


def test_nobody_is_best_among_equals():
    table = [row("rude", "lower", {"sft": value(0.2), "ppo": value(0.2)})]
    assert "best" not in drawn_table(table)


def test_decimals_follow_the_narrowest_interval():
    table = [row("loss", "lower", {"sft": value(1.23456, half=0.004), "ppo": value(1.5, half=0.3)})]
    said = drawn_table(table)
    assert ">1.235<" in said
    assert ">1.500<" in said


def test_tiny_numbers_keep_their_digits_and_zero_has_no_sign():
    assert "<span>0.00</span>" in drawn_table(
        [row("entropy", "none", {"sft": value(-0.001, 0.05)})]
    )
    assert ">2.5e−5<" in drawn_table([row("entropy", "none", {"sft": value(2.5e-5, 1e-6)})])


def test_columns_are_in_the_order_of_the_pipeline():
    listed = {name: {} for name in ("mine", "ppo", "base", "sft")} | {"other": {"stage": "reward"}}
    assert list(parse(EVALUATION | {"checkpoints": listed}, []).checkpoints) == [
        "base",
        "sft",
        "other",
        "ppo",
        "mine",
    ]


def test_long_tables_begin_with_the_first_metric_of_each_group(run):
    table = [row(f"m{i}", "higher", {"sft": value(i)}, group=f"group {i // 8}") for i in range(24)]
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(EVALUATION | {"table": table}))
    page = report.render([run])
    short, every = page.split("All 24 metrics")
    assert [f"group {g}: m{8 * g} " in short for g in range(3)] == [True] * 3
    assert "colspan" not in short
    assert every.count("colspan") == 3
    assert "m1 " not in short
    assert every.count('class="metric"') == 24


def test_missing_and_malformed_rows_are_said():
    problems = []
    table = [*EVALUATION["table"], {"metric": "x"}, 7, row("y", "higher", {"sft": {"value": None}})]
    read_back = parse(EVALUATION | {"table": table, "reference": "base"}, problems)
    assert [r.metric for r in read_back.rows] == ["gold", "rude", "length"]
    assert problems == [
        "evaluation.json: 3 of 6 table rows are not as agreed",
        "evaluation.json: the reference 'base' is not among the checkpoints",
    ]


def test_a_checkpoint_without_a_value_gets_a_dash():
    table = [row("win", "higher", {"ppo": value(0.7)})]
    assert "not measured" in drawn_table(table)


def test_empty_and_cut_off_responses_are_said():
    said = str(samples_section(parse(EVALUATION, []), "Samples", "samples"))
    assert "(empty response)" in said
    assert "cut off" in said
    assert samples_section(parse(EVALUATION | {"samples": None}, []), "Samples", "samples") is None


def reliability_page(run, name):
    """The report of what the benchmark stage writes about three pairs of one prompt and one of another."""
    comparisons = [Comparison((Message("user", prompt),), ("a", "b"), (1, 2)) for prompt in "xxxy"]
    measured = {
        name: {"kept": [0, 1, 2, 3], "scores": [[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.1, 0.0]]}
    }
    rows = reward_accuracy.rows(
        comparisons,
        measured,
        Bootstrap(20, 0),
        subsets=[""] * 4,
        num_bins=5,
        sections={},
        section_weights={},
    )
    table = [row_to_json(one) for one in rows]
    written = EVALUATION | {"checkpoints": {name: {}, "sft": {}}, "table": table}
    (run / "evaluate" / "evaluation.json").write_text(json.dumps(written))
    return report.render([run])


def test_reliability_is_drawn_for_every_checkpoint_that_has_bins(run):
    page = reliability_page(run, "reward")
    assert [entry for entry in gaps(run).split(". ") if "evaluation" in entry] == []
    assert page.count('aria-label="accuracy of ') == 1  # sft has none
    assert "4 pairs" in " ".join(Reader(page).words)
    drawn = page.split('aria-label="accuracy of reward over its confidence"')[1].split("</svg>")[0]
    assert "1 pair: confidence 0.525, accuracy 1" in drawn
    assert "3 pairs: confidence 0.881, accuracy 0.667" in drawn
    radius = [float(r) for r in re.findall(r'<circle [^>]*r="([^"]*)"', drawn)]
    assert radius[1] == pytest.approx(
        radius[0] * 3**0.5, rel=0.02
    )  # a dot's area is its number of pairs
    heights = [float(y) for y in re.findall(r'cy="([^"]*)"', drawn)]
    assert heights[0] < heights[1]  # up is right
    assert drawn.count('class="zero"') == 1  # the diagonal


def test_reliability_escapes_names_and_leaves_the_pointer_script_alone(run):
    page = reliability_page(run, SCRIPT)
    assert SCRIPT not in page
    assert "accuracy of &lt;script&gt;" in page
    assert all(
        "data-box" in tag for tag in re.findall(r'<svg[^>]*class="chart"[^>]*>', page)
    )  # the script reads it of each


@pytest.mark.parametrize("strange", [math.nan, math.inf, -3.0, 1e300])
def test_reliability_of_strange_bins_has_finite_coordinates(strange):
    bins = [
        svg.Bin(0.7, 0.6, strange, strange, 3),
        svg.Bin(strange, 0.5, None, None, 5),
        svg.Bin(0.6, 0.5, 0.4, 0.6, 0),
    ]
    assert not re.search(r"nan|inf", str(svg.reliability_chart(bins, 1, label="x")))
    assert svg.reliability_chart(bins[2:], 1, label="x") is None


# --- curves ---------------------------------------------------------------------------------------


def test_stages_share_charts_and_constant_metrics_are_text(tmp_path):
    for name, end in (("a", 1.0), ("b", 2.0)):
        write_stage(
            tmp_path / name / "ppo",
            "ppo",
            [r | {"lr": 0.1} for r in curve("objective/kl", start=end)],
        )
    page = report.render([tmp_path / "a", tmp_path / "b"])
    assert page.count("<figure>") == 1
    assert page.count('data-name="a/ppo"') == page.count('data-name="b/ppo"') == 1
    assert "lr = a/ppo 0.1, b/ppo 0.1" in page


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for name in "ab":
        write_stage(tmp_path / name / "ppo", "ppo", curve("objective/kl"))
    page = report.render([tmp_path / "a" / "ppo", tmp_path / "b" / "ppo"])
    assert page.count('data-name="a/ppo"') == page.count('data-name="b/ppo"') == 1
    assert 'data-name="ppo"' in report.render([tmp_path / "a" / "ppo", tmp_path / "a" / "ppo"])


def test_configs_side_by_side_mark_what_differs(run):
    page = report.render([run])
    assert "Configuration (3 settings, 1 differ)" in page
    assert '<tr class="differs"><td>ppo.ptx_coef</td><td>0</td><td>0.5</td></tr>' in page


def test_smooth_keeps_straight_lines_and_gaps_and_shrinks_noise():
    line = [2.0 + 0.5 * i for i in range(600)]
    np.testing.assert_allclose(svg.smooth(line), line, rtol=1e-9)
    noise = np.random.default_rng(0).normal(size=600)
    assert np.std(svg.smooth(noise)[50:-50]) < 0.35
    noise[10] = math.nan
    assert [i for i, mean in enumerate(svg.smooth(noise)) if not math.isfinite(mean)] == [10]
    assert svg.smooth([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0]  # few points are shown as they are


def test_thin_keeps_ends_and_extremes():
    points = [(float(i), 0.0) for i in range(1000)]
    points[333] = (333.0, 9.0)
    thinned = svg.thin(points, 100)
    assert len(thinned) <= 100
    assert (333.0, 9.0) in thinned
    assert svg.thin(points[:50], 100) == points[:50]


def test_gaps_cut_the_curve():
    chart = svg.line_chart(
        [svg.Line("x", 1, [1, 2, 3, 4, 5], [1.0, 2.0, math.nan, 2.0, 1.0])], label="x"
    )
    assert chart.count("<polyline") == 2
    assert svg.line_chart([svg.Line("x", 1, [1], [math.nan])], label="x") is None


@pytest.mark.parametrize(
    "values", [[3.0], [0.0, 0.0], [1e-300, 2e-300], [-1e300, 1e300], [5.0, 5.0 + 1e-12]]
)
def test_charts_of_awkward_ranges_have_finite_coordinates(values):
    chart = svg.line_chart([svg.Line("x", 0, range(1, len(values) + 1), values)], label="x")
    assert not re.search(r"nan|inf", str(chart))


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.994, 1.006, ["0.995", "1.000", "1.005"]),
        (0, 30000, ["0", "10k", "20k", "30k"]),
        (0, 3, ["0", "1", "2", "3"]),
        (0, 3.2e-5, ["0", "1e−5", "2e−5", "3e−5"]),
        (-0.31, 0.02, ["−0.3", "−0.2", "−0.1", "0.0"]),
    ],
)
def test_axis_labels_tell_ticks_apart(low, high, labels):
    assert svg.format_ticks(svg.ticks(low, high, 4)) == labels


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.0, "0"),
        (1234.5, "1,234"),
        (0.012345, "0.0123"),
        (-2.5, "−2.5"),
        (1e-7, "1e−7"),
        (2.5e9, "2.5e9"),
        (100.0, "100"),
        (math.nan, "not finite"),
    ],
)
def test_numbers(number, shown):
    assert svg.format_number(number) == shown


# --- text -----------------------------------------------------------------------------------------


def test_printable_takes_control_away_and_leaves_words():
    assert (
        text.printable("a\x1b[31mred\x1b[0m\x07b\x1b]0;title\x07c\x9b1md\r\ne\rf\tg")
        == "aredbc1md\ne\nf\tg"
    )
    assert text.printable("safe\u202egnp.exe\u2066\u200f\U000e0041\ud800") == "safegnp.exe"
    assert text.printable("naïve 你好 👩‍👩‍👧 \x1bword") == "naïve 你好 👩‍👩‍👧 word"


def test_turns_split_at_role_markers():
    assert text.turns("<|user|>hi<|assistant|>yes<|eos|><|user|>a<|assistant|>") == [
        ("user", "hi"),
        ("assistant", "yes"),
        ("user", "a"),
    ]
    assert text.turns("plain <|pad|>words") == [("", "plain words")]


def test_cuts_are_counted():
    assert text.shorten("abcdef", 4) == "abcd… [2 more characters]"
    assert text.shorten("abcd", 4) == "abcd"
