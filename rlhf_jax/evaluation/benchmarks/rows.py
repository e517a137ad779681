"""From one number per question to rows of the table: intervals, groups of questions, what was left out; texts side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_jax.evaluation.estimates import Bootstrap, Estimate
from rlhf_jax.evaluation.table import Row

Data = dict[str, Any]
Measured = Mapping[str, Data]  # by checkpoint
Estimator = Callable[[np.ndarray, np.ndarray, Bootstrap], Estimate]


def estimates_of(
    values: Mapping[str, ArrayLike], of: Estimator, bootstrap: Bootstrap, *, chosen: Mapping[str, np.ndarray] | None = None
) -> dict[str, Estimate]:
    """`of` one number per question for every checkpoint, over the `chosen` questions; none where no question is left."""
    found = {}
    for name, numbers in values.items():
        kept = np.asarray(numbers, np.float64)
        kept = kept if chosen is None else kept[chosen[name]]
        if kept.size:
            found[name] = of(kept, np.arange(kept.size), bootstrap)
    return found


def kept_questions(answered: Sequence[Any]) -> list[int]:
    """The places of the questions that were answered."""
    return [n for n, one in enumerate(answered) if one is not None]


def left_out(group: str, measured: Measured, total: int, unit: str, *, after: str = "") -> list[Row]:
    """A row that counts the questions that do not fit a model's context, if there are any."""
    counts = {name: total - len(data["kept"]) for name, data in measured.items()}
    if not any(counts.values()):
        return []
    values = {name: Estimate(float(count), None, None, total) for name, count in counts.items()}
    what = f"longer than the model's context, of {total}; they are in no number above"
    return [Row(group, f"{group}: {unit} left out{after}", unit, "lower", what, values)]


def not_run(group: str, why: str, *, after: str = "") -> Row:
    """A row without values that says why."""
    return Row(group, f"{group}: not run{after}", "", "none", why, {})


def side_by_side(
    benchmark: str, prompts: Sequence[str], reply: Callable[[Data, int], dict[str, Any]]
) -> Callable[[Measured, int], list[dict[str, Any]]]:
    """A function of measurements and a number: the first prompts with every checkpoint's reply, not chosen by hand.

    `reply(data, n)` is the reply to the n-th prompt that the checkpoint kept.
    """

    def samples(measured: Measured, count: int) -> list[dict[str, Any]]:
        place = {name: {kept: n for n, kept in enumerate(data["kept"])} for name, data in measured.items()}
        return [
            {"prompt": prompt, "metadata": {"benchmark": benchmark},
             "responses": {name: reply(data, place[name][n]) for name, data in measured.items() if n in place[name]}}
            for n, prompt in enumerate(prompts[:count])
        ]  # fmt: skip

    return samples
