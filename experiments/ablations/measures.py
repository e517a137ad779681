"""Measure best of n from one pool of samples, and what a policy's answers are worth.

All on held-out test prompts. Gold is in standard deviations of the supervised policy's answers to
the same prompts, with their mean at 0 (Gao et al. 2022, section 2.2).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.ablations.fits import best_of_n, best_of_n_kl
from experiments.ablations.framework import Ablation, Context, GridRun, Row
from experiments.ablations.shared import base, pick
from experiments.menagerie import evaluate
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates, win_rate
from rlhf_jax.evaluation.checkpoints import (
    CheckpointRef,
    LoadedModel,
    find_checkpoint,
    load_language_model,
    load_scalar_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, generate
from rlhf_jax.evaluation.judges import JudgeSettings
from rlhf_jax.evaluation.likelihood import (
    Continuation,
    continuations,
    corpus_nll,
    scores,
    sequence_kl,
)
from rlhf_jax.evaluation.measurements import Responses, take_first
from rlhf_jax.inference.decoding import PLAIN, SamplingSpec
from rlhf_jax.menagerie import judges
from rlhf_jax.menagerie.world import World, make_world
from rlhf_jax.models.heads import ScalarModel
from rlhf_jax.training.checkpoints import all_steps, checkpoint_folder

BOOTSTRAP = Bootstrap(1000, 0)


@dataclass(frozen=True)
class PolicyEvalSettings:
    """Say how much is asked of every policy."""

    size: str
    num_prompts: int
    num_samples: int  # answers to each prompt
    labelers_per_prompt: int = 1
    corpus_documents: int = 8


def policy_eval_settings(
    size: str, labelers_per_prompt: int = 1, corpus_documents: int = 8
) -> PolicyEvalSettings:
    """Return as many prompts and answers as a policy gets at a size."""
    num_prompts = pick(size, tiny=8, default=256, large=1024)
    num_samples = pick(size, tiny=2, default=4, large=4)
    return PolicyEvalSettings(size, num_prompts, num_samples, labelers_per_prompt, corpus_documents)


def full_eval_settings(size: str) -> PolicyEvalSettings:
    """Return the same with three labelers a prompt and a sample of the corpus."""
    return policy_eval_settings(size, 3, pick(size, tiny=8, default=400, large=4000))


@dataclass(frozen=True)
class PromptSet:
    """Hold a world's prompts and documents, and how answers are drawn."""

    world: World
    prompts: Sequence[Prompt]
    documents: Sequence[Document]
    tokenizer: Tokenizer
    sampling: GenerationSettings  # one answer to each prompt

    def sample(
        self, policy: LoadedModel, key: jax.Array, num_samples: int, spec: SamplingSpec = PLAIN
    ) -> Responses:
        """Draw a policy's answers to the prompts."""
        settings = self.sampling._replace(sampling=spec, num_samples=num_samples)
        return generate(*policy, self.tokenizer, self.prompts, key, settings)


def load_prompt_set(settings: PolicyEvalSettings, checkpoint: CheckpointRef) -> PromptSet:
    """Load the evaluation's world, test prompts and validation documents."""
    config = evaluate.get_config(settings.size)
    data = config.data
    tokenizer = load_tokenizer_of(checkpoint)
    lengths = (data.prompt_length, config.evaluation.response_length)
    prompts = load(data.prompts, Prompt, split="test", data_dir=data.data_dir)
    prompts = fitting_prompts(prompts, tokenizer, prompt_length=data.prompt_length)
    documents = load(data.documents, Document, split="validation", data_dir=data.data_dir)
    return PromptSet(
        make_world(config.world.name.removeprefix("menagerie/")),
        take_first("num_prompts", settings.num_prompts, prompts),
        take_first("corpus_documents", settings.corpus_documents, documents),
        tokenizer,
        GenerationSettings(PLAIN, *lengths, config.evaluation.batch_size),
    )


def _generations(kept: Sequence[Sequence[Any]]) -> Responses:
    return [[Generation(text, tuple(ids), end) for text, ids, end in row] for row in kept]


def _cache_key(settings: PolicyEvalSettings, checkpoint: CheckpointRef) -> dict[str, Any]:
    return {**asdict(settings), "policy": checkpoint.meta.fingerprint}


# --- best of n ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplePool:
    """Hold many answers of the supervised policy to each prompt, equal ones once."""

    prompt_set: PromptSet
    distinct: Responses
    gold: list[np.ndarray]  # of the distinct answers, in SD of all samples
    sample_index: list[np.ndarray]  # (S,) which of the distinct answers each sample is


