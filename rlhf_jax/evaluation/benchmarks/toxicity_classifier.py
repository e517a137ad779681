"""A local toxicity classifier of words: embedding, bidirectional LSTM, maximum over time, two dense layers.

    ids_T        the last 100 known words of the text, padded on the left with 0, which is embedded like a word
    i, f, c, o = x W + h U + b;   s = σ(f) s + σ(i) tanh(c);   h = σ(o) tanh(s)       one LSTM from each side
    toxicity   = σ(relu(max_t [forward_t, backward_t] A + a) B + b)[0]

A folder holds `weights.npz` (arrays named as in `SHAPES`, read without unpickling) and `vocab.json`, a list whose place n
holds word n and whose place 0 is null.

Left out on purpose: training it. Any function from texts to numbers in [0, 1] can stand in its place (`Scorer`):
`transformers_classifier` makes one of a published model; one that runs elsewhere is served by a file of scores.
"""

import functools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation.turns import batch_rows, in_turn

Scorer = Callable[[Sequence[str]], np.ndarray]
LENGTH = 100
BATCH = 256
# Keras' default filters: punctuation except the apostrophe, tab and newline.
_BREAKS = str.maketrans(dict.fromkeys([*string.punctuation.replace("'", ""), "\t", "\n"], " "))
# E width of embeddings, H of an LSTM, F of the hidden layer, K labels, V words.
SHAPES = {
    "embedding__embeddings": "VE",
    "forward_lstm__kernel": "EG", "forward_lstm__recurrent_kernel": "HG", "forward_lstm__bias": "G",
    "backward_lstm__kernel": "EG", "backward_lstm__recurrent_kernel": "HG", "backward_lstm__bias": "G",
    "dense__kernel": "DF", "dense__bias": "F", "dense_1__kernel": "FK", "dense_1__bias": "K",
}  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """The weights, and the number of every known word."""

    weights: Mapping[str, np.ndarray]
    place: Mapping[str, int]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Toxicity in [0, 1] of every text."""
        if not texts:
            return np.zeros(0)
        ids_NT = np.array([word_ids(self.place, one) for one in texts], np.int32)
        parts = in_turn(lambda rows: _toxicity(dict(self.weights), ids_NT[rows]), batch_rows(len(texts), BATCH), "toxicities")
        return np.concatenate(parts)[: len(texts)].astype(np.float64)


def load_classifier(folder: str) -> Classifier:
    """Read a classifier's folder.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        ValueError: for arrays that are missing, unknown, mis-shaped or not finite, or a vocabulary that does not fit them.
    """
    for name in ("weights.npz", "vocab.json"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"{folder}/{name}: no such file; a classifier's folder has weights.npz and vocab.json")
    with np.load(Path(folder) / "weights.npz", allow_pickle=False) as file:
        weights = {name: file[name] for name in file.files}
    _check(folder, weights)
    words = json.loads((Path(folder) / "vocab.json").read_text(encoding="utf-8"))
    size = len(weights["embedding__embeddings"])
    if not isinstance(words, list) or len(words) != size or words[0] is not None:
        raise ValueError(f"{folder}/vocab.json: expected a list of {size} words, the first of them null")
    return Classifier(weights, {word: n for n, word in enumerate(words) if n})


def _check(folder: str, weights: Mapping[str, np.ndarray]) -> None:
    where = f"{folder}/weights.npz"
    if weights.keys() != SHAPES.keys():
        odd = sorted(weights.keys() ^ SHAPES.keys())
        raise ValueError(f"{where}: {', '.join(odd)}: missing or unknown, expected exactly {', '.join(SHAPES)}")
    sizes: dict[str, int] = {}
    for name, axes in SHAPES.items():
        shape = weights[name].shape
        if len(shape) != len(axes) or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, shape, strict=True)):
            raise ValueError(f"{where}: {name}: shape {shape} does not fit {axes} with {sizes}")
        if weights[name].dtype != np.float32 or not np.isfinite(weights[name]).all():
            raise ValueError(f"{where}: {name}: {weights[name].dtype}, expected finite float32")
    if sizes["G"] != 4 * sizes["H"] or sizes["D"] != 2 * sizes["H"]:
        raise ValueError(f"{where}: {sizes}: expected four gates (G = 4 H) and two directions (D = 2 H)")


def word_ids(place: Mapping[str, int], text: str) -> list[int]:
    """Numbers of the last known words of a text, padded on the left with 0."""
    known = [place[word] for word in text.lower().translate(_BREAKS).split(" ") if word in place][-LENGTH:]
    return [0] * (LENGTH - len(known)) + known


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
    """h_BTH, with gates in the order input, forget, cell, output."""
    recurrent_HG = weights[f"{name}__recurrent_kernel"]
    inputs_BTG = x_BTE @ weights[f"{name}__kernel"] + weights[f"{name}__bias"][None, None]
    zeros_BH = jnp.zeros((x_BTE.shape[0], recurrent_HG.shape[0]))
    step = functools.partial(_step, recurrent_HG)
    _, h_TBH = jax.lax.scan(step, (zeros_BH, zeros_BH), inputs_BTG.swapaxes(0, 1))
    return h_TBH.swapaxes(0, 1)


def _step(
    recurrent_HG: jax.Array, carry: tuple[jax.Array, jax.Array], input_BG: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    h_BH, state_BH = carry
    i_BH, f_BH, c_BH, o_BH = jnp.split(input_BG + h_BH @ recurrent_HG, 4, axis=-1)
    state_BH = jax.nn.sigmoid(f_BH) * state_BH + jax.nn.sigmoid(i_BH) * jnp.tanh(c_BH)
    h_BH = jax.nn.sigmoid(o_BH) * jnp.tanh(state_BH)
    return (h_BH, state_BH), h_BH
