"""Say what a run of yours is about; settings follow from the model's size.

Edit the four names below, or write them behind a config's path:

    --config='experiments/yours/pipeline.py:model=hf:models/smollm2 comparisons=jsonl:mine.jsonl'

A file that does not say which part of it is held out is cut: nine tenths to train on, and one to
measure by, which every stage leaves alone. Folders and data of the hub have splits of their own.
`examples` has five rows of every kind.
"""

import contextlib
import io
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rlhf_jax.data.records import Comparison, Demonstration, Prompt, Thumb
from rlhf_jax.data.sources import load
from rlhf_jax.training.pretrained import count_params

MODEL = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"  # or hf:FOLDER, hf:FILE.gguf, a run's folder
DEMONSTRATIONS = ""  # jsonl:FILE; "": no fine-tuning, the model is good enough to start from
COMPARISONS = ""  # jsonl:FILE
PROMPTS = ""  # what PPO answers: lines:FILE.txt, jsonl:FILE

RECORDS: Mapping[str, type] = {
    "demonstrations": Demonstration,
    "comparisons": Comparison,
    "prompts": Prompt,
}
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
    num_records: Mapping[str, int] = field(default_factory=dict)  # to train on, where counted

    def batch_size(self, name: str, most: int) -> int:
        """Return a power of two of which there are as many records, and at most `most`."""
        count = min(most, self.num_records.get(name, most))
        return 1 << (max(count, 1).bit_length() - 1)


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


def choose(text: str, *needed: str) -> tuple[Facts, Settings]:
    """Read facts written as NAME=VALUE, separated by spaces, and say what the size decides.

    Raises:
        ValueError: a name is unknown, a length is no number, a `needed` source is not named, or
            nothing of it is held out.
    """
    facts = parse(text)
    for name in needed:
        if not getattr(facts, name):
            remedy = f"write {name}=jsonl:FILE behind the path, or in experiments/yours/facts.py"
            raise ValueError(f"config: no {name}; {remedy}")
    named = {name: source for name in RECORDS if (source := getattr(facts, name))}
    here = {name: source for name, source in named.items() if not source.startswith("hub:")}
    counts = {name: count_records(name, source) for name, source in here.items()}
    facts = replace(facts, num_records=counts)
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


def count_records(name: str, source: str) -> int:
    """Return how many records there are to train on.

    The run that reads them says what is dropped; here that stays unsaid.

    Raises:
        ValueError: none are held out.
    """
    held_out = "test" if name == "prompts" else "validation"
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            record, count = (
                RECORDS[name],
                len(load(source, RECORDS[name], split="train", data_dir="")),
            )
        except ValueError:
            if name != "comparisons":
                raise
            record, count = Thumb, len(load(source, Thumb, split="train", data_dir=""))
        try:
            load(source, record, split=held_out, data_dir="")
        except ValueError as error:
            remedy = f"add rows, or say which: {name}='...?train=train[:8]&{held_out}=train[8:]'"
            raise ValueError(f"{error}; none of {count} {name} is held out: {remedy}") from None
    return count


def parse(text: str) -> Facts:
    """Read facts; what is not named stays as it is above."""
    known = [item.name for item in fields(Facts) if item.name != "num_records"]
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
    name = source.partition("?")[0].partition(":")[2]
    has_parts = "?" in source or "{split}" in source or Path(name).is_dir()
    return source if not source or has_parts or source.startswith("hub:") else f"{source}?{_TENTHS}"
