"""Score responses by the probability of a label that a text classifier gives them.

    classifier:FOLDER?label=NAME            + P(label | response); the text of the response alone
    classifier:FOLDER?label=NAME&sign=-     - P(label | response), as for the label `toxic`

FOLDER is one of three: what the classify stage left, a sequence classifier of transformers in
safetensors (it runs in PyTorch, extra `[torch]`), a classifier of words (weights.npz, vocab.json;
no label). Texts longer than the classifier's context are cut at its end.

Left out on purpose: what the hub would have to execute, pickled weights.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax.config import require
from rlhf_jax.data.tokenizers import Tokenizer
from rlhf_jax.evaluation.batching import batch_rows, run_batches
from rlhf_jax.evaluation.benchmarks.toxicity_classifier import (
    load_transformers_classifier,
    load_word_classifier,
)
from rlhf_jax.evaluation.judges import JudgeSettings, Prompts, Responses, ScoreJudge
from rlhf_jax.inference.scoring import classify_texts
from rlhf_jax.models.config import from_dict
from rlhf_jax.models.heads import Classifier, Params
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import CheckpointKind
from rlhf_jax.training.pretrained import load_model, read_tokenizer
from rlhf_jax.training.run import locate

Probabilities = Callable[[Sequence[str]], np.ndarray]  # of the label, for every text
BATCH = 64
ROUND = 32  # widths are multiples of this: few shapes, few compiles


class Options(NamedTuple):
    """Say which classifier is asked, and how its answer counts."""

    folder: Path
    label: str | None
    sign: float


class ClassifierJudge(ScoreJudge):
    """Score responses with a classifier; the folder is looked at at once, and loaded when asked."""

    main_number = "score"

    def __init__(self, name: str, settings: JudgeSettings) -> None:
        """Read the options and find out what kind of classifier the folder has.

        Raises:
          FileNotFoundError: there is no such folder.
          ValueError: an option is unknown, or the folder has no classifier that can be read.
        """
        self._judge = f"judge classifier:{name}"
        self._options = _parse(self._judge, name, settings.workdir)
        self._load = _loader(self._judge, self._options)
        self.name = self._options.label or self._options.folder.name
        self.description = f"the classifier {self._options.folder.name}"

    @cached_property
    def _probabilities(self) -> Probabilities:
        return self._load()

    def scores(self, prompts: Prompts, responses: Responses) -> np.ndarray:
        """Return score_NS, a probability with the sign of the options."""
        texts = [response.text for samples in responses for response in samples]
        probability_M = self._options.sign * np.asarray(self._probabilities(texts), np.float64)
        return probability_M.reshape(len(prompts), -1)


def _parse(judge: str, name: str, workdir: Path) -> Options:
    path, _, query = name.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    unknown = ", ".join(sorted(options.keys() - {"label", "sign"}))
    require(not unknown, f"{judge}: unknown option {unknown}, expected label=NAME and sign=+ or -")
    sign = options.get("sign", "+")
    require(sign in ("+", "-"), f"{judge}: sign={sign}, expected + or -")
    folder = locate(workdir, path.removeprefix("hf:"))
    if not folder.is_dir():
        raise FileNotFoundError(f"{judge}: no folder {folder}")
    return Options(folder, options.get("label"), 1.0 if sign == "+" else -1.0)


def _loader(judge: str, options: Options) -> Callable[[], Probabilities]:
    """Return what loads the classifier.

    Raises:
      ValueError: there is none that can be read, or the label is missing, unknown or needless.
    """
    folder, label = options.folder, options.label
    if (folder / "weights.npz").is_file():
        require(label is None, f"{judge}: label={label}, but a classifier of words has no labels")
        return partial(load_word_classifier, str(folder))
    if checkpoints.latest_step(folder) is not None:
        meta = checkpoints.read_meta(folder)
        require(
            meta.kind == CheckpointKind.CLASSIFIER,
            f"{judge}: the checkpoint is a {meta.kind} (stage {meta.stage}), expected a classifier",
        )
        _check_label(judge, label, meta.extra["labels"])
        return partial(_load_own, folder, meta.extra["labels"].index(label))
    content = _read_config(folder)
    architecture = ", ".join(content.get("architectures") or ["no architecture"])
    require(
        architecture.endswith("ForSequenceClassification"),
        f"{judge}: {folder} has {architecture}; expected a ...ForSequenceClassification of "
        "transformers, the folder of a classify stage, or weights.npz of a classifier of words",
    )
    labels = list((content.get("id2label") or {}).values()) or ["LABEL_0", "LABEL_1"]
    _check_label(judge, label, labels)
    assert label is not None
    return partial(load_transformers_classifier, f"hf:{folder}", label)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _check_label(judge: str, label: str | None, labels: Sequence[str]) -> None:
    given = "no label" if label is None else f"label {label!r}"
    require(label in labels, f"{judge}: {given}, expected ?label= with one of {', '.join(labels)}")


# --- classifiers of the classify stage ------------------------------------------------------------


def _load_own(folder: Path, label: int) -> Probabilities:
    params, meta = load_model(folder)
    model = Classifier(from_dict(meta.model), len(meta.extra["labels"]))
    return partial(_classify, model, params, read_tokenizer(folder), label)


def _classify(
    model: Classifier, params: Params, tokenizer: Tokenizer, label: int, texts: Sequence[str]
) -> np.ndarray:
    room = model.config.context_length - 1  # behind the text stands the end of text
    encoded = tokenizer.encode_batch(list(texts), special=False)
    rows = [[*tokenizer.prepend_begin_of_text(ids)[:room], tokenizer.eos_id] for ids in encoded]
    longest = max(map(len, rows), default=1)
    width = min(-(-longest // ROUND) * ROUND, model.config.context_length)
    tokens_NT = np.full((len(rows), width), tokenizer.pad_id, np.int32)
    segments_NT = np.zeros((len(rows), width), np.int32)
    for n, row in enumerate(rows):
        tokens_NT[n, : len(row)] = row
        segments_NT[n, : len(row)] = 1
    batches = run_batches(
        lambda rows: _label_probability(model, params, tokens_NT[rows], segments_NT[rows])[
            :, label
        ],
        batch_rows(len(rows), BATCH),
        "labels",
    )
    return np.concatenate(batches)[: len(rows)]


@partial(jax.jit, static_argnums=0)
def _label_probability(
    model: Classifier, params: Params, tokens_BT: jax.Array, segments_BT: jax.Array
) -> jax.Array:
    return jax.nn.softmax(classify_texts(model, params, tokens_BT, segments_BT).logits_BC, axis=-1)
