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
    *("base", "pretrain", "sft", "reward", "classify", "ppo", "ppo_ptx", "policy_gradient"),
    *("preference", "dpo", "rloo", "grpo", "evaluate", "benchmark"),
)
_EVALUATIONS = ("evaluate", "benchmark")
_FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "evaluation.json", "checkpoints")
# Folders that a workdir holds and that are never stages themselves.
_PARTS = frozenset(["checkpoints", "tokenizer", "tensorboard", "figures", "logs", "data"])


@dataclass(frozen=True)
class Series:
    """One metric over the steps at which it was written; values may be NaN."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Workdir:
    """One stage's folder as far as it could be read."""

    name: str
    path: Path
    stage: str
    config: dict[str, Any]
    metrics: dict[str, Series]
    metas: dict[int, dict[str, Any]]
    evaluation: dict[str, Any] | None

    @property
    def meta(self) -> dict[str, Any]:
        """Return the newest checkpoint's meta, {} without checkpoints."""
        return self.metas[max(self.metas)] if self.metas else {}

    @property
    def is_evaluation(self) -> bool:
        """Return True if this folder measures checkpoints and trains none."""
        return self.evaluation is not None or self.stage in _EVALUATIONS


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation.json says, as far as it could be read."""

    workdir: Workdir
    checkpoints: dict[str, dict[str, Any]]
    reference: str
    rows: list[Row]
    samples: list[dict[str, Any]]
    seed: str


@dataclass(frozen=True)
class Notes:
    """Sentences about files; each begins with a path that starts at the run folder's name."""

    root: Path
    sentences: list[str]

    def add(self, path: Path, words: str) -> None:
        """Note something about a file or folder in the run."""
        self.sentences.append(f"{path.relative_to(self.root.parent)} {words}")


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


def order(name: str, stage: str) -> int:
    """Return a checkpoint's place in the pipeline: by its name, else by its stage, else last."""
    places = [ORDER.index(word) for word in (name, stage) if word in ORDER]
    return places[0] if places else len(ORDER)


def read_text(path: Path, notes: Notes, remedy: str) -> str | None:
    """Return the text of a file, or None with a note that gives the remedy."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        notes.add(path, f"is missing: {remedy}")
    except OSError as error:
        notes.add(path, f"cannot be read ({error.strerror}): {remedy}")
    return None


def read_dict(path: Path, notes: Notes, remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file, or {} with a note that gives the remedy."""
    text = read_text(path, notes, remedy)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        notes.add(path, f"is not JSON ({error}): {remedy}")
        return {}
    if not isinstance(content, dict):
        notes.add(path, f"holds a {type(content).__name__}, an object was expected: {remedy}")
        return {}
    return content


def read_rows(path: Path, notes: Notes) -> list[dict[str, Any]]:
    """Return the whole rows of a JSON-lines file, and note the broken and half-written lines."""
    text = read_text(path, notes, "the stage has logged nothing yet; run it, or resume it")
    if text is None:
        return []
    rows, broken = [], []
    lines = text.split("\n")
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif place == len(
            lines
        ):  # the writer ends each row with a newline, so this row was cut short
            notes.add(
                path,
                f"line {place} is half-written and left out: resuming the stage writes it again",
            )
        else:
            broken.append(place)
    if broken:
        places = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        count = f"{len(broken)} line{'s' if len(broken) > 1 else ''}"
        notes.add(
            path, f"has {count} that are no JSON objects, left out (line {places}): repair them"
        )
    if not rows:
        notes.add(path, "holds no whole row: run the stage, or resume it")
    return rows


def columns(rows: list[dict[str, Any]]) -> dict[str, Series]:
    """Turn rows into one series per metric; a step written twice keeps its last value."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        step = integer(row.get("step"))
        if step is None:
            continue
        for name, raw in row.items():
            value = number(raw)
            if name != "step" and value is not None:
                points.setdefault(name, {})[step] = value if math.isfinite(value) else math.nan
    return {
        name: Series(tuple(sorted(values)), tuple(values[step] for step in sorted(values)))
        for name, values in points.items()
    }


def _read_metas(folder: Path, notes: Notes) -> dict[int, dict[str, Any]]:
    """Return the meta item of each checkpoint by step; unfinished ones have other names."""
    if not folder.is_dir():
        notes.add(folder, "is missing: nothing has been saved yet; run the stage")
        return {}
    metas = {}
    for step_folder in sorted(folder.iterdir()):
        if not step_folder.name.isdecimal() or not step_folder.is_dir():
            continue
        item = step_folder / "meta"
        files = [item] if item.is_file() else sorted(item.glob("*")) if item.is_dir() else []
        ignored: list[str] = []
        for file in files:
            if not file.is_file() or file.name.startswith(("_", ".")):
                continue
            content = read_dict(file, Notes(notes.root, ignored), "")
            meta = content["meta"] if isinstance(content.get("meta"), dict) else content
            if "stage" in meta or "lineage" in meta:
                metas[int(step_folder.name)] = meta
        if int(step_folder.name) not in metas:
            notes.add(item, "cannot be read: delete this checkpoint and resume from the one before")
    if not metas:
        notes.add(folder, "holds no finished checkpoint: run the stage, or resume it")
    return metas


def read_workdir(path: Path, notes: Notes) -> Workdir:
    """Read one stage's folder, and note what it lacks."""
    has_evaluation = (path / "evaluation.json").exists()
    remedy = "start the stage again with this --workdir"
    config = read_dict(path / "config.json", notes, remedy)
    stage = config.get("stage")
    if not isinstance(stage, str) or not stage:
        stage = "evaluate" if has_evaluation else path.name
    measures = has_evaluation or stage in _EVALUATIONS
    # An evaluation writes neither curves nor checkpoints: that they are absent is worth no note.
    training_notes = Notes(notes.root, []) if measures else notes
    metrics = columns(read_rows(path / "metrics.jsonl", training_notes))
    metas = _read_metas(path / "checkpoints", training_notes)
    evaluation = None
    if measures:
        evaluation = read_dict(
            path / "evaluation.json", notes, "run the evaluation again, it keeps its parts"
        )
    return Workdir(path.name, path, stage, config, metrics, metas, evaluation or None)


