"""Define judges, which say which of several responses to a prompt is better.

    labelers    a person is drawn, who ranks with noise                         -> `Judge`
    file        rankings that others made: people, another program              -> `FileJudge`
    gold, a reward model, a function: one number per response                   -> `ScoreJudge`
    rules for answers that can be checked, classifiers     evaluation/rules.py, classifier_judge.py

Labelling, monitors and evaluation ask them.

A config names a judge by a string, KIND:NAME; `rlhf_jax.main.JUDGES` has the kinds and hands judges
to the stages, so that no stage knows where its judge comes from. Paths in NAME that start with ../
are relative to the workdir.

Left out on purpose: a judge that is asked over the network, and several judges who vote.
"""

import importlib
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.data.records import Comparison, Message, Prompt
from rlhf_jax.data.sources import load
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.checkpoints import find_checkpoint, load_scalar_model, load_tokenizer_of
from rlhf_jax.evaluation.generate import Generation
from rlhf_jax.evaluation.likelihood import score_texts
from rlhf_jax.evaluation.table import Key
from rlhf_jax.evaluation.win_rate import score_preferences
from rlhf_jax.models.heads import Params, ScalarModel
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.run import locate

Random = np.random.Generator
Prompts = Sequence[Prompt]
Responses = Sequence[Sequence[Generation]]  # N prompts, S responses to each
Texts = Sequence[Sequence[str]]  # N prompts, the texts of finished responses to each
Ranks = tuple[int, ...]  # 1 is best, ties share a rank
SCORE_BATCH = 64  # texts that a reward model reads at once


class JudgeSettings(NamedTuple):
    """Say what a judge is told besides its name; a path that starts with ../ is of `workdir`.

    For `preferences` so many labelers are drawn for every prompt, with this seed.
    """

    workdir: Path
    labelers_per_prompt: int = 1
    seed: int = 0


class Judge(ABC):
    """Compare responses to one prompt; `name` is what metrics and folders call the judge.

    Tables say who it is in `description`, and programs find its win rates by `row_key`. A judge
    whose opinion may depend on which response it reads first says so in `sees_order`, and
    `evaluation.results` asks it in both orders. Scores, rankings of a file and labelers do not.
    """

    name: str
    description: str = "the judge"
    row_key: Key = "win_rate_labelers"
    sees_order: bool = False

    @abstractmethod
    def rank(self, prompt: Prompt, responses: Sequence[str], rng: Random) -> Ranks | None:
        """Return the rank of every finished response to a prompt, None if it has no ranking."""

    @abstractmethod
    def preferences(self, prompts: Prompts, first: Responses, second: Responses) -> np.ndarray:
        """Return preference_NSL of L opinions on sample s of both.

        1 prefers the first, 0 the second, ½ is a tie.
        """

    def rank_all(
        self, prompts: Prompts, responses: Texts, rngs: Sequence[Random]
    ) -> list[Ranks | None]:
        """Return what `rank` says of every prompt; each prompt has a generator of its own."""
        return list(map(self.rank, prompts, responses, rngs))


class ScoreJudge(Judge):
    """Compare responses by one number each, higher is better; equal to six decimals is a tie.

    `main_number` is the one of `measure` that stands for the others.
    """

    score_description: str = "the judge's score"
    main_number: str = "score"
    row_key: Key = "win_rate_model"

    @abstractmethod
    def scores(self, prompts: Prompts, responses: Responses) -> np.ndarray:
        """Return score_NS of every response to every prompt."""

    def measure(self, prompts: Prompts, responses: Responses) -> dict[str, np.ndarray]:
        """Return the numbers, by name and each (N, S), that a monitor of this judge averages."""
        return {"score": self.scores(prompts, responses)}

    def rank(self, prompt: Prompt, responses: Sequence[str], rng: Random) -> Ranks | None:
        """Return 1 + the number of better responses, for every response; `rng` is not used."""
        return self.rank_all([prompt], [responses], [rng])[0]

    def rank_all(
        self, prompts: Prompts, responses: Texts, rngs: Sequence[Random]
    ) -> list[Ranks | None]:
        """Return what `rank` says of every prompt, in one call of `scores` for full batches."""
        del rngs
        repeated = [prompt for prompt, texts in zip(prompts, responses, strict=True) for _ in texts]
        finished = [[Generation(text, (), finished=True)] for texts in responses for text in texts]
        score_M = np.round(self.scores(repeated, finished)[:, 0], 6)
        groups = np.split(score_M, np.cumsum([len(texts) for texts in responses])[:-1])
        return [tuple(1 + int((score_C > score).sum()) for score in score_C) for score_C in groups]

    def preferences(self, prompts: Prompts, first: Responses, second: Responses) -> np.ndarray:
        """Return preference_NS1 by the sign of the difference of scores."""
        scores = (self.scores(prompts, responses) for responses in (first, second))
        return score_preferences(*scores)[..., None]


