"""Read what a run left behind: every file may be missing, half-written or damaged.

A run folder is one stage's workdir or a folder of several. What cannot be read is never guessed
and never an exception: it becomes a note that names the file and the remedy, and the report
prints it. Left out on purpose: parameters. Only the JSON beside them is read, so that a report of
a large model starts at once and needs no JAX.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.evaluation.table import Row, row_from_json

# The order of the pipeline, by the name of a checkpoint or else by its stage.
ORDER = (
    *("base", "pretrain", "sft", "label", "reward", "classify", "ppo", "ppo_ptx"),
    *("policy_gradient", "preference", "dpo", "rloo", "grpo", "evaluate", "benchmark"),
)
# What the stages that train nothing write instead of curves and checkpoints.
_EVALUATION, _LABELS = "evaluation.json", "label.json"
_RESULTS = {"evaluate": _EVALUATION, "benchmark": _EVALUATION, "label": _LABELS}
_FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "checkpoints", _EVALUATION, _LABELS)
# Folders that a workdir holds and that are never stages themselves.
_PARTS = frozenset(["checkpoints", "tokenizer", "tensorboard", "figures", "logs", "data"])

# The values of one metric by step, in the order of the steps; they may be NaN.
Series = dict[int, float]


@dataclass(frozen=True)
class Workdir:
    """One stage's folder as far as it could be read; `results` is {} where the stage trains."""

    path: Path
    stage: str
    config: dict[str, Any]
    metrics: dict[str, Series]
    metas: dict[int, dict[str, Any]]
    results_file: str
    results: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.path.name

    @property
    def settings(self) -> dict[str, Any]:
        """Return the stage's own config."""
        return as_dict(self.config.get("config"))

    @property
    def meta(self) -> dict[str, Any]:
        """Return the newest checkpoint's meta, {} without checkpoints."""
        return self.metas[max(self.metas)] if self.metas else {}

    @property
    def is_evaluation(self) -> bool:
        """Return True if this folder measures checkpoints and trains none."""
        return self.results_file == _EVALUATION

    @property
    def is_labels(self) -> bool:
        """Return True if this folder holds comparisons and trains nothing."""
        return self.results_file == _LABELS


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation.json says, as far as it could be read."""

    workdir: Workdir
    checkpoints: dict[str, dict[str, Any]]
    reference: str
    rows: list[Row]
    samples: list[dict[str, Any]]
    controls: dict[str, dict[str, Any]]  # columns that are no checkpoints; their entries are empty
    warnings: list[str]
    seed: str


@dataclass(frozen=True)
class Notes:
    """Sentences about files; each begins with a path that starts at the run folder's name."""

    root: Path
    sentences: list[str]

    def add(self, path: Path, words: str) -> None:
        """Note something about a file or folder in the run."""
        self.sentences.append(f"{path.relative_to(self.root.parent)} {words}")


# --- JSON that may hold anything ----------------------------------------------------------------


def number(value: Any) -> float | None:
    """Return a JSON number (also NaN and infinities, which Python writes), else None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits is valid JSON
        return math.inf


def integer(value: Any) -> int | None:
    """Return a finite JSON number as an integer, None for anything else."""
    real = number(value)
    return int(real) if real is not None and math.isfinite(real) else None


def as_dict(value: Any) -> dict[str, Any]:
    """Return a JSON object as it is, and {} for anything else."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a JSON array as it is, and [] for anything else."""
    return value if isinstance(value, list) else []


# --- files --------------------------------------------------------------------------------------


def _read_text(path: Path, notes: Notes, remedy: str) -> str | None:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never come to its end
            kind = "a folder" if path.is_dir() else "no regular file"
            notes.add(path, f"is {kind}: {remedy}")
            return None
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.add(path, f"is missing: {remedy}")
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror}): {remedy}")
    return None


