"""The report: one page from whatever a run left behind, text escaped and every gap said."""

import html
import html.parser
import json
import re
import subprocess

import pytest
from run_support import (
    EVALUATION,
    LABELS,
    SCRIPT,
    curve,
    parent,
    row,
    value,
    win_rate,
    write_evaluation,
    write_labels,
    write_stage,
)

from rlhf_jax.apps import report, runs
from rlhf_jax.apps.report import Provenance
from rlhf_jax.apps.runs import Notes
from rlhf_jax.data.records import Comparison, Message
from rlhf_jax.evaluation.benchmarks import reward_accuracy
from rlhf_jax.evaluation.estimates import Bootstrap
from rlhf_jax.evaluation.table import row_to_json

WRITTEN = Provenance("2026-01-02 03:04 UTC", "abc1234", "Linux, 2 CPU cores", "rlhf_jax 9.9")
POLICY = ("objective/kl", "objective/scores", "judge/gold")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "q"
    write_stage(folder / "pretrain", "pretrain", curve("loss"))
    write_stage(folder / "sft", "sft", curve("loss"), lineage={"policy": parent("pretrain")})
    write_stage(
        folder / "reward", "reward", curve("rm/accuracy"), lineage={"policy": parent("sft")}
    )
    both = {"policy": parent("sft"), "reward": parent("reward")}
    for name in ("ppo", "ppo_ptx"):
        write_stage(folder / name, "ppo", curve(*POLICY), lineage=both)
    write_evaluation(folder / "evaluate")
    return folder


class Reader(html.parser.HTMLParser):
    """Checks that every element is closed in order, and collects text, tags and attributes."""

    VOID = ("meta", "br", "hr")

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def render(folder):
    return report.render(folder, WRITTEN)


def words(page):
    return " ".join(" ".join(Reader(page).words).split())


def notes(page):
    box = page.split('<div class="notes">')[1].split("</div>")[0]
    return html.unescape(" ".join(re.findall(r"<li>(.*?)</li>", box)))


def with_evaluation(run, **changes):
    write_evaluation(run / "evaluate", EVALUATION | changes)
    return render(run)


def section(page, anchor):
    return page.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def figure(page, label):
    return page.split(f'aria-label="{label}')[1].split("</svg>")[0]


# --- the page -------------------------------------------------------------------------------------


def test_a_whole_run_shows_every_part_in_order_and_notes_nothing(run):
    page = render(run)
    assert re.findall(r'<section id="(\w+)">', page) == [
        "answers",
        "results",
        "pictures",
        "curves",
        "models",
    ]
    assert 'class="notes"' not in page
    said = words(page)
    for title in (
        "Pretraining",
        "Supervised fine-tuning",
        "Reward model",
        "PPO",
        "tensorboard --logdir q",
    ):
        assert title in said
    assert (
        "Page written 2026-01-02 03:04 UTC, commit abc1234, on Linux, 2 CPU cores; rlhf_jax 9.9"
        in said
    )
    assert "layers 2, width 32, context 64" in said
    assert "trained with rlhf_jax 9.9" in said


def test_the_same_run_gives_the_same_bytes(run):
    assert render(run) == render(run)


def test_command_writes_one_file_that_fetches_nothing(run, capsys):
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_text()
    assert str(run / "report.html") in capsys.readouterr().out
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", page)
    reader = Reader(page)
    names = {name for name, _ in reader.attributes}
    assert not {"src", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    links = [link for name, link in reader.attributes if name in ("href", "xlink:href")]
    assert [link for link in links if not link.startswith("#")] == []
    assert not {"script", "img", "link", "iframe", "object", "form"} & set(reader.tags)
    assert "default-src 'none'" in html.unescape(page)


def test_no_two_elements_share_an_id_and_every_link_has_its_target(run):
    page = render(run)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]*)"', page)) <= set(ids)


