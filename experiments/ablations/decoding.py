"""Compare greedy, temperature, top-k and nucleus decoding in repetition, likelihood and gold.

    python -m experiments.ablations.reproduce decoding --seeds=3

Holtzman et al. 2020, Table 1. The pretrained model continues half a block of the validation corpus
up to the end of the document, and people's own continuation is held against it: perplexity under
the model's full distribution, repeated four-grams, different bigrams. The supervised model answers
test prompts: gold, and how many of a prompt's answers differ. Nucleus sampling in both conventions:
Holtzman's keeps the token that crosses p, the released GPT-2 code drops it. Estimated for three
seeds on two quiet cores, beyond the base: 8 minutes.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations.fits import spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    Options,
    Row,
    Table,
    draw_point,
    draw_seeds,
)
from experiments.ablations.measures import PolicyEvalSettings, load_prompt_set
from experiments.ablations.shared import base, base_runs, pick
from rlhf_jax.data.batches import lm_batches
from rlhf_jax.evaluation.checkpoints import LoadedModel, load_language_model
from rlhf_jax.evaluation.generate import GenerationSettings, complete
from rlhf_jax.evaluation.likelihood import Continuation, continuation_logps
from rlhf_jax.inference.decoding import GREEDY, PLAIN
from rlhf_jax.menagerie import judges

PEOPLE, PURE, NUCLEUS = "people", "temperature 1", "nucleus 0.95"
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0, 1.3)
NUCLEI = (0.5, 0.9, 0.95)
Ids = Sequence[int]

SPECS = {
    "greedy": GREEDY,
    **{f"temperature {t:g}": replace(PLAIN, temperature=t) for t in TEMPERATURES[1:]},
    **{f"top-k {k}": replace(PLAIN, top_k=k) for k in (5, 20)},
    **{f"nucleus {p}": replace(PLAIN, top_p=p) for p in NUCLEI},
    **{f"nucleus {p}, openai": replace(PLAIN, top_p=p, nucleus="openai") for p in NUCLEI},
}
COLOURS = {
    "greedy": "#c22",
    "temperature": "#2a3f8f",
    "top-k": "#d9822b",
    "nucleus": "#2f855a",
    PEOPLE: "#000",
}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Measure fourteen decodings of two base models a seed; no run is added."""
    ablation = Ablation("Holtzman et al. 2020, Table 1", seeds, CRITERIA, figure)
    settings = PolicyEvalSettings(
        size,
        num_prompts=pick(size, tiny=8, default=128, large=512),
        num_samples=pick(size, tiny=2, default=4, large=4),
        corpus_documents=pick(size, tiny=8, default=400, large=4000),
    )
    for seed in seeds:
        ablation.add_runs(*base_runs(size, seed, stages=("pretrain", "sft")))
        for what, stage, measure in (("text", "pretrain", texts), ("answers", "sft", answers)):
            folder = base(seed, stage)
            point: Row = {"seed": seed, "what": what}
            arguments = {"settings": settings, "seed": seed, "folder": folder}
            ablation.add_measurement(f"seed{seed}-{what}", point, (folder,), measure, **arguments)
    return ablation


# --- measurements ---------------------------------------------------------------------------------


def texts(context: Context, *, settings: PolicyEvalSettings, seed: int, folder: str) -> list[Row]:
    """Continue validation blocks by every decoding, and measure people's continuations, too."""
    checkpoint = context.checkpoint(folder)
    prompt_set, policy = load_prompt_set(settings, checkpoint), load_language_model(checkpoint)
    tokenizer, half = prompt_set.tokenizer, checkpoint.model.context_length // 2
    sizes: Options = {"context_length": 2 * half, "batch_size": 1}
    blocks = lm_batches(prompt_set.documents, tokenizer, seed=0, **sizes).arrays
    full = (blocks["segments_BT"] > 0).all(axis=1)
    rows_BT = blocks["tokens_BT"][full][: settings.num_prompts].tolist()
    contexts, stops = [row[:half] for row in rows_BT], tokenizer.stop_ids
    human = [[until_stop(row[half:], stops)] for row in rows_BT]
    rows = [{"decoding": PEOPLE, **_text_statistics(policy, contexts, human, stops)}]
    for name, spec in SPECS.items():
        how = GenerationSettings(spec, half, half, 256, settings.num_samples)
        samples = complete(*policy, tokenizer, contexts, jax.random.key(seed), how)
        ids = [[sample.ids for sample in row] for row in samples]
        rows.append({"decoding": name, **_text_statistics(policy, contexts, ids, stops)})
    return rows


