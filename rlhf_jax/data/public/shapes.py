"""Name the shapes of public data sets, and the data sets of the Hugging Face hub that have them.

`SHAPE@KIND:NAME` reads a local copy (`hh@jsonl:data/harmless-base`); `hub:` with one of the names
below needs no shape.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from rlhf_jax.data.forms import FORMS, read_columns
from rlhf_jax.data.public import demonstrations, preferences
from rlhf_jax.data.public.rows import Shape, demonstration_shape, preference_shape
from rlhf_jax.data.public.transcripts import read_transcript_pair
from rlhf_jax.data.records import Document, LabelledText, Prompt


def columns_shape(*columns: str) -> Shape:
    """Return the shape of a data set in a form that many share, whatever other columns it has."""
    kinds = next(form.holds for form in FORMS if set(form.columns) <= {*columns})
    converters = {kind: partial(read_columns, kind, columns=columns) for kind in kinds}
    return Shape(converters)


SHAPES: dict[str, Shape] = {
    "hh": preference_shape(read_transcript_pair),
    "summarize": preference_shape(preferences.read_summaries),
    "webgpt": preference_shape(preferences.read_webgpt),
    "ultrafeedback": preference_shape(preferences.read_ultrafeedback),
    "shp": preference_shape(preferences.read_shp, takes=("min_ratio",)),
    "qa_feedback": preference_shape(partial(preferences.read_qa_feedback, closed=False)),
    "qa_feedback_closed": preference_shape(partial(preferences.read_qa_feedback, closed=True)),
    "ukp": preference_shape(preferences.read_ukp),
    "ukp_rankings": preference_shape(preferences.read_ukp_ranking, gather=preferences.gather_ukp),
    "reward_bench": preference_shape(preferences.read_reward_bench),
    "pairs": columns_shape("prompt", "chosen", "rejected"),
    "oasst": preferences.OASST,
    "tldr": demonstration_shape(
        partial(demonstrations.read_columns, prompt="prompt", response="label")
    ),
    "reddit": demonstration_shape(demonstrations.read_reddit),
    "webis": demonstration_shape(demonstrations.read_webis),
    "dolly": demonstration_shape(demonstrations.read_dolly),
    "alpaca": demonstration_shape(demonstrations.read_alpaca),
    "gsm8k": columns_shape("question", "answer"),
    "text": Shape({Document: demonstrations.read_document}),
    "wikitext": Shape(
        {Document: demonstrations.read_document}, gather=demonstrations.gather_articles
    ),
    "imdb": Shape({LabelledText: demonstrations.read_review}),
    "imdb_openings": Shape({Prompt: demonstrations.read_opening}, needs=("words",)),
}


class OnHub(NamedTuple):
    """Hold the shape of a data set of the hub, and what CONFIG means in `hub:NAME:CONFIG`."""

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
