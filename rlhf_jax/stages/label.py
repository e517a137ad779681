"""Collect comparisons: sample K responses to every prompt from a policy and have judges rank them.

    for every prompt:  K ~ U{min..max};  y_1..y_K ~ π(.|x);  a judge ranks them, ties allowed

One judge ranks the training prompts, every other judge ranks the validation prompts (InstructGPT:
labelers who gave no training label; a world with an exact judge: that one, too, which only
measures). Responses that did not end and repeats of an earlier one are left out; prompts with fewer
than two different responses, or whose responses a judge cannot rank, are dropped. All are counted.

    WORKDIR/comparisons/train/train.jsonl         training comparisons
    WORKDIR/comparisons/JUDGE/validation.jsonl    the same validation responses for every judge
    WORKDIR/label.json                            judges, policy and counts; written last

The stages reward and preference read them with `data.comparisons=../label`.

A killed run continues with the files that are missing.

Left out on purpose: several judges per training prompt (InstructGPT had one), active choice of what
to label.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Comparison, Prompt, report
from rlhf_jax.data.sources import load, write_jsonl
from rlhf_jax.evaluation.checkpoints import describe
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, generate
from rlhf_jax.evaluation.judges import Judge
from rlhf_jax.files import aside, file_checksum, read_json, write_json
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.stages.comparisons import check_comparisons
from rlhf_jax.training import processes
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.keys import RunPurpose, run_key
from rlhf_jax.training.run import LABELS, MeshConfig, Parent, Run

Split = Literal["train", "validation"]
COUNT_SEED = 4  # of the numbers of responses that prompts keep


@dataclass(frozen=True)
class Init:
    """The policy whose responses are ranked; ../ is relative to the workdir."""

    policy: str


@dataclass(frozen=True)
class Data:
    """The prompts, train and validation; those of more than `prompt_length` tokens are left out."""

    data_dir: str
    prompts: str
    prompt_length: int


@dataclass(frozen=True)
class Label:
    """Who ranks how many responses to how many prompts."""

    train_judge: str
    validation_judges: dict[str, str]  # folder under comparisons/ -> judge
    num_prompts: int
    num_validation_prompts: int
    min_candidates: int
    max_candidates: int
    temperature: float
    response_length: int
    batch_size: int  # responses that are sampled at once


@dataclass(frozen=True)
class Config:
    """Exactly what this stage reads."""

    stage: Literal["label"]
    seed: int
    init: Init
    data: Data
    label: Label
    mesh: MeshConfig


_AGAIN = "start the label stage again with the same command"


class Candidates(NamedTuple):
    """Prompts, the different finished responses to each, and how many responses were left out."""

    prompts: list[Prompt]
    responses: list[list[str]]
    unfinished: int
    repeated: int


def run(config: Config, workdir: str, make_judge: Callable[[str], Judge]) -> None:
    """Collect the comparisons that are not in the workdir yet."""
    check(config.label)
    run = Run.open(config, workdir)
    names: dict[Split, dict[str, str]] = {
        "train": {"train": config.label.train_judge},
        "validation": config.label.validation_judges,
    }
    judges = {
        split: {folder: make_judge(judge) for folder, judge in folders.items()}
        for split, folders in names.items()
        if folders
    }
    policy = run.parent("policy", config.init.policy, kind=CheckpointKind.LANGUAGE_MODEL)
    length = config.data.prompt_length + config.label.response_length
    require(
        length <= policy.model.context_length,
        f"data.prompt_length + label.response_length = {length} exceeds the policy's context of "
        f"{policy.model.context_length}; shorten one of them",
    )
    with processes.main_process_first("label"):
        complete = _check_origin(run.workdir, config, policy)
    if complete:
        return
    run.announce(config, {"policy": policy.params}, _arithmetic(config.label))
    # All processes look before the first of them writes, for all of them have to sample together.
    missing = [split for split in judges if not _is_collected(run.workdir, split, judges[split])]
    processes.barrier("what is missing")
    counts: dict[str, Any] = {}
    for split in judges:
        if split in missing:
            candidates = sample_candidates(config, run, policy, split)
            if processes.is_main_process():
                _rank_and_write(run.workdir, split, candidates, judges[split], config.seed)
        processes.barrier(f"comparisons {split}")
        counts[split] = read_json(_counts_file(run.workdir, split), _AGAIN)
    if processes.is_main_process():
        write_json(run.workdir / LABELS, _summary(config, policy, counts), indent=2)
    processes.barrier("label.json")


def check(label: Label) -> None:
    """Refuse impossible settings before anything compiles."""
    require(
        2 <= label.min_candidates <= label.max_candidates,
        f"label.min_candidates={label.min_candidates} must be between 2 and "
        f"label.max_candidates={label.max_candidates}",
    )
    for folder in label.validation_judges:
        require(
            re.fullmatch(r"[\w.-]+", folder) is not None and folder != "train",
            f"label.validation_judges: {folder!r} becomes a folder beside train; use letters, "
            "digits and _.-",
        )


def _arithmetic(label: Label) -> str:
    judges = [f"{folder} = {judge}" for folder, judge in label.validation_judges.items()]
    return (
        f"{label.num_prompts} prompts x {label.min_candidates} to {label.max_candidates} responses "
        f"ranked by {label.train_judge}; {label.num_validation_prompts} validation prompts by "
        f"{', '.join(judges) or 'nobody'}"
    )


# --- responses ----------------------------------------------------------------------------------


def sample_candidates(config: Config, run: Run, policy: Parent, split: Split) -> Candidates:
    """Sample responses to prompts of a split that are chosen by the seed."""
    label, seed = config.label, config.seed
    data = config.data
    loaded = load(data.prompts, Prompt, split=split, data_dir=data.data_dir)
    run.check_data(begun=_counts_file(run.workdir, "train").exists())
    prompts = fitting_prompts(loaded, run.tokenizer, prompt_length=data.prompt_length)
    count = label.num_prompts if split == "train" else label.num_validation_prompts
    order = np.random.default_rng((seed, split == "train")).permutation(len(prompts))[:count]
    chosen = [prompts[int(i)] for i in order]
    purpose = RunPurpose.LABEL_TRAIN if split == "train" else RunPurpose.LABEL_VALIDATION
    settings = GenerationSettings(
        replace(PLAIN, temperature=label.temperature),
        data.prompt_length,
        label.response_length,
        label.batch_size,
        label.max_candidates,
    )
    key = run_key(jax.random.key(seed), purpose)
    model = LanguageModel(policy.model)
    generations = generate(model, policy.params, run.tokenizer, chosen, key, settings)
    # All prompts get `max_candidates` responses, so that batches have one shape, and most keep
    # fewer.
    rng = np.random.default_rng((seed, COUNT_SEED))
    kept = [
        group[: int(rng.integers(label.min_candidates, label.max_candidates + 1))]
        for group in generations
    ]
    responses = [different_texts(group) for group in kept]
    finished = sum(generation.finished for group in kept for generation in group)
    different = sum(map(len, responses))
    unfinished, repeated = sum(map(len, kept)) - finished, finished - different
    if processes.is_main_process():
        found = f"{len(chosen)} prompts, {different} responses to rank"
        lost = f"{unfinished} unfinished and {repeated} repeated"
        print(f"   {split}: {found}; left out {lost}", flush=True)
    return Candidates(chosen, responses, unfinished, repeated)


def different_texts(generations: list[Generation]) -> list[str]:
    """Return the texts of finished responses that say something, each once, in their order."""
    return list(dict.fromkeys(g.text for g in generations if g.finished and g.text.strip()))


# --- rankings -----------------------------------------------------------------------------------


def rank_candidates(
    candidates: Candidates, judge: Judge, seed: int
) -> tuple[list[Comparison], dict[str, int]]:
    """Return one comparison per prompt that has one, and how many prompts have none, by reason."""
    places = [n for n, texts in enumerate(candidates.responses) if len(texts) >= 2]
    reasons = {"with fewer than two different responses": len(candidates.prompts) - len(places)}
    prompts = [candidates.prompts[n] for n in places]
    responses = [candidates.responses[n] for n in places]
    # The generator of a prompt is its own, whatever happens to the others.
    rngs = [np.random.default_rng((seed, n)) for n in places]
    ranks = judge.rank_all(prompts, responses, rngs) if places else []
    comparisons = [
        Comparison(prompt.messages, tuple(texts), prompt_ranks, prompt.metadata)
        for prompt, texts, prompt_ranks in zip(prompts, responses, ranks, strict=True)
        if prompt_ranks is not None
    ]
    reasons[f"whose responses {judge.name} does not rank"] = len(places) - len(comparisons)
    reasons = {reason: count for reason, count in reasons.items() if count}
    return comparisons, reasons


# --- files --------------------------------------------------------------------------------------


def _check_origin(workdir: Path, config: Config, policy: Parent) -> bool:
    """Return whether all is collected; forget what another policy, seed or config has begun.

    Raises:
      ValueError: all was collected from another policy than is there now.
    """
    if (workdir / LABELS).exists():
        before = read_json(workdir / LABELS, f"delete it; {_AGAIN}")["policy"]
        require(
            before["fingerprint"] == policy.meta.fingerprint,
            f"{workdir} has comparisons of {before['path']} at step {before['step']} "
            f"({before['fingerprint']}), but {config.init.policy} now holds step "
            f"{policy.meta.step} ({policy.meta.fingerprint}); use a new workdir, or "
            "restore that policy",
        )
        return True
    origin = {
        **asdict(config.label),
        "prompts": config.data.prompts,
        "prompt_length": config.data.prompt_length,
        "seed": config.seed,
        "policy": policy.meta.fingerprint,
    }
    folder = workdir / "comparisons"
    note = folder / "origin.json"
    if note.exists():
        if read_json(note, f"delete {folder}; {_AGAIN}") == json.loads(json.dumps(origin)):
            return False
        print(f"   {folder}: made by another policy or config, collected anew", flush=True)
        shutil.rmtree(folder)
    if processes.is_main_process():
        write_json(note, origin, indent=2)
    return False


def _summary(config: Config, policy: Parent, counts: Mapping[str, Any]) -> dict[str, Any]:
    judges = {"train": config.label.train_judge, **config.label.validation_judges}
    return {"policy": describe(config.init.policy, policy.meta), "judges": judges, **counts}


def _is_collected(workdir: Path, split: Split, judges: Mapping[str, Judge]) -> bool:
    files = [_comparisons_file(workdir, folder, split) for folder in judges]
    if not _counts_file(workdir, split).exists() or not all(file.exists() for file in files):
        return False
    check_comparisons(workdir / "comparisons", split)
    return True


def _rank_and_write(
    workdir: Path, split: Split, candidates: Candidates, judges: Mapping[str, Judge], seed: int
) -> None:
    """Write the comparisons of every judge; a file is complete as soon as it is there."""
    counts: dict[str, Any] = {
        "prompts": len(candidates.prompts),
        "responses": sum(map(len, candidates.responses)),
        "unfinished": candidates.unfinished,
        "repeated": candidates.repeated,
        "judges": {},
    }
    for folder, judge in judges.items():
        comparisons, dropped = rank_candidates(candidates, judge, seed)
        source = f"{split} prompts ranked by {judge.name}"
        report(source, len(candidates.prompts), dropped)
        path = _comparisons_file(workdir, folder, split)
        with aside(path) as unfinished:
            write_jsonl(unfinished, comparisons)
        counts["judges"][folder] = {"comparisons": len(comparisons), "dropped": dropped}
        counts["judges"][folder] |= {"file": file_checksum(path)}
    write_json(_counts_file(workdir, split), counts, indent=2)


def _comparisons_file(workdir: Path, folder: str, split: Split) -> Path:
    return workdir / "comparisons" / folder / f"{split}.jsonl"


def _counts_file(workdir: Path, split: Split) -> Path:
    return workdir / "comparisons" / f"{split}.json"
