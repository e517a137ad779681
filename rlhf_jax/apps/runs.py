"""Read what a run left behind and believe nothing: every file may be missing, half-written or damaged.

A run folder is one stage's workdir or a folder of several. What cannot be read is never guessed and never
an exception: it becomes a sentence in `problems`, and the report prints it. Left out on purpose: parameters
(only the JSON beside them is read, so that a report of a large model starts in a fraction of a second and
needs no JAX).
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ORDER = (
    "base",
    "pretrain",
    "sft",
    "reward",
    "classify",
    "ppo",
    "ppo_ptx",
    "policy_gradient",
    "preference",
    "dpo",
    "rloo",
    "grpo",
    "evaluate",
    "benchmark",
)
_EVALUATIONS = ("evaluate", "benchmark")
_FILES = ("config.json", "metrics.jsonl", "samples.jsonl", "evaluation.json", "checkpoints")
# Folders that a workdir holds and that are never stages themselves.
_PARTS = frozenset(["checkpoints", "tokenizer", "tensorboard", "figures", "logs", "data"])


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric over the steps at which it was written; values may be NaN."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Workdir:
    """One stage's folder as far as it could be read."""

    name: str
    run: str
    path: Path
    stage: str
    config: dict[str, Any]
    metrics: dict[str, Series]
    samples: list[dict[str, Any]]
    metas: dict[int, dict[str, Any]]
    evaluation: dict[str, Any] | None
    problems: list[str]

    @property
    def meta(self) -> dict[str, Any]:
        """The newest checkpoint's meta, {} without checkpoints."""
        return self.metas[max(self.metas)] if self.metas else {}

    @property
    def is_evaluation(self) -> bool:
        return self.evaluation is not None or self.stage in _EVALUATIONS


def read_json(path: Path, problems: list[str]) -> Any:
    """The parsed file, or None with a sentence in `problems`."""
    try:
        return json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read ({error})")
    return None


def read_dict(path: Path, problems: list[str]) -> dict[str, Any]:
    found = read_json(path, problems)
    if found is not None and not isinstance(found, dict):
        problems.append(f"{path.name} holds a {type(found).__name__}, an object was expected")
    return found if isinstance(found, dict) else {}


def read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """All whole rows of a JSON-lines file; broken ones are counted, a half-written last line is called
    that."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return []
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error})")
        return []
    rows, broken = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number == len(
            lines
        ):  # the writer ends each row with a newline, so this one was cut short
            problems.append(f"{path.name}:{number} is half-written and left out")
        else:
            broken.append(number)
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        problems.append(
            f"{path.name}: {len(broken)} line(s) are not JSON objects and left out (line {shown})"
        )
    if not rows:
        problems.append(f"{path.name} holds no whole row")
    return rows


def number(value: Any) -> float | None:
    """A JSON number (NaN and infinities included, as Python writes them), None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits is valid JSON
        return math.inf


def columns(rows: list[dict[str, Any]]) -> dict[str, Series]:
    """Rows to one series per metric, by step; a step written twice (a resumed run) keeps its last value."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        step = number(row.get("step"))
        if step is None or not math.isfinite(step):
            continue
        for name, raw in row.items():
            value = number(raw)
            if name != "step" and value is not None:
                found.setdefault(name, {})[int(step)] = value if math.isfinite(value) else math.nan
    return {
        name: Series(*map(tuple, zip(*sorted(points.items()), strict=True)))
        for name, points in found.items()
    }


def _read_metas(folder: Path, problems: list[str]) -> dict[int, dict[str, Any]]:
    """The meta item of each finished checkpoint (temporary names are unfinished ones)."""
    if not folder.is_dir():
        problems.append("checkpoints/ is missing")
        return {}
    metas = {}
    for step_folder in sorted(folder.iterdir()):
        if not step_folder.name.isdigit() or not step_folder.is_dir():
            continue
        item = step_folder / "meta"
        files = [item] if item.is_file() else sorted(item.glob("*")) if item.is_dir() else []
        candidates = [
            file for file in files if file.is_file() and not file.name.startswith(("_", "."))
        ]
        trouble: list[str] = []
        for file in candidates:
            content = read_dict(file, trouble)
            meta = content["meta"] if isinstance(content.get("meta"), dict) else content
            if "stage" in meta or "lineage" in meta:
                metas[int(step_folder.name)] = meta
        if int(step_folder.name) not in metas:
            problems.append(f"checkpoints/{step_folder.name}/meta cannot be read")
    if not metas:
        problems.append("checkpoints/ holds no finished checkpoint")
    return metas


def _text(value: Any, fallback: str) -> str:
    return value if isinstance(value, str) and value else fallback


def read_workdir(path: Path, run: str) -> Workdir:
    """Read one stage's folder."""
    problems: list[str] = []
    has_evaluation = (path / "evaluation.json").exists()
    config = read_dict(path / "config.json", problems)
    stage = _text(config.get("stage"), "evaluate" if has_evaluation else path.name)
    quiet: list[
        str
    ] = []  # an evaluation writes neither curves nor checkpoints: their absence is no gap
    sink = quiet if has_evaluation or stage in _EVALUATIONS else problems
    metrics = columns(read_rows(path / "metrics.jsonl", sink))
    metas = _read_metas(path / "checkpoints", sink)
    samples = (
        read_rows(path / "samples.jsonl", problems) if (path / "samples.jsonl").exists() else []
    )
    evaluation = read_dict(path / "evaluation.json", problems) if has_evaluation else None
    if stage in _EVALUATIONS and not has_evaluation:
        problems.append("evaluation.json is missing: the evaluation has not finished")
    return Workdir(
        path.name, run, path, stage, config, metrics, samples, metas, evaluation or None, problems
    )


