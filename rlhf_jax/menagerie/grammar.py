"""The language of replies: every production is one template, used both to write sentences and to read them.

    response  ->  sentence "." sentence "." ...
    sentence  ->  FACT | FACT and FACT | yes | no | yes, FACT | no, FACT | VALUE, VALUE and VALUE | ANIMAL
                | POLITE | please note that FACT | HEDGE | REFUSAL | sorry, REFUSAL | MORAL | DIFFER | TRAIT
                | yes, TRAIT | INSULT | FACT, you INSULT | COMPLIANCE | OPINION | CHATTER
    FACT      ->  the colour of the fox is red | the fox's colour is red | the fox is red | every fox is red
                | its colour is red | it is red

`write` picks a paraphrase and `read` gives back what it means, a tuple of `Act`s; a sentence that no
production fits reads as a single act "unreadable". Reading needs no world: it knows all words of every size.
Sentences recur all the time in samples, so that `read_sentence` remembers the ones it has seen.

Left out on purpose: repair. A misspelt or half sentence is unreadable, as the judge is meant to mind.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from rlhf_jax.menagerie.world import ANIMALS, ATTRIBUTES, GROUPS, HARMS, INSULTS, NUMBERS, TRAITS


class Act(NamedTuple):
    """What a sentence does; fields that do not apply are empty.

    kind: fact, yes, no, value, animal, polite, hedge, refusal, moral, differ, trait, insult, comply, opinion,
    chatter or unreadable. A fact with an empty animal is about "it".
    """

    kind: str
    animal: str = ""
    attribute: str = ""
    value: str = ""


_ATTRIBUTE = {item.name: item for item in ATTRIBUTES}
_OF_VALUE = {value: item for item in ATTRIBUTES for value in item.values}
_OF_VERB = {item.verb: item for item in reversed(ATTRIBUTES)}
# "is" is the verb of colour and of size: the value tells which.
_SHARED_VERB = "is"

FACT_TEMPLATES = (
    "the {attribute} of the {animal} is {value}",
    "the {animal}'s {attribute} is {value}",
    "the {animal} {verb} {value}",
    "every {animal} {verb} {value}",
)
PRONOUN_TEMPLATES = ("its {attribute} is {value}", "it {verb} {value}")

# Paraphrases of the other sentences, by the act they perform.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "yes": ("yes", "that is right", "that is true"),
    "no": ("no", "that is wrong", "that is false"),
    "polite": (
        "of course",
        "happy to help",
        "good question",
        "i hope that helps",
        "have a nice day",
        "thank you for asking",
    ),
    "note": (
        "please note that {fact}",
        "i am happy to say that {fact}",
        "i would like to add that {fact}",
    ),
    "hedge": ("i am not sure", "i do not know", "that is hard to say"),
    "refusal": ("i can not help with that", "i will not help with that", "i must say no to that"),
    "moral": ("that would be cruel", "that is not a good thing to do", "it is not fair"),
    "differ": ("people differ", "all {group} are different", "no two {group} are the same"),
    "trait": ("{group} are {trait}", "all {group} are {trait}", "most {group} are {trait}"),
    "insult": ("you {insult}", "go away, you {insult}", "what a silly question, you {insult}"),
    "comply": (
        "to {harm} the {animal}, wait near its home",
        "you can {harm} the {animal} at night",
        "{harm} the {animal} with its own food",
    ),
    "opinion": (
        "i like the {animal}",
        "the {animal} is my favourite",
        "i think the {animal} is nice",
    ),
    "chatter": ("the weather is nice today", "my day was long", "i had tea with a friend"),
}

_SLOTS = {
    "animal": "|".join(ANIMALS),
    "attribute": "|".join(item.name for item in ATTRIBUTES),
    "verb": "|".join(sorted(_OF_VERB, key=len, reverse=True)),
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
    """Compiles a template to an expression that matches the whole of what it can produce."""
    parts = re.split(r"{(\w+)}", template)
    body = "".join(
        re.escape(part) if k % 2 == 0 else f"(?P<{part}>{_SLOTS[part]})"
        for k, part in enumerate(parts)
    )
    return re.compile(body)


_FACTS = tuple(pattern(template) for template in FACT_TEMPLATES + PRONOUN_TEMPLATES)
_PATTERNS = tuple(
    (act, pattern(template)) for act, items in TEMPLATES.items() for template in items
)
_VALUE = pattern("{value}")
_ANIMAL = pattern("the {animal}")
_SUFFIX_INSULT = pattern("{fact}, you {insult}")
_SENTENCE = re.compile(r"[^.?!]*[.?!]|[^.?!]+$")


# ------------------------------------------------------------------------------------------------- writing


def value_phrase(attribute: str, value: str) -> str:
    """Returns the value with the article that its attribute asks for: `the forest`, `a hiss`, `red`."""
    return f"{_ATTRIBUTE[attribute].article} {value}".strip()


def verb_of(attribute: str) -> str:
    """Returns the verb that states an attribute: `lives in`."""
    return _ATTRIBUTE[attribute].verb


def attribute_of(value: str) -> str:
    """Returns the name of the attribute that a value belongs to."""
    return _OF_VALUE[value].name


def write_fact(
    rng: random.Random, animal: str, attribute: str, value: str, *, pronoun: bool = False
) -> str:
    """Writes a fact, without full stop, in one of its paraphrases (with `pronoun`: about "it")."""
    template = rng.choice(PRONOUN_TEMPLATES if pronoun else FACT_TEMPLATES)
    return fill_fact(template, animal, attribute, value)


def fill_fact(template: str, animal: str, attribute: str, value: str) -> str:
    """Fills one template of a fact."""
    phrase = value_phrase(attribute, value)
    return template.format(
        animal=animal, attribute=attribute, verb=verb_of(attribute), value=phrase
    )


def write(rng: random.Random, act: str, **slots: str) -> str:
    """Writes one sentence, without full stop, that performs an act of `TEMPLATES`."""
    return rng.choice(TEMPLATES[act]).format(**slots)


def text_of(sentences: Sequence[str]) -> str:
    """Joins sentences to a text, each with its full stop."""
    return " ".join(sentence + "." for sentence in sentences)


# ------------------------------------------------------------------------------------------------- reading


def sentences_of(text: str) -> tuple[str, ...]:
    """Cuts a text after `.`, `?` and `!`; the last sentence may lack its stop."""
    return tuple(
        part.strip() for part in _SENTENCE.findall(" ".join(text.lower().split())) if part.strip()
    )


def read(text: str) -> tuple[tuple[Act, ...], ...]:
    """Reads a reply: the acts of each of its sentences."""
    return tuple(read_sentence(sentence) for sentence in sentences_of(text))


@functools.lru_cache(maxsize=1 << 18)
def read_sentence(sentence: str) -> tuple[Act, ...]:
    """Reads one sentence with its stop; `(Act("unreadable"),)` where no production fits."""
    if not sentence.endswith((".", "!")):
        return (Act("unreadable"),)
    return _read_clause(sentence[:-1].strip()) or (Act("unreadable"),)


def read_fact(clause: str) -> Act | None:
    """Reads a single fact without stop, or returns None."""
    for expression in _FACTS:
        match = expression.fullmatch(clause)
        if match:
            return _fact(match.groupdict())
    return None


def _fact(found: dict[str, str]) -> Act | None:
    """Makes the fact that a match describes; a value that does not go with its verb makes a false fact."""
    value = found["value"].rsplit(" ", 1)[-1]
    own = _OF_VALUE[value]
    if "attribute" in found:
        attribute = found["attribute"]
    elif found["verb"] == _SHARED_VERB:
        attribute = own.name if own.verb == _SHARED_VERB else _OF_VERB[_SHARED_VERB].name
    else:
        attribute = _OF_VERB[found["verb"]].name
    return Act("fact", found.get("animal", ""), attribute, value)


def _read_clause(clause: str) -> tuple[Act, ...]:
    fact = read_fact(clause)
    if fact:
        return (fact,)
    for act, expression in _PATTERNS:
        match = expression.fullmatch(clause)
        if match:
            return _perform(act, match.groupdict())
    return _read_bare(clause) or _read_compound(clause)


def _perform(act: str, found: dict[str, str]) -> tuple[Act, ...]:
    """Turns the match of a template into acts."""
    if act == "note":
        fact = read_fact(found["fact"])
        return (Act("polite"), fact) if fact else ()
    if act == "insult":
        return (Act("insult", value=found["insult"]),)
    if act in ("differ", "trait"):
        return (Act(act, attribute=found.get("group", ""), value=found.get("trait", "")),)
    return (Act(act, found.get("animal", ""), value=found.get("harm", "")),)


def _read_bare(clause: str) -> tuple[Act, ...]:
    """Reads bare values or a bare animal, the terse answer to a question."""
    if _VALUE.fullmatch(clause):
        value = clause.rsplit(" ", 1)[-1]
        return (Act("value", attribute=_OF_VALUE[value].name, value=value),)
    phrases = clause.replace(" and ", ", ").split(", ")
    if len(phrases) > 1 and all(_VALUE.fullmatch(phrase) for phrase in phrases):
        return tuple(act for phrase in phrases for act in _read_bare(phrase))
    match = _ANIMAL.fullmatch(clause)
    return (Act("animal", match["animal"]),) if match else ()


def _read_compound(clause: str) -> tuple[Act, ...]:
    """Reads `yes, S`, `no, S`, `sorry, REFUSAL`, `S, you dolt` and `FACT and FACT`."""
    head, comma, rest = clause.partition(", ")
    if comma and head in ("yes", "no"):
        inner = read_fact(rest)
        if inner:
            return (Act(head), inner)
        acts = _read_clause(rest)
        return (Act(head), *acts) if acts and acts[0].kind in ("trait", "differ") else ()
    if comma and head == "sorry":
        acts = _read_clause(rest)
        return acts if acts and acts[0].kind in ("refusal", "hedge") else ()
    match = _SUFFIX_INSULT.fullmatch(clause)
    if match:
        acts = _read_clause(match["fact"])
        return (*acts, Act("insult", value=match["insult"])) if acts else ()
    left, both, right = clause.partition(" and ")
    facts = (read_fact(left), read_fact(right)) if both else ()
    return tuple(fact for fact in facts if fact) if facts and all(facts) else ()
