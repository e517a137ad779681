"""Public rankings of responses by people (or, for UltraFeedback, by GPT-4), one converter a data set.

    summarize      openai/summarize_from_feedback:comparisons   post or article, 2 summaries         Stiennon et al. 2020
    webgpt         openai/webgpt_comparisons                    question, 2 answers, ties            Nakano et al. 2021
    ultrafeedback  openbmb/UltraFeedback                        instruction, 4 completions, ties     Cui et al. 2023
    shp            stanfordnlp/SHP                              Reddit post, 2 comments by votes     Ethayarajh et al. 2022
    qa_feedback    train_feedback.json of FineGrainedRLHF       question, passages, 4 predictions    Wu et al. 2023
    ukp            UKPConvArg1Strict                            debate, 2 arguments                  Habernal & Gurevych 2016
    ukp_rankings   the same pairs as rankings of up to 9 arguments (`tournaments.py`)
    reward_bench   allenai/reward-bench, split filtered         prompt, 2 responses, subset          Lambert et al. 2024
    pairs          prompt, chosen, rejected                     as many data sets of the hub have them

Scores become ranks; equal scores tie. (Anthropic's transcripts: `transcripts.py`; OpenAssistant's trees: `trees.py`.)

Left out on purpose: margins and confidences (the reward loss has no use for them), the annotators' critiques, and the
system prompts of UltraFeedback, for which the chat template has no role.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from rlhf_jax.data.public.rows import (
    Located,
    Row,
    Shape,
    answer,
    as_number,
    ask,
    choice,
    demonstrations,
    field,
    items,
    number,
    preferences,
    rank,
    ranks_of,
    text,
    without_breaks,
)
from rlhf_jax.data.public.transcripts import conversation, reply
from rlhf_jax.data.records import Comparison, Demonstration, Drop, Message, Prompt, read_string


def summarize(row: Row) -> Comparison:
    """Two summaries of a Reddit post (TL;DR) or of a news article (CNN/DM), of which `choice` is the better."""
    if field(row, "info.post") is None:
        query = article_query(text(row, "info.article"))
    else:
        query = reddit_query(
            *(text(row, f"info.{name}") for name in ("subreddit", "title", "post"))
        )
    summaries = items(row, "summaries")
    if len(summaries) != 2:
        raise ValueError(f"summaries: {len(summaries)} of them, expected 2")
    ranks = [2, 2]
    ranks[choice(row, "choice", (0, 1))] = 1
    return rank(ask(query), [text(summary, "text") for summary in summaries], ranks)


def webgpt(row: Row) -> Comparison:
    """Two answers scored in [-1, 1]; equal scores tie."""
    answers = [text(row, f"answer_{k}") for k in (0, 1)]
    scores = [number(row, f"score_{k}") for k in (0, 1)]
    return rank(ask(text(row, "question.full_text")), answers, ranks_of(scores))


def ultrafeedback(row: Row) -> Comparison:
    """Completions by different models, ranked by GPT-4's overall score from 1 to 10."""
    completions = items(row, "completions")
    if len(completions) < 2:
        raise Drop("with fewer than 2 completions")
    if any(field(completion, "overall_score") is None for completion in completions):
        raise Drop("without an overall score")
    scores = [number(completion, "overall_score") for completion in completions]
    return rank(
        ask(text(row, "instruction")), [text(c, "response") for c in completions], ranks_of(scores)
    )


def shp(row: Row, *, min_ratio: str = "1") -> Comparison:
    """Two comments on a post; the later one has more votes. The card advises a ratio of scores of at least 2 (`min_ratio`)."""
    if number(row, "score_ratio") < as_number("min_ratio", min_ratio):
        raise Drop(f"with a score ratio below {min_ratio}")
    ranks = [1, 2] if choice(row, "labels", (0, 1)) == 1 else [2, 1]
    return rank(ask(text(row, "history")), [text(row, f"human_ref_{side}") for side in "AB"], ranks)


def qa_feedback(row: Row) -> Comparison:
    """Four predictions from a question and its passages, which stand in the prompt."""
    passages = ["\n".join(map(str, passage[1:])) for passage in items(row, "passages")]
    return _qa_ranking(row, "\n\n".join([*passages, text(row, "question")]))


def qa_feedback_closed(row: Row) -> Comparison:
    """The same with the question alone as the prompt: a fifth of the tokens, and facts that nobody can check."""
    return _qa_ranking(row, text(row, "question"))


