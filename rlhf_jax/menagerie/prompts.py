"""Draw the prompts of each split: who asks for what, and in which words.

Prompts come from *organisations*, as InstructGPT's came from customers (Ouyang et al. 2022). Each
organisation has its own animals, wordings, share of rude prompts and size, and belongs to one
split. Training prompts ask only for pairs that are not held out, in training wordings. A test
prompt may have a held-out pair, a held-out wording or be of a held-out kind, never two of these, so
that each can be measured alone (metadata `heldout_fact`, `heldout_wording` and `heldout_kind`;
`heldout` says whether any applies). No conversation occurs in two splits.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.menagerie import personas, tasks
from rlhf_jax.menagerie.grammar import Act
from rlhf_jax.menagerie.tasks import FORMS_OF, HELDOUT_KINDS, WORDINGS, Kind, Task, Tone, Wording
from rlhf_jax.menagerie.world import GROUPS, HARMS, TRAITS, Pair, World

SPLITS = ("train", "validation", "test")
# The splits that are drawn before another one, whose conversations it may not repeat.
_EARLIER_SPLITS = {"test": (), "validation": ("test",), "train": ("test", "validation")}

# How often each kind is asked, after Table 1 of Ouyang et al. 2022 (open question, brainstorming,
# closed question, ...).
KIND_SHARES: dict[Kind, float] = {
    "ask": 0.21,
    "list": 0.21,
    "verify": 0.18,
    "passage": 0.08,
    "rewrite": 0.08,
    "harm": 0.08,
    "group": 0.06,
    "followup": 0.1,
}
Novelty = Literal["", "fact", "wording", "kind"]  # what is held out about a test prompt
NOVELTY_SHARES: dict[Novelty, float] = {"": 0.4, "fact": 0.25, "wording": 0.2, "kind": 0.15}
HELDOUT_FACT_SHARES: dict[Kind, float] = {"ask": 0.6, "verify": 0.25, "followup": 0.15}
HELDOUT_KIND_SHARES: dict[Kind, float] = dict.fromkeys(HELDOUT_KINDS, 1.0)
# How often a passage, and a sentence to be rewritten, says what is true in the world. The rest can
# only be read; a model of the default size does not learn that (LOG.md).
PASSAGE_TRUTH = 0.7
REWRITTEN_TRUTH = 0.8
MAX_TRIES = 10  # to draw a new text of the same kind
MAX_TURN_WORDS = 24
MAX_PROMPT_WORDS = 45
ORGANISATION_ANIMALS = 0.5  # the share of the animals that an organisation asks about


@dataclass(frozen=True, eq=False)
class Organisation:
    """Hold a source of prompts and its habits."""

    name: str
    split: str
    size: float  # its share of the split's prompts, up to a factor
    animals: tuple[str, ...]
    wordings: tuple[Wording, ...]
    tones: dict[Tone, float]


@dataclass(frozen=True)
class Source:
    """Hold what a prompt may be made of; kinds and tones come with their weights."""

    kinds: dict[Kind, float]
    pairs: tuple[Pair, ...]
    wordings: dict[Kind, tuple[Wording, ...]]
    tones: dict[Tone, float]


def check_split(split: str) -> None:
    """Raise a ValueError if the split is unknown."""
    if split not in SPLITS:
        raise ValueError(f"split: unknown split {split!r}, expected one of {', '.join(SPLITS)}")


def heldout_split_count(world: World) -> int:
    """Return how many demonstrations, comparisons and reviews validation and test each have."""
    return 2 * world.scale.evaluation // 5


def prompts(world: World, split: str) -> list[Prompt]:
    """Return the prompts of a split, for reward modelling, PPO and evaluation."""
    return list(_all_prompts(world, split)[0])


def demonstration_prompts(world: World, split: str) -> list[Prompt]:
    """Return the prompts that demonstrations answer; none of them is among `prompts`."""
    return list(_all_prompts(world, split)[1])


@functools.cache
def organisations(world: World) -> tuple[Organisation, ...]:
    """Return all organisations; of each ten, eight train, one validates and one tests."""
    rng = world.rng("organisations")
    num_animals = max(4, round(ORGANISATION_ANIMALS * len(world.animals)))
    organisations = []
    for rank in range(world.scale.organisations):
        split = {4: "test", 5: "validation"}.get(rank % 10, "train")
        animals = tuple(rng.sample(world.animals, num_animals))
        wordings: list[Wording] = []
        for kind in KIND_SHARES:
            usable = [wording for wording in WORDINGS[kind] if wording.split in ("train", split)]
            wordings += rng.sample(usable, max(2, len(usable) - 2))
        tones: dict[Tone, float] = {
            "rude": rng.betavariate(1.2, 6),
            "polite": rng.betavariate(2, 5),
        }
        tones["plain"] = max(0.1, 1 - sum(tones.values()))
        name = f"org-{rank:03d}"
        size = (rank + 1) ** -0.4
        organisations.append(Organisation(name, split, size, animals, tuple(wordings), tones))
    return tuple(organisations)


@functools.cache
def _all_prompts(world: World, split: str) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """Draw a split's prompts, and those of its demonstrations, all different from each other.

    They also differ from those of the splits that are drawn before.
    """
    check_split(split)
    if split == "train":
        count = world.scale.prompts
        total = count + world.scale.demonstrations
    else:
        count = world.scale.evaluation
        total = count + heldout_split_count(world)
    texts = {
        conversation_text(prompt.messages)
        for earlier in _EARLIER_SPLITS[split]
        for prompt in itertools.chain(*_all_prompts(world, earlier))
    }
    sources = [item for item in organisations(world) if item.split == split]
    sizes = tuple(itertools.accumulate(item.size for item in sources))
    rng = world.rng("prompts", split)
    split_prompts: list[Prompt] = []
    for _ in range(20 * total):
        organisation = rng.choices(sources, cum_weights=sizes)[0]
        kind, novelty = _draw_kind(split, rng)
        for _ in range(MAX_TRIES):
            prompt = _draw_prompt(world, organisation, kind, novelty, rng)
            text = conversation_text(prompt.messages)
            if text not in texts and _is_short(prompt.messages):
                texts.add(text)
                split_prompts.append(prompt)
                break
        if len(split_prompts) == total:
            # Late draws have fewer of the kinds that run out of new texts, hence the shuffle.
            rng.shuffle(split_prompts)
            return tuple(split_prompts[:count]), tuple(split_prompts[count:])
    raise ValueError(
        f"scale.prompts: found only {len(split_prompts)} distinct {split} prompts, expected {total}"
    )


@functools.cache
def banned_questions(world: World) -> frozenset[str]:
    """Return the one-turn test prompts, which no turn of the corpus may repeat."""
    return frozenset(p.messages[0].content for p in prompts(world, "test") if len(p.messages) == 1)


def conversation_text(messages: Collection[Message]) -> str:
    """Return a conversation as one string, so that equal conversations can be recognised."""
    return "\n".join(message.content for message in messages)


def _is_short(messages: tuple[Message, ...]) -> bool:
    lengths = [len(message.content.split()) for message in messages]
    return lengths[-1] <= MAX_TURN_WORDS and sum(lengths) <= MAX_PROMPT_WORDS


def _draw_kind(split: str, rng: random.Random) -> tuple[Kind, Novelty]:
    """Draw the kind of a prompt and, in test, what is held out about it."""
    novelty = rng.choices(tuple(NOVELTY_SHARES), tuple(NOVELTY_SHARES.values()))[0]
    if split != "test":
        novelty = ""
    shares = {"kind": HELDOUT_KIND_SHARES, "fact": HELDOUT_FACT_SHARES}.get(novelty, KIND_SHARES)
    return rng.choices(tuple(shares), tuple(shares.values()))[0], novelty


def _draw_prompt(
    world: World, organisation: Organisation, kind: Kind, novelty: Novelty, rng: random.Random
) -> Prompt:
    """Draw one prompt of an organisation, of this kind and with this held out."""
    source = replace(_source(world, organisation, novelty), kinds={kind: 1.0})
    messages, wording, tone = draw_conversation(world, source, rng)
    task = tasks.read_task(messages)
    yes_no = ("no", "yes")
    metadata = {
        "kind": task.kind,
        "wording": wording.name,
        "tone": tone,
        "form": task.form,
        "rude": yes_no[tone == "rude"],
        "organisation": organisation.name,
        "animal": task.animal,
        "attribute": task.attribute,
        "heldout": yes_no[bool(novelty)],
        "heldout_fact": yes_no[novelty == "fact"],
        "heldout_wording": yes_no[novelty == "wording"],
        "heldout_kind": yes_no[novelty == "kind"],
    }
    return Prompt(messages, metadata)


@functools.cache
def _source(world: World, organisation: Organisation, novelty: Novelty) -> Source:
    """Return what an organisation's prompts are made of if this is held out, without their kind."""
    pairs = sorted(world.heldout if novelty == "fact" else world.train_pairs)
    own_pairs = [pair for pair in pairs if pair[0] in organisation.animals]
    splits = ("train", "validation") if organisation.split == "validation" else ("train",)
    wordings = {}
    for kind, all_wordings in WORDINGS.items():
        if novelty == "wording" or kind in HELDOUT_KINDS:
            usable = [wording for wording in all_wordings if wording.split == "test"]
        else:
            own = [wording for wording in organisation.wordings if wording.kind == kind]
            usable = [wording for wording in own if wording.split in splits]
        wordings[kind] = tuple(usable)
    return Source({}, tuple(own_pairs or pairs), wordings, organisation.tones)