def test_output_can_be_elsewhere_and_errors_are_one_line(run, tmp_path, capsys):
    assert report.main([str(run / "ppo"), f"--output={tmp_path / 'page.html'}"]) == 0
    assert (tmp_path / "page.html").exists()
    assert report.main([str(tmp_path / "nothing")]) == 2
    assert report.main([str(tmp_path / "page.html")]) == 2
    assert report.main([str(run), "--output=/nowhere/page.html"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["not there" in errors[0], "a file" in errors[1], "--output" in errors[2]] == [True] * 3
    assert len(errors) == 3


def test_provenance_names_this_code_or_nothing(monkeypatch):
    here = report.read_provenance()
    assert "Python 3" in here.versions
    assert "jax " in here.versions
    assert "CPU cores" in here.machine

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "check_output", no_git)
    assert report.read_provenance().commit == ""


# --- foreign text ---------------------------------------------------------------------------------


def hostile_evaluation():
    replies = {SCRIPT: {"text": SCRIPT, "finished": False, "gold": 1.0}, "sft": {"text": SCRIPT}}
    sample = {"prompt": f"<|user|>{SCRIPT}", "metadata": {SCRIPT: SCRIPT}, "responses": replies}
    values = {SCRIPT: value(0.5), "sft": value(0.4)}
    texts = dict.fromkeys(("group", "unit", "description"), SCRIPT)
    table = [
        row(SCRIPT, "higher", values, **texts),
        win_rate("win_rate_gold", SCRIPT, **values),
        win_rate("reliability_accuracy", SCRIPT, **values),
        win_rate("reliability_confidence", SCRIPT, **values),
    ]
    return {
        "checkpoints": {SCRIPT: {"path": SCRIPT, "stage": SCRIPT, "step": 3}, "sft": {}},
        "reference": SCRIPT,
        "table": table,
        "samples": [sample],
        "seed": SCRIPT,
    }


def test_foreign_text_never_becomes_markup(tmp_path):
    folder = tmp_path / "<script>alert(1)<"
    lineage = {SCRIPT: {"path": SCRIPT, "step": 1}}
    write_stage(
        folder / "<b>sft", SCRIPT, curve(SCRIPT, "objective/kl", "judge/gold"), lineage=lineage
    )
    config = {"stage": SCRIPT, "config": {}, "version": SCRIPT}
    (folder / "<b>sft" / "config.json").write_text(json.dumps(config))
    (folder / "<i>empty").mkdir()
    write_evaluation(folder / "evaluate", hostile_evaluation())
    page = render(folder)
    reader = Reader(page)
    assert not {"script", "b>sft", "i>empty", "i>"} & set(reader.tags)
    assert "alert" not in [name for name, _ in reader.attributes]
    assert "<script" not in page
    said = "".join(reader.words)
    # Title, headline, version, prompt, answers, names, facts, table, note, legend, stage, origin.
    assert said.count("<script>alert(") >= 15
    assert "<i>empty is empty" in said


def test_control_characters_and_lone_surrogates_are_taken_out(tmp_path):
    hostile = "a\x1b[31mb\u202e\ud800c"
    write_stage(tmp_path / "q" / "sft", "sft", curve(hostile, "loss"))
    checkpoints = {hostile: {}, "sft": {}}
    samples = [{"prompt": hostile, "responses": {hostile: {"text": hostile}}}]
    table = [win_rate("win_rate_gold", "sft", **{hostile: value(0.5)})]
    content = EVALUATION | {"checkpoints": checkpoints, "samples": samples, "table": table}
    write_evaluation(tmp_path / "q" / "evaluate", content)
    page = render(tmp_path / "q")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", page)
    assert page.encode()
    assert words(page).count("abc") >= 4


# --- the sentence ---------------------------------------------------------------------------------


def headline(run, *table, **changes):
    page = with_evaluation(run, table=list(table), **changes)
    return html.unescape(re.search(r'<p class="lead">(.*?)</p>', page)[1])


def test_the_page_opens_with_the_last_models_win_rate_over_the_reference(run):
    table = [
        win_rate("win_rate_gold", "sft", ppo=value(0.7)),
        win_rate("win_rate_labelers", "base", ppo=value(0.9)),
        win_rate(
            "win_rate_labelers",
            "sft",
            ppo=value(0.62, 0.015, 2000),
            ppo_ptx=value(0.67, 0.02, 2000),
        ),
    ]
    checkpoints = {"base": {}, "sft": {}, "ppo": {}, "ppo_ptx": {}}
    expected = (
        "ppo_ptx is preferred to sft by held-out labelers in 67 % [65, 69] of 2,000 comparisons"
    )
    assert (
        headline(run, *table, checkpoints=checkpoints)
        == f"{expected} (95 % interval; ties are half a win)."
    )


def test_a_narrow_interval_gets_a_decimal(run):
    sentence = headline(run, win_rate("win_rate_labelers", "sft", ppo=value(0.6213, 0.004, 20000)))
    assert "62.1 % [61.7, 62.5] of 20,000" in sentence


def test_an_interval_that_holds_one_half_says_that_nothing_is_shown(run):
    sentence = headline(run, win_rate("win_rate_gold", "sft", ppo=value(0.55, 0.1)))
    expected = (
        "ppo is preferred to sft by gold, the exact judge in 55 % [45, 65] of 100 comparisons"
    )
    assert (
        sentence == f"{expected}; the 95 % interval holds 50 %, so neither is shown to be better."
    )


def test_judges_are_called_as_the_config_calls_them(run):
    table = [
        win_rate("win_rate_model", "sft", ppo=value(0.7)) | {"judge": "brevity"},
        win_rate("win_rate_model", "sft", ppo=value(0.4)) | {"judge": "vowels"},
    ]
    assert "ppo is preferred to sft by brevity in 70 %" in headline(run, *table)
    drawn = words(section(with_evaluation(run, table=table), "pictures"))
    assert "Dark bars: brevity; pale bars: vowels." in drawn


def test_a_rate_without_interval_says_so(run):
    rate = {"value": 0.7, "low": None, "high": None, "n": 8}
    sentence = headline(run, win_rate("win_rate_model", "sft", ppo=rate))
    assert sentence == (
        "ppo is preferred to sft by a reward model in 70 % of 8 comparisons, "
        "of which no interval is known."
    )


def test_titles_are_never_read(run):
    by_title = row("preferred to sft, held-out labelers", "higher", {"ppo": value(0.6)})
    assert headline(
        run, by_title
    ) == "preferred to sft, held-out labelers is 0.6 [0.5, 0.7] for ppo.".replace(
        "0.6 [0.5, 0.7]", "0.60 [0.50, 0.70]"
    )
    assert section(render(run), "pictures").count("preferred to sft") == 0


def test_without_results_the_sentence_says_what_to_do(run, tmp_path):
    assert (
        headline(run)
        == "Nothing has been measured yet: run the evaluate stage, then write this page again."
    )
    write_stage(tmp_path / "alone", "sft", curve("loss"))
    page = render(tmp_path / "alone")
    assert "Nothing has been measured yet" in page
    assert (
        notes(page)
        == "alone has no evaluation.json, so there are no results: run the evaluate stage"
    )


# --- answers --------------------------------------------------------------------------------------


def test_answers_stand_side_by_side_in_the_order_of_the_pipeline(run):
    page = section(render(run), "answers")
    assert re.findall(r'class="role">(\w+)</span><bdi>(.*?)</bdi>', page) == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "why?"),
    ]
    said = words(page)
    assert said.index("because") < said.index("(empty answer)")
    assert "gold 1" in said
    assert "score 0.5 · cut off" in said
    assert "kind ask" in said


