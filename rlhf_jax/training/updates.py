"""Gradients of a loss over a batch, whole or in micro-batches, on one device or many, with the same result.

A loss is a sum of means over different things (tokens, prompts, episodes). The weights of those means belong to the whole
batch, so they are computed first and handed to every micro-batch:

    W = weights(batch);   g = Σ_micro ∇ loss(θ, micro, W)

and adding the micro-batches' gradients gives the whole batch's, which averaging micro-batch means would not.

Left out on purpose: loss scaling for fp16; bfloat16 needs none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.inference.packing import rows_needed
from rlhf_jax.maths.masking import Mean, merge, value
from rlhf_jax.models.lora import NOTHING_FROZEN, combine
from rlhf_jax.training.optimizer import global_norm

# What one training run carries from step to step.
#
# A `TrainState` is the parameters, the optimizer's state, the number of updates made, and `extras`: the few
# arrays a stage must not lose between steps (a KL coefficient, running reward moments, an exponential average
# of the weights). Random keys and the position in the data are not here: both are functions of the seed and the
# step number.
#
# Left out on purpose: the model and the optimizer, which are code and not state, and anything that is not an
# array.
Params = Any
Metrics = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Step, parameters, optimizer state and extras; frozen, so a step returns a new one."""

    step: jax.Array
    params: Params
    opt_state: Any
    extras: dict[str, Any]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, extras: dict[str, Any] | None = None
) -> TrainState:
    """A state at step 0.

    It holds `params` themselves, not a copy: before donating the state to a jitted step, `mesh.place` it, or
    whoever else holds these parameters (a reference model) loses them.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), dict(extras or {}))


def apply_gradients(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation
) -> TrainState:
    """One optimizer update: θ ← θ + u(g), step ← step + 1; extras stay as they are."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return replace(state, step=state.step + 1, params=params, opt_state=opt_state)


def to_checkpoint(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """The two trees that are saved: the parameters, which a child stage loads alone, and everything else."""
    return state.params, {"step": state.step, "opt_state": state.opt_state, "extras": state.extras}


def from_checkpoint(params: Params, train: dict[str, Any]) -> TrainState:
    """The inverse of `to_checkpoint`."""
    return TrainState(train["step"], params, train["opt_state"], train["extras"])


Batch = Any
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

    shapes = jax.eval_shape(
        gradient, params, jax.tree.map(lambda x: x[0], micro_batches), weights, key
    )
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
        state: TrainState, batch: Batch, key: jax.Array, base: Params = NOTHING_FROZEN
    ) -> tuple[TrainState, Metrics]:
        def loss(trained: Params, *rest: Any) -> tuple[jax.Array, dict[str, Mean]]:
            return loss_fn(combine(base, trained), *rest)

        grads, metrics = accumulated_gradients(
            loss,
            weights_fn,
            state.params,
            batch,
            key,
            num_micro_batches=num_micro_batches,
            axis_name=axis_name,
        )
        return apply_gradients(state, grads, optimizer), {
            **metrics,
            "grad_norm": global_norm(grads),
        }

    return update


def _split(x: jax.Array, num_micro_batches: int) -> jax.Array:
    # Micro-batch m takes rows m, m + M, ...: a batch axis sharded over devices stays where it is.
    rows = x.shape[0] // num_micro_batches
    return jnp.swapaxes(x.reshape(rows, num_micro_batches, *x.shape[1:]), 0, 1)


def _sum_over(axis_name: str | None) -> Callable[[Any], Any]:
    return (
        (lambda tree: tree) if axis_name is None else (lambda tree: jax.lax.psum(tree, axis_name))
    )


# Epochs x minibatches over one rollout, in one scan: what every algorithm does with what it has sampled.
#
#     for every epoch:  permute the rollout's rows;  for every minibatch:  one optimizer step on its gradients
#     once a minibatch's approxkl exceeds `target_kl` (0: never), the remaining ones leave the state as it is
#
# Left out on purpose: resampling rows by importance.