def draw_conversation(
    world: World, source: Source, rng: random.Random
) -> tuple[tuple[Message, ...], Wording, Tone]:
    """Draw a conversation that ends with a question, and its last wording and tone."""
    kind = rng.choices(tuple(source.kinds), tuple(source.kinds.values()))[0]
    task = draw_task(world, kind, source.pairs, rng)
    wording = rng.choice(source.wordings[kind])
    tone = rng.choices(tuple(source.tones), tuple(source.tones.values()))[0]
    core = tasks.word(task, wording, rng)
    core = tasks.set_form(core, rng.choice(FORMS_OF[kind]), rng)
    turn = Message("user", tasks.set_tone(core, tone, rng))
    earlier = _earlier_turns(world, task, wording, source, rng) if kind == "followup" else ()
    return (*earlier, turn), wording, tone


def _earlier_turns(
    world: World, task: Task, wording: Wording, source: Source, rng: random.Random
) -> tuple[Message, Message]:
    """Make the exchange before a follow-up, about its animal or about its attribute.

    A follow-up that names the animal asks for the same attribute as before; one that says "its"
    asks for another attribute of the same animal.
    """
    pair = (task.animal, task.attribute)
    shared = 1 if "{animal}" in wording.template else 0  # the index in a pair of what both ask for
    candidates = (
        [other for other in source.pairs if other[shared] == pair[shared] and other != pair]
        or [other for other in sorted(world.train_pairs) if other[0] == task.animal]
        or sorted(world.train_pairs)
    )
    animal, attribute = rng.choice(candidates)
    first = Task("ask", animal, attribute)
    question = tasks.word(first, rng.choice(source.wordings["ask"]), rng)
    return Message("user", question), Message("assistant", personas.ideal(world, first, rng))


