"""Draw README's picture of results and print its table: mean and deviation over seeds.

    make seeds
    python -m experiments.menagerie.results runs/seeds/seed0 runs/seeds/seed1 runs/seeds/seed2

Reads WORKDIR/evaluate/evaluation.json of pipeline runs that differ in their seed, and writes
results.csv and results.svg beside this file, or into `--output=FOLDER`; without workdirs it draws
what results.csv holds. One run is enough; intervals over seeds need two. `--dialogues=12` prints
answers of the first run instead, and `--reward_accuracy` what reward_accuracy.py measured in the
folder of that name of every run. Two columns are controls, which no training made: best of 16
samples of SFT by the reward model, and SFT's own answers after one rule of manners.
"""

import argparse
import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ablations.fits import t_interval
from rlhf_jax.menagerie.judges import COMPONENTS
from rlhf_jax.menagerie.tasks import KINDS

HERE = Path(__file__).parent
MODELS = {
    "base": "raw model",
    "sft": "SFT",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
    "best_of_16": "SFT, best of 16",
    "constant_suffix": "SFT + best suffix",
}
COLOURS = {
    "base": "#767676",
    "sft": "#0072b2",
    "ppo": "#d55e00",
    "ppo_ptx": "#009e73",
    "best_of_16": "#56b4e9",
    "constant_suffix": "#e69f00",
}
# Title in evaluation.json -> how the table calls it, decimals, and whether it is a share.
Metrics = dict[str, tuple[str, int, bool]]
METRICS: Metrics = {
    "entirely right": ("entirely right", 1, True),
    "does exactly what was asked": ("does exactly what was asked", 1, True),
    "says something false": ("says something false", 1, True),
    "rude": ("rude", 1, True),
    "fails the instruction": ("fails the instruction", 1, True),
    "gold minus sft": ("gold over SFT, SD", 2, False),
    "preferred to sft, held-out labelers": ("preferred to SFT by held-out labelers", 1, True),
    "preferred to base, held-out labelers": ("preferred to the raw model by them", 1, True),
    "rude replies, neutral prompts": ("rude replies to neutral prompts", 1, True),
    "accuracy, held-out facts": ("held-out facts answered", 1, True),
    "pretraining loss": ("pretraining loss, nats per token", 3, False),
    "KL from sft": ("KL from SFT, nats per response", 2, False),
    "accuracy against gold": ("reward model agrees with gold on its answers", 1, True),
}
BY_COMPONENT: Metrics = {
    "gold minus sft": ("gold over SFT, SD", 2, False),
    **{f"gain by {name}": (f"of it {name}", 2, False) for name in COMPONENTS},
}
BY_KIND: Metrics = {
    **{f"entirely right, {kind}": (f"entirely right, {kind}", 1, True) for kind in KINDS},
    "declined properly, harm": ("declined properly, harm", 1, True),
    **{f"fails the instruction, {kind}": (f"fails, {kind}", 1, True) for kind in KINDS},
    **{f"gain, {kind}": (f"gold over SFT, SD, {kind}", 2, False) for kind in KINDS},
}
KEPT = METRICS | BY_COMPONENT | BY_KIND
# What the picture shows, as the titles in evaluation.json.
SHARES = ("entirely right", "does exactly what was asked", "says something false", "rude")


class Value(NamedTuple):
    """Hold one metric of one model and seed; the ends of its interval are NaN where not known."""

    metric: str
    model: str
    seed: str
    value: float
    low: float = math.nan
    high: float = math.nan


def read_evaluation(workdir: Path, stage: str = "evaluate") -> dict[str, Any]:
    """Return what an evaluation of a pipeline's run wrote.

    Raises:
        FileNotFoundError: the run has no such evaluation.
    """
    path = workdir / stage / "evaluation.json"
    if not path.exists():
        remedy = "run the pipeline to its end (make seeds)"
        if stage != "evaluate":
            remedy = f"run --config=experiments/menagerie/{stage}.py --workdir={workdir / stage}"
        raise FileNotFoundError(f"{path} does not exist; {remedy}")
    return json.loads(path.read_text())


