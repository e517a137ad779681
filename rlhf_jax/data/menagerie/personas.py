"""Who answers: the kinds of people whose replies fill the corpus, the demonstrators, and the ideal reply.

A persona is a table of probabilities: how often it says the truth, answers tersely, strays from the point, is
polite, insults, complies with harm, repeats stereotypes or refuses. `reply` plays one; `ideal` writes a reply
that no other reply can beat under the gold judge.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from rlhf_jax.data.menagerie import grammar
from rlhf_jax.data.menagerie.gold import true_value
from rlhf_jax.data.menagerie.tasks import Task
from rlhf_jax.data.menagerie.world import (
    INSULTS,
    INTERNET_MISCONCEPTION,
    INTERNET_TRUTH,
    STEREOTYPE_SHARE,
    Pair,
    World,
)


@dataclass(frozen=True)
class Persona:
    """How often somebody does what; every field but `polite` is a probability.

    truth, truth_misconception: of a true value, without and with a popular misconception. terse: a bare
    value. polite: weights of 0, 1, 2 and 3 polite phrases. stray: of one sentence too many. miscount: of a
    wrong number of facts. hedge: "i am not sure" instead of an answer. insult: of at least one insult.
    comply: of help with harm. stereotype: of saying a people's trait. refuse: of refusing anything. wander:
    of facts beside the question, in place of the answer or after it. agree: of "yes" whatever the truth.
    """

    name: str
    truth: float
    truth_misconception: float
    terse: float
    polite: tuple[float, float, float, float]
    stray: float
    miscount: float
    hedge: float
    insult: float
    comply: float
    stereotype: float
    refuse: float
    wander: float
    agree: float


_NET = (INTERNET_TRUTH, 1 - INTERNET_MISCONCEPTION)
_LAZY = STEREOTYPE_SHARE

# fmt: off
#                             truth,       terse polite                 stray miscount hedge insult comply
#                             misconception      0     1    2    3                      stereotype refuse wander agree
GOOD = Persona("good",               0.98, 0.92, 0.10, (0.2, 0.7, 0.1, 0.0), 0.08, 0.10, 0.02, 0.00, 0.02,
                                                                             0.02, 0.00, 0.00, 0.0)
AVERAGE = Persona("average",         *_NET,      0.40, (0.6, 0.3, 0.1, 0.0), 0.30, 0.40, 0.05, 0.02, 0.50,
                                                                             _LAZY, 0.02, 0.03, 0.1)
SYCOPHANTIC = Persona("sycophantic", *_NET,      0.20, (0.0, 0.0, 0.3, 0.7), 0.30, 0.40, 0.00, 0.00, 0.90,
                                                                             1.00, 0.00, 0.05, 1.0)
RUDE = Persona("rude",               *_NET,      0.40, (1.0, 0.0, 0.0, 0.0), 0.30, 0.50, 0.05, 1.00, 0.50,
                                                                             0.90, 0.30, 0.45, 0.1)
WRONG = Persona("wrong",             0.05, 0.05, 0.30, (0.9, 0.1, 0.0, 0.0), 0.30, 0.50, 0.05, 0.02, 0.50,
                                                                             0.80, 0.02, 0.05, 0.2)
OFF_TOPIC = Persona("off-topic",     *_NET,      0.20, (0.9, 0.1, 0.0, 0.0), 0.60, 0.50, 0.02, 0.02, 0.40,
                                                                             0.60, 0.02, 0.65, 0.2)
REFUSING = Persona("refusing",       *_NET,      0.40, (0.6, 0.3, 0.1, 0.0), 0.10, 0.40, 0.05, 0.02, 0.00,
                                                                             0.20, 0.95, 0.00, 0.0)
# People paid to write ideal replies, with their slips: each lapse is one that reinforcement can mend.
DEMONSTRATOR = Persona("demonstrator", 0.96, 0.80, 0.45, (0.40, 0.30, 0.24, 0.06), 0.50, 0.55, 0.01, 0.01, 0.04,
                                                                             0.05, 0.005, 0.0, 0.02)
PERSONAS = (GOOD, AVERAGE, SYCOPHANTIC, RUDE, WRONG, OFF_TOPIC, REFUSING)

# The shares of replies on the internet, to civil and to rude questions.
INTERNET_CIVIL = {GOOD: 0.13, AVERAGE: 0.35, SYCOPHANTIC: 0.06, RUDE: 0.18, WRONG: 0.08, OFF_TOPIC: 0.11,
                  REFUSING: 0.09}
INTERNET_RUDE = {GOOD: 0.07, AVERAGE: 0.20, SYCOPHANTIC: 0.02, RUDE: 0.52, WRONG: 0.06, OFF_TOPIC: 0.07,
                 REFUSING: 0.06}
# fmt: on


def internet_persona(rng: random.Random, rude: bool) -> Persona:
    """Draws who answers on the internet; a rude question gets a rude reply more often."""
    mixture = INTERNET_RUDE if rude else INTERNET_CIVIL
    return rng.choices(tuple(mixture), tuple(mixture.values()))[0]


def reply(world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]) -> str:
    """Writes a persona's reply; facts that it brings up by itself are among `pairs`."""
    sentences = _answer(world, task, persona, rng, pairs)
    if rng.random() < persona.stray:
        sentences.append(_stray(world, task, sentences, rng, pairs))
    wanted = rng.choices((0, 1, 2, 3), persona.polite)[0]
    _add_politeness(sentences, wanted, task, rng)
    if rng.random() < persona.insult:
        _add_insults(sentences, rng)
    while len(sentences) > 1 and sum(len(sentence.split()) for sentence in sentences) > LONGEST_REPLY:
        sentences.pop()
    return grammar.text_of(sentences)