def read_dict(path: Path, notes: Notes, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file, or {} with a note that gives the remedy."""
    text = _read_text(path, notes, remedy)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        notes.add(path, f"is not JSON ({error}): {remedy}")
        return {}
    if not isinstance(content, dict):
        notes.add(path, f"holds a {type(content).__name__}, an object was expected: {remedy}")
    return as_dict(content)


def read_rows(path: Path, notes: Notes) -> list[dict[str, Any]]:
    """Return the whole rows of a JSON-lines file, and note the broken and half-written lines."""
    text = _read_text(path, notes, "the stage has logged nothing yet; run it, or resume it")
    if text is None:
        return []
    rows, broken = [], []
    lines = text.split("\n")
    for place, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif line.strip() and place == len(lines):
            # The writer ends each row with a newline, so this row was cut short.
            words = "is half-written and left out: resuming the stage writes it again"
            notes.add(path, f"line {place} {words}")
        elif line.strip():
            broken.append(place)
    if broken:
        places = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        count = f"{len(broken)} line{'s' if len(broken) > 1 else ''}"
        words = f"that are no JSON objects, left out (line {places}): repair them"
        notes.add(path, f"has {count} {words}")
    if not rows:
        notes.add(path, "holds no whole row: run the stage, or resume it")
    return rows


def columns(rows: list[dict[str, Any]]) -> dict[str, Series]:
    """Turn rows into one series per metric; a step written twice keeps its last value."""
    metrics: dict[str, Series] = {}
    for row in rows:
        step = integer(row.get("step"))
        if step is None:
            continue
        for name, raw in row.items():
            value = number(raw)
            if name != "step" and value is not None:
                metrics.setdefault(name, {})[step] = value if math.isfinite(value) else math.nan
    return {name: dict(sorted(series.items())) for name, series in metrics.items()}


def _read_metas(folder: Path, notes: Notes) -> dict[int, dict[str, Any]]:
    """Return the meta of each checkpoint by step; folders of unfinished ones have other names."""
    if not folder.is_dir():
        notes.add(folder, "is missing: nothing has been saved yet; run the stage")
        return {}
    metas = {}
    for checkpoint in sorted(folder.iterdir()):
        if not checkpoint.name.isdecimal() or not checkpoint.is_dir():
            continue
        content = read_dict(checkpoint / "meta" / "metadata", Notes(notes.root, []), "")
        meta = as_dict(content.get("meta"))
        if "stage" in meta or "lineage" in meta:
            metas[int(checkpoint.name)] = meta
        else:
            remedy = "delete this checkpoint and resume from the one before"
            notes.add(checkpoint / "meta", f"cannot be read: {remedy}")
    if not metas:
        notes.add(folder, "holds no finished checkpoint: run the stage, or resume it")
    return metas


# --- folders ------------------------------------------------------------------------------------


def read_workdir(path: Path, notes: Notes) -> Workdir:
    """Read one stage's folder, and note what it lacks."""
    config = read_dict(path / "config.json", notes, "start the stage again with this --workdir")
    written = [stage for stage, file in _RESULTS.items() if (path / file).exists()]
    stage = config.get("stage")
    if not isinstance(stage, str) or not stage:
        stage = written[0] if written else path.name
    file = _RESULTS.get(stage) or (_RESULTS[written[0]] if written else "")
    if file:
        remedy = f"run the {stage} stage again, it keeps its parts"
        results = read_dict(path / file, notes, remedy)
        return Workdir(path, stage, config, {}, {}, file, results)
    metrics = columns(read_rows(path / "metrics.jsonl", notes))
    metas = _read_metas(path / "checkpoints", notes)
    return Workdir(path, stage, config, metrics, metas, "", {})


def _is_workdir(path: Path) -> bool:
    return any((path / name).exists() for name in _FILES)


def read_run(path: Path, notes: Notes) -> list[Workdir]:
    """Return all workdirs of a run folder in the order of the pipeline, and note what is empty."""
    is_stage = _is_workdir(path)
    workdirs = [read_workdir(path, notes)] if is_stage else []
    for child in sorted(path.iterdir()):
        if not child.is_dir() or child.name in _PARTS or child.name.startswith((".", "_")):
            continue
        if _is_workdir(child):
            workdirs.append(read_workdir(child, notes))
        elif not is_stage:
            notes.add(child, "is empty: run its stage")
    if not workdirs:
        remedy = "give the --workdir of a stage, or the folder above several"
        notes.add(path, f"holds no stage: {remedy}")
    return sorted(workdirs, key=lambda workdir: (order(workdir.name, workdir.stage), workdir.name))


def order(name: str, stage: str) -> int:
    """Return a checkpoint's place in the pipeline: by its name, else by its stage, else last."""
    places = [ORDER.index(word) for word in (name, stage) if word in ORDER]
    return places[0] if places else len(ORDER)


# --- what belongs together ----------------------------------------------------------------------


def parents(workdir: Workdir) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the role and the record of everything that a stage starts from.

    A record has path, stage, step and fingerprint. A run that has no checkpoint yet names its
    parents in `init`, a path or a table of role to path, and comparisons have nothing but a path.
    """
    records = as_dict(workdir.meta.get("lineage"))
    if workdir.is_labels:
        records = {"policy": workdir.results.get("policy")}
    records = {role: record for role, record in records.items() if isinstance(record, dict)}
    init = workdir.settings.get("init")
    paths = {} if records else as_dict(init) or {"init": init}
    paths = {**paths, "comparisons": as_dict(workdir.settings.get("data")).get("comparisons")}
    yield from records.items()
    yield from ((role, {"path": p}) for role, p in paths.items() if isinstance(p, str) and p)


def find(workdirs: list[Workdir], path: str, child: Workdir) -> Workdir | None:
    """Return the workdir that a path recorded by `child` points to, else one of the same name.

    Names are compared too because runs are moved and copied, and the paths in their checkpoints
    then point nowhere.
    """
    if not path:
        return None
    try:
        targets = {Path(path).resolve(), (child.path / path).resolve()}
    except (OSError, ValueError, RuntimeError):  # a name no file can have, a circle of links
        return None
    for workdir in workdirs:
        checkpoints = {workdir.path / "checkpoints" / str(step) for step in workdir.metas}
        if targets & {workdir.path, *checkpoints}:
            return workdir
    name = Path(path.partition("/checkpoints")[0]).name
    return next((workdir for workdir in workdirs if workdir.name == name), None)


def stale(workdirs: list[Workdir]) -> list[str]:
    """Return a sentence for every child whose parent has another fingerprint than recorded."""
    sentences = []
    for child in workdirs:
        for role, record in parents(child):
            parent = find(workdirs, str(record.get("path", "")), child)
            step = integer(record.get("step"))
            if parent is None or step is None:
                continue
            before, now = record.get("fingerprint"), parent.metas.get(step, {}).get("fingerprint")
            if before is not None and now is not None and before != now:
                sentences.append(
                    f"{child.name}: its {role} ({parent.name}, step {step}) has been trained anew "
                    f"since (fingerprint {before} then, {now} now): run {child.name} again"
                )
    return sentences


def read_evaluation(workdir: Workdir, notes: Notes) -> Evaluation:
    """Check an evaluation field by field; what is not as agreed is noted and left out."""
    content, path = workdir.results, workdir.path / _EVALUATION
    remedy = "run the evaluation again with this version"
    table = content.get("table")
    if not isinstance(table, list):
        notes.add(path, f"has no table: {remedy}")
    rows = [row for row in map(row_from_json, as_list(table)) if row is not None]
    if len(rows) < len(as_list(table)):
        count = f"{len(as_list(table)) - len(rows)} rows of {len(as_list(table))}"
        notes.add(path, f"has {count} that are not as agreed: {remedy}")
    entries: dict[str, dict[str, Any]] = {name: {} for row in rows for name in row.values}
    entries |= {name: as_dict(entry) for name, entry in as_dict(content.get("checkpoints")).items()}
    described = as_dict(content.get("controls")).items()
    controls = {name: as_dict(entry) for name, entry in described if name in entries}

    def place(name: str) -> tuple[bool, int]:
        return name in controls, order(name, str(entries[name].get("stage")))

    names = sorted(entries, key=place)
    reference = str(content.get("reference") or "")
    if reference and reference not in entries:
        words = f"names a reference {reference!r} that is not among its checkpoints: {remedy}"
        notes.add(path, words)
    samples = [sample for sample in as_list(content.get("samples")) if isinstance(sample, dict)]
    checkpoints = {name: entries[name] for name in names}
    seed = str(content.get("seed", "not recorded"))
    warnings = [text for text in as_list(content.get("warnings")) if isinstance(text, str)]
    return Evaluation(workdir, checkpoints, reference, rows, samples, controls, warnings, seed)


def model_names(workdirs: list[Workdir], evaluations: Sequence[Evaluation]) -> dict[Path, str]:
    """Return one name for every workdir's model: the evaluation's only name, else the folder's."""
    owners: dict[str, set[Path]] = {}
    for evaluation in evaluations:
        for alias, entry in evaluation.checkpoints.items():
            workdir = find(workdirs, str(entry.get("path", "")), evaluation.workdir)
            if workdir is not None:
                owners.setdefault(alias, set()).add(workdir.path)
    names = {}
    for workdir in workdirs:
        taken = {other.name for other in workdirs} - {workdir.name}
        aliases = [a for a, paths in owners.items() if paths == {workdir.path} and a not in taken]
        names[workdir.path] = aliases[0] if len(aliases) == 1 else workdir.name
    return names
