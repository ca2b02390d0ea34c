"""Gradients that keep rows private: DP-SGD in the steps of a client."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.types import Batch, Tree


@functools.lru_cache(maxsize=64)
def private_gradient(clip: float, noise: float, nominal: int) -> Callable:
  """The gradient of DP-SGD (arXiv 1607.00133, algorithm 1), for
  `client.sgd`.

  The gradient of each row, over all that trains, is clipped to an L2 norm;
  their sum gets Gaussian noise, and is divided by the number of rows that a
  batch has in the mean, whatever it has. The last row of a batch belongs to
  nobody: it only makes a step of a batch that came out empty.

  Args:
    clip: C.
    noise: z, over C.
    nominal: B.

  Returns:
    a function with the arguments and results of `client.mean_gradient`.
  """

  def gradient(loss: Callable, train: Tree, batch: Batch, key):
    def one(row):
      alone = jax.tree.map(lambda x: jnp.expand_dims(x, 0), row)
      return jax.grad(lambda train: loss(train, alone), has_aux=True)(train)

    rows = jax.tree.map(lambda x: x[:-1], batch)
    found, sums = jax.vmap(one)(rows)
    norms = jnp.sqrt(jax.vmap(tree.squared_norm)(found))
    fine = jnp.isfinite(norms) & rows['mask']
    factors = jnp.minimum(1.0, clip / jnp.maximum(norms, 1e-30))

    def summed(values, weights):
      shape = weights.shape + (1,) * (values.ndim - 1)
      held = jnp.reshape(weights > 0, shape)
      parts = jnp.where(held, values * jnp.reshape(weights, shape), 0.0)
      return jnp.sum(parts, axis=0)

    weights = jnp.where(fine, factors, 0.0)
    totals = jax.tree.map(lambda x: summed(x, weights), found)
    leaves, structure = jax.tree.flatten(totals)
    keys = jax.random.split(key, max(len(leaves), 1))
    noisy = [
      (x + noise * clip * jax.random.normal(k, x.shape)) / nominal
      for x, k in zip(leaves, keys, strict=False)
    ]
    real = rows['mask'].astype(jnp.float32)
    sums = jax.tree.map(lambda x: summed(x, real), sums)
    return jax.tree.unflatten(structure, noisy), sums

  return gradient
