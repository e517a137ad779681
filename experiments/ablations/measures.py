"""What ablations measure: best of n from one pool of samples, and what a policy's answers are worth.

All on held-out test prompts. Gold is in standard deviations of the supervised policy's answers to the same prompts, with their
mean at 0 (Gao et al. 2022, section 2.2).
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.ablations.fits import best_of_n, best_of_n_kl
from experiments.ablations.framework import Bench, GridRun, Measurement, Row
from experiments.ablations.shared import base, pick
from experiments.menagerie import evaluate
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Document, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation import estimates, win_rate
from rlhf_jax.evaluation.checkpoints import (
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
from rlhf_jax.evaluation.measurements import take_first
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.menagerie import judges
from rlhf_jax.menagerie.world import World, make_world
from rlhf_jax.models.heads import ScalarModel
from rlhf_jax.training.checkpoints import all_steps, checkpoint_folder

BOOTSTRAP = Bootstrap(1000, 0)


@dataclass(frozen=True)
class Panel:
    """How much is asked of every policy; part of a measurement's settings."""

    size: str
    num_prompts: int
    num_samples: int  # answers to each prompt
    labelers_per_prompt: int
    corpus_documents: int

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def panel_of(size: str) -> Panel:
    """What each policy is asked."""
    return Panel(
        size,
        pick(size, tiny=8, default=256, large=1024),
        pick(size, tiny=2, default=4, large=4),
        3,
        pick(size, tiny=8, default=400, large=4000),
    )


@dataclass(frozen=True)
class Asked:
    """The panel's world, prompts and documents, and how answers are drawn."""

    world: World
    prompts: Sequence[Prompt]
    documents: Sequence[Document]
    tokenizer: Tokenizer
    sampling: GenerationSettings


def ask(panel: Panel, tokenizer: Tokenizer) -> Asked:
    """The evaluation's world, test prompts and validation documents."""
    config = evaluate.get_config(panel.size)
    data, how = config.data, config.evaluation
    prompts = load(data.prompts, Prompt, split="test", data_dir=data.data_dir)
    documents = load(data.documents, Document, split="validation", data_dir=data.data_dir)
    return Asked(
        make_world(config.world.name.removeprefix("menagerie/")),
        take_first(
            "num_prompts",
            panel.num_prompts,
            fitting_prompts(prompts, tokenizer, prompt_length=data.prompt_length),
        ),
        take_first("corpus_documents", panel.corpus_documents, documents),
        tokenizer,
        GenerationSettings(
            PLAIN, data.prompt_length, how.response_length, how.batch_size, panel.num_samples
        ),
    )


# --- best of n --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Many answers of the supervised policy to each prompt: the different ones, gold of each, and which of them came when."""

    asked: Asked
    different: list[list[Generation]]
    gold: list[np.ndarray]  # of the different answers, in SD of all samples
    which: list[np.ndarray]  # (S,) numbers of different answers


def sft_pool(bench: Bench, panel: Panel, seed: int) -> Pool:
    """`num_samples` answers to each prompt, drawn once per seed and kept."""
    one = find_checkpoint(bench.workdir, str(bench.folder(base(seed, "sft"))))
    asked = ask(panel, load_tokenizer_of(one))

    def draw() -> dict[str, Any]:
        policy = load_language_model(one)
        key = jax.random.key(seed)
        drawn = generate(*policy, asked.tokenizer, asked.prompts, key, asked.sampling)
        different = [list(dict.fromkeys(few)) for few in drawn]
        gold = [
            judges.judge(asked.world, [prompt], [few]).total_NS[0]
            for prompt, few in zip(asked.prompts, different, strict=True)
        ]
        places = [{answer: k for k, answer in enumerate(few)} for few in different]
        which = [
            [place[answer] for answer in few] for place, few in zip(places, drawn, strict=True)
        ]
        return {"different": different, "gold": gold, "which": which}

    depends_on = {**panel.settings, "policy": one.meta.fingerprint}
    kept, _ = bench.cache.get(f"seed{seed}", "pool", depends_on, draw)
    which = [np.array(few) for few in kept["which"]]
    total = [np.array(few) for few in kept["gold"]]
    everything = np.concatenate([gold[index] for gold, index in zip(total, which, strict=True)])
    return Pool(
        asked,
        [
            [Generation(text, tuple(ids), ended) for text, ids, ended in few]
            for few in kept["different"]
        ],
        [(gold - everything.mean()) / everything.std() for gold in total],
        which,
    )


