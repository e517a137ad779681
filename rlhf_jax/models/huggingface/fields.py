"""The fields of a config.json: read one by one, so that nothing is ignored, and what all families spell alike.

    f = Fields(values)        f.take, f.optional, f.expect ...        f.unread and f.problems: what is left, and what is wrong

Position scaling is read in both spellings, `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters` (5).
"""

from collections.abc import Iterable, Mapping
from typing import Any

# What does not change the function: provenance, dropout, token ids, labels, and how other programs run the model; also what
# only the first transformers wrote (GPT-2, DistilGPT-2, LLaMA 1) and none of the later ones reads.
BOOKKEEPING = frozenset(
    (
        "_attn_implementation_autoset",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "attention_dropout",
        "attn_pdrop",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "dtype",
        "embd_pdrop",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "hidden_dropout",
        "id2label",
        "is_llama_config",
        "label2id",
        "max_sequence_length",
        "model_type",
        "n_ctx",
        "n_special",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "predict_special_tokens",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "use_bfloat16",
        "use_cache",
    )
)
SLIDING, FULL = "sliding_attention", "full_attention"
SIZE_NAMES = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "ffw_width": "intermediate_size",
}


class Fields:
    """A config.json that remembers which of its fields were read and what was wrong with them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.unread, self.problems = values, set(values) - BOOKKEEPING, list[str]()

    def take(self, name: str, default: Any = None) -> Any:
        """The value, or `default` where it is absent or null; without a default that is a problem."""
        value = self.optional(name)
        if value is not None or default is not None:
            return default if value is None else value
        self.problems.append(f"{name}: missing, expected a value")
        return 1  # Lets the translation go on, so that all problems are listed at once.

    def optional(self, name: str) -> Any:
        """The value, or None where it is absent or null."""
        self.unread.discard(name)
        return self.values.get(name)

    def expect(self, name: str, *allowed: Any) -> None:
        """Nothing but these values can be computed; the first is what an absent or null field means."""
        value = self.optional(name)
        if value is not None and value not in allowed:
            self.problems.append(
                f"{name}: {value!r} is not supported, expected {' or '.join(map(repr, allowed))}"
            )

    def activation(self, name: str, meanings: Mapping[str, str], default: str) -> str:
        """Our word for an activation."""
        value = self.take(name, default)
        if value not in meanings:
            self.problems.append(
                f"{name}: {value!r} is not supported, expected {' or '.join(map(repr, meanings))}"
            )
            return next(iter(meanings.values()))
        return meanings[value]


def read_sizes(f: Fields) -> dict[str, Any]:
    """The sizes under the names that most families share."""
    width, heads = f.take("hidden_size"), f.take("num_attention_heads")
    named = {
        ours: f.take(theirs)
        for ours, theirs in SIZE_NAMES.items()
        if ours not in ("num_kv_heads", "head_width")
    }
    kv_heads, head_width = f.take("num_key_value_heads", heads), f.take("head_dim", width // heads)
    return {
        **named,
        "num_kv_heads": kv_heads,
        "head_width": head_width,
        "embedding_std": f.take("initializer_range", 0.02),
    }


def read_rope(f: Fields) -> dict[str, Any]:
    """Base, scaling and turning fraction of all layers."""
    values = dict(f.optional("rope_parameters") or {})
    if not values:
        values = {
            "rope_theta": f.take("rope_theta", 10_000.0),
            **(f.optional("rope_scaling") or {}),
        }
    base, fraction = values.pop("rope_theta", 10_000.0), values.pop("partial_rotary_factor", 1.0)
    return {
        "rope_base": float(base),
        "rope_fraction": float(fraction),
        "rope_scaling": read_scaling(f, values),
    }


def read_scaling(f: Fields, values: dict[str, Any]) -> tuple[float, ...]:
    """Our `rope_scaling` for the fields beside `rope_theta`."""
    kinds = {values.pop(name) for name in ("rope_type", "type") if name in values}
    kind = kinds.pop() if len(kinds) == 1 else "default" if not kinds else str(sorted(kinds))
    names = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    if kind not in names:
        f.problems.append(
            f"rope scaling of type {kind!r} is not supported, expected {', '.join(names)}"
        )
        return ()
    if set(values) != set(names[kind]):
        f.problems.append(
            f"rope scaling of type {kind!r} with {sorted(values)}: expected {sorted(names[kind])}"
        )
        return ()
    return tuple(float(values[name]) for name in names[kind])


def read_windows(f: Fields, default: Iterable[str], window: int | None) -> dict[str, Any]:
    """`layer_types` (or what the family does without it) and the one window of the sliding layers."""
    types = list(f.optional("layer_types") or default)
    layers = f.take("num_hidden_layers")
    if len(types) != layers or not set(types) <= {SLIDING, FULL}:
        f.problems.append(f"layer_types: {types}, expected {layers} times {SLIDING!r} or {FULL!r}")
        return {}
    if SLIDING in types and window is None:
        f.problems.append(f"sliding_window: null, expected the window of the {SLIDING!r} layers")
    return {"windows": shortest_period([(window or 0) * (kind == SLIDING) for kind in types])}


def shortest_period(values: list[int]) -> tuple[int, ...]:
    """The shortest tuple that gives the list when repeated: (4, 0, 4, 0, 4) is (4, 0)."""
    periods = (
        n
        for n in range(1, len(values) + 1)
        if all(v == values[i % n] for i, v in enumerate(values))
    )
    return tuple(values[: next(periods)])
