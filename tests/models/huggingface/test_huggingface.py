"""Check every family against transformers with the same weights, with and without torch."""

import dataclasses
import functools
import json
import math
import shutil
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import make_huggingface_fixtures as golden
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.inference.decoding import GREEDY
from rlhf_jax.inference.sampling import sample
from rlhf_jax.inference.scoring import last_token_scores
from rlhf_jax.models import LanguageModel, ScalarModel, apply, gpt, init_params, num_params, palm
from rlhf_jax.models.huggingface import load_pretrained, save_pretrained
from rlhf_jax.models.huggingface.configs import read_config, text_config
from rlhf_jax.models.layers import rope_length, rope_rates
from rlhf_jax.training.mesh import make_mesh, state_shardings

FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}
LM = {"kind": "language_model", **FLOAT32}
WRITE = {"token_ids": {"eos_token_id": 2, "pad_token_id": 0}, "max_shard_bytes": 8_000}
COMMON = {"dropout_rate": 0.0, **FLOAT32, "remat": "none"}
every_family = pytest.mark.parametrize("name", golden.COMMITTED)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens_BT, mask_BT):
    return apply(model, params, tokens_BT, mask_BT)[0]


def is_close(values, expected, mask):
    """Whether the largest difference at real tokens is below 1e-4 of their scale."""
    real = mask.astype(bool)
    return np.abs(np.asarray(values) - expected)[real].max() < 1e-4 * np.abs(expected[real]).max()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def copy_fixture(tmp_path, name):
    return Path(shutil.copytree(golden.FOLDER / name, tmp_path / name))


def edit_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in content.items() if v != "absent"})
    )


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# The function.


@every_family
def test_logits_and_greedy_text_are_those_of_transformers(name):
    config, params = load_pretrained(golden.FOLDER / name, **LM)
    expected, (tokens, mask) = np.load(golden.FOLDER / name / "golden.npz"), golden.inputs()
    model = LanguageModel(config)
    assert is_close(
        forward(model, params, jnp.asarray(tokens), jnp.asarray(mask)), expected["logits"], mask
    )
    prompts = (jnp.asarray(tokens[:2, : golden.PROMPT]), jnp.asarray(mask[:2, : golden.PROMPT]))
    samples = sample(
        model,
        params,
        *prompts,
        jax.random.key(0),
        spec=GREEDY,
        response_length=golden.NEW,
        stop_tokens=(),
        pad_id=0,
    )
    np.testing.assert_array_equal(samples.tokens_BR, expected["greedy"])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_classifier_with_one_label_is_a_reward_model(name, tmp_path):
    folder = golden.FOLDER / f"score-{name}"
    config, params = load_pretrained(folder, kind="scalar_model", **FLOAT32)
    tokens, mask = map(jnp.asarray, golden.inputs())
    expected = np.load(folder / "golden.npz")["logits"][:, 0]
    score_B = jax.jit(last_token_scores, static_argnums=0)(
        ScalarModel(config), params, tokens, mask
    )
    np.testing.assert_allclose(score_B, expected, rtol=1e-5, atol=1e-5)
    params["head"]["bias"] = jnp.asarray(
        [0.25]
    )  # has no tensor in transformers, comes back all the same
    save_pretrained(tmp_path, config, params, kind="scalar_model", **WRITE)
    assert json.loads((tmp_path / "config.json").read_text())["rlhf_jax_score_bias"] == 0.25
    read_back, restored = load_pretrained(tmp_path, kind="scalar_model", **FLOAT32)
    assert read_back == config
    assert_same(restored, params)
    with pytest.raises(ValueError, match=r"unexpected score.weight \[1, 16\]"):
        load_pretrained(tmp_path, **LM)


def test_a_score_is_read_at_the_end_token_even_where_that_is_the_padding(tmp_path):
    config, params = load_pretrained(golden.FOLDER / "score-llama", kind="scalar_model", **FLOAT32)
    ids = {"eos_token_id": 2, "pad_token_id": 2}
    save_pretrained(
        tmp_path, config, params, kind="scalar_model", token_ids=ids, max_shard_bytes=10**9
    )
    written = json.loads((tmp_path / "config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"]) == (2, None)


# There and back.


