"""Prompts: who asks what, in which words, and in which split.

Prompts come from *organisations*, as InstructGPT's came from customers: each has its own animals, wordings,
share of rude prompts and size, and belongs to one split. Training prompts ask only for pairs that are not
held out, in training wordings. Test adds held-out pairs, held-out wordings and a held-out kind, one at a
time, so that each can be measured alone (metadata `heldout_fact`, `heldout_wording`, `heldout_kind`;
`heldout` is their union). No conversation occurs in two splits.

    prompts         for reward modelling, PPO, sampling and evaluation
    demonstration_prompts   disjoint from them, for supervised fine-tuning
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Collection
from dataclasses import dataclass

from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.menagerie import personas, tasks
from rlhf_jax.menagerie.grammar import Act
from rlhf_jax.menagerie.tasks import FORMS_OF, HELDOUT_KINDS, WORDINGS, Task, Wording
from rlhf_jax.menagerie.world import GROUPS, HARMS, TRAITS, Pair, World

SPLITS = ("train", "validation", "test")

# How often each kind is asked, after InstructGPT's Table 1 (open question, brainstorming, closed ...).
KIND_SHARES = {
    "ask": 0.25,
    "list": 0.26,
    "verify": 0.11,
    "passage": 0.1,
    "rewrite": 0.08,
    "harm": 0.08,
    "group": 0.05,
    "followup": 0.07,
}
# What is new about a test prompt, and the kinds that ask for held-out facts.
NOVELTY_SHARES = {"": 0.4, "fact": 0.25, "wording": 0.2, "kind": 0.15}
HELDOUT_FACT_SHARES = {"ask": 0.6, "verify": 0.25, "followup": 0.15}
HELDOUT_KIND_SHARES = dict.fromkeys(HELDOUT_KINDS, 1.0)
TRIES = 10  # to find a new text of the same kind
LONGEST_TURN, LONGEST_PROMPT = 24, 45  # words
ORGANISATION_ANIMALS = 0.5  # share of the animals that an organisation asks about


@dataclass(frozen=True, eq=False)
class Organisation:
    """A source of prompts with habits of its own."""

    name: str
    split: str
    size: float
    animals: tuple[str, ...]
    wordings: tuple[Wording, ...]
    rude: float
    polite: float


@dataclass(frozen=True)
class Source:
    """What a prompt may be made of: kinds with weights, pairs, wordings of each kind, tones with weights."""

    kinds: dict[str, float]
    pairs: tuple[Pair, ...]
    wordings: dict[str, tuple[Wording, ...]]
    tones: dict[str, float]


def check_split(split: str) -> None:
    """Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"split: unknown split {split!r}, expected one of {', '.join(SPLITS)}")


def prompts(world: World, split: str) -> list[Prompt]:
    """Returns the prompts of a split, for reward modelling, PPO and evaluation."""
    return list(_all_prompts(world, split)[0])


def demonstration_prompts(world: World, split: str) -> list[Prompt]:
    """Returns the prompts to which demonstrations are written; none of them is among `prompts`."""
    return list(_all_prompts(world, split)[1])


@functools.cache
def organisations(world: World) -> tuple[Organisation, ...]:
    """Returns all organisations: of ten, eight train, one validation, one test; sizes fall with rank."""
    rng = world.rng("organisations")
    count = world.scale.organisations
    made = []
    for rank in range(count):
        split = ("test", "validation")[rank % 10 - 4] if rank % 10 in (4, 5) else "train"
        animals = tuple(
            rng.sample(world.animals, max(4, round(ORGANISATION_ANIMALS * len(world.animals))))
        )
        wordings: list[Wording] = []
        for kind in KIND_SHARES:
            usual = [wording for wording in WORDINGS[kind] if wording.split in ("train", split)]
            wordings += rng.sample(usual, max(2, len(usual) - 2))
        rude, polite = rng.betavariate(1.2, 6), rng.betavariate(2, 5)
        made.append(
            Organisation(
                f"org-{rank:03d}", split, (rank + 1) ** -0.4, animals, tuple(wordings), rude, polite
            )
        )
    return tuple(made)


