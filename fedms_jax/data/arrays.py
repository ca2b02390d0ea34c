"""Arrays of a Python program as a source of examples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.types import Table
from fedms_jax.data import answers
from fedms_jax.data.sources import Source

_HEADS = {
  'classes': 'classification',
  'levels': 'ordinal',
  'values': 'regression',
  'tags': 'multi_label',
}


class Arrays(NamedTuple):
  """Examples in memory.

  inputs: [M, ...]. answers: labels [M] of any type, numbers [M] or [M, C] of
  floating point, or tags [M, C] of 0 and 1. train: the first so many rows are
  to be divided, the others are the pooled test set. groups: int32 [M], whose
  row it is, -1 for the pooled test set; None: rows are dealt. names: of groups.
  """

  inputs: np.ndarray
  answers: np.ndarray
  train: int
  groups: np.ndarray | None = None
  names: tuple[str, ...] = ()

  @property
  def kind(self) -> str:
    """What the answers are: 'values', 'tags' or 'classes'."""
    found = self.answers
    if found.dtype.kind == 'f':
      return 'values'
    several = found.ndim == 2 and found.shape[1] > 1
    return 'tags' if several else 'classes'

  @property
  def head(self) -> str:
    """What a model of such answers is for, in the words of its `head`."""
    return _HEADS[self.kind]


def from_arrays(
  x: Any,
  y: Any,
  groups: Sequence[Hashable] | None = None,
  *,
  test: tuple[Any, Any] | None = None,
) -> Arrays:
  """Examples of arrays.

  Args:
    x: inputs [M, ...]; float64 becomes float32.
    y: answers, see `Arrays`; floats are numbers to predict.
    groups: [M], whose row it is: a user, a writer. Each is a client, unless
      they are dealt otherwise; None: rows are dealt.
    test: (inputs, answers) of the pooled test set; None: the test rows of all
      clients.

  Raises:
    ValueError: lengths or shapes do not fit each other.
  """
  pairs = [(_inputs(x), np.asarray(y))]
  if test is not None:
    pairs.append((_inputs(test[0]), np.asarray(test[1])))
  for inputs, labels in pairs:
    if len(inputs) != len(labels):
      raise ValueError(
        f'x has {len(inputs)} rows and y {len(labels)}; allowed: as many.'
      )
  shapes = {(a.shape[1:], b.shape[1:]) for a, b in pairs}
  if len(shapes) > 1:
    raise ValueError(
      f'rows of test have other shapes than those of x and y: {shapes}.'
    )
  count = len(pairs[0][0])
  found, names = None, ()
  if groups is not None:
    if len(groups) != count:
      raise ValueError(
        f'groups has {len(groups)} entries for {count} rows; allowed: one '
        'for each.'
      )
    code = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    found = np.full(sum(len(a) for a, _ in pairs), -1, np.int32)
    found[:count] = [code[group] for group in groups]
    names = tuple(map(str, code))
  inputs, labels = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
  return Arrays(inputs, labels, count, found, names)


def from_clients(
  clients: Mapping[Hashable, tuple[Any, Any]],
  *,
  test: tuple[Any, Any] | None = None,
) -> Arrays:
  """Examples of clients that are known: {id: (inputs, answers)}; see
  `from_arrays`. Every client keeps its rows, and results bear its id."""
  if not clients:
    raise ValueError('there are no clients; allowed: one or more.')
  pairs = [(np.asarray(x), np.asarray(y)) for x, y in clients.values()]
  groups = [
    name for name, (x, _) in zip(clients, pairs, strict=True) for _ in x
  ]
  x, y = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
  return from_arrays(x, y, groups, test=test)


def _inputs(x: Any) -> np.ndarray:
  found = np.asarray(x)
  if found.ndim < 2 or found.dtype.kind not in 'fiub':
    raise ValueError(
      f'x has the shape {found.shape} and type {found.dtype}; allowed: '
      'numbers [M, ...], a row each. (Texts come as a datasets.Dataset.)'
    )
  narrow = {'f': np.float32, 'i': np.int32}
  if found.dtype.kind == 'f' and not np.isfinite(found).all():
    raise ValueError('x has numbers that are not finite. Remove such rows.')
  if found.dtype.itemsize > 4:
    return found.astype(narrow.get(found.dtype.kind, np.int32))
  return found.astype(np.uint8) if found.dtype.kind == 'b' else found


def source(arrays: Arrays, answer: str) -> Source:
  """The source of arrays whose answers are read as `answer`, one of
  `answers.KINDS`.

  Raises:
    ValueError: they are none of that kind.
  """
  kind = arrays.kind
  if answer != kind and (answer, kind) != ('levels', 'classes'):
    raise ValueError(
      f'the answers y are {kind}, {arrays.answers.dtype} of the shape '
      f'{arrays.answers.shape}, and the model learns {answer}. '
      f'Set `head`={arrays.head}, or give labels [M], floats, or tags of 0 '
      'and 1 [M, C].'
    )
  found = _answers(arrays, answer)
  columns = {'inputs': arrays.inputs} | found.columns
  rows = np.arange(len(arrays.inputs), dtype=np.int32)
  return Source(
    Table(columns, found.names, found.outputs),
    rows[: arrays.train],
    rows[arrays.train :],
    arrays.groups,
    group_names=arrays.names,
  )


def _answers(arrays: Arrays, answer: str) -> answers.Answers:
  given = arrays.answers
  if answer == 'values':
    numbers = given.reshape(len(given), -1).astype(np.float64)
    if not np.isfinite(numbers).all():
      raise ValueError('y has numbers that are not finite. Remove such rows.')
    return answers.values(numbers, arrays.train)
  if answer == 'tags':
    rows = answers.of_array(given, 'y')
    assert isinstance(rows, list)
    named = [[str(tag) for tag in row] for row in rows]
    known = tuple(map(str, range(given.shape[1])))
    return answers.tags(named, arrays.train, known)
  names, numbers = np.unique(given.ravel(), return_inverse=True)
  numbers = numbers.astype(np.int32)
  if answer == 'levels':
    ordered = given.dtype.kind in 'iu'
    return answers.levels(numbers, tuple(map(str, names)), ordered)
  return answers.Answers({'labels': numbers}, tuple(map(str, names)))
