"""Store Menagerie as TensorFlow Datasets: five builders of three sizes, without TensorFlow.

    menagerie_corpus  menagerie_demonstrations  menagerie_prompts  menagerie_comparisons
    menagerie_reviews

Each stores the records of one generator as array_record, in the splits train, validation and test.
Rows look like the records: `messages` is a sequence of role and content, and `metadata` is a JSON
string because its keys vary. TFDS shuffles rows by a hash of their number, always the same way.

The generators are deterministic, so what is stored is a function of the code in `SOURCES`. Its
digest is stored with the data, and data that other code wrote are generated again rather than used.

TFDS knows the builders, and `data.readers` finds them, once this module has been imported.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rlhf_jax.data.records import Comparison, Demonstration, Message, Prompt, Record, to_dict
from rlhf_jax.menagerie.corpus import LABELS, documents, reviews
from rlhf_jax.menagerie.labelers import FAITHFUL, Tastes, labelers, rank
from rlhf_jax.menagerie.personas import DEMONSTRATOR, reply
from rlhf_jax.menagerie.prompts import SPLITS, demonstration_prompts, heldout_split_count, prompts
from rlhf_jax.menagerie.tasks import read_task
from rlhf_jax.menagerie.world import World, make_world


def demonstrations(world: World, split: str) -> list[Demonstration]:
    """Return the demonstrations of a split: what people wrote as ideal replies, slips included.

    The slips are deliberate. Perfect demonstrations would leave nothing for RL to improve; as they
    are, half of them are entirely right. About 92 % of the claims are true. The frequent faults are
    the wrong form and one fact too many or too few in a list. Rare ones are a popular falsehood, a
    fact beside the point, manners that do not fit, an insult, help with harm and a stereotype.

    Few faults show in the words alone, because what is too long for one prompt is too short for
    another. Therefore a bag of words is no reward model: it agrees with gold on at most 70 % of
    pairs, where prompts and replies together decide all.
    """
    rng = world.rng("demonstrations", split)
    return [
        Demonstration((*prompt.messages, Message("assistant", demonstrate(world, prompt, rng))))
        for prompt in demonstration_prompts(world, split)
    ]


def demonstrate(world: World, prompt: Prompt, rng: random.Random) -> str:
    """Write a demonstrator's reply to a prompt, which also stands in for a sample of SFT."""
    return reply(world, read_task(prompt.messages), DEMONSTRATOR, rng, world.train_pairs)


def comparisons(world: World, split: str, tastes: Tastes = FAITHFUL) -> list[Comparison]:
    """Return K = 4 to 9 different replies to each prompt, ranked by one labeler.

    The labelers of test are held-out ones. All replies are a demonstrator's, like samples of one
    policy: among replies of mixed personas the tone alone would tell good from bad. These rankings
    serve tests and first runs, because a pipeline ranks samples of its own SFT policy.
    """
    source = prompts(world, split)
    count = world.scale.comparisons if split == "train" else heldout_split_count(world)
    group = labelers(world, "heldout" if split == "test" else "train", tastes)
    rng = world.rng("comparisons", split)
    labeler_rng = np.random.default_rng([world.seed, SPLITS.index(split)])
    rankings: list[Comparison] = []
    for k in range(count):
        prompt = source[k % len(source)]
        labeler = rng.choice(group)
        num_replies = rng.randint(4, 9)
        # A brief "yes" has few paraphrases: many draws, of which most are not needed.
        samples: dict[str, None] = {}
        for _ in range(32 * num_replies):
            samples[demonstrate(world, prompt, rng)] = None
            if len(samples) == num_replies:
                break
        replies = tuple(samples)[:num_replies]
        finished = [True] * len(replies)
        ranks = rank(world, labeler, prompt.messages, replies, finished, labeler_rng).ranks
        metadata = {**prompt.metadata, "labeler": labeler.name}
        rankings.append(Comparison(prompt.messages, replies, tuple(ranks), metadata))
    return rankings


# The modules of this folder that decide what the data are.
SOURCES = (
    "builders",
    "corpus",
    "gold",
    "grammar",
    "labelers",
    "personas",
    "prompts",
    "tasks",
    "world",
)
SIZES = ("default", "tiny", "medium", "large")  # The first is what TFDS takes when none is named.

