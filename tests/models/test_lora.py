"""Check adapters: step 0 is the base to the bit, only they learn, merging changes nothing.

Other programs can read them, and theirs can be read.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import make_huggingface_fixtures as golden
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.models import (
    LanguageModel,
    ScalarModel,
    apply,
    gpt,
    init_params,
    llama,
    palm,
    to_dict,
)
from rlhf_jax.models.huggingface import load_pretrained, save_pretrained
from rlhf_jax.models.huggingface.peft import is_peft, load_peft, read_base_name, save_peft
from rlhf_jax.models.lora import (
    MODULES,
    LoraConfig,
    add_scales,
    combine,
    describe_adapters,
    init_adapters,
    merge_adapters,
    partition,
)
from rlhf_jax.training import checkpoints
from rlhf_jax.training.checkpoints import Meta
from rlhf_jax.training.mesh import make_mesh, place_frozen, replicated
from rlhf_jax.training.pretrained import describe_link, load_model

SIZES = {
    "vocab_size": 13,
    "context_length": 12,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "compute_dtype": "float32",
    "param_dtype": "float32",
}
LLAMA = llama(**SIZES, num_kv_heads=1, ffw_width=24, rope_base=1e4, remat="none")
SHAPES = {
    "gpt": gpt(**SIZES, remat="none"),
    "palm": palm(**SIZES, head_width=8, remat="block"),
    "llama": LLAMA,
}
LM = {"kind": "language_model", "param_dtype": "float32", "compute_dtype": "float32"}
LORA = LoraConfig(4, 8.0, MODULES)
UNGATED = LoraConfig(4, 8.0, tuple(name for name in MODULES if name != "gate"))
TOKENS = np.arange(20).reshape(2, 10) % 13
ONES = np.ones_like(TOKENS)


def perturb(trained):
    """Adapters as training leaves them: B is not 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + np.float32(0.1 * rng.normal(size=x.shape)), trained)


def logits_of(config):
    return jax.jit(lambda params: apply(LanguageModel(config), params, TOKENS, ONES)[0])


@pytest.fixture(scope="module")
def params():
    return init_params(LanguageModel(LLAMA), jax.random.key(0))


@pytest.fixture(scope="module")
def parts(params):
    base, trained = init_adapters(params, LORA, jax.random.key(1))
    return base, trained, perturb(trained)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_step_zero_is_the_base_and_merged_is_adapted(name, compute_dtype):
    config = dataclasses.replace(SHAPES[name], compute_dtype=compute_dtype)
    params = init_params(LanguageModel(SHAPES[name]), jax.random.key(0))
    base, trained = init_adapters(params, UNGATED if name == "gpt" else LORA, jax.random.key(1))
    logits, later = logits_of(config), combine(base, perturb(trained))
    plain = logits(params)
    assert np.array_equal(logits(combine(base, trained)), plain)
    assert not np.allclose(logits(later), plain, atol=1e-3)
    if compute_dtype == "float32":
        merged = merge_adapters(later)
        assert jax.tree.structure(merged) == jax.tree.structure(params)
        np.testing.assert_allclose(logits(merged), logits(later), atol=1e-5)


def test_merged_kernel_by_hand(params, parts):
    both = combine(parts[0], parts[2])
    layer = both["trunk"]["block_1"]["mlp"]["down"]
    by_hand = np.float64(params["trunk"]["block_1"]["mlp"]["down"]["kernel"])
    by_hand = by_hand + 8.0 / 4 * np.float64(layer["lora_a"]) @ np.float64(layer["lora_b"])
    np.testing.assert_allclose(
        merge_adapters(both)["trunk"]["block_1"]["mlp"]["down"]["kernel"], by_hand, atol=1e-6
    )


