"""Find the checkpoints that take part in an evaluation, load them, and write their results."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from rlhf_jax import __version__
from rlhf_jax.config import require
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.table import Row, print_table, row_to_json
from rlhf_jax.files import write_json
from rlhf_jax.models.config import TransformerConfig, from_dict
from rlhf_jax.models.heads import LanguageModel, Params, ScalarModel
from rlhf_jax.training.checkpoints import Meta, lineage_entry
from rlhf_jax.training.pretrained import load_model, read_meta, read_tokenizer
from rlhf_jax.training.run import locate


class CheckpointRef(NamedTuple):
    """A checkpoint that has not been loaded yet; `path` is what the config calls it."""

    path: str
    folder: Path
    meta: Meta

    @property
    def model(self) -> TransformerConfig:
        """Return the shape of its model."""
        return from_dict(self.meta.model)


class LoadedModel(NamedTuple):
    """A language model and its parameters."""

    model: LanguageModel
    params: Params


def find_checkpoint(workdir: Path, path: str) -> CheckpointRef:
    """Find the checkpoint that a config names.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = locate(workdir, path)
    return CheckpointRef(path, folder, read_meta(folder))


def check_names(names: Iterable[str], reference: str) -> None:
    """Refuse names that cannot be part of a file's, and a reference that is not one of them."""
    known = list(names)
    message = f"reference={reference!r} is not among checkpoints: {', '.join(known)}"
    require(reference in known, message)
    for name in known:
        require(
            re.fullmatch(r"[\w.-]+", name) is not None,
            f"checkpoints: the name {name!r} must consist of letters, digits and _.-",
        )


def find_checkpoints(workdir: Path, paths: Mapping[str, str]) -> dict[str, CheckpointRef]:
    """Find checkpoints by name, sorted by the number of stages behind them, then by name."""
    stages = ("pretrain", "sft")

    def place(item: tuple[str, CheckpointRef]) -> tuple[int, str]:
        name, checkpoint = item
        stage = checkpoint.meta.stage
        return (stages.index(stage) if stage in stages else len(stages)), name

    checkpoints = {name: find_checkpoint(workdir, path) for name, path in paths.items()}
    return dict(sorted(checkpoints.items(), key=place))


def announce(title: str, checkpoints: Mapping[str, CheckpointRef], reference: str) -> None:
    """Print the title of a stage, and which checkpoints take part in it."""
    print(f"== {title}")
    for name, (path, _, meta) in checkpoints.items():
        mark = ", the reference" if name == reference else ""
        print(f"   {name:12s} <- {path} (stage {meta.stage}, step {meta.step}{mark})", flush=True)


def describe(path: str, meta: Meta) -> dict[str, Any]:
    """Return what files of results say of a checkpoint."""
    return lineage_entry(path, meta)


class Findings(NamedTuple):
    """What an evaluation found; `controls` are columns that are no checkpoints.

    Each has a heading, which is a few words, and a description.
    """

    rows: Sequence[Row]
    samples: Sequence[Mapping[str, Any]]
    controls: Mapping[str, Mapping[str, str]] = {}
    warnings: Sequence[str] = ()


def write_results(
    workdir: Path,
    checkpoints: Mapping[str, CheckpointRef],
    findings: Findings,
    config: Any,
    details: Sequence[str] = (),
) -> None:
    """Write evaluation.json, and print its table without the groups of `details`.

    `config` is a stage's, with `reference` and `seed`.
    """
    rows, samples, controls, warnings = findings
    content = {
        "checkpoints": {name: describe(ref.path, ref.meta) for name, ref in checkpoints.items()},
        "reference": config.reference,
        "table": [row_to_json(row) for row in rows],
        "samples": samples,
        "controls": controls,
        "warnings": list(warnings),
        "seed": config.seed,
        "version": __version__,
    }
    write_json(workdir / "evaluation.json", content, indent=1)
    headings = {name: f"{ref.meta.stage} {ref.meta.step}" for name, ref in checkpoints.items()}
    headings |= {name: control["heading"] for name, control in controls.items()}
    shown = [row for row in rows if row.group not in details]
    console = Console()
    print_table(shown, headings, config.reference, console)
    for name, control in controls.items():
        console.print(Text(f"{name}: {control['description']}", style="dim"), soft_wrap=True)
    for warning in warnings:
        console.print(Text(f"! {warning}", style="yellow"), soft_wrap=True)
    num_more = len(rows) - len(shown)
    more = f", with {num_more} rows of details more (rlhf-jax report {workdir})" if num_more else ""
    print(f"   wrote {workdir / 'evaluation.json'}{more}", flush=True)


def load_tokenizer_of(checkpoint: CheckpointRef) -> Tokenizer:
    """Load the tokenizer of a checkpoint."""
    return read_tokenizer(checkpoint.folder)


def load_language_model(checkpoint: CheckpointRef) -> LoadedModel:
    """Load a checkpoint of a language model."""
    params, meta = load_model(checkpoint.folder)
    return LoadedModel(LanguageModel(from_dict(meta.model)), params)


def load_scalar_model(checkpoint: CheckpointRef) -> tuple[ScalarModel, Params]:
    """Load a checkpoint of a reward or value model."""
    params, meta = load_model(checkpoint.folder)
    return ScalarModel(from_dict(meta.model)), params
