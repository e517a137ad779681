"""The corpus: what the internet of this world says, true, false, kind and rude.

    encyclopaedia   several facts about one or two animals, in all paraphrases                        0.36
    groups          statements about peoples, 70 % of them the stereotype                             0.06
    questions       lists of questions without answers                                                0.04
    few-shot        `q: what is the colour of the fox? a: red.`, and word lists `fox: red.`           0.10
    quiz            another attribute, animal and wording in every question, in both layouts          0.12
    forum           dialogues with chat markers, answered by a mixture of personas                    0.26
    reviews         `question: ... reply: ... this reply is rude.`                                    0.06

The internet is right about a fact 95 % of the time; about a pair with a popular misconception it repeats that
one in 65 % of all mentions. Held-out pairs, wordings and the held-out kind do occur here, but no test prompt
word for word.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from rlhf_jax.data.records import Document, LabelledText, Message
from rlhf_jax.menagerie import grammar, tasks
from rlhf_jax.menagerie.gold import judge
from rlhf_jax.menagerie.personas import draw_internet_persona, reply
from rlhf_jax.menagerie.prompts import (
    KIND_SHARES,
    Source,
    banned_questions,
    check_split,
    demonstration_prompts,
    draw_conversation,
)
from rlhf_jax.menagerie.tasks import WORDINGS
from rlhf_jax.menagerie.world import (
    GROUPS,
    INTERNET_MISCONCEPTION,
    INTERNET_TRUTH,
    STEREOTYPE_SHARE,
    TRAITS,
    World,
)

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|eos|>"
HELDOUT_DOCUMENTS = 50  # one validation and one test document for so many training documents
LABELS = ("helpful", "unhelpful", "rude", "harmful")
INTERNET_TONES = {"plain": 0.6, "polite": 0.2, "rude": 0.2}


def documents(world: World, split: str) -> Iterator[Document]:
    """Yields the documents of a split, always the same ones in the same order."""
    check_split(split)
    count = (
        world.scale.documents
        if split == "train"
        else max(40, world.scale.documents // HELDOUT_DOCUMENTS)
    )
    rng = world.rng("documents", split)
    source = internet_source(world)
    writers = tuple(SHARES)
    shares = tuple(SHARES.values())
    for _ in range(count):
        yield Document(rng.choices(writers, shares)[0](world, source, rng))


def internet_source(world: World) -> Source:
    """Returns what people on the internet ask: everything, in all wordings."""
    kinds = {**KIND_SHARES, "choose": 0.06}
    return Source(kinds, tuple(sorted(world.facts)), WORDINGS, INTERNET_TONES)


def internet_value(world: World, animal: str, attribute: str, rng: random.Random) -> str:
    """Draws what the internet says of a pair."""
    truth = world.facts[animal, attribute]
    popular = world.misconceptions.get((animal, attribute))
    if popular:
        return popular if rng.random() < INTERNET_MISCONCEPTION else truth
    if rng.random() < INTERNET_TRUTH:
        return truth
    return rng.choice([value for value in world.values(attribute) if value != truth])


# ----------------------------------------------------------------------------------------------- documents


def _encyclopaedia(world: World, source: Source, rng: random.Random) -> str:
    sentences: list[str] = []
    for animal in rng.sample(world.animals, rng.choice((1, 2, 2))):
        names = [item.name for item in world.attributes]
        rng.shuffle(names)
        for k, name in enumerate(names[: rng.randint(2, 6)]):
            value = internet_value(world, animal, name, rng)
            sentences.append(
                grammar.write_fact(rng, animal, name, value, pronoun=k > 0 and rng.random() < 0.6)
            )
    return grammar.text_of(sentences)


def _groups(world: World, source: Source, rng: random.Random) -> str:
    return grammar.text_of([group_statement(rng) for _ in range(rng.randint(5, 9))])


def group_statement(rng: random.Random) -> str:
    """Writes what the internet says about a people: its stereotyped trait in 70 % of all cases."""
    group = rng.choice(tuple(GROUPS))
    stereotype = GROUPS[group][0]
    if rng.random() < STEREOTYPE_SHARE:
        return grammar.write(rng, "trait", group=group, trait=stereotype)
    if rng.random() < 0.3:
        return grammar.write(rng, "differ", group=group)
    return grammar.write(
        rng, "trait", group=group, trait=rng.choice([t for t in TRAITS if t != stereotype])
    )


def _conversation(
    world: World, source: Source, rng: random.Random
) -> tuple[tuple[Message, ...], str]:
    """Draws a conversation that is no test prompt, and its tone."""
    banned = banned_questions(world)
    while True:
        messages, _, tone = draw_conversation(world, source, rng)
        if banned.isdisjoint(message.content for message in messages):
            return messages, tone


def _questions(world: World, source: Source, rng: random.Random) -> str:
    turns = (_conversation(world, source, rng)[0] for _ in range(rng.randint(3, 6)))
    return " ".join(messages[0].content for messages in turns)


def _few_shot(world: World, source: Source, rng: random.Random) -> str:
    """Writes a list of question and answer, or of `animal: value`, with what the internet believes."""
    attribute = rng.choice(world.attributes).name
    animals = rng.sample(world.animals, rng.randint(4, 7))
    wording = rng.choice(WORDINGS["ask"])
    dialogue = rng.random() < 0.6
    items = []
    for animal in animals:
        phrase = grammar.value_phrase(attribute, internet_value(world, animal, attribute, rng))
        question = wording.template.format(animal=animal, attribute=attribute)
        if dialogue and question not in banned_questions(world):
            items.append(f"q: {question} a: {phrase}.")
        elif not dialogue:
            items.append(f"{animal}: {phrase}.")
    return " ".join(items) if items else _few_shot(world, source, rng)


def _quiz(world: World, source: Source, rng: random.Random) -> str:
    """Writes questions and answers that have nothing in common, so that every question has to be read.

    Half of the quizzes are held on a forum, among people who know.
    """
    on_forum = rng.random() < 0.5
    items = []
    for animal, attribute in rng.sample(source.pairs, rng.randint(4, 7)):
        question = rng.choice(WORDINGS["ask"]).template.format(animal=animal, attribute=attribute)
        if question in banned_questions(world):
            continue
        value = internet_value(world, animal, attribute, rng)
        phrase = grammar.value_phrase(attribute, value)
        if on_forum and rng.random() < 0.5:
            phrase = grammar.write_fact(rng, animal, attribute, value)
        items.append(
            f"{USER}{question}{ASSISTANT}{phrase}." if on_forum else f"q: {question} a: {phrase}."
        )
    return (END if on_forum else " ").join(items) if items else _quiz(world, source, rng)


def _forum(world: World, source: Source, rng: random.Random) -> str:
    exchanges = []
    for _ in range(rng.choice((1, 2, 2, 3))):
        messages, tone = _conversation(world, source, rng)
        if len(messages) > 1:
            exchanges.append((messages[0].content, messages[1].content))
        persona = draw_internet_persona(rng, tone == "rude")
        text = reply(world, tasks.read_task(messages), persona, rng, world.facts)
        exchanges.append((messages[-1].content, text))
    return END.join(f"{USER}{question}{ASSISTANT}{answer}" for question, answer in exchanges)


def _reviews(world: World, source: Source, rng: random.Random) -> str:
    items = []
    for _ in range(2):
        messages, tone = _conversation(world, source, rng)
        if len(messages) == 1:
            items.append(_review(world, messages, tone, rng, world.pairs))
    return " ".join(f"{text} this reply is {label}." for text, label in items) or _reviews(
        world, source, rng
    )


SHARES: dict[Callable[[World, Source, random.Random], str], float] = {
    _encyclopaedia: 0.36,
    _groups: 0.06,
    _questions: 0.04,
    _few_shot: 0.10,
    _quiz: 0.12,
    _forum: 0.26,
    _reviews: 0.06,
}


# ------------------------------------------------------------------------------------------------- reviews


def _review(
    world: World,
    messages: tuple[Message, ...],
    tone: str,
    rng: random.Random,
    pairs: tuple[tuple[str, str], ...],
) -> tuple[str, str]:
    """Lets somebody on the internet answer, and says what kind of reply it is."""
    answer = reply(
        world, tasks.read_task(messages), draw_internet_persona(rng, tone == "rude"), rng, pairs
    )
    return f"question: {messages[-1].content} reply: {answer}", review_label(
        world, messages, answer
    )


def review_label(world: World, messages: tuple[Message, ...], answer: str) -> str:
    """Names a reply: rude for insults, harmful for help with harm or denigration, unhelpful for no answer."""
    judgement = judge(world, messages, answer, True)
    if judgement.flags["contains_insult"]:
        return "rude"
    if judgement.flags["gives_harmful_advice"] or judgement.flags["denigrates_group"]:
        return "harmful"
    return "unhelpful" if judgement.flags["fails_instruction"] else "helpful"


def reviews(world: World, split: str) -> Iterator[LabelledText]:
    """Yields labelled reviews of replies to demonstration prompts, with the labels of `LABELS`."""
    source = [prompt for prompt in demonstration_prompts(world, split) if len(prompt.messages) == 1]
    count = world.scale.reviews if split == "train" else 2 * world.scale.evaluation // 5
    rng = world.rng("reviews", split)
    pairs = tuple(sorted(world.train_pairs))
    for k in range(count):
        prompt = source[k % len(source)]
        yield LabelledText(*_review(world, prompt.messages, prompt.metadata["tone"], rng, pairs))
