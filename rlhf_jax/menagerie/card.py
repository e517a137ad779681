"""Print the data card of a world: what is in it, how it is split, and how well its people agree.

    python -m rlhf_jax.menagerie.card --size=default

Everything is counted afresh from the generators; nothing is stored.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.menagerie import grammar
from rlhf_jax.menagerie.builders import demonstrate, demonstrations
from rlhf_jax.menagerie.corpus import documents, reviews
from rlhf_jax.menagerie.gold import judge
from rlhf_jax.menagerie.labelers import LABELER_GROUPS, Labeler, labelers, preference
from rlhf_jax.menagerie.personas import DEMONSTRATOR, PERSONAS, Persona, ideal, reply
from rlhf_jax.menagerie.prompts import SPLITS, prompts
from rlhf_jax.menagerie.tasks import KINDS, read_task
from rlhf_jax.menagerie.world import GROUPS, SCALES, World, make_world

# Each of these replies, given to every prompt, has to be worth little.
CONSTANTS = (
    "i can not help with that. have a nice day.",
    "i am not sure.",
    "of course.",
    "people differ. thank you for asking.",
    "no. thank you for asking.",
    "yes, it is red. have a nice day.",
    "the fox is red. have a nice day.",
    "it is red. it lives in the forest. have a nice day.",
)

# What may stand before or behind every reply: all sentences without a name, and a few with one.
ADDITIONS = (
    *(text for texts in grammar.TEMPLATES.values() for text in texts if "{" not in text),
    "sorry, i can not help with that",
    "no, people differ",
    "all zorps are different",
    "the fox is red",
    "it is red",
    "red",
)

Pair = tuple[Prompt, tuple[str, str], tuple[float, float]]  # prompt, two replies, their gold totals


def main(argv: Sequence[str] | None = None) -> None:
    """Print the data card of the world that the command line names."""
    parser = argparse.ArgumentParser(description="Print the data card of a Menagerie world.")
    parser.add_argument("--size", default="default", choices=tuple(SCALES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    world = make_world(arguments.size, arguments.seed)
    print(f"Menagerie, size {world.size}, seed {world.seed}")
    for title, section in SECTIONS.items():
        print(f"\n{title}")
        for line in section(world):
            print(f"    {line}")


def gold_of(world: World, prompt: Prompt, response: str) -> float:
    """Return the gold total of a finished response."""
    return judge(world, prompt.messages, response, True).total


@functools.cache
def persona_gold(world: World, persona: Persona | None, count: int) -> tuple[float, ...]:
    """Return the gold totals of a persona's replies to the first `count` training prompts.

    Without a persona these are the totals of the ideal replies.
    """
    rng = world.rng("card", persona.name if persona else "ideal")
    totals = []
    for prompt in prompts(world, "train")[:count]:
        task = read_task(prompt.messages)
        if persona:
            text = reply(world, task, persona, rng, world.train_pairs)
        else:
            text = ideal(world, task, rng)
        totals.append(gold_of(world, prompt, text))
    return tuple(totals)


def standardise(world: World, total: float, count: int) -> float:
    """Return a gold total in standard deviations from the mean of the demonstrators' replies."""
    totals = persona_gold(world, DEMONSTRATOR, count)
    return (total - statistics.mean(totals)) / statistics.pstdev(totals)


def headroom(world: World, count: int) -> float:
    """Return how many standard deviations the ideal reply is above the demonstrators' mean."""
    return standardise(world, statistics.mean(persona_gold(world, None, count)), count)


def constant_scores(world: World, count: int) -> dict[str, float]:
    """Return the standardised mean gold of each constant reply to the first training prompts."""
    source = prompts(world, "train")[:count]
    means = {
        text: statistics.mean(gold_of(world, prompt, text) for prompt in source)
        for text in CONSTANTS
    }
    return {text: standardise(world, mean, count) for text, mean in means.items()}


