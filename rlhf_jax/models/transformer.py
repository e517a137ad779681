"""Define one decoder-only transformer that is every supported family by configuration.

    x = embed(tokens) [+ position embedding]
    for every block:  x += Attn(Norm(x));  x += MLP(Norm(x))
    return Norm(x)

PaLM reads both from one Norm and adds them at once; GPT-NeoX does so from two; Gemma adds
Norm(Attn(Norm(x))). The key/value cache is an explicit argument and result.

A query sees a key iff the key is not later, within the layer's window, has the same segment id, and
that id is positive. Segment 0 is padding, so left padding, right padding, gaps and packed documents
are all the same thing, and nothing is ever read from token values. Layers are a Python loop, or
without a cache a scan where the config says so: compiled once, but scanning copies the parameters,
and would copy the cache at every step.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax.maths import masking
from rlhf_jax.models.attention import write_slots
from rlhf_jax.models.config import TransformerConfig
from rlhf_jax.models.layers import (
    Attention,
    Context,
    FeedForward,
    Norm,
    rope_angles,
    rope_length,
    rope_rates,
)
from rlhf_jax.models.layout import BATCH, TENSOR, WHOLE, constrain
from rlhf_jax.models.linear import linear


class Cache(NamedTuple):
    """Hold keys and values of the tokens read so far.

    `segments_BS` says whose they are; it is 0 in an empty slot.
    """

    keys: tuple[jax.Array, ...]  # per layer, float32, (B, G, S, K)
    values: tuple[jax.Array, ...]
    segments_BS: jax.Array
    length: jax.Array  # int32: slots filled, a scalar for all rows or (B,)


def init_cache(config: TransformerConfig, batch: int, size: int) -> Cache:
    """Return an empty cache of `size` slots for `batch` rows."""
    shape = (batch, config.num_kv_heads, size, config.head_width)

    def empty() -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros(shape, jnp.float32) for _ in range(config.num_layers))

    return Cache(
        keys=empty(),
        values=empty(),
        segments_BS=jnp.zeros((batch, size), jnp.int32),
        length=jnp.zeros((), jnp.int32),
    )


def grow_cache(cache: Cache, *, extra: int, repeats: int) -> Cache:
    """Append `extra` empty slots and repeat rows.

    Row b becomes rows b·repeats … (b + 1)·repeats - 1.
    """

    def repeat(x: jax.Array) -> jax.Array:
        return x if repeats == 1 else jnp.repeat(x, repeats, axis=0)

    def grow(x: jax.Array) -> jax.Array:
        return repeat(jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0))))

    return Cache(
        keys=tuple(grow(x) for x in cache.keys),
        values=tuple(grow(x) for x in cache.values),
        segments_BS=repeat(jnp.pad(cache.segments_BS, ((0, 0), (0, extra)))),
        length=cache.length,
    )


class Block(nn.Module):
    """Apply attention and feed-forward, in turn or side by side (PaLM, GPT-NeoX)."""

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

        attention = Attention(c, name="attention")
        feed_forward = FeedForward(c, name="mlp")
        normed_BTD = Norm(c, name="attention_norm")(x_BTD)
        mixed_BTD, keys_values = attention(normed_BTD, context, cache)
        if c.parallel_block:
            if not c.shared_norm:
                normed_BTD = Norm(c, name="mlp_norm")(x_BTD)
            return x_BTD + drop(mixed_BTD + feed_forward(normed_BTD)), keys_values
        if c.post_norms:
            mixed_BTD = Norm(c, name="attention_post_norm")(mixed_BTD)
        x_BTD = x_BTD + drop(mixed_BTD)
        mlp_BTD = feed_forward(Norm(c, name="mlp_norm")(x_BTD))
        if c.post_norms:
            mlp_BTD = Norm(c, name="mlp_post_norm")(mlp_BTD)
        return x_BTD + drop(mlp_BTD), keys_values


def _block_class(remat: str) -> Any:
    """Return the class of a block that recomputes in its backward pass what `remat` says."""
    if remat == "none":
        return Block
    policy = jax.checkpoint_policies.save_only_these_names("linear") if remat == "dots" else None
    return nn.remat(Block, static_argnums=(4,), policy=policy)


class Transformer(nn.Module):
    """Turn token ids and segment ids into normalised hidden states: the trunk of every model.

    Dropout acts on embeddings and on what blocks add, when `deterministic` is false.

    Raises:
        ValueError: while tracing, if positions are learned and the row, cache included, is longer
            than the context.
    """

    config: TransformerConfig

    def setup(self) -> None:
        c = self.config
        dtype = jnp.dtype(c.param_dtype)
        init = nn.initializers.normal(c.embedding_std)
        self.embedding = self.param("embedding", init, (c.vocab_size, c.width), dtype)
        if c.positions == "learned":
            shape = (c.context_length, c.width)
            position_init = nn.initializers.normal(0.02)
            self.position_embedding = self.param("position_embedding", position_init, shape, dtype)
        self.block = [_block_class(c.remat)(c) for _ in range(c.num_layers)]
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
        c = self.config
        positions_BT = _positions(segments_BT, cache)
        x_BTD = self._embed(tokens_BT, positions_BT, cache)
        x_BTD = self.dropout(x_BTD, deterministic=deterministic)
        contexts, segments_BS = self._contexts(segments_BT, positions_BT, cache)
        if c.scan_layers and cache is None and not self.is_initializing():
            x_BTD = self._scan(x_BTD, contexts[c.window(0)], deterministic)
            return self.final_norm(x_BTD), None
        keys_values = []
        for i, block in enumerate(self.block):
            layer_cache = None if cache is None else (cache.keys[i], cache.values[i])
            x_BTD = constrain(x_BTD, BATCH, WHOLE, WHOLE)
            x_BTD, layer = block(x_BTD, contexts[c.window(i)], layer_cache, deterministic)
            keys_values.append(layer)
        x_BTD = self.final_norm(constrain(x_BTD, BATCH, WHOLE, WHOLE))
        if cache is None:
            return x_BTD, None
        return x_BTD, Cache(
            keys=tuple(keys for keys, _ in keys_values),
            values=tuple(values for _, values in keys_values),
            segments_BS=segments_BS,
            length=cache.length + tokens_BT.shape[1],
        )

    def _scan(self, x_BTD: jax.Array, context: Context, deterministic: bool) -> jax.Array:
        """Apply all blocks as one loop.

        Their parameters, which lie apart in the tree, are stacked for this call.
        """
        c = self.config
        layers = [self.variables["params"][f"block_{i}"] for i in range(c.num_layers)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        keys = None if deterministic else jax.random.split(self.make_rng("dropout"), c.num_layers)
        block = _block_class(c.remat)(c, parent=None)

        def body(x_BTD: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, None]:
            params, key = layer
            x_BTD = constrain(x_BTD, BATCH, WHOLE, WHOLE)
            rngs = {} if key is None else {"dropout": key}
            arguments = (x_BTD, context, None, deterministic)
            x_BTD, _ = block.apply({"params": params}, *arguments, rngs=rngs)
            return x_BTD, None

        return jax.lax.scan(body, x_BTD, (stacked, keys))[0]

    def _embed(
        self, tokens_BT: jax.Array, positions_BT: jax.Array, cache: Cache | None
    ) -> jax.Array:
        c = self.config
        x_BTD = self.look_up(tokens_BT)
        if c.scale_embeddings:
            x_BTD = x_BTD * c.width**0.5
        if c.positions == "learned":
            size = tokens_BT.shape[1] if cache is None else cache.segments_BS.shape[1]
            if size > c.context_length:
                raise ValueError(
                    f"rows of {size} tokens do not fit the learned positions, "
                    f"model.context_length = {c.context_length}: shorten prompts or responses, or "
                    "train with a longer context."
                )
            x_BTD = x_BTD + self.position_embedding[positions_BT].astype(jnp.float32)
        return x_BTD

    def look_up(self, tokens_BT: jax.Array) -> jax.Array:
        """Return the rows of the embedding table, as they are."""
        # The plain version indexes `self.embedding`. Over a whole row it pays to gather the table
        # like any layer's parameters first; for one token of a decode to gather the result instead.
        table_VD = self.embedding
        if tokens_BT.shape[1] > 1:
            table_VD = constrain(table_VD, TENSOR, WHOLE)
        # Rounded like every other matrix, so that `cast_for_compute` does not change the result.
        return table_VD[tokens_BT].astype(self.config.compute_dtype).astype(jnp.float32)

    def _contexts(
        self, segments_BT: jax.Array, positions_BT: jax.Array, cache: Cache | None
    ) -> tuple[dict[int, Context], jax.Array]:
        """Return a context for every window that some layer has, and the segments of the keys."""
        c = self.config
        time = segments_BT.shape[1]
        start = None if cache is None else cache.length
        segments_BS = segments_BT
        if cache is not None:
            segments_BS = write_slots(cache.segments_BS, segments_BT, cache.length, axis=1)
        same_BTS = segments_BT[:, :, None] == segments_BS[:, None, :]
        same_BTS = same_BTS & (segments_BT[:, :, None] > 0)
        # The slots of the queries: one row for all, or one each.
        query_BT = jnp.arange(time)[None, :] + (0 if start is None else start.reshape(-1, 1))
        causal_BTS = jnp.arange(segments_BS.shape[1])[None, None, :] <= query_BT[:, :, None]
        visible_BTS = same_BTS & causal_BTS
        contexts = {}
        for window in {c.window(i) for i in range(c.num_layers)}:
            near_BTS = visible_BTS
            # Counted in tokens of the segment, so that padding moves nothing.
            if window:
                distance_BTS = positions_BT[:, :, None] - masking.positions(segments_BS)[:, None, :]
                near_BTS = visible_BTS & (distance_BTS < window)
            cos_BTK, sin_BTK = None, None
            if c.positions == "rope":
                local = window > 0
                rate, length = rope_rates(c, local=local), rope_length(c, local=local)
                cos_BTK, sin_BTK = rope_angles(positions_BT, rate, length)
            contexts[window] = Context(
                visible_BTS=near_BTS,
                cos_BTK=cos_BTK,
                sin_BTK=sin_BTK,
                start=start,
                segments_BT=None if window else segments_BT,
            )
        return contexts, segments_BS

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Return the logits of the tied output projection, before the soft cap."""
        # The plain version is the second return alone. In float32 its product has another last bit
        # in the forward pass of a gradient than without one (XLA for CPU).
        if self.config.compute_dtype == "float32":
            return linear(hidden, self.embedding.T, "float32")
        return linear(hidden, self.embedding, self.config.compute_dtype, True)


def _positions(segments_BT: jax.Array, cache: Cache | None) -> jax.Array:
    """Return positions within each segment, continued from its cached tokens."""
    positions_BT = masking.positions(segments_BT)
    if cache is None:
        return positions_BT
    same_BTS = segments_BT[:, :, None] == cache.segments_BS[:, None, :]
    return jnp.where(segments_BT > 0, positions_BT + same_BTS.sum(-1, dtype=jnp.int32), 0)
