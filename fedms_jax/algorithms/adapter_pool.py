"""A pool of adapters that clients made: the server's memory of past tasks.

It is {'adapters' [P, ...], 'held' [P], 'logits' [P], 'clusters' [P]}, newest
first: adapters with their heads, which places are taken, float32 0 or 1, a
number that weighs each within its cluster, and the cluster, int32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedms_jax.core import tree
from fedms_jax.core.types import Tree

_STEPS = 10  # of k-means
_NEVER = -1e30  # a logit that weighs nothing


def empty(size: int, one: Tree) -> Tree:
  """A pool for `size` adapters like `one`, each in a cluster of its own."""
  return {
    'adapters': jax.tree.map(lambda x: jnp.zeros((size, *x.shape)), one),
    'held': jnp.zeros(size),
    'logits': jnp.zeros(size),
    'clusters': jnp.arange(size, dtype=jnp.int32),
  }


def renewed(pool: Tree, made: Tree, sent) -> Tree:
  """The pool with the adapters `made` [K, ...] before what it had, of which
  the oldest are dropped. sent: bool [K], which of them count."""
  size = len(pool['held'])
  held = jnp.concatenate([sent, pool['held'] > 0])
  order = jnp.argsort(~held, stable=True)[:size]

  def kept(new, old):
    return jnp.concatenate([new, old])[order]

  return {
    'adapters': jax.tree.map(kept, made, pool['adapters']),
    'held': held[order].astype(jnp.float32),
    'logits': kept(jnp.zeros(len(sent)), pool['logits']),
    'clusters': pool['clusters'],
  }


def grouped(pool: Tree, count: int) -> Tree:
  """The pool with its adapters in at most `count` clusters: k-means of their
  directions, which begins with the newest and goes on with the farthest."""
  held = pool['held'] > 0
  flat = jnp.concatenate(
    [x.reshape(len(held), -1) for x in jax.tree.leaves(pool['adapters'])], 1
  )
  length = jnp.linalg.norm(flat, axis=1, keepdims=True)
  points = flat / jnp.maximum(length, 1e-12)
  return pool | {'clusters': k_means(points, held, count)[0]}


def k_means(points, held, count: int):
  """(clusters int32 [P], their centers [count, D]) of points [P, D]; held:
  which of them exist."""

  def distances(centers):
    pairs = points[:, None, :] - centers[None, :, :]
    return jnp.sum(jnp.square(pairs), axis=-1)

  def farthest(centers, number):
    there = (jnp.arange(count) < number)[None, :]
    nearest = jnp.min(jnp.where(there, distances(centers), jnp.inf), axis=1)
    chosen = jnp.argmax(jnp.where(held, nearest, -1.0))
    return centers.at[number].set(points[chosen]), None

  def moved(centers, _):
    nearest = jnp.argmin(distances(centers), axis=1)
    mine = (nearest[:, None] == jnp.arange(count)[None, :]) & held[:, None]
    sums = mine.astype(jnp.float32).T @ points
    sizes = jnp.sum(mine, axis=0)[:, None]
    means = sums / jnp.maximum(sizes, 1).astype(jnp.float32)
    return jnp.where(sizes > 0, means, centers), None

  centers = jnp.zeros((count, points.shape[1])).at[0].set(points[0])
  centers, _ = jax.lax.scan(farthest, centers, jnp.arange(1, count))
  centers, _ = jax.lax.scan(moved, centers, None, _STEPS)
  return jnp.argmin(distances(centers), axis=1).astype(jnp.int32), centers


def weights(pool: Tree, outer, inner):
  """alpha_c beta_p of each adapter p of a cluster c, [P], sum 1; all 0 of an
  empty pool.

  outer: logits [C] of clusters, whose softmax over those that have any adapter
  is alpha. inner: logits [P], whose softmax within each cluster is beta.
  """
  held, clusters = pool['held'] > 0, pool['clusters']
  same = (clusters[:, None] == clusters[None, :]) & held[None, :]
  total = jax.nn.logsumexp(jnp.where(same, inner[None, :], _NEVER), axis=1)
  beta = jnp.exp(jnp.where(held, inner - total, _NEVER))
  of_cluster = clusters[:, None] == jnp.arange(len(outer))[None, :]
  some = jnp.any(of_cluster & held[:, None], axis=0)
  alpha = jax.nn.softmax(jnp.where(some, outer, _NEVER))
  return jnp.where(held, alpha[clusters] * beta, 0.0)


def combined(pool: Tree, share) -> Tree:
  """The sum of the adapters, each times its share [P]."""
  return jax.tree.map(
    lambda x: jnp.tensordot(share, x, axes=1), pool['adapters']
  )


def nbytes(pool: Tree) -> int:
  """Bytes of what a client is sent of it; works on shapes, too."""
  return tree.nbytes(pool)
