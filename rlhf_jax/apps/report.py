"""Write one self-contained HTML page about a run: what came out, how it answers, how it trained.

    python -m rlhf_jax.apps.report runs/quickstart                     # runs/quickstart/report.html
    python -m rlhf_jax.apps.report runs/quickstart --output=page.html

A run is one stage's workdir or a folder of several. The page opens with one sentence of result;
then come the same prompts answered by every checkpoint, the table of results with 95 % intervals,
the papers' pictures, and at most eight curves a stage. `evaluation.json` is read by its fields
(`evaluation.table.Row`), never by its titles, and checked row by row, because one program writes
it and another reads it. Files that are missing or damaged are listed with a remedy, and the rest
is shown. All text is escaped by the template. Left out on purpose: every other curve, several
runs side by side, and zooming: they are TensorBoard's.
"""

import datetime
import itertools
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rlhf_jax.apps.arguments import read_report

if __name__ == "__main__":
    read_report(sys.argv[1:])  # --help and slips are answered before JAX is imported

import jinja2
from markupsafe import Markup

from rlhf_jax import __version__
from rlhf_jax.apps import figures, runs
from rlhf_jax.apps.figures import AXES, Axis, Bin, Line, Styles
from rlhf_jax.apps.runs import Evaluation, Notes, Workdir, as_dict, integer, number
from rlhf_jax.apps.text import format_number, printable, shorten, split_turns
from rlhf_jax.evaluation.table import Row, verdict

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_PROMPTS_SHOWN = 12
_LONGEST_TEXT = 4000
_STAGES = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "classify": "Classification",
    "ppo": "PPO",
    "policy_gradient": "Policy gradient without a value network",
    "preference": "Preference optimisation",
}
# Who judges, by the key of the row, where the row does not say it; the page opens with the first
# judge that an evaluation has.
_JUDGES = {
    "win_rate_labelers": "held-out labelers",
    "win_rate_gold": "gold, the exact judge",
    "win_rate_model": "a reward model",
}
_KL = Axis("KL from the reference [nats/response]", "root")
_STEP = Axis("step", integers=True)
# For pretraining: its loss is nearly straight on two logarithmic axes (Kaplan et al. 2020).
_LOG_STEP = Axis("step", "log", integers=True)


@dataclass(frozen=True)
class Provenance:
    """When, where and by which code a page was written."""

    date: str
    commit: str
    machine: str
    versions: str


# --- results ----------------------------------------------------------------------------------


def headline(evaluations: Sequence[Evaluation]) -> str:
    """Return the page's first sentence: how often the last model is preferred to the reference.

    The last one is that of the pipeline's order, so that the sentence does not pick the best of
    many. Without win rates it is about the first row of the table.
    """
    for key, evaluation in itertools.product(_JUDGES, evaluations):
        rows = [row for row in evaluation.rows if row.key == key and row.values]
        if rows:
            row = min(rows, key=lambda row: row.subject != evaluation.reference)
            names = [name for name in evaluation.checkpoints if name in row.values]
            trained = [name for name in names if name not in evaluation.controls]
            name = (trained or names)[-1]
            sentence = _preference(name, row, _judge(row))
            return " ".join([sentence, *_entirely_right(name, evaluation)])
    for evaluation in evaluations:
        for row in evaluation.rows:
            cells = [_cell(row, name, "") for name in reversed(evaluation.checkpoints)]
            words = [f"{c['value']} {c['interval']} for {c['name']}" for c in cells if c]
            if words:
                return f"{row.metric} is {' and '.join(words[:2])}."
    return "Nothing has been measured yet: run the evaluate stage, then write this page again."


def _judge(row: Row) -> str:
    """Return who judges in a row of win rates."""
    return row.judge or _JUDGES[row.key]


