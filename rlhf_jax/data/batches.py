"""Batches by number: `batch(step)` depends on the seed and the step, and on nothing else.

Texts become ids once, when the batches are built. A Grain MapDataset then maps the position in the data to
an example: positions e·N to (e+1)·N-1 visit all N examples once, in an order of their own for every epoch
e, and step s takes the positions s·B to (s+1)·B-1. Batches run across the border between epochs, nothing is
left over, and a run that resumes at step s needs no iterator state. `arrays` holds the examples in their
given order, for evaluation.

Arrays are int32, masks bool. Segments are 1 (or the document's number) on real tokens and 0 on padding, by
length and never by id, so that padding may share an id with the end of text. Conversations that do not fit
are dropped whole, counted in `dropped` and reported; a cut question or answer would teach the wrong thing.

Blocks of documents may lie on disk, for corpora larger than the memory; all else is held.

Left out on purpose: worker processes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import grain
import numpy as np

from rlhf_jax.data.chat import Rendered, render_batch
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    Dropped,
    LabelledText,
    Message,
    Prompt,
    select,
)
from rlhf_jax.data.tokenizers import Tokenizer

Ids = Sequence[int]
_AT_ONCE = 1024  # documents that are tokenised together


class Batches:
    """Examples held as arrays with one row each, and their batches by step."""

    def __init__(
        self, arrays: dict[str, np.ndarray], dropped: Dropped, *, batch_size: int, seed: int
    ) -> None:
        """Sets up the order of examples.

        Raises:
            ValueError: if `batch_size` is not between 1 and the number of examples, or `seed` is not 32 bits.
        """
        self.arrays = arrays
        self.dropped = dropped
        self.num_examples = len(next(iter(arrays.values())))
        self.batch_size = batch_size
        if not 1 <= batch_size <= self.num_examples:
            raise ValueError(
                f"batch_size: {batch_size} with {self.num_examples} examples, "
                f"expected 1 to {self.num_examples}: no batch may hold an example twice"
            )
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed: {seed}, expected 0 to {2**32 - 1}")
        self._order = grain.MapDataset.range(self.num_examples).shuffle(seed=seed).repeat()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of a step counted from 0."""
        if step < 0:
            raise ValueError(f"step: {step}, expected 0 or more")
        start = int(step) * self.batch_size
        rows = np.array([self._order[i] for i in range(start, start + self.batch_size)])
        return {name: np.asarray(values[rows]) for name, values in self.arrays.items()}


def lm_batches(
    docs: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    batch_size: int,
    seed: int,
    mask_documents: bool = False,
    folder: Path | None = None,
) -> Batches:
    """Packs documents, each followed by end of text, into blocks: `tokens_BT`, `segments_BT`.

    The documents, each with begin of text if the tokenizer has one, are laid end to end in their given order and
    cut every `context_length` tokens; the last block is padded. Tokens see earlier documents of their block, as
    in GPT-3 (Brown et al. 2020, App. B); with `mask_documents` every document of a block is a segment of its own.

    With a `folder` the blocks are written there and read from there, batch by batch: neither documents nor tokens are held in
    memory. A folder that exists holds the blocks already, and `docs` are not read again.

    Raises:
        ValueError: if there are no documents, or the blocks in `folder` were cut in another way.
    """
    _check_length(context_length)
    if folder is None:
        tokens, starts = (
            np.concatenate(parts) for parts in zip(*_laid(docs, tokenizer), strict=True)
        )
        blocks = _blocks(tokens, starts, tokenizer.pad_id, context_length, mask_documents)
    else:
        cut = {
            "context_length": context_length,
            "mask_documents": mask_documents,
            "tokenizer": tokenizer.fingerprint(),
        }
        if not folder.exists():
            _write_blocks(docs, tokenizer, folder, cut)
        _check_blocks(folder, cut)
        blocks = {
            name: np.memmap(path, np.int32, "r").reshape(-1, context_length)
            for name, path in _files(folder).items()
        }
    return Batches(blocks, Dropped(0, {}), batch_size=batch_size, seed=seed)


