"""Read the fields of a config.json one by one, so that none is ignored.

    fields = Fields(values)
    fields.take, fields.optional, fields.expect ...
    fields.unread, fields.problems                  what is left, and what is wrong

Also here: what all families spell alike. Position scaling is read in both spellings, `rope_theta`
+ `rope_scaling` (transformers 4) and `rope_parameters` (5).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

# What does not change the function: provenance, dropout, token ids, labels, and how other programs
# run the model; also what only the first transformers wrote (GPT-2, DistilGPT-2, LLaMA 1) and none
# of the later ones reads.
_BOOKKEEPING = """
_attn_implementation_autoset _name_or_path _num_labels architectures attention_dropout
attn_pdrop bos_token_id cache_implementation chunk_size_feed_forward classifier_dropout dtype
embd_pdrop eos_token_id finetuning_task gradient_checkpointing hidden_dropout id2label
is_llama_config label2id max_sequence_length model_type n_ctx n_special num_labels
output_attentions output_hidden_states output_past pad_token_id predict_special_tokens
pretraining_tp problem_type resid_pdrop return_dict summary_activation summary_first_dropout
summary_proj_to_labels summary_type summary_use_proj task_specific_params tokenizer_class
torch_dtype torchscript transformers.js_config transformers_version use_bfloat16 use_cache
"""
BOOKKEEPING = frozenset(_BOOKKEEPING.split())
# What is about sampling or other programs and stands in many folders all the same: passed over, and
# named in one line. Code of a model's own (auto_map) is never run: its family is computed here.
_PASSED_OVER = """
_attn_implementation _attn_implementation_internal _commit_hash _flash_attn_2_enabled
attn_implementation auto_map bad_words_ids begin_suppress_tokens cross_attention_hidden_size
decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length
max_new_tokens min_length min_p model_max_length no_repeat_ngram_size num_beam_groups num_beams
num_return_sequences output_scores padding_side prefix remove_invalid_values repetition_penalty
return_dict_in_generate sep_token_id suppress_tokens temperature tf_legacy_loss top_k top_p
typical_p unsloth_fixed unsloth_version use_flash_attention_2
"""
PASSED_OVER = frozenset(_PASSED_OVER.split())
SLIDING = "sliding_attention"
FULL = "full_attention"
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
YARN = ("factor", "beta_fast", "beta_slow", "original_max_position_embeddings", "attention_factor")
ROPE_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": YARN,
    # Stretches what is longer than max_position_embeddings, which no text is here.
    "dynamic": ("factor",),
}


class Fields:
    """Remember which fields of a config.json were read and what was wrong with them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.unread = set(values) - BOOKKEEPING - PASSED_OVER
        self.problems: list[str] = []

    def take(self, name: str, default: Any = None) -> Any:
        """Return the value, or `default` where it is absent or null.

        Without a default that is a problem.
        """
        value = self.optional(name)
        if value is not None:
            return value
        if default is not None:
            return default
        self.problems.append(f"{name}: missing, expected a value")
        return 1  # Lets the translation go on, so that all problems are listed at once.

    def optional(self, name: str) -> Any:
        """Return the value, or None where it is absent or null."""
        self.unread.discard(name)
        return self.values.get(name)

    def expect(self, name: str, *allowed: Any) -> None:
        """Note a problem unless the value is one of those that can be computed.

        The first is what an absent or null field means.
        """
        value = self.optional(name)
        if value is not None and value not in allowed:
            self._refuse(name, value, allowed)

    def activation(self, name: str, meanings: Mapping[str, str], default: str) -> str:
        """Return our word for an activation."""
        value = self.take(name, default)
        if value in meanings:
            return meanings[value]
        self._refuse(name, value, meanings)
        return next(iter(meanings.values()))

    def _refuse(self, name: str, value: Any, allowed: Iterable[Any]) -> None:
        choices = " or ".join(map(repr, allowed))
        self.problems.append(f"{name}: {value!r} is not supported, expected {choices}")