def test_warnings_and_controls_are_said_and_no_control_takes_the_headline(run):
    text = {name: {"text": f"by {name}"} for name in ("base", "sft", "ppo", "rule")}
    table = [
        win_rate("win_rate_labelers", "sft", ppo=value(0.62), rule=value(0.9)),
        row("right", "higher", {"sft": value(0.2), "ppo": value(0.3)}, key="entirely_right"),
    ]
    page = with_evaluation(
        run,
        checkpoints={"base": {"stage": "pretrain"}, **EVALUATION["checkpoints"]},
        table=table,
        controls={"rule": {"heading": "one rule", "description": "a rule of manners"}},
        warnings=["ppo: style makes 60 %"],
        samples=[{"prompt": "<|user|>hi", "responses": text}],
    )
    said = words(page)
    assert "Before you believe the means" in said
    assert "ppo: style makes 60 %" in said
    assert "Control rule: a rule of manners." in said
    assert said.index("ppo is preferred to sft") < said.index("style makes")
    assert "Entirely right are 30 % of its answers and 20 % of those of sft." in said
    shown, folded = section(page, "answers").split("answers of the others")
    assert [f"by {n}" in shown for n in text] == [False, True, True, False]
    assert [f"by {n}" in folded for n in text] == [True, False, False, True]