# --- a reward model -----------------------------------------------------------------------------


class RewardModelJudge(ScoreJudge):
    """Score responses with a reward model, as `reward:PATH`; PATH is written as in `init`.

    The model, of a run or of Hugging Face, reads text with its own tokenizer and chat template. The
    checkpoint is looked for at once and loaded when the first score is wanted.
    """

    def __init__(self, path: str, settings: JudgeSettings) -> None:
        """Find the checkpoint.

        Raises:
          FileNotFoundError: there is no checkpoint.
          ValueError: the checkpoint holds another kind of model.
        """
        self.name = Path(path).name
        self._path = path
        self._checkpoint = find_checkpoint(settings.workdir, path)
        meta = self._checkpoint.meta
        if meta.kind != CheckpointKind.SCALAR_MODEL:
            raise ValueError(
                f"judge reward:{path}: the checkpoint is a {meta.kind} (stage {meta.stage}), "
                "expected a scalar_model; name the folder of a reward stage"
            )

    @cached_property
    def _loaded(self) -> tuple[ScalarModel, Params, Tokenizer]:
        return *load_scalar_model(self._checkpoint), load_tokenizer_of(self._checkpoint)

    def scores(self, prompts: Prompts, responses: Responses) -> np.ndarray:
        """Return score_NS, read at the end of the turn, or where an unfinished response stops."""
        model, params, tokenizer = self._loaded
        texts = (tokenizer, prompts, responses)
        try:
            return score_texts((model, params), *texts, batch_size=SCORE_BATCH)
        except ValueError as error:
            raise ValueError(f"judge reward:{self._path}: {error}") from None


def hugging_face_judge(folder: str, settings: JudgeSettings) -> RewardModelJudge:
    """Return the judge hf:FOLDER, a sequence classifier of Hugging Face with one label."""
    return RewardModelJudge(f"hf:{folder}", settings)


# --- a Python function --------------------------------------------------------------------------

Messages = list[dict[str, str]]
# From prompts, responses and what is known of each prompt to one finite number a response.
RewardFunction = Callable[[list[Messages], list[str], list[dict[str, str]]], Sequence[float]]


class FunctionJudge(ScoreJudge):
    """Score responses with a Python function, as `function:FILE.py:NAME`.

    Or, of an installed module, as `function:package.module:NAME`. The function is called as
    f(prompts, responses, metadata) with three lists of one entry a response: the prompt's messages,
    a list of {"role": ..., "content": ...}; the text of the response; the prompt's metadata, a
    dict. It returns as many finite numbers, higher for a better response.
    """

    def __init__(self, location: str, settings: JudgeSettings) -> None:
        """Import the function.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file or module cannot be imported, or has no function of that name.
        """
        self._location = location
        self._function = _import_function(location, settings.workdir)
        self.name = location.rpartition(":")[2]

    def scores(self, prompts: Prompts, responses: Responses) -> np.ndarray:
        """Return score_NS of one call of the function.

        Raises:
          ValueError: the function fails, or does not return one finite number a response; shows
            prompt and response.
        """
        repeated = [
            prompt for prompt, samples in zip(prompts, responses, strict=True) for _ in samples
        ]
        texts = [response.text for samples in responses for response in samples]
        try:
            returned = self._call(repeated, texts)
        except Exception as error:
            raise ValueError(self._explain(repeated, texts, error)) from error
        try:
            values = list(returned)
        except TypeError:
            values = [returned]
        if len(values) != len(texts) or isinstance(returned, str | bytes):
            raise ValueError(
                f"judge function:{self._location}: returned {_shorten(returned)} for {len(texts)} "
                "responses, expected a list of as many numbers"
            )
        numbers = [
            _finite(value, partial(self._place, n, repeated[n], texts[n]))
            for n, value in enumerate(values)
        ]
        return np.array(numbers, np.float64).reshape(len(prompts), -1)

    def _call(self, prompts: Prompts, texts: Sequence[str]) -> Any:
        messages = [[asdict(message) for message in prompt.messages] for prompt in prompts]
        return self._function(messages, list(texts), [dict(prompt.metadata) for prompt in prompts])

    def _explain(self, prompts: Prompts, texts: Sequence[str], error: Exception) -> str:
        """Name the first response on which the function fails alone, too, else the first of all."""
        culprit = 0
        for n, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            try:
                self._call([prompt], [text])
            except Exception as alone:
                culprit, error = n, alone
                break
        place = self._place(culprit, prompts[culprit], texts[culprit])
        return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"

    def _place(self, number: int, prompt: Prompt, text: str) -> str:
        place = f"prompt {number} ({prompt.messages[-1].content[:40]!r}), response {text[:200]!r}"
        return f"judge function:{self._location}: {place}"