def _preference(name: str, row: Row, judge: str) -> str:
    """Say how often a model is preferred, and what the interval does not allow to say."""
    value, low, high, n = row.values[name]
    rate = f"{name} is preferred to {row.subject} by {judge} in"
    if low is None or high is None:
        return f"{rate} {100 * value:.0f} % of {n:,} comparisons, of which no interval is known."
    decimals = 1 if high - low < 0.02 else 0
    low_text, value_text, high_text = (f"{100 * x:.{decimals}f}" for x in (low, value, high))
    sentence = f"{rate} {value_text} % [{low_text}, {high_text}] of {n:,} comparisons"
    if low <= 0.5 <= high:
        return f"{sentence}; the 95 % interval holds 50 %, so neither is shown to be better."
    return f"{sentence} (95 % interval; ties are half a win)."


def _entirely_right(name: str, evaluation: Evaluation) -> list[str]:
    """Say how many answers of a model are entirely right, and of the reference; [] if unknown."""
    for row in evaluation.rows:
        if row.key == "entirely_right" and {name, evaluation.reference} <= set(row.values):
            ours, base = (100 * row.values[n].value for n in (name, evaluation.reference))
            rest = f"{base:.0f} % of those of {evaluation.reference}"
            return [f"Entirely right are {ours:.0f} % of its answers and {rest}."]
    return []


def _decimals(row: Row) -> int:
    """Return a row's number of decimals: to the first digit that its narrowest interval leaves."""
    values = row.values.values()
    largest = max((abs(v.value) for v in values), default=0.0)
    halves = [(v.high - v.low) / 2 for v in values if v.low is not None and v.high is not None]
    narrow = min((half for half in halves if half > 1e-12), default=1.0)
    coarse = 2 if largest < 10 else 1 if largest < 1000 else 0
    decimals = max(coarse, -math.floor(math.log10(narrow)))
    return decimals if 0 < largest < 1e-3 else min(4, decimals)


def _number(value: float, decimals: int) -> str:
    if decimals > 4:  # zeros that would have to be counted
        return format_number(value)
    text = f"{round(value, decimals) + 0.0:,.{decimals}f}"  # + 0.0: never minus zero
    return text.replace("-", "−")


def _cell(row: Row, name: str, reference: str) -> dict[str, str] | None:
    """Return a value of the table as text, None where the model has none."""
    if name not in row.values:
        return None
    value, low, high, _ = row.values[name]
    decimals = _decimals(row)
    interval = "no interval"
    if low is not None and high is not None:
        interval = f"[{_number(low, decimals)}, {_number(high, decimals)}]"
    cell = {"name": name, "value": _number(value, decimals), "interval": interval}
    return {**cell, "verdict": verdict(row, name, reference)}