def read_sizes(fields: Fields) -> dict[str, Any]:
    """Read the sizes under the names that most families share."""
    width = fields.take("hidden_size")
    heads = fields.take("num_attention_heads")
    defaults = {"num_kv_heads": heads, "head_width": width // heads}
    sizes = {ours: fields.take(name, defaults.get(ours)) for ours, name in SIZE_NAMES.items()}
    return {**sizes, "embedding_std": fields.take("initializer_range", 0.02)}


def read_rope(fields: Fields) -> dict[str, Any]:
    """Read base, scaling and turning fraction of all layers."""
    rope = dict(fields.optional("rope_parameters") or {})
    if not rope:
        scaling = fields.optional("rope_scaling") or {}
        rope = {"rope_theta": fields.take("rope_theta", 10_000.0), **scaling}
    return {
        "rope_base": float(rope.pop("rope_theta", 10_000.0)),
        "rope_fraction": float(rope.pop("partial_rotary_factor", 1.0)),
        "rope_scaling": read_scaling(fields, rope),
    }


def read_scaling(fields: Fields, values: dict[str, Any]) -> tuple[float, ...]:
    """Read our `rope_scaling` from the fields beside `rope_theta`."""
    types = {values.pop(name) for name in ("rope_type", "type") if name in values}
    kind = types.pop() if len(types) == 1 else "default" if not types else str(sorted(types))
    if kind not in ROPE_SCALINGS:
        fields.problems.append(
            f"rope scaling of type {kind!r} is not supported, expected {', '.join(ROPE_SCALINGS)}"
        )
        return ()
    if kind == "yarn":
        values = _complete_yarn(fields, values)
    names = ROPE_SCALINGS[kind]
    if set(values) != set(names):
        fields.problems.append(
            f"rope scaling of type {kind!r} with {sorted(values)}: expected {sorted(names)}"
        )
        return ()
    return () if kind == "dynamic" else tuple(float(values[name]) for name in names)


def _complete_yarn(fields: Fields, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return YaRN's five numbers: what is absent or null has the default of transformers.

    Source: Peng et al. 2023; the attention factor is 0.1·ln(s) + 1 (equation 22), or DeepSeek's
    ratio of two of them.
    """
    fields_set = {name: value for name, value in values.items() if value is not None}
    scales = [fields_set.pop(name, None) for name in ("mscale", "mscale_all_dim")]
    if not fields_set.pop("truncate", True):
        fields.problems.append("rope scaling of type 'yarn': truncate: false is not supported")
    defaults: dict[str, Any] = {"beta_fast": 32, "beta_slow": 1}
    if context := fields.values.get("max_position_embeddings"):
        defaults["original_max_position_embeddings"] = context
    if factor := fields_set.get("factor"):
        over, under = scales if all(scales) else (1.0, 0.0)
        defaults["attention_factor"] = _mscale(factor, over) / _mscale(factor, under)
    return {**defaults, **fields_set}


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def read_windows(fields: Fields, default: Iterable[str], window: int | None) -> dict[str, Any]:
    """Read the windows: `layer_types`, or `default` without it, and the sliding layers' window."""
    types = list(fields.optional("layer_types") or default)
    layers = fields.take("num_hidden_layers")
    if len(types) != layers or not set(types) <= {SLIDING, FULL}:
        fields.problems.append(
            f"layer_types: {types}, expected {layers} times {SLIDING!r} or {FULL!r}"
        )
        return {}
    if SLIDING in types and window is None:
        fields.problems.append(
            f"sliding_window: null, expected the window of the {SLIDING!r} layers"
        )
    return {"windows": shortest_period([(window or 0) * (kind == SLIDING) for kind in types])}


def shortest_period(values: list[int]) -> tuple[int, ...]:
    """Return the shortest tuple that gives the list when repeated: (4, 0, 4, 0, 4) is (4, 0)."""
    for period in range(1, len(values)):
        if all(value == values[i % period] for i, value in enumerate(values)):
            return tuple(values[:period])
    return tuple(values)
