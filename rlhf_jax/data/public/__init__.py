"""Public data sets by name: the shape of their rows, and what they are called on the Hugging Face hub.

`SHAPE@KIND:NAME` reads a local copy (`hh@jsonl:data/harmless-base`); `hf:` with one of the names below needs no shape.
"""

from __future__ import annotations

from typing import NamedTuple

from rlhf_jax.data.public.demonstrations import (
    ALPACA,
    DOLLY,
    GSM8K,
    IMDB,
    IMDB_OPENINGS,
    TEXT,
    WIKITEXT,
)
from rlhf_jax.data.public.preferences import (
    OASST,
    PAIRS,
    QA_FEEDBACK,
    QA_FEEDBACK_CLOSED,
    REDDIT,
    REWARD_BENCH,
    SHP,
    SUMMARIZE,
    TLDR,
    UKP,
    UKP_RANKINGS,
    ULTRAFEEDBACK,
    WEBGPT,
    WEBIS,
)
from rlhf_jax.data.public.rows import Shape
from rlhf_jax.data.public.transcripts import HH

SHAPES: dict[str, Shape] = {
    "hh": HH,
    "summarize": SUMMARIZE,
    "webgpt": WEBGPT,
    "ultrafeedback": ULTRAFEEDBACK,
    "shp": SHP,
    "qa_feedback": QA_FEEDBACK,
    "qa_feedback_closed": QA_FEEDBACK_CLOSED,
    "ukp": UKP,
    "ukp_rankings": UKP_RANKINGS,
    "reward_bench": REWARD_BENCH,
    "pairs": PAIRS,
    "oasst": OASST,
    "tldr": TLDR,
    "reddit": REDDIT,
    "webis": WEBIS,
    "dolly": DOLLY,
    "alpaca": ALPACA,
    "gsm8k": GSM8K,
    "text": TEXT,
    "wikitext": WIKITEXT,
    "imdb": IMDB,
    "imdb_openings": IMDB_OPENINGS,
}


class OnHub(NamedTuple):
    """The shape of a hub data set, and whether `hf:NAME:CONFIG` means a folder of it rather than a configuration."""

    shape: str
    folders: bool = False


ON_HUB: dict[str, OnHub] = {
    "Anthropic/hh-rlhf": OnHub("hh", folders=True),
    "openai/summarize_from_feedback": OnHub("summarize"),
    "CarperAI/openai_summarize_comparisons": OnHub("pairs"),
    "CarperAI/openai_summarize_tldr": OnHub("tldr"),
    "vwxyzjn/summarize_from_feedback_tldr_3_filtered": OnHub("reddit"),
    "openai/webgpt_comparisons": OnHub("webgpt"),
    "openbmb/UltraFeedback": OnHub("ultrafeedback"),
    "stanfordnlp/SHP": OnHub("shp", folders=True),
    "allenai/reward-bench": OnHub("reward_bench"),
    "OpenAssistant/oasst1": OnHub("oasst"),
    "OpenAssistant/oasst2": OnHub("oasst"),
    "databricks/databricks-dolly-15k": OnHub("dolly"),
    "tatsu-lab/alpaca": OnHub("alpaca"),
    "openai/gsm8k": OnHub("gsm8k"),
    "allenai/c4": OnHub("text"),
    "roneneldan/TinyStories": OnHub("text"),
    "Salesforce/wikitext": OnHub("wikitext"),
    "stanfordnlp/imdb": OnHub("imdb"),
}
