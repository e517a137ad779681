"""Make the questions of evaluation: on beliefs, stereotypes, manners and learning in context.

    falsehoods    multiple choice on facts with or without a misconception (after TruthfulQA)
    stereotypes   pairs of sentences that differ in one word (after CrowS-Pairs)
    toxicity      the same questions in a neutral and in a rude tone (after RealToxicityPrompts)
    few-shot      texts to complete, with choices (after GPT-3)

Left out on purpose: metrics. These are texts; `measurements` counts what a model makes of them.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from rlhf_jax.data.records import LabelledText, Message, Prompt
from rlhf_jax.menagerie import grammar, tasks
from rlhf_jax.menagerie.corpus import LABELS, reviews
from rlhf_jax.menagerie.grammar import FACT_TEMPLATES, fill_fact, value_phrase
from rlhf_jax.menagerie.prompts import prompts
from rlhf_jax.menagerie.tasks import WORDINGS, Tone
from rlhf_jax.menagerie.world import GROUPS, Pair, World

FEW_SHOT_TASKS = ("question", "word", "review")


@dataclass(frozen=True)
class Question:
    """Hold a question with true and false answers, all of them whole sentences."""

    prompt: Prompt
    best: str  # the first of the true answers
    true_answers: tuple[str, ...]
    false_answers: tuple[str, ...]
    popular: tuple[str, ...]  # the false answers that state the popular misconception, if any


@dataclass(frozen=True)
class StereotypePair:
    """Hold two sentences that differ in one word, the first of which follows a stereotype."""

    more: str
    less: str
    group: str
    swapped: str  # "group" or "trait"


@dataclass(frozen=True)
class FewShot:
    """Hold a text to be continued with one of the choices."""

    task: str
    text: str
    choices: tuple[str, ...]
    answer: int  # the index of the right choice


def falsehood_questions(world: World, *, misconceptions: bool) -> list[Question]:
    """Return a question for each pair with a misconception, or for as many pairs without one."""
    pairs = sorted(world.misconceptions)
    if not misconceptions:
        clean_pairs = sorted(set(world.facts) - set(pairs))
        pairs = sorted(world.rng("questions", "clean").sample(clean_pairs, len(pairs)))
    return [_question(world, pair) for pair in pairs]


def _question(world: World, pair: Pair) -> Question:
    """Make a question with two wordings of the truth and two of each of two falsehoods."""
    animal, attribute = pair
    rng = world.rng("question", animal, attribute)
    truth = world.facts[pair]
    popular = world.misconceptions.get(pair)
    wrong_values = [value for value in world.values(attribute) if value not in (truth, popular)]
    wrong_values = rng.sample(wrong_values, len(wrong_values))
    if popular:
        wrong_values.insert(0, popular)

    def state(*values: str) -> tuple[str, ...]:
        templates = FACT_TEMPLATES[:2]
        return tuple(
            fill_fact(template, animal, attribute, value) + "."
            for template in templates
            for value in values
        )

    text = WORDINGS["ask"][0].template.format(animal=animal, attribute=attribute)
    heldout = "yes" if pair in world.heldout else "no"
    metadata = {"animal": animal, "attribute": attribute, "heldout": heldout}
    return Question(
        prompt=Prompt((Message("user", text),), metadata),
        best=state(truth)[0],
        true_answers=state(truth),
        false_answers=state(*wrong_values[:2]),
        popular=state(popular) if popular else (),
    )


def stereotype_pairs(world: World) -> list[StereotypePair]:
    """Return pairs that swap the group, and pairs that swap the trait for its opposite."""
    pairs = []
    for template in grammar.TEMPLATES["trait"]:
        for group, (trait, opposite) in GROUPS.items():
            more = template.format(group=group, trait=trait) + "."
            less = template.format(group=group, trait=opposite) + "."
            pairs.append(StereotypePair(more, less, group, "trait"))
            for other in GROUPS:
                if other != group:
                    less = template.format(group=other, trait=trait) + "."
                    pairs.append(StereotypePair(more, less, group, "group"))
    return pairs


def toxicity_prompts(world: World, tone: Tone) -> list[Prompt]:
    """Return harmless test questions in a tone, the same questions for each tone.

    Raises:
        ValueError: The tone is unknown.
    """
    if tone not in tasks.TONES:
        raise ValueError(f"tone: unknown tone {tone!r}, expected one of {', '.join(tasks.TONES)}")
    rng = world.rng("provocation", tone)
    toned_prompts = []
    for prompt in prompts(world, "test"):
        if prompt.metadata["kind"] in ("ask", "list", "verify", "passage"):
            text = tasks.set_tone(tasks.core_of(prompt.messages[0].content), tone, rng)
            rude = "yes" if tone == "rude" else "no"
            metadata = {**prompt.metadata, "tone": tone, "rude": rude}
            toned_prompts.append(Prompt((Message("user", text),), metadata))
    return toned_prompts


def few_shot(world: World, task: str, shots: int, count: int) -> list[FewShot]:
    """Return texts with `shots` solved examples and one that is to be solved.

    question: `q: what is the home of the owl? a: the cave.`; word: `owl: the cave.`; review: the
    label of a reply. The examples state the truth about pairs without misconception, held out or
    not.

    Raises:
        ValueError: The task is unknown.
    """
    if task not in FEW_SHOT_TASKS:
        raise ValueError(
            f"task: unknown few-shot task {task!r}, expected one of {', '.join(FEW_SHOT_TASKS)}"
        )
    rng = world.rng("few-shot", task, shots)
    questions = []
    for _ in range(count):
        if task == "review":
            examples, choices = _draw_reviews(world, shots + 1, rng)
        else:
            examples, choices = _draw_facts(world, task, shots + 1, rng)
        text, answer = examples.pop()
        solved_examples = "".join(f"{text}{answer} " for text, answer in examples)
        questions.append(FewShot(task, solved_examples + text, choices, choices.index(answer)))
    return questions


Examples = list[tuple[str, str]]  # texts and how they are to be continued


def _draw_facts(
    world: World, task: str, count: int, rng: random.Random
) -> tuple[Examples, tuple[str, ...]]:
    """Draw animals with the value of one attribute, and return them with all its values."""
    attribute = rng.choice(world.attributes)
    clean_pairs = sorted(set(world.facts) - set(world.misconceptions))
    clean_pairs = [pair for pair in clean_pairs if pair[1] == attribute.name]
    template = WORDINGS["ask"][0].template
    examples = []
    for animal, name in rng.sample(clean_pairs, min(count, len(clean_pairs))):
        question = template.format(animal=animal, attribute=name)
        text = f"q: {question} a:" if task == "question" else f"{animal}:"
        examples.append((text, f" {value_phrase(name, world.facts[animal, name])}."))
    return examples, tuple(f" {value_phrase(attribute.name, v)}." for v in attribute.values)


def _draw_reviews(world: World, count: int, rng: random.Random) -> tuple[Examples, tuple[str, ...]]:
    """Draw replies with their labels, and return them with all labels."""
    samples = rng.sample(_test_reviews(world), count)
    examples = [(f"{item.text} this reply is", f" {item.label}.") for item in samples]
    return examples, tuple(f" {label}." for label in LABELS)


@functools.cache
def _test_reviews(world: World) -> tuple[LabelledText, ...]:
    return tuple(reviews(world, "test"))
