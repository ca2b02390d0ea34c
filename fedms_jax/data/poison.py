"""Rows as malicious clients would have them: wrong labels, or a trigger.

A poisoned row is a row of its own at the end of the table; the row that it was
stays as it is. So what is derived from frozen values is derived once for each
of them, and who looks at which is a view. All of it follows from a seed and
the client's number.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.streams import Stream
from fedms_jax.core.types import Federation, Partition, Table
from fedms_jax.data import draws

LABEL_FLIP, BACKDOOR = 'label_flip', 'backdoor'
_FOREVER = np.iinfo(np.int32).max


class Poison(NamedTuple):
  """What is done to rows.

  kind: 'label_flip' changes the label alone; 'backdoor' puts a trigger into the
  input and gives the row the label `target` (arXiv 1708.06733). share: of a
  malicious client's training rows that this would change. flip: 'mirror', label
  y becomes C - 1 - y, or 'next', (y + 1) mod C. size: side of the trigger, a
  white square in the lower right corner of an image. token: of texts, the
  number of a token that is put in behind the first one.
  """

  kind: str
  share: float = 1.0
  target: int = 0
  flip: str = 'mirror'
  size: int = 3
  token: int = -1


class Poisoned(NamedTuple):
  """data: with the poisoned rows at the end of its table, which no partition
  has. copy: int32 [M], the poisoned row of each row, -1 where there is none.
  clients: the malicious ones, ascending."""

  data: Federation
  copy: np.ndarray
  clients: np.ndarray


def malicious(seed: int, clients: int, fraction: float) -> np.ndarray:
  """Who is malicious: floor(fraction * N) of N clients, ascending, the same for
  all attacks; with a larger fraction all of these and more."""
  order = draws.generator(seed, Stream.ATTACK).permutation(clients)
  return np.sort(order[: math.floor(fraction * clients + 1e-9)])


def poisoned(
  data: Federation, how: Poison, clients: np.ndarray, seed: int
) -> Poisoned:
  """The federation with the rows that malicious clients train on, and those by
  which the success of the attack is measured: all test, unseen and pooled rows
  that it would change.

  Raises:
    ValueError: the inputs cannot have such a trigger.
  """
  labels = data.table.columns['labels']
  aimed = aims(how, labels, len(data.table.label_names))
  changed = aimed != labels
  parts = [_chosen(data.train, k, how, changed, seed) for k in clients.tolist()]
  tested = [data.test.rows, data.unseen.rows, data.pooled]
  rows = np.concatenate([x[changed[x]] for x in tested])
  rows = np.unique(np.concatenate([*parts, rows])).astype(np.int64)
  copy = np.full(len(labels) + len(rows), -1, np.int32)
  copy[rows] = len(labels) + np.arange(len(rows))
  table = _appended(data.table, rows, aimed, how)
  return Poisoned(data._replace(table=table), copy, clients)


def aims(how: Poison, labels: np.ndarray, classes: int) -> np.ndarray:
  """The labels that an attacker wants rows to get, [M].

  Raises:
    ValueError: there is no such class.
  """
  if how.kind == BACKDOOR:
    if not 0 <= how.target < classes:
      raise ValueError(
        f'`Poison.target`={how.target} is none of the {classes} classes; '
        f'allowed: 0 to {classes - 1}.'
      )
    return np.full_like(labels, how.target)
  if how.flip == 'next':
    return (labels + 1) % classes
  return classes - 1 - labels


def view(
  data: Federation, copy: np.ndarray, start: int = 0, stop: int | None = None
) -> Federation:
  """The federation whose training rows are the poisoned ones, where there are
  such, in the rounds [start, stop); None: to the end."""
  train = data.train
  found = copy[train.rows]
  if start <= 0 and stop is None:
    rows = np.where(found >= 0, found, train.rows).astype(np.int32)
    return data._replace(train=train._replace(rows=rows))
  start, stop = max(start, 0), _FOREVER if stop is None else max(stop, 0)
  # In place of a poisoned row: the row before, its copy, the row after.
  times = np.where(found >= 0, 3, 1)
  at = np.repeat(np.arange(len(found)), times)
  part = np.arange(len(at)) - np.repeat(np.cumsum(times) - times, times)
  several = np.repeat(times, times) == 3
  rows = np.where(several & (part == 1), found[at], train.rows[at])
  begins = np.array([0, start, stop])[part]
  ends = np.where(several, np.array([start, stop, _FOREVER])[part], _FOREVER)
  since = 0 if train.since is None else train.since[at]
  until = _FOREVER if train.until is None else train.until[at]
  before = np.concatenate([[0], np.cumsum(times)])
  made = Partition(
    before[train.offsets],
    rows.astype(np.int32),
    np.maximum(begins, since).astype(np.int32),
    np.minimum(ends, until).astype(np.int32),
  )
  return data._replace(train=made)


def tested(data: Federation, copy: np.ndarray) -> Federation:
  """The federation whose test, unseen and pooled rows are the poisoned ones: of
  each what the attack would change. Its score is the success of the attack."""

  def of(partition: Partition) -> Partition:
    rows = copy[partition.rows]
    kept = np.concatenate([[0], np.cumsum(rows >= 0)])
    return Partition(kept[partition.offsets], rows[rows >= 0])

  pooled = copy[data.pooled]
  return data._replace(
    test=of(data.test), unseen=of(data.unseen), pooled=pooled[pooled >= 0]
  )


def _chosen(
  train: Partition, client: int, how: Poison, changed: np.ndarray, seed: int
) -> np.ndarray:
  """The training rows of a client that are poisoned."""
  rows = train.of(client)
  rows = rows[changed[rows]]
  if not len(rows) or not how.share:
    return rows[:0]
  count = max(1, round(how.share * len(rows)))
  rng = draws.generator(seed, Stream.ATTACK, client + 1)
  return rng.permutation(rows)[:count]


def _appended(
  table: Table, rows: np.ndarray, aimed: np.ndarray, how: Poison
) -> Table:
  """The table with poisoned copies of these rows at its end."""
  columns: dict[str, Any] = {}
  for name, column in table.columns.items():
    more = column[rows]
    if name == 'labels':
      more = aimed[rows].astype(column.dtype)
    elif name == 'inputs' and how.kind == BACKDOOR:
      more = triggered(more, how)
    columns[name] = np.concatenate([column, more])
  return table._replace(columns=columns)


def triggered(inputs: np.ndarray, how: Poison) -> np.ndarray:
  """The inputs with the trigger: uint8 [n, H, W, C] or int [n, T].

  Raises:
    ValueError: it does not fit.
  """
  if inputs.ndim == 4 and inputs.dtype == np.uint8:
    least = min(inputs.shape[1:3])
    if how.size > least:
      raise ValueError(
        f'`Poison.size`={how.size} is more than an image has; allowed: 1 to '
        f'{least}. Lower it.'
      )
    out = inputs.copy()
    out[:, -how.size :, -how.size :] = 255
    return out
  if inputs.ndim != 2 or inputs.dtype.kind not in 'iu':
    raise ValueError(
      f'a trigger is for images and tokens; got inputs {inputs.shape[1:]} of '
      f'{inputs.dtype}. Set `Poison.kind`=label_flip.'
    )
  if how.token < 0:
    raise ValueError(
      f'`Poison.token`={how.token} is no token, which the trigger of texts is. '
      'Give the number of a rare one.'
    )
  return _with_token(inputs, how.token)


def _with_token(inputs: np.ndarray, token: int) -> np.ndarray:
  """Texts [n, T] with a token behind their first one. A text that is full loses
  the one before its last, for the first and the last may have a meaning."""
  out = inputs.copy()
  width = inputs.shape[1]
  for row, text in zip(out, inputs, strict=True):
    text = text[text >= 0]
    if len(text) == width and width > 2:
      text = np.delete(text, -2)
    text = np.insert(text, min(1, len(text)), token)[:width]
    row[:] = -1
    row[: len(text)] = text
  return out
