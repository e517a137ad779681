"""Write tests/fixtures/huggingface: a tiny random model of every family and what it computes.

    python tests/support/make_huggingface_fixtures.py

This needs torch; the tests that read the fixtures do not. Every folder holds what transformers'
save_pretrained wrote, and golden.npz: the logits of tokens (left- and right-padded, longer than the
windows), and the greedy continuation of left-padded prompts. In "score-*" the logit is that of a
sequence classifier with one label.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[1] / "fixtures" / "huggingface"
VOCAB, LENGTH, PROMPT, NEW, PAD = 24, 14, 7, 6, 0
WIDE = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
SIZES = {
    **WIDE,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
GEMMA = {
    **SIZES,
    "num_hidden_layers": 3,
    "head_dim": 6,
    "query_pre_attn_scalar": 10,
    "sliding_window": 5,
}
GPT2 = {**WIDE, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 50.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "beta_fast": 2.0,
    "beta_slow": 0.1,
    "original_max_position_embeddings": 8,
}
GEMMA_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
}
# One of each family, tied and untied. With torch installed the other ones are checked, too.
COMMITTED = {
    "gpt2": ("gpt2", GPT2),
    "llama": ("llama", {**SIZES, "tie_word_embeddings": False}),
    "llama3": (
        "llama",
        {**SIZES, "tie_word_embeddings": True, "head_dim": 8, "rope_parameters": LLAMA3},
    ),
    "yarn": ("qwen2", {**SIZES, "num_attention_heads": 2, "rope_parameters": YARN}),
    "mistral": ("mistral", {**SIZES, "sliding_window": 5}),
    "qwen2": ("qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**SIZES, "head_dim": 6}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": (
        "gemma3_text",
        {
            **GEMMA,
            "rope_parameters": GEMMA_ROPE,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gpt_neox": ("gpt_neox", {**NEOX, "rotary_pct": 0.5}),
}
OTHERS = {
    "gpt2-untied": (
        "gpt2",
        {**GPT2, "tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 20},
    ),
    "llama-biases": ("llama", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        "llama",
        {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    "llama-yarn": (
        "llama",
        {**SIZES, "rope_parameters": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5}},
    ),
    "mistral-dynamic": (
        "mistral",
        {**SIZES, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 9.0, "factor": 4.0}},
    ),
    "mistral-global": ("mistral", {**SIZES, "sliding_window": None}),
    "qwen2-windows": (
        "qwen2",
        {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3-windows": (
        "qwen3",
        {**SIZES, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "gemma2-default": ("gemma2", GEMMA),
    "gemma3-default": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
    "neox-serial": (
        "gpt_neox",
        {**NEOX, "rotary_pct": 1.0, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
}


def make(model_type: str, options: dict[str, Any], *, score: bool = False) -> Any:
    """Return a transformers model with random weights that make attention and positions matter."""
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    auto = (
        transformers.AutoModelForSequenceClassification
        if score
        else transformers.AutoModelForCausalLM
    )
    labels = {"num_labels": 1} if score else {}
    config = transformers.AutoConfig.for_model(model_type, **options, **labels)
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn_like(parameter) * 0.3 + (0.3 if parameter.ndim == 1 else 0.0)
            )
    return model


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, mask): a full row, one padded on the left, one padded on the right.

    No real token is the padding's.
    """
    tokens = np.random.default_rng(0).integers(3, VOCAB, (3, LENGTH))
    mask = np.ones((3, LENGTH), np.int32)
    mask[1, :4], mask[2, -3:] = 0, 0
    return np.where(mask, tokens, PAD), mask


def logits(model: Any) -> np.ndarray:
    """Return the logits that transformers gives of `inputs()`."""
    import torch

    tokens, mask = map(torch.tensor, inputs())
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions).logits.numpy()


def greedy(model: Any) -> np.ndarray:
    """Return the likeliest tokens after the first PROMPT columns of the first two rows."""
    import torch

    tokens, mask = (torch.tensor(x[:2, :PROMPT]) for x in inputs())
    exactly = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "eos_token_id": -1}
    chosen = model.generate(tokens, attention_mask=mask, **exactly)
    return chosen[:, PROMPT:].numpy()


def main() -> None:
    """Write every committed fixture."""
    for name, (model_type, options) in COMMITTED.items():
        model = make(model_type, options)
        # Two shards for one family, so that an index is read as well.
        model.save_pretrained(FOLDER / name, max_shard_size="10KB" if name == "mistral" else "5GB")
        np.savez_compressed(
            FOLDER / name / "golden.npz", logits=logits(model), greedy=greedy(model)
        )
    for name in ("llama", "gpt2"):
        model = make(*COMMITTED[name], score=True)
        model.save_pretrained(FOLDER / f"score-{name}")
        np.savez_compressed(FOLDER / f"score-{name}" / "golden.npz", logits=logits(model))
    for path in FOLDER.rglob("config.json"):  # no versions in the repository
        content = {
            k: v for k, v in json.loads(path.read_text()).items() if k != "transformers_version"
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
    for path in FOLDER.rglob("generation_config.json"):
        path.unlink()


if __name__ == "__main__":
    sys.exit(main())
