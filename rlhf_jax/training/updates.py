"""Turn a loss and a batch into the next state of training.

The result is one, whether a batch is read whole, in micro-batches or on many devices.

A loss is a sum of means over different things (tokens, prompts, episodes). The denominator of such
a mean belongs to the whole batch, so it is computed first and given to every micro-batch:

    W = denominator(batch);   g = Σ_micro ∇ loss(θ, micro, W)

Adding the micro-batches' gradients then gives the whole batch's gradient, which averaging the means
of micro-batches would not.

Left out on purpose: loss scaling for fp16 (bfloat16 needs none), resampling rows of a rollout by
importance.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.inference.packing import rows_needed
from rlhf_jax.maths.masking import Mean, merge, value
from rlhf_jax.models.lora import combine
from rlhf_jax.training.optimizer import global_norm

Params = Any
Batch = Any
Metrics = dict[str, Any]
# loss(params, micro_batch, denominator_of_the_whole_batch, key) -> (scalar, metrics as Mean pairs)
LossFn = Callable[[Params, Batch, Any, jax.Array], tuple[jax.Array, dict[str, Mean]]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Hold what one training run carries from step to step.

    `extras` are the few arrays that a stage must not lose (a KL coefficient, moments of rewards, an
    average of the weights). Random keys and the position in the data are not here: both are
    functions of the seed and the step number.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    extras: dict[str, Any]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, extras: dict[str, Any] | None = None
) -> TrainState:
    """Return a state at step 0 that holds `params` themselves, not a copy.

    Before the state is donated to a compiled step, `mesh.place` it, or whoever else holds these
    parameters (a reference model) loses them.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), dict(extras or {}))


def apply_gradients(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """Return the state after one optimizer step, θ ← θ + u(g); extras stay as they are."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return replace(state, step=state.step + 1, params=params, opt_state=opt_state)


# --- one batch ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Objective:
    """Name a loss, what its mean is over, and into how many micro-batches a batch is cut.

    `axis_name` is only for steps under `jax.pmap`, where a batch is one device's share:
    denominators, gradients and metrics are then summed over the devices.
    """

    loss: LossFn
    denominator: Callable[[Batch], Any]
    num_micro_batches: int = 1
    axis_name: str | None = None


def accumulated_gradients(
    objective: Objective, params: Params, frozen: Params, batch: Batch, key: jax.Array
) -> tuple[Params, dict[str, Mean]]:
    """Return the gradient of a loss over a batch, read in micro-batches, and its metrics.

    The loss sees the trained `params` combined with the `frozen` ones (kernels under adapters; {}
    for none); the gradient is of the trained ones alone.
    """

    def loss(trained: Params, *arguments: Any) -> tuple[jax.Array, dict[str, Mean]]:
        return objective.loss(combine(frozen, trained), *arguments)

    denominator = _sum_over_devices(objective.denominator(batch), objective.axis_name)
    gradient = jax.grad(loss, has_aux=True)
    count = objective.num_micro_batches
    if count == 1:
        sums = gradient(params, batch, denominator, key)
        return _sum_over_devices(sums, objective.axis_name)

    def add(sums: Any, step_and_micro: Any) -> tuple[Any, None]:
        step, micro = step_and_micro
        grads, metrics = gradient(params, micro, denominator, jax.random.fold_in(key, step))
        return (jax.tree.map(jnp.add, sums[0], grads), merge_metrics(sums[1], metrics)), None

    micro_batches = jax.tree.map(partial(_cut, count=count), batch)
    first = jax.tree.map(lambda x: x[0], micro_batches)
    shapes = jax.eval_shape(gradient, params, first, denominator, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, (jnp.arange(count), micro_batches))
    return _sum_over_devices(sums, objective.axis_name)


def merge_metrics(a: dict[str, Mean], b: dict[str, Mean]) -> dict[str, Mean]:
    """Return the metrics of two parts of a batch, merged name by name."""
    return {name: merge(a[name], b[name]) for name in a}


def supervised_update(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    frozen: Params,
) -> tuple[TrainState, Metrics]:
    """Return the state after one step on one batch, and the metrics of its loss."""
    grads, metrics = accumulated_gradients(objective, state.params, frozen, batch, key)
    state = apply_gradients(state, grads, optimizer)
    return state, {**metrics, "grad_norm": global_norm(grads)}


def _cut(x: jax.Array, count: int) -> jax.Array:
    # Micro-batch m takes rows m, m + M, ...: a batch axis sharded over devices stays where it is.
    rows = x.shape[0] // count
    return jnp.swapaxes(x.reshape(rows, count, *x.shape[1:]), 0, 1)


def _sum_over_devices(tree: Any, axis_name: str | None) -> Any:
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


# --- epochs of minibatches over one rollout -------------------------------------------------------


@dataclass(frozen=True)
class Passes:
    """Say how an update goes over its rollout: epochs x minibatches x micro-batches."""

    num_epochs: int
    num_mini_batches: int
    num_micro_batches: int


def minibatch_rows(
    key: jax.Array, num_rows: int, num_epochs: int, num_mini_batches: int
) -> jax.Array:
    """Return the rows of every minibatch in order: each row once per epoch, freshly permuted."""
    keys = jax.random.split(key, num_epochs)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_rows))(keys)
    return permutations.reshape(num_epochs * num_mini_batches, num_rows // num_mini_batches)


def packed_rows_needed(
    length_B: jax.Array, key: jax.Array, passes: Passes, row_length: int
) -> jax.Array:
    """Return how many packed rows the fullest micro-batch of the update with this key needs.

    `length_B` counts the tokens of each example, or is (B, N) where a row of the rollout holds N of
    them.
    """
    rows = minibatch_rows(key, length_B.shape[0], passes.num_epochs, passes.num_mini_batches)
    count = passes.num_micro_batches
    picked = length_B[rows].reshape(len(rows), -1, count, *length_B.shape[1:])
    micro_batches = jnp.moveaxis(picked, 2, 1).reshape(len(rows) * count, -1)
    return jax.vmap(partial(rows_needed, row_length=row_length))(micro_batches).max()


def summarise(stacked: Metrics) -> Metrics:
    """Return the metrics of one update from those of its minibatches, without skipped ones.

    `done` says which minibatches were not skipped. `mismatch/logp_mean` is read on the first one,
    before any parameter has moved: it compares the sampler's log-probabilities with the training
    forward pass and must be zero up to rounding. `loss` is the sum of all loss/*.
    """
    done = stacked["done"]
    ratio = value(stacked["val/ratio"])
    metrics: Metrics = {
        "mismatch/logp_mean": jax.tree.map(lambda x: x[0], stacked["mismatch/logp_mean"]),
        "val/ratio_var": ratio.var(where=done),
    }
    for name, stat in stacked.items():
        if name in ("done", "mismatch/logp_mean"):
            continue
        if isinstance(stat, Mean):
            metrics[name] = Mean(stat.total.sum(where=done), stat.weight.sum(where=done))
        else:
            metrics[name] = stat.mean(where=done)
    loss = sum(value(metrics[name]) for name in metrics if name.startswith("loss/"))
    return {**metrics, "loss": loss, "policy/minibatches": done.sum()}
