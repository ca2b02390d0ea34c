"""CMA-ES: a search that reads the order of values and nothing else.

The covariance matrix adaptation evolution strategy as in Hansen's tutorial
(arXiv 1604.00772, equations 37 to 47), without negative weights. Points are x =
m + sigma y with y ~ N(0, C); C is a matrix [n, n], or its diagonal [n] (sep-
CMA-ES, Ros and Hansen 2008), which learns faster by (n + 2) / 3.

A state is a tree of float32 arrays. sigma is there as its logarithm: so the
mean of states has the geometric mean of their sigmas.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.types import Tree

# Eigenvalues of C below this share of the largest are rounding.
FLOOR = 1e-7


class Shape(NamedTuple):
  """What is searched. size: n. diagonal: whether C is its diagonal alone."""

  size: int
  diagonal: bool = False


def usual_population(size: int) -> int:
  """lambda = 4 + 3 ln n."""
  return 4 + int(3 * math.log(size))


def begin(shape: Shape, sigma: float) -> Tree:
  """The state at the origin: m and both paths zero, C the identity."""
  n = shape.size
  identity = jnp.ones(n) if shape.diagonal else jnp.eye(n)
  return {
    'mean': jnp.zeros(n),
    'log_sigma': jnp.log(jnp.float32(sigma)),
    'covariance': identity,
    'path_sigma': jnp.zeros(n),
    'path_covariance': jnp.zeros(n),
    'generation': jnp.float32(0),
  }


def without_paths(state: Tree) -> Tree:
  """The state of a search that begins where this one is: m, sigma and C."""
  zero = jnp.zeros_like(state['mean'])
  return state | {
    'path_sigma': zero,
    'path_covariance': zero,
    'generation': jnp.zeros_like(state['generation']),
  }


def weights(population: int) -> np.ndarray:
  """Of the best half, best first, float32 [mu]; their sum is 1."""
  parents = population // 2
  ranks = np.arange(1, parents + 1)
  raw = np.log((population + 1) / 2) - np.log(ranks)
  return (raw / raw.sum()).astype(np.float32)


class Root(NamedTuple):
  """C as B D^2 B^T. basis: B [n, n]; None: the identity. lengths: D [n]."""

  basis: Any
  lengths: Any

  def stretched(self, drawn):
    """B D x of vectors [..., n]."""
    drawn = drawn * jnp.expand_dims(self.lengths, range(drawn.ndim - 1))
    return drawn if self.basis is None else drawn @ self.basis.T

  def whitened(self, y):
    """C^-1/2 y [n]."""
    if self.basis is None:
      return y / self.lengths
    return self.basis @ ((self.basis.T @ y) / self.lengths)


def root(shape: Shape, state: Tree) -> Root:
  """The root of C, whose eigenvalues rounding may have made negative."""
  c = state['covariance']
  if shape.diagonal:
    values, basis = c, None
  else:
    values, basis = jnp.linalg.eigh((c + c.T) / 2)
  least = jnp.maximum(FLOOR * jnp.max(values), 1e-30)
  return Root(basis, jnp.sqrt(jnp.maximum(values, least)))


def ask(shape: Shape, state: Tree, key, population: int):
  """(steps y [lambda, n] of a generation, the root of C)."""
  found = root(shape, state)
  drawn = jax.random.normal(key, (population, shape.size))
  return found.stretched(drawn), found


def points(state: Tree, steps):
  """The points m + sigma y [lambda, n]."""
  return state['mean'][None] + jnp.exp(state['log_sigma']) * steps


class Rates(NamedTuple):
  """How fast what is learned: see `rates`."""

  mass: Any  # mu_eff
  path_sigma: Any  # c_sigma
  damping: Any  # d_sigma
  path: Any  # c_c
  one: Any  # c_1
  parents: Any  # c_mu


def rates(shape: Shape, mass) -> Rates:
  """The usual rates for n and mu_eff = 1 / sum w^2, which may be traced."""
  n = shape.size
  fast = (n + 2) / 3 if shape.diagonal else 1.0
  path_sigma = (mass + 2) / (n + mass + 5)
  more = jnp.sqrt(jnp.maximum((mass - 1) / (n + 1), 0.0)) - 1
  one = jnp.minimum(1.0, fast * 2 / ((n + 1.3) ** 2 + mass))
  wide = fast * 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass)
  return Rates(
    mass,
    path_sigma,
    1 + path_sigma + 2 * jnp.maximum(0.0, more),
    (4 + mass / n) / (n + 4 + 2 * mass / n),
    one,
    jnp.minimum(1 - one, wide),
  )


def tell(shape: Shape, state: Tree, ranked, share, found: Root) -> Tree:
  """The state after a generation.

  Args:
    shape: of the search.
    state: before.
    ranked: the steps y [mu, n] of the parents, best first.
    share: their weights [mu], which add up to 1.
    found: the root of C.
  """
  n, c = shape.size, rates(shape, 1 / jnp.sum(jnp.square(share)))
  y = share @ ranked
  path = _blended(state['path_sigma'], c.path_sigma, c.mass, found.whitened(y))
  length = jnp.linalg.norm(path)
  usual = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
  grown = (c.path_sigma / c.damping) * (length / usual - 1)
  passed = state['generation'] + 1
  settled = jnp.sqrt(1 - (1 - c.path_sigma) ** (2 * passed))
  calm = length / settled < (1.4 + 2 / (n + 1)) * usual
  calm = calm.astype(jnp.float32)
  along = _blended(state['path_covariance'], c.path, c.mass, calm * y)
  if shape.diagonal:
    rank_one, rank_mu = jnp.square(along), share @ jnp.square(ranked)
  else:
    rank_one = jnp.outer(along, along)
    rank_mu = (ranked * share[:, None]).T @ ranked
  kept = 1 - c.one - c.parents + (1 - calm) * c.one * c.path * (2 - c.path)
  return {
    'mean': state['mean'] + jnp.exp(state['log_sigma']) * y,
    'log_sigma': state['log_sigma'] + grown,
    'covariance': kept * state['covariance']
    + c.one * rank_one
    + c.parents * rank_mu,
    'path_sigma': path,
    'path_covariance': along,
    'generation': passed,
  }


def _blended(path, rate, mass, new):
  """A path with a further step, of the variance that it had."""
  return (1 - rate) * path + jnp.sqrt(rate * (2 - rate) * mass) * new


def order(values):
  """Places of values [lambda] from the best, that is the least; what is not
  finite is last, and equal ones stay in order."""
  return jnp.argsort(jnp.where(jnp.isnan(values), jnp.inf, values), stable=True)
