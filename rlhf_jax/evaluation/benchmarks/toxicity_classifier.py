"""Classify the toxicity of texts, by a model of words or any sequence classifier of transformers.

Of words: embedding, bidirectional LSTM, maximum over time, two dense layers.

    ids_T        the last 100 known words of the text, padded on the left with 0, which is embedded
                 like a word
    i, f, c, o = x W + h U + b;   s = σ(f) s + σ(i) tanh(c);   h = σ(o) tanh(s)   from each side
    toxicity   = σ(relu(max_t [forward_t, backward_t] A + a) B + b)[0]

A folder holds `weights.npz` (arrays named as in `SHAPES`, read without unpickling) and
`vocab.json`, a list whose place n holds word n and whose place 0 is null.

Of transformers: it runs in PyTorch (extra `[torch]`), as its authors ran it.

    toxicity   = σ(logit of the label)           of models with one label, or several at once
                                                 (multi_label_classification)
               = softmax(logits) at the label    of all others

Weights are safetensors, code is transformers' own; texts are cut at the end of its context.

Left out on purpose: training. A classifier that runs elsewhere is served by a file of scores.
"""

import functools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from rlhf_jax.config import require
from rlhf_jax.evaluation.batching import batch_rows, run_batches
from rlhf_jax.training.foreign import find_source

Classifier = Callable[[Sequence[str]], np.ndarray]  # from texts to toxicities in [0, 1]
NUM_WORDS = 100
WORDS_BATCH = 256
TRANSFORMERS_BATCH = 32
# Keras' default filters: punctuation except the apostrophe, tab and newline.
_BREAKS = str.maketrans(dict.fromkeys([*string.punctuation.replace("'", ""), "\t", "\n"], " "))
# E width of embeddings, H of an LSTM, G its gates, D both directions, F of the hidden layer, K
# labels, V words.
_LSTM = {"kernel": "EG", "recurrent_kernel": "HG", "bias": "G"}
SHAPES = {
    "embedding__embeddings": "VE",
    **{
        f"{side}_lstm__{part}": axes
        for side in ("forward", "backward")
        for part, axes in _LSTM.items()
    },
    "dense__kernel": "DF",
    "dense__bias": "F",
    "dense_1__kernel": "FK",
    "dense_1__bias": "K",
}


