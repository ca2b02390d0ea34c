"""Columns whose rows are read on demand.

Who gets which rows follows from labels alone, which are cheap. Images and
tokens are expensive and are read lazily: each of several processes reads those
of its own clients.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


class Reader(abc.ABC):
  """Reads rows of columns that belong together, such as tokens and targets.

  count: M, the number of rows. names: names of the columns.
  """

  count: int
  names: tuple[str, ...]

  @property
  @abc.abstractmethod
  def like(self) -> Arrays:
    """Empty columns [0, ...] that show shapes and types, the same in every
    process. May have to inspect all rows briefly."""

  @abc.abstractmethod
  def read(self, rows: np.ndarray) -> Arrays:
    """Rows [n], in this order."""


class Column:
  """One column of a reader, restricted to its rows `rows` [M].

  It has the shape and type of the array that it stands for. Only `take` reads
  rows, so that they are never all read by accident.
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
  """The rows of another reader, modified: `change(rows, arrays)` returns arrays
  of the same shapes and may write into its arguments."""

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
  """Rows [n] of columns; columns of one reader are read together."""
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
  """All rows of columns as arrays; columns that are arrays are not copied."""
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