@every_family
def test_export_and_import_lose_nothing(name, tmp_path):
    config, params = load_pretrained(golden.FOLDER / name, **LM)
    save_pretrained(tmp_path, config, params, kind="language_model", **WRITE)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    read_back, restored = load_pretrained(tmp_path, **LM)
    assert read_back == config
    assert_same(restored, params)
    original = {
        k: v for f in (golden.FOLDER / name).glob("*.safetensors") for k, v in load_file(f).items()
    }
    written = {k: v for f in tmp_path.glob("*.safetensors") for k, v in load_file(f).items()}
    assert_same(written, original)


def test_bfloat16_weights_stay_bfloat16(tmp_path):
    folder = copy_fixture(tmp_path, "gemma2")
    edit_tensors(
        folder,
        lambda t: t.update({k: np.asarray(jnp.asarray(v, jnp.bfloat16)) for k, v in t.items()}),
    )
    config, params = load_pretrained(
        folder, kind="language_model", param_dtype="bfloat16", compute_dtype="bfloat16"
    )
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    save_pretrained(
        tmp_path / "again",
        config,
        params,
        kind="language_model",
        token_ids={},
        max_shard_bytes=10**9,
    )
    assert_same(
        load_file(tmp_path / "again" / "model.safetensors"), load_file(folder / "model.safetensors")
    )


def test_a_gpt_made_here_can_be_exported_and_a_palm_cannot(tmp_path):
    sizes = {
        "vocab_size": 7,
        "context_length": 8,
        "width": 8,
        "num_layers": 1,
        "num_heads": 2,
        **COMMON,
    }
    config = gpt(**sizes)
    params = init_params(LanguageModel(config), jax.random.key(0))
    save_pretrained(tmp_path, config, params, kind="language_model", **WRITE)
    read_back, restored = load_pretrained(tmp_path, **LM)
    assert read_back == config
    assert_same(restored, params)
    with pytest.raises(FileExistsError, match=r"config.json, model.safetensors already"):
        save_pretrained(tmp_path, config, params, kind="language_model", **WRITE)
    other = palm(**sizes, head_width=4)
    with pytest.raises(
        ValueError, match=r"(?s)no family .*llama comes nearest.*shared_norm: True, it has"
    ):
        save_pretrained(tmp_path / "palm", other, {}, kind="language_model", **WRITE)
    params["trunk"]["final_norm"]["bias"] = (
        params["trunk"]["final_norm"]["bias"].at[0].set(math.nan)
    )
    with pytest.raises(ValueError, match="trunk/final_norm/bias: NaN"):
        save_pretrained(tmp_path / "nan", config, params, kind="language_model", **WRITE)
    assert not (tmp_path / "nan" / "config.json").exists()


# Real configurations, as the hub has them.

LLAMA3_SCALING = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def published(model_type, width, ffw, layers, heads, kv_heads, vocab, context, **others):
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": ffw,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "transformers_version": "4.40",
        "torch_dtype": "bfloat16",
        **others,
    }


def gpt2(width, layers, heads, **others):
    return {
        "model_type": "gpt2",
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "n_ctx": 1024,
        "vocab_size": 50257,
        "task_specific_params": {"text-generation": {}},
        **others,
    }


