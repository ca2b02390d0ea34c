"""What a matrix of scores says of a sequence of tasks.

R[i][j] is the score on task j after step i, b[j] that of the model before the
first. Each task counts the same, however many rows it has. The formulas are
those of Lopez-Paz and Ranzato (arXiv 1706.08840), Chaudhry et al. (arXiv
1801.10112; intransigence, and forgetting as the best earlier score less the
last) and Rebuffi et al. (arXiv 1611.07725; the average over steps). For tasks
that clients meet in orders of their own, task j is met first in step `first[j]`
by somebody: that this takes the place of j is ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FORMULAS = {
  'acc': 'ACC = mean_j R[T][j]',
  'aia': 'AIA = mean_i mean_(j met by i) R[i][j]',
  'forgetting': 'F = mean_(j<T) (max_(j<=l<T) R[l][j] - R[T][j])',
  'bwt': 'BWT = mean_(j<T) (R[T][j] - R[j][j])',
  'fwt': 'FWT = mean_(j>1) (R[j-1][j] - b[j])',
  'learning': 'learning accuracy = mean_j R[j][j]',
}


def scores(
  matrix, before: Sequence[float], first: Sequence[int] | None = None
) -> dict[str, float | None]:
  """The numbers of `FORMULAS`; None where no task counts.

  Args:
    matrix: R [S, T], of the steps that are over; of scores, the higher the
      better. Of losses, give their negatives.
    before: b [T].
    first: the step in which a task is met first, [T]; None: task j in step j.
  """
  r, b = np.asarray(matrix, float), np.asarray(before, float)
  steps, count = r.shape
  at = np.arange(count) if first is None else np.asarray(first)
  met = at < steps
  each = np.arange(count)[met]
  own = r[at[met], each]
  old = [j for j in each if at[j] < steps - 1]
  new = [j for j in each if at[j] > 0]
  best = [r[at[j] : steps - 1, j].max() for j in old]
  return {
    'acc': _mean(r[-1]),
    'aia': _mean([r[i, at <= i].mean() for i in range(steps)]),
    'forgetting': _mean([x - r[-1, j] for x, j in zip(best, old, strict=True)]),
    'bwt': _mean([r[-1, j] - r[at[j], j] for j in old]),
    'fwt': _mean([r[at[j] - 1, j] - b[j] for j in new]),
    'learning': _mean(own),
  }


def intransigence(matrix, joint, first: Sequence[int] | None = None):
  """What a method fails to learn of each task when it meets it: joint_j -
  R[j][j], [T]. joint: the scores on each task of a model that has all rows up
  to it, [T]."""
  r = np.asarray(matrix, float)
  at = np.arange(r.shape[1]) if first is None else np.asarray(first)
  return np.asarray(joint, float) - r[at, np.arange(r.shape[1])]


def sliding(values: Sequence[float], window: int) -> list[float]:
  """The mean of the last `window` values at each place."""
  found = np.asarray(values, float)
  return [
    float(found[max(0, i + 1 - window) : i + 1].mean())
    for i in range(len(found))
  ]


def _mean(values) -> float | None:
  values = np.asarray(values, float)
  values = values[np.isfinite(values)]
  return float(values.mean()) if len(values) else None