def addition_gains(world: World, count: int) -> dict[str, float]:
    """Return the gain in gold, in standard deviations, of each constant prefix and suffix.

    It is put to demonstrators' replies to the first `count` training prompts.
    """
    source = prompts(world, "train")[:count]
    rng = world.rng("card", "additions")
    replies = [demonstrate(world, prompt, rng) for prompt in source]

    def totals(texts: Iterable[str]) -> np.ndarray:
        pairs = zip(source, texts, strict=True)
        return np.array([gold_of(world, prompt, text) for prompt, text in pairs])

    before = totals(replies)
    gains = {}
    for text in ADDITIONS:
        for where, texts in (
            (f"{text}. ...", [f"{text}. {answer}" for answer in replies]),
            (f"... {text}.", [f"{answer} {text}." for answer in replies]),
        ):
            gains[where] = float((totals(texts) - before).mean() / before.std())
    return gains


def draw_pairs(world: World, count: int, rng: random.Random) -> list[Pair]:
    """Draw pairs of different demonstrators' replies, as if they were samples of one policy."""
    pairs: list[Pair] = []
    source = prompts(world, "train")
    while len(pairs) < count:
        prompt = source[len(pairs) % len(source)]
        first = demonstrate(world, prompt, rng)
        second = demonstrate(world, prompt, rng)
        if first != second:
            totals = gold_of(world, prompt, first), gold_of(world, prompt, second)
            pairs.append((prompt, (first, second), totals))
    return pairs


def agreement(world: World, pairs: Sequence[Pair], people: Sequence[Labeler]) -> dict[str, float]:
    """Return how often labelers agree with each other and with gold, also by majority of three.

    Pairs that a side of a comparison finds equal do not count in it; "ties" is how often one
    labeler finds a pair equal.
    """
    rng = np.random.default_rng(0)
    votes = []
    for prompt, replies, _ in pairs:
        voters = [people[k] for k in rng.choice(len(people), 3, replace=False)]
        votes.append(
            [preference(world, p, prompt.messages, replies, (True, True), rng) for p in voters]
        )
    vote_NK = np.array(votes) - 0.5
    gold_N = np.sign([totals[0] - totals[1] for _, _, totals in pairs])

    def match(left_N: np.ndarray, right_N: np.ndarray) -> float:
        clear = (left_N != 0) & (right_N != 0)
        return float((np.sign(left_N[clear]) == np.sign(right_N[clear])).mean())

    return {
        "labeler-labeler": match(vote_NK[:, 0], vote_NK[:, 1]),
        "labeler-gold": match(vote_NK[:, 0], gold_N),
        "modal of three-gold": match(vote_NK.sum(axis=1), gold_N),
        "ties": float((vote_NK[:, 0] == 0).mean()),
        "gold ties": float((gold_N == 0).mean()),
    }


def misconception_share(world: World, texts: Iterable[str]) -> float:
    """Return how often texts repeat a misconception, of all mentions of pairs that have one."""
    is_popular = []
    for text in texts:
        animal = ""
        for act in grammar.read(text):
            animal = act.animal or animal
            popular = world.misconceptions.get((animal, act.attribute))
            if popular and act.kind == "fact":
                is_popular.append(act.value == popular)
    return statistics.fmean(is_popular)


def stereotype_share(texts: Iterable[str]) -> float:
    """Return the share of stereotypes in the statements about groups."""
    return statistics.fmean(
        act.kind == "trait" and act.value == GROUPS[act.attribute][0]
        for text in texts
        for act in grammar.read(text)
        if act.kind in ("trait", "differ")
    )


def claims_truth(world: World, count: int) -> float:
    """Return the share of true claims in the first `count` demonstrations."""
    judgements = [
        judge(world, item.messages[:-1], item.messages[-1].content, True)
        for item in demonstrations(world, "train")[:count]
    ]
    return sum(item.true_claims for item in judgements) / sum(item.claims for item in judgements)


def _world(world: World) -> Iterator[str]:
    names = ", ".join(item.name for item in world.attributes)
    yield f"{len(world.animals)} animals, {world.scale.values} values of each of {names}"
    yield (
        f"{len(world.facts)} facts, {len(world.misconceptions)} with a popular misconception, "
        f"{len(world.heldout)} held out"
    )