def values_of(evaluation: dict[str, Any]) -> list[Value]:
    """Return the table's metrics of an evaluation."""
    return [
        Value(row["metric"], model, str(evaluation["seed"]), e["value"], *_ends(e))
        for row in evaluation["table"]
        for model, e in row["values"].items()
        if row["metric"] in KEPT
    ]


def _ends(estimate: dict[str, Any]) -> tuple[float, float]:
    low, high = estimate["low"], estimate["high"]
    return math.nan if low is None else low, math.nan if high is None else high


def read_values(path: Path) -> list[Value]:
    """Return what `write_values` wrote."""
    with open(path, newline="") as file:
        return [
            Value(row["metric"], row["model"], row["seed"], *map(_number, list(row.values())[3:]))
            for row in csv.DictReader(file)
        ]


def _number(field: str) -> float:
    return float(field) if field else math.nan


def write_values(path: Path, values: Sequence[Value]) -> None:
    """Write one line per value; an end that is not known is empty."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Value._fields)
        for value in values:
            numbers = [f"{x:g}" if math.isfinite(x) else "" for x in value[3:]]
            writer.writerow([*value[:3], *numbers])


def print_tables(values: Sequence[Value]) -> None:
    """Print what is right, the gain by component, and all by kind of prompt."""
    for metrics in (METRICS, BY_COMPONENT, BY_KIND):
        print_table(values, metrics)
        print()


def print_table(values: Sequence[Value], metrics: Metrics) -> None:
    """Print a Markdown table: the mean over seeds ± their standard deviation."""
    print(f"| | {' | '.join(MODELS.values())} |\n|---|{'---|' * len(MODELS)}")
    for metric, (title, decimals, is_share) in metrics.items():
        cells = [_cell(values, metric, model, decimals, is_share) for model in MODELS]
        if set(cells) != {"–"}:
            print(f"| {title} | {' | '.join(cells)} |")


def _cell(values: Sequence[Value], metric: str, model: str, decimals: int, is_share: bool) -> str:
    scale, unit = (100, " %") if is_share else (1, "")
    seeds = [scale * v.value for v in values if (v.metric, v.model) == (metric, model)]
    if not seeds:
        return "–"
    deviation = f" ± {np.std(seeds, ddof=1):.{decimals}f}" if len(seeds) > 1 else ""
    return f"{np.mean(seeds):.{decimals}f}{deviation}{unit}"


def draw(values: Sequence[Value], path: Path) -> None:
    """Draw what is right, false and rude, preference and gold as bars with 95 % intervals.

    Student's t over seeds; of one seed those of its evaluation.
    """
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "results", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, 4.2), layout="constrained")
        panels = figure.subplots(2, 3, sharey=True).ravel()
        for axes, metric in zip(panels, SHARES, strict=False):
            _draw_bars(axes, values, metric, scale=100, origin=0)
            axes.set(title=METRICS[metric][0].capitalize(), xlabel="% of answers")
        labelers, gold = panels[len(SHARES) :]
        _draw_bars(labelers, values, "preferred to sft, held-out labelers", scale=100, origin=50)
        _draw_bars(gold, values, "gold minus sft", scale=1, origin=0)
        labelers.set(title="Labelers prefer it to SFT", xlabel="% of comparisons")
        gold.set(title="Gold over SFT", xlabel="SD of SFT's answers")
        gold.invert_yaxis()  # of all, for it is shared
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_bars(
    axes: Axes, values: Sequence[Value], metric: str, *, scale: float, origin: float
) -> None:
    for row, (model, colour) in enumerate(COLOURS.items()):
        chosen = [v for v in values if (v.metric, v.model) == (metric, model)]
        if not chosen:
            continue
        interval = t_interval([value.value for value in chosen])
        low, high = (
            (chosen[0].low, chosen[0].high) if len(chosen) == 1 else (interval.low, interval.high)
        )
        axes.barh(row, scale * interval.mean - origin, left=origin, color=colour, height=0.7)
        axes.plot([scale * low, scale * high], [row, row], color="black", lw=1.2)
    axes.axvline(origin, color="black", lw=0.8)
    axes.set_yticks(range(len(COLOURS)), [MODELS[model] for model in COLOURS])
    axes.spines[["top", "right"]].set_visible(False)


def print_dialogues(evaluation: dict[str, Any], count: int) -> None:
    """Print a Markdown table of prompts of all kinds with the answers of SFT, PPO and PPO-ptx."""
    models = ("sft", "ppo", "ppo_ptx")
    print(f"| prompt | {' | '.join(MODELS[model] for model in models)} |\n|---|---|---|---|")
    for sample in evaluation["samples"][:count]:
        turns = sample["prompt"].removeprefix("<|user|>")
        prompt = turns.replace("<|assistant|>", " – ").replace("<|user|>", " – ")
        answers = [sample["responses"][model] for model in models]
        cells = [f"{answer['text']} ({answer['gold']:.1f})" for answer in answers]
        print(f"| {' | '.join([prompt, *cells])} |")


def print_reward_accuracy(evaluations: Sequence[dict[str, Any]]) -> None:
    """Print a Markdown table for every judge: agreement with it by kind of prompt, over seeds."""
    rows = [
        (row["judge"], *row["subject"].partition("/")[::2], next(iter(row["values"].values())))
        for evaluation in evaluations
        for row in evaluation["table"]
        if row["key"] == "reward_accuracy" and row["values"]
    ]
    rivals = list(dict.fromkeys(rival for _, rival, _, _ in rows))
    for judge in dict.fromkeys(judge for judge, *_ in rows):
        print(f"| {judge}: pairs | {' | '.join(rivals)} |\n|---|{'---|' * len(rivals)}")
        for kind in ("", *sorted({kind for _, _, kind, _ in rows if kind})):
            accuracies = {
                rival: [v for j, r, k, v in rows if (j, r, k) == (judge, rival, kind)]
                for rival in rivals
            }
            counts = [value["n"] for value in accuracies[rivals[0]]]
            cells = [_mean_and_deviation(values) for values in accuracies.values()]
            print(f"| {kind or 'all'}: {sum(counts):,} | {' | '.join(cells)} |")
        print()
    for row in evaluations[0]["table"]:
        if row["metric"].startswith("two of ") and row["values"]:
            values = [_value_of(evaluation, row["metric"]) for evaluation in evaluations]
            print(f"{row['metric']}: {_mean_and_deviation(values)}")


def _value_of(evaluation: dict[str, Any], metric: str) -> dict[str, Any]:
    (row,) = [row for row in evaluation["table"] if row["metric"] == metric]
    return next(iter(row["values"].values()))


def _mean_and_deviation(values: Sequence[dict[str, Any]]) -> str:
    """Return 100 x the mean over seeds ± their deviation, as in the other tables."""
    shares = [100 * value["value"] for value in values]
    if not shares:
        return "–"
    deviation = f" ± {np.std(shares, ddof=1):.1f}" if len(shares) > 1 else ""
    return f"{np.mean(shares):.1f}{deviation} %"


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.menagerie.results", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("workdirs", nargs="*", type=Path, help="pipeline runs, one per seed")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results.csv and .svg")
    parser.add_argument("--dialogues", type=int, default=0, help="print so many answers instead")
    parser.add_argument(
        "--reward_accuracy", action="store_true", help="print WORKDIR/reward_accuracy instead"
    )
    args = parser.parse_args()
    if args.reward_accuracy:
        evaluations = [read_evaluation(workdir, "reward_accuracy") for workdir in args.workdirs]
        print_reward_accuracy(evaluations)
        return
    evaluations = [read_evaluation(workdir) for workdir in args.workdirs]
    if args.dialogues:
        print_dialogues(evaluations[0], args.dialogues)
        return
    kept = args.output / "results.csv"
    values = read_values(kept) if kept.exists() else []
    if evaluations:
        measured = [value for evaluation in evaluations for value in values_of(evaluation)]
        models = {value.model for value in measured}
        values = [*measured, *(value for value in values if value.model not in models)]
        write_values(kept, values)
    print_tables(values)
    draw(values, args.output / "results.svg")


if __name__ == "__main__":
    main()
