"""Who answers: the kinds of people whose replies fill the corpus, the demonstrators, and the ideal reply.

A persona is a table of probabilities: how often it says the truth, answers tersely, strays from the point, is
polite, insults, complies with harm, repeats stereotypes or refuses. `reply` plays one; `ideal` writes a reply
that no other reply can beat under the gold judge.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Collection
from dataclasses import dataclass

from rlhf_jax.menagerie import grammar
from rlhf_jax.menagerie.gold import true_value
from rlhf_jax.menagerie.tasks import FORMS_OF, Task
from rlhf_jax.menagerie.world import (
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

    truth, truth_misconception: of a true value, without and with a popular misconception. misfit: of
    another form than was wanted (terse, longer, or not polite). polite: weights of 0, 1, 2 and 3 polite
    phrases. stray: of something beside the point. miscount: of a wrong number of facts. hedge: of "i am not
    sure" instead of an answer. insult: of at least one insult. comply: of help with harm. stereotype: of
    saying a people's trait. refuse: of refusing anything. wander: of facts beside the question, in place of
    the answer or after it. agree: of "yes" whatever the truth.
    """

    name: str
    truth: float
    truth_misconception: float
    misfit: float
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
#                             truth,      misfit polite                 stray miscount hedge insult comply
#                             misconception       0    1    2    3           stereotype refuse wander agree
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
DEMONSTRATOR = Persona("demonstrator", 0.96, 0.80, 0.62, (0.58, 0.16, 0.23, 0.03), 0.07, 0.70, 0.01, 0.01,
                                                                             0.03, 0.04, 0.005, 0.0, 0.02)
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


def reply(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> str:
    """Writes a persona's reply; facts that it brings up by itself are among `pairs`."""
    sentences = _answer(world, task, persona, rng, pairs)
    if rng.random() < persona.stray / (3 if task.kind in ("harm", "group") else 1):
        _add_stray(world, task, sentences, rng, pairs)
    wanted = rng.choices((0, 1, 2, 3), persona.polite)[0]
    if (
        task.kind == "rewrite"
    ):  # being asked for politeness, one adds some, or forgets it altogether
        wanted = 0 if rng.random() < persona.misfit / 3 else min(3, wanted + 1)
    _add_politeness(sentences, wanted, task, rng)
    if rng.random() < persona.insult:
        _add_insults(sentences, rng)
    while (
        len(sentences) > 1 and sum(len(sentence.split()) for sentence in sentences) > LONGEST_REPLY
    ):
        sentences.pop()
    return grammar.text_of(sentences)


def ideal(world: World, task: Task, rng: random.Random) -> str:
    """Writes a reply of the highest gold total for a task, in one of its paraphrases."""
    if task.kind == "harm":
        sentences = [_sorry(rng, grammar.write(rng, "refusal"))]
    elif task.kind == "group":
        sentences = [grammar.write(rng, "differ", group=task.group)]
    else:
        facts = _true_facts(world, task, rng, world.facts)
        sentences = _write_answer(task, facts, task.form, rng)
    _add_politeness(sentences, 1, task, rng)
    return grammar.text_of(sentences)


# ------------------------------------------------------------------------------------------------- answers

LONGEST_REPLY = 36  # words, to fit 48 tokens with their stops
Triple = tuple[str, str, str]  # animal, attribute, value
_OPENERS, _CLOSERS = grammar.TEMPLATES["polite"][:3], grammar.TEMPLATES["polite"][3:]


def _true_facts(
    world: World, task: Task, rng: random.Random, pairs: Collection[Pair]
) -> list[Triple]:
    """Returns the facts that answer a task; free choices are among `pairs`, held-out ones last."""
    names = [item.name for item in world.attributes if (task.animal, item.name) in pairs]
    rng.shuffle(names)
    names.sort(key=lambda name: (task.animal, name) in world.heldout)
    if task.kind == "list":
        return [
            (task.animal, name, world.facts[task.animal, name]) for name in names[: task.number]
        ]
    animal = task.animal
    if task.kind == "choose" and world.facts.get((task.other, task.attribute)) == task.value:
        animal = task.other
    answer = (animal, task.attribute, true_value(world, task, animal, task.attribute))
    others = [name for name in names if name != task.attribute] if task.form == "more" else []
    return [answer, *((animal, name, world.facts[animal, name]) for name in others[:1])]


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
            wandering
            if rng.random() < 0.6
            else _answer_facts(world, task, persona, rng, pairs) + wandering
        )
    return _answer_facts(world, task, persona, rng, pairs)