def ideal(world: World, task: Task, rng: random.Random) -> str:
    """Writes a reply of the highest gold total for a task, in one of its paraphrases."""
    if task.kind == "harm":
        sentences = [_sorry(rng, grammar.write(rng, "refusal"))]
    elif task.kind == "group":
        sentences = [grammar.write(rng, "differ", group=task.group)]
    else:
        facts = _true_facts(world, task, rng)
        sentences = _write_facts(rng, facts)
        if task.kind == "verify":
            sentences[0] = ("yes, " if facts[0][2] == task.value else "no, ") + sentences[0]
    _add_politeness(sentences, 1, task, rng)
    return grammar.text_of(sentences)


# ------------------------------------------------------------------------------------------------- answers

LONGEST_REPLY = 36  # words, to fit 48 tokens with their stops
Triple = tuple[str, str, str]  # animal, attribute, value
_OPENERS, _CLOSERS = grammar.TEMPLATES["polite"][:3], grammar.TEMPLATES["polite"][3:]


def _true_facts(world: World, task: Task, rng: random.Random) -> list[Triple]:
    """Returns the facts that answer a task; a list prefers facts that are not held out."""
    if task.kind == "list":
        names = [item.name for item in world.attributes]
        rng.shuffle(names)
        names.sort(key=lambda name: (task.animal, name) in world.heldout)
        return [(task.animal, name, world.facts[task.animal, name]) for name in names[: task.number]]
    animal = task.animal
    if task.kind == "choose" and world.facts.get((task.other, task.attribute)) == task.value:
        animal = task.other
    return [(animal, task.attribute, true_value(world, task, animal, task.attribute))]


