"""Write the data of verifiable.py: sums of two numbers below 100, as careless people write them.

    python -m experiments.yours.sums --to=runs/data/sums

    documents/{train,validation}.jsonl   <|user|>17+58<|assistant|>75, right in 2 lines of 5
    prompts/{train,validation,test}.jsonl   17+58 with metadata {"answer": "75"}

A model of these texts has seen what is right, and says it about as often as they do. What is asked
in validation and test stands in no document and in no training prompt. Nothing is downloaded.
"""

import argparse
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HELD_OUT = 512  # questions of validation, and of test
COPIES = 6  # documents of every other question
RIGHT = 0.4
SLIPS = (-20, -10, -2, -1, 1, 2, 10, 20)  # what a wrong answer is off by

Question = tuple[int, int]


def questions() -> dict[str, list[Question]]:
    """Return all pairs of numbers below 100, shared out among the splits."""
    pairs = [(first, second) for first in range(100) for second in range(100)]
    random.Random(0).shuffle(pairs)
    return {
        "train": pairs[2 * HELD_OUT :],
        "validation": pairs[:HELD_OUT],
        "test": pairs[HELD_OUT : 2 * HELD_OUT],
    }


def document(question: Question, rng: random.Random) -> dict[str, str]:
    """Return a question as people answer it; of `RIGHT` answers nothing is off."""
    slip = 0 if rng.random() < RIGHT else rng.choice(SLIPS)
    first, second = question
    return {"text": f"<|user|>{first}+{second}<|assistant|>{abs(first + second + slip)}"}


def prompt(question: Question) -> dict[str, Any]:
    """Return a question that waits for its answer, which only the judge sees."""
    first, second = question
    message = {"role": "user", "content": f"{first}+{second}"}
    return {"messages": [message], "metadata": {"answer": str(first + second)}}


def shuffled(
    prompts: Sequence[Any], responses: Sequence[str], metadata: Sequence[Mapping[str, str]]
) -> list[float]:
    """Return the scores of answer:number, dealt out among the responses at random: a control.

    As much is paid, and it says nothing. The order depends on the responses alone, so that a run
    resumes exactly.
    """
    del prompts
    scores = [float(text == m["answer"]) for text, m in zip(responses, metadata, strict=True)]
    random.Random("\n".join(responses)).shuffle(scores)
    return scores


def write(folder: Path, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def main(argv: Sequence[str] | None = None) -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--to", type=Path, required=True, help="folder to write")
    to = parser.parse_args(argv).to
    rng = random.Random(1)
    shares = questions()
    for split, copies in (("train", COPIES), ("validation", 1)):
        documents = [document(q, rng) for q in shares[split] for _ in range(copies)]
        rng.shuffle(documents)
        write(to / "documents", split, documents)
    for split, pairs in shares.items():
        write(to / "prompts", split, map(prompt, pairs))
    print(f"wrote {to}: {len(shares['train'])} training questions, {HELD_OUT} held out, twice")


if __name__ == "__main__":
    main()
