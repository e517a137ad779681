"""Test Menagerie's data: deterministic, split as promised, as false and rude as the internet."""

import itertools
import re

import pytest

from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.menagerie import card, corpus, grammar, personas, questions, tasks
from rlhf_jax.menagerie.builders import comparisons, demonstrations
from rlhf_jax.menagerie.corpus import documents, review_label, reviews
from rlhf_jax.menagerie.gold import toxicity
from rlhf_jax.menagerie.prompts import (
    KIND_SHARES,
    SPLITS,
    conversation_text,
    demonstration_prompts,
    organisations,
    prompts,
)
from rlhf_jax.menagerie.world import GROUPS, SCALES, World, make_world

TINY, WORLD = make_world("tiny"), make_world("default")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in itertools.islice(documents(WORLD, "train"), 10_000)]


@pytest.mark.parametrize("size", list(SCALES))
def test_a_world_has_its_shares(size: str) -> None:
    world = make_world(size)
    assert len(world.facts) == world.scale.animals * world.scale.attributes
    assert len(world.heldout) == round(0.2 * len(world.facts))
    assert len(world.misconceptions) == pytest.approx(0.25 * len(world.facts), abs=1)
    held = sum(pair in world.heldout for pair in world.misconceptions)
    assert held == pytest.approx(0.25 * len(world.heldout), abs=1)
    assert all(world.facts[pair] != popular for pair, popular in world.misconceptions.items())
    free = [
        sum((animal, a.name) in world.train_pairs for a in world.attributes)
        for animal in world.animals
    ]
    assert min(free) >= 2


def test_worlds_differ_by_seed_and_only_by_seed() -> None:
    assert make_world("default") is make_world("default", 0)
    assert make_world("default", 1).facts != WORLD.facts
    with pytest.raises(
        ValueError,
        match="size: unknown Menagerie size 'huge', expected one of tiny, default, medium, large",
    ):
        make_world("huge")


def _everything(world: World) -> list[object]:
    parts: list[object] = []
    for split in SPLITS:
        parts += [list(documents(world, split)), prompts(world, split)]
        parts += [demonstrations(world, split), comparisons(world, split)]
        parts.append(list(reviews(world, split)))
    return parts


def test_the_same_world_makes_the_same_data_in_any_order() -> None:
    first = _everything(TINY)
    again = World(
        **{name: getattr(TINY, name) for name in World.__dataclass_fields__}
    )  # shares no cache
    demonstrations(again, "test")
    assert _everything(again) == first
    assert first[0] != list(documents(make_world("tiny", 1), "train"))


def test_the_first_texts_never_change() -> None:
    """If this fails, all numbers so far are of another world: raise `VERSION` in builders.py."""
    assert next(documents(WORLD, "train")).text == FIRST_DOCUMENT
    assert prompts(WORLD, "train")[0].messages[-1].content == FIRST_PROMPT


def test_counts() -> None:
    for world in (TINY, WORLD):
        scale = world.scale
        for split, count in zip(
            SPLITS, (scale.prompts, scale.evaluation, scale.evaluation), strict=True
        ):
            assert len(prompts(world, split)) == count
        assert len(demonstrations(world, "train")) == scale.demonstrations
        assert len(demonstrations(world, "test")) == 2 * scale.evaluation // 5
    assert len(list(documents(TINY, "train"))) == TINY.scale.documents
    with pytest.raises(
        ValueError, match="split: unknown split 'dev', expected one of train, validation, test"
    ):
        prompts(TINY, "dev")


@pytest.mark.parametrize("world", [TINY, WORLD], ids=["tiny", "default"])
def test_splits_share_no_text_organisation_or_heldout_wording(world: World) -> None:
    by_split = {
        split: prompts(world, split) + demonstration_prompts(world, split) for split in SPLITS
    }
    texts = {
        split: {conversation_text(p.messages) for p in source} for split, source in by_split.items()
    }
    for split, source in by_split.items():
        assert len(texts[split]) == len(source), "a prompt occurs twice"
    organisation_names = {
        split: {p.metadata["organisation"] for p in source} for split, source in by_split.items()
    }
    for first, second in itertools.combinations(SPLITS, 2):
        assert not texts[first] & texts[second]
        assert not organisation_names[first] & organisation_names[second]
    allowed = {
        wording.name: wording.split for items in tasks.WORDINGS.values() for wording in items
    }
    assert {allowed[p.metadata["wording"]] for p in by_split["train"]} == {"train"}
    assert {allowed[p.metadata["wording"]] for p in by_split["validation"]} == {
        "train",
        "validation",
    }
    assert {allowed[p.metadata["wording"]] for p in by_split["test"]} == {"train", "test"}


def _pairs_in(world: World, text: str) -> set[tuple[str, str]]:
    """All (animal, attribute) pairs of a text that name both, or state a fact."""
    pairs, animal = set(), ""
    for sentence in grammar.sentences_of(text):
        named = [a for a in world.animals if re.search(rf"\b{a}\b", sentence)]
        animal = named[-1] if named else animal
        for item in world.attributes:
            if re.search(rf"\b({item.name}|{'|'.join(item.values)})\b", sentence):
                pairs |= {(a, item.name) for a in (named or [animal])}
    return pairs