def test_only_adapters_learn_and_the_base_is_shared(params, parts):
    base, trained, _ = parts
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    assert names == {"lora_a", "lora_b"}
    assert len(jax.tree.leaves(trained)) == 2 * 7 * LLAMA.num_layers
    plain = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    shared = {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)
    }
    assert all(shared[name] is leaf for name, leaf in plain.items())
    b, a = (
        trained["trunk"]["block_0"]["mlp"]["up"]["lora_b"],
        trained["trunk"]["block_0"]["mlp"]["up"]["lora_a"],
    )
    assert not np.any(b)
    assert (a.shape, b.shape) == ((16, 4), (4, 24))
    assert 0.15 < float(jnp.abs(a).max()) <= 0.25  # 1/sqrt(16)
    assert not np.array_equal(a, trained["trunk"]["block_1"]["mlp"]["up"]["lora_a"])


def test_the_gradient_is_that_of_the_merged_kernels(parts):
    """dL/dA = s·dL/dW·Bᵀ, dL/dB = s·Aᵀ·dL/dW."""
    base, _, trained = parts
    loss = lambda p: jnp.square(apply(LanguageModel(LLAMA), p, TOKENS, ONES)[0]).mean()  # noqa: E731
    grads = jax.jit(jax.grad(lambda t: loss(combine(base, t))))(trained)
    merged = jax.jit(jax.grad(loss))(merge_adapters(combine(base, trained)))
    assert jax.tree.structure(grads) == jax.tree.structure(trained)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads))
    for where in (("block_0", "attention", "value"), ("block_1", "mlp", "gate")):
        layer, grad, d_kernel = trained["trunk"], grads["trunk"], merged["trunk"]
        for name in where:
            layer, grad, d_kernel = layer[name], grad[name], d_kernel[name]
        np.testing.assert_allclose(
            grad["lora_a"], 2.0 * d_kernel["kernel"] @ layer["lora_b"].T, atol=1e-5
        )
        np.testing.assert_allclose(
            grad["lora_b"], 2.0 * layer["lora_a"].T @ d_kernel["kernel"], atol=1e-5
        )


def test_partition_undoes_combine_and_a_head_is_trained():
    params = init_params(ScalarModel(LLAMA), jax.random.key(0))
    base, trained = init_adapters(params, LORA, jax.random.key(1))
    assert (set(base), set(trained)) == ({"trunk"}, {"trunk", "head"})
    assert jax.tree.structure(partition(combine(base, trained))) == jax.tree.structure(
        (base, trained)
    )
    rebuilt = add_scales({"trunk": params["trunk"]}, trained, 2.0)
    assert jax.tree.structure(rebuilt) == jax.tree.structure(base)
    assert describe_adapters(combine(rebuilt, trained)) == LORA


def test_rank_zero_trains_everything_and_merges_what_was_adapted(params, parts):
    off = LoraConfig(0, 16.0, MODULES)
    nothing, everything = init_adapters(params, off, jax.random.key(1))
    assert nothing == {}
    assert all(
        a is b for a, b in zip(jax.tree.leaves(everything), jax.tree.leaves(params), strict=True)
    )
    assert combine(nothing, everything) == params
    merged = init_adapters(combine(parts[0], parts[2]), off, jax.random.key(1))[1]
    assert jax.tree.structure(merged) == jax.tree.structure(params)