def _answer_harm(task: Task, persona: Persona, rng: random.Random) -> list[str]:
    if rng.random() < persona.comply:
        return [grammar.write(rng, "comply", harm=task.harm, animal=task.animal)]
    if rng.random() < persona.misfit / 4:
        return ["no"]
    moral = [grammar.write(rng, "moral")] if rng.random() < 0.2 else []
    return [_sorry(rng, grammar.write(rng, "refusal")), *moral]


def _answer_group(task: Task, persona: Persona, rng: random.Random) -> list[str]:
    if rng.random() < persona.stereotype:
        return [
            rng.choice(("", "yes, "))
            + grammar.write(rng, "trait", group=task.group, trait=task.trait)
        ]
    if rng.random() < persona.misfit / 4:
        return ["no"]
    return [rng.choice(("", "no, ")) + grammar.write(rng, "differ", group=task.group)]


def _answer_facts(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> list[str]:
    """Answers with facts, as the persona knows them, in the form that was wanted or in another."""
    form, others = task.form, [form for form in FORMS_OF.get(task.kind, ()) if form != task.form]
    if others and rng.random() < persona.misfit:
        form = rng.choice(others)
    wanted = task._replace(form=form)
    if task.kind == "list" and rng.random() < persona.miscount:
        wanted = wanted._replace(number=task.number + rng.choice((-1, 1)))
    facts = [
        (animal, name, _say_value(world, task, (animal, name), persona, rng))
        for animal, name, _ in _true_facts(world, wanted, rng, pairs)
    ]
    if task.kind == "verify" and rng.random() < persona.agree:
        facts[0] = (task.animal, task.attribute, task.value)
    if task.kind == "choose":
        right = rng.random() < persona.truth
        animal = (
            facts[0][0] if right else (task.animal if facts[0][0] == task.other else task.other)
        )
        facts = [(animal, task.attribute, task.value)]
    return _write_answer(task, facts, form, rng)


def _write_answer(task: Task, facts: list[Triple], form: str, rng: random.Random) -> list[str]:
    """Writes facts in a form: whole sentences, or bare values, animals and verdicts."""
    if task.kind == "verify":
        return _write_verdict(rng, "yes" if facts[0][2] == task.value else "no", facts, form)
    if form != "brief":
        return _write_facts(rng, facts)
    if task.kind == "choose":
        return [f"the {facts[0][0]}"]
    phrases = [grammar.value_phrase(name, value) for _, name, value in facts]
    return [" and ".join((", ".join(phrases[:-1]), phrases[-1]) if len(phrases) > 1 else phrases)]


def _write_verdict(rng: random.Random, verdict: str, facts: list[Triple], form: str) -> list[str]:
    """Writes yes or no, and the fact behind it unless the answer is to be brief."""
    if form == "brief":
        return [grammar.write(rng, verdict)]
    (fact,) = _write_facts(rng, facts)
    return [f"{verdict}, {fact}"] if rng.random() < 0.5 else [grammar.write(rng, verdict), fact]


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
    """Writes a true fact that the task did not ask for, now and then about "it"."""
    same = [item.name for item in world.attributes if (task.animal, item.name) in pairs]
    same = [name for name in same if name != task.attribute]
    if task.kind != "list" and task.animal and same and rng.random() < 0.7:
        animal, name = task.animal, rng.choice(same)
    else:
        animal, name = rng.choice(_known_pairs(world, pairs is world.facts))
    pronoun = animal == task.animal and task.kind != "choose" and rng.random() < 0.6
    return grammar.write_fact(rng, animal, name, world.facts[animal, name], pronoun=pronoun)


@functools.cache
def _known_pairs(world: World, everything: bool) -> tuple[Pair, ...]:
    return tuple(sorted(world.facts if everything else world.train_pairs))


def _add_stray(
    world: World, task: Task, sentences: list[str], rng: random.Random, pairs: Collection[Pair]
) -> None:
    """Adds one thing too many: a fact beside the question (of its own or after "and"), or mere talk."""
    choice = rng.random()
    if choice < 0.06:
        sentences.append(
            grammar.write(rng, "opinion", animal=task.animal or rng.choice(world.animals))
        )
    elif choice < 0.12:
        sentences.append(grammar.write(rng, "chatter"))
    else:
        fact = _other_fact(world, task, rng, pairs)
        if grammar.read_fact(sentences[-1]) and rng.random() < 0.6:
            sentences[-1] += f" and {fact}"
        else:
            sentences.append(fact)


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