def result_groups(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    """Return the table's rows by kind of metric; every cell is ready to be shown."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in evaluation.rows:
        counts = {value.n for value in row.values.values()}
        line = {
            "row": row,
            "n": f"{counts.pop():,}" if len(counts) == 1 else "",
            "cells": [_cell(row, name, evaluation.reference) for name in evaluation.checkpoints],
        }
        groups.setdefault(row.group, []).append(line)
    return groups


def _reply(raw: Any) -> dict[str, str]:
    """Return one answer with what is known of it: the reward model's score, those of judges."""
    entry = as_dict(raw)
    scores = {name: number(value) for name, value in entry.items()}
    facts = [f"{name} {format_number(x)}" for name, x in scores.items() if x is not None]
    if entry.get("finished") is False:
        facts.append("cut off")
    text, missing = entry.get("text"), ""
    if not isinstance(text, str):
        text, missing = "", "(no answer recorded)"
    elif not text.strip():
        missing = "(empty answer)"
    text = shorten(text.strip(), _LONGEST_TEXT)
    return {"text": text, "missing": missing, "facts": " · ".join(facts)}


def answers(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the sampled prompts with every checkpoint's answer, in the evaluation's order."""
    prompts = []
    for sample in evaluation.samples:
        responses = as_dict(sample.get("responses"))
        # Answers of models that are not in the table come last.
        names = [n for n in dict.fromkeys([*evaluation.checkpoints, *responses]) if n in responses]
        # The reference and what was trained from it stand in front, the others are folded, unless
        # nothing would stand beside the reference.
        start = names.index(evaluation.reference) if evaluation.reference in names else 0
        has_later = not set(evaluation.controls).issuperset(names[start + 1 :])
        folded = {*(names[:start] if has_later else ()), *evaluation.controls}
        facts = [f"{key} {value}" for key, value in as_dict(sample.get("metadata")).items()]
        prompt = {
            "turns": split_turns(shorten(str(sample.get("prompt", "")), _LONGEST_TEXT)),
            "facts": shorten(" · ".join(facts), 600),
            **{
                part: [{"name": name, **_reply(responses[name])} for name in chosen]
                for part, chosen in (
                    ("replies", [name for name in names if name not in folded]),
                    ("others", [name for name in names if name in folded]),
                )
            },
        }
        prompts.append(prompt)
    return prompts


# --- pictures ---------------------------------------------------------------------------------


def _win_rates(evaluation: Evaluation) -> list[Row]:
    """Return the rows of win rates; people judge first, then gold, then models."""
    rows = [row for row in evaluation.rows if row.key in _JUDGES]
    return sorted(rows, key=lambda row: list(_JUDGES).index(row.key))


def win_rate_figures(evaluation: Evaluation, styles: Styles) -> list[Markup]:
    """Draw win rates for every opponent, as Ouyang et al. (2022) do."""
    rows = _win_rates(evaluation)
    model_styles = {name: styles[name] for name in evaluation.checkpoints}
    drawings = []
    for opponent in dict.fromkeys(row.subject for row in rows):
        rates = [row.values for row in rows if row.subject == opponent]
        title = f"preferred to {opponent}"
        drawings.append(figures.draw_win_rates(rates, model_styles, title))
    return [drawing for drawing in drawings if drawing]


def reliability_figures(evaluation: Evaluation, styles: Styles) -> list[Markup]:
    """Draw accuracy over confidence of every reward model that has bins (Guo et al. 2017)."""
    confidences, accuracies = (
        {row.subject: row.values for row in evaluation.rows if row.key == f"reliability_{side}"}
        for side in ("confidence", "accuracy")
    )
    drawings = []
    for name in evaluation.checkpoints:
        bins = [
            Bin(confidence[name].value, accuracies[subject][name])
            for subject, confidence in confidences.items()
            if name in confidence and name in accuracies.get(subject, {})
        ]
        drawings.append(figures.draw_reliability(bins, styles[name], name))
    return [drawing for drawing in drawings if drawing]


def over_kl_figures(models: Mapping[str, Workdir], styles: Styles) -> list[Markup]:
    """Draw proxy reward and what judges say over the KL during training.

    As Gao et al. (2022) do with their gold reward model.
    """
    drawings = []
    logged = {metric for workdir in models.values() for metric in workdir.metrics}
    for metric in ("objective/scores", *figures.judged(logged)):
        lines = []
        for name, workdir in models.items():
            kl = workdir.metrics.get("objective/kl", {})
            reward = workdir.metrics.get(metric, {})
            # Judges are asked now and then, the rest is measured at every step.
            steps = [step for step in reward if step in kl]
            lines.append(Line(name, [kl[s] for s in steps], [reward[s] for s in steps]))
        drawings.append(figures.draw_lines(lines, styles, _KL, AXES.get(metric, Axis(metric))))
    return [drawing for drawing in drawings if drawing]


# --- stages -----------------------------------------------------------------------------------


def stage_section(stage: str, models: Mapping[str, Workdir], styles: Styles) -> dict[str, Any]:
    """Draw one stage's curves, those of all its models in the same axes."""
    metrics = {  # without those that never change
        metric
        for workdir in models.values()
        for metric, series in workdir.metrics.items()
        if len({value for value in series.values() if math.isfinite(value)}) > 1
    }
    drawings = []
    for metric in figures.choose_curves(stage, metrics):
        series = {name: workdir.metrics.get(metric, {}) for name, workdir in models.items()}
        lines = [Line(name, list(s), list(s.values())) for name, s in series.items()]
        x, y = _LOG_STEP if stage == "pretrain" else _STEP, AXES.get(metric, Axis(metric))
        drawings.append(figures.draw_lines(lines, styles, x, y))
    title = _STAGES.get(stage, stage)
    return {"title": title, "names": list(models), "figures": [d for d in drawings if d]}


def _describe_labels(results: Mapping[str, Any]) -> str:
    """Say how many comparisons a label stage has, and by whom."""
    judges = as_dict(results.get("judges"))
    words = []
    for split in ("train", "validation"):
        for folder, counts in as_dict(as_dict(results.get(split)).get("judges")).items():
            comparisons = integer(as_dict(counts).get("comparisons"))
            words.append(f"{folder}: {comparisons} comparisons by {judges.get(folder)}")
    return "; ".join(words) or "no comparisons"


def _describe_training(meta: Mapping[str, Any]) -> str:
    """Say how far a training stage is."""
    step, planned = integer(meta.get("step")), integer(meta.get("num_steps"))
    if step is None:
        return "no checkpoint"
    unfinished = f" of {planned:,}, not finished" if planned is not None and step < planned else ""
    return f"step {step:,}{unfinished}"


def _stage_facts(
    workdir: Workdir, names: Mapping[Path, str], workdirs: list[Workdir]
) -> dict[str, str]:
    """Return where a stage stands, what it starts from and how large its model is."""
    origins = []
    for role, record in runs.parents(workdir):
        parent = runs.find(workdirs, str(record.get("path", "")), workdir)
        if parent is not workdir:
            name = names[parent.path] if parent else record.get("path", "not recorded")
            origins.append(f"{role}: {name}")
    model = as_dict(workdir.meta.get("model"))
    fields = {"num_layers": "layers", "width": "width", "context_length": "context"}
    sizes = {word: integer(model.get(key)) for key, word in fields.items()}
    shape = ", ".join(f"{word} {size:,}" for word, size in sizes.items() if size is not None)
    is_labels = workdir.is_labels
    state = _describe_labels(workdir.results) if is_labels else _describe_training(workdir.meta)
    origin = "; ".join(origins) or "nothing"
    return {"stage": workdir.stage, "state": state, "origin": origin, "shape": shape}


# --- the page ---------------------------------------------------------------------------------


def _finalize(value: Any) -> Any:
    """Take control characters out of a text that the template shows; it is escaped afterwards."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        finalize=_finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _evaluation_section(evaluation: Evaluation, styles: Styles) -> dict[str, Any]:
    """Return what the page says about one evaluation."""
    settings = evaluation.workdir.settings
    steps = {name: integer(entry.get("step")) for name, entry in evaluation.checkpoints.items()}
    below = {n: "" if step is None else f"step {step:,}" for n, step in steps.items()}
    below |= {n: str(entry.get("heading", "")) for n, entry in evaluation.controls.items()}
    return {
        "folder": evaluation.workdir.name,
        "reference": evaluation.reference,
        "seed": evaluation.seed,
        "steps": below,
        "warnings": evaluation.warnings,
        "controls": {n: str(e.get("description", "")) for n, e in evaluation.controls.items()},
        "prompts": answers(evaluation),
        "groups": result_groups(evaluation),
        # Who judges as the config says it, and the judges of the win rates, dark bars first.
        "judges": as_dict(settings.get("judges")),
        "world": as_dict(settings.get("world")).get("name"),
        "bars": list(dict.fromkeys(map(_judge, _win_rates(evaluation)))),
        "win_rates": win_rate_figures(evaluation, styles),
        "reliability": reliability_figures(evaluation, styles),
    }


def render(run: Path, provenance: Provenance) -> str:
    """Return the page about a run folder, which must exist; the same files give the same bytes."""
    run = run.resolve()
    notes = Notes(run, [])
    workdirs = runs.read_run(run, notes)
    notes.sentences.extend(runs.stale(workdirs))
    evaluations = [
        runs.read_evaluation(workdir, notes)
        for workdir in workdirs
        if workdir.is_evaluation and workdir.results
    ]
    if workdirs and not evaluations:
        notes.add(run, "has no evaluation.json, so there are no results: run the evaluate stage")
    names = runs.model_names(workdirs, evaluations)
    stages = {names[workdir.path]: workdir for workdir in workdirs if not workdir.is_evaluation}
    models = {name: workdir for name, workdir in stages.items() if not workdir.is_labels}
    column_names = [name for evaluation in evaluations for name in evaluation.checkpoints]
    samples = [sample for evaluation in evaluations for sample in evaluation.samples]
    reply_names = [name for sample in samples for name in as_dict(sample.get("responses"))]
    styles = figures.make_styles([*models, *column_names, *reply_names])
    curves = []
    for stage in dict.fromkeys(workdir.stage for workdir in models.values()):
        of_stage = {name: workdir for name, workdir in models.items() if workdir.stage == stage}
        curves.append(stage_section(stage, of_stage, styles))
    return _template().render(
        title=run.name,
        headline=headline(evaluations),
        provenance=provenance,
        trained_with=sorted({str(w.config["version"]) for w in workdirs if "version" in w.config}),
        notes=notes.sentences,
        styles=styles,
        prompts_shown=_PROMPTS_SHOWN,
        most_points=figures.MOST_POINTS,
        evaluations=[_evaluation_section(evaluation, styles) for evaluation in evaluations],
        over_kl=over_kl_figures(models, styles),
        kl_names=[name for name, workdir in models.items() if "objective/kl" in workdir.metrics],
        curves=curves,
        stages={name: _stage_facts(workdir, names, workdirs) for name, workdir in stages.items()},
        num_metrics=sum(len(workdir.metrics) for workdir in workdirs),
    )


def _commit() -> str:
    """Return the commit of this code, "-dirty" if changed since; "" where git does not track it."""
    git = ("git", "-C", str(Path(__file__).parent))
    is_tracked = (*git, "ls-files", "--error-unmatch", __file__)  # else the repository is another's
    describe = (*git, "describe", "--always", "--dirty", "--exclude=*")
    commit = ""
    try:
        for command in (is_tracked, describe):
            commit = subprocess.check_output(
                command, stderr=subprocess.DEVNULL, text=True, timeout=10
            )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.strip()


def read_provenance() -> Provenance:
    """Return when and where this page is being written, and by which code."""
    packages = [f"{package} {metadata.version(package)}" for package in ("jax", "flax", "optax")]
    versions = [f"rlhf_jax {__version__}", f"Python {platform.python_version()}", *packages]
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    date = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return Provenance(date, _commit(), machine, ", ".join(versions))


def _fail(sentence: str) -> int:
    """Print an error and return the exit status that goes with it."""
    print(f"report: {sentence}", file=sys.stderr)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print where it is; an error is one line on stderr and status 2."""
    arguments = read_report(argv)
    run, output = arguments.run, arguments.output or arguments.run / "report.html"
    if not run.is_dir():
        kind = "a file" if run.exists() else "not there"
        return _fail(f"{run} is {kind}; give a run folder, for example runs/quickstart")
    try:
        page = render(run, read_provenance())
    except OSError as error:
        return _fail(f"cannot read {run} ({error}); make its files readable")
    try:
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        return _fail(f"cannot write {output} ({error}); choose another place with --output=FILE")
    print(f"wrote {output} ({len(page.encode()) / 1024:,.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
