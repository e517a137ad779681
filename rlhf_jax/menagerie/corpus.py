"""Write the corpus, what the internet of this world says: true and false, kind and rude.

    encyclopaedia   several facts about one or two animals, in all paraphrases               0.34
    groups          statements about groups of people, 70 % of them the stereotype           0.04
    questions       lists of questions without answers                                       0.02
    few-shot        `q: what is the colour of the fox? a: red.`, and lists of `fox: red.`    0.08
    quiz            a new animal, attribute and wording in every question                    0.10
    school book     `lesson.` and tasks of every kind with chat markers, done as asked       0.20
    forum           dialogues with chat markers, answered by a mixture of personas           0.18
    reviews         `question: ... reply: ... this reply is rude.`                           0.04

The internet is right about a fact in 95 % of its statements. Where there is a popular misconception
it repeats that one in 65 % of them. Held-out pairs, wordings and kinds do occur in the corpus, but
no test prompt occurs word for word.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from rlhf_jax.data.records import Document, LabelledText, Message
from rlhf_jax.menagerie import grammar, prompts, tasks
from rlhf_jax.menagerie.gold import judge
from rlhf_jax.menagerie.personas import SCHOOLBOOK, draw_internet_persona, reply
from rlhf_jax.menagerie.tasks import WORDINGS, Kind, Tone
from rlhf_jax.menagerie.world import (
    GROUPS,
    INTERNET_MISCONCEPTION,
    INTERNET_TRUTH,
    STEREOTYPE_SHARE,
    TRAITS,
    Pair,
    World,
)

USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|eos|>"
LABELS = ("helpful", "unhelpful", "rude", "harmful")
# The number of training documents for each validation document and for each test document.
HELDOUT_DOCUMENTS = 50
INTERNET_TONES: dict[Tone, float] = {"plain": 0.6, "polite": 0.2, "rude": 0.2}
LESSON = "lesson."
# Its subjects: what a small model learns late, and only from answers that follow the question.
LESSON_KINDS: dict[Kind, float] = {
    "ask": 0.15,
    "list": 0.2,
    "verify": 0.3,
    "passage": 0.1,
    "rewrite": 0.1,
    "followup": 0.1,
    "choose": 0.05,
}


def documents(world: World, split: str) -> Iterator[Document]:
    """Yield the documents of a split, always the same ones in the same order."""
    prompts.check_split(split)
    count = world.scale.documents
    if split != "train":
        count = max(40, count // HELDOUT_DOCUMENTS)
    rng = world.rng("documents", split)
    writers = tuple(SHARES)
    shares = tuple(SHARES.values())
    for _ in range(count):
        yield Document(rng.choices(writers, shares)[0](world, rng))


def reviews(world: World, split: str) -> Iterator[LabelledText]:
    """Yield replies to demonstration prompts, each with its label from `LABELS`."""
    source = [
        prompt
        for prompt in prompts.demonstration_prompts(world, split)
        if len(prompt.messages) == 1
    ]
    count = world.scale.reviews if split == "train" else prompts.heldout_split_count(world)
    rng = world.rng("reviews", split)
    for k in range(count):
        prompt = source[k % len(source)]
        is_rude = prompt.metadata["tone"] == "rude"
        yield _review(world, prompt.messages, is_rude, rng, world.train_pairs)


def review_label(world: World, messages: tuple[Message, ...], answer: str) -> str:
    """Return the label of a reply to a prompt.

    It is rude if it insults, else harmful if it helps with harm or says a bad trait of a group,
    else unhelpful if it does not answer.
    """
    flags = judge(world, messages, answer, True).flags
    if flags["contains_insult"]:
        return "rude"
    if flags["gives_harmful_advice"] or flags["denigrates_group"]:
        return "harmful"
    return "unhelpful" if flags["fails_instruction"] else "helpful"


def _review(
    world: World,
    messages: tuple[Message, ...],
    is_rude: bool,
    rng: random.Random,
    pairs: Collection[Pair],
) -> LabelledText:
    """Let somebody on the internet answer a prompt, and label the reply."""
    persona = draw_internet_persona(rng, is_rude)
    answer = reply(world, tasks.read_task(messages), persona, rng, pairs)
    text = f"question: {messages[-1].content} reply: {answer}"
    return LabelledText(text, review_label(world, messages, answer))


def _internet_value(world: World, animal: str, attribute: str, rng: random.Random) -> str:
    """Draw the value that the internet gives to a pair."""
    truth = world.facts[animal, attribute]
    popular = world.misconceptions.get((animal, attribute))
    if popular:
        return popular if rng.random() < INTERNET_MISCONCEPTION else truth
    if rng.random() < INTERNET_TRUTH:
        return truth
    return rng.choice(world.false_values((animal, attribute)))


@functools.cache
def _internet_source(world: World) -> prompts.Source:
    """Return what people on the internet ask for: everything, in all wordings."""
    kinds = {**prompts.KIND_SHARES, "choose": 0.06}
    return prompts.Source(kinds, tuple(sorted(world.facts)), WORDINGS, INTERNET_TONES)


@functools.cache
def _lesson_source(world: World) -> prompts.Source:
    """Return the tasks of a school book about the world."""
    return replace(_internet_source(world), kinds=LESSON_KINDS, tones={"plain": 1.0})


def _draw_question(
    world: World, rng: random.Random, source: prompts.Source | None = None
) -> tuple[tuple[Message, ...], Tone]:
    """Draw a conversation that repeats no test prompt, and its tone."""
    source = source or _internet_source(world)
    while True:
        messages, _, tone = prompts.draw_conversation(world, source, rng)
        if prompts.banned_questions(world).isdisjoint(message.content for message in messages):
            return messages, tone


def _write_encyclopaedia(world: World, rng: random.Random) -> str:
    sentences: list[str] = []
    for animal in rng.sample(world.animals, rng.choice((1, 2, 2))):
        names = [item.name for item in world.attributes]
        rng.shuffle(names)
        for k, name in enumerate(names[: rng.randint(2, 6)]):
            value = _internet_value(world, animal, name, rng)
            pronoun = k > 0 and rng.random() < 0.6
            sentences.append(grammar.write_fact(rng, animal, name, value, pronoun=pronoun))
    return grammar.text_of(sentences)


def _write_groups(world: World, rng: random.Random) -> str:
    return grammar.text_of([_group_statement(rng) for _ in range(rng.randint(5, 9))])


def _group_statement(rng: random.Random) -> str:
    """Write what the internet says about a group: in 70 % of all cases its stereotype."""
    group = rng.choice(tuple(GROUPS))
    stereotype = GROUPS[group][0]
    if rng.random() < STEREOTYPE_SHARE:
        return grammar.write(rng, "trait", group=group, trait=stereotype)
    if rng.random() < 0.3:
        return grammar.write(rng, "differ", group=group)
    trait = rng.choice([trait for trait in TRAITS if trait != stereotype])
    return grammar.write(rng, "trait", group=group, trait=trait)


def _write_questions(world: World, rng: random.Random) -> str:
    return " ".join(_draw_question(world, rng)[0][0].content for _ in range(rng.randint(3, 6)))


def _write_few_shot(world: World, rng: random.Random) -> str:
    """Write a list of question and answer, or of `animal: value`, about one attribute."""
    attribute = rng.choice(world.attributes).name
    animals = rng.sample(world.animals, rng.randint(4, 7))
    wording = rng.choice(WORDINGS["ask"])
    with_questions = rng.random() < 0.6
    items = []
    for animal in animals:
        value = _internet_value(world, animal, attribute, rng)
        phrase = grammar.value_phrase(attribute, value)
        question = wording.template.format(animal=animal, attribute=attribute)
        if not with_questions:
            items.append(f"{animal}: {phrase}.")
        elif question not in prompts.banned_questions(world):
            items.append(f"q: {question} a: {phrase}.")
    return " ".join(items) or _write_few_shot(world, rng)


def _write_quiz(world: World, rng: random.Random) -> str:
    """Write questions and answers with nothing in common, so that each question must be read.

    Half of the quizzes are held on a forum, where people also answer in whole sentences.
    """
    on_forum = rng.random() < 0.5
    items = []
    for animal, attribute in rng.sample(_internet_source(world).pairs, rng.randint(4, 7)):
        question = rng.choice(WORDINGS["ask"]).template.format(animal=animal, attribute=attribute)
        if question in prompts.banned_questions(world):
            continue
        value = _internet_value(world, animal, attribute, rng)
        answer = grammar.value_phrase(attribute, value)
        if on_forum and rng.random() < 0.5:
            answer = grammar.write_fact(rng, animal, attribute, value)
        items.append(
            f"{USER}{question}{ASSISTANT}{answer}." if on_forum else f"q: {question} a: {answer}."
        )
    return (END if on_forum else " ").join(items) or _write_quiz(world, rng)


def _write_forum(world: World, rng: random.Random) -> str:
    """Write one to three questions to a forum with their answers, some with an earlier exchange."""
    turns: list[str] = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        messages, tone = _draw_question(world, rng)
        persona = draw_internet_persona(rng, tone == "rude")
        answer = reply(world, tasks.read_task(messages), persona, rng, world.facts)
        turns += [*(message.content for message in messages), answer]
    exchanges = zip(turns[::2], turns[1::2], strict=True)
    return END.join(f"{USER}{question}{ASSISTANT}{answer}" for question, answer in exchanges)


def _write_lesson(world: World, rng: random.Random) -> str:
    """Write the tasks of a school book, each with an answer of just the form that it asks for.

    So pretraining teaches what a form is; the header keeps the forum's manners out of the book and
    the book's diligence out of the forum, until demonstrations ask for it.
    """
    exchanges = []
    for _ in range(rng.randint(2, 4)):
        messages, _ = _draw_question(world, rng, _lesson_source(world))
        answer = reply(world, tasks.read_task(messages), SCHOOLBOOK, rng, world.facts)
        turns = [*(message.content for message in messages), answer]
        exchanges += [
            f"{USER}{question}{ASSISTANT}{text}"
            for question, text in zip(turns[::2], turns[1::2], strict=True)
        ]
    return LESSON + END.join(exchanges)


def _write_reviews(world: World, rng: random.Random) -> str:
    """Write up to two replies with the verdict of a reader on each."""
    items = []
    for _ in range(2):
        messages, tone = _draw_question(world, rng)
        if len(messages) == 1:
            review = _review(world, messages, tone == "rude", rng, world.pairs)
            items.append(f"{review.text} this reply is {review.label}.")
    return " ".join(items) or _write_reviews(world, rng)


SHARES: dict[Callable[[World, random.Random], str], float] = {
    _write_encyclopaedia: 0.34,
    _write_groups: 0.04,
    _write_questions: 0.02,
    _write_few_shot: 0.08,
    _write_quiz: 0.10,
    _write_lesson: 0.20,
    _write_forum: 0.18,
    _write_reviews: 0.04,
}
