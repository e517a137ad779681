"""Ouyang et al. 2022, sections 3.4 and E.2: do labelers agree, and does the reward model hold for those it never saw?

    python -m experiments.ablations.reproduce instructgpt_labelers --seeds=3

Nothing is trained beyond the base. Pairs of the supervised policy's answers to validation prompts, each judged by two labelers
of the group that labelled the training data and by two who did not.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from experiments.ablations.framework import (
    Ablation,
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    mark_seed,
)
from experiments.ablations.measures import BOOTSTRAP, Panel, Proxy, Reference, make_proxy, reference
from experiments.ablations.shared import base, base_runs, pick
from rlhf_jax.evaluation import estimates
from rlhf_jax.evaluation.likelihood import continuations
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
    """One measurement a seed."""
    panel = Panel(size, pick(size, tiny=8, default=500, large=2000), 2, 1, 1)
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed)
        needs = (base(seed, "sft"), base(seed, "reward"))
        measurements.append(
            Measurement(
                f"seed{seed}",
                {"seed": seed},
                needs,
                panel.settings,
                partial(agreements, panel=panel, seed=seed),
            )
        )
    return Ablation("Ouyang et al. 2022, 3.4 and E.2", seeds, runs, measurements, CRITERIA, figure)


def agreements(bench: Bench, *, panel: Panel, seed: int) -> list[Row]:
    """Shares of decided pairs of different answers on which two judges agree, with intervals over prompts."""
    ref = reference(bench, panel, seed)
    score_NS = _scores(make_proxy(ref, bench.folder(base(seed, "reward"))), ref)
    chosen = [n for n, (a, b) in enumerate(ref.answers) if a.text != b.text]
    told = {
        f"{group}{k}": one
        for group in GROUPS
        for k, one in enumerate(_two_opinions(ref, chosen, group, seed))
    }
    difference = (score_NS[:, 0] - score_NS[:, 1])[chosen]
    gold = score_preferences(ref.total_NS[:, 0], ref.total_NS[:, 1])[chosen]
    found = {f"agree_{group}": _agreement(told[f"{group}0"], told[f"{group}1"]) for group in GROUPS}
    found["agree_across"] = _agreement(told["train0"], told["heldout0"])
    for name, judge in (("train", told["train0"]), ("heldout", told["heldout0"]), ("gold", gold)):
        found[f"model_{name}"] = accuracy(difference, judge, np.arange(len(chosen)), BOOTSTRAP)
    row: Row = {"pairs": len(chosen)}
    for name, one in found.items():
        row |= {
            name: one.value,
            f"{name}_low": float(one.low or 0.0),
            f"{name}_high": float(one.high or 1.0),
        }
    return [row]


def _two_opinions(ref: Reference, chosen: list[int], group: str, seed: int) -> np.ndarray:
    """(2, pairs) preferences for the first answer, by two different labelers of a group for every pair."""
    world, people = ref.asked.world, labelers(ref.asked.world, group)
    rng = np.random.default_rng((seed, GROUPS.index(group)))  # a noise of their own
    said = []
    for n in chosen:
        texts, ended = zip(*((one.text, one.finished) for one in ref.answers[n]), strict=True)
        two = [people[int(person)] for person in rng.permutation(len(people))[:2]]
        said.append(
            [
                preference(world, person, ref.asked.prompts[n].messages, texts, ended, rng)
                for person in two
            ]
        )
    return np.array(said).T


def _scores(proxy: Proxy, ref: Reference) -> np.ndarray:
    return proxy(continuations(ref.asked.tokenizer, ref.asked.prompts, ref.answers)).reshape(-1, 2)


def _agreement(a: np.ndarray, b: np.ndarray) -> estimates.Estimate:
    decided = (a != 0.5) & (b != 0.5)
    return estimates.share((a == b)[decided], np.flatnonzero(decided), BOOTSTRAP)


def labelers_agree(table: Table) -> Finding:
    """Training labelers with each other."""
    found = t_interval(table.column("agree_train"))
    return Finding(0.70 <= found.mean <= 0.74, *found, "theirs 0.726 ± 0.015; Stiennon et al. 0.72")


def generalises(table: Table) -> Finding:
    """The reward model's accuracy with the labelers of its data, minus that with others."""
    found = t_interval(table.column("model_train") - table.column("model_heldout"))
    return Finding(abs(found.mean) <= 0.04, *found, "theirs 0.724 - 0.696 = 0.028")


CRITERIA = (
    Criterion(
        "E12.agreement",
        "two training labelers agree on 72 ± 2 % of the pairs that both decide",
        labelers_agree,
    ),
    Criterion(
        "E12.heldout",
        "accuracy against held-out labelers is within 4 points of that against training labelers",
        generalises,
    ),
)


def figure(table: Table) -> Figure:
    """A dot for every seed, with its interval over prompts."""
    made, one = plt.subplots(figsize=(8.6, 3.4))
    told = table.having(*COLUMNS)
    offsets = np.linspace(-0.2, 0.2, len(told.values("seed")) + 2)[1:-1]
    for (seed, rows), offset in zip(told.by("seed"), offsets, strict=True):
        for place, name in enumerate(COLUMNS):
            value, low, high = (
                float(rows.column(f"{name}{end}")[0]) for end in ("", "_low", "_high")
            )
            error = [[max(value - low, 0)], [max(high - value, 0)]]
            mark_seed(
                one.errorbar(
                    place + offset, value, yerr=error, fmt="o", ms=4, lw=1, color="#2a3f8f"
                ).lines[0],
                seed,
            )
    one.axhline(0.726, color="#bbb", lw=0.8, zorder=0)
    one.set_xticks(range(len(COLUMNS)), list(COLUMNS.values()), fontsize=8)
    one.set_ylabel("agreement")
    one.set_title("Labelers and the reward model (line: InstructGPT's labelers)", fontsize=11)
    one.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
