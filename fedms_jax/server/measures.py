"""What is measured of an average beside it: what it misses, and how clients
move."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedms_jax.adapters import lora
from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received, Sender
from fedms_jax.core.types import Tree
from fedms_jax.server.averaged import Aggregator, divide

RESIDUAL = 'aggregation_residual'
SKETCH = 64  # rows of the sketch of a residual


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
  less. An `inner` that keeps messages apart is returned as it is: it takes no
  mean.
  """
  if inner.reduction != 'sum':
    return inner

  def send(before, message: Message, weight, sender: Sender) -> Message:
    sketch = {
      key: tree.scale(_moved(before[key], message.update[key]), weight)
      for key in before
      if tree.is_stacked(key)
    }
    found = inner.send(before, message, weight, sender)
    return found._replace(extras=found.extras | {'sketch': sketch})

  def measure(before, received: Received) -> dict[str, Any]:
    after = inner.merge(before, received)
    squares = jnp.float32(0)
    for key, total in received.extras['sketch'].items():
      weight = received.cover[key]
      means = divide(total, weight)
      missed = tree.subtract(means, _moved(before[key], after[key]))
      held = (weight > 0).astype(jnp.float32)
      squares += sum(
        jnp.sum(held * jnp.sum(jnp.square(x), axis=(1, 2)))
        for x in jax.tree.leaves(missed)
      )
    return {RESIDUAL: scale * jnp.sqrt(squares)}

  return Aggregator(send, 'sum', inner.merge, measure)


def with_drift(inner: Aggregator, alike: bool = True) -> Aggregator:
  """Logs how far clients move and how alike they do.

  With u_k what client k changes, and w_k what it weighs: 'drift' is the mean
  of ||u_k||, 'pseudo_gradient' is ||mean of u_k||, and 'cosine' the mean of
  the cosines between two clients' changes, pairs weighed by w_j ||u_j|| w_k
  ||u_k||: 1 where all go one way, 0 for one client. Sums of scalars suffice for
  it. An `inner` that keeps messages apart has no such mean, and is returned as
  it is. alike: whether the cosine is logged; it needs clients that hold the
  same blocks.
  """
  if inner.reduction != 'sum':
    return inner

  def send(before, message: Message, weight, sender: Sender) -> Message:
    norm = jnp.sqrt(tree.squared_norm(tree.subtract(message.update, before)))
    w = weight * (weight > 0)
    sums = {
      'weight': w,
      'norm': w * norm,
      'square': jnp.square(w * norm),
    }
    found = inner.send(before, message, weight, sender)
    return found._replace(extras=found.extras | {'drift': sums})

  def measure(before, received: Received) -> dict[str, Any]:
    sums = received.extras['drift']
    weight = jnp.maximum(sums['weight'], 1e-12)
    moved = tree.subtract(inner.merge(before, received), before)
    length = jnp.sqrt(tree.squared_norm(moved))
    pairs = jnp.square(sums['norm']) - sums['square']
    along = jnp.square(weight * length) - sums['square']
    cosine = jnp.where(
      pairs > 1e-6 * sums['square'], along / jnp.maximum(pairs, 1e-12), 0.0
    )
    found = {} if inner.measure is None else inner.measure(before, received)
    found = found | {'cosine': cosine} if alike else found
    return found | {
      'drift': sums['norm'] / weight,
      'pseudo_gradient': length,
    }

  return Aggregator(send, 'sum', inner.merge, measure)


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
