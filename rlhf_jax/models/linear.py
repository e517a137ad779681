"""Multiply by a matrix with rounded operands, a float32 result, and a gradient written by hand."""

import functools

import jax
import jax.numpy as jnp


# The plain version leaves the gradient to JAX:
#
#     x, kernel = x.astype(dtype), kernel.astype(dtype)
#     return jax.lax.dot_general(x, kernel, ..., preferred_element_type=jnp.float32)
#
# The gradient below is the same textbook one, dx = dy·Wᵀ and dW = xᵀ·dy. Writing it out gains two
# things. The barrier in it stops XLA from fusing the backward pass of a neighbouring norm into a
# transposing copy of an operand, which costs a fifth of a training step on CPU. And with
# `transposed`, the kernel's gradient is never that of a kernel transposed outside, a product that
# XLA's CPU backend does not have for bfloat16 operands.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def linear(x: jax.Array, kernel: jax.Array, dtype: str, transposed: bool = False) -> jax.Array:
    """Return x·kernel, or x·kernelᵀ, over the last axis of x.

    Operands are rounded to `dtype`; the result is float32.
    """
    return _product(x.astype(dtype), kernel.astype(dtype), (x.ndim - 1,), (int(transposed),))


def _product(
    a: jax.Array, b: jax.Array, axes_a: tuple[int, ...], axes_b: tuple[int, ...]
) -> jax.Array:
    """Sum a·b over these axes of each, in float32."""
    return jax.lax.dot_general(
        a, b, ((axes_a, axes_b), ((), ())), preferred_element_type=jnp.float32
    )


def _linear_forward(
    x: jax.Array, kernel: jax.Array, dtype: str, transposed: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, kernel, dtype, transposed), (x.astype(dtype), kernel)


def _linear_backward(
    dtype: str, transposed: bool, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    x, dy = jax.lax.optimization_barrier((x, dy.astype(dtype)))
    rows = tuple(range(x.ndim - 1))
    dx = _product(dy, kernel.astype(dtype), (dy.ndim - 1,), (int(not transposed),))
    d_kernel = _product(dy, x, rows, rows) if transposed else _product(x, dy, rows, rows)
    return dx, d_kernel.astype(kernel.dtype)


linear.defvjp(_linear_forward, _linear_backward)
