"""Statistics of the rows of a comparison: mean, spread, significance, costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedms_jax.report.runs import Row, Run

LEVEL = 0.05
_FEWEST_SEEDS = 5  # from which on seeds are the pairs of the test
_FEWEST_PAIRS = 6


class Measure(NamedTuple):
  """Mean and standard deviation (None of a single value) over seeds."""

  mean: float
  deviation: float | None


class Verdict(NamedTuple):
  """Whether a row is worse than the best one.

  unit: what the pairs are, seeds or clients. p: of a one-sided paired t-test;
  None: too few pairs to say.
  """

  unit: str
  pairs: int
  p: float | None

  @property
  def worse(self) -> bool:
    return self.p is not None and self.p < LEVEL


def measure(values: Sequence[float | None]) -> Measure | None:
  """None if a value is missing."""
  known = [value for value in values if value is not None]
  return spread(known) if known and len(known) == len(values) else None


def spread(values: Sequence[float]) -> Measure:
  """Mean and deviation of at least one value."""
  mean = float(np.mean(values))
  if len(values) == 1:
    return Measure(mean, None)
  return Measure(mean, float(np.std(values, ddof=1)))


def score(row: Row) -> float:
  """What rows are ranked by: clients' own test rows, the served model."""
  return float(np.mean([run.score for run in row.runs]))


def volume(run: Run) -> float:
  """Bytes that all clients sent and received."""
  return run.summary['total']['bytes_up'] + run.summary['total']['bytes_down']


def paired(best: Sequence[float], other: Sequence[float]) -> float:
  """p of the hypothesis that `best` is better in the mean, against that it is
  not: the paired one-sided t-test.

  If all differences are equal there is no spread to judge by: p is then 0, or
  1 if they are not above 0.
  """
  from scipy import stats  # lazy: half a second

  difference = np.subtract(best, other, dtype=np.float64)
  if np.ptp(difference) == 0:
    return 0.0 if difference[0] > 0 else 1.0
  found = stats.ttest_1samp(difference, 0.0, alternative='greater')
  # SciPy makes the class of the result while it runs.
  return float(found.pvalue)  # pyright: ignore[reportAttributeAccessIssue]


def verdict(best: Row, other: Row) -> Verdict:
  """Tests a row against the best one.

  From five seeds on the pairs are seeds. With fewer the pairs are clients of
  all seeds: the answer then holds for these clients and training runs.
  """
  mine = {run.seed: run for run in best.runs}
  both = [(mine[run.seed], run) for run in other.runs if run.seed in mine]
  if len(both) >= _FEWEST_SEEDS:
    unit = 'seeds'
    pairs = [(a.score, b.score) for a, b in both]
  else:
    unit = 'clients'
    pairs = [
      (x, y)
      for a, b in both
      for x, y in zip(
        a.per_client(a.served), b.per_client(b.served), strict=False
      )
      if x is not None and y is not None
    ]
  if len(pairs) < _FEWEST_PAIRS:
    return Verdict(unit, len(pairs), None)
  first, second = zip(*pairs, strict=True)
  return Verdict(unit, len(pairs), paired(first, second))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
  """The points (cost, score) that no other one beats: none costs less or the
  same and scores more or the same, and differs. By rising cost."""
  order = sorted(
    range(len(points)), key=lambda i: (points[i][0], -points[i][1])
  )
  found, most = [], -math.inf
  for i in order:
    twin = found and points[found[-1]] == points[i]
    if points[i][1] > most or twin:
      found.append(i)
      most = points[i][1]
  return found


class Difference(NamedTuple):
  """A paired difference over seeds: its mean, the confidence interval from low
  to high, and p of the two-sided paired t-test. Of one pair, or where nothing
  spreads, p is None and the interval has no width."""

  mean: float
  low: float
  high: float
  p: float | None


def difference(
  first: Sequence[float], second: Sequence[float], level: float = LEVEL
) -> Difference:
  """How much the first is above the second: paired, with a confidence interval
  of 1 - level by Student's t."""
  from scipy import stats  # lazy: half a second

  found = np.subtract(first, second, dtype=np.float64)
  mean, count = float(found.mean()), len(found)
  if count < 2 or np.ptp(found) == 0:
    return Difference(mean, mean, mean, None)
  error = float(found.std(ddof=1)) / math.sqrt(count)
  reach = error * float(stats.t.ppf(1 - level / 2, count - 1))
  p = 2 * float(stats.t.sf(abs(mean) / error, count - 1))
  return Difference(mean, mean - reach, mean + reach, p)


def holm(values: Sequence[float | None]) -> list[float | None]:
  """Several p by Holm's step-down rule (Scandinavian Journal of Statistics 6,
  1979), which keeps the chance of any false alarm under the level: what is
  then under the level is significant. None stays, and does not count."""
  known = [i for i, p in enumerate(values) if p is not None]
  order = sorted(known, key=lambda i: values[i] or 0.0)
  found: list[float | None] = [None] * len(values)
  most = 0.0
  for place, i in enumerate(order):
    most = max(most, min(1.0, (len(order) - place) * (values[i] or 0.0)))
    found[i] = most
  return found


def volume_under(points: Sequence[tuple[float, float]]) -> float:
  """The hypervolume of points of two scores, of which more is better: the area
  of what some point is at least as good as in both, from (0, 0)."""
  area, height = 0.0, 0.0
  for x, y in sorted(points, reverse=True):
    if y > height:
      area += x * (y - height)
      height = y
  return area


def undominated(points: Sequence[Sequence[float]]) -> list[int]:
  """The points that no other one beats: none is as high in every value, and
  differs. Values are such that more is better."""

  def beats(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b

  return [
    i for i, b in enumerate(points) if not any(beats(a, b) for a in points)
  ]
