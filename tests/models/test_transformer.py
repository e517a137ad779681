"""Check the trunk against a NumPy transformer, and identities of causality, masks and caches."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rlhf_jax.models import (
    LanguageModel,
    TransformerConfig,
    apply,
    cast_for_compute,
    from_dict,
    gpt,
    grow_cache,
    init_cache,
    init_params,
    llama,
    num_params,
    palm,
    to_dict,
)
from rlhf_jax.models.config import flops_per_token
from rlhf_jax.models.linear import linear

V, T = 11, 9
COMMON = {
    "dropout_rate": 0.0,
    "compute_dtype": "float32",
    "param_dtype": "float32",
    "remat": "none",
}
TINY = {
    "vocab_size": V,
    "context_length": 16,
    "width": 16,
    "num_layers": 2,
    "num_heads": 4,
    **COMMON,
}
FAMILIES = {
    "gpt": gpt(**TINY),
    "palm": palm(**TINY, head_width=6),
    "llama": llama(**TINY, num_kv_heads=2, ffw_width=20, rope_base=100.0),
}
# What none of the three has: GeGLU, scaled embeddings and biases at once (Gemma with biases).
OTHER = dataclasses.replace(
    FAMILIES["llama"],
    activation="geglu",
    scale_embeddings=True,
    use_bias=True,
    qkv_bias=True,
    tie_embeddings=True,
)
# Gemma's windows, caps and norms, and more at once than any family has.
FAMILIES["gemma"] = dataclasses.replace(
    FAMILIES["llama"],
    windows=(3, 0),
    rope_base_local=10.0,
    rope_scaling=(2.0,),
    rope_fraction=0.5,
    norm="rmsnorm_plus_one",
    qkv_bias=True,
    qk_norm=True,
    query_scale=0.3,
    attention_softcap=2.0,
    post_norms=True,
    logit_softcap=5.0,
)
families = pytest.mark.parametrize("family", FAMILIES)


@functools.cache
def random_params(config: TransformerConfig):
    """Draw parameters large enough for attention and positions to matter: N(0.3, 0.3²)."""
    shapes = jax.eval_shape(lambda: init_params(LanguageModel(config), jax.random.key(0)))
    leaves, treedef = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(
        treedef, [jnp.asarray(rng.normal(0.3, 0.3, x.shape), x.dtype) for x in leaves]
    )


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens_BT, segments_BT):
    return apply(LanguageModel(config), params, tokens_BT, segments_BT)[0]


def forward(config, params, tokens_BT, segments_BT):
    """Logits, compiled once per config: all rows are padded to the same shape."""
    rows, columns = tokens_BT.shape
    padding = ((0, 4 - rows), (0, T - columns))
    logits = _forward(config, params, np.pad(tokens_BT, padding), np.pad(segments_BT, padding))
    return np.asarray(logits)[:rows, :columns]


def tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


# Configuration.


@pytest.mark.parametrize("config", [*FAMILIES.values(), OTHER], ids=[*FAMILIES, "other"])
def test_num_params_counts_the_real_tree(config):
    tree = jax.eval_shape(lambda: init_params(LanguageModel(config), jax.random.key(0)))
    assert num_params(config) == sum(x.size for x in jax.tree.leaves(tree))


def test_num_params_of_published_models():
    sizes = {
        "vocab_size": 50257,
        "context_length": 1024,
        "width": 768,
        "num_layers": 12,
        "num_heads": 12,
    }
    assert num_params(gpt(**sizes, **COMMON)) == 124_439_808
    sizes = {
        "vocab_size": 32000,
        "context_length": 2048,
        "width": 4096,
        "num_layers": 32,
        "num_heads": 32,
    }
    seven = llama(**sizes, num_kv_heads=32, ffw_width=11008, rope_base=1e4, **COMMON)
    assert num_params(seven) == 6_738_415_616


def test_palm_8b_has_8_63_billion_parameters():
    sizes = {
        "vocab_size": 256_000,
        "context_length": 2048,
        "width": 4096,
        "num_layers": 32,
        "num_heads": 16,
    }
    config = palm(**sizes, head_width=256, **COMMON)
    kernels = 32 * (2 * 4096 * 4096 + 2 * 4096 * 256 + 12 * 4096**2)
    assert num_params(config) == kernels + 256_000 * 4096 + 33 * 4096
    assert round(num_params(config) / 1e9, 2) == 8.63
    shallow = dataclasses.replace(config, num_layers=2)  # the real tree, at full width
    tree = jax.eval_shape(lambda: init_params(LanguageModel(shallow), jax.random.key(0)))
    assert num_params(shallow) == sum(x.size for x in jax.tree.leaves(tree))


def test_flops_per_token_by_hand():
    # One block of gpt, D = 16: attention 4·16·16, feed-forward 2·16·64; head 11·16; attention over
    # 16 tokens.
    weights = 2 * (4 * 256 + 2 * 1024) + 176
    assert flops_per_token(FAMILIES["gpt"]) == 6 * weights + 12 * 2 * 16 * 16
    near = dataclasses.replace(
        FAMILIES["gpt"], windows=(4, 0)
    )  # one of the two layers sees 4 tokens
    assert flops_per_token(near) == 6 * weights + 12 * 16 * (4 + 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_kv_heads": 3}, "num_heads = 4 .*num_kv_heads = 3"),
        ({"width": 0}, "model.width = 0"),
        ({"num_layers": 2.0}, "model.num_layers = 2.0"),
        ({"activation": "relu"}, "model.activation = 'relu'.*swiglu"),
        ({"positions": "rope", "head_width": 5}, "head_width = 5.*even"),
        ({"dropout_rate": 1.0}, "dropout_rate = 1.0"),
        ({"norm_eps": 0.0}, "norm_eps = 0.0"),
        ({"remat": "all"}, "model.remat"),
        ({"positions": "rope", "rope_fraction": 0.25}, "rope_fraction = 0.25.*even"),
        ({"rope_scaling": (2.0, 1.0)}, r"rope_scaling = \(2.0, 1.0\)"),
        ({"windows": (4, -1)}, r"windows = \(4, -1\)"),
        ({"attention_softcap": -1.0}, "attention_softcap = -1.0"),
        ({"shared_norm": True}, "shared_norm = True.*parallel"),
    ],
)
def test_impossible_configs_name_the_field(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(FAMILIES["gpt"], **change)


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match=r"width = 16 .*num_heads = 3"):
        gpt(**{**TINY, "num_heads": 3})


def test_dict_round_trip_is_strict():
    values = to_dict(FAMILIES["palm"])
    assert from_dict(values) == FAMILIES["palm"]
    assert from_dict(json.loads(json.dumps(to_dict(FAMILIES["gemma"])))) == FAMILIES["gemma"]
    with pytest.raises(ValueError, match=r"missing fields \[\], unknown fields \['depth'\]"):
        from_dict({**values, "depth": 2})
    values["widht"] = values.pop("width")
    with pytest.raises(ValueError, match=r"missing fields \['width'\], unknown fields \['widht'\]"):
        from_dict(values)


# The function itself.


def oracle(c: TransformerConfig, params, tokens_T):
    """Return the logits of one row in plain NumPy: float64, loops over heads and positions."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["trunk"]
    length = len(tokens_T)

    def norm(x, q):
        if c.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = (
            x
            / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
            * (q["scale"] + (c.norm == "rmsnorm_plus_one"))
        )
        return x + q["bias"] if "bias" in q else x

    def dense(x, q):
        return x @ q["kernel"] + q.get("bias", 0.0)

    def cap(x, limit):
        return limit * np.tanh(x / limit) if limit else x

    def turn(x, position, window):
        half, local = c.rotary_width // 2, window and c.rope_base_local
        scale = c.rope_scaling[0] if c.rope_scaling and not local else 1.0
        angle = position / scale * (local or c.rope_base) ** (-np.arange(half) / half)
        z = (x[:half] + 1j * x[half : 2 * half]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag, x[2 * half :]])

    def attend(x, q, window):
        def heads(y):
            return y.reshape(length, -1, c.head_width)

        query, key, value = (heads(dense(x, q[name])) for name in ("query", "key", "value"))
        if c.qk_norm:
            query, key = norm(query, q["query_norm"]), norm(key, q["key_norm"])
        if c.positions == "rope":
            query = np.array([[turn(v, t, window) for v in row] for t, row in enumerate(query)])
            key = np.array([[turn(v, t, window) for v in row] for t, row in enumerate(key)])
        out = np.zeros_like(query)
        for h in range(c.num_heads):
            g = h // (c.num_heads // c.num_kv_heads)
            for t in range(length):
                seen = slice(max(0, t + 1 - window) if window else 0, t + 1)
                score = key[seen, g] @ query[t, h] * (c.query_scale or 1 / np.sqrt(c.head_width))
                weight = np.exp(cap(score, c.attention_softcap))
                out[t, h] = weight / weight.sum() @ value[seen, g]
        return dense(out.reshape(length, -1), q["out"])

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def feed(x, q):
        up = dense(x, q["up"])
        if c.activation == "gelu_tanh":
            return dense(gelu(up), q["down"])
        gate = dense(x, q["gate"])
        return dense(
            up * (gelu(gate) if c.activation == "geglu" else gate / (1 + np.exp(-gate))), q["down"]
        )

    x = p["embedding"][tokens_T] * (np.sqrt(c.width) if c.scale_embeddings else 1.0)
    if c.positions == "learned":
        x = x + p["position_embedding"][:length]
    for i in range(c.num_layers):
        q = p[f"block_{i}"]
        y = norm(x, q["attention_norm"])
        if c.parallel_block:
            x = x + attend(y, q["attention"], c.window(i)) + feed(y, q["mlp"])
        else:
            mixed = attend(y, q["attention"], c.window(i))
            x = x + (norm(mixed, q["attention_post_norm"]) if c.post_norms else mixed)
            fed = feed(norm(x, q["mlp_norm"]), q["mlp"])
            x = x + (norm(fed, q["mlp_post_norm"]) if c.post_norms else fed)
    x = norm(x, p["final_norm"]) * c.logit_scale
    output = (
        p["embedding"].T
        if c.tie_embeddings
        else np.asarray(params["lm_head"]["kernel"], np.float64)
    )
    return cap(x @ output, c.logit_softcap)


