"""Build batches by number: `batch(step)` depends on the seed and the step, and on nothing else.

Positions e·N to (e+1)·N-1 of a Grain MapDataset visit all N examples once, in another order for
every epoch e, and step s takes the positions s·B to (s+1)·B-1: batches run across the border
between epochs, and a run that resumes at step s needs no iterator state. `arrays` holds the
examples in their given order, for evaluation.

Arrays are int32, masks bool. Segments are 1 (or the document's number) on real tokens and 0 on
padding, by length and never by id, so that padding may share an id with the end of text.
Conversations that do not fit are dropped whole, counted and reported; a cut question or answer
would teach the wrong thing.

Left out on purpose: worker processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import grain
import numpy as np

from rlhf_jax.data.chat import Rendered, TrainOn, render_batch
from rlhf_jax.data.records import (
    Comparison,
    Demonstration,
    Document,
    LabelledText,
    Message,
    Prompt,
    select,
)
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.files import aside, check_file, file_checksum, read_json, write_json

CHUNK = 1024  # the number of documents that are tokenised together


class Batches:
    """Hold examples as arrays with one row each, and give their batches by step."""

    def __init__(self, arrays: dict[str, np.ndarray], *, batch_size: int, seed: int) -> None:
        """Set up the order of the examples.

        Raises:
            ValueError: if `batch_size` is not between 1 and the number of examples, or `seed` does
                not fit 32 bits.
        """
        self.arrays = arrays
        self.num_examples = len(next(iter(arrays.values())))
        self.batch_size = batch_size
        most = self.num_examples
        if not 1 <= batch_size <= most:
            problem = f"{batch_size} with {most} examples, expected 1 to {most}"
            raise ValueError(f"batch_size: {problem}: no batch may hold an example twice")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed: {seed}, expected 0 to {2**32 - 1}")
        self._order = grain.MapDataset.range(self.num_examples).shuffle(seed=seed).repeat()

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of a step counted from 0."""
        if step < 0:
            raise ValueError(f"step: {step}, expected 0 or more")
        start = int(step) * self.batch_size
        rows = np.array([self._order[i] for i in range(start, start + self.batch_size)])
        return {name: np.asarray(values[rows]) for name, values in self.arrays.items()}


# Documents, in blocks.


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
    """Pack documents, each followed by end of text, into blocks: `tokens_BT`, `segments_BT`.

    The documents, each with begin of text if the tokenizer has one, are concatenated in their given
    order and cut every `context_length` tokens; the last block is padded. Tokens see earlier
    documents of their block, as in GPT-3 (Brown et al. 2020, App. B); with `mask_documents` every
    document of a block is a segment of its own.

    With a `folder` the blocks are written and read there, batch by batch, and not held in memory.
    If the folder exists it holds the blocks already, and `docs` are not read again.

    Raises:
        ValueError: if there are no documents, or the blocks in `folder` were cut in another way.
    """
    _check_length(context_length, "context_length")
    cuts = _cut_documents(docs, tokenizer, context_length, mask_documents)
    if folder is None:
        parts = list(cuts)
        blocks = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    else:
        layout: dict[str, Any] = {"context_length": context_length}
        layout |= {"mask_documents": mask_documents, "tokenizer": tokenizer.fingerprint()}
        if not folder.exists():
            _write_blocks(cuts, folder, layout)
        _check_blocks(folder, layout)
        blocks = {
            name: np.memmap(path, np.int32, "r").reshape(-1, context_length)
            for name, path in _block_files(folder).items()
        }
    return Batches(blocks, batch_size=batch_size, seed=seed)