def test_nothing_is_folded_where_the_reference_would_stand_alone(run):
    samples = [{"prompt": "<|user|>hi", "responses": {n: {"text": n} for n in ("a", "b")}}]
    page = with_evaluation(run, checkpoints={"a": {}, "b": {}}, reference="b", samples=samples)
    assert "answers of the others" not in page


def test_many_prompts_are_folded_not_lost(run):
    samples = [
        {"prompt": f"<|user|>p{i}", "responses": {"sft": {"text": f"r{i}"}}} for i in range(15)
    ]
    page = section(with_evaluation(run, samples=samples), "answers")
    shown, folded = page.split("3 more prompts")
    assert [f">p{i}<" in shown for i in range(15)] == [True] * 12 + [False] * 3
    assert [f">p{i}<" in folded for i in range(15)] == [False] * 12 + [True] * 3


@pytest.mark.parametrize("samples", [None, [], 3, [4, None]])
def test_no_samples_are_said(run, samples):
    assert "The evaluation kept no samples." in with_evaluation(run, samples=samples)


@pytest.mark.parametrize(
    "sample", [{}, {"prompt": 3, "responses": []}, {"responses": {"sft": None, "x": {"text": 1}}}]
)
def test_strange_samples_are_shown_as_far_as_they_go(run, sample):
    Reader(with_evaluation(run, samples=[sample]))


# --- results --------------------------------------------------------------------------------------


def cells(page):
    """(class, value, interval and verdict) of every cell of the results."""
    found = re.findall(
        r'<td class="value ([^"]*?) ?"(?: data-model="\w+")?>(.*?)(?:<small>(.*?) ?</small>)?</td>',
        section(page, "results"),
    )
    return [tuple(map(html.unescape, cell)) for cell in found]


def test_results_have_intervals_by_kind(run):
    page = with_evaluation(
        run,
        table=[
            row("gold", "higher", {"sft": value(0.0), "ppo": value(0.6)}, group="Truth"),
            row("loss", "lower", {"sft": value(1.23456, 0.004)}, group="Price", unit="nats"),
        ],
    )
    assert re.findall(r"<h3>(.*?)</h3>", section(page, "results")) == ["Truth", "Price"]
    assert cells(page) == [
        ("", "0.00", "[−0.10, 0.10]"),
        ("better", "0.60", "[0.50, 0.70] better"),
        ("", "1.235", "[1.231, 1.239]"),
        ("missing", "–", ""),
    ]
    said = words(page)
    assert "gold [share] ↑" in said
    assert "loss [nats] ↓" in said
    assert "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}100" in page


@pytest.mark.parametrize(
    ("better", "ours", "verdict"),
    [
        ("higher", value(0.6), "better"),
        ("lower", value(0.6), "worse"),
        ("higher", value(-0.6), "worse"),
        ("none", value(0.6), ""),
        ("higher", value(0.15), ""),
        ("higher", {"value": 5.0, "low": None, "high": None, "n": 3}, ""),
    ],
)
def test_verdicts_need_disjoint_intervals_and_a_direction(run, better, ours, verdict):
    page = with_evaluation(run, table=[row("m", better, {"sft": value(0.0), "ppo": ours})])
    assert cells(page)[1][0] == verdict
    assert cells(page)[0][0] == ""  # the reference itself


