"""Columns whose rows are read when somebody asks for them.

Who gets which rows follows from labels alone, which are cheap. Images and
tokens are dear: of several processes each reads those of its own clients.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


class Reader(abc.ABC):
  """Reads rows of columns that belong together, such as tokens and targets.

  count: M, the rows that there are. names: of the columns.
  """

  count: int
  names: tuple[str, ...]

  @property
  @abc.abstractmethod
  def like(self) -> Arrays:
    """The columns without a row, [0, ...]: their shapes and types, the same
    in every process. It may have to look at all rows, if briefly."""

  @abc.abstractmethod
  def read(self, rows: np.ndarray) -> Arrays:
    """Rows [n], in this order."""


class Column:
  """One column of a reader, of which `rows` [M] are the rows.

  It has the shape and type of the array that it stands for. Rows are had by
  `take` alone, so that nobody reads them all by accident.
  """

  def __init__(self, reader: Reader, name: str, rows: np.ndarray | None = None):
    self.reader = reader
    self.name = name
    self.rows = np.arange(reader.count) if rows is None else rows

  @property
  def shape(self) -> tuple[int, ...]:
    return (len(self.rows), *self.reader.like[self.name].shape[1:])

  @property
  def ndim(self) -> int:
    return self.reader.like[self.name].ndim

  @property
  def dtype(self) -> np.dtype:
    return self.reader.like[self.name].dtype


class Changed(Reader):
  """Rows as another reader has them, but changed: `change(rows, arrays)` gives
  arrays of the same shapes, and may write into those that it gets."""

  def __init__(
    self, reader: Reader, change: Callable[[np.ndarray, Arrays], Arrays]
  ):
    self.count, self.names = reader.count, reader.names
    self._reader, self._change = reader, change

  @property
  def like(self):
    return self._reader.like

  def read(self, rows):
    return self._change(rows, self._reader.read(rows))


Columns = Mapping[str, np.ndarray | Column]


def take(columns: Columns, rows: np.ndarray) -> Arrays:
  """Rows [n] of columns; what lies in one reader is read once."""
  read: dict[Reader, Arrays] = {}
  out = {}
  for name, column in columns.items():
    if isinstance(column, Column):
      if column.reader not in read:
        read[column.reader] = column.reader.read(column.rows[rows])
      out[name] = read[column.reader][column.name]
    else:
      out[name] = column[rows]
  return out


def whole(columns: Columns) -> Arrays:
  """All rows of columns, as arrays; those that are arrays stay as they are."""
  lazy = {k: v for k, v in columns.items() if isinstance(v, Column)}
  read: Arrays = {}
  if lazy:
    count = len(next(iter(lazy.values())).rows)
    read = take(lazy, np.arange(count))
  return {
    name: read[name] if isinstance(column, Column) else column
    for name, column in columns.items()
  }


def reordered(columns: Columns, order: np.ndarray) -> Columns:
  """Columns whose row i is row `order[i]` of these; nothing is read."""
  return {
    name: Column(column.reader, column.name, column.rows[order])
    if isinstance(column, Column)
    else column[order]
    for name, column in columns.items()
  }