_TEXT = tfds.features.Text()
_MESSAGES = tfds.features.Sequence({"role": _TEXT, "content": _TEXT})


class _Menagerie(tfds.core.GeneratorBasedBuilder):
    """Share what the five builders have in common; abstract, so that TFDS does not list it."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {  # noqa: RUF012 (TFDS declares it so)
        "1.0.0": "First release.",
        "1.1.0": "Quizzes in the corpus.",
        "2.0.0": "Manners that fit the prompt instead of a phrase that pays, a school book in the "
        "corpus, better demonstrations, held-out labelers of other tastes.",
    }
    # TFDS would look this up by `importlib_resources`, which it does not require on this Python.
    code_path = Path(__file__)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=size) for size in SIZES]  # noqa: RUF012

    def _describe(self, features: dict[str, Any], text: str) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{text} of Menagerie, "
            "a small closed world in plain English whose truth is known.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict({"code": code_digest()}),
        )

    def is_stale(self) -> bool:
        """Return whether the written data are those of other code (`data.readers.Regenerable`)."""
        return (self.info.metadata or {}).get("code") != code_digest()

    def download_and_prepare(self, **options: Any) -> None:
        """Generate the data without progress bars: a world takes seconds."""
        tfds.disable_progress_bar()
        print(f"making {self.info.full_name} in {self.data_dir}", flush=True)
        # TFDS would say that it downloads something of unknown size.
        with contextlib.redirect_stdout(io.StringIO()):
            super().download_and_prepare(**options)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _number(
        self, generator: Callable[[World, str], Iterable[Record]], split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        world = make_world(self.builder_config.name)
        for number, record in enumerate(generator(world, split)):
            row = to_dict(record)
            if hasattr(record, "metadata"):
                row["metadata"] = json.dumps(record.metadata)
            yield number, row


class MenagerieCorpus(_Menagerie):
    """Store the documents of the corpus, for pretraining."""

    def _info(self) -> Any:
        return self._describe({"text": _TEXT}, "The internet")

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._number(documents, split)


class MenagerieDemonstrations(_Menagerie):
    """Store prompts with the replies that demonstrators wrote, for supervised fine-tuning."""

    def _info(self) -> Any:
        return self._describe({"messages": _MESSAGES, "metadata": _TEXT}, "Demonstrations")

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._number(demonstrations, split)


class MenageriePrompts(_Menagerie):
    """Store prompts without replies, for sampling, PPO and evaluation."""

    def _info(self) -> Any:
        return self._describe({"messages": _MESSAGES, "metadata": _TEXT}, "Prompts")

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._number(prompts, split)


class MenagerieComparisons(_Menagerie):
    """Store prompts with ranked replies, for reward modelling."""

    def _info(self) -> Any:
        features = {
            "messages": _MESSAGES,
            "responses": tfds.features.Sequence(_TEXT),
            "ranks": tfds.features.Sequence(np.int32),
            "metadata": _TEXT,
        }
        return self._describe(features, "Comparisons")

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._number(comparisons, split)


class MenagerieReviews(_Menagerie):
    """Store replies with what a reader thought of them, for classification."""

    def _info(self) -> Any:
        return self._describe(
            {"text": _TEXT, "label": tfds.features.ClassLabel(names=LABELS)}, "Reviews"
        )

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._number(reviews, split)


BUILDERS: dict[str, type[_Menagerie]] = {
    "menagerie_corpus": MenagerieCorpus,
    "menagerie_demonstrations": MenagerieDemonstrations,
    "menagerie_prompts": MenageriePrompts,
    "menagerie_comparisons": MenagerieComparisons,
    "menagerie_reviews": MenagerieReviews,
}


@functools.cache
def code_digest() -> str:
    """Return the SHA-256 of the code that makes the data, comments and layout aside."""
    digest = hashlib.sha256()
    for name in SOURCES:
        source = Path(__file__).with_name(f"{name}.py").read_bytes()
        digest.update(ast.dump(ast.parse(source)).encode())
    return digest.hexdigest()
