"""Whole numbers of a message: clipped, rounded by chance, with discrete noise.

The noise of a client is of a Skellam distribution, the difference of two
Poisson ones: the sum over clients is of one, too (Agarwal et al., The Skellam
mechanism, arXiv 2110.04995), so that each adds a part of what all need, and
nobody ever has the sum without noise.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core import tree
from fedms_jax.core.types import Tree

_TRIES = 8  # of roundings whose norm may be too large
MOST = 4096.0  # largest standard deviation of a client's noise, in steps
_TAIL = 9.0  # standard deviations that a table reaches


class Noise(NamedTuple):
  """Noise that all clients of a round make together.

  total: its standard deviation over the largest L2 norm of a message. least:
  clients of which the round has at least so many; each adds 1 / least of the
  variance.
  """

  total: float
  least: int

  def deviation(self, levels: int) -> float:
    """Of one client, in steps of `levels` to the norm."""
    return self.total * levels / math.sqrt(self.least)


def check(noise: Noise, levels: int) -> None:
  """Raises `ValueError` for noise whose table would be too long."""
  found = noise.deviation(levels)
  if found > MOST:
    bits = math.floor(math.log2(MOST * math.sqrt(noise.least) / noise.total))
    raise ValueError(
      f"a client's noise of {found:.0f} steps is too wide for its table; "
      f'allowed: {MOST:.0f}. Lower `Secure.bits` to {bits + 1}.'
    )


def whole(values: Tree, levels: int, key, noise: Noise | None = None):
  """(whole numbers int32, how many values were out of range) of values that
  were in [-1, 1]; with noise, of values of an L2 norm of at most 1.

  Rounded is by chance, so that the mean is the value. With noise the norm of
  the rounded message is at most `levels`, and so is its sensitivity: values are
  scaled down as far as rounding may add to them (that paper's section 4.1, and
  Kairouz et al., arXiv 2102.06387, proposition 22), rounding is tried again
  where it is too large, and in the end is towards zero.
  """
  draws, own = jax.random.split(key)
  if noise is None:
    outside = sum(
      (jnp.sum(jnp.abs(x) > 1.0) for x in jax.tree.leaves(values)),
      start=jnp.int32(0),
    )
    return _rounded(values, levels, draws), outside.astype(jnp.float32)
  norm = jnp.sqrt(tree.squared_norm(values))
  factor = inside(tree.size(values), levels) / levels
  fitting = jnp.minimum(1.0, 1.0 / jnp.maximum(norm, 1e-30)) * factor
  values = tree.scale(values, jnp.where(jnp.isfinite(norm), fitting, 0.0))
  found = _bounded(values, levels, draws)
  leaves, structure = jax.tree.flatten(found)
  keys = jax.random.split(own, len(leaves) or 1)
  deviation = noise.deviation(levels)
  leaves = [
    x + skellam(k, x.shape, deviation)
    for x, k in zip(leaves, keys, strict=False)
  ]
  return jax.tree.unflatten(structure, leaves), jnp.float32(0)


def inside(size: int, levels: int) -> float:
  """The norm to which a message of so many numbers is scaled, in steps, so that
  its rounding has a norm of at most `levels` with the chance 1 - e^(-1/2) or
  more.

  Raises:
    ValueError: rounding would be most of the message.
  """
  sure = levels - math.sqrt(size)
  rest = levels**2 - size / 4 - math.sqrt(size) / 2
  likely = (math.sqrt(1 + 4 * rest) - 1) / 2 if rest > 0 else 0.0
  found = max(sure, likely)
  if found < levels / 2:
    bits = math.ceil(math.log2(math.sqrt(size))) + 2
    raise ValueError(
      f'rounding {size:,} numbers to {levels} steps would add more to a '
      f'message than is in it. Raise `Secure.bits` to {bits}.'
    )
  return found


def _rounded(values: Tree, levels: int, key) -> Tree:
  leaves, structure = jax.tree.flatten(values)
  keys = jax.random.split(key, len(leaves) or 1)

  def one(x, key):
    x = jnp.nan_to_num(jnp.clip(x, -1.0, 1.0)) * levels
    low = jnp.floor(x)
    up = jax.random.uniform(key, x.shape) < x - low
    return (low + up).astype(jnp.int32)

  found = [one(x, k) for x, k in zip(leaves, keys, strict=False)]
  return jax.tree.unflatten(structure, found)


def _bounded(values: Tree, levels: int, key) -> Tree:
  """Rounded, with a norm of at most `levels`."""

  def small(numbers: Tree):
    return _fits(numbers, levels)

  toward = jax.tree.map(
    lambda x: jnp.trunc(x * levels).astype(jnp.int32), values
  )

  def again(number, found):
    new = _rounded(values, levels, jax.random.fold_in(key, number))
    done, kept = found
    take = ~done & small(new)
    return done | take, tree.where(take, new, kept)

  return jax.lax.fori_loop(0, _TRIES, again, (jnp.bool_(False), toward))[1]


def _fits(numbers: Tree, levels: int):
  """Whether an L2 norm is at most `levels`; where float32 is not sure of it, it
  is not."""
  square = tree.squared_norm(numbers)
  return square * (1 + 1e-4) <= float(levels) ** 2


@functools.lru_cache(maxsize=16)
def table(deviation: float) -> tuple[int, np.ndarray]:
  """(the least value, uint32 thresholds): a uniform uint32 that is at least so
  many thresholds is that many over the least value. The distribution function
  is exact to 2^-32."""
  from scipy import special  # lazy: for noise alone

  reach = math.ceil(_TAIL * deviation) + 8
  places = np.arange(-reach, reach + 1)
  chances = special.ive(np.abs(places), deviation**2)
  below = np.cumsum(chances) / chances.sum()
  return -reach, np.minimum(below * 2.0**32, 2**32 - 1).astype(np.uint32)


def skellam(key, shape, deviation: float):
  """Skellam draws of mean 0 and this standard deviation, int32."""
  least, thresholds = table(deviation)
  drawn = jax.random.bits(key, shape, jnp.uint32)
  found = jnp.searchsorted(jnp.asarray(thresholds), drawn, side='right')
  return jnp.minimum(found, len(thresholds) - 1).astype(jnp.int32) + least
