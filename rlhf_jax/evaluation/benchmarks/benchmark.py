"""Define what every benchmark has: questions, a measurement of a checkpoint, rows of the table."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.estimates import Bootstrap, Estimate, mean_by_prompt, without_interval
from rlhf_jax.evaluation.table import Better, Data, Row
from rlhf_jax.training.checkpoints import CheckpointKind

Measured = Mapping[str, Data]  # by checkpoint


class Metric(NamedTuple):
    """Describe a number that every checkpoint has; the table's row of it adds title and values."""

    better: Better
    description: str
    unit: str = ""

    def row(self, group: str, title: str, values: dict[str, Estimate]) -> Row:
        """Return the row with these values by checkpoint."""
        return Row(group, title, self.unit, self.better, self.description, values)


class Benchmark(ABC):
    """Measure checkpoints of one kind on one set of questions.

    Subclasses are frozen dataclasses whose fields are the questions and the settings. A field that
    changes only what is made of a measurement, and not the measurement, has `repr=False`.
    """

    group: ClassVar[str]
    kind: ClassVar[CheckpointKind] = CheckpointKind.LANGUAGE_MODEL

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
        """Return plain data about one checkpoint; `model` is a module of `kind` and parameters.

        `kept` has the numbers of the questions that fit its context.
        """

    @abstractmethod
    def rows(self, measurements: Measured, bootstrap: Bootstrap) -> list[Row]:
        """Return rows of the table, made of the data of all checkpoints."""

    @property
    def shown_prompts(self) -> Sequence[str]:
        """Return the prompts whose replies can be read side by side, if any text is generated."""
        return ()

    @property
    def shown_as(self) -> str:
        """Return the title of this benchmark's samples."""
        return self.group

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

    def score_rows(
        self,
        metrics: Mapping[str, Metric],
        scores: Mapping[str, Mapping[str, np.ndarray]],
        bootstrap: Bootstrap,
        title: str = "{}",
        *,
        subset: Mapping[str, np.ndarray] | None = None,
        group: str = "",
    ) -> list[Row]:
        """Return a row for each metric: the mean of the scores that have its key, or their share.

        `scores` has one number per kept question by checkpoint and key, `subset` by checkpoint
        which of the questions count; `title` is filled in with the key.
        """
        rows = []
        for key, metric in metrics.items():
            values = {name: by_key[key] for name, by_key in scores.items()}
            if subset is not None:
                values = {name: value_N[subset[name]] for name, value_N in values.items()}
            means = {
                name: mean_by_prompt(value_N, bootstrap)
                for name, value_N in values.items()
                if value_N.size
            }
            rows.append(metric.row(group or self.group, title.replace("{}", key), means))
        return rows

    def left_out(
        self, measured: Measured, questions: Sequence[Any], unit: str, *, after: str = ""
    ) -> list[Row]:
        """Return a row that counts the questions, if any, that do not fit a model's context."""
        total = len(questions)
        counts = {name: total - len(data["kept"]) for name, data in measured.items()}
        if not any(counts.values()):
            return []
        values = {name: without_interval(count, total) for name, count in counts.items()}
        what = f"longer than the model's context, of {total}; they are in no number above"
        title = f"{self.group}: {unit} left out{after}"
        return [Metric("lower", what, unit).row(self.group, title, values)]

    def export(self, measurements: Measured, workdir: Path) -> None:  # noqa: B027
        """Write files for programs outside of this package; most benchmarks have none."""


def select_kept(measurements: Measured, is_chosen: Sequence[bool]) -> dict[str, np.ndarray]:
    """Return by checkpoint which of the kept questions are chosen, said of all questions."""
    return {
        name: np.array([is_chosen[number] for number in data["kept"]], bool)
        for name, data in measurements.items()
    }


def not_run(group: str, why: str, *, after: str = "") -> Row:
    """Return a row without values that says why."""
    return Metric("none", why).row(group, f"{group}: not run{after}", {})