@pytest.mark.parametrize("config", [*FAMILIES.values(), OTHER], ids=[*FAMILIES, "other"])
def test_forward_equals_the_numpy_oracle(config):
    params, tokens_BT = random_params(config), tokens((2, T))
    logits_BTV = forward(config, params, tokens_BT, np.ones((2, T), np.int32))
    expected = np.stack([oracle(config, params, row) for row in tokens_BT])
    assert logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BTV, expected, rtol=1e-4, atol=1e-4)


def test_exact_gelu_differs_from_the_tanh_form():
    exact = dataclasses.replace(FAMILIES["gpt"], activation="gelu")
    params, row, ones = random_params(exact), tokens((1, T)), np.ones((1, T), np.int32)
    gap = np.abs(
        forward(exact, params, row, ones) - forward(FAMILIES["gpt"], params, row, ones)
    ).max()
    assert 1e-6 < gap < 0.1


@families
def test_padding_anywhere_changes_nothing(family):
    config = FAMILIES[family]
    params, real = random_params(config), tokens(6, seed=3)
    layouts = {
        "left": [0, 0, 0, 1, 1, 1, 1, 1, 1],
        "right": [1, 1, 1, 1, 1, 1, 0, 0, 0],
        "gaps": [1, 0, 1, 1, 0, 1, 1, 0, 1],
        "random": np.random.default_rng(1).permutation([0] * 3 + [1] * 6),
    }
    segments_BT = np.array(list(layouts.values()), np.int32)
    tokens_BT = tokens(segments_BT.shape, seed=4)  # padding holds arbitrary tokens
    tokens_BT[segments_BT > 0] = np.tile(real, len(layouts))
    logits = np.asarray(forward(config, params, tokens_BT, segments_BT))
    alone = np.asarray(forward(config, params, real[None], np.ones((1, 6), np.int32)))[0]
    assert np.isfinite(logits).all()
    for row, segments in zip(logits, segments_BT, strict=True):
        np.testing.assert_allclose(row[segments > 0], alone, atol=1e-5)