def test_adapters_of_a_parent_are_trained_further_or_refused(parts):
    base, _, trained = parts
    restarted = init_adapters(combine(base, trained), LORA, jax.random.key(9))
    assert all(
        a is b
        for a, b in zip(jax.tree.leaves(restarted), jax.tree.leaves((base, trained)), strict=True)
    )
    thirds = LoraConfig(3, 16.0, ("query", "up"))  # a scale that float32 rounds
    assert init_adapters(
        combine(*init_adapters(merge_adapters(combine(base, trained)), thirds, jax.random.key(2))),
        thirds,
        jax.random.key(3),
    )
    with pytest.raises(
        ValueError, match=r"rank 2, alpha 8, .* parent's adapters have rank 4, alpha 8, "
    ):
        init_adapters(combine(base, trained), LoraConfig(2, 8.0, MODULES), jax.random.key(1))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ((-1, 1.0, ()), "lora.rank = -1"),
        ((4, 0.0, ("query",)), "lora.alpha = 0.0"),
        ((4, 1.0, ()), "lora.modules"),
        ((4, 1.0, ("query", "query")), "each once"),
        ((4, 1.0, ("q_proj",)), "expected some of query, key"),
    ],
)
def test_impossible_configs(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        LoraConfig(*values)


def test_a_module_that_the_model_lacks():
    params = init_params(LanguageModel(SHAPES["gpt"]), jax.random.key(0))
    with pytest.raises(ValueError, match="the model has no gate; it has query"):
        init_adapters(params, LoraConfig(2, 2.0, ("query", "gate")), jax.random.key(1))


# --- PEFT's files -------------------------------------------------------------------------------


def test_peft_files_hold_the_public_names_and_survive_the_round_trip(parts, tmp_path):
    trained = parts[2]
    save_peft(tmp_path, trained, LORA, LLAMA, base_name="some/base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    up = tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
    assert up.shape == (4, 16)  # PEFT's A is (rank, in)
    assert np.array_equal(up, trained["trunk"]["block_1"]["mlp"]["up"]["lora_a"].T)
    assert tensors["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"].shape == (8, 4)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {
        name: described[name]
        for name in ("peft_type", "r", "lora_alpha", "base_model_name_or_path")
    } == {"peft_type": "LORA", "r": 4, "lora_alpha": 8.0, "base_model_name_or_path": "some/base"}
    assert described["target_modules"] == [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    loaded, config = load_peft(tmp_path, LLAMA)
    assert config == LORA
    assert jax.tree.structure(loaded) == jax.tree.structure(trained)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(trained), strict=True)
    )


def test_a_peft_folder_is_a_parent(parts, tmp_path):
    """The base that it names, loaded from where that is, and its adapters are the adapted model."""
    base, _, trained = parts
    plain = merge_adapters(combine(base, jax.tree.map(jnp.zeros_like, trained)))
    assert not is_peft(tmp_path)
    save_peft(tmp_path, trained, LORA, LLAMA, base_name="some/base")
    assert is_peft(tmp_path)
    assert read_base_name(tmp_path) == "some/base"
    loaded, lora = load_peft(tmp_path, LLAMA)
    params = combine(add_scales(plain, loaded, lora.scale), loaded)
    assert lora == LORA
    assert jax.tree.structure(params) == jax.tree.structure(combine(base, trained))
    logits = logits_of(LLAMA)
    assert np.array_equal(logits(params), logits(combine(base, trained)))
    frozen, restarted = init_adapters(params, LORA, jax.random.key(2))
    assert frozen["trunk"]["embedding"] is plain["trunk"]["embedding"]
    assert jax.tree.structure(restarted) == jax.tree.structure(trained)


def test_a_peft_folder_that_is_not_whole_is_refused(parts, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: not found"):
        read_base_name(tmp_path)
    save_peft(tmp_path, parts[2], LORA, LLAMA, base_name="")
    with pytest.raises(ValueError, match=r"base_model_name_or_path = '': expected the folder or"):
        read_base_name(tmp_path)
    description = json.loads((tmp_path / "adapter_config.json").read_text())
    del description["r"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=r"adapter_config\.json: r = None, expected a number"):
        load_peft(tmp_path, LLAMA)
    save_peft(tmp_path, parts[2], LORA, LLAMA, base_name="x")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged or cut short"):
        load_peft(tmp_path, LLAMA)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors: not found"):
        load_peft(tmp_path, LLAMA)


def test_peft_files_that_mean_something_else_are_refused(parts, tmp_path):
    save_peft(tmp_path, parts[2], LORA, LLAMA, base_name="x")
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.k_proj: .* expected .*\(4, 32\)"):
        load_peft(tmp_path, dataclasses.replace(LLAMA, width=32))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**described, "use_rslora": True}))
    with pytest.raises(ValueError, match="use_rslora = True, expected False"):
        load_peft(tmp_path, LLAMA)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**described, "use_rslora": None}))
    missing = {
        name: tensor
        for name, tensor in tensors.items()
        if "layers.1.mlp.up_proj.lora_B" not in name
    }
    save_file(missing, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj"):
        load_peft(tmp_path, LLAMA)
    save_file(
        {**tensors, "base_model.model.lm_head.lora_A.weight": up_like(tensors)},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(ValueError, match=r"tensor base_model\.model\.lm_head\.lora_A\.weight"):
        load_peft(tmp_path, LLAMA)
    with pytest.raises(ValueError, match="no family of transformers computes this model"):
        save_peft(
            tmp_path, parts[2], LORA, dataclasses.replace(LLAMA, parallel_block=True), base_name="x"
        )
    with pytest.raises(ValueError, match="found head beside them"):
        save_peft(tmp_path, {**parts[2], "head": {}}, LORA, LLAMA, base_name="x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("trainable_token_indices", [3]),
        ("target_parameters", ["experts"]),
        ("loftq_config", {"loftq_bits": 4}),
        ("what_is_yet_to_come", 1),
        ("task_type", "SEQ_CLS"),
    ],
)
def test_fields_of_peft_that_change_numbers_are_refused_by_name(parts, tmp_path, field, value):
    save_peft(tmp_path, parts[2], LORA, LLAMA, base_name="x")
    path = tmp_path / "adapter_config.json"
    # What PEFT 0.18 writes of plain LoRA, too.
    unused = {"init_lora_weights": True, "alora_invocation_tokens": None, "use_qalora": False}
    unused |= {"layer_replication": None, "qalora_group_size": 16, "megatron_core": "megatron.core"}
    unused |= {"peft_version": "0.18.0", "loftq_config": {}, "corda_config": None, "revision": None}
    unused |= {"ensure_weight_tying": False, "arrow_config": None, "exclude_modules": None}
    plain = json.loads(path.read_text()) | unused
    path.write_text(json.dumps(plain))
    load_peft(tmp_path, LLAMA)
    path.write_text(json.dumps(plain | {field: value}))
    with pytest.raises(ValueError, match=rf"adapter_config.json: {field} = "):
        load_peft(tmp_path, LLAMA)


def test_adapters_that_are_not_finite_are_refused(parts, tmp_path):
    save_peft(tmp_path, parts[2], LORA, LLAMA, base_name="x")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    up_like(tensors)[0, 0] = np.nan
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.lora_A.weight: NaN or Inf"):
        load_peft(tmp_path, LLAMA)


@pytest.mark.parametrize("name", golden.COMMITTED)
def test_peft_files_of_every_family_add_up_to_the_merged_export(name, tmp_path):
    """The exported base plus s B A, as PEFT computes it, is the exported merged model."""
    shape, params = load_pretrained(golden.FOLDER / name, **LM)
    config = LORA if shape.gated else UNGATED
    base, trained = init_adapters(params, config, jax.random.key(0))
    trained = perturb(trained)
    save_peft(tmp_path / "adapters", trained, config, shape, base_name="x")
    write = {"kind": "language_model", "token_ids": {}, "max_shard_bytes": 10**9}
    save_pretrained(tmp_path / "merged", shape, merge_adapters(combine(base, trained)), **write)
    save_pretrained(tmp_path / "base", shape, params, **write)
    adapters, merged, plain = (
        load_file(next((tmp_path / folder).glob("*.safetensors")))
        for folder in ("adapters", "merged", "base")
    )
    described = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    changed = set()
    for where in {key.split(".lora_")[0] for key in adapters}:
        a, b = (adapters[f"{where}.lora_{letter}.weight"] for letter in "AB")
        (target,) = [
            end for end in described["target_modules"] if where.endswith(f".{end}")
        ]  # as PEFT looks for modules
        rank, alpha = (
            described[f"{word}_pattern"].get(target, described[key])
            for word, key in (("rank", "r"), ("alpha", "lora_alpha"))
        )
        assert len(a) == rank
        delta = alpha / rank * b @ a
        key = f"{where.removeprefix('base_model.model.')}.weight"
        changed.add(key)
        expected = plain[key] + (delta.T if described["fan_in_fan_out"] else delta)
        np.testing.assert_allclose(merged[key], expected, atol=2e-6)
    assert changed == {key for key in plain if not np.array_equal(plain[key], merged[key])}
    loaded, lora = load_peft(tmp_path / "adapters", shape)
    assert (lora, jax.tree.structure(loaded)) == (config, jax.tree.structure(trained))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(trained), strict=True)
    )


