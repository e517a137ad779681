"""Measure whether labelers agree, and whether the reward model holds for those it never saw.

    python -m experiments.ablations.reproduce instructgpt_labelers --seeds=3

Ouyang et al. 2022, sections 3.4 and E.2. Nothing is trained beyond the base. Pairs of the
supervised policy's answers to validation prompts, each judged by two labelers of the group that
labelled the training data and by two who did not.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    interval_finding,
)
from experiments.ablations.measures import (
    BOOTSTRAP,
    PolicyEvalSettings,
    Reference,
    interval_columns,
    load_reference,
    make_proxy,
)
from experiments.ablations.shared import base, base_runs, pick
from rlhf_jax.evaluation import estimates
from rlhf_jax.evaluation.reward_model import accuracy
from rlhf_jax.evaluation.win_rate import score_preferences
from rlhf_jax.menagerie.labelers import labelers, preference

GROUPS = ("train", "heldout")
COLUMNS = {
    "agree_train": "training labelers\nwith each other",
    "agree_heldout": "held-out labelers\nwith each other",
    "agree_across": "training with\nheld-out",
    "model_train": "reward model with\ntraining labelers",
    "model_heldout": "reward model with\nheld-out labelers",
    "model_gold": "reward model\nwith gold",
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Measure once a seed."""
    ablation = Ablation("Ouyang et al. 2022, 3.4 and E.2", seeds, CRITERIA, figure)
    num_prompts = pick(size, tiny=8, default=500, large=2000)
    settings = PolicyEvalSettings(size, num_prompts, num_samples=2, corpus_documents=1)
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed))
        needs = (base(seed, "sft"), base(seed, "reward"))
        arguments = {"settings": settings, "seed": seed}
        ablation.add_measurement(f"seed{seed}", {"seed": seed}, needs, agreements, **arguments)
    return ablation


def agreements(context: Context, *, settings: PolicyEvalSettings, seed: int) -> list[Row]:
    """Return shares of decided pairs of different answers on which two judges agree."""
    reference = load_reference(context, settings, seed)
    proxy = make_proxy(reference, context.folder(base(seed, "reward")))
    score_NS = proxy(reference.continuations(reference.answers)).reshape(-1, 2)
    pairs = [n for n, (a, b) in enumerate(reference.answers) if a.text != b.text]
    difference = (score_NS[:, 0] - score_NS[:, 1])[pairs]
    train, train_2 = _two_labelers(reference, pairs, "train", seed)
    heldout, heldout_2 = _two_labelers(reference, pairs, "heldout", seed)
    gold = score_preferences(reference.total_NS[:, 0], reference.total_NS[:, 1])[pairs]
    measured = {
        "agree_train": _agreement(train, train_2),
        "agree_heldout": _agreement(heldout, heldout_2),
        "agree_across": _agreement(train, heldout),
    }
    for name, judge in (("train", train), ("heldout", heldout), ("gold", gold)):
        measured[f"model_{name}"] = accuracy(difference, judge, np.arange(len(pairs)), BOOTSTRAP)
    return [{"pairs": len(pairs), **interval_columns(measured)}]


def _two_labelers(reference: Reference, pairs: list[int], group: str, seed: int) -> np.ndarray:
    """Return (2, pairs) preferences for the first answer, by two labelers drawn for every pair."""
    world, prompts = reference.prompt_set.world, reference.prompt_set.prompts
    people = labelers(world, group)
    rng = np.random.default_rng((seed, GROUPS.index(group)))  # a noise of their own
    preferences = []
    for n in pairs:
        first, second = reference.answers[n]
        texts, ended = (first.text, second.text), (first.finished, second.finished)
        two = [people[int(person)] for person in rng.permutation(len(people))[:2]]
        messages = prompts[n].messages
        row = [preference(world, person, messages, texts, ended, rng) for person in two]
        preferences.append(row)
    return np.array(preferences).T


def _agreement(a: np.ndarray, b: np.ndarray) -> estimates.Estimate:
    decided = (a != 0.5) & (b != 0.5)
    return estimates.share((a == b)[decided], np.flatnonzero(decided), BOOTSTRAP)


def labelers_agree(table: Table) -> Finding:
    """Judge the agreement of training labelers with each other."""
    rate = t_interval(table.column("agree_train"))
    text = "theirs 0.726 ± 0.015; Stiennon et al. 0.72"
    return interval_finding(0.70 <= rate.mean <= 0.74, rate, text)


def generalises(table: Table) -> Finding:
    """Judge the reward model's accuracy with the labelers of its data, less that with others."""
    gap = t_interval(table.column("model_train") - table.column("model_heldout"))
    return interval_finding(abs(gap.mean) <= 0.04, gap, "theirs 0.724 - 0.696 = 0.028")


CRITERIA = (
    Criterion(
        "two training labelers agree on 72 ± 2 % of the pairs that both decide", labelers_agree
    ),
    Criterion(
        "accuracy against held-out labelers is within 4 points of that against training labelers",
        generalises,
    ),
)


def figure(table: Table) -> Figure:
    """Draw a dot for every seed, with its interval over prompts."""
    chart, axes = plt.subplots(figsize=(8.6, 3.4))
    measured = table.having(*COLUMNS)
    offsets = np.linspace(-0.2, 0.2, len(measured.values("seed")) + 2)[1:-1]
    for (seed, rows), offset in zip(measured.by("seed"), offsets, strict=True):
        for place, name in enumerate(COLUMNS):
            ends = (rows.column(f"{name}{end}")[0] for end in ("", "_low", "_high"))
            value, low, high = map(float, ends)
            error = [[max(value - low, 0)], [max(high - value, 0)]]
            look: Options = {"fmt": "o", "ms": 4, "lw": 1, "color": "#2a3f8f"}
            bar = axes.errorbar(place + offset, value, yerr=error, **look)
            bar.lines[0].set_gid(f"seed {seed}")
    axes.axhline(0.726, color="#bbb", lw=0.8, zorder=0)
    axes.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()), fontsize=8)
    axes.set_ylabel("agreement")
    axes.set_title("Labelers and the reward model (line: InstructGPT's labelers)", fontsize=11)
    return chart