def _finite(value: Any, place: Callable[[], str]) -> float:
    with suppress(TypeError, ValueError):
        if math.isfinite(float(value)) and not isinstance(value, str):
            return float(value)
    raise ValueError(f"{place()}: returned {_shorten(value)}, expected a finite number")


def _shorten(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."


def _import_function(location: str, workdir: Path) -> RewardFunction:
    """Return what FILE.py:NAME or package.module:NAME means."""
    source, _, name = location.rpartition(":")
    where = f"judge function:{location}"
    if not source or not name:
        raise ValueError(f"{where}: expected function:FILE.py:NAME or function:package.module:NAME")
    is_file = source.endswith(".py")
    module = _import_file(locate(workdir, source), where) if is_file else _import(source, where)
    function = getattr(module, name, None)
    if not callable(function):
        what = f"no {name!r}" if function is None else f"{name!r}, which is no function"
        raise ValueError(f"{where}: {source} has {what}; expected a function")
    return function


def _import_file(path: Path, where: str) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{where}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"judge_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{where}: {path} fails: {type(error).__name__}: {error}") from error
    return module


def _import(name: str, where: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ValueError(f"{where}: cannot import {name}: {error}") from error


# --- rankings that others made ------------------------------------------------------------------


class FileJudge(Judge):
    """Rank responses as a file of comparisons does, as `file:PATH`.

    The file has one JSON object a line. Responses are looked up by the prompt's messages and the
    response's text. The responses to a prompt are ranked if one line of the file ranks them all,
    perhaps beside others.
    """

    def __init__(self, path: str, settings: JudgeSettings) -> None:
        """Read the file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: a line is no comparison; names file and line.
        """
        self.name = Path(path).stem
        self._path = path
        self._ranks: dict[tuple[Message, ...], list[dict[str, int]]] = {}
        source = f"jsonl:{locate(settings.workdir, path)}"
        for comparison in load(source, Comparison, split="train", data_dir=""):
            rank_of = dict(zip(comparison.responses, comparison.ranks, strict=True))
            self._ranks.setdefault(comparison.messages, []).append(rank_of)

    def rank(self, prompt: Prompt, responses: Sequence[str], rng: Random) -> Ranks | None:
        """Return the file's order of the responses, without gaps; None if no line has them all."""
        del rng
        for rank_of in self._ranks.get(prompt.messages, []):
            if all(text in rank_of for text in responses):
                order = sorted({rank_of[text] for text in responses})
                return tuple(1 + order.index(rank_of[text]) for text in responses)
        return None

    def preferences(self, prompts: Prompts, first: Responses, second: Responses) -> np.ndarray:
        """Return preference_NS1.

        Raises:
          ValueError: the file does not rank a pair.
        """
        preferences = [
            [[self._preference(prompt, (a.text, b.text))] for a, b in zip(*samples, strict=True)]
            for prompt, *samples in zip(prompts, first, second, strict=True)
        ]
        return np.array(preferences, np.float64)

    def _preference(self, prompt: Prompt, texts: tuple[str, str]) -> float:
        ranks = self.rank(prompt, texts, np.random.default_rng(0))
        if ranks is None:
            raise ValueError(
                f"judge file:{self._path}: no line ranks both {texts[0][:40]!r} and "
                f"{texts[1][:40]!r} after {prompt.messages[-1].content[:40]!r}"
            )
        return 0.5 * (1.0 + float(np.sign(ranks[1] - ranks[0])))
