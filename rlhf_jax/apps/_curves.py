"""The report's curves: per stage, one small chart per metric, grouped by the metric's prefix.

Workdirs of the same stage share their charts (PPO beside PPO-ptx, or one stage of several runs), so that a
comparison needs no further work. A metric that never changes is written as text: a flat line tells no more.
"""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_jax.apps._html import Html, details, el, table
from rlhf_jax.apps._results import conversation
from rlhf_jax.apps.runs import Workdir, number
from rlhf_jax.apps.svg import Line, format_number, line_chart
from rlhf_jax.apps.text import shorten

TITLES = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "reward": "Reward model",
    "classify": "Classification",
    "ppo": "PPO",
    "policy_gradient": "Policy optimisation without a value network",
    "preference": "Preference optimisation",
}
GROUPS = {
    "objective": "Objective",
    "gold": "Gold reward",
    "loss": "Losses",
    "rm": "Reward model",
    "rewards": "Implicit rewards",
    "policy": "Policy update",
    "val": "Value function and ratio",
    "ptx": "Pretraining mix (ptx)",
    "rollout": "Rollouts",
    "validation": "Validation",
    "eval": "Validation",
    "returns": "Returns",
    "grad_norm": "Gradient norms",
    "": "Training",
    "mismatch": "Rollout against training log-probabilities",
    "perf": "Speed",
}
_FOLDED = ("returns", "grad_norm", "mismatch", "perf")
_FEW = 8  # so many charts need no headings: their names say the group
# What a metric's last part or whole name says about its unit and meaning; the first match counts.
_MEANING = {
    "objective/kl": (
        "nats",
        "KL from the reference, summed over a response: mean log(policy/reference)",
    ),
    "objective/entropy": ("nats", "mean of −log policy, summed over a response"),
    "objective/non_score_reward": (
        "",
        "the KL penalty's part of the reward, summed over a response",
    ),
    "objective/rlhf_reward": ("", "score minus KL penalty: what PPO maximises"),
    "objective/scores": ("", "what the reward model says, before the KL penalty"),
    "objective/kl_coef": ("", "weight of the KL penalty"),
    "policy/approxkl_avg": ("nats", "half the squared log-ratio of new to old policy, per token"),
    "policy/clipfrac_avg": ("share", "share of tokens whose ratio is clipped"),
    "policy/entropy_avg": ("nats", "entropy of the next-token distribution"),
    "val/ratio": ("", "mean ratio of new to old policy; 1 at the first minibatch"),
    "val/clipfrac_avg": ("share", "share of tokens whose value loss is clipped"),
    "val/var_explained": (
        "share",
        "share of the return's variance that the value function explains",
    ),
    "val/num_eos_tokens": ("", "responses that end by themselves"),
    "ptx/loss": ("nats/token", "language-model loss on pretraining text"),
    "rewards/margin": ("", "implicit reward of the preferred response less that of the other"),
    "rewards/reference_point": ("", "mean implicit reward of responses to other prompts"),
    "rollout/tied_groups": (
        "share",
        "prompts whose responses all have one reward: nothing to learn from",
    ),
    "perf/mfu": ("share", "model FLOP/s over what the device could do"),
    "tokens_per_s": ("tokens/s", ""),
    "perf/compile_count": ("", "compilations after the first step; 0 is healthy"),
    "accuracy": ("share", "pairs that the scores order as the labelers did"),
    "accuracy_gold": ("share", "pairs that the scores order as the gold judge does"),
    "accuracy_heldout": ("share", "pairs that the scores order as labelers never trained on do"),
    "truncated": ("share", "responses that were cut off"),
    "logp_mean": (
        "nats",
        "mean difference of a token's log-probability between sampling and training",
    ),
    "logp_max": (
        "nats",
        "largest difference of a token's log-probability between sampling and training",
    ),
    "lr": ("", "learning rate"),
    "learning_rate": ("", ""),
    "grad_norm": ("", "global norm of the gradient before clipping"),
    "nll": ("nats/token", "negative log-likelihood"),
    "perplexity": ("", "exp of the loss per token"),
    "length": ("tokens", ""),
    "entropy": ("nats", ""),
    "kl": ("nats", ""),
    "loss": ("nats", ""),
    "seconds": ("s", ""),
}


