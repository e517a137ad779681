"""Folders as training and evaluation leave them, written by hand, for the tests of the report."""

import json
from pathlib import Path
from typing import Any

SCRIPT = "<script>alert('pwned')</script>"
MODEL = {"num_layers": 2, "width": 32, "context_length": 64}


def write_stage(
    folder: Path,
    stage: str,
    rows: list[dict[str, Any]],
    *,
    lineage: dict[str, Any] | None = None,
    planned: int = 4,
    fingerprint: str = "",
) -> None:
    """Write a workdir as training leaves it after step 4, with its checkpoint's meta file."""
    meta_folder = folder / "checkpoints" / "4" / "meta"
    meta_folder.mkdir(parents=True)
    meta = {
        "stage": stage,
        "step": 4,
        "num_steps": planned,
        "model": MODEL,
        "lineage": lineage or {},
        "fingerprint": fingerprint or folder.name,
    }
    content = {"meta": meta, "leaves": {}, "crc32": 0}
    (meta_folder / "metadata").write_text(json.dumps(content))
    config = {"stage": stage, "config": {"seed": 0}, "version": "9.9"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)


def curve(*names: str, num: int = 4) -> list[dict[str, Any]]:
    """Return rows of metrics that fall as 1 / step."""
    return [{"step": step, **dict.fromkeys(names, 1.0 / step)} for step in range(1, num + 1)]


def parent(name: str, fingerprint: str = "") -> dict[str, Any]:
    """Return the record of a parent whose run has been moved since."""
    path = f"elsewhere/q/{name}"
    return {"path": path, "stage": name, "step": 4, "fingerprint": fingerprint or name}


def value(middle: float, half: float = 0.1, n: int = 100) -> dict[str, Any]:
    """Return an estimate as evaluation.json has it."""
    return {"value": middle, "low": middle - half, "high": middle + half, "n": n}


def row(metric: str, better: str, values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a row of evaluation.json."""
    texts = {"group": "Alignment", "unit": "share", "description": f"about {metric}"}
    return {
        "metric": metric,
        "better": better,
        **texts,
        "key": "",
        "subject": "",
        "values": values,
    } | changes


def win_rate(key: str, subject: str, **values: dict[str, Any]) -> dict[str, Any]:
    """Return a row of win rates, whose title says nothing that a program could read."""
    return row(f"title of {key}", "higher", values, key=key, subject=subject, group="Preference")


EVALUATION: dict[str, Any] = {
    "checkpoints": {
        "sft": {"path": "runs/q/sft", "stage": "sft", "step": 4},
        "ppo": {"path": "runs/q/ppo", "stage": "ppo"},
    },
    "reference": "sft",
    "table": [
        win_rate("win_rate_labelers", "sft", ppo=value(0.62, 0.015, 2000)),
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
            "prompt": "<|user|>hi<|assistant|>hello<|user|>why?",
            "metadata": {"kind": "ask"},
            "responses": {
                "sft": {"text": "because", "finished": True, "gold": 1.0, "score": None},
                "ppo": {"text": "", "finished": False, "gold": None, "score": 0.5},
            },
        }
    ],
    "seed": 3,
    "version": "9.9",
}


def write_evaluation(folder: Path, content: Any = EVALUATION) -> None:
    """Write an evaluation's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"stage": "evaluate", "config": {}}))
    (folder / "evaluation.json").write_text(json.dumps(content))


LABELS: dict[str, Any] = {
    "policy": parent("sft"),
    "judges": {"train": "toy:labelers", "gold": "toy:gold"},
    "train": {"prompts": 50, "judges": {"train": {"comparisons": 48, "dropped": {"few": 2}}}},
    "validation": {"prompts": 16, "judges": {"gold": {"comparisons": 16, "dropped": {}}}},
}


def write_labels(folder: Path, content: Any = LABELS) -> None:
    """Write a folder of comparisons as the label stage leaves it."""
    (folder / "comparisons" / "train").mkdir(parents=True)
    config = {"stage": "label", "config": {"init": {"policy": "../sft"}}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "label.json").write_text(json.dumps(content))