def _is_workdir(path: Path) -> bool:
    return any((path / name).exists() for name in _FILES)


def read_run(path: Path, notes: Notes) -> list[Workdir]:
    """Return all workdirs of a run folder in the order of the pipeline, and note what is empty."""
    workdirs = [read_workdir(path, notes)] if _is_workdir(path) else []
    is_stage = bool(workdirs)
    for child in sorted(path.iterdir()):
        if not child.is_dir() or child.name in _PARTS or child.name.startswith((".", "_")):
            continue
        if _is_workdir(child):
            workdirs.append(read_workdir(child, notes))
        elif not is_stage:
            notes.add(child, "is empty: run its stage")
    if not workdirs:
        notes.add(
            path, "holds no stage: give the --workdir of a stage, or the folder above several"
        )
    return sorted(workdirs, key=lambda workdir: (order(workdir.name, workdir.stage), workdir.name))


def parents(workdir: Workdir) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the role and the record of each parent in the newest checkpoint, else in the config.

    A record has path, stage, step and fingerprint. A run that has no checkpoint yet names its
    parents in `config["init"]`: a path, or a table of role to path.
    """
    lineage = as_dict(workdir.meta.get("lineage"))
    if lineage:
        yield from ((role, entry) for role, entry in lineage.items() if isinstance(entry, dict))
        return
    init = as_dict(workdir.config.get("config")).get("init")
    table = init if isinstance(init, dict) else {"init": init}
    yield from (
        (role, {"path": path}) for role, path in table.items() if isinstance(path, str) and path
    )


def folder_of(path: str) -> str:
    """Return the name of the workdir that a checkpoint's path points into."""
    parts = [part for part in Path(path).parts if part not in ("/", ".")]
    if "checkpoints" in parts:
        parts = parts[: parts.index("checkpoints")]
    return parts[-1] if parts else path


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
        folders = {
            workdir.path,
            *(workdir.path / "checkpoints" / str(step) for step in workdir.metas),
        }
        if targets & folders:
            return workdir
    return next((workdir for workdir in workdirs if workdir.name == folder_of(path)), None)


def stale(workdirs: list[Workdir]) -> list[str]:
    """Return a sentence for every child whose parent has another fingerprint than recorded."""
    sentences = []
    for child in workdirs:
        for role, entry in parents(child):
            parent = find(workdirs, str(entry.get("path", "")), child)
            step = integer(entry.get("step"))
            if parent is None or step is None:
                continue
            before, now = entry.get("fingerprint"), parent.metas.get(step, {}).get("fingerprint")
            if before is not None and now is not None and before != now:
                sentences.append(
                    f"{child.name}: its {role} ({parent.name}, step {step}) "
                    f"has been trained anew since (fingerprint {before} then, {now} now): "
                    f"train {child.name} again"
                )
    return sentences


def read_evaluation(workdir: Workdir, notes: Notes) -> Evaluation:
    """Check an evaluation field by field; what is not as agreed is noted and left out."""
    raw, path = workdir.evaluation or {}, workdir.path / "evaluation.json"
    remedy = "run the evaluation again with this version"
    table = raw.get("table")
    if not isinstance(table, list):
        notes.add(path, f"has no table: {remedy}")
        table = []
    rows = [row for row in map(row_from_json, table) if row is not None]
    if len(rows) < len(table):
        count = f"{len(table) - len(rows)} rows of {len(table)}"
        notes.add(path, f"has {count} that are not as agreed: {remedy}")
    entries: dict[str, dict[str, Any]] = {name: {} for row in rows for name in row.values}
    entries |= {name: as_dict(entry) for name, entry in as_dict(raw.get("checkpoints")).items()}
    names = sorted(entries, key=lambda name: order(name, str(entries[name].get("stage"))))
    reference = str(raw.get("reference") or "")
    if reference and reference not in entries:
        words = f"names a reference {reference!r} that is not among its checkpoints: {remedy}"
        notes.add(path, words)
    samples = raw.get("samples")
    return Evaluation(
        workdir,
        {name: entries[name] for name in names},
        reference,
        rows,
        [sample for sample in samples if isinstance(sample, dict)]
        if isinstance(samples, list)
        else [],
        str(raw.get("seed", "not recorded")),
    )


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
        others = {other.name for other in workdirs} - {workdir.name}
        aliases = [
            alias
            for alias, paths in owners.items()
            if paths == {workdir.path} and alias not in others
        ]
        names[workdir.path] = aliases[0] if len(aliases) == 1 else workdir.name
    return names