@families
def test_packed_segments_equal_separate_rows(family):
    config = FAMILIES[family]
    params, row = random_params(config), tokens((1, T), seed=5)
    packed = np.asarray(
        forward(config, params, row, np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32))
    )[0]
    first = forward(config, params, row, np.array([[1, 1, 1, 1, 0, 0, 0, 0, 0]], np.int32))[0]
    second = forward(
        config, params, np.roll(row, -4, 1), np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0]], np.int32)
    )[0]
    np.testing.assert_allclose(packed[:4], first[:4], atol=1e-5)
    np.testing.assert_allclose(packed[4:7], second[:3], atol=1e-5)


@families
def test_gradients_flow_to_the_past_only(family):
    """With token t at position t, row j of d hidden[t] / d embedding is zero iff j > t."""
    config = FAMILIES[family]
    params = random_params(config)
    row, direction_D = (
        np.arange(T, dtype=np.int32)[None],
        jnp.asarray(np.random.default_rng(0).normal(size=16)),
    )

    def projected_T(embedding):
        trunk = {**params["trunk"], "embedding": embedding}
        args = ({**params, "trunk": trunk}, row, np.ones((1, T), np.int32))
        return apply(LanguageModel(config), *args, method="hidden")[0][0] @ direction_D

    jacobian_TVD = jax.jit(jax.jacrev(projected_T))(params["trunk"]["embedding"])
    reached = np.asarray(jnp.abs(jacobian_TVD).max(-1))[:, :T] > 0
    np.testing.assert_array_equal(reached, np.tril(np.ones((T, T), bool)))