def _qa_ranking(row: Row, query: str) -> Comparison:
    predictions = [text(row, f"prediction {k}") for k in (1, 2, 3, 4)]
    return rank(ask(query), predictions, ranks_from_pairs(items(row, "preference"), num_items=4))


def ranks_from_pairs(preference: list[int], *, num_items: int) -> list[int]:
    """Ranks that agree with an answer for every pair (1,2) (1,3) ... : 1 the first is better, 2 the second, 0 neither.

    Raises:
        Drop: if there are none, as for A > B > C > A or for A > B, A = C, B = C.
    """
    pairs = list(combinations(range(num_items), 2))
    if len(preference) != len(pairs) or any(
        isinstance(p, bool) or p not in (0, 1, 2) for p in preference
    ):
        raise ValueError(f"preference: {preference}, expected {len(pairs)} answers 0, 1 or 2")
    losers = [
        (i, j)[2 - verdict] for (i, j), verdict in zip(pairs, preference, strict=True) if verdict
    ]
    ranks = [1 + losers.count(k) for k in range(num_items)]
    for (i, j), verdict in zip(pairs, preference, strict=True):
        if verdict != (0 if ranks[i] == ranks[j] else 1 if ranks[i] < ranks[j] else 2):
            raise Drop("with answers that no ranking agrees with")
    return ranks


def ukp(row: Row) -> Comparison:
    """Two arguments on the same side of a debate, `label` being the more convincing; split them by `topic`.

    Rows come from the original `TOPIC_STANCE.csv`, whose name `tsv:` leaves in the column `file`, or hold topic and stance.
    """
    topic, stance = _side(row)
    ranks = [1, 2] if choice(row, "label", ("a1", "a2")) == "a1" else [2, 1]
    arguments = [without_breaks(text(row, name)) for name in ("a1", "a2")]
    return _arguments(topic, stance, arguments, ranks)


def _side(row: Row) -> tuple[str, str]:
    if "file" not in row:
        return text(row, "topic"), text(row, "stance")
    topic, _, stance = text(row, "file").partition("_")
    return topic, stance


def _arguments(
    topic: str, stance: str, arguments: Sequence[str], ranks: Sequence[int]
) -> Comparison:
    query = f"Debate: {_plain(topic)}\nSide: {_plain(stance)}\nGive a convincing argument."
    return rank(ask(query), arguments, ranks, topic=topic, stance=stance)


def ukp_ranking(row: Row) -> Comparison:
    """Arguments on one side of a debate, best first, as `gather_ukp` makes them."""
    if field(row, "contradicted"):
        raise Drop("with a pair that was judged both ways")
    arguments = items(row, "arguments")
    return _arguments(
        text(row, "topic"), text(row, "stance"), arguments, range(1, len(arguments) + 1)
    )


def gather_ukp(rows: Iterable[Located]) -> Iterator[Located]:
    """One row for every ranking that the pairs of one side of a debate make."""
    sides: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    for where, row in rows:
        try:
            winner, loser = (
                ("a1", "a2") if choice(row, "label", ("a1", "a2")) == "a1" else ("a2", "a1")
            )
            better, worse = (without_breaks(text(row, name)) for name in (winner, loser))
            sides.setdefault(_side(row), {})[better, worse] = None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    for (topic, stance), pairs in sides.items():
        for place, order in enumerate(consistent_rankings(pairs)):
            contradicted = (order[1], order[0]) in pairs
            row = {
                "topic": topic,
                "stance": stance,
                "arguments": list(order),
                "contradicted": contradicted,
            }
            yield f"{topic}, {stance}, ranking {place}", row


def pair(row: Row) -> Comparison:
    """A prompt and two replies, each as text, as a transcript or as messages."""
    messages = conversation("prompt", field(row, "prompt"))
    return rank(
        messages, [reply(name, field(row, name)) for name in ("chosen", "rejected")], [1, 2]
    )


def reward_bench(row: Row) -> Comparison:
    """A pair of RewardBench with its subset; nothing is stripped, for its code answers begin with their indentation."""
    query, *responses = (
        read_string(name, field(row, name)) for name in ("prompt", "chosen", "rejected")
    )
    return rank(ask(query), responses, [1, 2], subset=text(row, "subset"))


def _plain(name: str) -> str:
    return name.replace("-", " ").strip()


