"""Derived columns in host memory."""

from __future__ import annotations

import collections

import jax
import numpy as np

# Blocks that are under way at a time in a pass: enough to keep the device
# busy, few enough for their raw rows to fit beside the table.
UNDER_WAY = 8
TableDict = dict[str, jax.Array]


class HostColumns:
  """Derived columns of all rows in host memory, filled block by block.

  A new block is fetched while the device computes on; it lands when the
  columns are read, or with the next but few.
  """

  def __init__(self, shapes: TableDict, blocks: int):
    self._size = len(next(iter(shapes.values())))
    self._columns = {
      # Untouched pages take no memory.
      name: np.empty((blocks, *x.shape), x.dtype)
      for name, x in shapes.items()
    }
    self._coming: collections.deque = collections.deque()
    self.filled = np.zeros(blocks, bool)

  def put(self, number: int, new: TableDict) -> None:
    """Takes a derived block from the device."""
    for column in new.values():
      column.copy_to_host_async()
    self.filled[number] = True
    self._coming.append((number, new))
    if len(self._coming) > UNDER_WAY:
      self._land()

  def read(self, name: str, numbers, width: int) -> np.ndarray:
    """A column's rows of these blocks, room for `width` blocks: a new array,
    which the device may be reading while the next is made. Rows of blocks that
    are not filled are arbitrary."""
    while self._coming:
      self._land()
    column = self._columns[name]
    out = np.zeros((width, *column.shape[1:]), column.dtype)
    np.take(column, numbers, axis=0, out=out[: len(numbers)])
    return out.reshape(-1, *column.shape[2:])

  def _land(self) -> None:
    number, new = self._coming.popleft()
    for name, column in self._columns.items():
      column[number] = np.asarray(new[name])
