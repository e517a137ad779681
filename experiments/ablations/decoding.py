"""Holtzman et al. 2020, Table 1 (E30): greedy, temperature, top-k and nucleus: repetition, likelihood, diversity, gold.

    python -m experiments.ablations.reproduce decoding --seeds=3

The pretrained model continues half a block of the validation corpus up to the end of the document, and people's own
continuation is held against it: perplexity under the model's full distribution, repeated four-grams, different bigrams. The
supervised model answers test prompts: gold, and how many of a prompt's answers differ. Nucleus sampling in both conventions:
Holtzman's keeps the token that crosses p, the released GPT-2 code drops it. Estimated for three seeds on two quiet cores,
beyond the base: 8 minutes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Bench,
    Criterion,
    Finding,
    GridRun,
    Measurement,
    Row,
    Table,
    draw_seeds,
    mark_seed,
)
from experiments.ablations.measures import Panel, ask
from experiments.ablations.shared import base, base_runs, pick
from rlhf_jax.data.batches import lm_batches
from rlhf_jax.evaluation.checkpoints import (
    LoadedModel,
    find_checkpoint,
    load_language_model,
    load_tokenizer_of,
)
from rlhf_jax.evaluation.generate import GenerationSettings, complete, generate
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.inference.decoding import GREEDY, PLAIN, SamplingSpec
from rlhf_jax.menagerie import judges

PEOPLE, PURE, NUCLEUS = "people", "temperature 1", "nucleus 0.95"
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0, 1.3)
Ids = Sequence[int]


def _spec(**changed: Any) -> SamplingSpec:
    return SamplingSpec(**{**asdict(PLAIN), **changed})


SPECS = {
    "greedy": GREEDY,
    **{f"temperature {t:g}": _spec(temperature=t) for t in TEMPERATURES[1:]},
    **{f"top-k {k}": _spec(top_k=k) for k in (5, 20)},
    **{f"nucleus {p}": _spec(top_p=p) for p in (0.5, 0.9, 0.95)},
    **{f"nucleus {p}, openai": _spec(top_p=p, nucleus="openai") for p in (0.5, 0.9, 0.95)},
}
COLOURS = {
    "greedy": "#c22",
    "temperature": "#2a3f8f",
    "top-k": "#d9822b",
    "nucleus": "#2f855a",
    PEOPLE: "#000",
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """No run beyond the base's; two measurements of fourteen decodings a seed."""
    panel = Panel(
        size,
        pick(size, tiny=8, default=128, large=512),
        pick(size, tiny=2, default=4, large=4),
        1,
        pick(size, tiny=8, default=400, large=4000),
    )
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        runs += base_runs(size, seed, stages=("pretrain", "sft"))
        for what, stage, measure in (("text", "pretrain", texts), ("answers", "sft", answers)):
            folder = base(seed, stage)
            measurements.append(
                Measurement(
                    f"seed{seed}-{what}",
                    {"seed": seed, "what": what},
                    (folder,),
                    panel.settings,
                    partial(measure, folder=folder, panel=panel, seed=seed),
                )
            )
    return Ablation("Holtzman et al. 2020, Table 1", seeds, runs, measurements, CRITERIA, figure)


# --- measurements -----------------------------------------------------------------------------------------------------


def texts(bench: Bench, *, folder: str, panel: Panel, seed: int) -> list[Row]:
    """Continuations of validation blocks by every decoding, and by people."""
    one = find_checkpoint(bench.workdir, str(bench.folder(folder)))
    asked, candidate, half = (
        ask(panel, load_tokenizer_of(one)),
        load_language_model(one),
        one.model.context_length // 2,
    )
    blocks = lm_batches(
        asked.documents, asked.tokenizer, context_length=2 * half, batch_size=1, seed=0
    ).arrays
    whole = [
        row.tolist()
        for row in blocks["tokens_BT"][(blocks["segments_BT"] > 0).all(axis=1)][: panel.num_prompts]
    ]
    contexts, stops = [row[:half] for row in whole], asked.tokenizer.stop_ids
    rows = [_row(candidate, PEOPLE, contexts, [[until(row[half:], stops)] for row in whole], stops)]
    for name, spec in SPECS.items():
        drawn = complete(
            *candidate,
            asked.tokenizer,
            contexts,
            jax.random.key(seed),
            GenerationSettings(spec, half, half, batch_size=256, num_samples=panel.num_samples),
        )
        rows.append(
            _row(
                candidate, name, contexts, [[answer.ids for answer in few] for few in drawn], stops
            )
        )
    return rows


