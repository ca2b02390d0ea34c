"""Correlated noise of banded matrices (DP-FTRL by matrix factorization).

The sums of the rounds are released with noise C^-1 z instead of z: C is lower
triangular, banded and Toeplitz, so that a round's noise takes back some of that
of the rounds before, and the sum of all rounds has less. A client that takes
part in rounds at least as far apart as C has bands meets its columns without
overlap, so that each of them costs what a round of independent noise does, if
the column has unit norm (arXiv 2306.08153).
"""

from __future__ import annotations

import functools

import numpy as np

_DIGITS = 9  # so that another machine's optimizer finds the same numbers


def squared_errors(column: np.ndarray, rounds: int) -> np.ndarray:
  """Variances of the noise of the running sums after 1 to T rounds, [T], with
  unit noise z: ||row t of A C^-1||^2, where A adds up.

  column: the bands of C, [b].
  """
  inverse = np.zeros(rounds)
  for t in range(rounds):
    past = inverse[max(0, t - len(column) + 1) : t][::-1]
    first = float(t == 0)
    inverse[t] = (first - column[1 : len(past) + 1] @ past) / column[0]
  return np.cumsum(np.cumsum(inverse) ** 2)


def prefix(bands: int) -> np.ndarray:
  """The first bands of the square root of A: c_k = c_(k-1) (2k - 1) / (2k),
  which is the best without limit of bands."""
  k = np.arange(1, bands)
  return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


@functools.lru_cache(maxsize=64)
def coefficients(rounds: int, bands: int) -> tuple[float, ...]:
  """The column of C [b] of unit norm with the least mean error over T rounds.

  It is found by BFGS from `prefix`; the mean is that of `squared_errors`.
  """
  bands = max(1, min(bands, rounds))
  if bands == 1:
    return (1.0,)
  from scipy import optimize  # lazy: for correlated noise alone

  def loss(tail: np.ndarray) -> float:
    column = np.concatenate([[1.0], tail])
    return float(column @ column * squared_errors(column, rounds).mean())

  start = prefix(bands)[1:]
  found = optimize.minimize(loss, start, method='L-BFGS-B', tol=1e-12).x
  column = np.concatenate([[1.0], found])
  column = column / np.linalg.norm(column)
  return tuple(np.round(column, _DIGITS).tolist())