@families
def test_cached_decoding_equals_the_full_forward(family):
    """Prefill of left-padded prompts, a grown and repeated cache, then single tokens."""
    config = FAMILIES[family]
    model, params, prompt, total = LanguageModel(config), random_params(config), 5, T
    segments_BT = np.ones((2, total), np.int32)
    segments_BT[0, :3] = 0
    tokens_BT = tokens((2, total), seed=6)
    expected = np.repeat(np.asarray(forward(config, params, tokens_BT, segments_BT)), 2, axis=0)

    @jax.jit
    def prefill(tokens_BP, segments_BP):
        logits, cache = apply(
            model, params, tokens_BP, segments_BP, cache=init_cache(config, 2, prompt)
        )
        return logits, grow_cache(cache, extra=total - prompt, repeats=2)

    @jax.jit
    def decode(cache, tokens_B1, segments_B1):
        return apply(model, params, tokens_B1, segments_B1, cache=cache)

    logits, cache = prefill(tokens_BT[:, :prompt], segments_BT[:, :prompt])
    np.testing.assert_allclose(logits[0, 3:], expected[0, 3:prompt], atol=1e-5)
    np.testing.assert_allclose(logits[1], expected[2, :prompt], atol=1e-5)
    assert cache.keys[0].shape == (4, config.num_kv_heads, total, config.head_width)
    tokens_BT, segments_BT = np.repeat(tokens_BT, 2, 0), np.repeat(segments_BT, 2, 0)
    for t in range(prompt, total):
        assert int(cache.length) == t
        logits, cache = decode(cache, tokens_BT[:, t : t + 1], segments_BT[:, t : t + 1])
        np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=1e-5)
    np.testing.assert_array_equal(cache.segments_BS, segments_BT)