def _laid(
    docs: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of some documents laid end to end, and 1 where one starts; all documents, in their order."""
    remaining = iter(docs)
    some = list(islice(remaining, _AT_ONCE))
    _check_any(some, "documents")
    while some:
        encoded = tokenizer.encode_batch([doc.text for doc in some], special=True)
        rows = [[*tokenizer.begin(ids), tokenizer.eos_id] for ids in encoded]
        starts = np.zeros(sum(map(len, rows)), np.int32)
        starts[np.cumsum([0, *map(len, rows[:-1])])] = 1
        yield np.fromiter(chain.from_iterable(rows), np.int32, len(starts)), starts
        some = list(islice(remaining, _AT_ONCE))


def _blocks(
    tokens: np.ndarray, starts: np.ndarray, pad_id: int, size: int, mask_documents: bool
) -> dict[str, np.ndarray]:
    """Cut every `size` tokens, the last block padded; segments are 0 on padding."""
    padding = -len(tokens) % size
    tokens_NT = np.pad(tokens, (0, padding), constant_values=pad_id).reshape(-1, size)
    count_NT = np.ones_like(tokens_NT)
    if mask_documents:  # within a block documents count from 1
        count_NT[:, 1:] += np.cumsum(np.pad(starts, (0, padding)).reshape(-1, size)[:, 1:], axis=1)
    if padding:
        count_NT[-1, -padding:] = 0
    return {"tokens_BT": tokens_NT, "segments_BT": count_NT}


def _write_blocks(
    docs: Iterable[Document], tokenizer: Tokenizer, folder: Path, cut: dict[str, Any]
) -> None:
    """A file of int32 for each array, and how they were cut, in a folder that appears when they are whole."""
    size, mask_documents = cut["context_length"], cut["mask_documents"]
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    tokens = starts = np.zeros(0, np.int32)  # what does not fill a block yet
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in _files(unfinished).values()]
        for part in chain(_laid(docs, tokenizer), [None]):
            end = None  # of what is written: all in the end, else whole blocks
            if part is not None:
                tokens, starts = (
                    np.concatenate(pair) for pair in zip((tokens, starts), part, strict=True)
                )
                end = len(tokens) // size * size
            blocks = _blocks(tokens[:end], starts[:end], tokenizer.pad_id, size, mask_documents)
            for file, rows in zip(files, blocks.values(), strict=True):
                rows.tofile(file)
            tokens, starts = tokens[end:], starts[end:]
    (unfinished / "cut.json").write_text(json.dumps(cut))
    unfinished.rename(folder)


def _check_blocks(folder: Path, cut: dict[str, Any]) -> None:
    found = json.loads((folder / "cut.json").read_text())
    for name, value in cut.items():
        if found[name] != value:
            raise ValueError(
                f"{folder}: blocks with {name} {found[name]}, expected {value}; delete the folder or use another"
            )


def _files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.int32" for name in ("tokens_BT", "segments_BT")}


def demonstration_batches(
    demonstrations: Sequence[Demonstration],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Renders conversations, padded on the right: `tokens_BT`, `segments_BT`, `loss_mask_BT`.

    `loss_mask_BT[b,t]` says that token t is a target: it belongs to the assistant or ends its turn.
    """
    _check_context(context_length, demonstrations, "demonstrations")
    rendered = render_batch(
        tokenizer, [item.messages for item in demonstrations], generation_prompt=False
    )
    keep, dropped = select(
        "demonstrations",
        rendered,
        lambda item: _too_long(item.ids, "context_length", context_length),
    )
    tokens_BT, segments_BT = _pad([rendered[i].ids for i in keep], tokenizer.pad_id, context_length)
    loss_mask_BT = _pad([rendered[i].trained for i in keep], 0, context_length)[0].astype(bool)
    arrays = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "loss_mask_BT": loss_mask_BT}
    return Batches(arrays, dropped, batch_size=batch_size, seed=seed)


