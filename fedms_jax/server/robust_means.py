"""Robust aggregators that are means: of what is clipped, weighed or chosen.

As in `robust`, clients count alike, and a block is merged over those that held
it. Norms and distances are of all that a client trained, as one vector. Where
clients hold different blocks, two of them are compared by what both trained;
that is ours, as the papers know no blocks.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Received
from fedms_jax.core.shapes import tail
from fedms_jax.core.types import Tree
from fedms_jax.server.averaged import Aggregator
from fedms_jax.server.robust import change, check

_TINY = 1e-30


def norm_bound(bound: float) -> Aggregator:
  """The mean of changes that are scaled down to an L2 norm of `bound` (arXiv
  1911.07963, section 5); 0: to the median of the norms of the round."""

  def merge(before, received: Received) -> Tree:
    check(received)
    held = holders(received)
    norms = lengths(received.update, held)
    limit = jnp.float32(bound) if bound else middle(norms, members(held))
    return _moved(before, received.update, held, _within(norms, limit))

  return Aggregator(change, 'stack', merge)


def geometric_median(passes: int = 4, nu: float = 1e-6) -> Aggregator:
  """The point whose distances to all changes have the least sum, by smoothed
  Weiszfeld steps from the mean (RFA, arXiv 1912.13445, alg. 2): weights
  1 / max(nu, distance)."""

  def merge(before, received: Received) -> Tree:
    check(received)
    held = holders(received)
    point = mean(received.update, held, members(held))
    for _ in range(passes):
      far = lengths(_from(received.update, point), held)
      point = mean(received.update, held, 1 / jnp.maximum(far, nu))
    return tree.add(before, point)

  return Aggregator(change, 'stack', merge)


def centered_clip(bound: float, passes: int = 3) -> Aggregator:
  """v + the mean of what lies within `bound` of v, of changes less v, a few
  times; v is first what the round before has changed (arXiv 2012.10333,
  alg. 2, without momentum of the clients). bound: tau; 0: the median of the
  distances to v (ours)."""

  def draw(before, received: Received, last: Tree, key) -> Tree:
    del key
    check(received)
    held, point = holders(received), last
    for _ in range(passes):
      moves = _from(received.update, point)
      far = lengths(moves, held)
      limit = jnp.float32(bound) if bound else middle(far, members(held))
      step = mean(moves, held, members(held), _within(far, limit))
      point = tree.add(point, step)
    return tree.add(before, point)

  return drawn(draw)


def flame(noise: float = 0.001) -> Aggregator:
  """FLAME (arXiv 2101.02281, alg. 1): the changes of the majority that is most
  alike by their angles, clipped to the median norm of all, averaged, with
  noise of standard deviation `noise` times that norm.

  The majority is what HDBSCAN finds with min_cluster_size of more than half of
  the clients and min_samples of 1: no two clusters are that large, so it is the
  first component of single linkage by cosine distances that is.
  """

  def draw(before, received: Received, last: Tree, key) -> Tree:
    del last
    check(received)
    held = holders(received)
    there = members(held)
    norms = lengths(received.update, held)
    limit = middle(norms, there)
    admitted = majority(angles(received.update, held), there > 0)
    weights = admitted.astype(jnp.float32)
    point = mean(received.update, held, weights, _within(norms, limit))
    leaves, structure = jax.tree.flatten(point)
    keys = jax.random.split(key, len(leaves))
    noisy = [
      x + noise * limit * jax.random.normal(k, x.shape, x.dtype)
      for k, x in zip(keys, leaves, strict=True)
    ]
    return tree.add(before, jax.tree.unflatten(structure, noisy))

  return drawn(draw)


def bucketed(inner: Aggregator, size: int) -> Aggregator:
  """The aggregator of means of `size` changes each, drawn at random in each
  round (arXiv 2006.09365, alg. 1), which makes clients of unlike data more
  alike."""

  def draw(before, received: Received, last: Tree, key) -> Tree:
    check(received)
    count = len(received.count)
    buckets = -(-count // size)
    place = jax.random.permutation(key, count) // size
    into = jax.nn.one_hot(place, buckets, axis=0)  # [buckets, K]

    def summed(x):
      return jnp.tensordot(into, x, axes=1, precision='highest')

    held = holders(received)
    cover = jax.tree.map(summed, held)

    def made(h, total, part: Tree) -> Tree:
      return jax.tree.map(
        lambda x: summed(x * tail(h, x)) / jnp.maximum(tail(total, x), 1), part
      )

    update = {k: made(held[k], cover[k], received.update[k]) for k in held}
    some = received._replace(
      update=update, cover=cover, count=summed(received.count)
    )
    if inner.draw is None:
      return inner.merge(before, some)
    return inner.draw(before, some, last, jax.random.fold_in(key, 1))

  return drawn(draw)


def drawn(draw: Callable) -> Aggregator:
  """The aggregator of a function that draws or remembers. Its `merge` is a
  first round, with a key of its own."""

  def merge(before, received: Received) -> Tree:
    last = jax.tree.map(jnp.zeros_like, before)
    return draw(before, received, last, jax.random.key(0))

  return Aggregator(change, 'stack', merge, draw=draw)


def holders(received: Received) -> Tree:
  """Who held what, as zeros and ones: [K], or [K, L] of stacked keys."""
  return jax.tree.map(lambda x: (x > 0).astype(jnp.float32), received.cover)


def members(held: Tree):
  """Whether clients sent anything, as zeros and ones [K]."""
  found = [jnp.max(x.reshape(len(x), -1), axis=1) for x in held.values()]
  return jnp.max(jnp.stack(found), axis=0)


def lengths(update: Tree, held: Tree):
  """The L2 norms of what clients trained [K]."""
  total = jnp.float32(0)
  for key, part in update.items():
    for x in jax.tree.leaves(part):
      square = jnp.square(x.astype(jnp.float32)) * tail(held[key], x)
      total += jnp.sum(square.reshape(len(x), -1), axis=1)
  return jnp.sqrt(total)


def middle(values, there):
  """The median of the values [K] of who is there."""
  count = jnp.sum(there).astype(jnp.int32)
  ordered = jnp.sort(jnp.where(there > 0, values, jnp.inf))
  low, high = jnp.maximum(count - 1, 0) // 2, count // 2
  high = jnp.minimum(high, len(values) - 1)
  return jnp.where(count > 0, (ordered[low] + ordered[high]) / 2, 0.0)


def mean(update: Tree, held: Tree, weights, factor=None) -> Tree:
  """By block the mean over its holders with weights [K], of changes times a
  factor [K]; zero where nobody weighs anything."""

  def of(h, part: Tree) -> Tree:
    w = h * tail(weights, h)
    total = jnp.maximum(jnp.sum(w, axis=0), _TINY)

    def leaf(x):
      scaled = x if factor is None else x * tail(factor, x)
      return jnp.sum(scaled * tail(w, x), axis=0) / tail(total, x[0])

    return jax.tree.map(leaf, part)

  return {key: of(held[key], part) for key, part in update.items()}


def angles(update: Tree, held: Tree):
  """1 - cosine of what two clients both trained, [K, K]; 1 of nothing."""
  product, own, other = (jnp.float32(0) for _ in range(3))
  for key, part in update.items():
    h = held[key].reshape(len(held[key]), -1)  # [K, L or 1]
    for x in jax.tree.leaves(part):
      flat = x.reshape(*h.shape, -1).astype(jnp.float32) * h[:, :, None]
      square = jnp.sum(jnp.square(flat), axis=-1)  # [K, L]
      product += jnp.einsum('iln,jln->ij', flat, flat, precision='highest')
      own += jnp.einsum('il,jl->ij', square, h, precision='highest')
      other += jnp.einsum('il,jl->ij', h, square, precision='highest')
  return 1 - product / jnp.sqrt(jnp.maximum(own * other, _TINY))


def majority(distance, there):
  """The first component of single linkage, bool [K], with more than half of
  those `there`, bool [K]. distance: [K, K]."""
  size = len(distance)
  both = there[:, None] & there[None]
  path = jnp.where(both, distance, jnp.inf)
  path = jnp.where(jnp.eye(size, dtype=bool), 0.0, path)

  def through(k, path):  # the least largest step of a path from i to j
    return jnp.minimum(path, jnp.maximum(path[:, k][:, None], path[k][None]))

  path = jax.lax.fori_loop(0, size, through, path)
  path = jnp.where(both, path, jnp.inf)
  half = jnp.sum(there) // 2  # so that half + 1 are more than half
  radius = jnp.sort(path, axis=1)[:, jnp.minimum(half, size - 1)]
  first = jnp.argmin(radius)
  return (path[first] <= radius[first]) & there


def _within(norms, limit):
  return jnp.minimum(1.0, limit / jnp.maximum(norms, _TINY))


def _from(update: Tree, point: Tree) -> Tree:
  """Changes [K, ...] less a point."""
  return jax.tree.map(lambda x, v: x - v[None], update, point)


def _moved(before: Tree, update: Tree, held: Tree, factor) -> Tree:
  return tree.add(before, mean(update, held, members(held), factor))