def meaning(name: str) -> tuple[str, str]:
    """(unit, sentence) of a metric, ("", "") if nothing is known of it."""
    last = name.rsplit("/", 1)[-1]
    return _MEANING.get(name) or _MEANING.get(last) or ("", "")


def _prefix(name: str) -> str:
    return name.rsplit("/", 1)[0] if "/" in name else ""


def _importance(name: str) -> tuple[bool, int, str]:
    """Losses first, then what `_MEANING` knows in its order, then the rest by name."""
    known = list(_MEANING).index(name) if name in _MEANING else len(_MEANING)
    return (name.rsplit("/", 1)[-1] != "loss", known, name)


def _flat(lines: Sequence[Line]) -> bool:
    """True if no line has two different finite values."""
    return all(len({value for value in line.values if math.isfinite(value)}) < 2 for line in lines)


def _chip(name: str, lines: Sequence[Line], many: bool) -> Html:
    parts = []
    for line in lines:
        numbers = [value for value in line.values if math.isfinite(value)]
        value = format_number(numbers[0]) if numbers else "never finite"
        parts.append(f"{line.name} {value}" if many else value)
    return el("span", f"{name} = {', '.join(parts)}", class_="chip", title=meaning(name)[1] or None)


def _figure(name: str, lines: Sequence[Line], many: bool) -> Html:
    unit, sentence = meaning(name)
    last = next((value for value in reversed(lines[0].values) if math.isfinite(value)), math.nan)
    title = el(
        "span",
        name,
        el("span", f" {unit}", class_="unit") if unit else None,
        class_="name",
        title=sentence or None,
    )
    end = None if many else el("span", format_number(last), class_="last", title="last value")
    chart = line_chart(lines, label=f"{name} over steps")
    return el("figure", el("figcaption", title, end), chart)


def _group(names: Sequence[str], drawn: dict[str, list[Line]], many: bool) -> list[Html]:
    charts = [_figure(name, drawn[name], many) for name in names if not _flat(drawn[name])]
    chips = [_chip(name, drawn[name], many) for name in names if _flat(drawn[name])]
    return [
        *([el("div", charts, class_="charts")] if charts else []),
        *(
            [el("p", el("span", "single value  ", class_="note"), *chips, style="margin-top:12px")]
            if chips
            else []
        ),
    ]


def curves(workdirs: Sequence[Workdir], labels: Sequence[str], slots: Sequence[int]) -> list[Html]:
    """All charts of one stage, by group; speed and the like folded away."""
    drawn: dict[str, list[Line]] = {}
    for workdir, label, slot in zip(workdirs, labels, slots, strict=True):
        for name, series in workdir.metrics.items():
            drawn.setdefault(name, []).append(Line(label, slot, series.steps, series.values))
    many = len(workdirs) > 1
    first = "objective" if any(_prefix(name) == "objective" for name in drawn) else ""

    def rank(prefix: str) -> tuple[bool, bool, int, str]:
        known = list(GROUPS).index(prefix) if prefix in GROUPS else len(GROUPS)
        return (prefix in _FOLDED, prefix != first, known, prefix)

    prefixes = sorted({_prefix(name) for name in drawn}, key=rank)
    groups = {
        prefix: sorted((name for name in drawn if _prefix(name) == prefix), key=_importance)
        for prefix in prefixes
    }
    plain = [name for prefix, names in groups.items() if prefix not in _FOLDED for name in names]
    if sum(not _flat(drawn[name]) for name in plain) <= _FEW:
        return [*_group(plain, drawn, many), *_folded(groups, drawn, many)]
    shown: list[Html] = []
    for prefix, names in groups.items():
        if prefix not in _FOLDED:
            shown += [el("h4", GROUPS.get(prefix, prefix)), *_group(names, drawn, many)]
    return [*shown, *_folded(groups, drawn, many)]


def _folded(groups: dict[str, list[str]], drawn: dict[str, list[Line]], many: bool) -> list[Html]:
    return [
        details(GROUPS[prefix], *_group(groups[prefix], drawn, many))
        for prefix in _FOLDED
        if prefix in groups
    ]


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """A nested config as dotted names."""
    if isinstance(config, dict) and config:
        found: dict[str, str] = {}
        for key, value in config.items():
            found |= flatten(value, f"{prefix}{key}.")
        return found
    shown = format_number(config, digits=6) if isinstance(config, float) else str(config)
    return {prefix.rstrip("."): shown}