def proxy_scores(pool: Pool, folder: Path) -> list[np.ndarray]:
    """A reward model's score of every different answer, in SD of its scores of all samples, with their mean at 0.

    Raises ValueError if the reward model was trained with another tokenizer than the policy.
    """
    one = find_checkpoint(folder, str(folder))
    if one.meta.tokenizer != pool.asked.tokenizer.fingerprint():
        raise ValueError(f"{folder}: has another tokenizer than the policy that was sampled")
    parts = [
        continuations(pool.asked.tokenizer, [prompt], [few])
        for prompt, few in zip(pool.asked.prompts, pool.different, strict=True)
    ]
    flat = scores(
        *load_scalar_model(one), [item for part in parts for item in part], batch_size=256
    )
    score = np.split(flat, np.cumsum([len(part) for part in parts])[:-1])
    everything = np.concatenate([few[index] for few, index in zip(score, pool.which, strict=True)])
    return [(few - everything.mean()) / everything.std() for few in score]


@dataclass(frozen=True)
class Curves:
    """Best of n by a proxy, for each prompt and n: the proxy's and gold's expected score."""

    n: tuple[int, ...]
    proxy_PN: np.ndarray
    gold_PN: np.ndarray

    @property
    def distance(self) -> np.ndarray:
        """√KL(best of n ‖ supervised policy); an upper bound, since some answers come twice."""
        return np.sqrt(best_of_n_kl(self.n))


def best_of_n_curves(pool: Pool, proxy: Sequence[np.ndarray], n: tuple[int, ...]) -> Curves:
    """Unbiased, from all samples for every n (Nakano et al. 2021, App. I); gold counts from its mean over the prompt."""
    proxy_PN, gold_PN = np.empty((2, len(proxy), len(n)))
    for row, (score, gold, index) in enumerate(zip(proxy, pool.gold, pool.which, strict=True)):
        for column, count in enumerate(n):
            proxy_PN[row, column] = best_of_n(score[index], score[index], count)
            gold_PN[row, column] = best_of_n(score[index], gold[index] - gold[index].mean(), count)
    return Curves(n, proxy_PN, gold_PN)


# --- policies ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """The supervised policy and its answers to the panel."""

    asked: Asked
    policy: LoadedModel
    answers: list[list[Generation]]
    total_NS: np.ndarray  # raw gold


def reference(bench: Bench, panel: Panel, seed: int) -> Reference:
    """The seed's supervised policy; its answers are drawn once and kept."""
    one = find_checkpoint(bench.workdir, str(bench.folder(base(seed, "sft"))))
    asked, policy = ask(panel, load_tokenizer_of(one)), load_language_model(one)

    def draw() -> dict[str, Any]:
        return {"answers": draw_answers(policy, asked, panel, seed)}

    kept, _ = bench.cache.get(
        f"seed{seed}", "reference", {**panel.settings, "policy": one.meta.fingerprint}, draw
    )
    answers = [
        [Generation(text, tuple(ids), ended) for text, ids, ended in few] for few in kept["answers"]
    ]
    return Reference(
        asked, policy, answers, judges.judge(asked.world, asked.prompts, answers).total_NS
    )


def draw_answers(
    policy: LoadedModel, asked: Asked, panel: Panel, seed: int
) -> list[list[Generation]]:
    """A policy's answers to the panel's prompts."""
    key = jax.random.key(1000 + seed)
    settings = asked.sampling._replace(num_samples=panel.num_samples)
    return generate(*policy, asked.tokenizer, asked.prompts, key, settings)


def opinions(
    panel: Panel, ref: Reference, answers: list[list[Generation]], seed: int
) -> dict[str, Estimate]:
    """Gold in SD of the supervised policy's answers, and held-out labelers' preference over these."""
    world, prompts = ref.asked.world, ref.asked.prompts
    total_NS = judges.judge(world, prompts, answers).total_NS
    prompt_M = np.repeat(np.arange(panel.num_prompts), panel.num_samples)
    gold = ((total_NS - ref.total_NS.mean()) / ref.total_NS.std()).ravel()
    settings = JudgeSettings(Path(), panel.labelers_per_prompt, seed)
    judge = judges.LabelerJudge(world, "heldout", settings)
    preference_NSL = judge.preferences(prompts, answers, ref.answers)
    return {
        "gold": estimates.clustered_mean(gold, prompt_M, BOOTSTRAP),
        "preferred": win_rate.win_rate(preference_NSL, BOOTSTRAP),
    }


