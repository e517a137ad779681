"""Measure accuracy over examples in the context and model size, and loss over compute.

    python -m experiments.ablations.reproduce gpt3_few_shot --seeds=3

Brown et al. 2020, Fig. 1.2 and 3.1. Pretrained models of four sizes; xs, s and m are those of the
reward-model ablations, xxs has 16 features. Tasks: `word` (`owl: the cave. fox:`, which property is
meant only the examples tell) and `review` (a label for a reply); as many examples as 128 tokens
hold. No document of the corpus has a mapping of its own, so that a model may answer without
examples from what it knows: K = 0 is not chance here, and the claim is about the rise. Loss against
compute is the lower envelope of all validations of all sizes, in 6 N + attention floating point
operations per token; through so few sizes a power law is a weak claim. Estimated for three seeds on
two quiet cores, beyond the base of sizes xs, s and m: 6 minutes.
"""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations.fits import fit_floored_power_law, fit_power_law, spearman, t_interval
from experiments.ablations.framework import (
    Ablation,
    Context,
    Criterion,
    Finding,
    GridRun,
    Row,
    Table,
    draw_seeds,
    interval_finding,
    mean_of,
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import SIZES, base, base_runs, pick, resize
from experiments.menagerie import evaluate, pretrain
from rlhf_jax.evaluation.checkpoints import load_language_model, load_tokenizer_of
from rlhf_jax.menagerie.measurements import few_shot_hits
from rlhf_jax.menagerie.questions import few_shot as few_shot_questions
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models.config import flops_per_token, from_dict, num_params

MODELS = ("xxs", *SIZES)
SHOTS = {"word": (0, 1, 2, 4, 8, 16), "review": (0, 1, 2, 4)}
COLOURS = dict(zip(MODELS, ("#c7b8e0", "#9f87c9", "#6a4fa3", "#35216b"), strict=True))


def make_runs(size: str, seed: int) -> dict[str, GridRun]:
    """Return a pretraining of every size."""
    config = pretrain.get_config(size)
    config.seed = seed
    resize(config, width=pick(size, tiny=8, default=16, large=64), num_layers=1, num_heads=2)
    base_of = {run.folder: run for run in base_runs(size, seed, *SIZES, stages=("pretrain",))}
    runs = {"xxs": GridRun(f"gpt3_few_shot/seed{seed}/xxs", config)}
    return runs | {name: base_of[base(seed, "pretrain", name)] for name in SIZES}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Pretrain four models a seed."""
    notes = "K = 0 is not chance: the model knows the world."
    ablation = Ablation("Brown et al. 2020, Fig. 1.2 and 3.1", seeds, CRITERIA, figure, notes)
    questions = pick(size, tiny=8, default=200, large=1000)
    for seed in seeds:
        for model, run in make_runs(size, seed).items():
            ablation.add_runs(run)
            parameters = num_params(from_dict(run.config.model.to_dict()))
            point: Row = {"seed": seed, "model": model, "parameters": parameters}
            name, needs, folder = f"seed{seed}-{model}", (run.folder,), run.folder
            arguments = {"folder": folder, "size": size, "num_questions": questions}
            shots: Row = {**point, "what": "shots"}
            ablation.add_measurement(f"{name}-shots", shots, needs, few_shot, **arguments)
            loss: Row = {**point, "what": "loss"}
            ablation.add_measurement(f"{name}-loss", loss, needs, loss_curve, folder=folder)
    return ablation


def few_shot(context: Context, *, folder: str, size: str, num_questions: int) -> list[Row]:
    """Return the share of right answers for every task and number of examples that fits."""
    checkpoint, world = context.checkpoint(folder), make_world(size)
    tokenizer, model = load_tokenizer_of(checkpoint), load_language_model(checkpoint)
    room = checkpoint.model.context_length
    batch_size = evaluate.get_config(size).evaluation.batch_size
    rows: list[Row] = []
    for task, shots in SHOTS.items():
        for count in shots:
            questions = few_shot_questions(world, task, count, num_questions)
            texts = [question.text + max(question.choices, key=len) for question in questions]
            longest = max(len(ids) for ids in tokenizer.encode_batch(texts, special=False))
            if 4 + longest > room:
                print(f"   {folder}: {task} with {count} examples exceeds {room} tokens, left out")
                continue
            hits = few_shot_hits(model, tokenizer, questions, batch_size=batch_size)
            chance = float(np.mean([1 / len(question.choices) for question in questions]))
            row: Row = {"task": task, "shots": count, "accuracy": float(hits.mean())}
            rows.append(row | {"chance": chance})
    return rows


def loss_curve(context: Context, *, folder: str) -> list[Row]:
    """Return compute and loss at every validation of a pretraining."""
    rows, loss = metrics(context.folder(folder)), "validation/loss"
    tokens_per_step = next(float(row["tokens"]) for row in rows if "tokens" in row)
    flops_per_step = tokens_per_step * flops_per_token(context.checkpoint(folder).model)
    return [
        {"update": row["step"], "flops": float(row["step"]) * flops_per_step, "loss": row[loss]}
        for row in rows
        if loss in row
    ]


# --- claims ---------------------------------------------------------------------------------------


def _gain(rows: Table) -> float:
    """Return the accuracy with most examples less that with none."""
    points = sorted(zip(rows.column("shots"), rows.column("accuracy"), strict=True))
    return float(points[-1][1] - points[0][1])


def rises_with_examples(table: Table, task: str) -> Finding:
    """Judge the rank correlation of K and the largest model's accuracy, averaged over seeds."""
    rows = table.where(task=task, model=MODELS[-1]).having("accuracy")
    mean = {shots: part.column("accuracy").mean() for shots, part in rows.by("shots")}
    gain = t_interval(rows.per_seed(_gain))
    text = ", ".join(f"K {shots}: {accuracy:.3f}" for shots, accuracy in mean.items())
    rank = spearman(list(mean), list(mean.values()))
    detail = f"{text}; gain {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}]"
    return Finding(rank > 0.9, rank, detail)


def larger_learn_more(table: Table, task: str) -> Finding:
    """Judge the largest model's gain from examples less the smallest one's."""
    models = table.where(task=task).having("accuracy").by("model")
    gains = {model: rows.each_seed(_gain) for model, rows in models}
    largest, smallest = gains.get(MODELS[-1], {}), gains.get(MODELS[0], {})
    gap = t_interval([largest[seed] - smallest[seed] for seed in largest if seed in smallest])
    text = ", ".join(f"{model} {mean_of(each):+.3f}" for model, each in gains.items())
    return interval_finding(gap.mean > 0, gap, text)


def envelope(rows: Table) -> Table:
    """Return the points that no other with as little compute undercuts, over all models."""
    ordered = sorted(rows.having("flops", "loss").rows, key=lambda row: float(row["flops"]))
    lowest, kept = np.inf, []
    for row in ordered:
        if float(row["loss"]) < lowest:
            lowest = float(row["loss"])
            kept.append(row)
    return Table(kept)


def power_law(table: Table) -> Finding:
    """Judge R² of log (loss − floor) over log compute on the envelope, the worst seed's.

    The floor is the entropy of the corpus, fitted as in Henighan et al. 2020. Brown et al. need
    none: theirs is far below.
    """
    envelopes = [envelope(rows) for _, rows in table.where(what="loss").by("seed")]
    points = [(e.column("flops"), e.column("loss")) for e in envelopes if len(e) >= 4]
    if not points:
        raise ValueError("no seed has four points on its envelope")
    floored = [fit_floored_power_law(flops, loss) for flops, loss in points]
    plain = [fit_power_law(flops, loss) for flops, loss in points]
    worst, worst_plain = (min(fit.r_squared for fit in fits) for fits in (floored, plain))
    exponent, floor = np.mean([(fit.exponent, fit.floor) for fit in floored], axis=0)
    exponent_plain = np.mean([fit.exponent for fit in plain])
    text = (
        f"exponent {exponent:.3f}, floor {floor:.2f} nats; without a floor {exponent_plain:.3f}, "
        f"R² {worst_plain:.3f}; theirs -0.048 over nine decades"
    )
    return Finding(worst >= 0.98, worst, text)


def larger_is_lower(table: Table) -> Finding:
    """Judge whether every model's final loss is below the next smaller one's, means over seeds."""
    models = table.where(what="loss").having("loss").by("model")
    final = {
        model: rows.per_seed(lambda run: run.column("loss")[-1]).mean() for model, rows in models
    }
    steps = np.diff(list(final.values()))
    text = ", ".join(f"{model} {loss:.3f}" for model, loss in final.items())
    return Finding(bool(np.all(steps < 0)), float(steps.max()), text)


EXAMPLES, COMPUTE = "Brown et al. 2020, Fig. 1.2", "Brown et al. 2020, Fig. 3.1"
CRITERIA = (
    *(
        Criterion(
            f"{task}: the largest model's accuracy rises with K (Spearman > 0.9)",
            partial(rises_with_examples, task=task),
            EXAMPLES,
        )
        for task in SHOTS
    ),
    *(
        Criterion(
            f"{task}: the largest model gains more from examples than the smallest",
            partial(larger_learn_more, task=task),
            EXAMPLES,
        )
        for task in SHOTS
    ),
    Criterion(
        "every larger model ends with a lower loss (the value is the largest step)",
        larger_is_lower,
        COMPUTE,
    ),
    Criterion(
        "the envelope of loss − floor over compute is a power law (R² ≥ 0.98 in every seed)",
        power_law,
        COMPUTE,
    ),
)


def _draw_task(axes: Axes, rows: Table, task: str) -> None:
    for model, part in rows.by("model"):
        label = f"{model}, {part.values('parameters')[0]:,}"
        draw_seeds(axes, part, "shots", "accuracy", colour=COLOURS[model], label=label)
    if len(rows.having("chance")):
        chance = rows.having("chance").column("chance").mean()
        axes.axhline(chance, color="#777", ls="--", lw=1, label="chance")
    shots = rows.values("shots")
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="examples in the context, K", ylabel="accuracy", title=task, ylim=(0, 1))
    axes.set_xticks(shots, shots)
    axes.minorticks_off()
    axes.legend(fontsize=7)


def figure(table: Table) -> Figure:
    """Draw accuracy over K for each task, a line for every model, and loss over compute."""
    chart, (word, review, compute) = plt.subplots(1, 3, figsize=(12, 3.8))
    for axes, task in ((word, "word"), (review, "review")):
        _draw_task(axes, table.where(task=task), task)
    for model, rows in table.where(what="loss").by("model"):
        draw_seeds(compute, rows, "flops", "loss", colour=COLOURS[model], label=model)
    compute.set(xlabel="compute, floating point operations", ylabel="validation loss, nats/token")
    compute.set(xscale="log", yscale="log", title="loss over compute")
    compute.yaxis.set_major_formatter("{x:.2g}")
    compute.yaxis.set_minor_formatter("{x:.2g}")
    return chart
