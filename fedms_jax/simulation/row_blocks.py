"""The raw columns of the example table in host memory, in blocks of rows."""

from __future__ import annotations

import jax
import numpy as np

from fedms_jax.core.types import Tree
from fedms_jax.data import lazy


class RowBlocks:
  """Raw columns [M, ...], of the rows that are kept.

  columns: by name. block: rows of a block. blocks: how many there are.
  """

  def __init__(
    self,
    raw: lazy.Columns,
    block: int,
    devices: int = 1,
    only: np.ndarray | None = None,
  ):
    """Reads the columns, of lazy ones only the rows that will be asked for.

    block: rows of a block, or a few more, so that it is divided by `devices`.
    only: sorted numbers of the rows that will be asked for; None: all.
    """
    self._place_of = None  # of rows in what is kept
    if only is not None:
      self._place_of = np.zeros(raw['labels'].shape[0], np.int32)
      self._place_of[only] = np.arange(len(only))
      raw = lazy.take(raw, only)
    else:
      raw = lazy.whole(raw)
    self.columns = raw
    self._rows = raw['labels'].shape[0]
    self.block = -(-min(block, self._rows) // devices) * devices
    self.blocks = -(-self._rows // self.block)

  def kept(self, rows: np.ndarray) -> np.ndarray:
    """Row numbers among the rows that are kept; negatives stay."""
    if self._place_of is None:
      return rows
    return np.where(rows >= 0, self._place_of[rows], -1).astype(np.int32)

  def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of row numbers [B]; negative ones are padding, whose 'mask' is
    False."""
    safe = np.maximum(self.kept(rows), 0)
    found = {name: column[safe] for name, column in self.columns.items()}
    return found | {'mask': rows >= 0}

  def sent(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of all columns as a device has them."""
    kind = jax.dtypes.canonicalize_dtype
    return {
      name: jax.ShapeDtypeStruct(x.shape, kind(x.dtype))
      for name, x in self.columns.items()
    }

  def shapes(self) -> Tree:
    """Shapes of the columns of a block."""

    def of(x):
      return jax.ShapeDtypeStruct((self.block, *x.shape[1:]), x.dtype)

    return jax.tree.map(of, self.columns)

  def one(self, number: int) -> dict[str, np.ndarray]:
    """Rows of a block; the last one is filled up with its last row."""
    start = number * self.block
    stop = min(start + self.block, self._rows)
    rows = np.minimum(np.arange(start, start + self.block), stop - 1)
    return {name: column[rows] for name, column in self.columns.items()}

  def several(self, numbers, width: int) -> dict[str, np.ndarray]:
    """Rows of blocks, with room for `width` blocks."""
    staged = {
      name: np.zeros((width * self.block, *x.shape[1:]), x.dtype)
      for name, x in self.columns.items()
    }
    for place, number in enumerate(numbers):
      at = slice(place * self.block, (place + 1) * self.block)
      for name, values in self.one(int(number)).items():
        staged[name][at] = values
    return staged