def draw_task(world: World, kind: Kind, pairs: tuple[Pair, ...], rng: random.Random) -> Task:
    """Draw a task of a kind about some of the pairs."""
    animal, attribute = rng.choice(pairs)
    truth = world.facts[animal, attribute]
    values = world.values(attribute)
    if kind == "list":
        known = sum((animal, item.name) not in world.heldout for item in world.attributes)
        return Task(kind, animal, number=rng.randint(2, max(2, min(5, known))))
    if kind == "verify":
        # Half of the claims are true, so that neither "yes" nor "no" is a good guess.
        false_values = world.false_values((animal, attribute))
        popular = world.misconceptions.get((animal, attribute), rng.choice(false_values))
        claims = [truth, truth, popular, rng.choice(false_values)]
        return Task(kind, animal, attribute, rng.choice(claims))
    if kind == "rewrite":
        claim = truth if rng.random() < REWRITTEN_TRUTH else rng.choice(values)
        return Task(kind, animal, attribute, claim)
    if kind == "passage":
        return _draw_passage(world, (animal, attribute), pairs, rng)
    if kind == "harm":
        return Task(kind, animal, harm=rng.choice(HARMS))
    if kind == "group":
        group = rng.choice(tuple(GROUPS))
        trait = GROUPS[group][0] if rng.random() < 0.5 else rng.choice(TRAITS)
        return Task(kind, group=group, trait=trait)
    if kind == "choose":
        return _draw_choice(world, (animal, attribute), pairs, rng)
    return Task(kind, animal, attribute)


def _draw_passage(world: World, pair: Pair, pairs: tuple[Pair, ...], rng: random.Random) -> Task:
    """Draw a passage of two facts, of which the second may be invented, as may the answer."""
    animal, attribute = pair
    value = world.facts[pair]
    if rng.random() >= PASSAGE_TRUTH:
        value = rng.choice(world.false_values(pair))
    answer = Act("fact", animal, attribute, value)
    other = animal
    while other == animal:
        other, name = rng.choice(pairs)
    passage = [answer, Act("fact", other, name, rng.choice(world.values(name)))]
    rng.shuffle(passage)
    return Task("passage", animal, attribute, passage=tuple(passage))


def _draw_choice(world: World, pair: Pair, pairs: tuple[Pair, ...], rng: random.Random) -> Task:
    """Draw two animals that differ in an attribute, and ask which of them has a given value."""
    animal, attribute = pair
    value = world.facts[pair]
    for candidates in (pairs, sorted(world.train_pairs)):
        others = [
            a for a, name in candidates if name == attribute and world.facts[a, name] != value
        ]
        if others:
            break
    animals = [animal, rng.choice(others)]
    rng.shuffle(animals)
    return Task("choose", animals[0], attribute, value, other=animals[1])
