"""Name the shapes of public data sets, and the data sets of the Hugging Face hub that have them.

`SHAPE@KIND:NAME` reads a local copy (`hh@jsonl:data/harmless-base`); `hf:` with one of the names
below needs no shape.
"""

from __future__ import annotations

from typing import NamedTuple

from rlhf_jax.data.public import demonstrations, preferences, transcripts
from rlhf_jax.data.public.rows import Shape

SHAPES: dict[str, Shape] = {
    "hh": transcripts.HH,
    "summarize": preferences.SUMMARIZE,
    "webgpt": preferences.WEBGPT,
    "ultrafeedback": preferences.ULTRAFEEDBACK,
    "shp": preferences.SHP,
    "qa_feedback": preferences.QA_FEEDBACK,
    "qa_feedback_closed": preferences.QA_FEEDBACK_CLOSED,
    "ukp": preferences.UKP,
    "ukp_rankings": preferences.UKP_RANKINGS,
    "reward_bench": preferences.REWARD_BENCH,
    "pairs": preferences.PAIRS,
    "oasst": preferences.OASST,
    "tldr": demonstrations.TLDR,
    "reddit": demonstrations.REDDIT,
    "webis": demonstrations.WEBIS,
    "dolly": demonstrations.DOLLY,
    "alpaca": demonstrations.ALPACA,
    "gsm8k": demonstrations.GSM8K,
    "text": demonstrations.TEXT,
    "wikitext": demonstrations.WIKITEXT,
    "imdb": demonstrations.IMDB,
    "imdb_openings": demonstrations.IMDB_OPENINGS,
}


class OnHub(NamedTuple):
    """Hold the shape of a data set of the hub, and what CONFIG means in `hf:NAME:CONFIG`."""

    shape: str
    folders: bool = False  # CONFIG is a folder of the data set, not one of its configurations


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
