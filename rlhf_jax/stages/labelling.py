"""Rankings for the reward model: sample K responses per prompt from a policy, have simulated labelers rank them.

    for every prompt:  K ~ U{min..max};  y_1..y_K ~ π(.|x);  one labeler drawn at random ranks them, ties allowed

Training prompts are ranked by the training labelers. Validation prompts are ranked twice: by labelers who gave no training
label, and by gold, which only measures. Responses that did not end, and repeats of one already there, are left out; prompts
with fewer than two different responses are dropped. Both are counted.

Left out on purpose: several labelers per training prompt (InstructGPT had one), active choice of what to label.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Comparison, Prompt
from rlhf_jax.data.sources import load, write_jsonl
from rlhf_jax.evaluation.generate import Generation, generate
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.menagerie import gold, labelers
from rlhf_jax.menagerie.world import World, make_world
from rlhf_jax.models.heads import LanguageModel
from rlhf_jax.training import processes
from rlhf_jax.training.run import Run

Ranker = Callable[[Prompt, list[str], np.random.Generator], tuple[int, ...]]


@dataclass(frozen=True)
class Labelling:
    """Who is asked what. Read only when the comparisons are to be collected."""

    world: str
    prompts: str
    num_prompts: int
    num_validation_prompts: int
    min_candidates: int
    max_candidates: int
    temperature: float
    prompt_length: int
    response_length: int
    batch_size: int


def collect_comparisons(
    config: Labelling, run: Run, policy: Any, *, seed: int, data_dir: str
) -> dict[str, str]:
    """Collect, or find collected in the workdir, the rankings; returns their sources by purpose.

    Files are written under a temporary name and renamed when complete, so a killed collection leaves none.
    """
    require(
        2 <= config.min_candidates <= config.max_candidates,
        f"labelling.min_candidates={config.min_candidates} must be between 2 and "
        f"labelling.max_candidates={config.max_candidates}",
    )
    folder = run.workdir / "comparisons"
    with processes.main_process_first("labelling"):
        _same_origin_or_empty(
            folder, {**asdict(config), "seed": seed, "policy": policy.meta.fingerprint}
        )
    world = make_world(config.world.removeprefix("menagerie/"))
    plan: dict[str, tuple[int, dict[str, Ranker]]] = {
        "train": (config.num_prompts, {"train": labeler_ranker(world, "train")}),
        "validation": (
            config.num_validation_prompts,
            {"heldout": labeler_ranker(world, "heldout"), "gold": gold_ranker(world)},
        ),
    }
    for split, (count, rankers) in plan.items():
        paths = {name: folder / name / f"{split}.jsonl" for name in rankers}
        if all(path.exists() for path in paths.values()):
            continue
        prompts = fitting_prompts(
            load(config.prompts, Prompt, split=split, data_dir=data_dir),
            run.tokenizer,
            prompt_length=config.prompt_length,
        )
        order = np.random.default_rng((seed, split == "train")).permutation(len(prompts))[:count]
        candidates = _sample(config, run, policy, [prompts[int(i)] for i in order], seed, split)
        if processes.is_main_process():
            for name, ranker in rankers.items():
                _write(paths[name], rank_all(candidates, ranker, seed))
        processes.barrier(f"rankings {split}")
    return {name: f"jsonl:{folder / name}" for name in ("train", "heldout", "gold")}


def labeler_ranker(world: World, group: str) -> Ranker:
    """Rank by one labeler of a group, drawn anew for every prompt."""
    people = labelers.labelers(world, group)

    def rank(prompt: Prompt, responses: list[str], rng: np.random.Generator) -> tuple[int, ...]:
        labeler = people[int(rng.integers(len(people)))]
        finished = [True] * len(responses)
        ranks, _, _ = labelers.rank(world, labeler, prompt.messages, responses, finished, rng)
        return tuple(ranks)

    return rank


def gold_ranker(world: World) -> Ranker:
    """Rank by gold; equal totals tie."""

    def rank(prompt: Prompt, responses: list[str], rng: np.random.Generator) -> tuple[int, ...]:
        totals = np.round(
            [gold.judge(world, prompt.messages, text, True).total for text in responses], 6
        )
        return tuple(1 + int((totals > total).sum()) for total in totals)

    return rank


def rank_all(
    candidates: Sequence[tuple[Prompt, list[str]]], ranker: Ranker, seed: int
) -> list[Comparison]:
    """One comparison per prompt with at least two different responses."""
    comparisons = []
    for index, (prompt, responses) in enumerate(candidates):
        if len(responses) < 2:
            continue
        ranks = ranker(prompt, responses, np.random.default_rng((seed, index)))
        comparisons.append(Comparison(prompt.messages, tuple(responses), ranks, prompt.metadata))
    return comparisons


def _sample(
    config: Labelling, run: Run, policy: Any, prompts: list[Prompt], seed: int, split: str
) -> list[tuple[Prompt, list[str]]]:
    spec = SamplingSpec(temperature=config.temperature, top_k=0, top_p=1.0, nucleus="holtzman")
    key = jax.random.fold_in(jax.random.key(seed), 2 if split == "train" else 3)
    generations = generate(
        LanguageModel(policy.model),
        policy.params,
        run.tokenizer,
        prompts,
        key,
        spec=spec,
        prompt_length=config.prompt_length,
        response_length=config.response_length,
        batch_size=config.batch_size,
        num_samples=config.max_candidates,
    )
    rng = np.random.default_rng((seed, 4))
    kept, unfinished, repeated = [], 0, 0
    for prompt, drawn in zip(prompts, generations, strict=True):
        drawn = drawn[: int(rng.integers(config.min_candidates, config.max_candidates + 1))]
        texts = _different(drawn)
        unfinished += sum(not g.finished for g in drawn)
        repeated += sum(g.finished for g in drawn) - len(texts)
        kept.append((prompt, texts))
    total = sum(len(texts) for _, texts in kept)
    print(
        f"   {split}: {len(prompts)} prompts, {total} responses to rank; left out {unfinished} unfinished and "
        f"{repeated} repeated",
        flush=True,
    )
    return kept


def _different(drawn: Sequence[Generation]) -> list[str]:
    return list(dict.fromkeys(g.text for g in drawn if g.finished and g.text.strip()))


def _same_origin_or_empty(folder: Path, origin: dict[str, Any]) -> None:
    """Forget rankings that another policy, seed or labelling config made; remember what makes these."""
    note = folder / "origin.json"
    if note.exists() and json.loads(note.read_text()) != origin:
        print(f"   {folder}: made by another policy or config, collected anew", flush=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if processes.is_main_process():
        note.write_text(json.dumps(origin, indent=2) + "\n")


def _write(path: Path, comparisons: list[Comparison]) -> None:
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    write_jsonl(temporary, comparisons)
    temporary.replace(path)
