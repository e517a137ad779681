"""Read public text, plain and labelled, and public demonstrations, one converter a data set.

    text           allenai/c4, TinyStories, most others      one document a row, in `text`
    wikitext       Salesforce/wikitext:wikitext-103-raw-v1   one line a row, joined to articles
    imdb           stanfordnlp/imdb (Maas et al. 2011)       reviews labelled neg or pos
    imdb_openings  stanfordnlp/imdb                          their first `words` as prompts
    dolly          databricks/databricks-dolly-15k           instruction, context, response
    alpaca         tatsu-lab/alpaca                          instruction, input, output
    gsm8k          openai/gsm8k:main (Cobbe et al. 2021)     question, answer
    tldr           CarperAI/openai_summarize_tldr            prompt (a finished query), label
    reddit         vwxyzjn/summarize_from_feedback_tldr_3_filtered   subreddit, title, post, summary
    webis          the tldr set of lm-human-preferences      content, summary

Ziegler et al. 2019 trained sentiment on BookCorpus, which is no longer offered; openings of reviews
are used since. GSM8K's marks `<<48/2=24>>` and its last line `#### 72` stay as they are.

Left out on purpose: cleaning, removal of near-duplicates, the repair of broken Unicode by ftfy;
Alpaca's frame ("Below is an instruction ..."), whose work the chat template does; cutting posts at
their last newline to 512 tokens as the papers on summarisation did (posts that do not fit are
dropped and counted).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import partial

from rlhf_jax.data.public.rows import (
    Located,
    Row,
    choice,
    demonstration,
    field,
    replace_breaks,
    text,
    user_turn,
)
from rlhf_jax.data.records import Demonstration, Document, Drop, LabelledText, Prompt, read_string

_TITLE = re.compile(r" = [^=](.*[^=])? = \n?")
_SENTIMENTS = ("neg", "pos")


def read_document(row: Row) -> Document:
    """Read a document from the column `text`."""
    content = read_string("text", field(row, "text"))
    if not content.strip():
        raise Drop("with no text")
    return Document(content)


def read_columns(row: Row, *, prompt: str, response: str, material: str = "") -> Demonstration:
    """Read a demonstration from columns; a `material` that is not empty follows the prompt."""
    query = text(row, prompt)
    if material and (behind := text(row, material)):
        query = f"{query}\n\n{behind}"
    return demonstration(user_turn(query), text(row, response))


read_instruction = partial(read_columns, prompt="instruction")
read_dolly = partial(read_instruction, material="context", response="response")
read_alpaca = partial(read_instruction, material="input", response="output")


# Documents and labelled texts.


def gather_articles(rows: Iterable[Located]) -> Iterator[Located]:
    """Join the lines of WikiText from one title to the next, located where the title is."""
    article_where = ""
    lines: list[str] = []
    for where, row in rows:
        line = row.get("text") if isinstance(row, dict) else None
        if not isinstance(line, str):
            raise ValueError(f"{where}: text: missing or no string, expected a line of WikiText")
        if _TITLE.fullmatch(line):
            if "".join(lines).strip():
                yield Located(article_where, {"text": "".join(lines)})
            lines = []
        if not lines:
            article_where = where
        lines.append(line)
    if lines:
        yield Located(article_where, {"text": "".join(lines)})


def read_review(row: Row) -> LabelledText:
    """Read a review, whose label is a name, or 0 for neg and 1 for pos."""
    label = choice(row, "label", (0, 1, -1, *_SENTIMENTS))
    if label == -1:
        raise Drop("without a label")
    content = replace_breaks(text(row, "text"))
    if not content:
        raise Drop("with no text")
    return LabelledText(content, label if label in _SENTIMENTS else _SENTIMENTS[label])


def read_opening(row: Row, *, words: str) -> Prompt:
    """Read the first `words` words of a review, as a prompt."""
    if not words.isdigit() or not int(words):
        raise ValueError(f"words: {words!r}, expected how many words a prompt has")
    opening = replace_breaks(text(row, "text")).split()[: int(words)]
    return Prompt(user_turn(" ".join(opening)))


# Summaries.
#
#     SUBREDDIT: r/...  TITLE: ...  POST: ...  TL;DR:     Stiennon et al. 2020, App. B.2
#     the post alone                                      Ziegler et al. 2019 (Webis TLDR-17)


def reddit_query(row: Row, prefix: str = "") -> str:
    """Return the query for a summary of the Reddit post in the columns that begin with `prefix`."""
    subreddit, title, post = (text(row, prefix + name) for name in ("subreddit", "title", "post"))
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def read_reddit(row: Row) -> Demonstration:
    """Read a Reddit post and its author's summary."""
    return demonstration(user_turn(reddit_query(row)), text(row, "summary"))


def read_webis(row: Row) -> Demonstration:
    """Read a post and its summary; more than two line breaks in a row become two."""
    post = re.sub(r"\n{3,}", "\n\n", text(row, "content"))
    return demonstration(user_turn(post), text(row, "summary"))