def _standardised(
    values: Sequence[np.ndarray], sample_index: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return values of distinct answers with mean 0 and SD 1 over all samples."""
    pairs = zip(values, sample_index, strict=True)
    samples = np.concatenate([value[index] for value, index in pairs])
    return [(value - samples.mean()) / samples.std() for value in values]


def draw_sample_pool(context: Context, settings: PolicyEvalSettings, seed: int) -> SamplePool:
    """Draw `num_samples` answers to each prompt, once per seed; later calls read them."""
    checkpoint = context.checkpoint(base(seed, "sft"))
    prompt_set = load_prompt_set(settings, checkpoint)

    def draw() -> dict[str, Any]:
        policy = load_language_model(checkpoint)
        samples = prompt_set.sample(policy, jax.random.key(seed), settings.num_samples)
        distinct = [list(dict.fromkeys(row)) for row in samples]
        gold = [
            judges.judge(prompt_set.world, [prompt], [row]).total_NS[0]
            for prompt, row in zip(prompt_set.prompts, distinct, strict=True)
        ]
        numbers = [{answer: k for k, answer in enumerate(row)} for row in distinct]
        pairs = zip(numbers, samples, strict=True)
        index = [[number[answer] for answer in row] for number, row in pairs]
        return {"distinct": distinct, "gold": gold, "sample_index": index}

    kept, _ = context.cache.get(f"seed{seed}", "pool", _cache_key(settings, checkpoint), draw)
    index = [np.array(row) for row in kept["sample_index"]]
    gold = _standardised([np.array(row) for row in kept["gold"]], index)
    return SamplePool(prompt_set, _generations(kept["distinct"]), gold, index)


def proxy_scores(pool: SamplePool, folder: Path) -> list[np.ndarray]:
    """Score every distinct answer by a reward model, in SD of all samples with their mean at 0.

    Raises:
        ValueError: the reward model was trained with another tokenizer than the policy.
    """
    checkpoint = find_checkpoint(folder, str(folder))
    tokenizer, prompts = pool.prompt_set.tokenizer, pool.prompt_set.prompts
    if checkpoint.meta.tokenizer != tokenizer.fingerprint():
        raise ValueError(f"{folder}: has another tokenizer than the policy that was sampled")
    items = continuations(tokenizer, prompts, pool.distinct)
    flat = scores(*load_scalar_model(checkpoint), items, batch_size=256)
    ends = np.cumsum([len(row) for row in pool.distinct])[:-1]
    return _standardised(np.split(flat, ends), pool.sample_index)


@dataclass(frozen=True)
class BestOfNCurves:
    """Hold the proxy's and gold's expected score of best of n, for each prompt and n."""

    n: tuple[int, ...]
    proxy_PN: np.ndarray
    gold_PN: np.ndarray

    @property
    def distance(self) -> np.ndarray:
        """√KL(best of n ‖ supervised policy); an upper bound, since some answers come twice."""
        return np.sqrt(best_of_n_kl(self.n))


def powers_of_two(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to `most`."""
    return tuple(2**k for k in range(most.bit_length()))


def best_of_n_curves(
    pool: SamplePool, proxy: Sequence[np.ndarray], n: tuple[int, ...]
) -> BestOfNCurves:
    """Estimate best of n by a proxy without bias, from all samples for every n.

    As Nakano et al. 2021, App. I; gold counts from its mean over the prompt.
    """
    proxy_PN, gold_PN = np.empty((2, len(proxy), len(n)))
    for row, index in enumerate(pool.sample_index):
        score, gold = proxy[row][index], pool.gold[row][index]
        for column, count in enumerate(n):
            proxy_PN[row, column] = best_of_n(score, score, count)
            gold_PN[row, column] = best_of_n(score, gold - gold.mean(), count)
    return BestOfNCurves(n, proxy_PN, gold_PN)


# --- policies -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """Hold the supervised policy and its answers to the prompts."""

    prompt_set: PromptSet
    policy: LoadedModel
    answers: Responses
    total_NS: np.ndarray  # raw gold

    def continuations(self, answers: Responses) -> list[Continuation]:
        """Return answers behind their prompts."""
        return continuations(self.prompt_set.tokenizer, self.prompt_set.prompts, answers)


def load_reference(context: Context, settings: PolicyEvalSettings, seed: int) -> Reference:
    """Load the seed's supervised policy and its answers, which are drawn once."""
    checkpoint = context.checkpoint(base(seed, "sft"))
    prompt_set, policy = load_prompt_set(settings, checkpoint), load_language_model(checkpoint)

    def draw() -> dict[str, Any]:
        return {"answers": draw_answers(policy, prompt_set, settings, seed)}

    kept, _ = context.cache.get(f"seed{seed}", "reference", _cache_key(settings, checkpoint), draw)
    answers = _generations(kept["answers"])
    total_NS = judges.judge(prompt_set.world, prompt_set.prompts, answers).total_NS
    return Reference(prompt_set, policy, answers, total_NS)


def draw_answers(
    policy: LoadedModel, prompt_set: PromptSet, settings: PolicyEvalSettings, seed: int
) -> Responses:
    """Draw a policy's answers, by the same keys for all policies of a seed."""
    return prompt_set.sample(policy, jax.random.key(1000 + seed), settings.num_samples)


def judge_answers(
    settings: PolicyEvalSettings, reference: Reference, answers: Responses, seed: int
) -> dict[str, Estimate]:
    """Judge answers by gold, and by held-out labelers against the supervised policy's answers.

    Gold is in SD of the supervised policy's answers.
    """
    world, prompts = reference.prompt_set.world, reference.prompt_set.prompts
    total_NS = judges.judge(world, prompts, answers).total_NS
    prompt_M = np.repeat(np.arange(settings.num_prompts), settings.num_samples)
    gold = ((total_NS - reference.total_NS.mean()) / reference.total_NS.std()).ravel()
    judge_settings = JudgeSettings(Path(), settings.labelers_per_prompt, seed)
    judge = judges.LabelerJudge(world, "heldout", judge_settings)
    preference_NSL = judge.preferences(prompts, answers, reference.answers)
    return {
        "gold": estimates.clustered_mean(gold, prompt_M, BOOTSTRAP),
        "preferred": win_rate.win_rate(preference_NSL, BOOTSTRAP),
    }


def interval_columns(measured: Mapping[str, Estimate]) -> Row:
    """Return estimates as columns NAME, NAME_low and NAME_high."""
    row: Row = {}
    for name, estimate in measured.items():
        row[name] = estimate.value
        row[f"{name}_low"] = float(estimate.low or 0.0)
        row[f"{name}_high"] = float(estimate.high or 0.0)
    return row


@dataclass(frozen=True)
class Proxy:
    """Score answers by a reward model, in SD of the supervised policy's with their mean at 0."""

    model: ScalarModel
    params: Any
    mean: float
    spread: float

    def __call__(self, items: Sequence[Continuation]) -> np.ndarray:
        return (scores(self.model, self.params, items, batch_size=256) - self.mean) / self.spread


def make_proxy(reference: Reference, reward_path: Path) -> Proxy:
    """Load a reward model and find its unit on the reference's answers."""
    model, params = load_scalar_model(find_checkpoint(reward_path, str(reward_path)))
    raw = scores(model, params, reference.continuations(reference.answers), batch_size=256)
    return Proxy(model, params, float(raw.mean()), float(raw.std()))


def evaluate_policy(
    settings: PolicyEvalSettings, reference: Reference, policy_path: Path, proxy: Proxy, seed: int
) -> Row:
    """Measure a policy: gold, proxy, KL, labelers' preference and corpus loss, with intervals."""
    prompt_set = reference.prompt_set
    policy = load_language_model(find_checkpoint(policy_path, str(policy_path)))
    answers = draw_answers(policy, prompt_set, settings, seed)
    items = reference.continuations(answers)
    prompt_M = np.repeat(np.arange(settings.num_prompts), settings.num_samples)
    kl = sequence_kl(policy, reference.policy, items, batch_size=256)
    nll, tokens = corpus_nll(
        *(policy.model, policy.params, prompt_set.tokenizer, prompt_set.documents),
        context_length=policy.model.config.context_length,
        batch_size=64,
        mask_documents=False,
    )
    measured = {
        **judge_answers(settings, reference, answers, seed),
        "proxy": estimates.clustered_mean(proxy(items), prompt_M, BOOTSTRAP),
        "kl": estimates.clustered_mean(kl, prompt_M, BOOTSTRAP),
        "nll": estimates.ratio(nll, tokens, BOOTSTRAP),
    }
    length = float(np.mean([answer.length for row in answers for answer in row]))
    distance = float(np.sqrt(max(kl.mean(), 0.0)))
    return {"distance": distance, "length": length, **interval_columns(measured)}


def evaluate_checkpoints(
    context: Context,
    *,
    settings: PolicyEvalSettings,
    seed: int,
    folder: str,
    reward_folder: str,
    steps: Sequence[int],
    start: bool,
) -> list[Row]:
    """Evaluate checkpoints of a policy; with `start` also the supervised policy, as update 0.

    Of a run that diverged before the first of them, its last good one stands in.
    """
    reference = load_reference(context, settings, seed)
    proxy = make_proxy(reference, context.folder(reward_folder))
    saved = all_steps(context.folder(folder))
    present = [step for step in steps if step in saved] or saved[-1:]
    paths = {0: context.folder(base(seed, "sft"))} if start else {}
    paths |= {step: checkpoint_folder(context.folder(folder), step) for step in present}
    return [
        {"update": step, **evaluate_policy(settings, reference, path, proxy, seed)}
        for step, path in paths.items()
    ]


def measure_last_checkpoint(
    ablation: Ablation, size: str, seed: int, run: GridRun, point: Row, *, start: bool = False
) -> None:
    """Add a run and the measurement of its last checkpoint; of one that diverged the last good."""
    ablation.add_runs(run)
    reward = base(seed, "reward")
    ablation.add_measurement(
        run.folder.replace("/", "-"),
        {"seed": seed, **point},
        (run.folder, reward, base(seed, "sft")),
        evaluate_checkpoints,
        settings=full_eval_settings(size),
        seed=seed,
        folder=run.folder,
        reward_folder=reward,
        steps=[run.config.ppo.total_episodes // run.config.ppo.batch_size],
        start=start,
    )


def metrics(folder: Path) -> list[Row]:
    """Return the rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(rows: Sequence[Row], name: str) -> float:
    """Return the newest value of a metric.

    Raises:
        ValueError: it was never written.
    """
    values = [row[name] for row in rows if name in row]
    if not values:
        raise ValueError(f"no row has {name}")
    return float(values[-1])
