"""Read Anthropic's helpful and harmless preferences (Bai et al. 2022).

They are pairs of transcripts that differ in the last turn:

    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...",
     "rejected": "\\n\\nHuman: ...\\n\\nAssistant: ..."}

The subsets are folders: helpful-base, helpful-online, helpful-rejection-sampled, harmless-base.
About 1 row in 100 has an empty reply or one speaker twice in a row; such rows are dropped.

Left out on purpose: the red-team transcripts, which hold no pairs.
"""

from __future__ import annotations

from rlhf_jax.data.conversations import Turns, parse_transcript
from rlhf_jax.data.public.rows import Row, comparison, text
from rlhf_jax.data.records import Comparison, Drop


def read_transcript_pair(row: Row) -> Comparison:
    """Read two transcripts whose last turns are the responses; what they share is the prompt."""
    chosen, rejected = parse_transcripts([text(row, name) for name in ("chosen", "rejected")])
    if chosen[:-1] != rejected[:-1]:
        raise Drop("whose sides differ before the last turn")
    return comparison(chosen[:-1], [chosen[-1].content, rejected[-1].content], [1, 2])


def parse_transcripts(sides: list[str]) -> list[Turns]:
    """Return the turns of both sides; a side without a reply is dropped."""
    turns = [parse_transcript(side) for side in sides]
    shorter, longer = sorted(turns, key=len)
    # Where a worker chose silence, a side ends with the user or is the prompt alone.
    if longer[-1].role == "user" or longer[:-1] == shorter:
        raise Drop("with an empty response")
    return turns