def test_tiny_numbers_keep_their_digits_and_zero_has_no_sign(run):
    tiny = with_evaluation(run, table=[row("m", "none", {"sft": value(2.5e-5, 1e-6)})])
    assert cells(tiny)[0] == ("", "2.5e−5", "[2.4e−5, 2.6e−5]")
    zero = with_evaluation(run, table=[row("m", "none", {"sft": value(-0.001, 0.05)})])
    assert cells(zero)[0] == ("", "0.00", "[−0.05, 0.05]")


def test_a_value_without_interval_says_so_and_an_empty_table_too(run):
    alone = {"value": 12.0, "low": None, "high": None, "n": 5}
    page = with_evaluation(run, table=[row("m", "none", {"sft": alone})])
    assert cells(page)[0] == ("", "12.0", "no interval")
    assert "The table is empty." in with_evaluation(run, table=[])


def test_two_evaluations_of_a_run_are_told_apart(run):
    write_evaluation(run / "benchmark")
    page = render(run)
    assert re.findall(r"<h3>(evaluate|benchmark)</h3>", section(page, "results")) == [
        "evaluate",
        "benchmark",
    ]


# --- pictures -------------------------------------------------------------------------------------


def test_win_rates_are_drawn_for_every_opponent_with_the_judges_named(run):
    table = [
        win_rate("win_rate_gold", "sft", ppo=value(0.7)),
        win_rate("win_rate_labelers", "sft", ppo=value(0.62)),
        win_rate("win_rate_gold", "base", ppo=value(0.8), sft=value(0.75)),
    ]
    page = with_evaluation(run, table=table, checkpoints={"base": {}, "sft": {}, "ppo": {}})
    drawn = section(page, "pictures")
    assert re.findall(r'aria-label="(preferred [^"]*)"', drawn) == [
        "preferred to sft: ppo",
        "preferred to base: sft, ppo",
    ]
    assert "Dark bars: held-out labelers; pale bars: gold, the exact judge." in words(drawn)
    numbers = re.findall(r"<text[^>]*>(\d+)</text>", figure(drawn, "preferred to sft"))
    assert {"62", "70"} <= set(numbers)


def test_proxy_and_gold_are_drawn_over_kl(run):
    drawn = section(render(run), "pictures")
    labels = re.findall(r'aria-label="([^"]*) over KL', drawn)
    assert labels == ["score by the reward model", "gold, the exact judge"]
    assert drawn.count("KL from the reference [nats/response]: ppo, ppo_ptx") == 2


def test_gold_that_was_measured_now_and_then_is_drawn_where_it_was(tmp_path):
    rows = [
        {"step": s, "objective/kl": s / 10, **({"judge/gold": s} if s % 5 == 0 else {})}
        for s in range(1, 21)
    ]
    write_stage(tmp_path / "q" / "ppo", "ppo", rows)
    (workdir,) = runs.read_run(tmp_path / "q", Notes(tmp_path / "q", []))
    styles = report.figures.make_styles(["ppo"])
    (drawing,) = report.over_kl_figures({"ppo": workdir}, styles)
    marker = re.findall(
        r'<use xlink:href="#[^"]*" x="[^"]*" y="[^"]*" style="fill: #d9661f', drawing
    )
    assert len(marker) == 4


def test_pictures_without_data_say_what_they_need(tmp_path):
    write_stage(tmp_path / "sft", "sft", curve("loss"))
    assert "Nothing to draw yet" in render(tmp_path / "sft")


def reliability_page(run, name):
    """The page about what the benchmark stage writes of four pairs of two prompts."""
    comparisons = [Comparison((Message("user", prompt),), ("a", "b"), (1, 2)) for prompt in "xxxy"]
    scores = [[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.1, 0.0]]
    measured = {name: {"kept": [0, 1, 2, 3], "scores": scores}}
    benchmark = reward_accuracy.RewardAccuracy(
        comparisons=comparisons, num_bins=5, subsets=None, sections={}, section_weights={}
    )
    rows = benchmark.rows(measured, Bootstrap(20, 0))
    table = [row_to_json(entry) for entry in rows]
    return with_evaluation(run, checkpoints={name: {}, "sft": {}}, table=table)


