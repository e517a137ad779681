"""Score responses by rules: answers that can be checked, patterns, formats, lengths.

    answer:number       1 if the final number is that of metadata["answer"], else 0 (Cobbe 2021)
    answer:text         1 if the response is metadata["answer"] but for case and spaces, else 0
    regex:PATTERN       1 if the pattern is found in the response, else 0
    format:NAME         1 if the whole response has a form of `FORMATS`, else 0 (DeepSeek-R1 2025)
    format:PATTERN      the same with a pattern of one's own
    length:WORDS        -|number of words - WORDS| / WORDS

The final number of a text stands behind its last "####", as in GSM8K, else it is the last number in
it. Commas between thousands and dollar signs are no part of it, 42.0 is 42.

Left out on purpose: fractions, units and formulas; a `function:` may parse what it likes.
"""

import re
from collections.abc import Callable
from decimal import Decimal

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.evaluation.judges import JudgeSettings, Prompts, Responses, ScoreJudge

FORMATS = {
    "think": r"<think>.*?</think>.*\S.*",
    "think_answer": r"<think>.*?</think>\s*<answer>.*?</answer>",
}
ANSWER = "answer"  # the field of a prompt's metadata that has what is right
_MARK = "####"
_SIGN = r"(?:(?<![\w.)])[-\u2212])?"  # a minus, but no hyphen and no subtraction: 10-3 ends in 3
_NUMBER = re.compile(
    rf"({_SIGN})\$?({_SIGN})((?:\d{{1,3}}(?:,\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
)


class RuleJudge(ScoreJudge):
    """Score every response by a function of prompt and text."""

    def __init__(self, name: str, rule: Callable[[Prompt, str], float]) -> None:
        """Name the rule."""
        self.name = re.sub(r"\W+", "_", name)
        self.description = f"the rule {name}"
        self._rule = rule

    def scores(self, prompts: Prompts, responses: Responses) -> np.ndarray:
        """Return score_NS.

        Raises:
          ValueError: a prompt lacks what the rule compares with.
        """
        rows = zip(prompts, responses, strict=True)
        scores = [[self._rule(prompt, response.text) for response in row] for prompt, row in rows]
        return np.array(scores, np.float64)


# --- answers --------------------------------------------------------------------------------------


def answer_judge(kind: str, settings: JudgeSettings) -> RuleJudge:
    """Return the judge answer:number or answer:text."""
    del settings
    rules = {"number": _same_number, "text": _same_text}
    if kind not in rules:
        expected = " or ".join(f"answer:{name}" for name in rules)
        raise ValueError(f"judge answer:{kind}: expected {expected}")
    return RuleJudge(f"answer:{kind}", rules[kind])


def final_number(text: str) -> Decimal | None:
    """Return the last number of a text, or the one behind its last ####; None without any."""
    _, mark, after = text.rpartition(_MARK)
    numbers = _NUMBER.findall(after)
    if not numbers:
        return None
    before, behind, digits = numbers[0] if mark else numbers[-1]
    return Decimal(f"{'-' if before or behind else ''}{digits.replace(',', '')}")


def _same_number(prompt: Prompt, text: str) -> float:
    answer = _answer(prompt)
    expected = final_number(answer)
    if expected is None:
        where = _where("answer:number", prompt)
        raise ValueError(f"{where}: metadata.{ANSWER} is {answer[:40]!r}, which has no number")
    return float(final_number(text) == expected)


def _same_text(prompt: Prompt, text: str) -> float:
    return float(_normalise(text) == _normalise(_answer(prompt, "answer:text")))


def _normalise(text: str) -> str:
    return " ".join(text.casefold().split())


def _answer(prompt: Prompt, judge: str = "answer:number") -> str:
    if ANSWER not in prompt.metadata:
        known = ", ".join(prompt.metadata) or "empty"
        raise ValueError(
            f"{_where(judge, prompt)}: its metadata is {known}, expected the field {ANSWER!r} to "
            f'compare with: {{"messages": [...], "metadata": {{"{ANSWER}": "42"}}}}'
        )
    return str(prompt.metadata[ANSWER])


def _where(judge: str, prompt: Prompt) -> str:
    return f"judge {judge}: prompt {prompt.messages[-1].content[:40]!r}"


# --- patterns and lengths -------------------------------------------------------------------------


def regex_judge(pattern: str, settings: JudgeSettings) -> RuleJudge:
    """Return the judge regex:PATTERN."""
    del settings
    compiled = _compile(f"regex:{pattern}", pattern)
    return RuleJudge("regex", lambda _, text: float(compiled.search(text) is not None))


def format_judge(name: str, settings: JudgeSettings) -> RuleJudge:
    """Return the judge format:NAME or format:PATTERN; a plain word is a name."""
    del settings
    if name not in FORMATS and re.fullmatch(r"\w+", name):
        known = ", ".join(FORMATS)
        raise ValueError(f"judge format:{name}: expected one of {known}, or a regular expression")
    compiled = _compile(f"format:{name}", FORMATS.get(name, name))
    return RuleJudge("format", lambda _, text: float(compiled.fullmatch(text.strip()) is not None))


def length_judge(words: str, settings: JudgeSettings) -> RuleJudge:
    """Return the judge length:WORDS."""
    del settings
    if not re.fullmatch(r"[1-9]\d{0,6}", words):
        raise ValueError(f"judge length:{words}: expected a number of words, as length:20")
    target = int(words)

    def rule(prompt: Prompt, text: str) -> float:
        del prompt
        return -abs(len(text.split()) - target) / target

    return RuleJudge(f"length:{words}", rule)


def _compile(judge: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"judge {judge}: no regular expression: {error}") from None