def test_learned_positions_refuse_rows_beyond_the_context():
    config = FAMILIES["gpt"]
    model, params = LanguageModel(config), random_params(config)
    row = np.ones((1, 17), np.int32)
    with pytest.raises(ValueError, match=r"rows of 17 tokens.*context_length = 16"):
        apply(model, params, row, row)
    with pytest.raises(ValueError, match=r"rows of 20 tokens.*context_length = 16"):
        apply(model, params, row[:, :1], row[:, :1], cache=init_cache(config, 1, 20))


# Training.


def test_linear_has_the_gradient_of_a_plain_product():
    rng = np.random.default_rng(0)
    x, kernel, weight = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 3, 4), (4, 5), (2, 3, 5))
    )
    ours = jax.grad(lambda x, k: (linear(x, k, "float32") * weight).sum(), (0, 1))(x, kernel)
    plain = jax.grad(lambda x, k: (jnp.einsum("btd,df->btf", x, k) * weight).sum(), (0, 1))(
        x, kernel
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), ours, plain)


@functools.partial(jax.jit, static_argnums=0)
def gradient(config, params, tokens_BT, segments_BT, key):
    def loss(params):
        hidden, _ = apply(
            LanguageModel(config), params, tokens_BT, segments_BT, method="hidden", dropout_key=key
        )
        return jnp.square(hidden).sum() + hidden[:, -1].sum()

    return jax.value_and_grad(loss)(params)


def test_remat_changes_nothing_with_dropout_on():
    config = dataclasses.replace(FAMILIES["palm"], dropout_rate=0.3, num_layers=1)
    rows, segments = (
        tokens((2, T)),
        np.array([[1] * T, [0] * T], np.int32),
    )  # one row is padding only
    args = (random_params(config), rows, segments, jax.random.key(0))
    plain = gradient(config, *args)
    blocks = dataclasses.replace(config, remat="block")
    remat = gradient(blocks, *args)
    assert "remat" in str(gradient.trace(blocks, *args).jaxpr)
    assert "remat" not in str(gradient.trace(config, *args).jaxpr)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, remat)


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_scanned_layers_have_the_same_parameters_logits_and_gradients(remat):
    config = dataclasses.replace(FAMILIES["llama"], num_layers=3)
    deep = dataclasses.replace(config, scan_layers=True, remat=remat)
    key, rows = jax.random.key(0), tokens((2, T))
    params, scanned = (init_params(LanguageModel(c), key) for c in (config, deep))
    jax.tree.map(
        np.testing.assert_array_equal, params, scanned
    )  # so checkpoints are the same bytes
    ones = np.ones_like(rows)
    assert "scan" in str(gradient.trace(deep, params, rows, ones, None).jaxpr)
    np.testing.assert_allclose(
        forward(deep, params, rows, ones), forward(config, params, rows, ones), atol=1e-6
    )
    plain, looped = (gradient(c, params, rows, ones, None)[1] for c in (config, deep))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, looped)


def test_what_is_computed_again_is_not_kept():
    """The backward pass keeps no attention weights with "dots", and nearly nothing with "block"."""
    kept = {}
    for remat in ("none", "dots", "block"):
        config = dataclasses.replace(FAMILIES["llama"], num_layers=2, remat=remat)
        params, rows = init_params(LanguageModel(config), jax.random.key(0)), tokens((2, T))

        def logits(params, config=config, rows=rows):
            return apply(LanguageModel(config), params, rows, np.ones_like(rows))[0]

        kept[remat] = sum(
            leaf.size
            for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(logits, p)[1], params))
        )
    assert kept["block"] < kept["dots"] < kept["none"]


