"""Brown et al. 2020, Fig. 1.2 and 3.1 (E20, E21): accuracy over examples in the context and model size, loss over compute.

    python -m experiments.ablations.reproduce gpt3_few_shot --seeds=3

Pretrained models of four sizes; xs, s and m are those of the reward-model ablations, xxs has 16 features. Tasks: `word`
(`owl: the cave. fox:`, which property is meant only the examples tell) and `review` (a label for a reply); as many examples
as 128 tokens hold. No document of the corpus has a mapping of its own, so that a model may answer without examples from what
it knows: K = 0 is not chance here, and the claim is about the rise. Loss against compute is the lower envelope of all
validations of all sizes, in 6 N + attention floating point operations per token; through so few sizes a power law is a weak
claim. Estimated for three seeds on two quiet cores, beyond the base of sizes xs, s and m: 6 minutes.
"""

from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.ablations.fits import fit_floored_power_law, fit_power_law, spearman, t_interval
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
)
from experiments.ablations.measures import metrics
from experiments.ablations.shared import base, base_runs, pick
from experiments.menagerie import evaluate, pretrain
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_language_model, load_tokenizer_of
from rlhf_jax.menagerie.measurements import few_shot_hits
from rlhf_jax.menagerie.questions import few_shot as questions_of
from rlhf_jax.menagerie.world import make_world
from rlhf_jax.models.config import flops_per_token, from_dict, num_params, to_dict

MODELS = ("xxs", "xs", "s", "m")
SHOTS = {"word": (0, 1, 2, 4, 8, 16), "review": (0, 1, 2, 4)}
COLOURS = dict(zip(MODELS, ("#c7b8e0", "#9f87c9", "#6a4fa3", "#35216b"), strict=True))


def models(size: str, seed: int) -> dict[str, GridRun]:
    """A pretraining of every size."""
    found = {run.folder: run for run in base_runs(size, seed, "xs", "s", stages=("pretrain",))}
    runs = {name: found[base(seed, "pretrain", name)] for name in MODELS[1:]}
    config = pretrain.get_config(size)
    config.seed = seed
    width = pick(size, tiny=8, default=16, large=64)
    shape = replace(
        from_dict(config.model.to_dict()),
        width=width,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_width=width // 2,
        ffw_width=width * 11 // 4,
        embedding_std=width**-0.5,
    )
    config.model = to_dict(shape)
    return {"xxs": GridRun(f"gpt3_few_shot/seed{seed}/xxs", config), **runs}


def get_ablation(size: str, seeds: tuple[int, ...]) -> Ablation:
    """Four pretrainings a seed."""
    questions = pick(size, tiny=8, default=200, large=1000)
    runs: list[GridRun] = []
    measurements = []
    for seed in seeds:
        for name, run in models(size, seed).items():
            runs.append(run)
            point: Row = {
                "seed": seed,
                "model": name,
                "parameters": num_params(from_dict(run.config.model.to_dict())),
            }
            ask = partial(answer, folder=run.folder, size=size, questions=questions)
            file, needs, read = (
                f"seed{seed}-{name}",
                (run.folder,),
                partial(curve, folder=run.folder),
            )
            measurements += [
                Measurement(
                    f"{file}-shots",
                    {**point, "what": "shots"},
                    needs,
                    {"questions": questions},
                    ask,
                ),
                Measurement(f"{file}-loss", {**point, "what": "loss"}, needs, {}, read),
            ]
    return Ablation(
        "Brown et al. 2020, Fig. 1.2 and 3.1",
        seeds,
        runs,
        measurements,
        CRITERIA,
        figure,
        "K = 0 is not chance: the model knows the world.",
    )


def answer(bench: Bench, *, folder: str, size: str, questions: int) -> list[Row]:
    """Share of right answers for every task and number of examples that fits the context."""
    one, world = find_checkpoint(bench.workdir, str(bench.folder(folder))), make_world(size)
    tokenizer, candidate = load_tokenizer_of(one), load_language_model(one)
    rows: list[Row] = []
    for task, shots in SHOTS.items():
        for count in shots:
            asked = questions_of(world, task, count, questions)
            texts = [item.text + max(item.choices, key=len) for item in asked]
            if (
                4 + max(len(ids) for ids in tokenizer.encode_batch(texts, special=False))
                > one.model.context_length
            ):
                print(
                    f"   {folder}: {task} with {count} examples is left out, it exceeds {one.model.context_length} tokens"
                )
                continue
            right = few_shot_hits(
                candidate,
                tokenizer,
                asked,
                batch_size=evaluate.get_config(size).evaluation.batch_size,
            )
            chance = float(np.mean([1 / len(item.choices) for item in asked]))
            rows.append(
                {"task": task, "shots": count, "accuracy": float(right.mean()), "chance": chance}
            )
    return rows


def curve(bench: Bench, *, folder: str) -> list[Row]:
    """Compute and validation loss at every validation of a pretraining."""
    model = find_checkpoint(bench.workdir, str(bench.folder(folder))).model
    rows = metrics(bench.folder(folder))
    per_step = next(float(row["tokens"]) for row in rows if "tokens" in row) * flops_per_token(
        model
    )
    return [
        {
            "update": row["step"],
            "flops": float(row["step"]) * per_step,
            "loss": row["validation/loss"],
        }
        for row in rows
        if "validation/loss" in row
    ]


# --- claims -----------------------------------------------------------------------------------------------------------


def _gain(rows: Table) -> float:
    """Accuracy with most examples less that with none."""
    ordered = sorted(zip(rows.column("shots"), rows.column("accuracy"), strict=True))
    return float(ordered[-1][1] - ordered[0][1])