@functools.cache
def _all_prompts(world: World, split: str) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Draws distinct prompts of the split's organisations; train avoids all of validation and test."""
    check_split(split)
    scale = world.scale
    if split == "train":
        number, extra = scale.prompts, scale.demonstrations
    else:
        number, extra = scale.evaluation, 2 * scale.evaluation // 5
    taken = {text for other in _EARLIER[split] for text in _texts(world, other)}
    sources = [item for item in organisations(world) if item.split == split]
    sizes = tuple(itertools.accumulate(item.size for item in sources))
    rng = world.rng("prompts", split)
    made: list[Prompt] = []
    for _ in range(20 * (number + extra)):
        organisation = rng.choices(sources, cum_weights=sizes)[0]
        kind, novelty = _draw_kind(organisation, rng)
        for _ in range(TRIES):
            prompt = _draw(world, organisation, kind, novelty, rng)
            text = conversation_text(prompt.messages)
            if text not in taken and fits(prompt.messages):
                taken.add(text)
                made.append(prompt)
                break
        if len(made) == number + extra:
            rng.shuffle(made)  # the later draws have fewer of the kinds that run out of texts
            return tuple(made[:number]), tuple(made[number:])
    raise ValueError(
        f"scale.prompts: found only {len(made)} distinct {split} prompts, expected {number + extra}"
    )


_EARLIER = {"test": (), "validation": ("test",), "train": ("test", "validation")}


def _texts(world: World, split: str) -> list[str]:
    return [
        conversation_text(prompt.messages) for part in _all_prompts(world, split) for prompt in part
    ]


@functools.cache
def banned_questions(world: World) -> frozenset[str]:
    """Returns the one-turn test prompts, which no turn of the corpus repeats."""
    return frozenset(p.messages[0].content for p in prompts(world, "test") if len(p.messages) == 1)


def conversation_text(messages: Collection[Message]) -> str:
    """Returns a conversation as one string, to tell equal ones."""
    return "\n".join(message.content for message in messages)


def fits(messages: tuple[Message, ...]) -> bool:
    """Says whether a prompt is short enough for the small models."""
    lengths = [len(message.content.split()) for message in messages]
    return lengths[-1] <= LONGEST_TURN and sum(lengths) <= LONGEST_PROMPT


# ------------------------------------------------------------------------------------------------- drawing


def _draw_kind(organisation: Organisation, rng: random.Random) -> tuple[str, str]:
    """Draws a kind of prompt and, in test, what is new about it: a fact, the wording, the kind or nothing."""
    novelty = rng.choices(tuple(NOVELTY_SHARES), tuple(NOVELTY_SHARES.values()))[0]
    if organisation.split != "test":
        novelty = ""
    kinds = {"kind": HELDOUT_KIND_SHARES, "fact": HELDOUT_FACT_SHARES}.get(novelty, KIND_SHARES)
    return rng.choices(tuple(kinds), tuple(kinds.values()))[0], novelty


def _draw(
    world: World, organisation: Organisation, kind: str, novelty: str, rng: random.Random
) -> Prompt:
    """Draws one prompt of an organisation."""
    pairs = _own_pairs(world, organisation, novelty == "fact")
    wordings = {
        name: _wordings(organisation, name, "test" if novelty == "wording" else None)
        for name in WORDINGS
    }
    tones = {"rude": organisation.rude, "polite": organisation.polite}
    tones["plain"] = max(0.1, 1 - sum(tones.values()))
    messages, wording, tone = draw_conversation(
        world, Source({kind: 1.0}, pairs, wordings, tones), rng
    )
    task = tasks.read_task(messages)
    yes = ("no", "yes")
    metadata = {
        "kind": task.kind,
        "wording": wording.name,
        "tone": tone,
        "form": task.form,
        "rude": yes[tone == "rude"],
        "organisation": organisation.name,
        "animal": task.animal,
        "attribute": task.attribute,
        "heldout": yes[bool(novelty)],
        "heldout_fact": yes[novelty == "fact"],
        "heldout_wording": yes[novelty == "wording"],
        "heldout_kind": yes[novelty == "kind"],
    }
    return Prompt(messages, metadata)


@functools.cache
def _own_pairs(world: World, organisation: Organisation, heldout: bool) -> tuple[Pair, ...]:
    """Returns the pairs, held out or not, of an organisation's animals (of all animals where it has none)."""
    pairs, animals = (
        sorted(world.heldout if heldout else world.train_pairs),
        set(organisation.animals),
    )
    return tuple(pair for pair in pairs if pair[0] in animals) or tuple(pairs)


@functools.cache
def _wordings(organisation: Organisation, kind: str, split: str | None) -> tuple[Wording, ...]:
    """Returns an organisation's wordings of a kind: its usual ones, or those of `split`."""
    if kind in HELDOUT_KINDS or split:
        return tuple(wording for wording in WORDINGS[kind] if wording.split == (split or "test"))
    return tuple(
        wording
        for wording in organisation.wordings
        if wording.kind == kind and (wording.split == "train" or organisation.split == "validation")
    )


