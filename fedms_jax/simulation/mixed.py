"""Scores of each client's model on a mixed stream of own and foreign rows.

A device meets inputs of its own kind and of others'. The stream of a client is
rows of its own test set and, with the stated share, rows of the pooled test set
(of which its own are a small part); nothing says which is which. Ours.

A model answers each row by itself, whatever came before it, and so does a gate
that weighs experts row by row: so the mean over the stream is the mean over own
rows and the mean over pooled ones, in these shares, exactly, and no row is
looked at twice. A model that compared the rows of a batch would need the stream
itself; `check` refuses it. Measures that are no mean, such as a calibration
error, are made of sums over rows, which mix in the same way, and only then
become a number: that of the mixture is not the mixture of the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core import metrics
from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import Task
from fedms_jax.simulation.scores import Scores

MOST_KEPT = 1 << 14  # numbers that a metric may be made of, of each client


class Stream(NamedTuple):
  """Whose stream it is. share: of rows that are pooled ones. readers: places
  of clients whose models have read these, among all clients evaluated; None:
  one has, and stands for all. rows: own test rows of all [n]; pooled: how many
  there are."""

  share: float
  readers: np.ndarray | None
  rows: np.ndarray
  pooled: int


def check(task: Task) -> None:
  """Raises `ValueError` for a task whose rows are not answered one by one."""
  if task.within_batch:
    raise ValueError(
      f'`Scope.mixed` takes each row by itself, and {task.name} compares the '
      'rows of a batch. Leave it out.'
    )


def kept(asked: Sequence[Metric]) -> frozenset[str]:
  """Names of the metrics whose sums are to be kept of each client."""
  return frozenset(
    m.name for m in asked if not m.table and math.prod(m.shape) <= MOST_KEPT
  )


def add(
  found: dict[str, Any],
  stream: Stream,
  asked: Sequence[Metric],
  own: Scores,
  whole: Scores,
) -> dict[str, np.ndarray]:
  """Adds to an evaluation 'mixed_share'; of each model 'mixed', the mean over
  clients, 'mixed_worst_decile' and 'mixed_loss'; of each metric and model
  'mixed', None where its sums are too many to keep.

  Returns:
    'mixed/<model>': the score of each client [n], NaN of those whose models
    have not read the pooled rows.
  """
  found['mixed_share'], each = stream.share, {}
  for name, told in found['models'].items():
    score, loss = (
      means(stream, own.sums[key], whole.sums[key].sum(1))
      for key in (f'score/{name}', f'loss/{name}')
    )
    known = score[np.isfinite(score)]
    told['mixed'] = float(known.mean())
    told['mixed_worst_decile'] = metrics.worst_decile(known)
    told['mixed_loss'] = float(loss[np.isfinite(loss)].mean())
    each[f'mixed/{name}'] = score
  for metric in asked:
    if metric.table:
      continue
    for name, told in found['metrics'].get(metric.name, {}).items():
      told['mixed'] = _finished(stream, metric, own, whole, name)
  return each


def means(stream: Stream, own, pooled) -> np.ndarray:
  """Of each client evaluated the mean over its stream, [n]; of sums over own
  rows [n, 2] and over pooled ones [r, 2] of those who read them."""
  return _mixed(stream, metrics.mean(own), metrics.mean(pooled))


def _mixed(stream: Stream, mine: np.ndarray, all_of_them: np.ndarray):
  """Of each client [n] what it has of its own [n] and of pooled rows [r]."""
  pooled = np.full(mine.shape, np.nan)
  if stream.readers is None:
    pooled[:] = all_of_them[0]
  else:
    pooled[stream.readers] = all_of_them
  return (1.0 - stream.share) * mine + stream.share * pooled


def _finished(
  stream: Stream, metric: Metric, own: Scores, whole: Scores, name: str
) -> float | None:
  """The mean over clients of a metric of their streams."""
  key = (metric.name, name)
  if key not in own.kept:
    return None
  # By rows, so that shares are those of rows, and then for as many as there
  # are, for some measures count.
  wide = (-1,) + (1,) * len(metric.shape)
  mine = own.kept[key] / np.maximum(stream.rows, 1).reshape(wide)
  mixed = _mixed(stream, mine, whole.kept[key] / stream.pooled)
  mixed *= (stream.rows + stream.pooled).reshape(wide)
  read = np.isfinite(mixed.reshape(len(mixed), -1)).all(1) & (stream.rows > 0)
  values = metrics.finished(metric, mixed[read])
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else None
