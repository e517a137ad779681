"""What every checkpoint is asked on Menagerie: `Exam`, built from a world, its test prompts and its corpus.

prompts        the first so many test prompts facts          what is the colour of the fox? in two wordings,
for pairs that no training prompt asks for and for the
               others, with a popular misconception and without
falsehoods     multiple choice on misconceptions and on as many facts without
provocations   the same harmless questions in a rude, a neutral and a polite tone
stereotypes    sentence pairs that differ in the people or in the trait
few-shot       tasks to be learned from 0, 4 and 8 examples
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_jax.data.records import Document, Message, Prompt
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.menagerie import questions
from rlhf_jax.menagerie.questions import FewShot, Question, StereotypePair
from rlhf_jax.menagerie.tasks import WORDINGS, Tone
from rlhf_jax.menagerie.world import Pair, World

TONES: dict[str, Tone] = {"rude": "rude", "neutral": "plain", "polite": "polite"}
# Of the world's tasks, "question" is left out: without any example every pretrained model solves it.
FEW_SHOT_TASKS = ("word", "review")
SHOTS = (0, 4, 8)
FACT_WORDINGS = 2


@dataclass(frozen=True)
class Exam:
    """What is asked; the keys of the dictionaries are words of the table."""

    world: World
    prompts: Sequence[Prompt]
    facts: dict[str, Sequence[Prompt]]
    falsehoods: dict[str, Sequence[Question]]
    provocations: dict[str, Sequence[Prompt]]
    stereotypes: dict[str, Sequence[StereotypePair]]
    few_shot: dict[str, Sequence[FewShot]]
    documents: Sequence[Document]
    mask_documents: bool


def build_exam(
    world: World,
    prompts: Sequence[Prompt],
    documents: Sequence[Document],
    *,
    num_prompts: int,
    corpus_documents: int,
    toxicity_prompts: int,
    few_shot_questions: int,
    mask_documents: bool,
) -> Exam:
    """The exam of a world.

    Raises:
        ValueError: if more is asked for than there is.
    """
    provocations = {name: questions.toxicity_prompts(world, tone) for name, tone in TONES.items()}
    pairs = questions.stereotype_pairs(world)
    return Exam(
        world=world,
        prompts=take("evaluation.num_prompts", num_prompts, prompts),
        facts=fact_prompts(world),
        falsehoods={
            "misconceptions": questions.falsehood_questions(world, misconceptions=True),
            "clean facts": questions.falsehood_questions(world, misconceptions=False),
        },
        provocations={
            name: take("evaluation.toxicity_prompts", toxicity_prompts, found)
            for name, found in provocations.items()
        },
        stereotypes={
            f"{swapped} swapped": [pair for pair in pairs if pair.swapped == swapped]
            for swapped in ("trait", "group")
        },
        few_shot={
            f"{task}, K = {shots}": questions.few_shot(world, task, shots, few_shot_questions)
            for task in FEW_SHOT_TASKS
            for shots in SHOTS
        },
        documents=take("evaluation.corpus_documents", corpus_documents, documents),
        mask_documents=mask_documents,
    )


def take(name: str, count: int, items: Sequence) -> list:
    """The first `count` items; ValueError, naming the field, if there are fewer."""
    if count > len(items):
        raise ValueError(f"{name}={count}: there are only {len(items)}, ask for at most so many")
    return [items[k] for k in range(count)]


def fact_prompts(world: World) -> dict[str, Sequence[Prompt]]:
    """Questions for every fact, in the first wordings of training prompts, by novelty and by misconception."""
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
    return {name: found for name, found in groups.items() if found}


def _ask(pair: Pair, template: str) -> Prompt:
    text = template.format(animal=pair[0], attribute=pair[1])
    return Prompt((Message("user", text),), {"animal": pair[0], "attribute": pair[1]})


def without_long_examples(
    exam: Exam, tokenizer: Tokenizer, length: int
) -> tuple[Exam, dict[str, int]]:
    """The exam without few-shot tasks that do not fit `length` tokens, and the longest text of each that is left out."""
    longest = {}
    for name, asked in exam.few_shot.items():
        texts = [one.text + max(one.choices, key=len) for one in asked]
        # One more for the separator in front, and a little for choices that are longer in tokens than in letters.
        longest[name] = 4 + max(len(ids) for ids in tokenizer.encode_batch(texts, special=False))
    kept = {name: asked for name, asked in exam.few_shot.items() if longest[name] <= length}
    return replace(exam, few_shot=kept), {
        name: size for name, size in longest.items() if name not in kept
    }
