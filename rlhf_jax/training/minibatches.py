"""Epochs x minibatches over one rollout, in one scan: what every algorithm does with what it has sampled.

    for every epoch:  permute the rollout's rows;  for every minibatch:  one optimizer step on its gradients
    once a minibatch's approxkl exceeds `target_kl` (0: never), the remaining ones leave the state as it is

Left out on purpose: resampling rows by importance.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.inference.packing import rows_needed
from rlhf_jax.maths.masking import Mean, value
from rlhf_jax.training.state import TrainState, apply_gradients

Params = Any
Metrics = dict[str, Any]


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
            new_state = jax.tree.map(lambda new, old: jnp.where(stopped, old, new), new_state, state)
            stopped |= value(metrics["policy/approxkl_avg"]) > target_kl
        return (new_state, stopped), metrics

    (state, _), stacked = jax.lax.scan(body, (state, jnp.asarray(False)), (rows, others))
    return state, summarise(stacked)


def minibatch_rows(key: jax.Array, num_rows: int, num_epochs: int, num_mini_batches: int) -> jax.Array:
    """Rows of every minibatch, epochs x minibatches in order: each row exactly once per epoch, freshly permuted."""
    keys = jax.random.split(key, num_epochs)
    permutations = jax.vmap(lambda k: jax.random.permutation(k, num_rows))(keys)
    return permutations.reshape(num_epochs * num_mini_batches, num_rows // num_mini_batches)


def fullest_micro_batch(
    length_B: jax.Array, key: jax.Array, *, row_length: int, num_epochs: int, num_mini_batches: int, num_micro_batches: int
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
