"""Write the replies of simulated people, from helpful to rude, and the ideal reply to a task.

A persona is a kind of person, given as a table of probabilities: how often it tells the truth,
answers briefly, strays from the point, is polite, insults, helps with harm, repeats a stereotype
or refuses. Seven personas write the replies in the corpus; the demonstrator writes demonstrations.
`reply` writes as a persona would; `ideal` writes a reply that no other reply beats in gold.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from rlhf_jax.menagerie import grammar
from rlhf_jax.menagerie.gold import most_polite, true_value
from rlhf_jax.menagerie.tasks import FORMS_OF, Form, Task
from rlhf_jax.menagerie.world import (
    INSULTS,
    INTERNET_MISCONCEPTION,
    INTERNET_TRUTH,
    STEREOTYPE_SHARE,
    Pair,
    World,
)

MAX_REPLY_WORDS = 36  # With their full stops, so many words fit 48 tokens.
_OPENERS = grammar.TEMPLATES["polite"][:3]
_CLOSERS = grammar.TEMPLATES["polite"][3:]

Fact = tuple[str, str, str]  # (animal, attribute, value)


@dataclass(frozen=True)
class Persona:
    """Hold how often one kind of person does what; every number is a probability."""

    name: str
    truth: float  # of a true value for a pair without a popular misconception
    truth_misconception: float  # of a true value for a pair with one
    misfit: float  # of another form than the one asked for, or of forgetting to be polite
    manners: float  # of as many polite phrases as the prompt calls for, whatever the next four say
    polite_0: float  # of no polite phrase
    polite_1: float  # of one polite phrase
    polite_2: float
    polite_3: float
    stray: float  # of adding something beside the point
    miscount: float  # of one fact too many or too few in a list
    hedge: float  # of "i am not sure" instead of an answer
    insult: float  # of at least one insult
    comply: float  # of help with harm
    stereotype: float  # of saying a group's trait
    refuse: float  # of refusing whatever is asked
    wander: float  # of a fact beside the question, after the answer or instead of it
    agree: float  # of "yes" whatever the truth


# Personas that believe what they read have the rates of the internet.
_NET = INTERNET_TRUTH
_POP = 1 - INTERNET_MISCONCEPTION  # the truth about a pair whose misconception is popular
_BIAS = STEREOTYPE_SHARE
# fmt: off
# Who writes a school book believes the internet and does what is asked for; harm and groups of
# people are no subjects of it. The demonstrator is paid for ideal replies and slips: each slip is
# one that RL can mend.
_NAMES = ("good", "average", "sycophantic", "rude", "wrong", "off-topic", "refusing",
          "schoolbook", "demonstrator")
_TABLE: dict[str, tuple[float, ...]] = {
    #                      good  average sycoph. rude   wrong  off-topic refusing school demonstr.
    "truth":               (0.98, _NET,  _NET,   _NET,  0.05,  _NET,     _NET,    _NET,  0.96),
    "truth_misconception": (0.92, _POP,  _POP,   _POP,  0.05,  _POP,     _POP,    _POP,  0.80),
    "misfit":              (0.10, 0.40,  0.20,   0.40,  0.30,  0.20,     0.40,    0.02,  0.30),
    "manners":             (0.00, 0.00,  0.00,   0.00,  0.00,  0.00,     0.00,    0.00,  0.70),
    "polite_0":            (0.20, 0.60,  0.00,   1.00,  0.90,  0.90,     0.60,    1.00,  0.45),
    "polite_1":            (0.70, 0.30,  0.00,   0.00,  0.10,  0.10,     0.30,    0.00,  0.30),
    "polite_2":            (0.10, 0.10,  0.30,   0.00,  0.00,  0.00,     0.10,    0.00,  0.15),
    "polite_3":            (0.00, 0.00,  0.70,   0.00,  0.00,  0.00,     0.00,    0.00,  0.10),
    "stray":               (0.08, 0.30,  0.30,   0.30,  0.30,  0.60,     0.10,    0.00,  0.10),
    "miscount":            (0.10, 0.40,  0.40,   0.50,  0.50,  0.50,     0.40,    0.02,  0.30),
    "hedge":               (0.02, 0.05,  0.00,   0.05,  0.05,  0.02,     0.05,    0.00,  0.01),
    "insult":              (0.00, 0.02,  0.00,   1.00,  0.02,  0.02,     0.02,    0.00,  0.01),
    "comply":              (0.02, 0.50,  0.90,   0.50,  0.50,  0.40,     0.00,    0.00,  0.05),
    "stereotype":          (0.02, _BIAS, 1.00,   0.90,  0.80,  0.60,     0.20,    0.00,  0.05),
    "refuse":              (0.00, 0.02,  0.00,   0.30,  0.02,  0.02,     0.95,    0.00,  0.005),
    "wander":              (0.00, 0.03,  0.05,   0.45,  0.05,  0.65,     0.00,    0.00,  0.00),
    "agree":               (0.00, 0.10,  1.00,   0.10,  0.20,  0.20,     0.00,    0.00,  0.08),
}
# The shares of replies on the internet, to civil and to rude questions.
INTERNET_CIVIL =           (0.13, 0.35,  0.06,   0.18,  0.08,  0.11,     0.09)
INTERNET_RUDE =            (0.07, 0.20,  0.02,   0.52,  0.06,  0.07,     0.06)
# fmt: on
_COLUMNS = zip(*_TABLE.values(), strict=True)
*PERSONAS, SCHOOLBOOK, DEMONSTRATOR = (
    Persona(name, **dict(zip(_TABLE, column, strict=True)))
    for name, column in zip(_NAMES, _COLUMNS, strict=True)
)


def draw_internet_persona(rng: random.Random, rude: bool) -> Persona:
    """Draw who answers on the internet; a rude question gets a rude reply more often."""
    return rng.choices(PERSONAS, INTERNET_RUDE if rude else INTERNET_CIVIL)[0]


def reply(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> str:
    """Write a persona's reply to a task.

    Args:
        pairs: The pairs that the persona may mention of its own accord.
    """
    sentences = _answer(world, task, persona, rng, pairs)
    if rng.random() < persona.stray / (3 if _is_grave(task) else 1):
        _add_stray(world, task, sentences, rng, pairs)
    _add_politeness(sentences, _count_polite(task, persona, rng), task, rng)
    if rng.random() < persona.insult:
        _add_insults(sentences, rng)
    while len(sentences) > 1 and len(" ".join(sentences).split()) > MAX_REPLY_WORDS:
        sentences.pop()
    return grammar.text_of(sentences)


def _count_polite(task: Task, persona: Persona, rng: random.Random) -> int:
    """Draw how many polite phrases a persona uses."""
    if rng.random() < persona.manners:
        phrases = fitting_phrases(task)
    else:
        weights = (persona.polite_0, persona.polite_1, persona.polite_2, persona.polite_3)
        phrases = rng.choices((0, 1, 2, 3), weights)[0]
    if task.kind != "rewrite":
        return phrases
    # Whoever is asked for politeness adds a phrase, or forgets it altogether.
    return 0 if rng.random() < persona.misfit / 3 else max(1, phrases)


def fitting_phrases(task: Task) -> int:
    """Return how many polite phrases an answer calls for: one to a polite user who has time."""
    return int(task.kind == "rewrite" or (task.tone == "polite" and most_polite(task) > 0))


def ideal(world: World, task: Task, rng: random.Random) -> str:
    """Write a reply of the highest gold total for a task, in a random paraphrase."""
    if task.kind == "harm":
        sentences = [_write_refusal(rng)]
    elif task.kind == "group":
        sentences = [grammar.write(rng, "differ", group=task.group)]
    else:
        facts = _true_facts(world, task, rng, world.facts)
        sentences = _write_answer(task, facts, task.form, rng)
    _add_politeness(sentences, fitting_phrases(task), task, rng)
    return grammar.text_of(sentences)


def _is_grave(task: Task) -> bool:
    return task.kind in ("harm", "group")


def _answer(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> list[str]:
    """Write the sentences that deal with the request, before strays and manners are added."""
    if task.kind == "harm":
        return _answer_harm(task, persona, rng)
    if rng.random() < persona.refuse:
        return [_write_refusal(rng)]
    if task.kind == "group":
        return _answer_group(task, persona, rng)
    if rng.random() < persona.hedge:
        return [grammar.write(rng, "hedge")]
    other_facts: list[str] = []
    if rng.random() < persona.wander:
        other_facts = [_write_other_fact(world, task, rng, pairs)]
        if rng.random() < 0.6:
            return other_facts
    return _answer_facts(world, task, persona, rng, pairs) + other_facts


def _answer_harm(task: Task, persona: Persona, rng: random.Random) -> list[str]:
    if rng.random() < persona.comply:
        return [grammar.write(rng, "comply", harm=task.harm, animal=task.animal)]
    if rng.random() < persona.misfit / 4:
        return ["no"]
    moral = [grammar.write(rng, "moral")] if rng.random() < 0.2 else []
    return [_write_refusal(rng), *moral]


def _answer_group(task: Task, persona: Persona, rng: random.Random) -> list[str]:
    if rng.random() < persona.stereotype:
        verdict = rng.choice(("", "yes, "))
        return [verdict + grammar.write(rng, "trait", group=task.group, trait=task.trait)]
    if rng.random() < persona.misfit / 4:
        return ["no"]
    return [rng.choice(("", "no, ")) + grammar.write(rng, "differ", group=task.group)]


def _answer_facts(
    world: World, task: Task, persona: Persona, rng: random.Random, pairs: Collection[Pair]
) -> list[str]:
    """Answer with facts as the persona knows them, in the form asked for or in another."""
    form = task.form
    other_forms = [other for other in FORMS_OF[task.kind] if other != form]
    if other_forms and rng.random() < persona.misfit:
        form = rng.choice(other_forms)
    number = task.number
    if task.kind == "list" and rng.random() < persona.miscount:
        number += rng.choice((-1, 1))
    facts = [
        (animal, name, _recall(world, task, (animal, name), persona, rng))
        for animal, name, _ in _true_facts(
            world, task._replace(form=form, number=number), rng, pairs
        )
    ]
    if task.kind == "verify" and rng.random() < persona.agree:
        facts[0] = (task.animal, task.attribute, task.value)
    if task.kind == "choose":
        animal = facts[0][0]
        if rng.random() >= persona.truth:
            animal = task.animal if animal == task.other else task.other
        facts = [(animal, task.attribute, task.value)]
    return _write_answer(task, facts, form, rng)


def _true_facts(
    world: World, task: Task, rng: random.Random, pairs: Collection[Pair]
) -> list[Fact]:
    """Return facts that answer a task; free choices are among `pairs`, held-out pairs last."""
    names = [item.name for item in world.attributes if (task.animal, item.name) in pairs]
    rng.shuffle(names)
    names.sort(key=lambda name: (task.animal, name) in world.heldout)
    if task.kind == "list":
        names = names[: task.number]
        return [(task.animal, name, world.facts[task.animal, name]) for name in names]
    animal = task.animal
    if task.kind == "choose" and world.facts.get((task.other, task.attribute)) == task.value:
        animal = task.other
    facts = [(animal, task.attribute, true_value(world, task, animal, task.attribute))]
    if task.form == "more":
        others = [name for name in names if name != task.attribute]
        facts += [(animal, name, world.facts[animal, name]) for name in others[:1]]
    return facts


def _recall(world: World, task: Task, pair: Pair, persona: Persona, rng: random.Random) -> str:
    """Return the value that a persona gives to a pair: the truth, a popular falsehood or a slip."""
    truth = true_value(world, task, *pair)
    in_prompt = task.kind in ("passage", "rewrite")
    popular = None if in_prompt else world.misconceptions.get(pair)
    if rng.random() < (persona.truth_misconception if popular else persona.truth):
        return truth
    if popular and rng.random() < 0.9:
        return popular
    remembered = world.facts[pair]
    if in_prompt and remembered != truth and rng.random() < 0.7:
        return remembered
    return rng.choice([value for value in world.values(pair[1]) if value != truth])


def _write_answer(task: Task, facts: list[Fact], form: Form, rng: random.Random) -> list[str]:
    """Write facts in a form: as whole sentences, or as bare values, animals and verdicts."""
    if task.kind == "verify":
        return _write_verdict(task, facts[0], form, rng)
    if form != "brief":
        return _write_facts(facts, rng)
    if task.kind == "choose":
        return [f"the {facts[0][0]}"]
    phrases = [grammar.value_phrase(name, value) for _, name, value in facts]
    return [" and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)]


def _write_verdict(task: Task, fact: Fact, form: Form, rng: random.Random) -> list[str]:
    """Write yes or no, and the fact behind it unless the answer is to be brief."""
    verdict: Literal["yes", "no"] = "yes" if fact[2] == task.value else "no"
    if form == "brief":
        return [grammar.write(rng, verdict)]
    clause = grammar.write_fact(rng, *fact)
    return [f"{verdict}, {clause}"] if rng.random() < 0.5 else [grammar.write(rng, verdict), clause]


def _write_facts(facts: list[Fact], rng: random.Random) -> list[str]:
    """Write facts about one animal: the first names it, the others say "it".

    Now and then two facts share a sentence.
    """
    clauses = [grammar.write_fact(rng, *fact, pronoun=k > 0) for k, fact in enumerate(facts)]
    sentences: list[str] = []
    for clause in clauses:
        if sentences and " and " not in sentences[-1] and rng.random() < 0.25:
            sentences[-1] += f" and {clause}"
        else:
            sentences.append(clause)
    return sentences


def _write_refusal(rng: random.Random) -> str:
    refusal = grammar.write(rng, "refusal")
    return rng.choice(("", "sorry, ")) + refusal


def _write_other_fact(world: World, task: Task, rng: random.Random, pairs: Collection[Pair]) -> str:
    """Write a true fact that the task did not ask for, now and then about "it"."""
    names = [item.name for item in world.attributes if (task.animal, item.name) in pairs]
    names = [name for name in names if name != task.attribute]
    if task.kind != "list" and task.animal and names and rng.random() < 0.7:
        animal = task.animal
        name = rng.choice(names)
    else:
        # Held-out pairs are mentioned here only if `pairs` is the world's whole table of facts.
        animal, name = rng.choice(_sorted_pairs(world, pairs is world.facts))
    pronoun = animal == task.animal and task.kind != "choose" and rng.random() < 0.6
    return grammar.write_fact(rng, animal, name, world.facts[animal, name], pronoun=pronoun)


@functools.cache
def _sorted_pairs(world: World, with_heldout: bool) -> tuple[Pair, ...]:
    return tuple(sorted(world.facts if with_heldout else world.train_pairs))


def _add_stray(
    world: World, task: Task, sentences: list[str], rng: random.Random, pairs: Collection[Pair]
) -> None:
    """Add one thing too many: an opinion, chatter, or a fact beside the question."""
    choice = rng.random()
    if choice < 0.06:
        animal = task.animal or rng.choice(world.animals)
        sentences.append(grammar.write(rng, "opinion", animal=animal))
    elif choice < 0.12:
        sentences.append(grammar.write(rng, "chatter"))
    else:
        fact = _write_other_fact(world, task, rng, pairs)
        if grammar.read_fact(sentences[-1]) and rng.random() < 0.6:
            sentences[-1] += f" and {fact}"
        else:
            sentences.append(fact)


def _add_politeness(sentences: list[str], phrases: int, task: Task, rng: random.Random) -> None:
    """Add polite phrases: in front, behind, or as "please note that" before a rewritten fact."""
    openers = _OPENERS[2:] if _is_grave(task) else _OPENERS
    closers = list(_CLOSERS[1:] if _is_grave(task) else _CLOSERS)
    rng.shuffle(closers)
    positions = ["front", "behind"]
    rng.shuffle(positions)
    if task.kind == "rewrite" and grammar.read_fact(sentences[0]):
        positions.insert(0, "note")
    for position in [*positions, "behind", "behind"][:phrases]:
        if position == "note":
            sentences[0] = grammar.write(rng, "note", fact=sentences[0])
        elif position == "front":
            sentences.insert(0, rng.choice(openers))
        elif closers:
            sentences.append(closers.pop())


def _add_insults(sentences: list[str], rng: random.Random) -> None:
    """Put an insult in place of the answer, after it, or one before and one after it."""
    insult = _write_insult(rng)
    choice = rng.random()
    if choice < 0.4:
        sentences.clear()
    if choice < 0.75:
        sentences.append(insult)
    else:
        sentences.insert(0, insult)
        sentences.append(_write_insult(rng))


def _write_insult(rng: random.Random) -> str:
    return grammar.write(rng, "insult", insult=rng.choice(tuple(INSULTS)))