def _is_workdir(path: Path) -> bool:
    return any((path / name).exists() for name in _FILES)


def _rank(workdir: Workdir) -> tuple[int, str]:
    names = [name for name in (workdir.name, workdir.stage) if name in ORDER]
    return (ORDER.index(names[0]) if names else len(ORDER), workdir.name)


def run_names(paths: list[Path]) -> list[str]:
    """Short names that tell run folders apart: their own, with the folder above where two would be the same."""
    names = [path.name for path in paths]
    return [
        f"{path.parent.name}/{path.name}" if names.count(path.name) > 1 else path.name
        for path in paths
    ]


def read_run(path: Path, run: str, problems: list[str]) -> list[Workdir]:
    """All workdirs of the run folder `path`, which the report calls `run`, in the order of the pipeline.

    What is empty is said in `problems`.
    """
    found = [read_workdir(path.resolve(), run)] if _is_workdir(path) else []
    for child in sorted(path.iterdir()):
        if not child.is_dir() or child.name in _PARTS or child.name.startswith((".", "_")):
            continue
        if _is_workdir(child):
            found.append(read_workdir(child.resolve(), run))
        elif not found or found[0].path != path.resolve():
            problems.append(f"{run}/{child.name}: nothing written yet")
    if not found:
        problems.append(f"{run}: no stage has written anything into {path} yet")
    return sorted(found, key=_rank)


def parents(workdir: Workdir) -> Iterator[tuple[str, dict[str, Any]]]:
    """(role, {path, stage, step, fingerprint}) of each parent named in the newest checkpoint, else in the
    config.

    A run that has no checkpoint yet names its parents in `config["init"]`: a path, or a table of role to
    path.
    """
    lineage = workdir.meta.get("lineage")
    if isinstance(lineage, dict) and lineage:
        yield from ((role, entry) for role, entry in lineage.items() if isinstance(entry, dict))
        return
    config = workdir.config.get("config")
    init = config.get("init") if isinstance(config, dict) else None
    table = init if isinstance(init, dict) else {"init": init}
    yield from (
        (role, {"path": path}) for role, path in table.items() if isinstance(path, str) and path
    )


def folder_of(path: str) -> str:
    """The name of the workdir that a checkpoint's path points into."""
    parts = [part for part in Path(path).parts if part not in ("/", ".")]
    if "checkpoints" in parts:
        parts = parts[: parts.index("checkpoints")]
    return parts[-1] if parts else path


def find(workdirs: list[Workdir], path: str, run: str) -> Workdir | None:
    """The workdir that a recorded path points to: the same folder, else the one of that name in the same run.

    Names are compared too because runs are moved and copied, and the paths in their checkpoints then point
    nowhere.
    """
    for workdir in workdirs:
        checkpoints = (workdir.path / "checkpoints" / str(step) for step in workdir.metas)
        if Path(path).resolve() in (workdir.path, *checkpoints):
            return workdir
    same_name = [workdir for workdir in workdirs if workdir.name == folder_of(path)]
    return next(
        (workdir for workdir in same_name if workdir.run == run),
        same_name[0] if same_name else None,
    )


def stale(workdirs: list[Workdir]) -> list[str]:
    """Sentences about children whose parent has been trained anew since: the recorded fingerprints no
    longer agree."""
    found = []
    for child in workdirs:
        for role, entry in parents(child):
            parent = find(workdirs, str(entry.get("path", "")), child.run)
            step = number(entry.get("step"))
            meta = parent.metas.get(int(step)) if parent and step is not None else None
            recorded, now = entry.get("fingerprint"), meta.get("fingerprint") if meta else None
            if parent and recorded is not None and now is not None and recorded != now:
                where = f"{child.name}: its {role} ({parent.name}, step {int(step or 0)})"
                marks = f"(fingerprint {recorded} then, {now} now)"
                found.append(
                    f"{where} has been trained anew since {marks}; train {child.name} again"
                )
    return found


_COLOURS = {
    "base": 0,
    "pretrain": 0,
    "sft": 1,
    "ppo": 2,
    "ppo_ptx": 3,
    "reward": 4,
    "dpo": 5,
    "rloo": 6,
    "grpo": 7,
}


def colours(names: list[str], *, size: int = 8) -> dict[str, int]:
    """A colour number per name: a stage keeps its own over the whole page, other names take the next free
    one."""
    found = {name: _COLOURS[name] for name in names if name in _COLOURS}
    free = [slot for slot in range(1, size) if slot not in found.values()] or list(range(size))
    others = [name for name in dict.fromkeys(names) if name not in found]
    return found | {name: free[index % len(free)] for index, name in enumerate(others)}
