"""Ranks said, not promoted: the axes along which one array repeats another.

`x + bias` of another rank is right, or a fault that nothing shows; the tests
raise on it.
"""

from __future__ import annotations


def lead(x, like):
  """x with axes of size one before its own, to the rank of `like`."""
  return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def tail(x, like):
  """x with axes of size one after its own, to the rank of `like`."""
  return x.reshape(x.shape + (1,) * (like.ndim - x.ndim))