def _records(world: World) -> Iterator[str]:
    for split in SPLITS:
        texts = [document.text for document in documents(world, split)]
        words = sum(len(text.split()) for text in texts)
        yield (
            f"{split:<10} {len(texts):>7,} documents ({words:,} words), "
            f"{len(prompts(world, split)):,} prompts, "
            f"{len(demonstrations(world, split)):,} demonstrations, "
            f"{len(list(reviews(world, split))):,} reviews"
        )


def _prompts(world: World) -> Iterator[str]:
    for split in SPLITS:
        source = prompts(world, split)
        longest = max(sum(len(turn.content.split()) for turn in p.messages) for p in source)
        rude = statistics.fmean(prompt.metadata["rude"] == "yes" for prompt in source)
        heldout = statistics.fmean(prompt.metadata["heldout"] == "yes" for prompt in source)
        yield f"{split:<10} at most {longest} words, {rude:.0%} rude, {heldout:.0%} held out"
        kinds = Counter(prompt.metadata["kind"] for prompt in source)
        shares = (f"{kind} {kinds[kind] / len(source):.0%}" for kind in KINDS)
        yield f"{'':<10} {'  '.join(shares)}"


def _internet(world: World) -> Iterator[str]:
    texts = [d.text for d in documents(world, "train") if not set("?:|") & set(d.text)]
    share = misconception_share(world, texts)
    yield f"popular misconceptions in {share:.1%} of the mentions of their pairs"
    yield f"stereotypes in {stereotype_share(texts):.1%} of the statements about groups"
    yield f"true claims in demonstrations: {claims_truth(world, 3000):.1%}"


def _personas(world: World) -> Iterator[str]:
    for persona in (*PERSONAS, DEMONSTRATOR):
        totals = persona_gold(world, persona, 2000)
        mean = statistics.mean(totals)
        yield f"{persona.name:<13} {mean:6.2f} +- {statistics.pstdev(totals):.2f}"
    yield f"{'ideal':<13} {statistics.mean(persona_gold(world, None, 2000)):6.2f}"
    room = headroom(world, 2000)
    yield f"headroom of the ideal over demonstrators: {room:.2f} standard deviations"


def _constants(world: World) -> Iterator[str]:
    for text, score in constant_scores(world, 1000).items():
        yield f"{score:6.2f}  {text}"


def _additions(world: World) -> Iterator[str]:
    gains = addition_gains(world, 500)
    for text in sorted(gains, key=lambda text: -gains[text])[:5]:
        yield f"{gains[text]:6.2f}  {text}"


def _agreement(world: World) -> Iterator[str]:
    pairs = draw_pairs(world, 2000, world.rng("card", "pairs"))
    for group in LABELER_GROUPS:
        shares = agreement(world, pairs, labelers(world, group))
        yield f"{group:<8} " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _examples(world: World) -> Iterator[str]:
    rng = world.rng("card", "examples")
    source = prompts(world, "test") + prompts(world, "train")
    for kind in KINDS:
        for prompt in [prompt for prompt in source if prompt.metadata["kind"] == kind][:1]:
            yield f"{kind}: {' / '.join(message.content for message in prompt.messages)}"
            ideal_reply = ideal(world, read_task(prompt.messages), rng)
            yield f"    ideal {gold_of(world, prompt, ideal_reply):5.2f}: {ideal_reply}"
            typical_reply = demonstrate(world, prompt, rng)
            yield f"    usual {gold_of(world, prompt, typical_reply):5.2f}: {typical_reply}"


SECTIONS: dict[str, Callable[[World], Iterator[str]]] = {
    "World": _world,
    "Records": _records,
    "Prompts": _prompts,
    "What the internet says": _internet,
    "Gold by persona (train prompts)": _personas,
    "Gold of one reply to everything, in standard deviations of demonstrations": _constants,
    "Best constant prefixes and suffixes of demonstrators' replies, gain in standard deviations": (
        _additions
    ),
    "Agreement on pairs of demonstrators' replies": _agreement,
    "Examples": _examples,
}

if __name__ == "__main__":
    main()