def _tokenize(
    docs: Iterable[Document], tokenizer: Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the concatenated ids of chunks of documents, with a mask that is 1 where one starts."""
    remaining = iter(docs)
    chunk = list(islice(remaining, CHUNK))
    _check_any(chunk, "documents")
    while chunk:
        encoded = tokenizer.encode_batch([doc.text for doc in chunk], special=True)
        rows = [[*tokenizer.prepend_begin_of_text(ids), tokenizer.eos_id] for ids in encoded]
        starts = np.zeros(sum(map(len, rows)), np.int32)
        starts[np.cumsum([0, *map(len, rows[:-1])])] = 1
        yield np.fromiter(chain.from_iterable(rows), np.int32, len(starts)), starts
        chunk = list(islice(remaining, CHUNK))


def _cut_documents(
    docs: Iterable[Document], tokenizer: Tokenizer, size: int, mask_documents: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Yield blocks of `size` tokens; only the last of all is padded."""
    # Tokens that do not fill a block yet, and where documents start among them.
    tokens = np.zeros(0, np.int32)
    starts = np.zeros(0, np.int32)
    for new_tokens, new_starts in _tokenize(docs, tokenizer):
        tokens = np.concatenate([tokens, new_tokens])
        starts = np.concatenate([starts, new_starts])
        end = len(tokens) // size * size
        yield _cut(tokens[:end], starts[:end], tokenizer.pad_id, size, mask_documents)
        tokens = tokens[end:]
        starts = starts[end:]
    yield _cut(tokens, starts, tokenizer.pad_id, size, mask_documents)


def _cut(
    tokens: np.ndarray, starts: np.ndarray, pad_id: int, size: int, mask_documents: bool
) -> dict[str, np.ndarray]:
    """Cut every `size` tokens and pad the last block; segments are 0 on padding."""
    padding = -len(tokens) % size
    tokens_NT = np.pad(tokens, (0, padding), constant_values=pad_id).reshape(-1, size)
    segments_NT = np.ones_like(tokens_NT)
    if mask_documents:  # within a block documents count from 1
        starts_NT = np.pad(starts, (0, padding)).reshape(-1, size)
        segments_NT[:, 1:] += np.cumsum(starts_NT[:, 1:], axis=1)
    if padding:
        segments_NT[-1, -padding:] = 0
    return {"tokens_BT": tokens_NT, "segments_BT": segments_NT}


def _write_blocks(
    cuts: Iterable[dict[str, np.ndarray]], folder: Path, layout: dict[str, Any]
) -> None:
    """Write a file of int32 for each array, and their layout; the folder appears when complete."""
    with aside(folder) as unfinished:
        unfinished.mkdir()
        paths = _block_files(unfinished)
        with ExitStack() as stack:
            files = {name: stack.enter_context(path.open("wb")) for name, path in paths.items()}
            for blocks in cuts:
                for name, rows in blocks.items():
                    rows.tofile(files[name])
        checksums = {name: file_checksum(path) for name, path in paths.items()}
        write_json(unfinished / "cut.json", layout | {"files": checksums})


def _check_blocks(folder: Path, layout: Mapping[str, Any]) -> None:
    """Refuse blocks that were cut in another way, or are not as they were written."""
    remedy = f"delete {folder}, it is made again from the same documents"
    written = read_json(folder / "cut.json", remedy)
    for name, value in layout.items():
        if written.get(name) != value:
            raise ValueError(
                f"{folder}: blocks with {name} {written.get(name)}, expected {value}; delete the "
                "folder or use another"
            )
    for name, path in _block_files(folder).items():
        check_file(path, written.get("files", {}).get(name, {}), remedy)


def _block_files(folder: Path) -> dict[str, Path]:
    return {name: folder / f"{name}.int32" for name in ("tokens_BT", "segments_BT")}


# Conversations and labelled texts, one to a row.


def demonstration_batches(
    demonstrations: Sequence[Demonstration],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    batch_size: int,
    seed: int,
    train_on: TrainOn = "all",
) -> Batches:
    """Render conversations, padded on the right: `tokens_BT`, `segments_BT`, `loss_mask_BT`.

    `loss_mask_BT[b,t]` says that token t is a target: it belongs to the assistant or ends its turn,
    in all replies of a conversation or in the last one alone.
    """
    _check(demonstrations, "demonstrations", "context_length", context_length)
    conversations = [demonstration.messages for demonstration in demonstrations]
    rendered = render_batch(tokenizer, conversations, generation_prompt=False, train_on=train_on)
    rows = [item.ids for item in rendered]
    keep = _fitting("demonstrations", rows, "context_length", context_length)
    tokens_BT, segments_BT = _pad([rows[i] for i in keep], tokenizer.pad_id, context_length)
    loss_mask_BT, _ = _pad([rendered[i].trained for i in keep], 0, context_length)
    arrays = {"tokens_BT": tokens_BT, "segments_BT": segments_BT}
    arrays |= {"loss_mask_BT": loss_mask_BT.astype(bool)}
    return Batches(arrays, batch_size=batch_size, seed=seed)


def comparison_batches(
    comparisons: Sequence[Comparison],
    tokenizer: Tokenizer,
    *,
    context_length: int,
    max_candidates: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Render every candidate behind its prompt, all candidates of a prompt in one batch element.

    The arrays are `tokens_BCT`, `segments_BCT`, `length_BC`, `rank_BC` and `mask_BC` (Ouyang et al.
    2022, §3.5). The last `length_BC` tokens are the candidate, its end of turn included. Places
    without a candidate have rank 0, mask False and no tokens. A comparison is dropped whole if one
    candidate does not fit, and if all ranks tie: it holds no pair.
    """
    _check(comparisons, "comparisons", "context_length", context_length)
    if max_candidates < 2:
        raise ValueError(f"max_candidates: {max_candidates}, expected at least 2 to compare")
    groups = _render_candidates(comparisons, tokenizer)

    def reason_to_drop(i: int) -> str | None:
        if len(groups[i]) > max_candidates:
            return f"with more than max_candidates {max_candidates} responses"
        if len(set(comparisons[i].ranks)) == 1:
            return "with all responses tied"
        longest = max((candidate.ids for candidate in groups[i]), key=len)
        return _too_long(longest, "context_length", context_length)

    keep = select("rankings", range(len(comparisons)), reason_to_drop)
    rows: list[list[int]] = []
    for i in keep:
        rows += [candidate.ids for candidate in groups[i]]
        rows += [[]] * (max_candidates - len(groups[i]))
    shape = (len(keep), max_candidates, context_length)
    tokens, segments = _pad(rows, tokenizer.pad_id, context_length)
    lengths = [[_reply_length(candidate.trained) for candidate in groups[i]] for i in keep]
    length_BC, _ = _pad(lengths, 0, max_candidates)
    rank_BC, occupied_BC = _pad([comparisons[i].ranks for i in keep], 0, max_candidates)
    arrays = {
        "tokens_BCT": tokens.reshape(shape),
        "segments_BCT": segments.reshape(shape),
        "length_BC": length_BC,
        "rank_BC": rank_BC,
        "mask_BC": occupied_BC.astype(bool),
    }
    return Batches(arrays, batch_size=batch_size, seed=seed)


def _render_candidates(
    comparisons: Sequence[Comparison], tokenizer: Tokenizer
) -> list[list[Rendered]]:
    """Render each response of every comparison behind its prompt."""
    conversations = [
        (*ranking.messages, Message("assistant", response))
        for ranking in comparisons
        for response in ranking.responses
    ]
    rendered = iter(
        render_batch(tokenizer, conversations, generation_prompt=False, train_on="last")
    )
    return [list(islice(rendered, len(ranking.responses))) for ranking in comparisons]


def prompt_batches(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    prompt_length: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Render prompts up to the assistant's turn, padded on the left.

    The arrays are `prompt_BP`, `prompt_mask_BP` and `index_B`, the prompt's index in `prompts`.
    """
    _check(prompts, "prompts", "prompt_length", prompt_length)
    rows, keep = _render_prompts(prompts, tokenizer, prompt_length)
    fitting = [rows[i] for i in keep]
    prompt_BP, segments_BP = _pad(fitting, tokenizer.pad_id, prompt_length, left=True)
    arrays = {"prompt_BP": prompt_BP, "prompt_mask_BP": segments_BP.astype(bool)}
    arrays |= {"index_B": np.array(keep, np.int32)}
    return Batches(arrays, batch_size=batch_size, seed=seed)


def fitting_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, *, prompt_length: int
) -> list[Prompt]:
    """Return the prompts that `prompt_batches` would keep; report those that are too long."""
    _, keep = _render_prompts(prompts, tokenizer, prompt_length)
    return [prompts[i] for i in keep]


def _render_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, prompt_length: int
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of all prompts, and the indices of those that fit."""
    conversations = [prompt.messages for prompt in prompts]
    rendered = render_batch(tokenizer, conversations, generation_prompt=True)
    rows = [item.ids for item in rendered]
    return rows, _fitting("prompts", rows, "prompt_length", prompt_length)


def labelled_batches(
    records: Sequence[LabelledText],
    tokenizer: Tokenizer,
    *,
    labels: Sequence[str],
    context_length: int,
    batch_size: int,
    seed: int,
) -> Batches:
    """Render texts closed by end of text, padded on the right.

    The arrays are `tokens_BT`, `segments_BT` and `label_B`, which counts in the order of `labels`.
    The class is read at the end of text, the extract token of GPT-1 (Radford et al. 2018, §3.3).

    Raises:
        ValueError: for a label that `labels` does not list.
    """
    _check(records, "labelled texts", "context_length", context_length)
    numbers = {label: number for number, label in enumerate(labels)}
    expected = f"expected one of {', '.join(labels)}"
    for i, record in enumerate(records):
        if record.label not in numbers:
            raise ValueError(f"records[{i}]: label: {record.label!r}, {expected}")
    text_ids = tokenizer.encode_batch([record.text for record in records], special=False)
    rows = [[*tokenizer.prepend_begin_of_text(ids), tokenizer.eos_id] for ids in text_ids]
    keep = _fitting("texts", rows, "context_length", context_length)
    tokens_BT, segments_BT = _pad([rows[i] for i in keep], tokenizer.pad_id, context_length)
    label_B = np.array([numbers[records[i].label] for i in keep], np.int32)
    arrays = {"tokens_BT": tokens_BT, "segments_BT": segments_BT, "label_B": label_B}
    return Batches(arrays, batch_size=batch_size, seed=seed)


def _check(records: Sequence[object], plural: str, name: str, length: int) -> None:
    """Raise a ValueError if `length`, called `name` in configs, is short, or without records."""
    _check_length(length, name)
    _check_any(records, plural)


def _check_any(records: Sequence[object], plural: str) -> None:
    if not len(records):
        expected = "expected at least one; check the source and its split"
        raise ValueError(f"records: no {plural}, {expected}")


def _check_length(length: int, name: str) -> None:
    if length < 2:
        raise ValueError(f"{name}: {length}, expected at least 2 tokens")


def _reply_length(trained: Sequence[bool]) -> int:
    """Return the length of the run of trained tokens that ends a conversation: its last reply."""
    return next((i for i, mark in enumerate(reversed(trained)) if not mark), len(trained))


def _too_long(ids: Sequence[int], name: str, limit: int) -> str | None:
    return f"longer than {name} {limit}" if len(ids) > limit else None


def _fitting(plural: str, rows: Sequence[Sequence[int]], name: str, limit: int) -> list[int]:
    """Return the indices of the rows that are not too long; report the others."""
    return select(plural, rows, lambda ids: _too_long(ids, name, limit))


def _pad(
    rows: Sequence[Sequence[int]], pad_id: int, size: int, *, left: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows padded to `size`, and segments: 1 where a row had an element, else 0."""
    lengths = np.array([len(row) for row in rows])
    column = np.arange(size)
    padding = (size - lengths)[:, None]
    occupied = column >= padding if left else column < lengths[:, None]
    values = np.full((len(rows), size), pad_id, np.int32)
    values[occupied] = np.array([item for row in rows for item in row], np.int32)
    return values, occupied.astype(np.int32)
