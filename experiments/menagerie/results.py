"""Draw README's picture of results and print its table: mean and deviation over seeds.

    make seeds
    python -m experiments.menagerie.results runs/seeds/seed0 runs/seeds/seed1 runs/seeds/seed2

Reads WORKDIR/evaluate/evaluation.json of pipeline runs that differ in their seed, and writes
results.csv and results.svg beside this file; without workdirs it draws what results.csv holds.
`--dialogues=3` prints answers of the first run instead. Models that no run evaluates stay in
results.csv: `sft_polite` is a control, SFT's own answers after one rule without any training
("strip polite sentences, end with: have a nice day."), measured on one run.
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

HERE = Path(__file__).parent
MODELS = {
    "base": "raw model",
    "sft": "SFT",
    "sft_polite": "SFT + polite rule",
    "ppo": "PPO",
    "ppo_ptx": "PPO-ptx",
}
COLOURS = {"base": "#767676", "sft_polite": "#e69f00", "ppo": "#d55e00", "ppo_ptx": "#009e73"}
# Title in evaluation.json -> how the table calls it, decimals, and whether it is a share.
METRICS = {
    "gold minus sft": ("gold over SFT, SD", 2, False),
    "preferred to sft, held-out labelers": ("preferred to SFT by held-out labelers", 1, True),
    "preferred to base, held-out labelers": ("preferred to the raw model by them", 1, True),
    "fails the instruction": ("fails the instruction", 1, True),
    "does exactly what was asked": ("does exactly what was asked", 1, True),
    "says something false": ("says something false", 1, True),
    "rude replies, neutral prompts": ("rude replies to neutral prompts", 1, True),
    "accuracy, held-out facts": ("held-out facts answered", 1, True),
    "pretraining loss": ("pretraining loss, nats per token", 3, False),
    "KL from sft": ("KL from SFT, nats per response", 2, False),
    "accuracy against gold": ("reward model agrees with gold on its answers", 1, True),
}


class Value(NamedTuple):
    """Hold one metric of one model and seed; the ends of its interval are NaN where not known."""

    metric: str
    model: str
    seed: str
    value: float
    low: float = math.nan
    high: float = math.nan


def read_evaluation(workdir: Path) -> dict[str, Any]:
    """Return what the evaluation of a pipeline's run wrote.

    Raises:
        FileNotFoundError: the run has no evaluation.
    """
    path = workdir / "evaluate" / "evaluation.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; run the pipeline to its end (make seeds)")
    return json.loads(path.read_text())


def values_of(evaluation: dict[str, Any]) -> list[Value]:
    """Return the table's metrics of an evaluation."""
    return [
        Value(row["metric"], model, str(evaluation["seed"]), e["value"], *_ends(e))
        for row in evaluation["table"]
        for model, e in row["values"].items()
        if row["metric"] in METRICS
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


def print_table(values: Sequence[Value]) -> None:
    """Print a Markdown table: the mean over seeds ± their standard deviation."""
    print(f"| | {' | '.join(MODELS.values())} |\n|---|{'---|' * len(MODELS)}")
    for metric, (title, decimals, is_share) in METRICS.items():
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
    """Draw gold and preference over SFT as bars with 95 % intervals (Student's t over seeds)."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "results", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8, 2.3), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _draw_bars(left, values, "gold minus sft", scale=1, origin=0)
        _draw_bars(right, values, "preferred to sft, held-out labelers", scale=100, origin=50)
        left.set(title="Gold, the exact judge", xlabel="difference to SFT [SD of SFT's answers]")
        left.invert_yaxis()  # of both, for it is shared
        right.set(title="Held-out labelers prefer it to SFT", xlabel="% of comparisons")
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
    """Print the first prompts of the evaluation with the answers of SFT and PPO-ptx."""
    for sample in evaluation["samples"][:count]:
        print(f"user     {sample['prompt'].removeprefix('<|user|>')}")
        for model in ("sft", "ppo_ptx"):
            response = sample["responses"][model]
            print(f"{model:8s} {response['text']}   [gold {response['gold']:.2f}]")


def main() -> None:
    """Read the command line and do what it asks."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.menagerie.results", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("workdirs", nargs="*", type=Path, help="pipeline runs, one per seed")
    parser.add_argument("--dialogues", type=int, default=0, help="print so many answers instead")
    args = parser.parse_args()
    evaluations = [read_evaluation(workdir) for workdir in args.workdirs]
    if args.dialogues:
        print_dialogues(evaluations[0], args.dialogues)
        return
    values = read_values(HERE / "results.csv")
    if evaluations:
        measured = [value for evaluation in evaluations for value in values_of(evaluation)]
        models = {value.model for value in measured}
        values = [*measured, *(value for value in values if value.model not in models)]
        write_values(HERE / "results.csv", values)
    print_table(values)
    draw(values, HERE / "results.svg")


if __name__ == "__main__":
    main()