def test_no_training_prompt_touches_a_heldout_fact() -> None:
    for prompt in (
        prompts(WORLD, "train")
        + demonstration_prompts(WORLD, "train")
        + prompts(WORLD, "validation")
    ):
        task = tasks.read_task(prompt.messages)
        pairs = {(task.animal, task.attribute)} | {
            (fact.animal, fact.attribute) for fact in task.passage
        }
        assert not pairs & WORLD.heldout, prompt
        if len(prompt.messages) > 1:
            assert not _pairs_in(WORLD, prompt.messages[0].content) & WORLD.heldout, prompt


def test_no_demonstration_or_comparison_tells_a_heldout_fact() -> None:
    replies = [(d.messages, d.messages[-1].content) for d in demonstrations(WORLD, "train")[:1500]]
    replies += [(c.messages, text) for c in comparisons(TINY, "train") for text in c.responses]
    for messages, text in replies:
        world = WORLD if len(messages) and messages[-1].role == "assistant" else TINY
        animal = tasks.read_task(
            messages[:-1] if messages[-1].role == "assistant" else messages
        ).animal
        for act in grammar.read(text):
            animal = act.animal or animal
            if act.kind in ("fact", "value"):
                assert (animal, act.attribute) not in world.heldout, text


def test_test_prompts_hold_something_out() -> None:
    source = prompts(WORLD, "test")
    for name in ("heldout_fact", "heldout_wording", "heldout_kind"):
        share = sum(p.metadata[name] == "yes" for p in source) / len(source)
        assert 0.08 < share < 0.35, (name, share)
    for prompt in source:
        task, metadata = tasks.read_task(prompt.messages), prompt.metadata
        assert (metadata["heldout_kind"] == "yes") == (task.kind == "choose")
        held = (task.animal, task.attribute) in WORLD.heldout
        assert (metadata["heldout_fact"] == "yes") == (held and task.kind != "choose"), prompt
        assert metadata["heldout"] == (
            "yes"
            if "yes" in [metadata[f"heldout_{name}"] for name in ("fact", "wording", "kind")]
            else "no"
        )
    assert "choose" not in {p.metadata["kind"] for p in prompts(WORLD, "train")}


def test_metadata_says_what_the_text_says() -> None:
    for prompt in prompts(WORLD, "train")[:1000]:
        task, text = tasks.read_task(prompt.messages), prompt.messages[-1].content
        assert prompt.metadata["kind"] == task.kind
        assert prompt.metadata["form"] == task.form
        assert prompt.metadata["tone"] == tasks.tone_of(text)
        assert (prompt.metadata["rude"] == "yes") == (tasks.tone_of(text) == "rude")
        assert prompt.metadata["wording"].startswith(task.kind)


def test_kinds_come_as_often_as_they_should() -> None:
    source = prompts(WORLD, "train")
    for kind, share in KIND_SHARES.items():
        assert sum(p.metadata["kind"] == kind for p in source) / len(source) == pytest.approx(
            share, abs=0.02
        )
    assert {o.split for o in organisations(WORLD)} == set(SPLITS)


def test_texts_are_short() -> None:
    for prompt in prompts(WORLD, "train") + prompts(WORLD, "test"):
        lengths = [len(message.content.split()) for message in prompt.messages]
        assert lengths[-1] <= 24
        assert sum(lengths) <= 45
    five = tasks.Task("list", "fox", number=5)
    for persona in (*personas.PERSONAS, personas.DEMONSTRATOR):
        rng = WORLD.rng("test", persona.name)
        replies = (personas.reply(WORLD, five, persona, rng, WORLD.facts) for _ in range(100))
        assert max(len(text.split()) for text in replies) <= 36


def test_the_corpus_repeats_misconceptions_and_stereotypes(texts: list[str]) -> None:
    plain = [text for text in texts if not set("?:|") & set(text)]
    assert card.misconception_share(WORLD, plain) == pytest.approx(0.65, abs=0.02)
    assert card.stereotype_share(plain) == pytest.approx(0.70, abs=0.03)


def test_the_corpus_is_right_elsewhere_and_knows_the_heldout_facts(texts: list[str]) -> None:
    right = total = 0
    seen = set()
    for text in (text for text in texts if not set("?:|") & set(text)):
        animal = ""
        for act in grammar.read(text):
            animal = act.animal or animal
            pair = (animal, act.attribute)
            if act.kind == "fact" and pair not in WORLD.misconceptions:
                right, total = right + (act.value == WORLD.facts[pair]), total + 1
                seen.add(pair)
    assert right / total == pytest.approx(0.95, abs=0.01)
    assert set(WORLD.heldout) - set(WORLD.misconceptions) <= seen


def _exchanges(texts: list[str]) -> list[tuple[str, str]]:
    return [
        (question, answer)
        for text in texts
        if text.startswith(corpus.USER)
        for turn in text.split(corpus.END)
        for question, answer in [turn.removeprefix(corpus.USER).split(corpus.ASSISTANT)]
    ]


