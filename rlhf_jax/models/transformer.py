"""One decoder-only transformer that is GPT, PaLM, LLaMA, Qwen, Gemma or GPT-NeoX by configuration, with an explicit cache.

    x = embed(tokens) [+ position embedding]
    for every block:  x += Attn(Norm(x));  x += MLP(Norm(x))      (PaLM: both from one Norm, added at once;
    return Norm(x)                                                 GPT-NeoX: from two; Gemma: x += Norm(Attn(Norm(x))))

A query sees a key iff the key is not later, within the layer's window, has the same segment id, and that id
is positive. Segment 0 is padding, so left padding, right padding, gaps and packed documents are all the same
thing, and nothing is ever read from token values. Layers are a Python loop, or without a cache a scan where
the config says so: compiled once, but scanning copies the parameters, and would copy the cache at every step.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.maths import masking
from rlhf_jax.models.attention import put
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layers import (
    Attention,
    Context,
    FeedForward,
    Norm,
    linear,
    rope_angles,
    rope_rates,
)
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain


class Cache(NamedTuple):
    """Keys and values of the tokens read so far; `segments_BS` says whose they are, 0 in an empty slot."""

    keys: tuple[jax.Array, ...]  # per layer, float32, (B, G, S, K)
    values: tuple[jax.Array, ...]
    segments_BS: jax.Array
    length: jax.Array  # int32: slots filled, a scalar for all rows or (B,)


def init_cache(config: TransformerConfig, batch: int, size: int) -> Cache:
    """An empty cache of `size` slots for `batch` rows."""
    shape = (batch, config.num_kv_heads, size, config.head_width)

    def empty() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, jnp.float32) for _ in range(config.num_layers))

    return Cache(empty(), empty(), jnp.zeros((batch, size), jnp.int32), jnp.zeros((), jnp.int32))


def grow_cache(cache: Cache, *, extra: int, repeats: int) -> Cache:
    """Append `extra` empty slots and repeat rows: row b becomes rows b·repeats … (b + 1)·repeats - 1."""

    def grow(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0)))
        return x if repeats == 1 else jnp.repeat(x, repeats, axis=0)

    segments_BS = jnp.pad(cache.segments_BS, ((0, 0), (0, extra)))
    return Cache(
        keys=tuple(grow(x) for x in cache.keys),
        values=tuple(grow(x) for x in cache.values),
        segments_BS=segments_BS if repeats == 1 else jnp.repeat(segments_BS, repeats, axis=0),
        length=cache.length,
    )


class Block(nn.Module):
    """One layer: attention and feed-forward, one after the other or side by side (PaLM, GPT-NeoX)."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        context: Context,
        cache: tuple[jax.Array, jax.Array] | None,
        deterministic: bool,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        c = self.config

        def drop(x: jax.Array) -> jax.Array:
            return nn.Dropout(c.dropout_rate)(x, deterministic=deterministic)

        attention, feed_forward = Attention(c, name="attention"), FeedForward(c, name="mlp")
        normed_BTD = Norm(c, name="attention_norm")(x_BTD)
        mixed_BTD, filled = attention(normed_BTD, context, cache)
        if c.parallel_block:
            if not c.shared_norm:
                normed_BTD = Norm(c, name="mlp_norm")(x_BTD)
            return x_BTD + drop(mixed_BTD + feed_forward(normed_BTD)), filled
        if c.post_norms:
            mixed_BTD = Norm(c, name="attention_post_norm")(mixed_BTD)
        x_BTD = x_BTD + drop(mixed_BTD)
        fed_BTD = feed_forward(Norm(c, name="mlp_norm")(x_BTD))
        if c.post_norms:
            fed_BTD = Norm(c, name="mlp_post_norm")(fed_BTD)
        return x_BTD + drop(fed_BTD), filled


def _block(remat: str) -> Any:
    """The class of a block, with what its backward pass computes again."""
    if remat == "none":
        return Block
    policy = jax.checkpoint_policies.save_only_these_names("linear") if remat == "dots" else None
    return nn.remat(Block, static_argnums=(4,), policy=policy)