def until(ids: Ids, stops: Ids) -> Ids:
    """Up to the first stop token, which is kept."""
    end = next((k for k, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def _row(
    candidate: LoadedModel,
    name: str,
    contexts: Sequence[Ids],
    said: Sequence[Sequence[Ids]],
    stops: Ids,
) -> Row:
    items = [
        Continuation(context, ids)
        for context, few in zip(contexts, said, strict=True)
        for ids in few
    ]
    nll = -continuation_logps(*candidate, items, batch_size=256).sum() / sum(
        len(item.ids) for item in items
    )
    words = [[token for token in item.ids if token not in stops] for item in items]
    first = [
        [token for token in few[0] if token not in stops] for few in said
    ]  # as many tokens as people's, not four times
    return {
        "decoding": name,
        "perplexity": float(np.exp(nll)),
        "repetition": repetition(words),
        "distinct": distinct(first),
        "length": float(np.mean([len(ids) for ids in words])),
    }


def n_grams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    """All runs of n tokens, in order."""
    return list(zip(*(ids[k:] for k in range(n)), strict=False))


def repetition(texts: Sequence[Ids]) -> float:
    """Share of four-grams that stood in the same text before (Welleck et al. 2020, seq-rep-4)."""
    grams = [n_grams(ids, 4) for ids in texts]
    return sum(len(few) - len(set(few)) for few in grams) / max(sum(len(few) for few in grams), 1)


def distinct(texts: Sequence[Ids]) -> float:
    """Share of different bigrams among those of all texts (Li et al. 2016, distinct-2)."""
    grams = [gram for ids in texts for gram in n_grams(ids, 2)]
    return len(set(grams)) / max(len(grams), 1)


def answers(bench: Bench, *, folder: str, panel: Panel, seed: int) -> list[Row]:
    """Gold of answers by every decoding, in SD of those at temperature 1, and how many of a prompt's are different."""
    one = find_checkpoint(bench.workdir, str(bench.folder(folder)))
    asked, candidate = ask(panel, load_tokenizer_of(one)), load_language_model(one)
    found: dict[str, tuple[np.ndarray, float]] = {}
    for name, spec in SPECS.items():
        settings = asked.sampling._replace(sampling=spec)
        drawn = generate(
            *candidate, asked.tokenizer, asked.prompts, jax.random.key(seed), settings
        )
        different = float(np.mean([len(set(few)) for few in drawn])) / panel.num_samples
        found[name] = (judges.judge(asked.world, asked.prompts, drawn).total_NS, different)
    plain = found[PURE][0]
    return [
        {
            "decoding": name,
            "temperature": SPECS[name].temperature,
            "different": different,
            "gold": float((total_NS.mean() - plain.mean()) / plain.std()),
        }
        for name, (total_NS, different) in found.items()
    ]


# --- claims -----------------------------------------------------------------------------------------------------------


def _mean(table: Table, name: str, column: str) -> float:
    found = table.where(decoding=name).having(column)
    if not len(found):
        raise ValueError(f"nothing was measured of {name}")
    return float(found.column(column).mean())


def greedy_repeats(table: Table) -> Finding:
    """Repeated four-grams of greedy decoding over those of nucleus sampling."""
    greedy, nucleus, people = (
        _mean(table, name, "repetition") for name in ("greedy", NUCLEUS, PEOPLE)
    )
    ratio = greedy / max(nucleus, 1e-9)
    return Finding(
        ratio > 2,
        ratio,
        None,
        None,
        f"greedy {greedy:.3f}, {NUCLEUS} {nucleus:.3f}, people {people:.3f}",
    )


def nucleus_is_human(table: Table) -> Finding:
    """Perplexity of nucleus sampling less people's, against the same of every other decoding."""
    people = _mean(table, PEOPLE, "perplexity")
    away = {name: _mean(table, name, "perplexity") - people for name in SPECS}
    text = ", ".join(
        f"{name} {gap:+.2f}"
        for name, gap in sorted(away.items(), key=lambda item: abs(item[1]))[:4]
    )
    closest = min(away, key=lambda name: abs(away[name]))
    return Finding(
        closest == NUCLEUS, away[NUCLEUS], None, None, f"people {people:.2f}; closest: {text}"
    )


def cold_is_best(table: Table) -> Finding:
    """The temperature with the highest mean gold."""
    gold = {
        t: t_interval(
            table.where(what="answers", temperature=t, decoding=_name(t))
            .having("gold")
            .column("gold")
        )
        for t in TEMPERATURES
    }
    best = max(gold, key=lambda t: gold[t].mean)
    return Finding(
        best < 1, best, None, None, ", ".join(f"{t:g}: {one.mean:+.3f}" for t, one in gold.items())
    )


def heat_is_diverse(table: Table) -> Finding:
    """Rank correlation of the temperature with the share of different bigrams, means over seeds."""
    rank = spearman(TEMPERATURES, [_mean(table, _name(t), "distinct") for t in TEMPERATURES])
    return Finding(
        rank > 0.9,
        rank,
        None,
        None,
        f"people {_mean(table, PEOPLE, 'distinct'):.3f}, {PURE} "
        f"{_mean(table, PURE, 'distinct'):.3f}, greedy {_mean(table, 'greedy', 'distinct'):.3f}",
    )


def _name(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


CRITERIA = (
    Criterion(
        "E30.repetition",
        f"greedy decoding repeats more than twice as many four-grams as {NUCLEUS}",
        greedy_repeats,
    ),
    Criterion(
        "E30.perplexity",
        f"of all decodings {NUCLEUS} is closest to the perplexity of people's continuations",
        nucleus_is_human,
    ),
    Criterion(
        "E30.temperature",
        "SFT's gold is highest at a temperature below 1 (the value is the best one)",
        cold_is_best,
    ),
    Criterion(
        "E30.diversity",
        "the share of different bigrams rises with the temperature (Spearman > 0.9)",
        heat_is_diverse,
    ),
)


# --- figure -----------------------------------------------------------------------------------------------------------


def figure(table: Table) -> Figure:
    """Repetition against perplexity; different bigrams; gold against how many answers differ."""
    made, axes = plt.subplots(1, 3, figsize=(13, 4.2))
    text, said = table.where(what="text"), table.where(what="answers")
    for name in (PEOPLE, *SPECS):
        for one, rows, x, y in (
            (axes[0], text, "perplexity", "repetition"),
            (axes[1], text, "distinct", "repetition"),
            (axes[2], said, "different", "gold"),
        ):
            points = rows.where(decoding=name).having(x, y)
            for row in points.rows:
                mark_seed(
                    one.plot(row[x], row[y], _marker(name), ms=5, alpha=0.35, color=_colour(name))[
                        0
                    ],
                    row["seed"],
                )
            if len(points):
                middle = (points.column(x).mean(), points.column(y).mean())
                one.annotate(
                    name,
                    middle,
                    (4, 3),
                    textcoords="offset points",
                    fontsize=6,
                    color=_colour(name),
                )
    hot = Table(
        [row for row in said.rows if row.get("decoding") in {_name(t) for t in TEMPERATURES}]
    )
    draw_seeds(
        axes[2],
        hot,
        "different",
        "gold",
        colour=COLOURS["temperature"],
        label="temperature",
        mean=False,
    )
    axes[0].set(
        xlabel="perplexity of the continuation",
        ylabel="repeated four-grams",
        title="pretrained model",
    )
    axes[1].set(xlabel="different bigrams", ylabel="repeated four-grams", title="pretrained model")
    axes[2].set(
        xlabel="share of different answers to a prompt",
        ylabel="gold, SD of temperature 1",
        title="supervised model",
    )
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made


def _colour(name: str) -> str:
    return COLOURS[name.split(" ")[0]]


def _marker(name: str) -> str:
    return "*" if name == PEOPLE else "^" if name.endswith("openai") else "o"
