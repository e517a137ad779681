"""Ask Ross and Bagnell's question of a language model: does one error lead to the next?

Asked for n facts, a reply is a sequence of decisions, one per sentence, the last of which is to
stop. A decision is wrong, by the gold judge's own reading, if its sentence is unreadable, an
insult, beside the point, a repetition, a contradiction or false, if it brings more facts than were
asked for, or if the reply stops before there are enough.

    forced   the model writes sentence k after the first k-1 sentences of an ideal reply (the
             expert's states)
    own      ... after the k-1 sentences that it wrote itself (the model's states)

Teacher-forced training sees the first distribution only. What compounding there is shows in errors
on own prefixes that exceed the forced ones at the same position, and in errors that follow an error
more often than they follow none.

Left out on purpose: tokens as decisions. Whether a token is right can often not be told before the
sentence ends.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import LoadedModel
from rlhf_jax.evaluation.generate import Generation, GenerationSettings, complete
from rlhf_jax.inference.decoding import PLAIN
from rlhf_jax.menagerie import grammar
from rlhf_jax.menagerie.gold import Reading, read_reply, true_value
from rlhf_jax.menagerie.personas import ideal
from rlhf_jax.menagerie.tasks import WORDINGS, Task, word
from rlhf_jax.menagerie.world import World

SENTENCE = 16  # tokens: room for any one sentence of the grammar
LONGEST = 48  # tokens of a reply


class Request(NamedTuple):
    """Hold a list that is asked for, and the sentences of an ideal reply."""

    task: Task
    message: Message
    expert: tuple[str, ...]


class Decision(NamedTuple):
    """Describe one sentence or the stop: where it stands, after whose words, and whether wrong."""

    request: int
    position: int  # sentences before it
    own: bool
    clean: bool  # nothing before it was wrong
    wrong: bool


def make_requests(world: World, numbers: Sequence[int]) -> list[Request]:
    """Make a request for so many facts about every animal, in a wording that training uses."""
    rng = world.rng("exposure")
    wordings = [wording for wording in WORDINGS["list"] if wording.split == "train"]
    requests = []
    for animal in world.animals:
        for number in numbers:
            task = Task("list", animal, number=number)
            message = Message("user", word(task, rng.choice(wordings), rng))
            expert = grammar.sentences_of(ideal(world, task, rng))
            requests.append(Request(task, message, expert))
    return requests


def is_wrong(world: World, task: Task, before: str, sentence: str) -> bool:
    """Return whether this sentence, or stopping if it is empty, is an error after `before`."""
    then, now = read_reply(task, before), read_reply(task, f"{before} {sentence}".strip())
    if not sentence:
        return _num_facts(now) < task.number
    claims = now.relevant[len(then.relevant) :]
    return (
        any(now.tally[kind] > then.tally[kind] for kind in ("unreadable", "insult"))
        or now.stray > then.stray
        or now.contradiction > then.contradiction
        or any(c.value != true_value(world, task, c.animal, c.attribute) for c in claims)
        or (_num_facts(now) > task.number and _num_facts(now) > _num_facts(then))
    )


def _num_facts(reading: Reading) -> int:
    return len({claim.attribute for claim in reading.relevant})


def sample_decisions(
    world: World,
    requests: Sequence[Request],
    policy: LoadedModel,
    tokenizer: Tokenizer,
    key: jax.Array,
    num_samples: int,
) -> list[Decision]:
    """Sample decisions at every position of every ideal reply, and replies of the model's own.

    Raises:
        ValueError: a prompt, an ideal reply and one more sentence do not fit the model's context.
    """
    prompts = [render(tokenizer, [r.message], generation_prompt=True).ids for r in requests]
    spots = [(n, k) for n, request in enumerate(requests) for k in range(len(request.expert) + 1)]
    prefixes = [" ".join(requests[n].expert[:k]) for n, k in spots]
    prefix_ids = tokenizer.encode_batch(prefixes, special=False)
    contexts = [prompts[n] + ids for (n, _), ids in zip(spots, prefix_ids, strict=True)]

    def draw(texts: Sequence[Any], length: int, number: int) -> list[list[Generation]]:
        longest, room = max(map(len, texts)), policy.model.config.context_length
        if longest + length > room:
            raise ValueError(
                f"{longest} tokens of prompt and reply and {length} to come exceed the model's "
                f"context of {room}; ask for fewer facts"
            )
        settings = GenerationSettings(PLAIN, longest, length, 256, num_samples)
        return complete(*policy, tokenizer, texts, jax.random.fold_in(key, number), settings)

    forced, own = draw(contexts, SENTENCE, 0), draw(prompts, LONGEST, 1)
    decisions = []
    for (number, k), prefix, samples in zip(spots, prefixes, forced, strict=True):
        for sample in samples:
            sentence = (*grammar.sentences_of(sample.text), "")[0]
            wrong = is_wrong(world, requests[number].task, prefix, sentence)
            decisions.append(Decision(number, k, own=False, clean=True, wrong=wrong))
    for number, samples in enumerate(own):
        for sample in samples:
            decisions += own_decisions(world, number, requests[number].task, sample)
    return decisions


def own_decisions(world: World, number: int, task: Task, reply: Generation) -> list[Decision]:
    """Return every decision of a whole reply.

    An unfinished one ends with an unreadable sentence, or never decided to stop.
    """
    sentences = [*grammar.sentences_of(reply.text), *([""] if reply.finished else [])]
    decisions: list[Decision] = []
    clean = True
    for k, sentence in enumerate(sentences):
        wrong = is_wrong(world, task, " ".join(sentences[:k]), sentence)
        decisions.append(Decision(number, k, own=True, clean=clean, wrong=wrong))
        clean = clean and not wrong
    return decisions
