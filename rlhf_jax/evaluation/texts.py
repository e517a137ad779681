"""Count what depends on nobody's tokenizer: bytes, words, different n-grams, kinds of prompt."""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.data.records import Prompt


def count_bytes(text: str) -> int:
    """Return the length of a text in bytes of UTF-8."""
    return len(text.encode(errors="replace"))


def count_words(text: str) -> int:
    """Return the number of words: what stands between spaces."""
    return len(text.split())


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct-n: different n-grams of words / all n-grams of words (Li et al. 2016).

    The more texts the lower it is: compare as many of each model. NaN without an n-gram.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.split()
        grams += zip(*(words[k:] for k in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else float("nan")


def prompts_by_kind(prompts: Sequence[Prompt], most: int) -> dict[str, np.ndarray]:
    """Return by kind which prompts are of it, {} where there are fewer than two kinds.

    The kind is `metadata["kind"]`; prompts without one belong to none. Of more than `most` kinds
    the most frequent are kept, the first of equally frequent ones.
    """
    kinds = [prompt.metadata.get("kind") for prompt in prompts]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds) if kind is not None}
    frequent = sorted(counts, key=lambda kind: -counts[kind])[:most]
    if len(frequent) < 2:
        return {}
    return {
        kind: np.array([other == kind for other in kinds]) for kind in counts if kind in frequent
    }
