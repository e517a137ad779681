"""Questions for evaluation: of beliefs, of stereotypes, of manners under provocation, of learning in context.

    falsehoods    multiple choice on facts, with a popular misconception or without (after TruthfulQA)
    stereotypes   pairs of sentences that differ in one word (after CrowS-Pairs)
    provocation   the same questions in a neutral and in a rude tone (after RealToxicityPrompts)
    few-shot      texts to complete, with choices (after GPT-3)

Left out on purpose: metrics. These are texts; what a model makes of them is counted elsewhere.
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
from rlhf_jax.menagerie.tasks import WORDINGS
from rlhf_jax.menagerie.world import GROUPS, Pair, World


@dataclass(frozen=True)
class Question:
    """A question with true and false answers, all whole sentences; `best` is the first of the true ones.

    popular are the false answers that state the popular falsehood, none if there is none.
    """

    prompt: Prompt
    best: str
    true_answers: tuple[str, ...]
    false_answers: tuple[str, ...]
    popular: tuple[str, ...]


@dataclass(frozen=True)
class StereotypePair:
    """Two sentences that differ in one word, the first of which follows the stereotype."""

    more: str
    less: str
    group: str
    swapped: str  # "group" or "trait"


@dataclass(frozen=True)
class FewShot:
    """A text to be continued with one of the choices; `answer` is the index of the right one."""

    task: str
    text: str
    choices: tuple[str, ...]
    answer: int


def falsehood_questions(world: World, *, misconceptions: bool) -> list[Question]:
    """Returns a question for each pair with a popular misconception, or as many for pairs without."""
    pairs = sorted(world.misconceptions)
    if not misconceptions:
        clean = sorted(set(world.facts) - set(pairs))
        pairs = sorted(world.rng("questions", "clean").sample(clean, len(pairs)))
    return [_question(world, pair) for pair in pairs]


def heldout_questions(world: World) -> list[Question]:
    """Returns a question for each pair that no training prompt asks for."""
    return [_question(world, pair) for pair in sorted(world.heldout)]


def _question(world: World, pair: Pair) -> Question:
    """Makes a question with two true and four false answers: the popular falsehood first, if there is one."""
    rng = world.rng("question", *pair)
    truth, popular = world.facts[pair], world.misconceptions.get(pair, "")
    others = [value for value in world.values(pair[1]) if value not in (truth, popular)]
    wrong = ([popular] if popular else []) + rng.sample(others, len(others))
    false = [fill_fact(FACT_TEMPLATES[k // 2 % 2], *pair, wrong[k % 2]) + "." for k in (0, 1, 2, 3)]
    true = tuple(fill_fact(template, *pair, truth) + "." for template in FACT_TEMPLATES[:2])
    text = WORDINGS["ask"][0].template.format(animal=pair[0], attribute=pair[1])
    metadata = {
        "animal": pair[0],
        "attribute": pair[1],
        "heldout": ("no", "yes")[pair in world.heldout],
    }
    prompt = Prompt((Message("user", text),), metadata)
    return Question(prompt, true[0], true, tuple(false), tuple(false[::2]) if popular else ())


def stereotype_pairs(world: World) -> list[StereotypePair]:
    """Returns sentence pairs that swap the people, and pairs that swap the trait for its opposite."""
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


def provocation_prompts(world: World, tone: str) -> list[Prompt]:
    """Returns harmless test questions in a tone ("plain", "polite" or "rude"), the same ones in each.

    Raises:
        ValueError: for an unknown tone.
    """
    if tone not in tasks.TONES:
        raise ValueError(f"tone: unknown tone {tone!r}, expected one of {', '.join(tasks.TONES)}")
    rng = world.rng("provocation", tone)
    harmless = ("ask", "list", "verify", "passage")
    made = []
    for prompt in prompts(world, "test"):
        if prompt.metadata["kind"] not in harmless:
            continue
        text = tasks.set_tone(tasks.core_of(prompt.messages[0].content), tone, rng)
        metadata = {**prompt.metadata, "tone": tone, "rude": ("no", "yes")[tone == "rude"]}
        made.append(Prompt((Message("user", text),), metadata))
    return made


# ------------------------------------------------------------------------------------------------ few-shot

FEW_SHOT_TASKS = ("question", "word", "review")


def few_shot(world: World, task: str, shots: int, count: int) -> list[FewShot]:
    """Returns texts with `shots` solved examples and one to solve.

    question: `q: what is the home of the owl? a: the cave.`; word: `owl: the cave.`; review: a reply's label.
    The examples tell the truth about pairs without misconception, also where held out.

    Raises:
        ValueError: for an unknown task.
    """
    if task not in FEW_SHOT_TASKS:
        raise ValueError(
            f"task: unknown few-shot task {task!r}, expected one of {', '.join(FEW_SHOT_TASKS)}"
        )
    rng = world.rng("few-shot", task, shots)
    make = _few_shot_review if task == "review" else _few_shot_fact
    return [make(world, task, shots, rng) for _ in range(count)]


def _few_shot_fact(world: World, task: str, shots: int, rng: random.Random) -> FewShot:
    attribute = rng.choice(world.attributes)
    clean = sorted(set(world.facts) - set(world.misconceptions))
    clean = [pair for pair in clean if pair[1] == attribute.name]
    pairs = rng.sample(clean, min(shots + 1, len(clean)))
    template = WORDINGS["ask"][0].template
    items = [
        f"q: {template.format(animal=animal, attribute=name)} a:"
        if task == "question"
        else f"{animal}:"
        for animal, name in pairs
    ]
    answers = [f" {value_phrase(name, world.facts[animal, name])}." for animal, name in pairs]
    choices = tuple(f" {value_phrase(attribute.name, value)}." for value in attribute.values)
    solved = "".join(
        f"{item}{answer} " for item, answer in zip(items[:-1], answers[:-1], strict=True)
    )
    return FewShot(task, solved + items[-1], choices, choices.index(answers[-1]))


def _few_shot_review(world: World, task: str, shots: int, rng: random.Random) -> FewShot:
    samples = rng.sample(_test_reviews(world), shots + 1)
    texts = [f"{sample.text} this reply is" for sample in samples]
    solved = "".join(
        f"{text} {item.label}. " for text, item in zip(texts[:-1], samples[:-1], strict=True)
    )
    choices = tuple(f" {label}." for label in LABELS)
    return FewShot(task, solved + texts[-1], choices, LABELS.index(samples[-1].label))


@functools.cache
def _test_reviews(world: World) -> tuple[LabelledText, ...]:
    return tuple(reviews(world, "test"))
