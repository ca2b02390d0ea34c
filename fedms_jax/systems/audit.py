"""What can be told of a run's clients from what it has released: lower bounds
on epsilon, and how well members are told from others.

Scores are of canaries, or of rows: the higher, the more likely in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize, stats

_MOST = 100.0  # no bound is larger


def one_run(
  canaries: int,
  guesses: int,
  right: int,
  delta: float,
  significance: float = 0.05,
) -> float:
  """The lower bound on epsilon that one run gives (arXiv 2305.08846, theorem
  5.2): with this confidence no mechanism of a smaller one lets so many guesses
  be right.

  Args:
    canaries: m, each in with the chance 1/2, by itself.
    guesses: r, on how many of them a guess was made.
    right: v, how many guesses were right.
    delta: of the mechanism.
    significance: the chance of a bound that is wrong.

  Returns:
    The largest epsilon, at least 0, with p(epsilon) <= significance.

  Raises:
    ValueError: the numbers do not fit each other.
  """
  if not 0 <= right <= guesses <= canaries:
    raise ValueError(
      f'`right`={right}, `guesses`={guesses} and `canaries`={canaries} are not '
      'in this order. Pass a part of a part.'
    )

  def value(epsilon: float) -> float:
    chance = 1 / (1 + math.exp(-epsilon))
    # tail[i]: P[Bin >= right - i]
    tail = stats.binom.sf(right - np.arange(right + 1) - 1, guesses, chance)
    more = (tail[1:] - tail[0]) / np.arange(1, right + 1)
    alpha = max(float(more.max(initial=0.0)), 0.0)
    return float(tail[0]) + 2 * canaries * delta * alpha

  if value(0.0) > significance:
    return 0.0
  if value(_MOST) <= significance:
    return _MOST
  return _root(lambda e: value(e) - significance)


def one_run_of(
  scores: np.ndarray,
  included: np.ndarray,
  delta: float,
  significance: float = 0.05,
) -> tuple[float, int, int]:
  """(the bound of `one_run`, guesses, of which are right) of canaries' scores
  [m] and whether they were in, bool [m].

  The half of the guesses with the highest scores says in, the half with the
  lowest out. Numbers of guesses of m/8, m/4, m/2 and m are tried, each at a
  fourth of the significance.
  """
  m = len(scores)
  order = np.argsort(scores, kind='stable')
  tried = sorted({max(2, m // k) // 2 * 2 for k in (1, 2, 4, 8)})
  found = []
  for guesses in tried:
    half = guesses // 2
    right = int(included[order[m - half :]].sum())
    right += int((~included[order[:half]]).sum())
    bound = one_run(m, guesses, right, delta, significance / len(tried))
    found.append((bound, guesses, right))
  return max(found)


def gaussian(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
  """An estimate of epsilon, no bound: scores of canaries that were in and of
  such that were not, as two Gaussians of the spread of the latter (after arXiv
  2302.03098, which compares cosines of random vectors)."""
  spread = float(np.std(outside, ddof=1))
  apart = float(np.mean(inside) - np.mean(outside))
  if apart <= 0:
    return 0.0
  return gdp_epsilon(apart / max(spread, 1e-30), delta)


def gdp_epsilon(mu: float, delta: float) -> float:
  """epsilon of two Gaussians mu standard deviations apart (arXiv 1905.02383,
  corollary 1); at most 100."""

  def excess(epsilon: float) -> float:
    a = stats.norm.cdf(-epsilon / mu + mu / 2)
    b = stats.norm.logcdf(-epsilon / mu - mu / 2)
    return float(a - math.exp(epsilon + b)) - delta

  if excess(0.0) <= 0:
    return 0.0
  if excess(_MOST) >= 0:
    return _MOST
  return _root(excess)


def _root(function: Callable[[float], float]) -> float:
  """Where it changes its sign, between 0 and `_MOST`."""
  found: Any = optimize.brentq(function, 0.0, _MOST)
  return float(found)


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
  """The chance that one that was in has a higher score than one that was not,
  ties half."""
  ranks = stats.rankdata(np.concatenate([inside, outside]))
  n, m = len(inside), len(outside)
  return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def true_positives(
  inside: np.ndarray, outside: np.ndarray, rate: float
) -> float:
  """The share of those that were in above a threshold over which at most the
  share `rate` of the others is."""
  ordered = np.sort(outside)[::-1]
  threshold = ordered[min(math.floor(rate * len(ordered)), len(ordered) - 1)]
  return float(np.mean(inside > threshold))


def lira(phi: np.ndarray, member: np.ndarray) -> np.ndarray:
  """Scores of LiRA (arXiv 2112.03570, alg. 1): log N(phi; in) - log N(phi;
  out), of each run against all others.

  Args:
    phi: [n, M], log odds of the true label of M rows in n runs.
    member: bool [n, M], whether a run has trained on a row.

  Returns:
    [n, M]; NaN of a row that fewer than 2 other runs have, or have not, trained
    on. Below 64 runs the two spreads are of all rows together, as the paper
    has it. As many runs are looked at on either side (ours).
  """
  runs = len(phi)
  out = np.full(phi.shape, np.nan)
  for run in range(runs):
    others = (np.arange(runs) != run)[:, None]
    held = [others & member, others & ~member]
    # As many on either side: a center of fewer runs is farther off, and that
    # alone would tell who is in.
    most = np.minimum(held[0].sum(0), held[1].sum(0))
    logs = []
    for side in held:
      some = side & (np.cumsum(side, axis=0) <= most[None])
      center, spread = _fitted(phi, some, most < 2)
      logs.append(stats.norm.logpdf(phi[run], center, spread))
    out[run] = np.where(most < 2, np.nan, logs[0] - logs[1])
  return out


def _fitted(phi: np.ndarray, held: np.ndarray, few: np.ndarray):
  """(centers, spreads) [M] of what the runs that are held [n, M] say; of rows
  that have too `few` of them, anything."""
  values = np.where(held, phi, np.nan)
  values[:, few] = 0.0
  center = np.nanmedian(values, axis=0)
  squares = (values - center[None]) ** 2
  spread = np.nanmean(squares, axis=0)
  if len(phi) < 64 and not few.all():
    spread = np.full_like(spread, np.nanmean(squares[:, ~few]))
  return center, np.sqrt(np.maximum(spread, 1e-12))
