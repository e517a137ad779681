"""Read public rankings of responses by people (or by GPT-4), one converter a data set.

    summarize      openai/summarize_from_feedback    2 summaries         Stiennon et al. 2020
    webgpt         openai/webgpt_comparisons         2 answers, ties     Nakano et al. 2021
    ultrafeedback  openbmb/UltraFeedback             4 completions       Cui et al. 2023
    shp            stanfordnlp/SHP                   2 comments          Ethayarajh et al. 2022
    qa_feedback    train_feedback.json (FineGrainedRLHF)   4 predictions   Wu et al. 2023
    ukp            UKPConvArg1Strict                 2 arguments         Habernal & Gurevych 2016
    ukp_rankings   the same pairs as rankings of up to 9 arguments
    reward_bench   allenai/reward-bench, split filtered    2 responses   Lambert et al. 2024
    pairs          prompt, chosen, rejected, as many data sets of the hub have them
    oasst          OpenAssistant/oasst1, oasst2      trees of messages   Köpf et al. 2023

Scores become ranks; equal scores tie. Anthropic's transcripts are read by `transcripts.py`.

Left out on purpose: margins and confidences (the reward loss has no use for them), the annotators'
critiques, and the system prompts of UltraFeedback, for which the chat template has no role.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any

from rlhf_jax.data.public.demonstrations import reddit_query
from rlhf_jax.data.public.rows import (
    Located,
    Row,
    Shape,
    as_number,
    choice,
    comparison,
    field,
    items,
    number,
    ranks_of_scores,
    replace_breaks,
    shorten,
    text,
    user_turn,
)
from rlhf_jax.data.records import (
    LARGEST_RANK,
    Comparison,
    Demonstration,
    Drop,
    Message,
    Prompt,
    read_string,
)

# Two responses or a few, with a choice or scores.


def read_summaries(row: Row) -> Comparison:
    """Read two summaries of a Reddit post (TL;DR) or of a news article (CNN/DM), and the choice."""
    if field(row, "info.post") is None:
        query = f"Article: {text(row, 'info.article')}\n\nTL;DR:"
    else:
        query = reddit_query(row, "info.")
    summaries = items(row, "summaries")
    if len(summaries) != 2:
        raise ValueError(f"summaries: {len(summaries)} of them, expected 2")
    ranks = _winner_first(row, "choice", (0, 1))
    return comparison(user_turn(query), [text(summary, "text") for summary in summaries], ranks)


def _winner_first(row: Row, column: str, sides: tuple[Any, Any]) -> list[int]:
    """Return the ranks of two sides, of which a column names the better one."""
    return [1, 2] if choice(row, column, sides) == sides[0] else [2, 1]


def read_webgpt(row: Row) -> Comparison:
    """Read two answers scored in [-1, 1]; equal scores tie."""
    answers = [text(row, f"answer_{k}") for k in (0, 1)]
    scores = [number(row, f"score_{k}") for k in (0, 1)]
    question = user_turn(text(row, "question.full_text"))
    return comparison(question, answers, ranks_of_scores(scores))


def read_ultrafeedback(row: Row) -> Comparison:
    """Read completions by different models, ranked by GPT-4's overall score from 1 to 10."""
    completions = items(row, "completions")
    if len(completions) < 2:
        raise Drop("with fewer than 2 completions")
    if any(field(completion, "overall_score") is None for completion in completions):
        raise Drop("without an overall score")
    scores = [number(completion, "overall_score") for completion in completions]
    instruction = user_turn(text(row, "instruction"))
    responses = [text(completion, "response") for completion in completions]
    return comparison(instruction, responses, ranks_of_scores(scores))


def read_shp(row: Row, *, min_ratio: str = "1") -> Comparison:
    """Read two comments on a post, of which the later one has more votes.

    The card of the data set advises a ratio of scores of at least 2 (`min_ratio`).
    """
    if number(row, "score_ratio") < as_number("min_ratio", min_ratio):
        raise Drop(f"with a score ratio below {min_ratio}")
    ranks = _winner_first(row, "labels", (1, 0))
    post = user_turn(text(row, "history"))
    return comparison(post, [text(row, f"human_ref_{side}") for side in "AB"], ranks)


def read_reward_bench(row: Row) -> Comparison:
    """Read a pair of RewardBench with its subset.

    Nothing is stripped, because its code answers begin with their indentation.
    """
    names = ("prompt", "chosen", "rejected")
    query, *responses = (read_string(name, field(row, name)) for name in names)
    return comparison(user_turn(query), responses, [1, 2], subset=text(row, "subset"))


# QA-Feedback: four predictions, and an answer for every pair of them.


def read_qa_feedback(row: Row, *, closed: bool) -> Comparison:
    """Read four predictions from a question, behind its passages unless it is `closed`.

    Closed is a fifth of the tokens, and facts that nobody can check.
    """
    passages = [] if closed else items(row, "passages")
    material = ["\n".join(map(str, passage[1:])) for passage in passages]
    query = "\n\n".join([*material, text(row, "question")])
    predictions = [text(row, f"prediction {k}") for k in (1, 2, 3, 4)]
    ranks = ranks_of_pairs(items(row, "preference"), num_items=4)
    return comparison(user_turn(query), predictions, ranks)


