"""Which blocks a cohort trains: of each client so many as it may.

A pick is a pure function of the host; what it draws follows from the seed, the
round and the clients' numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import ActiveSet

# Where: (depths of the clients of a cohort, round, their ids) -> their sets.
Pick = Callable[[Sequence[int], int, Sequence[int]], list[ActiveSet]]


def each(one: Callable[[int, int, int], ActiveSet]) -> Pick:
  """The pick that gives a client the set `one` (depth, round, client) does,
  whoever else is in the cohort."""

  def pick(depths, t, clients):
    pairs = zip(depths, clients, strict=True)
    return [one(depth, t, client) for depth, client in pairs]

  return pick


def in_order(blocks_in_order: Sequence[int]) -> Pick:
  """The first blocks of a fixed order, the same for all."""
  rank = {block: i for i, block in enumerate(blocks_in_order)}

  def one(depth, t, client):
    del t, client
    return tuple(rank[b] < depth for b in range(len(rank)))

  return each(one)


def allocation(blocks: int, seed: int, weights: Sequence[float]) -> Pick:
  """Random blocks for each client and round (FedRA, arXiv 2311.11227).

  weights: how likely each block is, relative to the others [L]; see `shape`.
  """
  likely = np.asarray(weights, np.float64)
  if not (np.isfinite(likely).all() and (likely > 0).all()):
    likely = np.ones(blocks)  # such as importance before anything has moved
  likely = likely / likely.sum()

  def one(depth, t, client):
    rng = np.random.default_rng([seed, Stream.ALLOCATION.number, t, client])
    chosen = rng.choice(blocks, depth, replace=False, p=likely)
    return tuple(b in chosen for b in range(blocks))

  return each(one)


def balanced(importance: Sequence[float], balance: float, seed: int) -> Pick:
  """Important blocks, dealt evenly over the cohort (after F3OCUS, arXiv
  2411.11912).

  Maximizes, over all ways to give each client as many blocks as it can train,

    sum_b w_b u_b - balance / 2 * sum_b u_b^2,

  with u_b the share of the cohort that trains block b and w_b its importance
  over the largest one. The sum of u is given, so the second term is the
  variance of how often blocks are used. The clients choose one after another:
  each takes the blocks of largest w_b - balance * (share of the cohort that
  has b already), which reaches the maximum in whatever order they come.
  Balance 0 is the plain order by importance.

  The paper scores blocks for each client and round by the largest eigenvalue
  of a layer's tangent kernel, and searches at the server for sets that are
  good in both aims. Here one importance [L], the norm of a first gradient,
  serves all clients and rounds, and the two aims are one sum.

  Those of most blocks choose first; among equals it is drawn anew in each
  round. So what is chosen follows from the depths alone: the sets of a round
  come back in others, and few programs are compiled.
  """
  weights = np.asarray(importance, np.float64)
  if not (np.isfinite(weights).all() and weights.max() > 0):
    weights = np.ones(len(weights))  # such as before anything has moved
  weights, blocks = weights / weights.max(), np.arange(len(weights))

  def pick(depths, t, clients):
    draws = [
      np.random.default_rng([seed, Stream.TURNS.number, t, client]).random()
      for client in clients
    ]
    used = np.zeros(len(blocks))
    found: list[ActiveSet] = [()] * len(clients)
    for i in np.lexsort((np.asarray(draws), -np.asarray(depths))):
      gains = weights - balance * used / len(clients)
      # Ties go to the output's side, as in `order`.
      chosen = np.lexsort((-blocks, -gains))[: depths[i]]
      used[chosen] += 1
      found[i] = tuple(b in chosen for b in blocks.tolist())
    return found

  return pick


def shape(name: str, blocks: int) -> list[float]:
  """How likely each block is in an `allocation` [L].

  Geometric patterns of heterogeneous layer allocation (Fed-HeLLo, arXiv
  2506.12213): `rising` toward the output, `falling`, `bottleneck` (most at
  both ends), or `uniform`.
  """
  rising = np.arange(1.0, blocks + 1)
  return {
    'uniform': np.ones(blocks),
    'rising': rising,
    'falling': rising[::-1],
    'bottleneck': np.maximum(rising, rising[::-1]),
  }[name].tolist()


def window(blocks: int) -> Pick:
  """All but a window of consecutive blocks, which slides on by its own width
  each round, around the end (FFDAPT, in FDAPT, arXiv 2307.06933)."""

  def one(depth, t, client):
    del client
    width = blocks - depth
    frozen = {(t * width + i) % blocks for i in range(width)}
    return tuple(b not in frozen for b in range(blocks))

  return each(one)


def dropout(blocks: int, seed: int) -> Pick:
  """Each block with the chance depth / L, drawn for each client and round,
  and at least one (stochastic layer dropout, after DropPEFT, arXiv
  2503.10217; here a dropped block runs frozen, it is not skipped)."""

  def one(depth, t, client):
    rng = np.random.default_rng([seed, Stream.DROPOUT.number, t, client])
    draws = rng.random(blocks)
    kept = (draws < depth / blocks) | (draws == draws.min())
    return tuple(bool(k) for k in kept)

  return each(one)


def order(name: str, blocks: int, seed: int, importance=None):
  """Block numbers in the order of activation: int tuple [L].

  importance: one score per block, needed for `importance` only.
  """
  if name == 'top_down':
    return tuple(range(blocks - 1, -1, -1))
  if name == 'bottom_up':
    return tuple(range(blocks))
  if name == 'random':
    rng = np.random.default_rng([seed, Stream.ORDER.number])
    return tuple(int(b) for b in rng.permutation(blocks))
  if importance is None:
    raise ValueError('schedule.order=importance needs a score per block.')
  # Ties go to the block nearer the output, where backpropagation ends sooner.
  ranked = np.lexsort((-np.arange(blocks), -np.asarray(importance)))
  return tuple(int(b) for b in ranked)