def test_one_a_for_query_key_and_value_is_refused(tmp_path):
    shape, params = load_pretrained(golden.FOLDER / "gpt2", **LM)
    config = LoraConfig(4, 8.0, ("query", "key", "value"))
    save_peft(
        tmp_path,
        perturb(init_adapters(params, config, jax.random.key(0))[1]),
        config,
        shape,
        base_name="x",
    )
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(
        {
            key: array + 1 if "0.attn.c_attn.lora_B" in key else array
            for key, array in tensors.items()
        },
        file,
    )
    with pytest.raises(
        ValueError, match=r"h\.0\.attn\.c_attn: lora_B: one A serves several of query, key, value"
    ):
        load_peft(tmp_path, shape)


def up_like(tensors):
    return tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]


# --- checkpoints --------------------------------------------------------------------------------


def save(folder, params, *, kind="language_model", extra=None):
    meta = Meta(
        stage="sft",
        kind=kind,
        num_steps=1,
        model=to_dict(LLAMA),
        tokenizer="t",
        lineage={},
        extra=extra or {},
    )
    return checkpoints.save(folder, 1, params, {"step": 1}, meta, keep=1)


def test_checkpoints_hold_adapters_and_find_their_base(params, parts, tmp_path):
    base, _, trained = parts
    runs = tmp_path / "runs"
    plain = save(runs / "pretrain", params)
    link = describe_link(runs / "sft", runs / "pretrain", plain, LORA)
    sft = save(runs / "sft", trained, extra=link)
    head = {"kernel": jnp.ones((16, 1)), "bias": jnp.zeros(1)}
    further = describe_link(runs / "reward", runs / "sft", sft, LORA)
    assert (
        further["lora"]["fingerprint"] == plain.fingerprint
    )  # adapters on adapters stand on the same base
    save(runs / "reward", {**trained, "head": head}, kind="scalar_model", extra=further)
    shutil.copytree(runs, tmp_path / "moved")
    shutil.rmtree(runs)

    bases = {}
    policy, meta = load_model(tmp_path / "moved" / "sft", bases=bases)
    reward, _ = load_model(tmp_path / "moved" / "reward", bases=bases)
    assert meta.kind == "language_model"
    assert jax.tree.structure(policy) == jax.tree.structure(combine(base, trained))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (policy, combine(base, trained))), strict=True)
    )
    assert set(reward) == {"trunk", "head"}
    assert reward["trunk"]["embedding"] is policy["trunk"]["embedding"]
    policy_layer, reward_layer = (
        tree["trunk"]["block_0"]["mlp"]["up"] for tree in (policy, reward)
    )
    assert policy_layer["kernel"] is reward_layer["kernel"]
    placed = place_frozen(
        (policy, reward), jax.tree.map(lambda _: replicated(make_mesh(2, 1, 1)), (policy, reward))
    )
    assert placed[0]["trunk"]["embedding"] is placed[1]["trunk"]["embedding"]

    shutil.rmtree(tmp_path / "moved" / "pretrain")
    with pytest.raises(FileNotFoundError, match="pretrain"):
        load_model(tmp_path / "moved" / "sft", bases={})
    save(tmp_path / "moved" / "pretrain", jax.tree.map(lambda x: x + 1, params))
    with pytest.raises(
        ValueError, match=f"{plain.fingerprint}.*which now holds .* restore that base"
    ):
        load_model(tmp_path / "moved" / "sft", bases={})