def ranks_of_pairs(preference: list[int], *, num_items: int) -> list[int]:
    """Return ranks that agree with an answer for every pair (1,2) (1,3) ... of the items.

    An answer is 1 if the first is better, 2 if the second, 0 if neither.

    Raises:
        Drop: if there are no such ranks, as for A > B > C > A or for A > B, A = C, B = C.
    """
    pairs = list(combinations(range(num_items), 2))
    valid = all(not isinstance(answer, bool) and answer in (0, 1, 2) for answer in preference)
    if len(preference) != len(pairs) or not valid:
        raise ValueError(f"preference: {preference}, expected {len(pairs)} answers 0, 1 or 2")
    answered_pairs = list(zip(pairs, preference, strict=True))
    losers = [(i, j)[2 - answer] for (i, j), answer in answered_pairs if answer]
    ranks = [1 + losers.count(k) for k in range(num_items)]
    for (i, j), answer in answered_pairs:
        if answer != (0 if ranks[i] == ranks[j] else 1 if ranks[i] < ranks[j] else 2):
            raise Drop("with answers that no ranking agrees with")
    return ranks


# UKPConvArg1Strict: pairs of arguments on the same side of a debate, to be split by `topic`. Rows
# come from the original `TOPIC_STANCE.csv`, whose name `tsv:` leaves in the column `file`, or hold
# topic and stance.


def read_ukp(row: Row) -> Comparison:
    """Read two arguments on the same side of a debate; `label` is the more convincing one."""
    topic, stance = _debate_side(row)
    ranks = _winner_first(row, "label", ("a1", "a2"))
    arguments = [replace_breaks(text(row, name)) for name in ("a1", "a2")]
    return _compare_arguments(topic, stance, arguments, ranks)


def read_ukp_ranking(row: Row) -> Comparison:
    """Read arguments on one side of a debate, best first, as `gather_ukp` orders them."""
    if field(row, "contradicted"):
        raise Drop("with a pair that was judged both ways")
    arguments = items(row, "arguments")
    ranks = range(1, len(arguments) + 1)
    return _compare_arguments(text(row, "topic"), text(row, "stance"), arguments, ranks)


def gather_ukp(rows: Iterable[Located]) -> Iterator[Located]:
    """Yield one row for every ranking that the pairs of one side of a debate make."""
    sides: dict[tuple[str, str], dict[Pair, None]] = {}
    for where, row in rows:
        try:
            winner = choice(row, "label", ("a1", "a2"))
            loser = "a2" if winner == "a1" else "a1"
            better, worse = (replace_breaks(text(row, name)) for name in (winner, loser))
            sides.setdefault(_debate_side(row), {})[better, worse] = None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    for (topic, stance), pairs in sides.items():
        for k, order in enumerate(consistent_rankings(pairs)):
            ranking = {"arguments": list(order), "contradicted": (order[1], order[0]) in pairs}
            row = {"topic": topic, "stance": stance, **ranking}
            yield Located(f"{topic}, {stance}, ranking {k}", row)


def _debate_side(row: Row) -> tuple[str, str]:
    """Return the topic and the stance of a row."""
    if "file" not in row:
        return text(row, "topic"), text(row, "stance")
    topic, _, stance = text(row, "file").partition("_")
    return topic, stance


def _compare_arguments(
    topic: str, stance: str, arguments: Sequence[str], ranks: Sequence[int]
) -> Comparison:
    debate, side = (name.replace("-", " ").strip() for name in (topic, stance))
    query = f"Debate: {debate}\nSide: {side}\nGive a convincing argument."
    return comparison(user_turn(query), arguments, ranks, topic=topic, stance=stance)


# Rankings out of judged pairs. A pair of arguments costs two passes of a reward model; nine that
# were all compared with each other cost nine and hold 36 pairs (Ouyang et al. 2022, §3.5). Greedy:
# begin with a pair that no ranking has yet; add the item that was compared with all and fits in,
# most new pairs first, up to `LARGEST`. Every pair is in at least one ranking, many are in several.
# Pairs judged both ways are in none: both orders come out, for the converter to drop.

LARGEST = 9
Pair = tuple[str, str]  # the better first


def consistent_rankings(pairs: Iterable[Pair]) -> Iterator[Sequence[str]]:
    """Yield every ranking best first, then in both orders the pairs that were judged both ways."""
    judged = dict.fromkeys(pairs)
    contradicted = [(a, b) for a, b in judged if (b, a) in judged]
    for pair in contradicted:
        del judged[pair]
    opponents: dict[str, dict[str, None]] = {}
    for a, b in judged:
        opponents.setdefault(a, {})[b] = None
        opponents.setdefault(b, {})[a] = None
    covered: set[Pair] = set()
    for pair in judged:
        if pair in covered:
            continue
        order = list(pair)
        while len(order) < LARGEST:
            longer = _best_addition(order, judged, opponents, covered)
            if not longer:
                break
            order = longer
        covered |= set(combinations(order, 2))
        yield order
    yield from contradicted


