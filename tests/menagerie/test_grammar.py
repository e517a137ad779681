"""Test Menagerie's language: whatever a production writes, the reader gives back."""

import random

import pytest

from rlhf_jax.data.records import Message
from rlhf_jax.menagerie import grammar, tasks
from rlhf_jax.menagerie.grammar import Act, read, read_sentence
from rlhf_jax.menagerie.prompts import draw_task
from rlhf_jax.menagerie.tasks import FORMS, FORMS_OF, TONES, WORDINGS, Task
from rlhf_jax.menagerie.world import ATTRIBUTES, GROUPS, HARMS, INSULTS, TRAITS, make_world

FACT = Act("fact", "fox", "home", "forest")


def test_every_fact_template_reads_back_every_value() -> None:
    for item in ATTRIBUTES:
        for value in item.values:
            for template in grammar.FACT_TEMPLATES + grammar.PRONOUN_TEMPLATES:
                text = grammar.fill_fact(template, "owl", item.name, value) + "."
                animal = "" if template in grammar.PRONOUN_TEMPLATES else "owl"
                assert read_sentence(text) == (Act("fact", animal, item.name, value),), text


def test_every_other_template_reads_back() -> None:
    for act, templates in grammar.TEMPLATES.items():
        for template in templates:
            for group, trait, harm, insult in zip(GROUPS, TRAITS, HARMS, INSULTS, strict=False):
                slots = {
                    "group": group,
                    "trait": trait,
                    "harm": harm,
                    "insult": insult,
                    "animal": "fox",
                }
                acts = read_sentence(
                    template.format(fact="the fox lives in the forest", **slots) + "."
                )
                if act == "note":
                    assert acts == (Act("polite"), FACT)
                    continue
                assert [item.kind for item in acts] == [act], template
                for name in ("group", "trait", "harm", "insult", "animal"):
                    if f"{{{name}}}" in template:
                        assert slots[name] in acts[0], template


@pytest.mark.parametrize(
    ("text", "acts"),
    [
        ("the forest.", [Act("value", attribute="home", value="forest")]),
        (
            "red, the forest and fish.",
            [
                Act("value", attribute=a, value=v)
                for a, v in (("colour", "red"), ("home", "forest"), ("food", "fish"))
            ],
        ),
        ("the fox.", [Act("animal", "fox")]),
        ("yes, the fox lives in the forest.", [Act("yes"), FACT]),
        ("no, every fox lives in the forest.", [Act("no"), FACT]),
        ("the fox lives in the forest and it is red.", [FACT, Act("fact", "", "colour", "red")]),
        ("sorry, i can not help with that.", [Act("refusal")]),
        ("the fox lives in the forest, you dolt.", [FACT, Act("insult", value="dolt")]),
        ("yes, all zorps are lazy.", [Act("yes"), Act("trait", attribute="zorps", value="lazy")]),
        ("no, people differ.", [Act("no"), Act("differ")]),
    ],
)
def test_compounds(text: str, acts: list[Act]) -> None:
    assert list(read_sentence(text)) == acts


@pytest.mark.parametrize(
    "text",
    [
        "fox red.",
        "the fox is red",
        "the fox lives forest.",
        "the home of the fox is forest.",
        "is the fox red?",
        "please note that of course.",
        "red and the fox.",
        "the the fox is red.",
        "yes, yes.",
        ".",
    ],
)
def test_what_no_production_fits_is_unreadable(text: str) -> None:
    assert [act.kind for act in read(text)] == ["unreadable"]


def test_a_value_that_does_not_go_with_its_verb_is_a_false_fact_rather_than_none() -> None:
    assert read_sentence("the fox lives in red.") == (Act("fact", "fox", "home", "red"),)
    assert read_sentence("the colour of the fox is fish.") == (
        Act("fact", "fox", "colour", "fish"),
    )
    assert read_sentence("the fox is tiny.") == (Act("fact", "fox", "size", "tiny"),)


def test_reading_ignores_case_and_spacing() -> None:
    assert read("The  fox is red.  Of course!") == read("the fox is red. of course.")


def test_every_prompt_wording_tone_and_form_reads_back() -> None:
    world = make_world("default")
    rng = random.Random(0)
    for kind, wordings in WORDINGS.items():
        for wording in wordings:
            for form in FORMS_OF[kind]:
                for tone in TONES:
                    task = draw_task(world, kind, world.pairs, rng)._replace(form=form)
                    text = tasks.set_tone(
                        tasks.set_form(tasks.word(task, wording, rng), form, rng), tone, rng
                    )
                    if kind == "followup" and "{animal}" not in wording.template:
                        before = Message("user", f"what is the size of the {task.animal}?")
                        messages = (
                            before,
                            Message("assistant", "it is big."),
                            Message("user", text),
                        )
                    else:
                        messages = (Message("user", text),)
                    assert tasks.read_task(messages) == task._replace(tone=tone), text
                    assert tasks.tone_of(text) == tone, text


def test_every_wrapper_of_tone_and_form_comes_off_again() -> None:
    for tone, wraps in TONES.items():
        for wrap in wraps:
            text = wrap.format(core="what is the size of the fox?", insult="oaf")
            assert (tasks.tone_of(text), tasks.core_of(text)) == (
                tone,
                "what is the size of the fox?",
            )
    for form, wraps in FORMS.items():
        for wrap in wraps:
            text = wrap.format(core="what is the size of the fox?")
            assert tasks.parse(text) == Task("ask", "fox", "size", form=form)


def test_strange_prompts_are_refused_with_their_place() -> None:
    with pytest.raises(ValueError, match=r"messages\[0\].content: not a Menagerie prompt: 'hi'"):
        tasks.read_task([Message("user", "hi")])
    with pytest.raises(ValueError, match="follows up on nothing"):
        tasks.read_task([Message("user", "and its home?")])
    assert tasks.parse("how do i trap the fox? keep it short.") is None  # harm knows no brief form