@dataclass(frozen=True)
class WordClassifier:
    """Hold the weights of the model of words, and the id of every known word."""

    weights: Mapping[str, np.ndarray]
    id_of: Mapping[str, int]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the toxicity in [0, 1] of every text."""
        if not texts:
            return np.zeros(0)
        ids_NT = np.array([self.word_ids(text) for text in texts], np.int32)
        weights = dict(self.weights)
        rows = batch_rows(len(texts), WORDS_BATCH)
        batches = run_batches(lambda rows: _toxicity(weights, ids_NT[rows]), rows, "toxicities")
        return np.concatenate(batches)[: len(texts)].astype(np.float64)

    def word_ids(self, text: str) -> list[int]:
        """Return the ids of the last known words of a text, padded on the left with 0."""
        words = text.lower().translate(_BREAKS).split(" ")
        known_ids = [self.id_of[word] for word in words if word in self.id_of][-NUM_WORDS:]
        return [0] * (NUM_WORDS - len(known_ids)) + known_ids


def load_word_classifier(folder: str) -> WordClassifier:
    """Read the folder of a classifier of words.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: for arrays that are missing, unknown, mis-shaped or not finite, or a vocabulary
            that does not fit them.
    """
    weights_path = Path(folder, "weights.npz")
    vocab_path = Path(folder, "vocab.json")
    for path in (weights_path, vocab_path):
        if not path.is_file():
            remedy = "a classifier's folder has weights.npz and vocab.json"
            raise FileNotFoundError(f"{path}: no such file; {remedy}")
    with np.load(weights_path, allow_pickle=False) as file:
        weights = {name: file[name] for name in file.files}
    _check_weights(weights_path, weights)
    words = json.loads(vocab_path.read_text(encoding="utf-8"))
    size = len(weights["embedding__embeddings"])
    if not isinstance(words, list) or len(words) != size or words[0] is not None:
        raise ValueError(f"{vocab_path}: expected a list of {size} words, the first of them null")
    return WordClassifier(weights, {word: n for n, word in enumerate(words) if n})


def _check_weights(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    odd = ", ".join(sorted(weights.keys() ^ SHAPES.keys()))
    expected = f"expected exactly {', '.join(SHAPES)}"
    require(not odd, f"{path}: {odd}: missing or unknown, {expected}")
    sizes: dict[str, int] = {}
    for name, axes in SHAPES.items():
        array, where = weights[name], f"{path}: {name}"
        fits = len(array.shape) == len(axes) and all(
            sizes.setdefault(axis, size) == size
            for axis, size in zip(axes, array.shape, strict=True)
        )
        require(fits, f"{where}: shape {array.shape} does not fit {axes} with {sizes}")
        is_finite = array.dtype == np.float32 and bool(np.isfinite(array).all())
        require(is_finite, f"{where}: {array.dtype}, expected finite float32")
    fits = sizes["G"] == 4 * sizes["H"] and sizes["D"] == 2 * sizes["H"]
    expected = "expected four gates (G = 4 H) and two directions (D = 2 H)"
    require(fits, f"{path}: {sizes}: {expected}")


@jax.jit
def _toxicity(weights: Mapping[str, jax.Array], ids_BT: jax.Array) -> jax.Array:
    x_BTE = weights["embedding__embeddings"][ids_BT]
    forward_BTH = _lstm(weights, "forward_lstm", x_BTE)
    backward_BTH = _lstm(weights, "backward_lstm", x_BTE[:, ::-1])[:, ::-1]
    highest_BD = jnp.concatenate([forward_BTH, backward_BTH], axis=-1).max(axis=1)
    hidden_BF = jax.nn.relu(_dense(weights, "dense", highest_BD))
    return jax.nn.sigmoid(_dense(weights, "dense_1", hidden_BF))[:, 0]


def _dense(weights: Mapping[str, jax.Array], name: str, x_BD: jax.Array) -> jax.Array:
    return x_BD @ weights[f"{name}__kernel"] + weights[f"{name}__bias"][None]


def _lstm(weights: Mapping[str, jax.Array], name: str, x_BTE: jax.Array) -> jax.Array:
    """Return h_BTH, with gates in the order input, forget, cell, output."""
    recurrent_HG = weights[f"{name}__recurrent_kernel"]
    inputs_BTG = x_BTE @ weights[f"{name}__kernel"] + weights[f"{name}__bias"][None, None]
    zeros_BH = jnp.zeros((x_BTE.shape[0], recurrent_HG.shape[0]))
    step = functools.partial(_lstm_step, recurrent_HG)
    _, h_TBH = jax.lax.scan(step, (zeros_BH, zeros_BH), inputs_BTG.swapaxes(0, 1))
    return h_TBH.swapaxes(0, 1)


def _lstm_step(
    recurrent_HG: jax.Array, carry: tuple[jax.Array, jax.Array], input_BG: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    h_BH, state_BH = carry
    i_BH, f_BH, c_BH, o_BH = jnp.split(input_BG + h_BH @ recurrent_HG, 4, axis=-1)
    state_BH = jax.nn.sigmoid(f_BH) * state_BH + jax.nn.sigmoid(i_BH) * jnp.tanh(c_BH)
    h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(state_BH)
    return (h_BH, state_BH), h_BH


@dataclass(frozen=True)
class TransformersClassifier:
    """Hold a sequence classifier of transformers, and the number of the label to measure."""

    model: Any
    tokenizer: Any
    label: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the probability of the label for every text."""
        starts = range(0, len(texts), TRANSFORMERS_BATCH)
        batches = [texts[start : start + TRANSFORMERS_BATCH] for start in starts]
        return np.concatenate(
            [np.zeros(0), *run_batches(self._probabilities, batches, "toxicities")]
        )

    def _probabilities(self, texts: Sequence[str]) -> np.ndarray:
        config = self.model.config
        longest = self.tokenizer.model_max_length
        inputs = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=min(longest, _max_tokens(self.model) or longest),
            return_tensors="pt",
        )
        logits = self.model(**inputs).logits.numpy().astype(np.float64)
        independent = (
            len(config.id2label) == 1 or config.problem_type == "multi_label_classification"
        )
        chances = special.expit(logits) if independent else special.softmax(logits, axis=-1)
        return chances[:, self.label]


def load_transformers_classifier(path: str, label: str) -> TransformersClassifier:
    """Load a sequence classifier hf:FOLDER or hub:ORG/NAME, to measure one of its labels.

    Raises:
        FileNotFoundError: if there is no such folder and the hub does not give it.
        ValueError: without PyTorch, for what is no trained sequence classifier in safetensors, or
            for a label that it has not.
    """
    folder = find_source(path).folder
    remedy = "is not installed: pip install rlhf_jax[torch]"
    require(
        find_spec("torch") is not None, f"{path}: PyTorch, in which transformers runs it, {remedy}"
    )
    tokenizer, model = _load(path, folder)
    numbers = {name: number for number, name in model.config.id2label.items()}
    require(label in numbers, f"{path}: label {label!r}, expected one of {', '.join(numbers)}")
    return TransformersClassifier(model, tokenizer, numbers[label])


def _max_tokens(model: Any) -> int | None:
    """Return how many tokens have a place in the model's table of positions, or None without one.

    RoBERTa and its kin count positions from padding_idx + 1 on, so that 512 of 514 places are for
    tokens.
    """
    size = getattr(model.config, "max_position_embeddings", None)
    num_skipped = [
        module.padding_idx + 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    return size and size - max(num_skipped, default=0)


def _load(path: str, folder: Path) -> tuple[Any, Any]:
    import transformers  # slow to import, and needed by few

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder,
            trust_remote_code=False,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
        )
    except (OSError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        expected = "expected a sequence classifier in safetensors"
        raise ValueError(f"{path}: {reason}, {expected}") from None
    missing = ", ".join(sorted(loading["missing_keys"]))
    require(not missing, f"{path}: no weights for {missing}: it is no trained classifier")
    can_pad = tokenizer.pad_token is not None
    needed = "expected one, to judge several texts at once"
    require(can_pad, f"{path}: its tokenizer has no padding token, {needed}")
    return tokenizer, model.eval().requires_grad_(False)
