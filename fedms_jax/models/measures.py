"""Metrics by name, made for a task; each is a function of sums over rows.

They are those of the field's tools (scikit-learn's names and rules) where a
sum can say them; AUC and the calibration error are binned.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedms_jax.core.metrics import Metric
from fedms_jax.core.types import Outputs, Task
from fedms_jax.models import class_measures as measured
from fedms_jax.models import tasks
from fedms_jax.models.class_measures import Asked, of_means, ratio

_ANY = ('classes', 'levels', 'tags', 'values', 'tokens', 'pairs')


def make(name: str, task: Task, labels: int, outputs: Outputs | None) -> Metric:
  """The metric of a name, for the logits of a task. The same arguments give
  the same object.

  Args:
    name: one of `ALL`, or `top<k>`.
    task: whose logits and batches it gets.
    labels: how many the data has.
    outputs: of the head, see `Table.outputs`.

  Raises:
    ValueError: there is no such metric, or it says nothing of this task.
  """
  count = len(outputs.names) if outputs and outputs.kind != 'levels' else labels
  return _made(name, Asked(task, count, outputs.spread if outputs else ()))


@functools.lru_cache(maxsize=256)
def _made(name: str, asked: Asked) -> Metric:
  task = asked.task
  found = re.fullmatch(r'top([1-9]\d{0,3})', name)
  entry = ALL.get(name)
  if found:
    k = int(found[1])
    entry = Entry(('classes',), lambda asked: measured.top(k, asked), '')
  if entry is None or task.kind not in entry.kinds:
    fitting = [n for n, e in ALL.items() if task.kind in e.kinds]
    fitting += ['top5'] if task.kind == 'classes' else []
    raise ValueError(
      f'metric {name!r} says nothing of this task, whose logits are scores of '
      f'{task.kind}; allowed: {", ".join(fitting)}.'
    )
  made = entry.make(asked)
  return made._replace(name=name, lower=entry.lower)


class Entry(NamedTuple):
  """kinds: of tasks that have it. make: `Asked` -> the metric, whose name and
  direction are filled in. help: one line."""

  kinds: tuple[str, ...]
  make: Callable[[Asked], Metric]
  help: str
  lower: bool = False


def _exact(asked: Asked) -> Metric:
  """Whether all of a row is right.

  Of tokens: greedy decoding gives the row's own text if and only if each of
  its tokens is the likeliest after those before it, for up to the first wrong
  token both have read the same. So no text need be generated.
  """

  def tags(logits, batch):
    right = jnp.all((logits > 0) == (batch['tags'] > 0), axis=-1)
    return right, batch['mask']

  def tokens(logits, batch):
    hits, weights = asked.task.score(logits, batch)
    return hits >= 1.0, (weights > 0).astype(jnp.float32)

  return of_means(tags if asked.task.kind == 'tags' else tokens)


def _error(power: int, finish=ratio) -> Callable[[Asked], Metric]:
  """The mean of |error| to a power, in the units of the data; of levels, in
  levels."""

  def made(asked: Asked) -> Metric:
    def measure(logits, batch):
      if asked.task.kind == 'levels':
        off = tasks.level(logits) - batch['labels']
        return jnp.abs(off.astype(jnp.float32)) ** power, batch['mask']
      spread = asked.spread or (1.0,) * asked.classes
      unit = jnp.asarray(spread, jnp.float32)
      off = (logits.astype(jnp.float32) - batch['values']) * unit[None]
      return jnp.mean(jnp.abs(off) ** power, axis=-1), batch['mask']

    return of_means(measure, finish)

  return made


def _determination(asked: Asked) -> Metric:
  """R2 = 1 - squared errors over squared distances from the mean of the rows
  scored, mean over outputs: sums [C, 4] of 1, y, y^2, e^2."""

  def sums(logits, batch):
    y = batch['values']
    off = logits.astype(jnp.float32) - y
    parts = jnp.stack([jnp.ones_like(y), y, y * y, off * off], axis=-1)
    parts = jnp.where(batch['mask'][:, None, None], parts, 0.0)
    return jnp.sum(parts, axis=0)

  def finish(sums):
    count, y, square, wrong = sums.T
    there = count > 0
    around = square - np.square(y) / np.maximum(count, 1)
    known = there & (around > 1e-9 * np.maximum(square, 1e-9))
    found = 1 - wrong[known] / around[known]
    return float(found.mean()) if known.any() else float('nan')

  return Metric('', sums, finish, (asked.classes, 4))


def _perplexity(sums: np.ndarray) -> float:
  return float(np.exp(ratio(sums)))


def _root(sums: np.ndarray) -> float:
  return float(np.sqrt(ratio(sums)))


_SORTED = ('classes', 'levels', 'tags')
ALL: dict[str, Entry] = {
  'accuracy': Entry(
    ('classes', 'levels', 'tokens', 'pairs'),
    lambda asked: of_means(asked.task.score),
    'share of what is right',
  ),
  'f1': Entry(
    _SORTED, measured.counted(measured.F1[0]), 'F1, mean over classes (macro)'
  ),
  'f1_micro': Entry(
    _SORTED, measured.counted(measured.F1[1]), 'F1 of all classes together'
  ),
  'precision': Entry(
    _SORTED, measured.counted(measured.PRECISION[0]), 'precision, macro'
  ),
  'precision_micro': Entry(
    _SORTED, measured.counted(measured.PRECISION[1]), 'of all classes'
  ),
  'recall': Entry(
    _SORTED, measured.counted(measured.RECALL[0]), 'recall, macro'
  ),
  'recall_micro': Entry(
    _SORTED, measured.counted(measured.RECALL[1]), 'of all classes'
  ),
  'auc': Entry(
    _SORTED,
    measured.auc,
    'area under the ROC curve, one against the rest, macro',
  ),
  'ece': Entry(
    ('classes', 'levels'),
    measured.calibration,
    'expected calibration error, 15 bins',
    lower=True,
  ),
  'confusion': Entry(
    ('classes', 'levels'), measured.confusion, 'confusion matrix [right][said]'
  ),
  'kappa': Entry(('levels',), measured.kappa, 'quadratically weighted kappa'),
  'mse': Entry(
    ('values', 'levels'), _error(2), 'mean squared error', lower=True
  ),
  'rmse': Entry(
    ('values', 'levels'), _error(2, _root), 'root of the former', lower=True
  ),
  'mae': Entry(
    ('values', 'levels'), _error(1), 'mean absolute error', lower=True
  ),
  'r2': Entry(('values',), _determination, 'coefficient of determination'),
  'nll': Entry(
    _ANY,
    lambda asked: of_means(asked.task.loss),
    'mean loss: in nats, of a row or a token',
    lower=True,
  ),
  'perplexity': Entry(
    ('tokens',),
    lambda asked: of_means(asked.task.loss, _perplexity),
    'exp(nll) over all tokens',
    lower=True,
  ),
  'exact_match': Entry(
    ('tokens', 'tags'),
    _exact,
    'rows of which greedy decoding gives the very text, or all tags are right',
  ),
}


def names(kind: str) -> list[str]:
  """The metrics of a kind of task."""
  return [name for name, entry in ALL.items() if kind in entry.kinds]


def parse(text: str) -> list[str]:
  """Names divided by commas, each once."""
  found: dict[str, Any] = dict.fromkeys(t.strip() for t in text.split(','))
  return [name for name in found if name]
