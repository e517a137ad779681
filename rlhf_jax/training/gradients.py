"""Gradients of a loss over a batch, whole or in micro-batches, on one device or many, with the same result.

A loss is a sum of means over different things (tokens, prompts, episodes). The weights of those means belong to the whole
batch, so they are computed first and handed to every micro-batch:

    W = weights(batch);   g = Σ_micro ∇ loss(θ, micro, W)

and adding the micro-batches' gradients gives the whole batch's, which averaging micro-batch means would not.

Left out on purpose: loss scaling for fp16; bfloat16 needs none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.maths.masking import Mean, merge
from rlhf_jax.models.lora import NO_BASE, join
from rlhf_jax.training.optimizer import global_norm
from rlhf_jax.training.state import TrainState, apply_gradients

Params = Any
Batch = Any
Metrics = dict[str, Any]
# loss(params, micro_batch, weights_of_the_whole_batch, key) -> (scalar, metrics as Mean pairs)
LossFn = Callable[[Params, Batch, Any, jax.Array], tuple[jax.Array, dict[str, Mean]]]
WeightsFn = Callable[[Batch], Any]


def accumulated_gradients(
    loss_fn: LossFn,
    weights_fn: WeightsFn,
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    num_micro_batches: int,
    axis_name: str | None = None,
) -> tuple[Params, dict[str, Mean]]:
    """Gradient of the loss over a batch that is cut into micro-batches, and the metrics of the whole.

    With `axis_name` the batch is one device's share under `jax.pmap`: weights, gradients and metrics are summed over devices.
    """
    total = _sum_over(axis_name)
    weights = total(weights_fn(batch))
    gradient = jax.grad(loss_fn, has_aux=True)
    if num_micro_batches == 1:
        return total(gradient(params, batch, weights, key))

    micro_batches = jax.tree.map(lambda x: _split(x, num_micro_batches), batch)

    def body(carry: Any, step_and_micro: Any) -> tuple[Any, None]:
        step, micro = step_and_micro
        grads, metrics = gradient(params, micro, weights, jax.random.fold_in(key, step))
        return (jax.tree.map(jnp.add, carry[0], grads), merge_metrics(carry[1], metrics)), None

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], micro_batches), weights, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, _ = jax.lax.scan(body, zeros, (jnp.arange(num_micro_batches), micro_batches))
    return total(sums)


def merge_metrics(a: dict[str, Mean], b: dict[str, Mean]) -> dict[str, Mean]:
    """Merge two sets of Mean pairs name by name."""
    return {name: merge(a[name], b[name]) for name in a}


def make_supervised_update(
    loss_fn: LossFn,
    weights_fn: WeightsFn,
    optimizer: optax.GradientTransformation,
    *,
    num_micro_batches: int,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """The pure update that the supervised stages share: (state, batch, key, frozen base) -> (state, metrics).

    The loss sees the base joined with the state's parameters, and gradients are of these alone; by default there is no base.
    """

    def update(
        state: TrainState, batch: Batch, key: jax.Array, base: Params = NO_BASE
    ) -> tuple[TrainState, Metrics]:
        def loss(trained: Params, *rest: Any) -> tuple[jax.Array, dict[str, Mean]]:
            return loss_fn(join(base, trained), *rest)

        grads, metrics = accumulated_gradients(
            loss, weights_fn, state.params, batch, key, num_micro_batches=num_micro_batches, axis_name=axis_name
        )
        return apply_gradients(state, grads, optimizer), {**metrics, "grad_norm": global_norm(grads)}

    return update


def _split(x: jax.Array, num_micro_batches: int) -> jax.Array:
    # Micro-batch m takes rows m, m + M, ...: a batch axis sharded over devices stays where it is.
    rows = x.shape[0] // num_micro_batches
    return jnp.swapaxes(x.reshape(rows, num_micro_batches, *x.shape[1:]), 0, 1)


def _sum_over(axis_name: str | None) -> Callable[[Any], Any]:
    return (lambda tree: tree) if axis_name is None else (lambda tree: jax.lax.psum(tree, axis_name))
