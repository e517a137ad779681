"""The third drawing: a run's stages as boxes from left to right, joined by arrows that pass no box.

    column of a box = longest way to it from a box without parents
    in every column that arrows of a parent pass, they share a free lane
    the order inside a column is that of the mean height of the parents

Left out on purpose: anything that minimises crossings; pipelines have a handful of stages.
"""

import dataclasses
from collections.abc import Sequence

from rlhf_jax.apps._html import Html, el


@dataclasses.dataclass(frozen=True)
class Node:
    """A box of the stage graph: a title and small lines below it; `parents` are indices of earlier boxes."""

    title: str
    lines: tuple[str, ...]
    colour: int
    parents: tuple[int, ...]
    dashed: bool = False


def _depths(nodes: Sequence[Node]) -> list[int]:
    """The longest way to each box from one without parents; a circle (damaged lineage) is cut."""
    known: dict[int, int] = {}

    def depth(index: int, above: frozenset[int]) -> int:
        if index not in known:
            over = [
                depth(p, above | {index}) + 1
                for p in nodes[index].parents
                if p not in above | {index}
            ]
            known[index] = max(over, default=0)
        return known[index]

    return [depth(index, frozenset()) for index in range(len(nodes))]


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


_BOX, _ROW, _GAP_X, _GAP_Y, _LANE = 196, 74, 46, 18, 10

Place = tuple[float, float, float]


def _layout(
    nodes: Sequence[Node], depths: Sequence[int]
) -> tuple[dict[tuple[int, int], Place], int]:
    """(left, middle, height) of each box, and of a free lane wherever an arrow passes a column of others.

    The key is (box or parent of the passing arrow, column); a column's entries are in the order of their
    parents.
    """
    wanted: list[dict[int, list[int]]] = [{} for _ in range(max(depths) + 1)]
    for index, node in enumerate(nodes):
        wanted[depths[index]][index] = list(node.parents)
        for parent in node.parents:
            for column in range(depths[parent] + 1, depths[index]):
                wanted[column][parent] = [parent]
    tallest = max(
        sum(_ROW if depths[i] == c else _LANE for i in col) + _GAP_Y * (len(col) - 1)
        for c, col in enumerate(wanted)
    )
    places: dict[tuple[int, int], Place] = {}
    for column, above in enumerate(wanted):

        def middle(
            index: int, column: int = column, above: dict[int, list[int]] = above
        ) -> tuple[float, bool, int]:
            known = [places[p, column - 1][1] for p in above[index] if (p, column - 1) in places]
            return (sum(known) / len(known) if known else 0.0, depths[index] == column, index)

        order = sorted(above, key=middle)
        sizes = [_ROW if depths[index] == column else _LANE for index in order]
        top = 2 + (tallest - sum(sizes) - _GAP_Y * (len(sizes) - 1)) / 2
        for index, size in zip(order, sizes, strict=True):
            places[index, column] = (2.0 + column * (_BOX + _GAP_X), top + size / 2, float(size))
            top += size + _GAP_Y
    return places, tallest + 4


def _arrow(stations: Sequence[Place]) -> list[Html]:
    """A curve from the right edge of the first station through the others to the left edge of the last."""
    left, y, _ = stations[0]
    drawn = f"M{left + _BOX:.1f},{y:.1f}"
    for number, (x, to, _) in enumerate(stations[1:], start=2):
        start = x - _GAP_X
        drawn += f" C{start + _GAP_X / 2:.1f},{y:.1f} {start + _GAP_X / 2:.1f},{to:.1f} "
        drawn += (
            f"{x - 7:.1f},{to:.1f}"
            if number == len(stations)
            else f"{x:.1f},{to:.1f} L{x + _BOX:.1f},{to:.1f}"
        )
        y = to
    x = stations[-1][0]
    return [
        el("path", d=drawn, class_="edge"),
        el("path", d=f"M{x - 8:.1f},{y - 4:.1f} l7,4 l-7,4 z", class_="head"),
    ]


def _box(node: Node, place: Place) -> list[Html]:
    x, y = place[0], place[1] - _ROW / 2
    return [
        el(
            "rect",
            x=x,
            y=y,
            width=_BOX,
            height=_ROW,
            rx=9,
            class_="box dashed" if node.dashed else "box",
        ),
        el(
            "rect",
            x=x + 12,
            y=y + 13,
            width=9,
            height=9,
            rx=2.5,
            style=f"fill:var(--c{node.colour})",
        ),
        el("text", _clip(node.title, 20), x=x + 28, y=y + 22, class_="title"),
        *(
            el("text", _clip(line, 29), x=x + 12, y=y + 42 + 16 * i)
            for i, line in enumerate(node.lines[:2])
        ),
    ]


def stage_graph(nodes: Sequence[Node], *, label: str) -> Html:
    """Boxes from left to right, each right of all its parents, joined by curves that pass no box."""
    depths = _depths(nodes)
    places, height = _layout(nodes, depths)
    drawn: list[Html] = []
    for index, node in enumerate(nodes):
        for parent in node.parents:
            if depths[parent] < depths[index]:  # not so for the edge that closes a circle
                stops = [places[parent, column] for column in range(depths[parent], depths[index])]
                drawn += _arrow([*stops, places[index, depths[index]]])
    for index, node in enumerate(nodes):
        drawn += _box(node, places[index, depths[index]])
    width = (max(depths) + 1) * (_BOX + _GAP_X) - _GAP_X + 4
    return el(
        "svg",
        drawn,
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )
