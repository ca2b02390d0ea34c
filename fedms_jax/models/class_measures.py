"""Metrics of classes, levels and tags, as functions of sums over rows.

They follow scikit-learn's rules where a sum can say them; AUC and the
calibration error are binned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import Task
from fedms_jax.models import tasks

AUC_BINS, AUC_REACH = 128, 12.0  # of log odds, from -12 to 12
CALIBRATION_BINS = 15  # of confidence, from 0 to 1 (arXiv 1706.04599)
MOST_CONFUSED = 200  # classes of a confusion matrix


class Asked(NamedTuple):
  """What a metric is made for. classes: C, or how many outputs there are.
  spread: of values, for their own units."""

  task: Task
  classes: int
  spread: tuple[float, ...] = ()


def ratio(sums: np.ndarray) -> float:
  """sums [2]: the first over the second, NaN over nothing."""
  return float(sums[0] / sums[1]) if sums[1] > 0 else float('nan')


def of_means(measure: Callable, finish=ratio) -> Metric:
  """The metric of (values [B], weights [B]) = measure(logits, batch)."""

  def sums(logits, batch):
    values, weights = measure(logits, batch)
    values, weights = values.astype(jnp.float32), weights.astype(jnp.float32)
    values = jnp.where(weights > 0, values, 0.0)
    return jnp.stack([jnp.sum(values * weights), jnp.sum(weights)])

  return Metric('', sums, finish)


def _above(logits):
  """P(above each level but the last) [B, C - 1]; none rises above the one
  before it."""
  above = jax.nn.sigmoid(logits.astype(jnp.float32))
  return jax.lax.cummin(above, axis=1)


def _probabilities(asked: Asked, logits):
  """[B, C], of each class, level or tag."""
  if asked.task.kind == 'tags':
    return jax.nn.sigmoid(logits.astype(jnp.float32))
  if asked.task.kind == 'classes':
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
  above = _above(logits)
  ones, zeros = jnp.ones_like(above[:, :1]), jnp.zeros_like(above[:, :1])
  edges = jnp.concatenate([ones, above, zeros], axis=1)
  return edges[:, :-1] - edges[:, 1:]


def _said(asked: Asked, logits):
  """The class or level [B] that is said."""
  if asked.task.kind == 'levels':
    return tasks.level(logits)
  return jnp.argmax(logits, axis=-1)


def _which(asked: Asked, logits, batch):
  """(said, right), bool [B, C] each; nothing of rows that are padding."""
  real = batch['mask'][:, None]
  if asked.task.kind == 'tags':
    return (logits > 0) & real, (batch['tags'] > 0) & real
  classes = jnp.arange(asked.classes)[None, :]
  said = _said(asked, logits)[:, None] == classes
  return said & real, (batch['labels'][:, None] == classes) & real


def counted(finish: Callable[[np.ndarray], float]) -> Callable:
  """Metrics of how often a class was said, was right, and both: [C, 3]."""

  def made(asked: Asked) -> Metric:
    def sums(logits, batch):
      said, right = _which(asked, logits, batch)
      parts = jnp.stack([said & right, said, right], axis=-1)
      return jnp.sum(parts, axis=0).astype(jnp.float32)

    return Metric('', sums, finish, (asked.classes, 3))

  return made


def _fraction(over: Callable) -> tuple[Callable, Callable]:
  """(macro, micro) of 'both, of so many' by counts [C, 3]. Macro is the mean
  over the classes that were said or were right; nothing of nothing is 0."""

  def macro(counts: np.ndarray) -> float:
    both, said, right = counts[(counts[:, 1] + counts[:, 2]) > 0].T
    if not len(both):
      return float('nan')
    return float(np.mean(both / np.maximum(over(said, right), 1e-9)))

  def micro(counts: np.ndarray) -> float:
    both, said, right = counts.sum(axis=0)
    if not said + right:
      return float('nan')
    return float(both / np.maximum(over(said, right), 1e-9))

  return macro, micro


F1 = _fraction(lambda said, right: (said + right) / 2)
PRECISION = _fraction(lambda said, right: said)
RECALL = _fraction(lambda said, right: right)


def auc(asked: Asked) -> Metric:
  """One class against the rest: sums [C, 2, bins], how many rows of each side
  have log odds in a bin. Rows of one bin count as equal."""

  def sums(logits, batch):
    p = jnp.clip(_probabilities(asked, logits), 1e-7, 1 - 1e-7)
    odds = jnp.log(p) - jnp.log1p(-p)
    place = (odds + AUC_REACH) / (2 * AUC_REACH) * AUC_BINS
    place = jnp.clip(place.astype(jnp.int32), 0, AUC_BINS - 1)
    _, right = _which(asked, logits, batch)
    real = jnp.broadcast_to(batch['mask'][:, None], right.shape)
    of = jnp.broadcast_to(jnp.arange(right.shape[1])[None, :], right.shape)
    none = jnp.zeros((right.shape[1], 2, AUC_BINS), jnp.float32)
    return none.at[of, right.astype(jnp.int32), place].add(
      real.astype(jnp.float32)
    )

  return Metric('', sums, _area, (asked.classes, 2, AUC_BINS))


def _area(counts: np.ndarray) -> float:
  """The mean area under the ROC curve of counts [C, 2, bins], over classes
  that some rows have and some have not (Mann and Whitney's statistic)."""
  wrong, right = counts[:, 0], counts[:, 1]
  below = np.cumsum(wrong, axis=1) - wrong
  wins = (right * (below + wrong / 2)).sum(axis=1)
  pairs = right.sum(axis=1) * wrong.sum(axis=1)
  known = pairs > 0
  return float(np.mean(wins[known] / pairs[known])) if known.any() else np.nan


def calibration(asked: Asked) -> Metric:
  """The expected calibration error (Guo et al., ICML 2017, arXiv 1706.04599,
  equation 3): sums [bins, 3] of rows, confidence, and right ones."""

  def sums(logits, batch):
    confidence = jnp.max(_probabilities(asked, logits), axis=-1)
    right = _said(asked, logits) == batch['labels']
    place = (confidence * CALIBRATION_BINS).astype(jnp.int32)
    place = jnp.clip(place, 0, CALIBRATION_BINS - 1)
    parts = jnp.stack([jnp.ones_like(confidence), confidence, right], axis=-1)
    parts = jnp.where(batch['mask'][:, None], parts, 0.0)
    return jnp.zeros((CALIBRATION_BINS, 3), jnp.float32).at[place].add(parts)

  def finish(sums):
    rows = sums[:, 0].sum()
    gaps = np.abs(sums[:, 1] - sums[:, 2]).sum()
    return float(gaps / rows) if rows else float('nan')

  return Metric('', sums, finish, (CALIBRATION_BINS, 3))


def confusion(asked: Asked) -> Metric:
  if asked.classes > MOST_CONFUSED:
    raise ValueError(
      f"metric 'confusion' of {asked.classes} classes is a matrix of "
      f'{asked.classes**2} numbers; allowed: at most {MOST_CONFUSED} classes. '
      'Leave it out.'
    )

  def sums(logits, batch):
    said, right = _which(asked, logits, batch)
    return right.astype(jnp.float32).T @ said.astype(jnp.float32)

  shape = (asked.classes, asked.classes)
  return Metric('', sums, lambda sums: sums, shape, table=True)


def kappa(asked: Asked) -> Metric:
  """Quadratically weighted kappa (Cohen, Psychological Bulletin 70, 1968)."""

  def finish(table):
    rows, n = table.sum(), len(table)
    if not rows:
      return float('nan')
    weights = np.square(np.subtract.outer(np.arange(n), np.arange(n)))
    chance = np.outer(table.sum(1), table.sum(0)) / rows
    wrong = (weights * chance).sum()
    return float(1 - (weights * table).sum() / wrong) if wrong else float('nan')

  return confusion(asked)._replace(finish=finish, table=False)


def top(k: int, asked: Asked) -> Metric:
  """Whether the right class is among the k likeliest."""
  if asked.task.kind == 'classes' and k >= asked.classes:
    raise ValueError(
      f"metric 'top{k}' of {asked.classes} classes is always 1; allowed: top1 "
      f'to top{asked.classes - 1}.'
    )

  def measure(logits, batch):
    own = jnp.take_along_axis(logits, batch['labels'][:, None], axis=-1)
    ahead = jnp.sum(logits > own, axis=-1)
    return ahead < k, batch['mask']

  return of_means(measure)
