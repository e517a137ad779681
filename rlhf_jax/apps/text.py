"""Make text and numbers safe to show: no control characters, no hidden reordering, counted cuts.

A sampled reply may contain anything, also the bytes that move a terminal's cursor, rename its
window or turn the reading order round. `printable` removes them for the terminal and the page
alike (the page escapes HTML besides). Left out on purpose: judging what the text says.
"""

import math
import re
import unicodedata

_ROLE_OR_END = re.compile(r"<\|([a-z_]+)\|>")
_ROLES = ("user", "assistant", "system")
_KEPT = frozenset("\n\t")
# Direction overrides and isolates, marks of direction, line and paragraph separators. Other
# "format" characters, such as joiners, are needed to spell many languages.
_HIDDEN = frozenset(
    [0x061C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
# Whole colour and title sequences; of any other only the escape character goes, so that no word
# is lost.
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")


def _is_hidden(char: str) -> bool:
    """Return True for a character that shows nothing and can change how others are shown."""
    code = ord(char)
    is_tag = 0xE0000 <= code <= 0xE007F
    return code in _HIDDEN or is_tag or unicodedata.category(char) in ("Cc", "Cs")


def printable(text: str) -> str:
    """Remove terminal sequences, control characters and reordering marks from a text."""
    text = _ESCAPE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return "".join(char for char in text if char in _KEPT or not _is_hidden(char))


def shorten(text: str, limit: int) -> str:
    """Cut a text to `limit` characters and say in the text itself how many were cut off."""
    return (
        text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"
    )


def split_turns(text: str) -> list[tuple[str, str]]:
    """Split a rendered conversation at its chat markers into pairs of a role and its words.

    `<|user|>hello<|assistant|>hi<|eos|>` is [("user", "hello"), ("assistant", "hi")]. Text before
    the first role has the role ""; other markers (end, padding) are dropped, and so are turns
    without text, as the open turn that a generation prompt ends with.
    """
    before, *parts = _ROLE_OR_END.split(text)  # marker, words, marker, words, ...
    turns = [("", before)]
    for marker, words in zip(parts[::2], parts[1::2], strict=True):
        if marker in _ROLES:
            turns.append((marker, words))
        else:
            role, earlier = turns[-1]
            turns[-1] = (role, earlier + words)
    return [(role, words.strip()) for role, words in turns if words.strip()]


def format_number(value: float, *, digits: int = 3) -> str:
    """Write a number with so many significant digits, and no power of ten if it is readable."""
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e7 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    shown = f"{value:,.{decimals}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return shown.replace("-", "−")
