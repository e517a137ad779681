"""GGUF files written in llama.cpp's layouts give the parameters that safetensors give."""

import dataclasses
import json
import math

import jax
import make_huggingface_fixtures as golden
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlhf_jax.apps.export import main as export_main
from rlhf_jax.models.huggingface import load_pretrained
from rlhf_jax.models.huggingface.gguf import GGUF_NAMES, load_gguf
from rlhf_jax.models.huggingface.tensors import NAMES, tensors
from rlhf_jax.models.layers import rope_rates
from rlhf_jax.training.pretrained import load_model, read_tokenizer

gguf = pytest.importorskip(
    "gguf", reason="reads GGUF, which is optional: pip install rlhf_jax[gguf]"
)
FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}


def write(path, name, architecture, config, *, change=lambda tensors: None, **metadata):
    """Write what llama.cpp's converter does: q and k permuted for LLaMA, 1 + w for Gemma."""
    fields = json.loads((golden.FOLDER / name / "config.json").read_text())
    stored = load_file(golden.FOLDER / name / "model.safetensors")
    names = {
        t.leaves: t.name for t in tensors(NAMES[fields["model_type"]], config, "language_model")
    }
    ours = {t.name: stored[names[t.leaves]] for t in tensors(GGUF_NAMES, config, "language_model")}
    for key, array in ours.items():
        if architecture == "gemma3" and key.endswith("norm.weight"):
            ours[key] = array + 1
        if architecture == "llama" and key.endswith(("attn_q.weight", "attn_k.weight")):
            heads = config.num_heads if "attn_q" in key else config.num_kv_heads
            ours[key] = (
                array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            )
    change(ours)
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_block_count(fields["num_hidden_layers"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_rope_dimension_count(config.head_width)
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    for key, array in ours.items():
        writer.add_tensor(key, np.ascontiguousarray(array))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def expected(name):
    return load_pretrained(golden.FOLDER / name, kind="language_model", **FLOAT32)


def test_llama_s_queries_and_keys_are_put_back_in_order(tmp_path):
    config, params = expected("llama")
    write(tmp_path / "a.gguf", "llama", "llama", config, rope_freq_base=10_000.0)
    shape, loaded = load_gguf(tmp_path / "a.gguf", **FLOAT32)
    assert dict(vars(shape), norm_eps=0, embedding_std=0) == dict(
        vars(config), norm_eps=0, embedding_std=0
    )
    assert shape.norm_eps == pytest.approx(config.norm_eps)  # the file has it in float32
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_gemma_s_norms_lose_their_one_and_gain_their_windows(tmp_path):
    config, params = expected("gemma3")
    write(
        tmp_path / "a.gguf",
        "gemma3",
        "gemma3",
        config,
        rope_freq_base=1000.0,
        key_length=6,
        sliding_window=5,
    )
    shape, loaded = load_gguf(tmp_path / "a.gguf", **FLOAT32)
    assert (shape.windows, shape.rope_base, shape.rope_base_local, shape.norm) == (
        (5,),
        1e3,
        1e4,
        "rmsnorm_plus_one",
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-7), loaded, params)


def test_llama_3_s_rope_freqs_are_its_scaling(tmp_path):
    """The converter writes 1 for fast pairs, s for slow ones, and a blend between."""
    config, _ = expected("llama3")
    scaled = dataclasses.replace(config, rope_scaling=(32.0, 1.0, 4.0, 8192.0), rope_base=5e5)
    divisors = []
    for pair in range(4):
        wavelength = 2 * math.pi * 5e5 ** (2 * pair / 8)
        smooth = (8192 / wavelength - 1) / 3
        blend = 1 / ((1 - smooth) / 32 + smooth)
        divisors.append(1 if wavelength < 2048 else 32 if wavelength > 8192 else blend)
    divisors = np.array(divisors, np.float32)
    assert (divisors[0], divisors[-1]) == (1, 32)
    path = tmp_path / "a.gguf"

    def add(tensors, values=divisors):
        tensors["rope_freqs.weight"] = values

    options = {"rope_freq_base": 5e5, "key_length": 8}
    write(path, "llama3", "llama", config, change=add, **options)
    shape, params = load_gguf(path, **FLOAT32)
    assert shape.rope_scaling == scaled.rope_scaling
    np.testing.assert_allclose(
        rope_rates(shape, local=False), rope_rates(scaled, local=False), rtol=1e-6
    )
    jax.tree.map(np.testing.assert_array_equal, params, expected("llama3")[1])
    write(path, "llama3", "llama", config, change=lambda t: add(t, divisors + 1), **options)
    with pytest.raises(ValueError, match=r"rope_freqs.weight: \[2.0, .* LLaMA 3.1's scaling: fac"):
        load_gguf(path, **FLOAT32)


def test_what_does_not_fit_is_listed(tmp_path):
    config, _ = expected("llama")
    path = tmp_path / "a.gguf"

    def damage(tensors):
        tensors["rope_sines.weight"] = np.ones(2, np.float32)
        del tensors["blk.1.ffn_up.weight"]

    write(path, "llama", "llama", config, change=damage)
    with pytest.raises(
        ValueError,
        match=r"2 tensors do not fit.*\n.*ffn_up.weight: nothing, .*\n.*rope_sines.weight: \(2,\)",
    ):
        load_gguf(path, **FLOAT32)
    write(path, "llama", "llama", config, expert_count=4)
    with pytest.raises(ValueError, match="expert_count: 4 is a field we do not know"):
        load_gguf(path, **FLOAT32)
    write(path, "llama", "qwen2", config)
    with pytest.raises(
        ValueError, match="architecture: 'qwen2' is not supported, expected llama or gemma3"
    ):
        load_gguf(path, **FLOAT32)
    with pytest.raises(FileNotFoundError, match=r"b.gguf: not found"):
        load_gguf(tmp_path / "b.gguf", **FLOAT32)


def test_a_damaged_file_is_named(tmp_path, capsys):
    config, _ = expected("llama")
    path = tmp_path / "a.gguf"
    write(path, "llama", "llama", config)
    whole = path.read_bytes()
    for length in range(
        0, len(whole) - 1, len(whole) // 150
    ):  # from an empty file through the header to the last tensor
        path.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"^[^ ]*a\.gguf: \w+: .*expected a whole GGUF file; download it again"
        ):
            load_gguf(path, **FLOAT32)
    assert export_main(["--checkpoint", f"hf:{path}", "--to", str(tmp_path / "b")]) == 2
    assert capsys.readouterr().err.count("a.gguf") == 1