def comparison_batches(
    comparisons: Sequence[Comparison],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    max_candidates: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Renders every candidate behind its prompt: `tokens_BCT`, `segments_BCT`, `length_BC`, `rank_BC`, `mask_BC`.

    All candidates of a prompt share a batch element (Ouyang et al. 2022, §3.5). The last `length_BC` tokens are the
    candidate, its end of turn included. Places without a candidate have rank 0, mask False and no tokens. A comparison
    is dropped whole if one candidate does not fit, and if all ranks tie: it holds no pair.
    """
    _check_context(context_length, comparisons, "comparisons")
    if max_candidates < 2:
        raise ValueError(f"max_candidates: {max_candidates}, expected at least 2 to compare")
    conversations = [
        (*item.messages, Message("assistant", response))
        for item in comparisons
        for response in item.responses
    ]
    rendered = iter(render_batch(tokenizer, conversations, generation_prompt=False))
    laid = [[next(rendered) for _ in item.responses] for item in comparisons]
    candidates = [[one.ids for one in group] for group in laid]

    def reason(i: int) -> str | None:
        if len(candidates[i]) > max_candidates:
            return f"with more than max_candidates {max_candidates} responses"
        if len(set(comparisons[i].ranks)) == 1:
            return "with all responses tied"
        return _too_long(max(candidates[i], key=len), "context_length", context_length)

    keep, dropped = select("rankings", range(len(comparisons)), reason)
    rows = [
        ids for i in keep for ids in [*candidates[i], *[[]] * (max_candidates - len(candidates[i]))]
    ]
    tokens, segments = _pad(rows, tokenizer.pad_id, context_length)
    rank_BC, occupied_BC = _pad([comparisons[i].ranks for i in keep], 0, max_candidates)
    length_BC, _ = _pad(
        [[_last_run(one.trained) for one in laid[i]] for i in keep], 0, max_candidates
    )
    shape = (len(keep), max_candidates, context_length)
    arrays = {
        "tokens_BCT": tokens.reshape(shape),
        "segments_BCT": segments.reshape(shape),
        "length_BC": length_BC,
        "rank_BC": rank_BC,
        "mask_BC": occupied_BC.astype(bool),
    }
    return Batches(arrays, dropped, batch_size=batch_size, seed=seed)


def prompt_batches(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    prompt_length: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Renders prompts up to the assistant's turn, left-padded: `prompt_BP`, `prompt_mask_BP`, `index_B`.

    `index_B` is the prompt's place in `prompts`.
    """
    _check_context(prompt_length, prompts, "prompts", name="prompt_length")
    rendered, keep, dropped = _render_prompts(prompts, tokenizer, prompt_length)
    prompt_BP, segments_BP = _pad(
        [rendered[i].ids for i in keep], tokenizer.pad_id, prompt_length, left=True
    )
    arrays = {
        "prompt_BP": prompt_BP,
        "prompt_mask_BP": segments_BP.astype(bool),
        "index_B": np.array(keep, np.int32),
    }
    return Batches(arrays, dropped, batch_size=batch_size, seed=seed)


def fitting_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, *, prompt_length: int
) -> list[Prompt]:
    """The prompts that `prompt_batches` would keep; those that are too long are counted and reported."""
    return [prompts[i] for i in _render_prompts(prompts, tokenizer, prompt_length)[1]]


def _render_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, prompt_length: int
) -> tuple[list[Rendered], list[int], Dropped]:
    rendered = render_batch(tokenizer, [item.messages for item in prompts], generation_prompt=True)
    keep, dropped = select(
        "prompts", rendered, lambda item: _too_long(item.ids, "prompt_length", prompt_length)
    )
    return rendered, keep, dropped


def labelled_batches(
    records: Sequence[LabelledText],
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str],
    context_length: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Renders texts closed by end of text, padded on the right: `tokens_BT`, `segments_BT`, `label_B`.

    `label_B` counts in the order of `labels`. The class is read at the end of text, the extract token of
    GPT-1 (Radford et al. 2018, §3.3).

    Raises:
        ValueError: for a label that `labels` does not list.
    """
    _check_context(context_length, records, "labelled texts")
    numbers = {label: number for number, label in enumerate(labels)}
    for i, record in enumerate(records):
        if record.label not in numbers:
            raise ValueError(
                f"records[{i}]: label: {record.label!r}, expected one of {', '.join(labels)}"
            )
    text_ids = tokenizer.encode_batch([record.text for record in records], special=False)
    rows = [[*tokenizer.begin(ids), tokenizer.eos_id] for ids in text_ids]
    keep, dropped = select(
        "texts", rows, lambda ids: _too_long(ids, "context_length", context_length)
    )
    tokens_BT, segments_BT = _pad([rows[i] for i in keep], tokenizer.pad_id, context_length)
    label_B = np.array([numbers[records[i].label] for i in keep], np.int32)
    arrays = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "label_B": label_B}
    return Batches(arrays, dropped, batch_size=batch_size, seed=seed)


def _check_context(
    length: int, records: Sequence[object], plural: str, *, name: str = "context_length"
) -> None:
    _check_length(length, name)
    _check_any(records, plural)


def _check_any(records: Sequence[object], plural: str) -> None:
    if not len(records):
        raise ValueError(
            f"records: no {plural}, expected at least one; check the source and its split"
        )


def _check_length(length: int, name: str = "context_length") -> None:
    if length < 2:
        raise ValueError(f"{name}: {length}, expected at least 2 tokens")


def _last_run(trained: Sequence[bool]) -> int:
    """Length of the run of trained tokens that ends a conversation: its last reply."""
    return next((i for i, one in enumerate(reversed(trained)) if not one), len(trained))


def _too_long(ids: Ids, name: str, limit: int) -> str | None:
    return f"longer than {name} {limit}" if len(ids) > limit else None


def _pad(
    rows: Sequence[Sequence[int]], pad_id: int, size: int, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows padded to `size` as int32, and segments: 1 where a row had an element, else 0."""
    lengths = np.array([len(row) for row in rows])
    column = np.arange(size)
    padding = (size - lengths)[:, None]
    occupied = column >= padding if left else column < lengths[:, None]
    values = np.full((len(rows), size), pad_id, np.int32)
    values[occupied] = np.array([item for row in rows for item in row], np.int32)
    return values, occupied.astype(np.int32)