SUMMARIZE, WEBGPT, ULTRAFEEDBACK, UKP, PAIRS = map(
    preferences, (summarize, webgpt, ultrafeedback, ukp, pair)
)
REWARD_BENCH = preferences(reward_bench)
UKP_RANKINGS = replace(preferences(ukp_ranking), gather=gather_ukp)
QA_FEEDBACK, QA_FEEDBACK_CLOSED = preferences(qa_feedback), preferences(qa_feedback_closed)
SHP = preferences(shp, takes=("min_ratio",))


# Rankings out of judged pairs: who was compared with everybody in a group, and lost to no one he beat, has a rank in it.
#
# A pair of arguments costs two passes of a reward model; nine arguments that were all compared with each other cost nine and
# hold 36 pairs (Ouyang et al. 2022, §3.5, whose labelers ranked 4 to 9). Greedy: begin with a pair that no ranking has yet, add
# whoever was compared with all and fits in, most new pairs first, up to `LARGEST`. Every pair is in at least one ranking, many
# are in several; pairs judged both ways are in none and come out as they are, for the converter to drop.
LARGEST = 9
Pair = tuple[str, str]  # the better first


def consistent_rankings(pairs: Iterable[Pair]) -> Iterator[Sequence[str]]:
    """Every ranking best first; what was judged both ways comes last, in both orders."""
    judged = dict.fromkeys(pairs)
    both = [(a, b) for a, b in judged if (b, a) in judged]
    for pair in both:
        del judged[pair]
    others: dict[str, dict[str, None]] = {}
    for a, b in judged:
        others.setdefault(a, {})[b] = None
        others.setdefault(b, {})[a] = None
    covered: set[Pair] = set()
    for pair in judged:
        if pair in covered:
            continue
        order = list(pair)
        while len(order) < LARGEST and (grown := _best_addition(order, judged, others, covered)):
            order = grown
        covered |= {(a, b) for k, a in enumerate(order) for b in order[k + 1 :]}
        yield order
    yield from both


def _best_addition(
    order: list[str],
    judged: dict[Pair, None],
    others: dict[str, dict[str, None]],
    covered: set[Pair],
) -> list[str]:
    """The ranking with one more in it, the one that brings most pairs not yet covered; empty if nobody fits."""
    best, most = [], 0
    for new in others[order[0]]:
        if new in order or not all(new in others[a] for a in order):
            continue
        place = sum((a, new) in judged for a in order)
        if not all((a, new) in judged for a in order[:place]):
            continue  # lost to one that is below another that it beat
        pairs = [(a, new) for a in order[:place]] + [(new, b) for b in order[place:]]
        count = sum(pair not in covered for pair in pairs)
        if count > most:
            best, most = [*order[:place], new, *order[place:]], count
    return best


# OpenAssistant conversations (Köpf et al. 2023): trees of messages whose siblings people have ranked, 0 being the best.
#
#     {"message_tree_id": ..., "prompt": {"role": "prompter", "text": ..., "replies": [{"role": "assistant", "rank": 0, ...}]}}
#
# The released `trees` files hold one tree a row; the hub's table (OpenAssistant/oasst1, oasst2) one message a row, with
# `parent_id`, and is put together first. A tree gives one demonstration, along the best-ranked replies, and one ranking for
# every question with two ranked replies or more.
#
# Left out on purpose: messages that were deleted (with all that was said below them), and the labels of tone and quality.
_ROLES = {"prompter": "user", "assistant": "assistant"}


def gather(rows: Iterable[Located]) -> Iterator[Located]:
    """Trees as they are; messages put below their parents.

    Raises:
        ValueError: if a message's parent is not among the rows.
    """
    nodes: dict[str, Located] = {}
    for where, row in rows:
        if isinstance(row, dict) and "prompt" in row:
            yield where, row
        else:
            nodes[_named(where, row, "message_id")] = (where, {**row, "replies": []})
    for where, node in nodes.values():
        parent = node.get("parent_id")
        if parent is not None and parent not in nodes:
            raise ValueError(
                f"{where}: parent_id: {parent!r} is not among the rows, expected whole trees; use by=prompt"
            )
        if parent is not None:
            nodes[parent][1]["replies"].append(node)
    yield from (
        (where, {"prompt": node}) for where, node in nodes.values() if node.get("parent_id") is None
    )