def until_stop(ids: Ids, stops: Ids) -> Ids:
    """Return the tokens up to the first stop token, which is kept."""
    end = next((k for k, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


def _text_statistics(
    policy: LoadedModel, contexts: Sequence[Ids], texts: Sequence[Sequence[Ids]], stops: Ids
) -> Row:
    pairs = zip(contexts, texts, strict=True)
    items = [Continuation(context, ids) for context, row in pairs for ids in row]
    num_tokens = sum(len(item.ids) for item in items)
    nll = -continuation_logps(*policy, items, batch_size=256).sum() / num_tokens
    words = [[token for token in item.ids if token not in stops] for item in items]
    # One sample of each context: as many tokens as people's, not four times.
    first = [[token for token in row[0] if token not in stops] for row in texts]
    return {
        "perplexity": float(np.exp(nll)),
        "repetition": repetition(words),
        "distinct": distinct(first),
        "length": float(np.mean([len(ids) for ids in words])),
    }


def n_grams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    """Return all runs of n tokens, in order."""
    return list(zip(*(ids[k:] for k in range(n)), strict=False))


def repetition(texts: Sequence[Ids]) -> float:
    """Return the share of four-grams that stood in the same text before.

    seq-rep-4 of Welleck et al. 2020.
    """
    grams = [n_grams(ids, 4) for ids in texts]
    repeated = sum(len(row) - len(set(row)) for row in grams)
    return repeated / max(sum(len(row) for row in grams), 1)


def distinct(texts: Sequence[Ids]) -> float:
    """Return the share of different bigrams among those of all texts.

    distinct-2 of Li et al. 2016.
    """
    grams = [gram for ids in texts for gram in n_grams(ids, 2)]
    return len(set(grams)) / max(len(grams), 1)


def answers(context: Context, *, settings: PolicyEvalSettings, seed: int, folder: str) -> list[Row]:
    """Measure gold of answers by every decoding, and how many of a prompt's are different.

    Gold is in SD of answers at temperature 1.
    """
    checkpoint = context.checkpoint(folder)
    prompt_set, policy = load_prompt_set(settings, checkpoint), load_language_model(checkpoint)
    gold, different = {}, {}
    for name, spec in SPECS.items():
        samples = prompt_set.sample(policy, jax.random.key(seed), settings.num_samples, spec)
        counts = [len(set(row)) for row in samples]
        different[name] = float(np.mean(counts)) / settings.num_samples
        gold[name] = judges.judge(prompt_set.world, prompt_set.prompts, samples).total_NS
    mean, spread = gold[PURE].mean(), gold[PURE].std()
    return [
        {
            "decoding": name,
            "temperature": spec.temperature,
            "different": different[name],
            "gold": float((gold[name].mean() - mean) / spread),
        }
        for name, spec in SPECS.items()
    ]


# --- claims ---------------------------------------------------------------------------------------


def _mean(table: Table, name: str, column: str) -> float:
    rows = table.where(decoding=name).having(column)
    if not len(rows):
        raise ValueError(f"nothing was measured of {name}")
    return float(rows.column(column).mean())


def greedy_repeats(table: Table) -> Finding:
    """Judge the repeated four-grams of greedy decoding over those of nucleus sampling."""
    greedy, nucleus, people = (
        _mean(table, name, "repetition") for name in ("greedy", NUCLEUS, PEOPLE)
    )
    ratio = greedy / max(nucleus, 1e-9)
    text = f"greedy {greedy:.3f}, {NUCLEUS} {nucleus:.3f}, people {people:.3f}"
    return Finding(ratio > 2, ratio, text)


def nucleus_is_human(table: Table) -> Finding:
    """Judge the perplexity of nucleus sampling less people's, against every other decoding's."""
    people = _mean(table, PEOPLE, "perplexity")
    gaps = {name: _mean(table, name, "perplexity") - people for name in SPECS}
    closest = sorted(gaps, key=lambda name: abs(gaps[name]))
    text = ", ".join(f"{name} {gaps[name]:+.2f}" for name in closest[:4])
    detail = f"people {people:.2f}; closest: {text}"
    return Finding(closest[0] == NUCLEUS, gaps[NUCLEUS], detail)


def cold_is_best(table: Table) -> Finding:
    """Judge the temperature with the highest mean gold."""
    gold = {}
    for t in TEMPERATURES:
        rows = table.where(what="answers", temperature=t, decoding=_name(t)).having("gold")
        gold[t] = t_interval(rows.column("gold")).mean
    best = max(gold, key=lambda t: gold[t])
    return Finding(best < 1, best, ", ".join(f"{t:g}: {mean:+.3f}" for t, mean in gold.items()))


def heat_is_diverse(table: Table) -> Finding:
    """Judge the rank correlation of the temperature with the share of different bigrams."""
    rank = spearman(TEMPERATURES, [_mean(table, _name(t), "distinct") for t in TEMPERATURES])
    names = (PEOPLE, PURE, "greedy")
    text = ", ".join(f"{name} {_mean(table, name, 'distinct'):.3f}" for name in names)
    return Finding(rank > 0.9, rank, text)


def _name(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


CRITERIA = (
    Criterion(
        f"greedy decoding repeats more than twice as many four-grams as {NUCLEUS}", greedy_repeats
    ),
    Criterion(
        f"of all decodings {NUCLEUS} is closest to the perplexity of people's continuations",
        nucleus_is_human,
    ),
    Criterion(
        "SFT's gold is highest at a temperature below 1 (the value is the best one)", cold_is_best
    ),
    Criterion(
        "the share of different bigrams rises with the temperature (Spearman > 0.9)",
        heat_is_diverse,
    ),
)


# --- figure ---------------------------------------------------------------------------------------


def _draw_decodings(axes: Axes, table: Table, x: str, y: str) -> None:
    for name in (PEOPLE, *SPECS):
        points, colour = table.where(decoding=name).having(x, y), COLOURS[name.split(" ")[0]]
        marker = "*" if name == PEOPLE else "^" if name.endswith("openai") else "o"
        look: Options = {"marker": marker, "ms": 5, "alpha": 0.35, "color": colour}
        for row in points.rows:
            draw_point(axes, float(row[x]), float(row[y]), row["seed"], **look)
        if len(points):
            middle = (points.column(x).mean(), points.column(y).mean())
            style: Options = {"textcoords": "offset points", "fontsize": 6, "color": colour}
            axes.annotate(name, middle, (4, 3), **style)


def figure(table: Table) -> Figure:
    """Draw repetition against perplexity and bigrams, and gold against how many answers differ."""
    chart, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2))
    text, of_sft = table.where(what="text"), table.where(what="answers")
    _draw_decodings(left, text, "perplexity", "repetition")
    _draw_decodings(middle, text, "distinct", "repetition")
    _draw_decodings(right, of_sft, "different", "gold")
    names = {_name(t) for t in TEMPERATURES}
    hot = Table([row for row in of_sft.rows if row.get("decoding") in names])
    look: Options = {"colour": COLOURS["temperature"], "label": "temperature", "mean": False}
    draw_seeds(right, hot, "different", "gold", **look)
    left.set(xlabel="perplexity of the continuation", title="pretrained model")
    middle.set(xlabel="different bigrams", title="pretrained model")
    for axes in (left, middle):
        axes.set_ylabel("repeated four-grams")
    right.set(xlabel="share of different answers to a prompt", title="supervised model")
    right.set_ylabel("gold, SD of temperature 1")
    return chart