def test_layers_that_differ_cannot_be_scanned():
    with pytest.raises(ValueError, match=r"model\.scan_layers with model\.windows = \(4, 0\)"):
        dataclasses.replace(FAMILIES["llama"], windows=(4, 0), scan_layers=True)


def test_dropout_needs_a_key_and_follows_it():
    config = dataclasses.replace(FAMILIES["palm"], dropout_rate=0.3)
    model, params, rows = LanguageModel(config), random_params(config), tokens((2, T))
    ones = np.ones_like(rows)

    @jax.jit
    def run(key):
        return apply(model, params, rows, ones, dropout_key=key)[0]

    off = forward(FAMILIES["palm"], params, rows, ones)
    np.testing.assert_array_equal(forward(config, params, rows, ones), off)
    assert np.abs(run(jax.random.key(1)) - run(jax.random.key(2))).max() > 0.01
    np.testing.assert_array_equal(run(jax.random.key(1)), run(jax.random.key(1)))


def test_bfloat16_compute_stays_close_and_casting_once_is_exact():
    config = FAMILIES["llama"]
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    params, rows = init_params(LanguageModel(config), jax.random.key(0)), tokens((2, T))
    ones = np.ones_like(rows)
    full, rounded = forward(config, params, rows, ones), forward(half, params, rows, ones)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(full - rounded).max() < 0.02 * np.abs(full).max()
    cast = cast_for_compute(params, half)
    assert cast["trunk"]["embedding"].dtype == jnp.bfloat16
    assert cast["trunk"]["final_norm"]["scale"].dtype == jnp.float32
    np.testing.assert_array_equal(forward(half, cast, rows, ones), rounded)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_compute_has_the_gradient_of_float32_but_for_rounding(tied):
    config = dataclasses.replace(FAMILIES["llama"], tie_embeddings=tied)
    params, rows = random_params(config), tokens((2, T))

    def gradient_of_logits(dtype):
        model = LanguageModel(dataclasses.replace(config, compute_dtype=dtype))
        return jax.jit(
            jax.grad(lambda p: jnp.sin(apply(model, p, rows, np.ones_like(rows))[0]).sum())
        )(params)

    full, rounded = (
        ravel_pytree(gradient_of_logits(dtype))[0] for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.linalg.norm(full - rounded) < 0.02 * np.linalg.norm(full)


def test_bfloat16_parameters_keep_their_dtype_in_the_gradient():
    config = dataclasses.replace(FAMILIES["gpt"], param_dtype="bfloat16", compute_dtype="bfloat16")
    params, rows = random_params(config), tokens((2, T))
    loss, grads = gradient(config, params, rows, np.ones_like(rows), None)
    assert loss.dtype == jnp.float32
    assert {str(x.dtype) for x in jax.tree.leaves((params, grads))} == {"bfloat16"}


def test_initial_scales():
    sizes = {**TINY, "vocab_size": 300, "width": 64, "num_layers": 2}
    trunk = init_params(LanguageModel(gpt(**sizes)), jax.random.key(0))["trunk"]
    block = trunk["block_1"]
    assert np.std(trunk["embedding"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["attention"]["query"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(block["mlp"]["down"]["kernel"]) == pytest.approx(0.01, rel=0.05)  # 0.02 / √(2·2)
    assert np.std(block["attention"]["out"]["kernel"]) == pytest.approx(0.01, rel=0.05)
    assert not block["mlp"]["up"]["bias"].any()
    sizes["num_layers"] = 1
    trunk = init_params(LanguageModel(palm(**sizes, head_width=16)), jax.random.key(1))["trunk"]
    block = trunk["block_0"]
    assert np.std(trunk["embedding"]) == pytest.approx(1.0, rel=0.05)
    assert np.std(block["mlp"]["gate"]["kernel"]) == pytest.approx(64**-0.5, rel=0.05)
    assert np.std(block["mlp"]["down"]["kernel"]) == pytest.approx(256**-0.5, rel=0.05)
    assert "bias" not in block["attention_norm"]
