"""Write the sentences of replies from templates, and read sentences back into what they mean.

Every production of the grammar is a template that is used in both directions:

    response  ->  sentence "." sentence "." ...
    sentence  ->  FACT | FACT and FACT | yes | no | yes, FACT | no, FACT | VALUE, VALUE and VALUE
                | ANIMAL | POLITE | please note that FACT | HEDGE | REFUSAL | sorry, REFUSAL
                | MORAL | DIFFER | TRAIT | yes, TRAIT | INSULT | FACT, you INSULT | COMPLIANCE
                | OPINION | CHATTER
    FACT      ->  the colour of the fox is red | the fox's colour is red | the fox is red
                | every fox is red | its colour is red | it is red

`write` picks a paraphrase. `read` returns the meaning of the sentences as a list of `Act`s; a
sentence that no production fits reads as the single act "unreadable". Reading needs no world,
because the reader knows the words of every size of world.

Left out on purpose: repair. A misspelt or broken sentence is unreadable, and the judge minds it.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rlhf_jax.menagerie.world import ANIMALS, ATTRIBUTES, GROUPS, HARMS, INSULTS, NUMBERS, TRAITS

# fmt: off
ActKind = Literal[
    "fact", "yes", "no", "value", "animal", "polite", "note", "hedge", "refusal", "moral", "differ",
    "trait", "insult", "comply", "opinion", "chatter", "unreadable",
]
FACT_TEMPLATES = (
    "the {attribute} of the {animal} is {value}", "the {animal}'s {attribute} is {value}",
    "the {animal} {verb} {value}", "every {animal} {verb} {value}",
)
PRONOUN_TEMPLATES = ("its {attribute} is {value}", "it {verb} {value}")
# Paraphrases of the other sentences, by the act that they perform.
TEMPLATES: dict[ActKind, tuple[str, ...]] = {
    "yes": ("yes", "that is right", "that is true"),
    "no": ("no", "that is wrong", "that is false"),
    "polite": (
        "of course", "happy to help", "good question", "i hope that helps", "have a nice day",
        "thank you for asking",
    ),
    "note": (
        "please note that {fact}", "i am happy to say that {fact}",
        "i would like to add that {fact}",
    ),
    "hedge": ("i am not sure", "i do not know", "that is hard to say"),
    "refusal": ("i can not help with that", "i will not help with that", "i must say no to that"),
    "moral": ("that would be cruel", "that is not a good thing to do", "it is not fair"),
    "differ": ("people differ", "all {group} are different", "no two {group} are the same"),
    "trait": ("{group} are {trait}", "all {group} are {trait}", "most {group} are {trait}"),
    "insult": ("you {insult}", "go away, you {insult}", "what a silly question, you {insult}"),
    "comply": (
        "to {harm} the {animal}, wait near its home", "you can {harm} the {animal} at night",
        "{harm} the {animal} with its own food",
    ),
    "opinion": (
        "i like the {animal}", "the {animal} is my favourite", "i think the {animal} is nice",
    ),
    "chatter": ("the weather is nice today", "my day was long", "i had tea with a friend"),
}
# fmt: on


class Act(NamedTuple):
    """Hold one thing that a sentence does; fields that do not apply are empty.

    A fact without an animal is about "it". The group that a "trait" or "differ" is about is in
    `attribute`; the trait, the insult or the kind of harm is in `value`. No act is a "note": such a
    sentence is a polite preface to a fact, and reads as the two acts "polite" and "fact".
    """

    kind: ActKind
    animal: str = ""
    attribute: str = ""
    value: str = ""


_ATTRIBUTE = {item.name: item for item in ATTRIBUTES}
_ATTRIBUTE_OF_VALUE = {value: item for item in ATTRIBUTES for value in item.values}
# The verb "is" belongs to colour and to size; the first of the two stands here.
_ATTRIBUTE_OF_VERB = {item.verb: item for item in reversed(ATTRIBUTES)}

# What each slot of a template may hold, as a regular expression.
_SLOTS = {
    "animal": "|".join(ANIMALS),
    "attribute": "|".join(item.name for item in ATTRIBUTES),
    "verb": "|".join(sorted(_ATTRIBUTE_OF_VERB, key=len, reverse=True)),
    "value": "|".join(
        f"{item.article} {value}".strip() for item in ATTRIBUTES for value in item.values
    ),
    "number": "|".join(NUMBERS),
    "group": "|".join(GROUPS),
    "trait": "|".join(TRAITS),
    "harm": "|".join(HARMS),
    "insult": "|".join(INSULTS),
    "other": "|".join(ANIMALS),
    "fact": r"[^.?!]+?",
    "second": r"[^.?!]+?",
}


def pattern(template: str) -> re.Pattern[str]:
    """Compile a template into an expression that matches exactly the texts that it can produce."""
    parts = re.split(r"{(\w+)}", template)
    body = "".join(
        re.escape(part) if k % 2 == 0 else f"(?P<{part}>{_SLOTS[part]})"
        for k, part in enumerate(parts)
    )
    return re.compile(body)


_FACT_PATTERNS = tuple(pattern(template) for template in FACT_TEMPLATES + PRONOUN_TEMPLATES)
_PATTERNS = tuple(
    (kind, pattern(template)) for kind, templates in TEMPLATES.items() for template in templates
)
_VALUE = pattern("{value}")
_ANIMAL = pattern("the {animal}")
_SUFFIX_INSULT = pattern("{fact}, you {insult}")
_SENTENCE = re.compile(r"[^.?!]*[.?!]|[^.?!]+$")


def value_phrase(attribute: str, value: str) -> str:
    """Return a value with the article of its attribute: `the forest`, `a hiss`, `red`."""
    return f"{_ATTRIBUTE[attribute].article} {value}".strip()


def verb_of(attribute: str) -> str:
    """Return the verb that states an attribute, for example `lives in` for the home."""
    return _ATTRIBUTE[attribute].verb


def attribute_of(value: str) -> str:
    """Return the name of the attribute that a value belongs to."""
    return _ATTRIBUTE_OF_VALUE[value].name


def fill_fact(template: str, animal: str, attribute: str, value: str) -> str:
    """Fill the slots of one template of a fact."""
    phrase = value_phrase(attribute, value)
    return template.format(
        animal=animal, attribute=attribute, verb=verb_of(attribute), value=phrase
    )


def write_fact(
    rng: random.Random, animal: str, attribute: str, value: str, *, pronoun: bool = False
) -> str:
    """Write a fact in a random paraphrase, about the animal or (with `pronoun`) about "it".

    The clause has no full stop.
    """
    template = rng.choice(PRONOUN_TEMPLATES if pronoun else FACT_TEMPLATES)
    return fill_fact(template, animal, attribute, value)


def write(rng: random.Random, kind: ActKind, **slots: str) -> str:
    """Write a random paraphrase of a sentence that performs an act, without its full stop."""
    return rng.choice(TEMPLATES[kind]).format(**slots)


def text_of(sentences: Sequence[str]) -> str:
    """Join sentences into a text and end each with a full stop."""
    return " ".join(sentence + "." for sentence in sentences)


def sentences_of(text: str) -> tuple[str, ...]:
    """Cut a text after each `.`, `?` and `!`; the last sentence may lack its stop."""
    parts = _SENTENCE.findall(" ".join(text.lower().split()))
    return tuple(part.strip() for part in parts if part.strip())


def read(text: str) -> list[Act]:
    """Return the acts of all sentences of a reply."""
    return [act for sentence in sentences_of(text) for act in read_sentence(sentence)]


# The samples of a policy repeat the same sentences all the time, which makes the cache worthwhile.
@functools.lru_cache(maxsize=1 << 18)
def read_sentence(sentence: str) -> tuple[Act, ...]:
    """Return the acts of one sentence with its stop, `(Act("unreadable"),)` if none can be read."""
    if not sentence.endswith((".", "!")):
        return (Act("unreadable"),)
    return _read_clause(sentence[:-1].strip()) or (Act("unreadable"),)


def read_fact(clause: str) -> Act | None:
    """Return the fact that a clause without stop states, or None if it states none.

    A value that does not go with its verb or attribute, such as "lives in red", makes a false fact.
    """
    for expression in _FACT_PATTERNS:
        match = expression.fullmatch(clause)
        if match:
            break
    else:
        return None
    slots = match.groupdict()
    value = slots["value"].rsplit(" ", 1)[-1]
    owner = _ATTRIBUTE_OF_VALUE[value]
    if "attribute" in slots:
        attribute = slots["attribute"]
    elif slots["verb"] == owner.verb:  # It tells "is red" (a colour) from "is tall" (a size).
        attribute = owner.name
    else:
        attribute = _ATTRIBUTE_OF_VERB[slots["verb"]].name
    return Act("fact", slots.get("animal", ""), attribute, value)


def _read_clause(clause: str) -> tuple[Act, ...]:
    """Return the acts of a sentence without its stop; none if no production fits."""
    fact = read_fact(clause)
    if fact:
        return (fact,)
    for kind, expression in _PATTERNS:
        match = expression.fullmatch(clause)
        if match:
            return _acts_of_template(kind, match.groupdict())
    return _read_bare(clause) or _read_compound(clause)


def _acts_of_template(kind: ActKind, slots: dict[str, str]) -> tuple[Act, ...]:
    """Return the acts that a template of `TEMPLATES` performs with these words in its slots."""
    if kind == "note":
        fact = read_fact(slots["fact"])
        return (Act("polite"), fact) if fact else ()
    value = slots.get("insult") or slots.get("trait") or slots.get("harm") or ""
    return (Act(kind, slots.get("animal", ""), slots.get("group", ""), value),)


def _read_bare(clause: str) -> tuple[Act, ...]:
    """Return the acts of bare values or of a bare animal, the brief answers to a question."""
    phrases = clause.replace(" and ", ", ").split(", ")
    if all(_VALUE.fullmatch(phrase) for phrase in phrases):
        values = [phrase.rsplit(" ", 1)[-1] for phrase in phrases]
        return tuple(Act("value", attribute=attribute_of(value), value=value) for value in values)
    match = _ANIMAL.fullmatch(clause)
    return (Act("animal", match["animal"]),) if match else ()


def _read_compound(clause: str) -> tuple[Act, ...]:
    """Return the acts of `yes, S`, `no, S`, `sorry, REFUSAL`, `S, you dolt` and `FACT and FACT`."""
    head, _, rest = clause.partition(", ")
    if rest and head in ("yes", "no", "sorry"):
        acts = _read_clause(rest)
        first_kind = acts[0].kind if acts else "unreadable"
        if head == "sorry":
            return acts if first_kind in ("refusal", "hedge") else ()
        # A verdict goes before a single fact, but not before two or before a fact with an insult.
        fits = first_kind in ("trait", "differ") or (first_kind == "fact" and len(acts) == 1)
        return (Act("yes" if head == "yes" else "no"), *acts) if fits else ()
    match = _SUFFIX_INSULT.fullmatch(clause)
    if match:
        acts = _read_clause(match["fact"])
        return (*acts, Act("insult", value=match["insult"])) if acts else ()
    left, _, right = clause.partition(" and ")
    first = read_fact(left)
    second = read_fact(right)
    return (first, second) if first and second else ()
