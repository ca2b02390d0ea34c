"""Every random draw on the host, as a pure function of seeds and numbers."""

from __future__ import annotations

import numpy as np

from fedms_jax.core.streams import Stream


def generator(seed: int, stream: Stream, *words: int) -> np.random.Generator:
  """The generator of one draw."""
  return np.random.default_rng([seed, stream.number, *words])


_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
  """The output function of SplitMix64 (Steele et al., OOPSLA 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def state(*words: int | np.ndarray) -> np.ndarray:
  """A 64-bit state for each tuple of non-negative words, uint64 [n].

  Words are integers or int arrays [n]; each is mixed into all before it.
  """
  out = np.zeros(1, np.uint64)
  for word in words:
    word = np.atleast_1d(np.asarray(word)).astype(np.uint64)
    out = _mix((out ^ word) + _GAMMA)
  return out


def keys(states: np.ndarray, positions: np.ndarray) -> np.ndarray:
  """Number `positions` of the SplitMix64 sequences that start at `states`.

  Both have shape [n]. Unlike a generator object per client, this gives each
  client numbers of its own without a Python loop over clients.
  """
  return _mix(states + (positions.astype(np.uint64) + np.uint64(1)) * _GAMMA)