FIRST = {
    "n_special": 0,
    "predict_special_tokens": True,
}  # fields of 2019, of which nothing is left but the files
PUBLISHED = {
    "GPT-2": (124_439_808, gpt2(768, 12, 12)),
    "GPT-2-medium": (354_823_168, gpt2(1024, 24, 16, **FIRST)),
    "GPT-2-large": (774_030_080, gpt2(1280, 36, 20, **FIRST)),
    "GPT-2-XL": (1_557_611_200, gpt2(1600, 48, 25, **FIRST, output_past=True)),
    "DistilGPT-2": (
        81_912_576,
        gpt2(
            768,
            6,
            12,
            _num_labels=1,
            id2label={"0": "LABEL_0"},
            label2id={"LABEL_0": 0},
            pruned_heads={},
            torchscript=False,
            use_bfloat16=False,
        ),
    ),
    "LLaMA-7B": (
        6_738_415_616,
        published("llama", 4096, 11008, 32, 32, 32, 32000, 2048, max_sequence_length=2048),
    ),
    "SmolLM2-135M": (
        134_515_008,
        published(
            "llama",
            576,
            1536,
            30,
            9,
            3,
            49152,
            8192,
            rope_theta=100000,
            rope_scaling=None,
            rope_interleaved=False,
            is_llama_config=True,
            tie_word_embeddings=True,
        ),
    ),
    "Llama-3.2-1B": (
        1_235_814_400,
        published(
            "llama",
            2048,
            8192,
            16,
            32,
            8,
            128256,
            131072,
            rope_theta=500000.0,
            head_dim=64,
            rope_scaling=LLAMA3_SCALING,
            tie_word_embeddings=True,
            eos_token_id=[1, 2],
        ),
    ),
    "Mistral-7B": (
        7_241_732_096,
        published("mistral", 4096, 14336, 32, 32, 8, 32000, 32768, sliding_window=4096),
    ),
    "Qwen2.5-0.5B": (
        494_032_768,
        published(
            "qwen2",
            896,
            4864,
            24,
            14,
            2,
            151936,
            32768,
            tie_word_embeddings=True,
            use_mrope=False,
            use_sliding_window=False,
            sliding_window=32768,
            max_window_layers=24,
        ),
    ),
    "Qwen3-0.6B": (
        596_049_920,
        published(
            "qwen3",
            1024,
            3072,
            28,
            16,
            8,
            151936,
            40960,
            head_dim=128,
            tie_word_embeddings=True,
            attention_bias=False,
            sliding_window=None,
            max_window_layers=28,
        ),
    ),
    "Gemma-2-2B": (
        2_614_341_888,
        published(
            "gemma2",
            2304,
            9216,
            26,
            8,
            4,
            256000,
            8192,
            head_dim=256,
            sliding_window=4096,
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            query_pre_attn_scalar=256,
            hidden_act="gelu_pytorch_tanh",
            hidden_activation="gelu_pytorch_tanh",
            cache_implementation="hybrid",
        ),
    ),
    "Gemma-3-270M": (
        268_098_176,
        published(
            "gemma3_text",
            640,
            2048,
            18,
            4,
            1,
            262144,
            32768,
            head_dim=256,
            sliding_window=512,
            _sliding_window_pattern=6,
            rope_theta=1e6,
            rope_local_base_freq=10000.0,
            rope_scaling=None,
            query_pre_attn_scalar=256,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            use_bidirectional_attention=False,
            hidden_activation="gelu_pytorch_tanh",
        ),
    ),
    "Pythia-160M": (
        162_322_944,
        {
            "model_type": "gpt_neox",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "vocab_size": 50304,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 2048,
            "rotary_pct": 0.25,
            "rotary_emb_base": 10000,
            "hidden_act": "gelu",
            "use_parallel_residual": True,
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_have_their_published_size(name):
    number, values = PUBLISHED[name]
    _, config = read_config(values, **FLOAT32)
    assert num_params(config) == number
    shallow = dataclasses.replace(config, num_layers=1, vocab_size=8)
    tree = jax.eval_shape(lambda: init_params(LanguageModel(shallow), jax.random.key(0)))
    assert num_params(shallow) == sum(x.size for x in jax.tree.leaves(tree))


def test_details_of_published_configurations():
    gemma2, gemma3, neox, llama3 = (
        read_config(PUBLISHED[name][1], **FLOAT32)[1]
        for name in ("Gemma-2-2B", "Gemma-3-270M", "Pythia-160M", "Llama-3.2-1B")
    )
    assert (gemma2.windows, gemma2.query_scale, gemma2.attention_softcap, gemma2.logit_softcap) == (
        (4096, 0),
        0.0,
        50.0,
        30.0,
    )
    assert [i for i in range(18) if not gemma3.window(i)] == [5, 11, 17]
    assert (gemma3.rope_base, gemma3.rope_base_local, gemma3.tie_embeddings) == (1e6, 1e4, True)
    assert (neox.rotary_width, neox.parallel_block, neox.shared_norm, neox.activation) == (
        16,
        True,
        False,
        "gelu",
    )
    assert llama3.rope_scaling == (32.0, 1.0, 4.0, 8192.0)


# Errors list everything that does not fit.


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "llama",
            {"hidden_act": "relu", "mixture": 4, "vocab_size": "absent"},
            r"config.json: llama configuration:\n  vocab_size: missing.*"
            r"\n  hidden_act: 'relu'.*silu.*\n  mixture: 4 is a field",
        ),
        (
            "llama",
            {"attention_bias": True},
            "attention_bias: True, mlp_bias: False: only both or neither",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
            "'longrope' is not supported, expected default",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            "'yarn': truncate: false is not supported",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "beta_fast": 2.0}},
            r"'yarn' with .*expected \['attention_factor', 'beta_fast', .*'factor'",
        ),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta": 1}},
            r"with \['beta', 'factor'\]",
        ),
        (
            "llama",
            {"quantization_config": {"bits": 4}},
            "quantization_config: .* is a field we do not know",
        ),
        (
            "llama",
            {"rope_theta": 10.0},
            "rope_theta: 10.0 is a field we do not know",
        ),  # beside rope_parameters
        (
            "llama",
            {"attention_bias": True, "mlp_bias": "absent"},
            "attention_bias: True, mlp_bias: False",
        ),
        (
            "gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx: True",
        ),
        (
            "gpt2",
            {"pruned_heads": {"0": [1]}},
            r"pruned_heads: {'0': \[1\]} is not supported, expected {}",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention: True"),
        (
            "gemma3",
            {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            "layer_types: .*chunked",
        ),
        (
            "qwen2",
            {"model_type": "mixtral"},
            "model_type: 'mixtral' is not supported, expected one of gpt2, llama",
        ),
    ],
)
def test_unsupported_configurations_list_every_field(tmp_path, name, changes, words):
    folder = copy_fixture(tmp_path, name)
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=words):
        load_pretrained(folder, **LM)


