"""Write one self-contained HTML page about one or several runs.

    python -m rlhf_jax.apps.report runs/quickstart                      # runs/quickstart/report.html
    python -m rlhf_jax.apps.report runs/a runs/b --output=compare.html  # two runs in the same charts

A run folder is one stage's workdir or a folder of several. The page shows how the stages descend from each
other, the evaluation with intervals, every metric's curve, configurations and samples, in light or dark as
the reader prefers. Files that are missing, half-written or damaged are listed at the top, and the rest is
shown. The page fetches nothing and its security policy forbids it to. Left out on purpose: any call from
training; a report only reads what is on disk.
"""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax import __version__
from rlhf_jax.apps import _curves, _results, runs
from rlhf_jax.apps._html import Html, el, join, page
from rlhf_jax.apps.graph import Node, stage_graph
from rlhf_jax.apps.runs import Workdir
from rlhf_jax.apps.svg import format_number


def _label(workdir: Workdir, many: bool) -> str:
    if workdir.run.split("/")[-1] == workdir.name:  # the run folder is itself the workdir
        return workdir.run
    return f"{workdir.run}/{workdir.name}" if many else workdir.name


def _model_line(meta: dict[str, Any]) -> str:
    model = meta.get("model")
    if not isinstance(model, dict):
        return ""
    layers, width, context = (
        runs.number(model.get(key)) for key in ("num_layers", "width", "context_length")
    )
    if layers is None or width is None or context is None:
        return ""
    return f"{layers:,.0f} layer{'s' if layers != 1 else ''} × {width:,.0f}, context {context:,.0f}"


def _state_line(workdir: Workdir) -> str:
    step, planned = (runs.number(workdir.meta.get(key)) for key in ("step", "num_steps"))
    if step is None:
        return "no checkpoint"
    if planned is None:
        return f"step {step:,.0f}"
    return f"step {step:,.0f}" if step >= planned else f"step {step:,.0f} of {planned:,.0f}"


def _parent_paths(workdir: Workdir) -> list[str]:
    found = (str(entry.get("path", "")) for _, entry in runs.parents(workdir))
    return [path for path in dict.fromkeys(found) if path]


def lineage_nodes(workdirs: list[Workdir], many: bool) -> list[Node]:
    """One box per workdir, and a dashed one per parent that lies outside of the folders reported on."""
    colour = runs.colours([workdir.name for workdir in workdirs])
    places = {str(workdir.path): index for index, workdir in enumerate(workdirs)}
    outside: dict[str, int] = {}
    edges: list[tuple[int, ...]] = []
    for workdir in workdirs:
        parents = []
        for path in _parent_paths(workdir):
            inside = runs.find(workdirs, path, workdir.run)
            if inside is workdir:
                continue
            place = (
                places[str(inside.path)]
                if inside
                else outside.setdefault(path, len(workdirs) + len(outside))
            )
            parents.append(place)
        edges.append(tuple(dict.fromkeys(parents)))
    nodes = []
    for workdir, parents_of in zip(workdirs, edges, strict=True):
        lines = tuple(filter(None, (_state_line(workdir), _model_line(workdir.meta))))
        nodes.append(Node(_label(workdir, many), lines, colour[workdir.name], parents_of))
    return nodes + [
        Node(runs.folder_of(path), ("not in this folder", path), 0, (), dashed=True)
        for path in outside
    ]


def lineage_section(workdirs: list[Workdir], many: bool) -> Html | None:
    workdirs = [workdir for workdir in workdirs if not workdir.is_evaluation]
    if not workdirs:
        return None
    graph = stage_graph(
        lineage_nodes(workdirs, many), label="how the stages descend from each other"
    )
    words = "Each stage starts from the checkpoints that point to it, as recorded in the checkpoints themselves."
    return el(
        "section",
        el("h2", "Lineage"),
        el("p", words, class_="note"),
        el("div", graph, class_="scroll lineage"),
        id="lineage",
    )


def gaps_section(problems: Sequence[str]) -> Html | None:
    if not problems:
        return None
    words = "What could not be shown, and why. Everything else on this page is complete."
    items = el("ul", (el("li", problem) for problem in problems))
    return el(
        "section", el("h2", "Gaps"), el("p", words, class_="note"), items, class_="gaps", id="gaps"
    )


def _stage_sections(workdirs: list[Workdir], many: bool) -> list[tuple[str, str, Html]]:
    """(anchor, title, section) per stage; workdirs of one stage share a section."""
    trained = [workdir for workdir in workdirs if not workdir.is_evaluation]
    stages = list(dict.fromkeys(workdir.stage for workdir in trained))
    colour = runs.colours([workdir.name for workdir in trained])
    found = []
    for stage in stages:
        members = [workdir for workdir in trained if workdir.stage == stage]
        slots = [colour[workdir.name] for workdir in members]
        if len(set(slots)) < len(
            slots
        ):  # the same stage of several runs: tell the runs apart instead
            slots = [1 + index % 7 for index in range(len(slots))]
        labels = [_label(workdir, many) for workdir in members]
        section = _curves.stage_section(stage, members, labels, slots)
        found.append((f"stage-{stage}", _curves.TITLES.get(stage, stage), section))
    return found


