"""Rankings out of judged pairs: who was compared with everybody in a group, and lost to no one he beat, has a rank in it.

A pair of arguments costs two passes of a reward model; nine arguments that were all compared with each other cost nine and
hold 36 pairs (Ouyang et al. 2022, §3.5, whose labelers ranked 4 to 9). Greedy: begin with a pair that no ranking has yet, add
whoever was compared with all and fits in, most new pairs first, up to `LARGEST`. Every pair is in at least one ranking, many
are in several; pairs judged both ways are in none and come out as they are, for the converter to drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

LARGEST = 9
Pair = tuple[str, str]  # the better first


def rankings(pairs: Iterable[Pair]) -> Iterator[Sequence[str]]:
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
    order: list[str], judged: dict[Pair, None], others: dict[str, dict[str, None]], covered: set[Pair]
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
