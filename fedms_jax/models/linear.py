"""Linear layers, and products with kernels that are stored in another type.

A frozen kernel may be stored in float32, bfloat16 or int8 and multiplied in
bfloat16. JAX would keep what it converts for the backward pass, a second copy
of the model, and XLA would convert once for all steps of a round and keep that.
Here both passes convert what is stored, and let go of it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedms_jax.core.shapes import lead
from fedms_jax.core.types import Tree


def init(key, width: int, classes: int, bias: bool = True) -> Tree:
  params = {'kernel': 0.02 * jax.random.normal(key, (width, classes))}
  return params | {'bias': jnp.zeros(classes)} if bias else params


def apply(params: Tree, x, dtype: str = 'float32'):
  """`x @ kernel + bias` of features [..., D], in `dtype`."""
  y = product(x.astype(dtype), params['kernel'], dtype)
  if 'bias' not in params:
    return y
  return y + lead(params['bias'].astype(dtype), y)


def product(x, kernel, dtype: str) -> jax.Array:
  """`x @ kernel` of x [..., d_in] in `dtype`; the kernel [d_in, d_out] may be
  stored in another type, see above."""
  if kernel.dtype == jnp.dtype(dtype):
    return x @ kernel
  return _product(x, kernel, 0, dtype)


def readout(x, table) -> jax.Array:
  """Logits [..., V] in float32 of x [..., D] by a table [V, D], which may be
  stored in another type than that of x; both passes multiply in that of x.

  JAX by itself would multiply the gradient of the logits, float32, by a table
  that it converts to float32: a gigabyte for a LLaMA of a billion weights.
  """
  if x.dtype == table.dtype == jnp.float32:
    return jnp.einsum('...d,vd->...v', x, table)
  return _product(x, table, 1, 'float32')


def cast(table, x):
  """The table in the type of x, for many products with parts of x."""
  if table.dtype == x.dtype:
    return table
  # Tied to x, as in `_product`.
  table, x = jax.lax.optimization_barrier((table, x))
  return table.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, axis: int, result: str):
  """The product of the last axis of x with an axis of the kernel, in the type
  of x, given as `result`."""
  # Tied to x, or XLA would convert before the first step of a round.
  x, kernel = jax.lax.optimization_barrier((x, kernel))
  return _contract(x, kernel.astype(x.dtype), axis, result)


def _contract(x, kernel, axis: int, result):
  axes = (((x.ndim - 1,), (axis,)), ((), ()))
  return jax.lax.dot_general(x, kernel, axes, preferred_element_type=result)


def _product_forward(x, kernel, axis, result):
  """Keeps the kernel as it is stored, and x if the kernel is trained; of x its
  type, in an array of nothing."""
  trained = x.value if kernel.perturbed else None
  kept = trained, kernel.value, jnp.zeros(0, x.value.dtype)
  return _product(x.value, kernel.value, axis, result), kept


def _product_backward(axis, result, kept, dy):
  del result
  x, kernel, like = kept
  dy, stored = jax.lax.optimization_barrier((dy.astype(like.dtype), kernel))
  dx = _contract(dy, stored.astype(like.dtype), 1 - axis, like.dtype)
  if x is None:
    return dx, None
  pair = [y.reshape(-1, y.shape[-1]) for y in (x, dy)]
  first, second = pair if axis == 0 else pair[::-1]
  return dx, _contract(first.T, second, 0, kernel.dtype)


_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)
