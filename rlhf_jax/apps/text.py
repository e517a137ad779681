"""Make text that a model or a stranger wrote safe to show: no control characters, no hidden reordering,
honest cuts.

A sampled reply may contain anything, also the bytes that move a terminal's cursor, rename its window or
turn the reading order round. `printable` removes them for the terminal and the page alike (the page escapes
HTML besides); `turns` splits a rendered conversation at its chat markers. Left out on purpose: judging what
the text says.
"""

import re
import unicodedata

_MARKER = re.compile(r"<\|([a-z_]+)\|>")
_KEPT = frozenset("\n\t")
# Direction overrides and isolates, marks of direction, line and paragraph separators. Other "format"
# characters, such as joiners, are needed to spell many languages.
_HIDDEN = frozenset(
    [0x061C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
# Whole colour and title sequences; of any other only the escape character goes, so that no word is lost.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


def _is_hidden(char: str) -> bool:
    code = ord(char)
    return (
        code in _HIDDEN or 0xE0000 <= code <= 0xE007F or unicodedata.category(char) in ("Cc", "Cs")
    )


def printable(text: str) -> str:
    """`text` without terminal escape sequences, control characters (but newline and tab) and reordering
    marks."""
    text = _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(char for char in text if char in _KEPT or not _is_hidden(char))


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters; what is cut off is counted in the text itself."""
    return (
        text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"
    )


def turns(text: str) -> list[tuple[str, str]]:
    """Split `<|user|>hello<|assistant|>hi<|eos|>` into [("user", "hello"), ("assistant", "hi")].

    Text before the first role marker has the role ""; other markers (end, padding) are dropped, and so are
    turns without text, as the open turn that a generation prompt ends with.
    """
    found = [("", "")]
    end = 0
    for match in _MARKER.finditer(text):
        role, said = found[-1]
        found[-1] = (role, said + text[end : match.start()])
        if match[1] in ("user", "assistant", "system"):
            found.append((match[1], ""))
        end = match.end()
    role, said = found[-1]
    found[-1] = (role, said + text[end:])
    return [(role, said.strip()) for role, said in found if said.strip()]
