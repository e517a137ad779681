"""Build HTML from a tree of calls in which text is escaped unless it is already HTML.

`el("p", "a < b")` is `<p>a &lt; b</p>`: a plain string is always text, only `Html` (what `el` returns) is
taken as markup. So text of a model or a user cannot become markup by forgetting something; one would have
to write `Html(text)`. The page's content security policy says the same once more: no network, no script but
ours (by its hash).
"""

import base64
import hashlib
import html
from collections.abc import Iterable

from rlhf_jax.apps._style import SCRIPT, STYLE
from rlhf_jax.apps.text import printable

_VOID = frozenset(["meta", "br", "hr", "line", "rect", "circle", "path", "polyline"])

Child = "Html | str | None | Iterable[Child]"


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def _children(children: Iterable[object]) -> str:
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(str(child))
        elif isinstance(child, str):
            parts.append(html.escape(printable(child)))
        elif isinstance(child, Iterable):
            parts.append(_children(child))
        else:
            raise TypeError(
                f"a child must be text, Html, None or a sequence of them, not {type(child).__name__}"
            )
    return "".join(parts)


def el(tag: str, *children: object, **attributes: object) -> Html:
    """One element. Attribute names: `class_` is `class`, other underscores are dashes; None and False leave
    one out."""
    written = ""
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        written += (
            f" {name}" if value is True else f' {name}="{html.escape(printable(str(value)))}"'
        )
    if tag in _VOID:
        return Html(f"<{tag}{written}{'/' if tag not in ('meta', 'br', 'hr') else ''}>")
    return Html(f"<{tag}{written}>{_children(children)}</{tag}>")


def join(parts: Iterable[object]) -> Html:
    """Elements one after the other."""
    return Html(_children(parts))


def details(summary: object, *children: object, open_: bool = False, class_: str = "") -> Html:
    return el("details", el("summary", summary), *children, open=open_, class_=class_ or None)


def table(head: Iterable[object], rows: Iterable[Iterable[object]], *, class_: str = "") -> Html:
    """A table in a box that scrolls sideways by itself, so that the page never does."""
    header = el("thead", el("tr", (el("th", cell) for cell in head)))
    body = el("tbody", (el("tr", (el("td", cell) for cell in row)) for row in rows))
    return el("div", el("table", header, body, class_=class_ or None), class_="scroll")


def page(title: str, *body: object) -> Html:
    """The whole document: self-contained, light and dark by the reader's own setting."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Html(STYLE)),
    )
    main = el("body", *body, el("script", Html(SCRIPT)))
    return Html("<!doctype html>\n" + el("html", head, main, lang="en") + "\n")