def test_a_quantisation_that_the_package_does_not_know_is_named(tmp_path):
    config, _ = expected("llama")

    def quantise(tensors):
        tensors["output_norm.weight"] = tensors["output_norm.weight"].astype(np.int8)

    write(tmp_path / "a.gguf", "llama", "llama", config, change=quantise)
    with pytest.raises(
        ValueError,
        match=r"a\.gguf: weights .*:\n  output_norm.weight: .*I8 .* by the package gguf; take",
    ):
        load_gguf(tmp_path / "a.gguf", **FLOAT32)


TOKENIZER = {
    "tokenizer_model": "llama",
    "token_list": ["<pad>", "<bos>", "<eos>", "<unk>", "▁", "a", "b", "▁a", "ab"],
    "token_types": [3, 3, 3, 2, 1, 1, 1, 1, 1],
    "token_scores": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unk_token_id": 3,
    "pad_token_id": 0,
    "add_space_prefix": False,
}


def test_a_file_is_a_parent_and_is_exported_with_its_tokenizer(tmp_path):
    config, params = expected("llama")
    path = f"hf:{tmp_path}/a.gguf"
    write(tmp_path / "a.gguf", "llama", "llama", config, rope_freq_base=10_000.0, **TOKENIZER)
    assert export_main(["--checkpoint", path, "--to", str(tmp_path / "b")]) == 0
    exported, meta = load_model(f"hf:{tmp_path}/b")
    tokenizer = read_tokenizer(f"hf:{tmp_path}/b")
    jax.tree.map(
        np.testing.assert_array_equal, exported["trunk"]["block_0"], params["trunk"]["block_0"]
    )
    assert meta.fingerprint == load_model(path)[1].fingerprint
    assert tokenizer.fingerprint() == meta.tokenizer == read_tokenizer(path).fingerprint()
    assert [tokenizer.prefix_ids, tokenizer.encode(" aab", special=False), tokenizer.eos_id] == [
        [1],
        [7, 8],
        2,
    ]


def test_a_file_without_tokenizer_says_so(tmp_path, capsys):
    config, _ = expected("llama")
    write(tmp_path / "a.gguf", "llama", "llama", config, rope_freq_base=10_000.0)
    assert export_main(["--checkpoint", f"hf:{tmp_path}/a.gguf", "--to", str(tmp_path / "b")]) == 2
    assert "a.gguf: tokenizer.ggml.tokens: missing" in capsys.readouterr().err
    assert (
        export_main(["--checkpoint", f"hf:{tmp_path}/none.gguf", "--to", str(tmp_path / "b")]) == 2
    )
    assert "none.gguf: not found" in capsys.readouterr().err