@dataclass(frozen=True)
class Proxy:
    """A reward model whose scores are in SD of the supervised policy's, with their mean at 0."""

    model: ScalarModel
    params: Any
    mean: float
    spread: float

    def __call__(self, said: Sequence[Continuation]) -> np.ndarray:
        return (scores(self.model, self.params, said, batch_size=256) - self.mean) / self.spread


def make_proxy(ref: Reference, reward_path: Path) -> Proxy:
    """Load a reward model and find its unit on the reference's answers."""
    model, params = load_scalar_model(find_checkpoint(reward_path, str(reward_path)))
    raw = scores(
        model,
        params,
        continuations(ref.asked.tokenizer, ref.asked.prompts, ref.answers),
        batch_size=256,
    )
    return Proxy(model, params, float(raw.mean()), float(raw.std()))


def examine(panel: Panel, ref: Reference, policy_path: Path, proxy: Proxy, *, seed: int) -> Row:
    """Gold, proxy, KL, held-out labelers' preference over the supervised policy, and the loss on the corpus, with intervals."""
    asked = ref.asked
    policy = load_language_model(find_checkpoint(policy_path, str(policy_path)))
    answers = draw_answers(policy, asked, panel, seed)
    said = continuations(asked.tokenizer, asked.prompts, answers)
    prompt_M = np.repeat(np.arange(panel.num_prompts), panel.num_samples)
    kl = sequence_kl(policy, ref.policy, said, batch_size=256)
    nll, tokens = corpus_nll(
        policy.model,
        policy.params,
        asked.tokenizer,
        asked.documents,
        context_length=policy.model.config.context_length,
        batch_size=64,
        mask_documents=False,
    )
    measured = {
        **opinions(panel, ref, answers, seed),
        "proxy": estimates.clustered_mean(proxy(said), prompt_M, BOOTSTRAP),
        "kl": estimates.clustered_mean(kl, prompt_M, BOOTSTRAP),
        "nll": estimates.ratio(nll, tokens, BOOTSTRAP),
    }
    length = float(np.mean([one.length for few in answers for one in few]))
    row: Row = {"distance": float(np.sqrt(max(kl.mean(), 0.0))), "length": length}
    for name, one in measured.items():
        row |= {
            name: one.value,
            f"{name}_low": float(one.low or 0.0),
            f"{name}_high": float(one.high or 0.0),
        }
    return row


def examine_steps(
    bench: Bench,
    *,
    panel: Panel,
    seed: int,
    folder: str,
    reward_folder: str,
    steps: Sequence[int],
    start: bool,
) -> list[Row]:
    """A row for every checkpoint of a policy; with `start` also for the supervised policy itself, as update 0."""
    ref = reference(bench, panel, seed)
    proxy = make_proxy(ref, bench.folder(reward_folder))
    there = all_steps(bench.folder(folder))
    have = [step for step in steps if step in there] or there[
        -1:
    ]  # a diverged run has fewer: at least its last good one
    paths = {step: checkpoint_folder(bench.folder(folder), step) for step in have}
    if start:
        paths = {0: bench.folder(base(seed, "sft")), **paths}
    return [
        {"update": step, **examine(panel, ref, path, proxy, seed=seed)}
        for step, path in paths.items()
    ]


def measure_end(size: str, run: GridRun, seed: int, point: Row, *, start: bool) -> Measurement:
    """The last checkpoint of a policy; of one that diverged the last good one."""
    panel, last = panel_of(size), run.config.ppo.total_episodes // run.config.ppo.batch_size
    ask = partial(
        examine_steps,
        panel=panel,
        seed=seed,
        folder=run.folder,
        reward_folder=base(seed, "reward"),
        steps=[last],
        start=start,
    )
    needs = (run.folder, base(seed, "reward"), base(seed, "sft"))
    settings = {**panel.settings, "last": last, "start": start}
    return Measurement(run.folder.replace("/", "-"), {"seed": seed, **point}, needs, settings, ask)


def metrics(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(rows: Sequence[Row], name: str) -> float:
    """The newest value of a metric; ValueError if it was never written."""
    found = [row[name] for row in rows if name in row]
    if not found:
        raise ValueError(f"no row has {name}")
    return float(found[-1])