def test_tensors_that_do_not_fit_are_all_listed(tmp_path):
    folder = copy_fixture(tmp_path, "gpt2")

    def damage(tensors):
        tensors["transformer.h.0.attn.bias"] = np.zeros(
            (1, 1, 32, 32), np.float32
        )  # a buffer that real files have
        tensors["transformer.h.0.adapter.weight"] = np.zeros((2, 2), np.float32)
        tensors["transformer.h.1.attn.c_attn.weight"] = tensors.pop(
            "transformer.h.1.attn.c_attn.weight"
        ).T.copy()
        tensors["transformer.wpe.weight"] = np.zeros((32, 16), np.int8)
        del tensors["transformer.ln_f.bias"]

    edit_tensors(folder, damage)
    with pytest.raises(ValueError, match="4 tensors do not fit") as caught:
        load_pretrained(folder, **LM)
    for line in (
        "missing    transformer.ln_f.bias [16]",
        "unexpected transformer.h.0.adapter.weight [2, 2]",
        "mis-shaped transformer.h.1.attn.c_attn.weight [48, 16], expected [16, 48]",
        "dtype      transformer.wpe.weight I8",
    ):
        assert line in str(caught.value)


def test_names_without_the_prefix_are_a_trunk_alone(tmp_path):
    folder = copy_fixture(tmp_path, "gpt2")
    _, expected = load_pretrained(folder, **LM)
    strip = {
        k.removeprefix("transformer."): v
        for k, v in load_file(folder / "model.safetensors").items()
    }
    strip["h.1.attn.masked_bias"] = np.zeros((), np.float32)
    save_file(strip, folder / "model.safetensors")
    assert_same(load_pretrained(folder, **LM)[1], expected)


def test_tied_embeddings_may_be_stored_twice_but_not_differ(tmp_path):
    folder = copy_fixture(tmp_path, "qwen2")
    _, expected = load_pretrained(folder, **LM)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}))
    assert_same(load_pretrained(folder, **LM)[1], expected)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight: differs from model.embed_tokens.weight"):
        load_pretrained(folder, **LM)


def test_tied_embeddings_may_be_stored_as_the_output_alone(tmp_path):
    folder = copy_fixture(tmp_path, "qwen2")
    _, expected = load_pretrained(folder, **LM)
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert_same(load_pretrained(folder, **LM)[1], expected)
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"missing    model.embed_tokens.weight \[24, 16\]"):
        load_pretrained(folder, **LM)