def _best_addition(
    order: list[str],
    judged: dict[Pair, None],
    opponents: dict[str, dict[str, None]],
    covered: set[Pair],
) -> list[str]:
    """Return the ranking with one more item, which adds most uncovered pairs; [] if none fits."""
    best: list[str] = []
    most = 0
    for new in opponents[order[0]]:
        if new in order or not all(new in opponents[a] for a in order):
            continue
        position = sum((a, new) in judged for a in order)
        # The item may not have lost to one that is ranked below one that it beat.
        if not all((a, new) in judged for a in order[:position]):
            continue
        pairs = [(a, new) for a in order[:position]] + [(new, b) for b in order[position:]]
        count = sum(pair not in covered for pair in pairs)
        if count > most:
            best = [*order[:position], new, *order[position:]]
            most = count
    return best


# OpenAssistant: trees of messages whose siblings people have ranked, 0 being the best.
#
#     {"message_tree_id": ..., "prompt": {"role": "prompter", "text": ..., "replies":
#                                         [{"role": "assistant", "rank": 0, ...}]}}
#
# The released `trees` files hold one tree a row; the hub's table one message a row, with
# `parent_id`, and is put together first. Left out on purpose: messages that were deleted (with
# everything below them), and the labels of tone and quality.

_OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


def gather_trees(rows: Iterable[Located]) -> Iterator[Located]:
    """Yield trees as they are, and trees put together from single messages.

    Raises:
        ValueError: if a message's parent is not among the rows.
    """
    nodes: dict[str, Located] = {}
    for where, row in rows:
        if isinstance(row, dict) and "prompt" in row:
            yield Located(where, row)
            continue
        try:
            message_id = text(row, "message_id")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        nodes[message_id] = Located(where, {**row, "replies": []})
    for where, node in nodes.values():
        parent = node.get("parent_id")
        if parent is not None and parent not in nodes:
            raise ValueError(
                f"{where}: parent_id: {parent!r} is not among the rows, expected whole trees; use "
                "by=prompt"
            )
        if parent is not None:
            nodes[parent].row["replies"].append(node)
    for where, node in nodes.values():
        if node.get("parent_id") is None:
            yield Located(where, {"prompt": node})


def read_tree_prompt(row: Row, *, lang: str = "") -> Prompt:
    """Read the message at the root of the tree."""
    return Prompt((_tree_message(_root(row, lang)),))


def read_best_thread(row: Row, *, lang: str = "") -> Demonstration:
    """Read from the root along the best-ranked replies, as far as the assistant speaks."""
    messages = []
    replies = [_root(row, lang)]
    while replies:
        node = min(replies, key=_reply_order)
        messages.append(_tree_message(node))
        replies = _replies(node)
    if messages[-1].role == "user":
        messages.pop()
    if not messages:
        raise Drop("without a reply")
    return Demonstration(tuple(messages))


def read_tree_rankings(row: Row, *, lang: str = "") -> list[Comparison]:
    """Read every question of the tree that has two ranked replies or more."""
    rankings = _rankings_below(_root(row, lang), ())
    if not rankings:
        raise Drop("without two ranked replies")
    return rankings


def _rankings_below(node: Row, before: tuple[Message, ...]) -> list[Comparison]:
    messages = (*before, _tree_message(node))
    replies = _replies(node)
    ranked = [(rank, reply) for reply in replies if (rank := _rank(reply)) is not None]
    rankings = []
    if messages[-1].role == "user" and len(ranked) > 1:
        responses = tuple(_tree_message(reply).content for _, reply in ranked)
        rankings.append(Comparison(messages, responses, tuple(1 + rank for rank, _ in ranked)))
    for reply in replies:
        rankings += _rankings_below(reply, messages)
    return rankings


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
    if rank is None:
        return None
    is_number = isinstance(rank, int | float) and not isinstance(rank, bool)
    if not is_number or not 0 <= rank < LARGEST_RANK or rank != int(rank):
        raise ValueError(f"rank: {shorten(rank)}, expected 0 for the best, more for the others")
    return int(rank)


def _reply_order(node: Row) -> float:
    """Return a sort key: ranked replies by rank, then those that nobody ranked."""
    rank = _rank(node)
    return math.inf if rank is None else rank


def _tree_message(node: Row) -> Message:
    role = text(node, "role")
    if role not in _OASST_ROLES:
        raise ValueError(f"role: {role!r}, expected prompter or assistant")
    return Message(_OASST_ROLES[role], text(node, "text"))


OASST = Shape(
    {Demonstration: read_best_thread, Comparison: read_tree_rankings, Prompt: read_tree_prompt},
    takes=("lang",),
    gather=gather_trees,
)
