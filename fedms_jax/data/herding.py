"""Herding: which rows of a class stand for it best.

A row is taken so that the mean of those taken comes as near as it can to the
mean of all, then the next (iCaRL, arXiv 1611.07725, algorithm 4; Welling, ICML
2009). So whoever keeps fewer rows keeps the first ones.
"""

from __future__ import annotations

import numpy as np

from fedms_jax.core.types import Federation
from fedms_jax.data import tasks
from fedms_jax.data.tasks import RANK, Tasks

_LAST = np.iinfo(np.int32).max


def order(features: np.ndarray, most: int) -> np.ndarray:
  """The first rows to keep, int64 [min(n, most)], of rows with features [n, D],
  whose lengths do not matter."""
  x = np.asarray(features, np.float64)
  x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
  mean, total = x.mean(axis=0), np.zeros(x.shape[1])
  free, out = np.ones(len(x), bool), []
  for count in range(1, min(len(x), most) + 1):
    gaps = np.square(mean - (total + x) / count).sum(axis=1)
    best = int(np.where(free, gaps, np.inf).argmin())
    free[best], total = False, total + x[best]
    out.append(best)
  return np.asarray(out, np.int64)


def ranked(
  found: Tasks, data: Federation, features: np.ndarray, most: int
) -> Federation:
  """The federation with the column `RANK`, int32 [M]: the place of a training
  row among its client's rows of its class, or of its task where tasks share
  their classes. Those that a client keeps none of come last.

  features: of the training rows, in their order, [n, D]. most: rows that a
  client keeps at most.
  """
  rows, labels = data.train.rows, data.table.columns['labels']
  keys = np.stack([tasks.owners(data.train), tasks.groups(found, rows, labels)])
  places = np.lexsort(keys[::-1])
  cuts = np.flatnonzero((np.diff(keys[:, places]) != 0).any(axis=0)) + 1
  rank = np.full(len(labels), _LAST, np.int32)
  for some in np.split(places, cuts):
    best = order(features[some], most)
    rank[rows[some[best]]] = np.arange(len(best))
  columns = data.table.columns | {RANK: rank}
  return data._replace(table=data.table._replace(columns=columns))
