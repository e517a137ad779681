"""Watch a policy with a judge while it trains: one response to each of a few validation prompts.

The judge's main number is called judge/JUDGE, the others JUDGE/NUMBER.

For choosing the checkpoint of supervised fine-tuning and for watching reinforcement learning. The
judge only measures: nothing that it says reaches a loss. The random key is the same every time, so
that the differences between two steps are the policy's.

Left out on purpose: judges that rank but give no number, such as labelers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from rlhf_jax.config import require
from rlhf_jax.data.batches import fitting_prompts
from rlhf_jax.data.records import Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.generate import GenerationSettings, generate
from rlhf_jax.evaluation.judges import Judge, ScoreJudge
from rlhf_jax.evaluation.table import JUDGED
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.models.heads import LanguageModel, Params
from rlhf_jax.training.loop import PolicyMonitor
from rlhf_jax.training.run import MonitorConfig


def make_monitors(
    config: MonitorConfig | None, make_judge: Callable[[str], Judge], data_dir: str, seed: int
) -> tuple[PolicyMonitor, ...]:
    """Return the monitor that a config asks for; none without a config or with `every` = 0.

    Raises:
      ValueError: the judge gives no numbers; the prompts cannot be read.
      FileNotFoundError: there are no prompts.
    """
    if config is None or config.every == 0:
        return ()
    require(config.every > 0, f"monitor.every={config.every}: expected 0 (never) or more")
    judge = make_judge(config.judge)
    if not isinstance(judge, ScoreJudge):
        raise ValueError(
            f"monitor.judge={config.judge} ranks responses and gives no number; name a judge that "
            "does, such as a reward model (reward:PATH) or a function (function:FILE.py:NAME)"
        )
    prompts = load(config.prompts, Prompt, split="validation", data_dir=data_dir)
    headline = _metric(judge, judge.main_number)
    return (PolicyMonitor(config.every, _Measure(config, judge, prompts, seed), headline),)


@dataclass
class _Measure:
    """Sample responses and average what the judge says of them."""

    config: MonitorConfig
    judge: ScoreJudge
    prompts: Sequence[Prompt]
    seed: int
    _fitting: list[Prompt] = field(default_factory=list)

    def __call__(
        self, model: LanguageModel, params: Params, tokenizer: Tokenizer
    ) -> dict[str, float]:
        config = self.config
        if not self._fitting:  # once: those that are left out are reported
            fitting = fitting_prompts(self.prompts, tokenizer, prompt_length=config.prompt_length)
            self._fitting = fitting[: config.num_prompts]
        lengths = (config.prompt_length, config.response_length)
        settings = GenerationSettings(PLAIN, *lengths, config.batch_size)
        key = jax.random.key(self.seed)
        responses = generate(model, params, tokenizer, self._fitting, key, settings)
        samples = [response for group in responses for response in group]
        numbers = {
            **self.judge.measure(self._fitting, responses),
            "length": np.array([response.length for response in samples]),
            "finished": np.array([response.finished for response in samples]),
        }
        return {_metric(self.judge, name): float(value.mean()) for name, value in numbers.items()}


def _metric(judge: ScoreJudge, number: str) -> str:
    """Return the metric of one of a judge's numbers: readers find the main one by its beginning."""
    return f"{JUDGED}{judge.name}" if number == judge.main_number else f"{judge.name}/{number}"
