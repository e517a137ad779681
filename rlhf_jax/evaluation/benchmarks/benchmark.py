"""Define what every benchmark has: questions, a measurement of a checkpoint, rows of the table."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, clustered_mean
from rlhf_jax.evaluation.table import Better, Data, Estimator, Key, Measured, Row, estimates_of

Kind = Literal["language_model", "scalar_model"]


class Benchmark(ABC):
    """Measure checkpoints of one kind on one set of questions.

    Subclasses are frozen dataclasses whose fields are the questions and the settings. A field that
    changes only what is made of a measurement, and not the measurement, has `repr=False`.
    """

    group: ClassVar[str]
    kind: ClassVar[Kind] = "language_model"

    @property
    @abstractmethod
    def name(self) -> str:
        """Return what the files of kept measurements and messages call this benchmark."""

    @property
    def min_context(self) -> int:
        """Return the number of tokens that a model's context must hold."""
        return 2

    @property
    def depends_on(self) -> str:
        """Return all that a measurement depends on besides the checkpoint, as text."""
        return repr(self)

    @abstractmethod
    def measure(self, model: Any, tokenizer: Tokenizer, *, batch_size: int) -> Data:
        """Return plain data about one checkpoint; `model` is a module of `kind` and parameters."""

    @abstractmethod
    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return rows of the table, made of the data of all checkpoints."""

    @property
    def shown_prompts(self) -> Sequence[str]:
        """Return the prompts whose replies can be read side by side, if any text is generated."""
        return ()

    def reply(self, data: Data, number: int) -> dict[str, Any]:
        """Return what evaluation.json says of the reply to the prompt with this place in `kept`."""
        raise NotImplementedError

    def samples(self, measurements: Measured, count: int) -> list[dict[str, Any]]:
        """Return the first prompts, each with the replies of the checkpoints that kept it."""
        return [
            {
                "prompt": prompt,
                "metadata": {"benchmark": self.shown_as},
                "responses": {
                    name: self.reply(data, data["kept"].index(number))
                    for name, data in measurements.items()
                    if number in data["kept"]
                },
            }
            for number, prompt in enumerate(self.shown_prompts[:count])
        ]

    @property
    def shown_as(self) -> str:
        """Return the title of this benchmark's samples."""
        return self.group

    def export(self, measurements: Measured, workdir: Path) -> None:  # noqa: B027
        """Write files for programs outside of this package; most benchmarks have none."""


@dataclass(frozen=True)
class Metric:
    """Describe one row of the table, and how its interval is estimated."""

    title: str
    better: Better
    description: str
    unit: str = ""
    estimator: Estimator = clustered_mean
    key: Key = ""  # programs find the row by its key and subject
    subject: str = ""

    def row(self, group: str, values: dict[str, Estimate]) -> Row:
        """Return the row with these values by checkpoint."""
        return Row(
            group=group,
            metric=self.title,
            unit=self.unit,
            better=self.better,
            description=self.description,
            values=values,
            key=self.key,
            subject=self.subject,
        )


def score_rows(
    group: str,
    metrics: Mapping[str, Metric],
    scores: Mapping[str, Mapping[str, ArrayLike]],
    bootstrap: Bootstrap,
    *,
    suffix: str = "",
    subset: Mapping[str, np.ndarray] | None = None,
) -> list[Row]:
    """Return a row for each metric, estimated from the scores that have its key.

    `scores` has one number per kept question by checkpoint and key, `subset` by checkpoint which of
    the questions count; `suffix` is added to the titles.
    """
    rows = []
    for key, metric in metrics.items():
        values = {name: by_key[key] for name, by_key in scores.items()}
        estimates = estimates_of(values, metric.estimator, bootstrap, chosen=subset)
        rows.append(replace(metric, title=metric.title + suffix).row(group, estimates))
    return rows


def without_interval(value: float, n: int) -> Estimate:
    """Return a number that is counted or has no known spread."""
    return Estimate(value=float(value), low=None, high=None, n=n)