def test_fields_about_sampling_and_other_programs_are_passed_over_in_one_line(tmp_path, capsys):
    folder = copy_fixture(tmp_path, "llama")
    config, expected = load_pretrained(folder, **LM)
    assert capsys.readouterr().out == ""
    edit_config(
        folder,
        unsloth_fixed=True,
        max_length=20,
        temperature=0.6,
        _attn_implementation="eager",
        auto_map={"AutoModelForCausalLM": "modeling.py"},
    )
    again, params = load_pretrained(folder, **LM)
    assert (again, capsys.readouterr().out) == (
        config,
        f"   {folder}/config.json: passed over, as they change no number here: "
        "_attn_implementation, auto_map, max_length, temperature, unsloth_fixed\n",
    )
    assert_same(params, expected)


@pytest.mark.parametrize(
    ("trunk", "head", "vision"),
    [
        ("language_model.model.", "language_model.lm_head.", ""),
        ("model.language_model.", "lm_head.", "model."),
    ],
)
def test_gemma_3_is_read_without_its_vision_tower(tmp_path, capsys, trunk, head, vision):
    folder = copy_fixture(tmp_path, "gemma3")
    config, expected = load_pretrained(folder, **LM)

    def surround(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", trunk, 1)] = tensors.pop(name)
        tensors[f"{head}weight"] = tensors[f"{trunk}embed_tokens.weight"]
        tensors[f"{vision}vision_tower.embeddings.weight"] = np.zeros((2, 2), np.float32)
        tensors[f"{vision}multi_modal_projector.norm.weight"] = np.zeros(2, np.float32)

    edit_tensors(folder, surround)
    text = json.loads((folder / "config.json").read_text())
    outer = {
        "vision_config": {"hidden_size": 4},
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
    }
    outer |= {"architectures": ["Gemma3ForConditionalGeneration"], "image_token_index": 23}
    (folder / "config.json").write_text(json.dumps({**outer, "text_config": text}))
    again, params = load_pretrained(folder, **LM)
    assert again == config
    assert_same(params, expected)
    assert "2 tensors of the vision tower are passed over" in capsys.readouterr().out


def test_what_gemma_3_leaves_out_of_its_text_config():
    """google/gemma-3-4b-it: everything else has the default of transformers."""
    published = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    _, config = read_config(
        text_config({"model_type": "gemma3", "text_config": published}), **FLOAT32
    )
    assert (config.vocab_size, config.num_heads, config.num_kv_heads) == (262_208, 8, 4)
    assert (config.head_width, config.context_length) == (256, 131_072)
    assert [config.window(i) for i in range(12)] == [*[1024] * 5, 0] * 2
    assert config.rope_scaling == (8.0,)


def test_yarn_by_hand():
    """Two pairs of base 10⁴ in a context of 8, divided by 4 from the first pair's half on.

    32·ln(8 / 2π·2) is below 0 and of 0.1 turns 4·ln(8 / 0.2π) / 2·ln 10⁴ = 0.55: pairs 0 to 1.
    """
    values = json.loads((golden.FOLDER / "yarn" / "config.json").read_text())
    _, config = read_config(values, **FLOAT32)
    assert config.rope_scaling == pytest.approx((4.0, 2.0, 0.1, 8.0, 0.1 * math.log(4.0) + 1.0))
    config = dataclasses.replace(config, head_width=4)
    np.testing.assert_allclose(rope_rates(config, local=False), [1.0, 0.01 / 4], rtol=1e-6)
    assert rope_length(config, local=False) == pytest.approx(1.1386294)


def test_dynamic_scaling_begins_beyond_the_context():
    values = json.loads((golden.FOLDER / "mistral" / "config.json").read_text())
    plain = read_config(values, **FLOAT32)[1]
    values["rope_parameters"] |= {"rope_type": "dynamic", "factor": 4.0}
    assert read_config(values, **FLOAT32)[1] == plain


def test_weights_that_are_not_finite_are_all_named(tmp_path):
    folder = copy_fixture(tmp_path, "llama")
    edit_tensors(
        folder, lambda t: (t["model.norm.weight"].fill(np.nan), t["lm_head.weight"].fill(np.inf))
    )
    with pytest.raises(
        ValueError, match=r"damaged weights:(\n.*(lm_head|model.norm).weight: NaN or Inf){2}"
    ):
        load_pretrained(folder, **LM)


def test_damaged_missing_and_pickled_files_are_refused(tmp_path):
    folder = copy_fixture(tmp_path, "mistral")
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002.safetensors is damaged or cut short"
    ):
        load_pretrained(folder, **LM)
    shard.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names 'model-00002-of-00002.safetensors': no such file"
    ):
        load_pretrained(folder, **LM)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model.safetensors nor"):
        load_pretrained(folder, **LM)
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(
        FileNotFoundError, match=r"only pickled weights \(pytorch_model.bin\), .*safetensors"
    ):
        load_pretrained(folder, **LM)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json: not found"):
        load_pretrained(folder, **LM)


