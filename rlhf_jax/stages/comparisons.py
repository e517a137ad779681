"""Read comparisons, pack them into batches and measure accuracy on held-out ones, for the stages reward and preference."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from rlhf_jax.config import require
from rlhf_jax.data.batches import Batches, comparison_batches
from rlhf_jax.data.packing import InOrder, PackedComparisons
from rlhf_jax.data.records import Comparison
from rlhf_jax.data.sources import load
from rlhf_jax.maths.masking import Mean
from rlhf_jax.training.run import LABELS, Run, locate
from rlhf_jax.training.updates import TrainState, merge_metrics

Params = Any
Batch = dict[str, Any]


class Layout(Protocol):
    """How rankings are laid into batches: fields of both stages' settings."""

    @property
    def batch_size(self) -> int:
        """Prompts."""

    @property
    def max_length(self) -> int:
        """Tokens of a rendered response."""

    @property
    def row_length(self) -> int:
        """Tokens of a row of several responses."""

    @property
    def max_candidates(self) -> int:
        """Responses to one prompt."""


def check_lengths(name: str, layout: Layout, context_length: int) -> None:
    """Refuse responses longer than a row, and rows longer than the model's context."""
    require(
        layout.max_length <= layout.row_length <= context_length,
        f"{name}.max_length={layout.max_length} <= {name}.row_length={layout.row_length} <= the model's context of "
        f"{context_length} must hold",
    )


def comparison_sources(source: str, workdir: Path) -> dict[str, str]:
    """Return the sources of the training comparisons ("train") and, by judge, of the held-out ones.

    ../NAME is the folder of a label stage, with the options of a source after a question mark; anything else is a source of
    `load`, whose validation split is called "heldout".

    Raises:
      FileNotFoundError: there is no finished label stage in that folder.
    """
    if not source.startswith(".."):
        return {"train": source, "heldout": source}
    name, _, options = source.partition("?")
    folder = locate(workdir, name)
    if not (folder / LABELS).exists():
        raise FileNotFoundError(
            f"data.comparisons={source}: no comparisons in {folder}; run a label stage there "
            "(experiments/menagerie/label.py), or name a source such as jsonl:PATH"
        )
    query = f"?{options}" if options else ""
    judges = sorted(path for path in (folder / "comparisons").iterdir() if path.is_dir())
    return {path.name: f"jsonl:{path}{query}" for path in judges}


def read_rankings(
    sources: Sequence[str],
    split: str,
    layout: Layout,
    run: Run,
    *,
    seed: int,
    data_dir: str,
    change: Callable[[list[Comparison]], list[Comparison]] = lambda comparisons: comparisons,
) -> Batches:
    """The rankings of several sources as one set of batches; `change` may add candidates to them.

    Those that are held out may be fewer than a batch: only `InOrder` reads them.
    """
    found = [
        item
        for source in sources
        for item in load(source, Comparison, split=split, data_dir=data_dir)
    ]
    return comparison_batches(
        change(found),
        run.tokenizer,
        context_length=layout.max_length,
        max_candidates=layout.max_candidates,
        batch_size=layout.batch_size if split == "train" else 1,
        seed=seed,
    )


def pack(
    rankings: Batches | InOrder, layout: Layout, run: Run, *, num_steps: int, num_groups: int
) -> PackedComparisons:
    """Packed batches whose rows divide by micro-batches and devices."""
    return PackedComparisons(
        rankings,
        row_length=layout.row_length,
        num_steps=num_steps,
        num_groups=num_groups,
        row_multiple=run.batch_shards,
    )


def weigh_prompts(batch: Batch) -> jax.Array:
    """Number of prompts with at least one untied pair."""
    rank_BC, mask_BC = batch["rank_BC"], batch["mask_BC"] > 0
    differ_BCC = (
        (rank_BC[:, :, None] < rank_BC[:, None, :]) & mask_BC[:, :, None] & mask_BC[:, None, :]
    )
    return jnp.maximum(differ_BCC.any(axis=(1, 2)).sum(), 1)


def make_validator(
    measure: Callable[[Params, Batch], dict[str, Mean]],
    held_out: Mapping[str, Batches],
    layout: Layout,
    run: Run,
    place: Callable[[Batch], Batch],
    params_of: Callable[[TrainState], Params],
) -> Callable[[TrainState, int], dict[str, Any]]:
    """A hook that reports validation/MEASURE_JUDGE for every judge of held-out prompts.

    Judges are labelers who gave no training label, and gold where there is one.
    """
    compiled = jax.jit(measure)

    def chunks(rankings: Batches) -> list[Batch]:
        once = InOrder(rankings, layout.batch_size)
        packed = pack(once, layout, run, num_steps=once.num_batches, num_groups=1)
        return [place(packed.batch(i)) for i in range(once.num_batches)]

    placed = {judge: chunks(rankings) for judge, rankings in held_out.items()}

    def validate(state: TrainState, step: int) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for judge, batches in placed.items():
            found = compiled(params_of(state), batches[0])
            for batch in batches[1:]:
                found = merge_metrics(found, compiled(params_of(state), batch))
            row |= {f"validation/{name}_{judge}": mean for name, mean in found.items()}
        return row

    return validate