def config_table(workdirs: Sequence[Workdir], labels: Sequence[str]) -> Html | None:
    """The configs of a stage's workdirs side by side; rows that differ are marked."""
    flats = [
        flatten(workdir.config.get("config", {})) if workdir.config else {} for workdir in workdirs
    ]
    flats = [{name: value for name, value in flat.items() if name} for flat in flats]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    if not names:
        return None
    rows = []
    for name in names:
        cells = [flat.get(name, "–") for flat in flats]
        rows.append(
            el(
                "tr",
                (el("td", shorten(one, 300)) for one in (name, *cells)),
                class_="differs" if len(set(cells)) > 1 else None,
            )
        )
    heads = ["setting", *(labels if len(workdirs) > 1 else ["value"])]
    header = el("thead", el("tr", (el("th", head) for head in heads)))
    body = el("table", header, el("tbody", rows), class_="config")
    count = sum(len({flat.get(name) for flat in flats}) > 1 for name in names)
    words = f"Configuration ({len(names)} settings" + (
        f", {count} differ)" if len(workdirs) > 1 else ")"
    )
    return details(words, el("div", body, class_="scroll"))


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """First, last and evenly between."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def _cell(value: Any) -> str:
    shown = number(value)
    return format_number(shown) if shown is not None else shorten(str(value), 600)


def training_samples(workdir: Workdir, label: str) -> Html | None:
    """What the model wrote during training: up to four steps, three responses each."""
    rows = [row for row in workdir.samples if number(row.get("step")) is not None]
    if not rows:
        return None
    steps = sorted({int(row["step"]) for row in rows if math.isfinite(row["step"])})
    chosen = [
        row for step in _spread(steps, 4) for row in [r for r in rows if r["step"] == step][:3]
    ]
    facts = [
        key
        for key in dict.fromkeys(key for row in chosen for key in row)
        if key not in ("step", "prompt", "response")
        and any(number(row.get(key)) is not None for row in chosen)
    ]
    facts = facts[:4]
    body = [
        (
            f"{int(row['step']):,}",
            conversation(str(row.get("prompt", ""))),
            el("bdi", shorten(str(row.get("response", "")).strip(), 600), class_="said"),
            *(_cell(row[key]) if key in row else "" for key in facts),
        )
        for row in chosen
    ]
    words = f"Samples during training, {label} ({len(chosen)} of {len(rows):,})"
    return details(words, table(["step", "prompt", "response", *facts], body))


def _line(workdir: Workdir, label: str, slot: int) -> Html:
    meta, last = (
        workdir.meta,
        max((series.steps[-1] for series in workdir.metrics.values()), default=None),
    )
    step, planned = number(meta.get("step")), number(meta.get("num_steps"))
    facts = []
    if step is not None and planned is not None:
        facts.append(
            f"step {step:,.0f} of {planned:,.0f}" + ("" if step >= planned else ", not finished")
        )
    elif last is not None:
        facts.append(f"metrics up to step {last:,}")
    facts.append(str(workdir.path))
    mark = el("span", class_="swatch", style=f"background:var(--c{slot})")
    return el("span", mark, f"{label}: {' · '.join(facts)}", class_="key")


def stage_section(
    stage: str, workdirs: Sequence[Workdir], labels: Sequence[str], slots: Sequence[int]
) -> Html:
    """One stage: where its workdirs stand, curves, configuration and samples."""
    keys = el(
        "p", (_line(*one) for one in zip(workdirs, labels, slots, strict=True)), class_="note"
    )
    drawn = curves(workdirs, labels, slots) or [
        el("p", "No metrics have been written.", class_="missing")
    ]
    samples = [
        training_samples(workdir, label) for workdir, label in zip(workdirs, labels, strict=True)
    ]
    title = el("h2", TITLES.get(stage, stage))
    return el(
        "section",
        title,
        keys,
        *drawn,
        config_table(workdirs, labels),
        *samples,
        id=f"stage-{stage}",
    )
