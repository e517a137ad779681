"""Say what a run of yours is about; settings follow from the model's size.

Edit the four names below EXAMPLES, or write them behind a config's path:

    --config='experiments/yours/pipeline.py:model=hf:models/smollm2 comparisons=jsonl:mine.jsonl'

A file that does not say which part of it is held out is cut: nine tenths to train on, and one to
measure by, which every stage leaves alone.
"""

import shlex
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rlhf_jax.training.pretrained import count_params

EXAMPLES = Path(__file__).with_name("examples")
MODEL = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"  # or hf:FOLDER, hf:FILE.gguf, a run's folder
DEMONSTRATIONS = ""  # "": no fine-tuning, the model is good enough to start from
COMPARISONS = f"jsonl:{EXAMPLES}/comparisons.jsonl"
PROMPTS = f"lines:{EXAMPLES}/prompts.txt"  # what PPO answers

_TENTHS = "by=prompt&train=train[:90%]&validation=train[90%:]&test=train[90%:]"


@dataclass(frozen=True)
class Facts:
    """Hold the four facts, and two lengths in tokens: what is longer is left out and counted."""

    model: str = MODEL
    demonstrations: str = DEMONSTRATIONS
    comparisons: str = COMPARISONS
    prompts: str = PROMPTS
    prompt_length: int = 256
    response_length: int = 128


@dataclass(frozen=True)
class Settings:
    """Hold what the model's size decides, and where the numbers come from."""

    below: float  # parameters
    rank: int  # of the adapters; 0 trains all parameters
    sft: float  # learning rates
    reward: float
    preference: float
    policy: float
    value: float
    source: str


SETTINGS = (
    Settings(2e7, 0, 1e-3, 1e-3, 1e-4, 3e-4, 5e-4, "experiments/menagerie, 0.9 M parameters"),
    Settings(1e9, 16, 2e-4, 2e-4, 5e-5, 1e-4, 2e-4, "experiments/public/smollm2_*.py, 135 M"),
    Settings(
        float("inf"), 16, 1e-4, 1e-4, 5e-6, 2e-5, 5e-5,
        "adapters: Dettmers 2023 App. B (1e-4 to 2e-4), preference: Tunstall 2023; not run here",
    ),
)  # fmt: skip


def choose(text: str) -> tuple[Facts, Settings]:
    """Read facts written as NAME=VALUE, separated by spaces, and say what the size decides.

    Raises:
        ValueError: a name is unknown, or a length is no number.
    """
    facts = parse(text)
    count = count_params(facts.model)
    settings = next(settings for settings in SETTINGS if count < settings.below)
    trained = f"adapters of rank {settings.rank}" if settings.rank else "all parameters"
    print(
        f"{facts.model}: {count:,} parameters, so {trained} are trained; learning rates: SFT "
        f"{settings.sft:g}, reward model {settings.reward:g}, DPO and KTO {settings.preference:g}, "
        f"policy {settings.policy:g}, value {settings.value:g} ({settings.source})",
        flush=True,
    )
    return facts, settings


def parse(text: str) -> Facts:
    """Read facts; what is not named stays as it is above."""
    known = {field.name: field.type for field in fields(Facts)}
    given: dict[str, Any] = {}
    for pair in shlex.split(text):
        name, equals, value = pair.partition("=")
        if name not in known or not equals:
            expected = " ".join(f"{name}=..." for name in known)
            raise ValueError(f"config: {pair!r} behind the path, expected some of {expected}")
        is_length = name.endswith("_length")
        if is_length and not (value.isdigit() and 0 < int(value) < 1_000_000):
            raise ValueError(f"config: {pair!r} behind the path, expected a number of tokens")
        given[name] = int(value) if is_length else value
    facts = Facts(**given)
    return replace(
        facts,
        demonstrations=hold_out(facts.demonstrations),
        comparisons=hold_out(facts.comparisons),
        prompts=hold_out(facts.prompts),
    )


def hold_out(source: str) -> str:
    """Return the source with a tenth held out, unless it says itself what its parts are."""
    says_so = not source or "?" in source or "{split}" in source or source.startswith("hub:")
    return source if says_so else f"{source}?{_TENTHS}"
