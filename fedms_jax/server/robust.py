"""Robust aggregators: order statistics that some bad clients cannot move far.

They see every client's change apart ('stack'). Clients count alike, whatever
their numbers of rows: a weight is a claim, too. Per block only those count
that held it active.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.contract import Message, Received
from fedms_jax.core.types import Tree
from fedms_jax.server.averaged import Aggregator, tail, weighed

_FAR = 1e30  # farther than any two clients, and finite


def median() -> Aggregator:
  """The coordinate-wise median of the changes (arXiv 1803.01498)."""
  return _by_coordinate(lambda count: (count - 1) // 2)


def trimmed_mean(share: float) -> Aggregator:
  """The coordinate-wise mean without the floor(share * count) largest and as
  many smallest changes (arXiv 1803.01498). share: in [0, 0.5)."""
  return _by_coordinate(
    lambda count: jnp.floor(share * count + 1e-6).astype(jnp.int32)
  )


def multi_krum(bad: int, keep: int = 0) -> Aggregator:
  """Multi-Krum (arXiv 1703.02757, section 4): the mean of the changes of the
  `keep` clients with the best scores, see `krum`; 0: of count - bad - 2.

  A block is of the best among those that held it, and stays as it was where
  they are fewer than 2 bad + 3, so that nobody wins blocks that few hold; that
  is ours.
  """

  def merge(before, received: Received) -> Tree:
    check(received)
    values, weights = received.update, received.cover
    scores = _krum_scores(values, weights, bad)

    def chosen(key, held):
      there = held > 0
      count = jnp.sum(there, axis=0)  # of each block
      most = jnp.minimum(keep or count, jnp.maximum(count - bad - 2, 1))
      ranked = jnp.where(there, tail(scores, held), jnp.inf)
      place = jnp.argsort(jnp.argsort(ranked, axis=0), axis=0)
      kept = there & (place < most[None]) & (count >= 2 * bad + 3)[None]
      total = jnp.maximum(jnp.sum(kept, axis=0), 1)
      return jax.tree.map(
        lambda x: (
          jnp.sum(jnp.where(tail(kept, x), x, 0.0), axis=0) / tail(total, x[0])
        ),
        values[key],
      )

    return {
      key: tree.add(before[key], chosen(key, weights[key])) for key in before
    }

  return Aggregator(change, 'stack', merge)


def krum(bad: int) -> Aggregator:
  """Krum (arXiv 1703.02757): the change of the one client that is nearest to
  its count - bad - 2 nearest others.

  Distances are mean squares over what both clients trained, which is the
  distance of the paper, but for a factor, where all train the same. A block
  comes from the best client of those that held it.
  """

  def merge(before, received: Received) -> Tree:
    check(received)
    values, weights = received.update, received.cover
    scores = _krum_scores(values, weights, bad)

    def chosen(key, held):
      index = jnp.argmin(jnp.where(held > 0, tail(scores, held), jnp.inf), 0)

      def pick(x):
        at = index.reshape((1, *index.shape) + (1,) * (x.ndim - held.ndim))
        return jnp.take_along_axis(x, at, axis=0)[0]

      return jax.tree.map(pick, values[key])

    return {
      key: tree.add(before[key], chosen(key, weights[key])) for key in before
    }

  return Aggregator(change, 'stack', merge)


def bulyan(bad: int) -> Aggregator:
  """Bulyan (arXiv 1802.07927, section 4): of count - 2 bad clients, which Krum
  has chosen one after another, each coordinate's mean of the count - 4 bad
  values that are nearest to their median.

  Krum scores those that are left anew, each by as many nearest others as it
  has but `bad` + 2, at least one. A block is of the first chosen of those that
  held it, and stays as it was where they are fewer than 4 bad + 3; that is
  ours.
  """

  def merge(before, received: Received) -> Tree:
    check(received)
    values, weights = received.update, received.cover
    place = _krum_order(*_distances(values, weights), bad)

    def chosen(key, held):
      there = held > 0
      count = jnp.sum(there, axis=0)  # of each block
      ranked = jnp.where(there, tail(place, held), len(place))
      rank = jnp.argsort(jnp.argsort(ranked, axis=0), axis=0)
      kept = there & (rank < (count - 2 * bad)[None])
      kept = kept & (count >= 4 * bad + 3)[None]
      return jax.tree.map(
        lambda x: _around_median(x, kept, count - 4 * bad), values[key]
      )

    return {
      key: tree.add(before[key], chosen(key, weights[key])) for key in before
    }

  return Aggregator(change, 'stack', merge)


def _around_median(x, kept, most):
  """The mean of the `most` values of each coordinate that are nearest to the
  median; x [K, ...] of those that are kept, bool [K] or [K, L]."""
  kept, count = tail(kept, x), jnp.sum(kept, axis=0)
  low = tail(jnp.maximum(count - 1, 0) // 2, x[0])
  high = tail(jnp.minimum(count // 2, len(x) - 1), x[0])
  ordered = jnp.sort(jnp.where(kept, x, jnp.inf), axis=0)
  middle = (
    jnp.take_along_axis(ordered, low[None], axis=0)
    + jnp.take_along_axis(ordered, high[None], axis=0)
  ) / 2
  far = jnp.where(kept, jnp.abs(x - middle), jnp.inf)
  near = jnp.argsort(jnp.argsort(far, axis=0), axis=0) < tail(most, x[0])[None]
  near = near & kept
  total = jnp.sum(jnp.where(near, x, 0.0), axis=0)
  return total / jnp.maximum(jnp.sum(near, axis=0), 1)


def _krum_order(distance, clients, bad: int):
  """The places [K] in which Krum chooses clients, one after another, of those
  that are left. distance, clients: as `_distances` gives them."""
  size = len(clients)

  def choose(place, found):
    left, order = found
    best = jnp.argmin(jnp.where(left, _scores(distance, left, bad), jnp.inf))
    # When nobody is left, nobody is chosen; its place is the last.
    now = jnp.where(left[best], place, order[best])
    return left.at[best].set(False), order.at[best].set(now)

  begun = clients, jnp.full(size, size)
  return jax.lax.fori_loop(0, size, choose, begun)[1]


def check(received: Received) -> None:
  """Checks updates: [K, ...], or [K, L, ...] where their cover is [K, L]."""
  for key, held in received.cover.items():
    chex.assert_tree_shape_prefix(received.update[key], held.shape)


def change(before, message: Message, weight, sender) -> Message:
  del sender
  moved = tree.subtract(message.update, before)
  return weighed(message, weight)._replace(update=moved)


def _by_coordinate(cut: Callable) -> Aggregator:
  """The mean of each coordinate without its `cut(count)` largest and as many
  smallest values."""

  def merge(before, received: Received) -> Tree:
    check(received)
    return {
      key: jax.tree.map(
        lambda x, y, held=received.cover[key] > 0: x + _trimmed(y, held, cut),
        value,
        received.update[key],
      )
      for key, value in before.items()
    }

  return Aggregator(change, 'stack', merge)


def _trimmed(x, held, cut: Callable):
  """x [K, ...] of those that held it, bool [K] or [K, L]."""
  count = jnp.sum(held, axis=0)
  low = tail(jnp.maximum(cut(count), 0), x[0])
  high = tail(count, x[0]) - low
  # Those that held nothing come last.
  ordered = jnp.sort(jnp.where(tail(held, x), x, jnp.inf), axis=0)
  place = tail(jnp.arange(len(x)), x)
  kept = (place >= low[None]) & (place < high[None])
  total = jnp.sum(jnp.where(kept, ordered, 0.0), axis=0)
  return total / jnp.maximum(high - low, 1)


def _krum_scores(values: Tree, weights: Tree, bad: int):
  """Of each client the sum of its distances to its nearest others [K]."""
  return _scores(*_distances(values, weights), bad)


def _distances(values: Tree, weights: Tree):
  """(mean squared distances of two clients over what both trained [K, K], who
  has sent anything, bool [K])."""
  distance, size = 0.0, 0.0
  clients = jnp.zeros((), bool)
  for key, value in values.items():
    held = (weights[key] > 0).astype(jnp.float32)
    held = held if held.ndim == 2 else held[:, None]  # [K, L or 1]
    clients = clients | (jnp.max(held, axis=1) > 0)
    both = held[:, None] * held[None]  # [K, K, L]
    for leaf in jax.tree.leaves(value):
      flat = leaf.reshape(*held.shape, -1).astype(jnp.float32)
      distance += jnp.sum(both * _squared_distances(flat), axis=-1)
      size += flat.shape[-1] * jnp.sum(both, axis=-1)
  mean = jnp.where(size > 0, distance / jnp.maximum(size, 1.0), _FAR)
  # Of squares that overflow, too: no score is NaN, which would be the least.
  return jnp.where(mean < _FAR, mean, _FAR), clients


def _scores(mean, clients, bad: int):
  """The scores of Krum [K] among `clients`."""
  others = clients[None] & ~jnp.eye(len(clients), dtype=bool)
  nearest = jnp.sort(jnp.where(others, mean, _FAR), axis=1)
  most = jnp.maximum(jnp.sum(clients) - bad - 2, 1)
  counted = jnp.arange(len(clients)) < most
  return jnp.sum(jnp.where(counted[None], nearest, 0.0), axis=1)


def _squared_distances(x):
  """||x_i - x_j||^2 of x [K, L, n] for all pairs: [K, K, L]."""
  product = jnp.einsum('iln,jln->ijl', x, x, precision='highest')
  own = jnp.sum(jnp.square(x), axis=-1)
  return jnp.maximum(own[:, None] + own[None] - 2 * product, 0.0)