def best_thread(row: Row, *, lang: str = "") -> Demonstration:
    """From the first message along the best-ranked replies, as far as the assistant speaks."""
    messages, replies = [], [_root(row, lang)]
    while replies:
        node = min(replies, key=_order)
        messages.append(_message(node))
        replies = _replies(node)
    if messages[-1].role == "user":
        messages.pop()
    if not messages:
        raise Drop("without a reply")
    return Demonstration(tuple(messages))


def rankings(row: Row, *, lang: str = "") -> list[Comparison]:
    """Every question of the tree with two ranked replies or more."""
    found = _rankings(_root(row, lang), ())
    if not found:
        raise Drop("without two ranked replies")
    return found


def first_prompt(row: Row, *, lang: str = "") -> Prompt:
    """The message that the tree grew from."""
    return Prompt((_message(_root(row, lang)),))


def _rankings(node: Row, before: tuple[Message, ...]) -> list[Comparison]:
    messages = (*before, _message(node))
    replies, found = _replies(node), []
    ranked = [reply for reply in replies if _rank(reply) is not None]
    if messages[-1].role == "user" and len(ranked) > 1:
        responses = tuple(_message(reply).content for reply in ranked)
        found.append(
            Comparison(messages, responses, tuple(1 + (_rank(reply) or 0) for reply in ranked))
        )
    return [*found, *(ranking for reply in replies for ranking in _rankings(reply, messages))]


def _root(row: Row, lang: str) -> Row:
    root = field(row, "prompt")
    if lang and text(root, "lang") != lang:
        raise Drop(f"in another language than {lang}")
    if _is_void(root):
        raise Drop("with a deleted or empty prompt")
    return root


def _replies(node: Row) -> list[Row]:
    return [reply for reply in items(node, "replies") if not _is_void(reply)]


def _is_void(node: Row) -> bool:
    return bool(node.get("deleted")) or not text(node, "text")


def _rank(node: Row) -> int | None:
    rank = node.get("rank")
    if rank is not None and (isinstance(rank, bool) or int(rank) != rank or rank < 0):
        raise ValueError(f"rank: {rank!r}, expected 0 for the best, more for the others")
    return None if rank is None else int(rank)


def _order(node: Row) -> tuple[bool, int]:
    """Ranked replies by rank, then those that nobody ranked."""
    rank = _rank(node)
    return rank is None, rank or 0


def _message(node: Row) -> Message:
    role = text(node, "role")
    if role not in _ROLES:
        raise ValueError(f"role: {role!r}, expected prompter or assistant")
    return Message(_ROLES[role], text(node, "text"))


def _named(where: str, row: Any, name: str) -> str:
    try:
        return text(row, name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


OASST = Shape(
    {Demonstration: best_thread, Comparison: rankings, Prompt: first_prompt},
    takes=("lang",),
    gather=gather,
)


# The queries of the summarisation papers: what stands before `TL;DR:`.
#
#     SUBREDDIT: r/...  TITLE: ...  POST: ...  TL;DR:      Stiennon et al. 2020, App. B.2 (their spelling of the fields)
#     the post alone                                       Ziegler et al. 2019 (the `content` of Webis TLDR-17)
#
# Left out on purpose: cutting posts at their last newline to 512 tokens as the papers did (a converter knows no tokens; posts
# that do not fit are dropped and counted), and the repair of broken Unicode by ftfy.
def reddit_query(subreddit: str, title: str, post: str) -> str:
    """The query of a Reddit post."""
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"


def article_query(article: str) -> str:
    """The query of a news article."""
    return f"Article: {article}\n\nTL;DR:"


def tldr(row: Row) -> Demonstration:
    """CarperAI/openai_summarize_tldr: a finished query in `prompt`, the author's summary in `label`."""
    return answer(ask(text(row, "prompt")), text(row, "label"))


def reddit(row: Row) -> Demonstration:
    """vwxyzjn/summarize_from_feedback_tldr_3_filtered: subreddit, title, post, summary."""
    query = reddit_query(*(text(row, name) for name in ("subreddit", "title", "post")))
    return answer(ask(query), text(row, "summary"))


def webis(row: Row) -> Demonstration:
    """The tldr set of lm-human-preferences: content, summary; more than two line breaks in a row become two."""
    return answer(ask(re.sub(r"\n{3,}", "\n\n", text(row, "content"))), text(row, "summary"))


TLDR, REDDIT, WEBIS = map(demonstrations, (tldr, reddit, webis))
