"""Read rankings, pack them into batches, and measure accuracy on held-out ones.

The reward and preference stages share this. `data.comparisons` is

    ../STAGE    what the label stage in that folder collected: rankings to train on, and held-out
                ones by judge
    all else    a source of data/sources.py; its validation split is the held-out one

It holds rankings, or for KTO single replies with a thumb.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import Batches, comparison_batches
from rlhf_jax.data.packing import InOrder, PackedComparisons
from rlhf_jax.data.records import Comparison, Thumb
from rlhf_jax.data.sources import holds, load
from rlhf_jax.files import check_file, read_json
from rlhf_jax.maths.masking import Mean
from rlhf_jax.maths.preference import PairNorm
from rlhf_jax.training.run import Run, locate
from rlhf_jax.training.updates import merge_metrics

Params = Any
Batch = dict[str, Any]
TRAIN, HELD_OUT = (
    "train",
    "heldout",
)  # names of sets of rankings; further ones are called after their judge


@dataclass(frozen=True)
class ComparisonConfig:
    """Say how often rankings are read and how they are laid into batches."""

    num_epochs: float
    batch_size: int  # prompts
    num_micro_batches: int  # parts of a batch that are in memory at once
    max_length: int  # tokens of a prompt with one response; longer ones are left out and counted
    row_length: int  # tokens; several responses are packed into a row
    max_candidates: int  # responses to one prompt
    pair_norm: PairNorm  # what the loss of a prompt's pairs is divided by
    eval_every: int  # updates


@dataclass(frozen=True)
class Reader:
    """Name what every reading of rankings of one run has in common."""

    run: Run
    settings: ComparisonConfig
    data_dir: str
    seed: int

    def batches(self, comparisons: Sequence[Comparison], split: str) -> Batches:
        """Return comparisons as batches; held-out ones may be fewer than a batch."""
        return comparison_batches(
            comparisons,
            self.run.tokenizer,
            context_length=self.settings.max_length,
            max_candidates=self.settings.max_candidates,
            batch_size=self.settings.batch_size if split == TRAIN else 1,
            seed=self.seed,
        )

    def load(self, sources: Sequence[str], split: str) -> list[Comparison]:
        """Return the comparisons of several sources, one after the other."""
        return [
            comparison
            for source in sources
            for comparison in load(source, Comparison, split=split, data_dir=self.data_dir)
        ]

    def load_thumbs(self, source: str, split: str) -> list[Thumb] | None:
        """Return the single replies with a thumb that a source holds, None if it holds none."""
        if not holds(source, Thumb, split=split, data_dir=self.data_dir):
            return None
        return list(load(source, Thumb, split=split, data_dir=self.data_dir))

    def pack(
        self, rankings: Batches | InOrder, num_steps: int, num_groups: int
    ) -> PackedComparisons:
        """Return packed batches whose rows divide by micro-batches and devices."""
        return PackedComparisons(
            rankings,
            row_length=self.settings.row_length,
            num_steps=num_steps,
            num_groups=num_groups,
            row_multiple=self.run.batch_shards,
        )

    def held_out(self, source: str) -> list[Batch]:
        """Return the held-out rankings of a source, each once and in order, as packed batches."""
        rankings = self.batches(self.load([source], "validation"), "validation")
        return self.in_order(rankings)

    def in_order(self, rankings: Batches) -> list[Batch]:
        """Return all rankings once, in order, as packed batches on the host."""
        once = InOrder(rankings, self.settings.batch_size)
        packed = self.pack(once, num_steps=once.num_batches, num_groups=1)
        return [packed.batch(i) for i in range(once.num_batches)]


def check_lengths(name: str, settings: ComparisonConfig, context_length: int) -> None:
    """Refuse responses longer than a row, and rows longer than the model's context."""
    require(
        settings.max_length <= settings.row_length <= context_length,
        f"{name}.max_length={settings.max_length} <= {name}.row_length={settings.row_length} <= "
        f"the model's context of {context_length} must hold",
    )


def comparison_sources(source: str, workdir: Path) -> dict[str, str]:
    """Return the sources of the training rankings and, by judge, of the held-out ones.

    Options of a source may follow a question mark: ../label?train=train[:300].

    Raises:
        FileNotFoundError: if the stage that `source` names has collected nothing.
    """
    if not source.startswith(".."):
        return {TRAIN: source, HELD_OUT: source}
    name, _, options = source.partition("?")
    folder = locate(workdir, name) / "comparisons"
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )
    if TRAIN not in found:
        raise FileNotFoundError(
            f"data.comparisons={source}: no comparisons in {folder}; run the label stage in "
            f"{folder.parent} first, or name a source such as jsonl:PATH"
        )
    for split in ("train", "validation"):
        check_comparisons(folder, split)
    judges = [TRAIN, *(judge for judge in found if judge != TRAIN)]
    suffix = "?" + options if options else ""
    return {judge: f"jsonl:{folder / judge}{suffix}" for judge in judges}


def check_comparisons(folder: Path, split: str) -> None:
    """Refuse comparisons that are not as the label stage wrote them.

    Raises:
        ValueError: names the file and what to do with one that was changed on purpose.
    """
    counts = folder / f"{split}.json"
    if not counts.exists():  # the label stage has not come so far
        return
    remedy = f"delete {folder}, and start the label stage in {folder.parent} again"
    written = read_json(counts, remedy)
    for judge, count in written.get("judges", {}).items():
        check_file(
            folder / judge / f"{split}.jsonl",
            count.get("file", {}),
            f"{remedy}; changed on purpose, give it another name and read it as jsonl:PATH",
        )


def prompts_with_pairs(batch: Batch) -> jax.Array:
    """Return the number of prompts with an untied pair: what the loss is a mean over."""
    rank_BC, mask_BC = batch["rank_BC"], batch["mask_BC"] > 0
    both_BCC = mask_BC[:, :, None] & mask_BC[:, None, :]
    better_BCC = (rank_BC[:, :, None] < rank_BC[:, None, :]) & both_BCC
    return jnp.maximum(better_BCC.any(axis=(1, 2)).sum(), 1)


def measure_held_out(
    measure: Callable[[Params, Batch], dict[str, Mean]],
    held_out: Mapping[str, Sequence[Batch]],
    params: Params,
) -> dict[str, Mean]:
    """Return loss and accuracy on every judge's held-out rankings, as validation/NAME_JUDGE."""
    row: dict[str, Mean] = {}
    for judge, batches in held_out.items():
        metrics = measure(params, batches[0])
        for batch in batches[1:]:
            metrics = merge_metrics(metrics, measure(params, batch))
        row |= {f"validation/{name}_{judge}": metric for name, metric in metrics.items()}
    return row