def rises(table: Table, task: str) -> Finding:
    """The rank correlation of K and the largest model's accuracy, averaged over seeds."""
    rows = table.where(task=task, model=MODELS[-1]).having("accuracy")
    mean = [(k, part.column("accuracy").mean()) for k, part in rows.by("shots")]
    gain = t_interval(rows.per_seed(_gain))
    text = ", ".join(f"K {k}: {accuracy:.3f}" for k, accuracy in mean)
    rank = spearman(*np.array(mean).T)
    return Finding(
        rank > 0.9,
        rank,
        None,
        None,
        f"{text}; gain {gain.mean:.3f} [{gain.low:.3f}, {gain.high:.3f}]",
    )


def larger_learn_more(table: Table, task: str) -> Finding:
    """The largest model's gain from examples less the smallest one's."""
    gains = {
        name: {seed: _gain(part) for seed, part in rows.by("seed")}
        for name, rows in table.where(task=task).having("accuracy").by("model")
    }
    largest, smallest = gains.get(MODELS[-1], {}), gains.get(MODELS[0], {})
    found = t_interval([largest[seed] - smallest[seed] for seed in largest if seed in smallest])
    each = {name: float(np.mean(list(one.values()))) for name, one in gains.items()}
    return Finding(
        found.mean > 0, *found, ", ".join(f"{name} {gain:+.3f}" for name, gain in each.items())
    )


def envelope(rows: Table) -> Table:
    """The points that no other with as little compute undercuts, over all models of a seed."""
    ordered = sorted(rows.having("flops", "loss").rows, key=lambda row: float(row["flops"]))
    best, kept = np.inf, []
    for row in ordered:
        if float(row["loss"]) < best:
            best = float(row["loss"])
            kept.append(row)
    return Table(kept)


def power_law(table: Table) -> Finding:
    """R² of log (loss − floor) over log compute on the envelope, the worst seed's.

    The floor is the entropy of the corpus, fitted as in Henighan et al. 2020. Brown et al. need none: theirs is far below.
    """
    envelopes = [
        best
        for best in (envelope(rows) for _, rows in table.where(what="loss").by("seed"))
        if len(best) >= 4
    ]
    if not envelopes:
        raise ValueError("no seed has four points on its envelope")
    fits = [fit_floored_power_law(best.column("flops"), best.column("loss")) for best in envelopes]
    plain = [fit_power_law(best.column("flops"), best.column("loss")) for best in envelopes]
    worst = min(one.r_squared for one in fits)
    exponents, floors = (
        np.mean([getattr(one, name) for one in fits]) for name in ("exponent", "floor")
    )
    without = f"without a floor {np.mean([one.exponent for one in plain]):.3f}, R² {min(one.r_squared for one in plain):.3f}"
    text = f"exponent {exponents:.3f}, floor {floors:.2f} nats; {without}; theirs -0.048 over nine decades"
    return Finding(worst >= 0.98, worst, None, None, text)


def larger_is_lower(table: Table) -> Finding:
    """The final loss of every model, smallest first: whether each is below the one before, means over seeds."""
    final = {
        name: rows.per_seed(lambda one: one.column("loss")[-1]).mean()
        for name, rows in table.where(what="loss").having("loss").by("model")
    }
    steps = np.diff(list(final.values()))
    return Finding(
        bool(np.all(steps < 0)),
        float(steps.max()),
        None,
        None,
        ", ".join(f"{name} {loss:.3f}" for name, loss in final.items()),
    )


CRITERIA = (
    *(
        Criterion(
            f"E20.{task}",
            f"{task}: the largest model's accuracy rises with K (Spearman > 0.9)",
            partial(rises, task=task),
        )
        for task in SHOTS
    ),
    *(
        Criterion(
            f"E20.{task}_size",
            f"{task}: the largest model gains more from examples than the smallest",
            partial(larger_learn_more, task=task),
        )
        for task in SHOTS
    ),
    Criterion(
        "E21.size",
        "every larger model ends with a lower loss (the value is the largest step)",
        larger_is_lower,
    ),
    Criterion(
        "E21.power",
        "the envelope of loss − floor over compute is a power law (R² ≥ 0.98 in every seed)",
        power_law,
    ),
)


def figure(table: Table) -> Figure:
    """Accuracy over K for each task, a line for every model; loss over compute."""
    made, axes = plt.subplots(1, 3, figsize=(12, 3.8))
    for one, task in zip(axes, SHOTS, strict=False):
        rows = table.where(task=task)
        for name, part in rows.by("model"):
            draw_seeds(
                one,
                part,
                "shots",
                "accuracy",
                colour=COLOURS[name],
                label=f"{name}, {part.values('parameters')[0]:,}",
            )
        if len(rows.having("chance")):
            one.axhline(
                rows.having("chance").column("chance").mean(),
                color="#777",
                ls="--",
                lw=1,
                label="chance",
            )
        shots = rows.values("shots")
        one.set_xscale("symlog", linthresh=1)
        one.set(
            xlabel="examples in the context, K",
            ylabel="accuracy",
            title=task,
            ylim=(0, 1),
            xticks=shots,
            xticklabels=shots,
        )
        one.minorticks_off()
        one.legend(frameon=False, fontsize=7)
    for name, part in table.where(what="loss").by("model"):
        draw_seeds(axes[2], part, "flops", "loss", colour=COLOURS[name], label=name)
    axes[2].set(
        xlabel="compute, floating point operations",
        ylabel="validation loss, nats/token",
        xscale="log",
        yscale="log",
        title="loss over compute",
    )
    for formatted in (axes[2].yaxis.set_major_formatter, axes[2].yaxis.set_minor_formatter):
        formatted("{x:.2g}")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    made.tight_layout()
    return made