def run_epochs(
    state: TrainState,
    gradients: Callable[[Params, Any, Any], tuple[Params, Metrics]],
    optimizer: optax.GradientTransformation,
    rollout: Any,
    others: Any,
    key: jax.Array,
    *,
    norms: Callable[[Params], Mapping[str, jax.Array]],
    num_epochs: int,
    num_mini_batches: int,
    target_kl: float,
) -> tuple[TrainState, Metrics]:
    """Optimise on a rollout: `gradients(params, minibatch, other)` sees some of its rows and one slice of `others`.

    `others` holds what every minibatch gets besides (pretraining blocks), stacked along the scan's axis; {} for nothing.
    """
    num_rows = jax.tree.leaves(rollout)[0].shape[0]
    rows = minibatch_rows(key, num_rows, num_epochs, num_mini_batches)

    def body(carry: tuple[TrainState, jax.Array], xs: Any) -> Any:
        state, stopped = carry
        rows_b, other = xs
        minibatch = jax.tree.map(lambda x: x[rows_b], rollout)
        grads, metrics = gradients(state.params, minibatch, other)
        metrics = {**metrics, **norms(grads), "done": ~stopped}
        new_state = apply_gradients(state, grads, optimizer)
        if target_kl > 0:
            new_state = jax.tree.map(
                lambda new, old: jnp.where(stopped, old, new), new_state, state
            )
            stopped |= value(metrics["policy/approxkl_avg"]) > target_kl
        return (new_state, stopped), metrics

    (state, _), stacked = jax.lax.scan(body, (state, jnp.asarray(False)), (rows, others))
    return state, summarise(stacked)


def minibatch_rows(
    key: jax.Array, num_rows: int, num_epochs: int, num_mini_batches: int
) -> jax.Array:
    """Rows of every minibatch, epochs x minibatches in order: each row exactly once per epoch, freshly permuted."""
    keys = jax.random.split(key, num_epochs)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_rows))(keys)
    return permutations.reshape(num_epochs * num_mini_batches, num_rows // num_mini_batches)


def fullest_micro_batch(
    length_B: jax.Array,
    key: jax.Array,
    *,
    row_length: int,
    num_epochs: int,
    num_mini_batches: int,
    num_micro_batches: int,
) -> jax.Array:
    """Packed rows that the fullest micro-batch of `run_epochs` with this key needs (inference/packing.py).

    `length_B` are tokens of the examples, or (B, N) where a row of the rollout holds N of them.
    """
    rows = minibatch_rows(key, length_B.shape[0], num_epochs, num_mini_batches)
    picked = length_B[rows].reshape(len(rows), -1, num_micro_batches, *length_B.shape[1:])
    micro_batches = jnp.moveaxis(picked, 2, 1).reshape(len(rows) * num_micro_batches, -1)
    return jax.vmap(partial(rows_needed, row_length=row_length))(micro_batches).max()


def summarise(stacked: Metrics) -> Metrics:
    """Metrics of one update from those of its minibatches; skipped minibatches count for nothing.

    `mismatch/logp_mean` is read on the first minibatch, before any parameter has moved: it compares the sampler's
    log-probabilities with the training forward pass and must be zero up to rounding. `loss` is the sum of all loss/*.
    """
    done = stacked.pop("done")
    first_gap = jax.tree.map(lambda x: x[0], stacked.pop("mismatch/logp_mean"))
    ratios = value(stacked["val/ratio"])
    out: Metrics = {"mismatch/logp_mean": first_gap, "val/ratio_var": ratios.var(where=done)}
    for name, stat in stacked.items():
        if isinstance(stat, Mean):
            out[name] = Mean(stat.total.sum(where=done), stat.weight.sum(where=done))
        else:
            out[name] = stat.mean(where=done)
    loss = sum(value(out[name]) for name in stacked if name.startswith("loss/"))
    return {**out, "loss": loss, "policy/minibatches": done.sum()}