def test_reliability_is_drawn_for_every_checkpoint_that_has_bins(run):
    page = reliability_page(run, "reward")
    assert "as agreed" not in page
    assert page.count('aria-label="accuracy of ') == 1  # sft has none
    drawn = figure(page, "accuracy of reward over its confidence")
    assert "accuracy of reward on 4 pairs" in drawn
    assert drawn.count("stroke-dasharray") == 1  # the diagonal


def test_reliability_escapes_names(run):
    page = reliability_page(run, SCRIPT)
    assert "<script" not in page
    assert "accuracy of &lt;script&gt;" in page


# --- curves ---------------------------------------------------------------------------------------


def stages(page):
    """The number of figures by the title of the stage."""
    parts = section(page, "curves").split("<h3>")[1:]
    return {part.split("</h3>")[0]: part.count("<svg") for part in parts}


def test_models_of_one_stage_share_their_axes(run):
    page = render(run)
    assert stages(page) == {
        "Pretraining": 1,
        "Supervised fine-tuning": 1,
        "Reward model": 1,
        "PPO": 3,
    }
    assert "gold, the exact judge over step: ppo, ppo_ptx" in page


def test_at_most_eight_curves_a_stage_and_none_that_never_changes(tmp_path):
    rows = [entry | {"lr": 0.1} for entry in curve(*POLICY, "loss", *(f"z/{i}" for i in range(40)))]
    write_stage(tmp_path / "q" / "my", "my_stage", rows)
    still = [{"step": step, "loss": 2.0} for step in (1, 2)]
    write_stage(tmp_path / "q" / "sft", "sft", still)
    page = render(tmp_path / "q")
    assert stages(page)["Supervised fine-tuning"] == 0
    assert stages(page)["my_stage"] == 4
    assert "No metric has been logged that changes." in page
    write_stage(tmp_path / "r" / "my", "my_stage", curve(*(f"z/{i}" for i in range(40))))
    assert stages(render(tmp_path / "r")) == {"my_stage": 8}


def test_every_curve_has_a_title_on_both_axes_and_pretraining_is_logarithmic(run):
    rows = [{"step": step, "loss": 6.0 / step**0.1} for step in range(1, 2001)]
    write_stage(run / "more" / "pretrain", "pretrain", rows)
    drawn = figure(render(run / "more"), "training loss over step")
    shown = re.findall(r"<text[^>]*>(.*?)</text>", drawn)
    assert {"training loss", "step", "1", "10", "100", "1,000"} <= set(shown)


def test_one_name_and_one_colour_for_one_model_everywhere(run):
    entries = {
        "base": {"path": "../pretrain"},
        "sft": {"path": "../sft"},
        "ppo": {"path": "../ppo"},
    }
    table = [win_rate("win_rate_gold", "sft", base=value(0.3), ppo=value(0.6))]
    page = with_evaluation(run, checkpoints=entries, table=table)
    assert words(section(page, "curves")).count("pretrain") == 0  # the evaluation calls it base
    assert "policy: base" in words(section(page, "models"))
    colours = {}
    for colour, name in re.findall(r"border-top:4px solid (#\w+)\"></i>([^<]*)</span>", page):
        colours.setdefault(name, set()).add(colour)
    assert set(colours) == {"base", "sft", "reward", "ppo", "ppo_ptx"}
    assert all(len(used) == 1 for used in colours.values())
    assert len(set.union(*colours.values())) == 5
    (base,), (ppo,) = colours["base"], colours["ppo"]
    assert base in figure(page, "training loss over step: base")
    assert ppo in figure(page, "gold, the exact judge over step")
    assert {base, ppo} <= set(re.findall(r"fill: (#\w+)", figure(page, "preferred to sft")))