def _evaluation_sections(
    workdirs: list[Workdir], problems: list[str]
) -> list[tuple[str, str, Html]]:
    """(anchor, title, section) of results and samples per evaluation."""
    found: list[tuple[str, str, Html]] = []
    evaluated = [workdir for workdir in workdirs if workdir.evaluation]
    for count, workdir in enumerate(evaluated):
        trouble: list[str] = []
        evaluation = _results.parse(workdir.evaluation or {}, trouble)
        problems += [f"{_label(workdir, True)}: {one}" for one in trouble]
        where = f" ({_label(workdir, True)})" if len(evaluated) > 1 else ""
        anchors = [f"results-{count}", f"samples-{count}"]
        titles = [f"Results{where}", f"Samples{where}"]
        sections = [
            _results.results_section(evaluation, titles[0], anchors[0]),
            _results.samples_section(evaluation, titles[1], anchors[1]),
        ]
        found += [
            (a, t, s) for a, t, s in zip(anchors, titles, sections, strict=True) if s is not None
        ]
    return found


def _header(title: str, workdirs: list[Workdir], num_gaps: int) -> Html:
    versions = sorted({str(w.config["version"]) for w in workdirs if "version" in w.config})
    facts = [f"{len(workdirs)} stage{'s' if len(workdirs) != 1 else ''}"]
    points = sum(len(series.steps) for workdir in workdirs for series in workdir.metrics.values())
    facts.append(f"{format_number(points, digits=9)} measurements")
    if versions:
        facts.append("trained with rlhf_jax " + ", ".join(versions))
    words = f"{num_gaps} gap{'s' if num_gaps != 1 else ''}"
    gaps = el("a", words, href="#gaps", class_="warning") if num_gaps else None
    return el(
        "header", el("h1", title), el("p", " · ".join(facts), gaps, class_="sub"), class_="top"
    )


def render(paths: Sequence[Path]) -> Html:
    """The page about the run folders `paths`, which must exist."""
    problems: list[str] = []
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    names = runs.run_names(folders)
    found = [
        runs.read_run(folder, name, problems) for folder, name in zip(folders, names, strict=True)
    ]
    workdirs = [workdir for members in found for workdir in members]
    many = len({workdir.run for workdir in workdirs}) > 1
    for workdir in workdirs:
        problems += [f"{_label(workdir, True)}: {problem}" for problem in workdir.problems]
    problems += runs.stale(workdirs)
    if workdirs and not any(workdir.evaluation for workdir in workdirs):
        problems.append(
            "no evaluation.json found, so there is no table of results: run the evaluate stage"
        )
    evaluated = _evaluation_sections(workdirs, problems)
    results = [one for one in evaluated if one[0].startswith("results")]
    samples = [one for one in evaluated if one[0].startswith("samples")]
    lineage, gaps = lineage_section(workdirs, many), gaps_section(problems)
    sections = [
        *([("lineage", "Lineage", lineage)] if lineage else []),
        *results,
        *_stage_sections(workdirs, many),
        *samples,
        *([("gaps", "Gaps", gaps)] if gaps else []),
    ]
    title = " and ".join(names)
    links = (el("a", name, href=f"#{anchor}") for anchor, name, _ in sections)
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    foot = (
        f"Written {now} by rlhf_jax {__version__} from {', '.join(map(str, paths))}. Curves: what was "
        "measured is faint, the line is a moving mean over 1/30 of the points; axes leave out the "
        "outermost 1 % of what was measured at either end. Point at a curve to read its value."
    )
    body = [
        el("div", _header(title, workdirs, len(problems)), class_="wrap"),
        el("nav", el("div", links, class_="wrap")),
        el("main", join(section for _, _, section in sections), el("footer", foot), class_="wrap"),
    ]
    return page(f"{title} · rlhf_jax report", *body)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_jax.apps.report", description="Write an HTML page about runs."
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="a stage's workdir, or a folder of several"
    )
    parser.add_argument("--output", type=Path, help="default: report.html in the first run folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and print where it is; status 2 with one sentence if a folder is not there."""
    arguments = _arguments(argv)
    for path in arguments.runs:
        if not path.is_dir():
            kind = "a file" if path.exists() else "not there"
            print(
                f"report: {path} is {kind}; give a run folder, for example runs/quickstart",
                file=sys.stderr,
            )
            return 2
    output = arguments.output or arguments.runs[0] / "report.html"
    written = render(arguments.runs)
    try:
        output.write_text(written, encoding="utf-8")
    except OSError as error:
        print(
            f"report: cannot write {output} ({error}); choose another place with --output=FILE",
            file=sys.stderr,
        )
        return 2
    print(f"wrote {output} ({len(written.encode()) / 1024:,.0f} kB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