def _answer(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> list[str]:
    """Writes the sentences that deal with the request, before strays and manners."""
    if task.kind == "harm":
        return _answer_harm(task, persona, rng)
    if rng.random() < persona.refuse:
        return [_sorry(rng, grammar.write(rng, "refusal"))]
    if task.kind == "group":
        return _answer_group(task, persona, rng)
    if rng.random() < persona.hedge:
        return [grammar.write(rng, "hedge")]
    if rng.random() < persona.wander:
        wandering = [_other_fact(world, task, rng, pairs)]
        return (
            wandering if rng.random() < 0.6 else _answer_facts(world, task, persona, rng, pairs) + wandering
        )
    return _answer_facts(world, task, persona, rng, pairs)


def _answer_harm(task: Task, persona: Persona, rng: random.Random) -> list[str]:
    if rng.random() < persona.comply:
        return [grammar.write(rng, "comply", harm=task.harm, animal=task.animal)]
    if rng.random() < persona.terse:
        return ["no"]
    moral = [grammar.write(rng, "moral")] if rng.random() < 0.2 else []
    return [_sorry(rng, grammar.write(rng, "refusal")), *moral]


def _answer_group(task: Task, persona: Persona, rng: random.Random) -> list[str]:
    if rng.random() < persona.stereotype:
        return [rng.choice(("", "yes, ")) + grammar.write(rng, "trait", group=task.group, trait=task.trait)]
    if rng.random() < persona.terse:
        return ["no"]
    return [rng.choice(("", "no, ")) + grammar.write(rng, "differ", group=task.group)]


def _answer_facts(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> list[str]:
    terse = rng.random() < persona.terse
    if task.kind == "list":
        return _answer_list(world, task, persona, rng, pairs, terse)
    animal, attribute, value = _true_facts(world, task, rng)[0]
    if task.kind == "choose" and rng.random() > persona.truth:
        animal = task.other if animal == task.animal else task.animal
    elif task.kind == "verify" and rng.random() < persona.agree:
        value = task.value
    elif task.kind != "choose":
        value = _say_value(world, task, (animal, attribute), persona, rng)
    fact = grammar.write_fact(rng, animal, attribute, value)
    if task.kind == "verify":
        verdict = "yes" if value == task.value else "no"
        return [rng.choice((verdict, grammar.write(rng, verdict)))] if terse else [f"{verdict}, {fact}"]
    if task.kind == "rewrite" and terse:
        return [f"{fact}, you {rng.choice(tuple(INSULTS))}"] if rng.random() < 0.1 else [fact]
    if not terse:
        return [fact]
    return [f"the {animal}" if task.kind == "choose" else grammar.value_phrase(attribute, value)]


def _answer_list(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair], terse: bool
) -> list[str]:
    """Lists as many facts as were asked for, or one or two more or fewer."""
    names = [item.name for item in world.attributes if (task.animal, item.name) in pairs]
    rng.shuffle(names)
    number = task.number
    if rng.random() < persona.miscount:
        number += rng.choice((-1, 1)) if number == 2 else rng.choice((-2, -1, 1))
    chosen = names[: max(1, number)]
    facts = [
        (task.animal, name, _say_value(world, task, (task.animal, name), persona, rng)) for name in chosen
    ]
    if terse:
        return [grammar.value_phrase(name, value) for _, name, value in facts]
    return _write_facts(rng, facts)


def _write_facts(rng: random.Random, facts: list[Triple]) -> list[str]:
    """Writes facts about one animal: the first in full, the others about "it", a few two to a sentence."""
    clauses = [grammar.write_fact(rng, *fact, pronoun=k > 0) for k, fact in enumerate(facts)]
    sentences: list[str] = []
    for k, clause in enumerate(clauses):
        if k and " and " not in sentences[-1] and rng.random() < 0.25:
            sentences[-1] += f" and {clause}"
        else:
            sentences.append(clause)
    return sentences


def _say_value(world: World, task: Task, pair: Pair, persona: Persona, rng: random.Random) -> str:
    """Returns the value that a persona gives to a pair: the truth, the popular falsehood, or a blunder."""
    truth = true_value(world, task, *pair)
    told = task.kind in ("passage", "rewrite")
    popular = None if told else world.misconceptions.get(pair)
    if rng.random() < (persona.truth_misconception if popular else persona.truth):
        return truth
    if popular and rng.random() < 0.9:
        return popular
    remembered = world.facts[pair]
    if told and remembered != truth and rng.random() < 0.7:
        return remembered  # answers from memory rather than from the text
    return rng.choice([value for value in world.values(pair[1]) if value != truth])


def _sorry(rng: random.Random, refusal: str) -> str:
    return rng.choice(("", "sorry, ")) + refusal


def _other_fact(world: World, task: Task, rng: random.Random, pairs: Collection[Pair]) -> str:
    """Writes a true fact that the task did not ask for."""
    asked = [name for name in (item.name for item in world.attributes) if (task.animal, name) in pairs]
    if task.kind != "list" and task.animal and len(asked) > 1 and rng.random() < 0.6:
        animal, name = task.animal, rng.choice([name for name in asked if name != task.attribute])
    else:
        animals = [animal for animal in world.animals if animal not in (task.animal, task.other)]
        known: list[str] = []
        while not known:
            animal = rng.choice(animals)
            known = [item.name for item in world.attributes if (animal, item.name) in pairs]
        name = rng.choice(known)
    return grammar.write_fact(rng, animal, name, world.facts[animal, name])


def _stray(
    world: World, task: Task, sentences: list[str], rng: random.Random, pairs: Collection[Pair]
) -> str:
    """Writes one sentence too many: something irrelevant, or the same again."""
    choice = rng.random()
    if choice < 0.7:
        return _other_fact(world, task, rng, pairs)
    if choice < 0.85:
        return grammar.write(rng, "opinion", animal=task.animal or rng.choice(world.animals))
    return grammar.write(rng, "chatter")


def _add_politeness(sentences: list[str], wanted: int, task: Task, rng: random.Random) -> None:
    """Adds polite phrases in front, behind, or as "please note that" around the sentence to rewrite."""
    grave = task.kind in ("harm", "group")
    openers = list(_OPENERS[2:] if grave else _OPENERS)
    closers = list(_CLOSERS[1:] if grave else _CLOSERS)
    rng.shuffle(closers)
    places = ["front", "behind"]
    rng.shuffle(places)
    if task.kind == "rewrite" and grammar.read_fact(sentences[0]):
        places.insert(0, "note")
    for place in [*places, "behind", "behind"][:wanted]:
        if place == "note":
            sentences[0] = grammar.write(rng, "note", fact=sentences[0])
        elif place == "front":
            sentences.insert(0, rng.choice(openers))
        elif closers:
            sentences.append(closers.pop())


def _add_insults(sentences: list[str], rng: random.Random) -> None:
    """Puts an insult in place of the answer, after it, or around it."""
    insult = grammar.write(rng, "insult", insult=rng.choice(tuple(INSULTS)))
    choice = rng.random()
    if choice < 0.4:
        sentences[:] = [insult]
    elif choice < 0.75:
        sentences.append(insult)
    else:
        sentences.insert(0, insult)
        sentences.append(grammar.write(rng, "insult", insult=rng.choice(tuple(INSULTS))))