def test_the_models_say_where_they_stand_and_come_from(run):
    write_stage(
        run / "late" / "sft", "sft", curve("loss"), planned=9, lineage={"policy": parent("gone")}
    )
    said = words(section(render(run / "late"), "models"))
    assert "step 4 of 9, not finished policy: elsewhere/q/gone" in said
    assert "policy: sft; reward: reward" in words(section(render(run), "models"))


def test_comparisons_stand_among_the_stages_and_have_no_curves(run):
    before = stages(render(run))
    write_labels(run / "label")
    page = render(run)
    said = words(section(page, "models"))
    assert (
        "label label train: 48 comparisons by toy:labelers; gold: 16 comparisons by toy:gold"
        in said
    )
    assert "toy:gold policy: sft" in said
    assert said.index("sft sft step 4") < said.index("label label") < said.index("reward reward")
    assert stages(page) == before
    assert 'class="notes"' not in page


def test_a_folder_of_comparisons_alone_is_a_page(tmp_path):
    write_labels(tmp_path / "label")
    page = render(tmp_path / "label")
    assert "48 comparisons" in words(section(page, "models"))
    assert 'id="curves"' not in page


def test_the_judges_and_the_world_of_an_evaluation_are_named(run):
    settings = {"judges": {"gold": "toy:gold", SCRIPT: SCRIPT}, "world": {"name": "toy"}}
    config = {"stage": "evaluate", "config": settings}
    (run / "evaluate" / "config.json").write_text(json.dumps(config))
    said = words(section(render(run), "results"))
    assert f"Judges: gold = toy:gold, {SCRIPT} = {SCRIPT}. World: toy. Seed 3." in said


def test_every_judge_that_scores_an_answer_is_shown(run):
    reply = {"text": "yes", "finished": True, "score": None, "kindness": 0.25, "gold": 2.0}
    page = with_evaluation(run, samples=[{"prompt": "a", "responses": {"sft": reply}}])
    assert "kindness 0.25 · gold 2" in words(section(page, "answers"))


# --- missing and damaged files --------------------------------------------------------------------


def test_half_a_run_notes_what_is_missing_and_shows_the_rest(run):
    (run / "grpo").mkdir()
    (run / "reward" / "metrics.jsonl").unlink()
    page = render(run)
    assert "q/grpo is empty: run its stage" in notes(page)
    assert "q/reward/metrics.jsonl is missing" in notes(page)
    assert stages(page)["PPO"] == 3


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "evaluation.json",
        "label.json",
        "metrics.jsonl",
        "checkpoints/4/meta/metadata",
    ],
)
@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"meta": 3}', "\x00", '{"table": 5, "stage": {}, "config": 7}'],
)
def test_damaged_files_never_crash_the_report(tmp_path, name, content):
    folder = tmp_path / "q"
    write_stage(folder / "sft", "sft", curve("loss"))
    write_evaluation(folder / "evaluate")
    write_labels(folder / "label")
    place = {"evaluation.json": "evaluate", "label.json": "label"}.get(name, "sft")
    (folder / place / name).write_text(content)
    Reader(render(folder))


@pytest.mark.parametrize("part", [3, "x", [], {"train": 3}, {"judges": {"train": 3}}, None])
@pytest.mark.parametrize("field", ["policy", "judges", "train", "validation"])
def test_fields_of_comparisons_of_another_type_never_crash_the_report(tmp_path, field, part):
    write_labels(tmp_path / "label", LABELS | {field: part})
    Reader(render(tmp_path / "label"))


@pytest.mark.parametrize(
    "part", [3, "x", [], {"sft": 3}, {"sft": {"path": 3, "step": "x", "stage": []}}, None]
)
@pytest.mark.parametrize("field", ["checkpoints", "reference", "table", "samples", "seed"])
def test_fields_of_another_type_never_crash_the_report(run, field, part):
    Reader(with_evaluation(run, **{field: part}))


def test_an_unreadable_folder_is_one_line(run, monkeypatch, capsys):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(run))

    monkeypatch.setattr(runs, "read_run", refuse)
    assert report.main([str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
