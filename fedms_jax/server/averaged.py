"""Aggregators: how the server merges what the clients send."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.types import Aggregator, Tree

RESIDUAL = 'aggregation_residual'
SKETCH = 64  # rows of the sketch of a residual
_SKETCHED = 'sketch_'


def divide(total, weights):
  """Sums over weights; a stacked key has one weight per block (coverage)."""
  out = {}
  for key, value in total.items():
    weight = jnp.maximum(weights[key], 1e-12)

    def ratio(x, weight=weight):
      return x / weight.reshape(weight.shape + (1,) * (x.ndim - weight.ndim))

    out[key] = jax.tree.map(ratio, value)
  return out


def mean() -> Aggregator:
  """The sample-weighted mean (FedAvg, arXiv 1602.05629), per block over the
  clients that held it active. Sums are of differences, which keeps their
  rounding small."""

  def contribute(before, after, weight):
    return tree.scale(tree.subtract(after, before), weight)

  def merge(before, total, weights):
    return tree.add(before, divide(total, weights))

  return Aggregator(contribute, 'sum', merge)


def with_residual(inner: Aggregator, scale: float) -> Aggregator:
  """Logs what an average of LoRA misses: 'aggregation_residual' is
  scale * ||mean(A_k B_k) - A B||, the Frobenius norm over all targets and the
  blocks that somebody held active.

  The mean is weighted as the clients are; A and B are what `inner` makes of
  the factors, and scale is alpha / R. Clients send no product [d_in, d_out]
  for it, but the change of the product behind a fixed random matrix
  [`SKETCH`, d_in]: one is no larger than 64 d_out, mostly less than the
  activations of a step, and factors suffice to make it. Up to d_in = 64 the
  matrix is the identity and the norm exact. Beyond, the square of the norm is
  without bias and has, per block and target, a relative standard deviation
  of at most sqrt(2 / 64) (Johnson-Lindenstrauss); the sum over blocks has
  less. An `inner` that keeps contributions apart is returned as it is: it
  takes no mean.
  """
  if inner.reduction != 'sum':
    return inner

  def contribute(before, after, weight):
    own = {
      f'{_SKETCHED}{key}': tree.scale(_moved(before[key], after[key]), weight)
      for key in before
      if tree.is_stacked(key)
    }
    return inner.contribute(before, after, weight) | own

  def given(x):
    return {k: v for k, v in x.items() if not k.startswith(_SKETCHED)}

  def merge(before, total, weights):
    return inner.merge(before, given(total), given(weights))

  def measure(before, total, weights):
    after = merge(before, total, weights)
    squares = jnp.float32(0)
    for key, means in divide(total, weights).items():
      if key.startswith(_SKETCHED):
        name = key.removeprefix(_SKETCHED)
        missed = tree.subtract(means, _moved(before[name], after[name]))
        held = (weights[key] > 0).astype(jnp.float32)
        squares += sum(
          jnp.sum(held * jnp.sum(jnp.square(x), axis=(1, 2)))
          for x in jax.tree.leaves(missed)
        )
    return {RESIDUAL: scale * jnp.sqrt(squares)}

  return Aggregator(contribute, 'sum', merge, measure)


def _moved(before: Tree, after: Tree) -> dict[str, jax.Array]:
  """Sketches [d, SKETCH, d_out] of the change of A B, by target."""
  out = {}
  for target, (a0, b0) in lora.pairs(before).items():
    a, b = lora.pairs(after)[target]
    # Changes first: the products themselves would cancel in their difference.
    out[target] = _sketch(a - a0) @ b + _sketch(a0) @ (b - b0)
  return out


def _sketch(a):
  """S A [d, SKETCH, R] of A [d, d_in, R], where E ||S x||^2 = ||x||^2."""
  size = a.shape[-2]
  if size <= SKETCH:
    return a
  rows = jax.random.normal(jax.random.key(size), (SKETCH, size))
  return (rows / SKETCH**0.5) @ a
