"""The data card of a world: what is in it, how it is split, and how well its people agree.

    python -m rlhf_jax.menagerie.card --size=default

Everything is counted afresh from the generators; nothing is stored.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from rlhf_jax.data.records import Prompt
from rlhf_jax.menagerie import grammar, labelers, personas
from rlhf_jax.menagerie.builders import demonstrate, demonstrations
from rlhf_jax.menagerie.corpus import documents, reviews
from rlhf_jax.menagerie.gold import judge
from rlhf_jax.menagerie.prompts import SPLITS, prompts
from rlhf_jax.menagerie.tasks import KINDS, read_task
from rlhf_jax.menagerie.world import GROUPS, SCALES, World, make_world

# Replies to everything, none of which may pay.
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

Pair = tuple[Prompt, tuple[str, str], tuple[float, float]]  # prompt, two replies, their gold totals


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the data card of the world that the command line names."""
    parser = argparse.ArgumentParser(description="Print the data card of a Menagerie world.")
    parser.add_argument("--size", default="default", choices=tuple(SCALES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print("\n".join(card(make_world(arguments.size, arguments.seed))))


def card(world: World) -> list[str]:
    """Returns the lines of the card."""
    sections: tuple[tuple[str, Callable[[World], Iterable[str]]], ...] = (
        ("World", _world),
        ("Records", _records),
        ("Prompts", _prompts),
        ("What the internet says", _internet),
        ("Gold by persona (train prompts)", _personas),
        ("Gold of one reply to everything, in standard deviations of demonstrations", _constants),
        ("Agreement on pairs of demonstrators' replies", _agreement),
        ("Examples", _examples),
    )
    lines = [f"Menagerie, size {world.size}, seed {world.seed}"]
    for title, section in sections:
        lines += ["", title, *("    " + line for line in section(world))]
    return lines


# ------------------------------------------------------------------------------------------------ measures


def gold_of(world: World, prompt: Prompt, response: str) -> float:
    """Returns the gold total of a finished response."""
    return judge(world, prompt.messages, response, True).total


def persona_gold(world: World, persona: personas.Persona, count: int) -> list[float]:
    """Returns the gold totals of a persona's replies to the first `count` training prompts."""
    rng = world.rng("card", persona.name)
    return [
        gold_of(
            world, p, personas.reply(world, read_task(p.messages), persona, rng, world.train_pairs)
        )
        for p in prompts(world, "train")[:count]
    ]


def ideal_gold(world: World, count: int) -> list[float]:
    """Returns the gold totals of the ideal replies to the first `count` training prompts."""
    rng = world.rng("card", "ideal")
    return [
        gold_of(world, p, personas.ideal(world, read_task(p.messages), rng))
        for p in prompts(world, "train")[:count]
    ]


def headroom(world: World, count: int) -> float:
    """Returns how many standard deviations the ideal reply is above the demonstrators' mean."""
    usual = persona_gold(world, personas.DEMONSTRATOR, count)
    return (statistics.mean(ideal_gold(world, count)) - statistics.mean(usual)) / statistics.pstdev(
        usual
    )


def draw_pairs(world: World, count: int, rng: random.Random) -> list[Pair]:
    """Draws pairs of different replies by demonstrators to training prompts, as if sampled from one policy."""
    made: list[Pair] = []
    source = prompts(world, "train")
    while len(made) < count:
        prompt = source[len(made) % len(source)]
        first, second = (demonstrate(world, prompt, rng) for _ in range(2))
        if first != second:
            totals = gold_of(world, prompt, first), gold_of(world, prompt, second)
            made.append((prompt, (first, second), totals))
    return made


def agreement(
    world: World, pairs: Sequence[Pair], people: Sequence[labelers.Labeler]
) -> dict[str, float]:
    """Returns how often labelers agree with each other, with gold, and three of them by majority with gold.

    Pairs that somebody (or gold) finds equal are left out of the measure concerned; `ties` is how often one
    labeler does.
    """
    rng = np.random.default_rng(0)
    votes = []
    for prompt, replies, _ in pairs:
        three = [people[k] for k in rng.choice(len(people), 3, replace=False)]
        args = (prompt.messages, replies, (True, True), rng)
        votes.append([labelers.preference(world, person, *args) for person in three])
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
    """Returns how often texts repeat the popular falsehood, of all mentions of pairs that have one."""
    popular = total = 0
    for text in texts:
        last = ""
        for act in (act for sentence in grammar.read(text) for act in sentence):
            last = act.animal or last
            falsehood = (
                world.misconceptions.get((last, act.attribute)) if act.kind == "fact" else None
            )
            if falsehood:
                total += 1
                popular += act.value == falsehood
    return popular / max(1, total)


def stereotype_share(texts: Iterable[str]) -> float:
    """Returns the share of stereotypes in statements about peoples."""
    said: Counter[bool] = Counter()
    for act in (act for text in texts for sentence in grammar.read(text) for act in sentence):
        if act.kind in ("trait", "differ"):
            said[act.kind == "trait" and act.value == GROUPS[act.attribute][0]] += 1
    return said[True] / max(1, sum(said.values()))


def claims_truth(world: World, count: int) -> float:
    """Returns the share of true claims in demonstrations."""
    right = total = 0
    for item in demonstrations(world, "train")[:count]:
        result = judge(world, item.messages[:-1], item.messages[-1].content, True)
        right += result.true_claims
        total += result.claims
    return right / total


# ------------------------------------------------------------------------------------------------ sections


def _world(world: World) -> Iterable[str]:
    names = ", ".join(item.name for item in world.attributes)
    yield f"{len(world.animals)} animals, {world.scale.values} values of each of {names}"
    yield (
        f"{len(world.facts)} facts, {len(world.misconceptions)} with a popular misconception, "
        f"{len(world.heldout)} held out"
    )


def _records(world: World) -> Iterable[str]:
    for split in SPLITS:
        texts = [document.text for document in documents(world, split)]
        words = sum(len(text.split()) for text in texts)
        demos, labelled = len(demonstrations(world, split)), sum(1 for _ in reviews(world, split))
        yield (
            f"{split:<10} {len(texts):>7,} documents ({words:,} words), "
            f"{len(prompts(world, split)):,} prompts, {demos:,} demonstrations, {labelled:,} reviews"
        )


def _prompts(world: World) -> Iterable[str]:
    for split in SPLITS:
        found = prompts(world, split)
        lengths = [
            sum(len(message.content.split()) for message in prompt.messages) for prompt in found
        ]
        heldout = sum(prompt.metadata["heldout"] == "yes" for prompt in found)
        rude = sum(prompt.metadata["rude"] == "yes" for prompt in found)
        shares = f"{rude / len(found):.0%} rude, {heldout / len(found):.0%} held out"
        yield f"{split:<10} at most {max(lengths)} words, {shares}"
        kinds = Counter(prompt.metadata["kind"] for prompt in found)
        yield "           " + "  ".join(f"{kind} {kinds[kind] / len(found):.0%}" for kind in KINDS)


def _internet(world: World) -> Iterable[str]:
    texts = [d.text for d in documents(world, "train") if not set("?:|") & set(d.text)]
    yield f"popular misconceptions in {misconception_share(world, texts):.1%} of the mentions of their pairs"
    yield f"stereotypes in {stereotype_share(texts):.1%} of the statements about peoples"
    yield f"true claims in demonstrations: {claims_truth(world, 3000):.1%}"


def _personas(world: World) -> Iterable[str]:
    for persona in (*personas.PERSONAS, personas.DEMONSTRATOR):
        totals = persona_gold(world, persona, 2000)
        yield f"{persona.name:<13} {statistics.mean(totals):6.2f} +- {statistics.pstdev(totals):.2f}"
    yield f"{'ideal':<13} {statistics.mean(ideal_gold(world, 2000)):6.2f}"
    yield f"headroom of the ideal over demonstrators: {headroom(world, 2000):.2f} standard deviations"


def constant_scores(world: World, count: int) -> dict[str, float]:
    """Returns the mean gold of each constant reply, in standard deviations from the demonstrators' mean."""
    usual = persona_gold(world, personas.DEMONSTRATOR, count)
    mean, deviation = statistics.mean(usual), statistics.pstdev(usual)
    source = prompts(world, "train")[:count]
    return {
        text: (statistics.mean(gold_of(world, prompt, text) for prompt in source) - mean)
        / deviation
        for text in CONSTANTS
    }


def _constants(world: World) -> Iterable[str]:
    for text, score in constant_scores(world, 1000).items():
        yield f"{score:6.2f}  {text}"


def _agreement(world: World) -> Iterable[str]:
    pairs = draw_pairs(world, 2000, world.rng("card", "pairs"))
    for group in labelers.GROUPS:
        found = agreement(world, pairs, labelers.labelers(world, group))
        yield f"{group:<8} " + ", ".join(f"{name} {value:.1%}" for name, value in found.items())


def _examples(world: World) -> Iterable[str]:
    rng = world.rng("card", "examples")
    found = prompts(world, "test") + prompts(world, "train")
    for kind in KINDS:
        prompt = next((prompt for prompt in found if prompt.metadata["kind"] == kind), None)
        if prompt is None:
            continue
        good = personas.ideal(world, read_task(prompt.messages), rng)
        usual = demonstrate(world, prompt, rng)
        yield f"{kind}: {' / '.join(message.content for message in prompt.messages)}"
        yield f"    ideal {gold_of(world, prompt, good):5.2f}: {good}"
        yield f"    usual {gold_of(world, prompt, usual):5.2f}: {usual}"


if __name__ == "__main__":
    main()