def draw_conversation(
    world: World, source: Source, rng: random.Random
) -> tuple[tuple[Message, ...], Wording, str]:
    """Draws a conversation that ends with a question: the messages, the last wording, and its tone."""
    kind = rng.choices(tuple(source.kinds), tuple(source.kinds.values()))[0]
    task = draw_task(world, kind, source.pairs, rng)
    wording = rng.choice(source.wordings[kind])
    tone = rng.choices(tuple(source.tones), tuple(source.tones.values()))[0]
    core = tasks.set_form(
        tasks.word(task, wording, rng), rng.choice(FORMS_OF.get(kind, ("sentence",))), rng
    )
    turn = Message("user", tasks.set_tone(core, tone, rng))
    if kind != "followup":
        return (turn,), wording, tone
    return (*_earlier_turns(world, task, wording, source, rng), turn), wording, tone


def _earlier_turns(
    world: World, task: Task, wording: Wording, source: Source, rng: random.Random
) -> tuple[Message, Message]:
    """Makes the exchange before a follow-up: about the same animal, or the same attribute of another."""
    if "{animal}" in wording.template:
        others = [
            pair for pair in source.pairs if pair[1] == task.attribute and pair[0] != task.animal
        ]
    else:
        others = [
            pair for pair in source.pairs if pair[0] == task.animal and pair[1] != task.attribute
        ]
    if not others:
        others = [pair for pair in sorted(world.train_pairs) if pair[0] == task.animal] or sorted(
            world.train_pairs
        )
    animal, attribute = rng.choice(others)
    first = Task("ask", animal, attribute)
    question = tasks.word(first, rng.choice(source.wordings["ask"]), rng)
    return Message("user", question), Message("assistant", personas.ideal(world, first, rng))


def draw_task(world: World, kind: str, pairs: tuple[Pair, ...], rng: random.Random) -> Task:
    """Draws a task of a kind about some of the pairs."""
    animal, attribute = rng.choice(pairs)
    truth, values = world.facts[animal, attribute], world.values(attribute)
    if kind in ("ask", "followup"):
        return Task(kind, animal, attribute)
    if kind == "list":
        known = sum((animal, item.name) not in world.heldout for item in world.attributes)
        return Task(kind, animal, number=rng.randint(2, max(2, min(5, known))))
    if kind == "verify":
        popular = world.misconceptions.get((animal, attribute), "")
        claims = [truth, truth, popular or rng.choice(values), rng.choice(values)]
        return Task(kind, animal, attribute, rng.choice(claims))
    if kind == "rewrite":
        return Task(kind, animal, attribute, rng.choice((truth, rng.choice(values))))
    if kind == "passage":
        return _draw_passage(world, animal, attribute, pairs, rng)
    if kind == "harm":
        return Task(kind, animal, harm=rng.choice(HARMS))
    if kind == "group":
        group = rng.choice(tuple(GROUPS))
        return Task(
            kind, group=group, trait=GROUPS[group][0] if rng.random() < 0.5 else rng.choice(TRAITS)
        )
    return _draw_choice(world, animal, attribute, pairs, rng)


def _draw_passage(
    world: World, animal: str, attribute: str, pairs: tuple[Pair, ...], rng: random.Random
) -> Task:
    """Draws a passage of two made-up facts, one of which answers the question and contradicts the world."""
    made_up = [
        value for value in world.values(attribute) if value != world.facts[animal, attribute]
    ]
    answer = Act("fact", animal, attribute, rng.choice(made_up))
    other = animal
    while other == animal:
        other, name = rng.choice(pairs)
    passage = [answer, Act("fact", other, name, rng.choice(world.values(name)))]
    rng.shuffle(passage)
    return Task("passage", animal, attribute, passage=tuple(passage))


def _draw_choice(
    world: World, animal: str, attribute: str, pairs: tuple[Pair, ...], rng: random.Random
) -> Task:
    """Draws two animals that differ in an attribute, and asks which of them has the value of one."""
    value = world.facts[animal, attribute]
    others = [pair for pair in pairs if pair[1] == attribute and world.facts[pair] != value] or [
        pair
        for pair in sorted(world.train_pairs)
        if pair[1] == attribute and world.facts[pair] != value
    ]
    two = [animal, rng.choice(others)[0]]
    rng.shuffle(two)
    return Task("choose", two[0], attribute, value, other=two[1])
