"""Build the questions that every checkpoint is asked in Menagerie, besides the test prompts.

facts              what is the colour of the fox? in two wordings, for pairs that no training prompt
                   asks for and for the others, with a popular misconception and without
falsehoods         multiple choice on misconceptions and on as many facts without
toxicity_prompts   the same harmless questions in a rude, a neutral and a polite tone
stereotypes        sentence pairs that differ in the people or in the trait
few_shot           tasks to be learned from 0, 4 and 8 examples
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlhf_jax.data.records import Message, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.measurements import take_first
from rlhf_jax.menagerie import questions
from rlhf_jax.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.menagerie.tasks import WORDINGS, Tone
from rlhf_jax.menagerie.world import Pair, World

TONES: dict[str, Tone] = {"rude": "rude", "neutral": "plain", "polite": "polite"}
# Of the world's tasks, "question" is left out: without any example every pretrained model solves
# it.
FEW_SHOT_TASKS = ("word", "review")
SHOTS = (0, 4, 8)
FACT_WORDINGS = 2


@dataclass(frozen=True)
class QuestionSet:
    """What is asked; the keys of the dictionaries are words of the table.

    The repr tells two sets apart, so the facts that answers are held against are part of it.
    """

    world: World = field(repr=False)
    truth: dict[Pair, str]
    facts: dict[str, Sequence[Prompt]]
    falsehoods: dict[str, Sequence[Question]]
    toxicity_prompts: dict[str, Sequence[Prompt]]
    toxicity_samples: int
    stereotypes: dict[str, Sequence[StereotypePair]]
    few_shot: dict[str, Sequence[FewShot]]


def build_questions(
    world: World, *, toxicity_prompts: int, toxicity_samples: int, few_shot_questions: int
) -> QuestionSet:
    """Return the questions of a world.

    Raises:
        ValueError: more is asked for than there is.
    """
    pairs = questions.stereotype_pairs(world)
    return QuestionSet(
        world=world,
        truth=world.facts,
        facts=fact_prompts(world),
        falsehoods={
            "misconceptions": questions.falsehood_questions(world, misconceptions=True),
            "clean facts": questions.falsehood_questions(world, misconceptions=False),
        },
        toxicity_prompts={
            name: take_first(
                "world.toxicity_prompts", toxicity_prompts, questions.toxicity_prompts(world, tone)
            )
            for name, tone in TONES.items()
        },
        toxicity_samples=toxicity_samples,
        stereotypes={
            f"{swapped} swapped": [pair for pair in pairs if pair.swapped == swapped]
            for swapped in ("trait", "group")
        },
        few_shot={
            f"{task}, K = {shots}": questions.few_shot(world, task, shots, few_shot_questions)
            for task in FEW_SHOT_TASKS
            for shots in SHOTS
        },
    )


def fact_prompts(world: World) -> dict[str, Sequence[Prompt]]:
    """Ask for every fact in the first wordings of prompts, by novelty and by misconception."""
    groups: dict[str, list[Prompt]] = {
        "held-out facts": [],
        "held-out misconceptions": [],
        "trained facts": [],
        "trained misconceptions": [],
    }
    for pair in sorted(world.facts):
        kind = "misconceptions" if pair in world.misconceptions else "facts"
        group = groups[f"{'held-out' if pair in world.heldout else 'trained'} {kind}"]
        group += [_ask(pair, wording.template) for wording in WORDINGS["ask"][:FACT_WORDINGS]]
    return {name: prompts for name, prompts in groups.items() if prompts}


def _ask(pair: Pair, template: str) -> Prompt:
    animal, attribute = pair
    text = template.format(animal=animal, attribute=attribute)
    return Prompt((Message("user", text),), {"animal": animal, "attribute": attribute})


def without_long_examples(
    question_set: QuestionSet, tokenizer: Tokenizer, length: int
) -> tuple[QuestionSet, dict[str, int]]:
    """Leave out few-shot tasks that do not fit `length` tokens, and return the length of those."""
    longest = {}
    for name, few_shot in question_set.few_shot.items():
        texts = [question.text + max(question.choices, key=len) for question in few_shot]
        # One more for the separator in front, and a little for choices that are longer in tokens
        # than in letters.
        longest[name] = 4 + max(len(ids) for ids in tokenizer.encode_batch(texts, special=False))
    kept = {
        name: few_shot
        for name, few_shot in question_set.few_shot.items()
        if longest[name] <= length
    }
    too_long = {name: size for name, size in longest.items() if name not in kept}
    return replace(question_set, few_shot=kept), too_long
