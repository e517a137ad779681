"""Ross and Bagnell's question put to a language model: does one error lead to the next?

Asked for n facts, a reply is a sequence of decisions, one per sentence, the last of which is to stop. A decision is wrong, by
the gold judge's own reading, if its sentence is unreadable, an insult, beside the point, a repetition, a contradiction or
false, if it brings more facts than were wanted, or if the reply stops before there are enough.

    forced   the model writes sentence k after the first k-1 sentences of an ideal reply      (states of the expert)
    own      ... after the k-1 sentences that it wrote itself                                 (states of the model)

Teacher-forced training sees the first distribution only. What compounding there is shows in errors on own prefixes that exceed
the forced ones at the same position, and in errors that follow an error more often than they follow none.

Left out on purpose: tokens as decisions. Whether a token is right can often not be told before the sentence ends.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from rlhf_jax.data.chat import render
from rlhf_jax.data.records import Message
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.generate import GenerationSettings, complete
from rlhf_jax.inference.decoding import SamplingSpec
from rlhf_jax.menagerie import grammar
from rlhf_jax.menagerie.gold import Reading, read_reply, true_value
from rlhf_jax.menagerie.personas import ideal
from rlhf_jax.menagerie.tasks import WORDINGS, Task, word
from rlhf_jax.menagerie.world import World
from rlhf_jax.models.heads import LanguageModel, Params

SENTENCE = 16  # tokens: room for any one sentence of the grammar
LONGEST = 48  # tokens of a reply


class Request(NamedTuple):
    """A list that is asked for, and the sentences of an ideal reply."""

    task: Task
    message: Message
    expert: tuple[str, ...]


class Decision(NamedTuple):
    """One sentence, or the decision to stop: where it stood, after whose words, and whether it was wrong."""

    request: int
    position: int  # sentences before it
    own: bool
    clean: bool  # nothing before it was wrong
    wrong: bool


def requests(world: World, numbers: Sequence[int]) -> list[Request]:
    """A request for so many facts about every animal, in a wording that training uses."""
    rng = world.rng("exposure")
    wordings = [one for one in WORDINGS["list"] if one.split == "train"]
    found = []
    for animal in world.animals:
        for number in numbers:
            task = Task("list", animal, number=number)
            message = Message("user", word(task, rng.choice(wordings), rng))
            found.append(Request(task, message, grammar.sentences_of(ideal(world, task, rng))))
    return found


def is_wrong(world: World, task: Task, before: str, sentence: str) -> bool:
    """Whether this sentence, or stopping if it is empty, is an error after what was said before."""
    then, now = read_reply(task, before), read_reply(task, f"{before} {sentence}".strip())
    if not sentence:
        return _facts(now) < task.number
    claims = now.relevant[len(then.relevant) :]
    return (
        any(now.tally[kind] > then.tally[kind] for kind in ("unreadable", "insult"))
        or now.stray > then.stray
        or now.contradiction > then.contradiction
        or any(
            claim.value != true_value(world, task, claim.animal, claim.attribute)
            for claim in claims
        )
        or (_facts(now) > task.number and _facts(now) > _facts(then))
    )


def _facts(reading: Reading) -> int:
    return len({claim.attribute for claim in reading.relevant})


def decisions(
    world: World,
    asked: Sequence[Request],
    model: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    key: jax.Array,
    *,
    spec: SamplingSpec,
    num_samples: int,
    batch_size: int,
) -> list[Decision]:
    """`num_samples` draws at every position of every request's ideal reply, and as many replies of the model's own.

    Raises ValueError where a prompt, an ideal reply and one more sentence do not fit the model's context.
    """
    prompts = [render(tokenizer, [one.message], generation_prompt=True).ids for one in asked]
    spots = [(number, k) for number, one in enumerate(asked) for k in range(len(one.expert) + 1)]
    prefixes = [" ".join(asked[number].expert[:k]) for number, k in spots]
    contexts = [
        prompts[number] + ids
        for (number, _), ids in zip(
            spots, tokenizer.encode_batch(prefixes, special=False), strict=True
        )
    ]
    rest = {"batch_size": batch_size, "num_samples": num_samples}
    _check_room(contexts, model.config.context_length, SENTENCE)
    _check_room(prompts, model.config.context_length, LONGEST)
    forced = complete(
        model,
        params,
        tokenizer,
        contexts,
        jax.random.fold_in(key, 0),
        GenerationSettings(spec, max(map(len, contexts)), SENTENCE, **rest),
    )
    own = complete(
        model,
        params,
        tokenizer,
        prompts,
        jax.random.fold_in(key, 1),
        GenerationSettings(spec, max(map(len, prompts)), LONGEST, **rest),
    )

    found = []
    for (number, k), prefix, few in zip(spots, prefixes, forced, strict=True):
        for one in few:
            sentence = (*grammar.sentences_of(one.text), "")[0]
            found.append(
                Decision(
                    number, k, False, True, is_wrong(world, asked[number].task, prefix, sentence)
                )
            )
    for number, few in enumerate(own):
        for one in few:
            found += own_decisions(world, number, asked[number].task, one.text, one.finished)
    return found


def own_decisions(
    world: World, number: int, task: Task, text: str, finished: bool
) -> list[Decision]:
    """Every decision of a whole reply; an unfinished one ends with an unreadable sentence or never decided to stop."""
    sentences = [*grammar.sentences_of(text), *([""] if finished else [])]
    found: list[Decision] = []
    for k, sentence in enumerate(sentences):
        wrong = is_wrong(world, task, " ".join(sentences[:k]), sentence)
        found.append(Decision(number, k, True, not any(one.wrong for one in found), wrong))
    return found


def _check_room(contexts: Sequence[Sequence[int]], context_length: int, more: int) -> None:
    longest = max(map(len, contexts))
    if longest + more > context_length:
        raise ValueError(
            f"{longest} tokens of prompt and reply and {more} to come exceed the model's context of "
            f"{context_length}; ask for fewer facts"
        )
