"""Write the README.md of an exported model: what it is, from what, on which data, how good.

Everything is read from the run: the description of its checkpoint, its config.json, and every
evaluation.json in the folders beside it that measured this very checkpoint (by its fingerprint).
Of local files the name is told and not the folder. Left out on purpose: prose about intended use,
which only its author can write.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_jax import __version__
from rlhf_jax.evaluation.table import Row, row_from_json
from rlhf_jax.models.config import from_dict, num_params
from rlhf_jax.training.checkpoints import CheckpointKind, Meta, resolve
from rlhf_jax.training.pretrained import HUB, is_foreign

_TAGS = {
    CheckpointKind.LANGUAGE_MODEL: "text-generation",
    CheckpointKind.SCALAR_MODEL: "text-classification",
}
_NOUNS = {
    CheckpointKind.LANGUAGE_MODEL: "language model",
    CheckpointKind.SCALAR_MODEL: "reward model",
}


def write_model_card(folder: Path, checkpoint: str, meta: Meta, *, library: str) -> None:
    """Write README.md beside an exported model; `library` loads it, transformers or peft."""
    workdir = None if is_foreign(checkpoint) else resolve(checkpoint).parent.parent
    name = workdir.absolute().name if workdir else _public(checkpoint)
    sections = [
        _front_matter(meta, library),
        f"# {name}",
        _describe_model(meta),
        _describe_parents(meta),
    ]
    if workdir:
        sections += [_describe_data(workdir), _describe_evaluations(workdir, meta)]
    origin = f"Made and exported by rlhf_jax {__version__}."
    text = "\n\n".join(section for section in [*sections, origin] if section)
    (folder / "README.md").write_text(text + "\n")


def _front_matter(meta: Meta, library: str) -> str:
    bases = [str(entry["path"]) for entry in meta.lineage.values()]
    bases += [str(meta.extra.get("lora", {}).get("base", "")), str(meta.extra.get("source", ""))]
    on_hub = {base.removeprefix(HUB).partition("@")[0] for base in bases if base.startswith(HUB)}
    lines = [f"library_name: {library}", f"pipeline_tag: {_TAGS[meta.kind]}"]
    if on_hub:
        lines += ["base_model:", *(f"- {base}" for base in sorted(on_hub))]
    return "\n".join(["---", *lines, "tags:", "- rlhf", f"- {meta.stage}", "---"])


def _describe_model(meta: Meta) -> str:
    model = from_dict(meta.model)
    return (
        f"A {_NOUNS[meta.kind]} of {num_params(model):,} parameters and {model.context_length:,} "
        f"tokens of context, stage `{meta.stage}`, step {meta.step:,} of {meta.num_steps:,} "
        f"(fingerprint `{meta.fingerprint}`)."
    )


def _describe_parents(meta: Meta) -> str:
    if not meta.lineage:
        source = meta.extra.get("source")
        return (
            f"It was read from `{_public(source)}`." if source else "It was trained from scratch."
        )
    rows = [
        f"| {role} | {_public(entry['path'])} | {entry['stage']} | {entry['step']} "
        f"| `{entry['fingerprint']}` |"
        for role, entry in meta.lineage.items()
    ]
    head = ["| started from | name | stage | step | fingerprint |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def _describe_data(workdir: Path) -> str:
    path = workdir / "config.json"
    config = json.loads(path.read_text())["config"] if path.is_file() else {}
    data = config.get("data") or {}
    rows = [
        f"| {field} | `{_public(value)}` |"
        for field, value in data.items()
        if isinstance(value, str) and value
    ]
    return "\n".join(["## Data", "", "| field | source |", "|---|---|", *rows]) if rows else ""


def _describe_evaluations(workdir: Path, meta: Meta) -> str:
    parts = []
    for path in sorted(workdir.absolute().parent.glob("*/evaluation.json")):
        try:
            content = json.loads(path.read_text())
            names = [
                name
                for name, entry in content["checkpoints"].items()
                if entry["fingerprint"] == meta.fingerprint
            ]
        except (ValueError, LookupError, TypeError, AttributeError):
            print(f"   {path}: no results of an evaluation, not in the model card", flush=True)
            continue
        parts += [_table(path.parent.name, name, content) for name in names]
    return "\n\n".join(["## Evaluation", *parts]) if parts else ""


def _table(evaluation: str, name: str, content: Mapping[str, Any]) -> str:
    """Return the rows of an evaluation that measured `name`, beside those of its reference."""
    reference = content.get("reference")
    columns = [name] if reference in (None, name) else [name, str(reference)]
    lines = [
        f"Measured as `{name}` in `{evaluation}`; intervals of 95 %.",
        "",
        f"| metric | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for row in _rows(content):
        if name in row.values:
            cells = " | ".join(_cell(row, column) for column in columns)
            unit = f" [{row.unit}]" if row.unit else ""
            lines.append(f"| {row.group}: {row.metric}{unit} | {cells} |")
    return "\n".join(lines)


def _rows(content: Mapping[str, Any]) -> Iterator[Row]:
    for raw in content.get("table", []):
        if row := row_from_json(raw):
            yield row


def _cell(row: Row, column: str) -> str:
    if column not in row.values:
        return "–"
    value, low, high, _ = row.values[column]
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _public(name: Any) -> str:
    """Return the name of a source or a run without the folders that it has on this machine."""
    if str(name).startswith(HUB):
        return str(name)
    return re.sub(r"(?:(?<=:)|^)(?:\.{0,2}/)(?:[^\s?/]*/)*(?=[^\s?/])", "", str(name))