class Transformer(nn.Module):
    """The trunk: token ids and segment ids in, normalised hidden states out.

    Dropout acts on embeddings and on what blocks add, when `deterministic` is false. Raises ValueError while
    tracing if positions are learned and the row, cache included, is longer than the context.
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.param_dtype)
        init = nn.initializers.normal(c.embedding_std)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.width), dtype)
        if c.positions == "learned":
            shape = (c.context_length, c.width)
            small = nn.initializers.normal(0.02)
            self.position_embedding = self.param("position_embedding", small, shape, dtype)
        self.block = [_block(c.remat)(c) for _ in range(c.num_layers)]
        self.final_norm = Norm(c)
        self.dropout = nn.Dropout(c.dropout_rate)

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array,
        *,
        cache: Cache | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, Cache | None]:
        positions_BT = _positions(segments_BT, cache)
        x_BTD = self.dropout(
            self._embed(tokens_BT, positions_BT, cache), deterministic=deterministic
        )
        contexts, segments_BS = self._contexts(segments_BT, positions_BT, cache)
        if self.config.scan_layers and cache is None and not self.is_initializing():
            return self.final_norm(
                self._scan(x_BTD, contexts[self.config.window(0)], deterministic)
            ), None
        filled = []
        for i, block in enumerate(self.block):
            layer_cache = None if cache is None else (cache.keys[i], cache.values[i])
            x_BTD = constrain(x_BTD, BATCH, WHOLE, WHOLE)
            x_BTD, kv = block(x_BTD, contexts[self.config.window(i)], layer_cache, deterministic)
            filled.append(kv)
        x_BTD = self.final_norm(constrain(x_BTD, BATCH, WHOLE, WHOLE))
        if cache is None:
            return x_BTD, None
        keys, values = tuple(k for k, _ in filled), tuple(v for _, v in filled)
        return x_BTD, Cache(keys, values, segments_BS, cache.length + tokens_BT.shape[1])

    def _scan(self, x_BTD: jax.Array, context: Context, deterministic: bool) -> jax.Array:
        """All blocks as one loop: their parameters, which lie apart in the tree, are stacked for this call."""
        c = self.config
        layers = [self.variables["params"][f"block_{i}"] for i in range(c.num_layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        keys = None if deterministic else jax.random.split(self.make_rng("dropout"), c.num_layers)
        block = _block(c.remat)(c, parent=None)

        def body(x_BTD: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, None]:
            params, key = layer
            x_BTD = constrain(x_BTD, BATCH, WHOLE, WHOLE)
            rngs = {} if key is None else {"dropout": key}
            return block.apply({"params": params}, x_BTD, context, None, deterministic, rngs=rngs)[
                0
            ], None

        return jax.lax.scan(body, x_BTD, (stacked, keys))[0]

    def _embed(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache | None
    ) -> jax.Array:
        c = self.config
        # A step gathers its rows of the table like any layer's parameters; a token of a decode gathers its results instead.
        table_VD = (
            self.embedding if tokens_BT.shape[1] == 1 else constrain(self.embedding, TENSOR, WHOLE)
        )
        # Rounded like every other matrix, so that `cast_for_compute` does not change the result.
        x_BTD = table_VD[tokens_BT].astype(c.compute_dtype).astype(jnp.float32)
        if c.scale_embeddings:
            x_BTD = x_BTD * c.width**0.5
        if c.positions == "learned":
            size = tokens_BT.shape[1] if cache is None else cache.segments_BS.shape[1]
            if size > c.context_length:
                raise ValueError(
                    f"rows of {size} tokens do not fit the learned positions, model.context_length = "
                    f"{c.context_length}: shorten prompts or responses, or train with a longer context."
                )
            x_BTD = x_BTD + self.position_embedding[positions_BT].astype(jnp.float32)
        return x_BTD

    def _contexts(
        self, segments_BT: jax.Array, positions_BT: jax.Array, cache: Cache | None
    ) -> tuple[dict[int, Context], jax.Array]:
        """A context for every window that some layer has, and whose tokens the keys are."""
        time = segments_BT.shape[1]
        start = None if cache is None else cache.length
        segments_BS = segments_BT
        if cache is not None:
            segments_BS = put(cache.segments_BS, segments_BT, cache.length, axis=1)
        same_BTS = (segments_BT[:, :, None] == segments_BS[:, None, :]) & (
            segments_BT[:, :, None] > 0
        )
        query_BT = jnp.arange(time)[None, :] + (
            0 if start is None else start.reshape(-1, 1)
        )  # a row for all, or one each
        causal_BTS = jnp.arange(segments_BS.shape[1])[None, None, :] <= query_BT[:, :, None]
        visible_BTS = same_BTS & causal_BTS
        contexts = {}
        for window in {self.config.window(i) for i in range(self.config.num_layers)}:
            near_BTS = visible_BTS
            if window:  # counted in tokens of the segment, so that padding moves nothing
                distance_BTS = positions_BT[:, :, None] - masking.positions(segments_BS)[:, None, :]
                near_BTS = visible_BTS & (distance_BTS < window)
            angles, segments = (
                self._angles(positions_BT, local=window > 0),
                None if window else segments_BT,
            )
            contexts[window] = Context(near_BTS, *angles, start, segments)
        return contexts, segments_BS

    def _angles(
        self, positions_BT: jax.Array, *, local: bool
    ) -> tuple[jax.Array | None, jax.Array | None]:
        if self.config.positions != "rope":
            return None, None
        return rope_angles(positions_BT, rope_rates(self.config, local=local))

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Logits of the tied output projection, before the soft cap."""
        # In float32 the other product has another last bit in the forward pass of a gradient than without one (XLA for CPU).
        if self.config.compute_dtype == "float32":
            return linear(hidden, self.embedding.T, "float32")
        return linear(hidden, self.embedding, self.config.compute_dtype, True)


def _positions(segments_BT: jax.Array, cache: Cache | None) -> jax.Array:
    """Positions within each segment, continued from the cached tokens of the same segment."""
    positions_BT = masking.positions(segments_BT)
    if cache is None:
        return positions_BT
    same_BTS = segments_BT[:, :, None] == cache.segments_BS[:, None, :]
    return jnp.where(segments_BT > 0, positions_BT + same_BTS.sum(-1, dtype=jnp.int32), 0)