def test_an_index_must_agree_with_its_files(tmp_path):
    folder = copy_fixture(tmp_path, "mistral")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"disagree about model.extra.weight"):
        load_pretrained(folder, **LM)
    index["weight_map"]["model.extra.weight"] = "../llama/model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        FileNotFoundError, match=r"'../llama/model.safetensors': no such file in the folder"
    ):
        load_pretrained(folder, **LM)
    for damaged in ({}, {"weight_map": ["a"]}, {"weight_map": {"model.norm.weight": 1}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(damaged))
        with pytest.raises(
            ValueError,
            match=r"model.safetensors.index.json: weight_map: .*, expected a file for every tensor",
        ):
            load_pretrained(folder, **LM)


# Memory and devices.


def test_tensors_are_placed_one_at_a_time_on_the_mesh():
    mesh = make_mesh(1, 8, 1)
    _, plain = load_pretrained(golden.FOLDER / "gpt_neox", **LM)
    shardings = state_shardings(plain, mesh, 64)
    alive, most = [], 0

    def place(path, array):
        nonlocal most
        alive.append((path, weakref.ref(array)))
        most = max(
            most, len({other.split("/attention/")[0] for other, ref in alive if ref() is not None})
        )
        sharding = functools.reduce(lambda tree, key: tree[key], path.split("/"), shardings)
        return jax.device_put(
            array + 0, sharding
        )  # a copy, so that only the loader holds the array

    _, params = load_pretrained(golden.FOLDER / "gpt_neox", place=place, **LM)
    assert_same(params, plain)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert not params["trunk"]["embedding"].sharding.is_fully_replicated
    assert most == 1
    assert len(alive) == len(jax.tree.leaves(params))


# With torch: every option of every family, and what transformers makes of our files.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*golden.COMMITTED, *golden.OTHERS])
def test_torch_computes_the_same_before_and_after(name, tmp_path):
    pytest.importorskip(
        "torch", reason="compares with torch, which is optional: pip install rlhf_jax[torch]"
    )
    import transformers

    for score, kind in ((False, "language_model"), (True, "scalar_model")):
        auto = (
            transformers.AutoModelForSequenceClassification
            if score
            else transformers.AutoModelForCausalLM
        )
        original = golden.make(*(golden.COMMITTED | golden.OTHERS)[name], score=score)
        first, second = tmp_path / f"theirs-{kind}", tmp_path / f"ours-{kind}"
        original.save_pretrained(first)
        config, params = load_pretrained(first, kind=kind, **FLOAT32)
        expected, (tokens, mask) = golden.logits(original), golden.inputs()
        if score:
            score_B = last_token_scores(
                ScalarModel(config), params, jnp.asarray(tokens), jnp.asarray(mask)
            )
            assert np.abs(score_B - expected[:, 0]).max() < 1e-4 * np.abs(expected).max()
        else:
            assert num_params(config) == sum(p.numel() for p in original.parameters())
            assert is_close(
                forward(LanguageModel(config), params, jnp.asarray(tokens), jnp.asarray(mask)),
                expected,
                mask,
            )
        save_pretrained(second, config, params, kind=kind, **WRITE)
        back, notes = auto.from_pretrained(
            second, output_loading_info=True, attn_implementation="eager"
        )
        assert not any(notes.values()), notes
        np.testing.assert_array_equal(golden.logits(back.eval()), expected)
