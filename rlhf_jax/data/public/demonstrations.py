"""Public text, plain and labelled.

    text           allenai/c4, TinyStories and most others     one document a row, in the column `text`
    wikitext       Salesforce/wikitext:wikitext-103-raw-v1     one line a row; articles are put together first
    imdb           stanfordnlp/imdb                            reviews labelled neg or pos          Maas et al. 2011
    imdb_openings  the same                                    their first `words` as prompts to be continued kindly

Ziegler et al. 2019 trained sentiment on BookCorpus, which is no longer offered; openings of reviews are what is used since.

Left out on purpose: cleaning, and removal of near-duplicates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rlhf_jax.data.public.rows import (
    Located,
    Row,
    Shape,
    answer,
    ask,
    choice,
    demonstrations,
    text,
    without_breaks,
)
from rlhf_jax.data.public.transcripts import answered, document
from rlhf_jax.data.records import Demonstration, Document, Drop, LabelledText, Prompt

_TITLE = re.compile(r" = [^=](.*[^=])? = \n?")
_SENTIMENTS = ("neg", "pos")


def gather_articles(rows: Iterable[Located]) -> Iterator[Located]:
    """Joins the lines of WikiText from one title to the next; the place is that of the title."""
    place, lines = "", list[str]()
    for where, row in rows:
        line = row.get("text") if isinstance(row, dict) else None
        if not isinstance(line, str):
            raise ValueError(f"{where}: text: missing or no string, expected a line of WikiText")
        if _TITLE.fullmatch(line):
            if "".join(lines).strip():
                yield place, {"text": "".join(lines)}
            lines = []
        place = place if lines else where
        lines.append(line)
    if lines:
        yield place, {"text": "".join(lines)}


def review(row: Row) -> LabelledText:
    """A review; the label is a name, or 0 for neg and 1 for pos."""
    label = choice(row, "label", (0, 1, -1, *_SENTIMENTS))
    if label == -1:
        raise Drop("without a label")
    words = without_breaks(text(row, "text"))
    if not words:
        raise Drop("with no text")
    return LabelledText(words, label if label in _SENTIMENTS else _SENTIMENTS[label])


def opening(row: Row, *, words: str) -> Prompt:
    """The first words of a review."""
    if not words.isdigit() or not int(words):
        raise ValueError(f"words: {words!r}, expected how many words a prompt has")
    return Prompt(ask(" ".join(without_breaks(text(row, "text")).split()[: int(words)])))


TEXT = Shape({Document: document})
WIKITEXT = Shape({Document: document}, gather=gather_articles)
IMDB = Shape({LabelledText: review})
IMDB_OPENINGS = Shape({Prompt: opening}, needs=("words",))


# Public demonstrations of one turn, one converter a data set.
#
#     dolly   databricks/databricks-dolly-15k   instruction, context, response    written by employees
#     alpaca  tatsu-lab/alpaca                  instruction, input, output        written by text-davinci-003
#     gsm8k   openai/gsm8k:main                 question, answer                  Cobbe et al. 2021
#
# Left out on purpose: Alpaca's frame ("Below is an instruction ..."), whose work the chat template does. GSM8K's calculator
# marks `<<48/2=24>>` and its last line `#### 72` stay as they are.
def dolly(row: Row) -> Demonstration:
    """An instruction, its context behind a blank line if it has one, and a response."""
    return answer(
        ask(_joined(text(row, "instruction"), text(row, "context"))), text(row, "response")
    )


def alpaca(row: Row) -> Demonstration:
    """An instruction, its input behind a blank line if it has one, and an output."""
    return answer(ask(_joined(text(row, "instruction"), text(row, "input"))), text(row, "output"))


def _joined(instruction: str, material: str) -> str:
    return f"{instruction}\n\n{material}" if material else instruction


DOLLY, ALPACA, GSM8K = map(demonstrations, (dolly, alpaca, answered))