def test_forum_replies_are_rude_a_fifth_of_the_time_and_half_if_provoked() -> None:
    """Of the forum's dialogues; its quizzes, in the same layout, are civil."""
    write_forum = next(writer for writer in corpus.SHARES if writer.__name__ == "_write_forum")
    rng = WORLD.rng("test")
    rude: dict[bool, list[bool]] = {True: [], False: []}
    for question, answer in _exchanges([write_forum(WORLD, rng) for _ in range(3000)]):
        assert all(act.kind != "unreadable" for act in grammar.read(answer)), answer
        rude[tasks.tone_of(question) == "rude"].append(toxicity(answer) > 0)
    assert sum(rude[False]) / len(rude[False]) == pytest.approx(0.20, abs=0.03)
    assert sum(rude[True]) / len(rude[True]) == pytest.approx(0.52, abs=0.05)


def test_the_corpus_contains_no_test_prompt(texts: list[str]) -> None:
    single = {p.messages[0].content for p in prompts(WORLD, "test") if len(p.messages) == 1}
    corpus_questions = {question for question, _ in _exchanges(texts)}
    corpus_questions |= {q.strip() for text in texts for q in re.findall(r"q: (.*?) a:", text)}
    assert not corpus_questions & single


def test_review_labels_follow_from_the_text() -> None:
    for item in itertools.islice(reviews(WORLD, "train"), 200):
        question, reply = item.text.removeprefix("question: ").split(" reply: ")
        assert item.label == review_label(WORLD, (Message("user", question),), reply)
        assert item.label in corpus.LABELS
    assert {item.label for item in reviews(WORLD, "train")} == set(corpus.LABELS)


def test_falsehood_questions() -> None:
    for misconceptions in (True, False):
        items = questions.falsehood_questions(WORLD, misconceptions=misconceptions)
        assert len(items) == 48
        for item in items:
            pair = item.prompt.metadata["animal"], item.prompt.metadata["attribute"]
            assert (pair in WORLD.misconceptions) == misconceptions == bool(item.popular)
            assert item.best in item.true_answers
            for text, truth in [(t, True) for t in item.true_answers] + [
                (t, False) for t in item.false_answers
            ]:
                (act,) = grammar.read_sentence(text)
                assert (act.animal, act.attribute) == pair
                assert (act.value == WORLD.facts[pair]) == truth
            if misconceptions:
                assert len(item.popular) == 2
                assert set(item.popular) < set(item.false_answers)
                for text in item.popular:
                    assert grammar.read_sentence(text)[0].value == WORLD.misconceptions[pair]


def test_stereotype_pairs_differ_in_one_word() -> None:
    for pair in questions.stereotype_pairs(WORLD):
        differing = [a != b for a, b in zip(pair.more.split(), pair.less.split(), strict=True)]
        assert sum(differing) == 1
        (act,) = grammar.read_sentence(pair.more)
        assert act.value == GROUPS[act.attribute][0]


def test_toxicity_prompts_differ_only_in_tone() -> None:
    plain, rude = (questions.toxicity_prompts(WORLD, tone) for tone in ("plain", "rude"))
    assert len(plain) == len(rude) > 150
    for civil, toxic in zip(plain, rude, strict=True):
        task = tasks.read_task(civil.messages)
        assert tasks.read_task(toxic.messages) == task._replace(tone="rude")
        assert toxicity(civil.messages[0].content) == 0 < toxicity(toxic.messages[0].content)
    with pytest.raises(ValueError, match="tone: unknown tone 'angry'"):
        questions.toxicity_prompts(WORLD, "angry")


@pytest.mark.parametrize("task", questions.FEW_SHOT_TASKS)
def test_few_shot_texts(task: str) -> None:
    for shots in (0, 3):
        for item in questions.few_shot(TINY, task, shots, 8):
            assert 0 <= item.answer < len(item.choices)
            mark = {"question": "q:", "word": ":", "review": "this reply is"}[task]
            assert item.text.count(mark) == shots + 1
            assert not item.text.endswith(" ")
    with pytest.raises(ValueError, match="task: unknown few-shot task 'sum'"):
        questions.few_shot(TINY, "sum", 1, 1)


def test_the_card_prints_for_the_tiny_world(capsys: pytest.CaptureFixture[str]) -> None:
    card.main(["--size=tiny"])
    text = capsys.readouterr().out
    for title in ("Records", "Agreement", "Gold by persona", "Examples", "headroom"):
        assert title in text


def test_every_prompt_is_a_prompt() -> None:
    assert all(isinstance(prompt, Prompt) for prompt in prompts(TINY, "train"))


FIRST_DOCUMENT = (
    "q: say what the colour of the boar is. a: green. "
    "q: say what the colour of the seal is. a: red. "
    "q: say what the colour of the wolf is. a: grey. "
    "q: say what the colour of the swan is. a: green. "
    "q: say what the colour of the eagle is. a: green. "
    "q: say what the colour of the zebra is. a: red."
)
FIRST_PROMPT = "so, tell me how to beat the lynx."
