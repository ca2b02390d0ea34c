"""Rows of `datasets` splits, batch by batch: what all readers share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fedms_jax.data.lazy import Reader

BATCH = 1000  # rows that are read at a time

Splits = dict[str, Any]  # name -> datasets.Dataset


class Rows(Reader):
  """What the readers of splits have in common."""

  def __init__(self, splits: Splits, progress: bool):
    self.count = sum(map(len, splits.values()))
    self._splits = splits
    self._progress = progress

  def everything(self, rows: np.ndarray) -> bool:
    """Whether these are all rows; they are in rising order."""
    return len(rows) == self.count and (np.diff(rows) == 1).all()

  def pieces(
    self, rows: np.ndarray
  ) -> Iterator[tuple[str, np.ndarray, dict[str, list]]]:
    """Rows, in rising order, batch by batch: name of the split, row numbers
    in it, and their columns."""
    import tqdm

    with tqdm.tqdm(
      total=len(rows),
      desc='rows     ',
      unit='row',
      dynamic_ncols=True,
      leave=False,
      delay=2,  # quick passes end before it, and show nothing
      disable=not self._progress,
    ) as bar:
      start = 0
      for name, split in self._splits.items():
        first, last = np.searchsorted(rows, (start, start + len(split)))
        for i in range(first, last, BATCH):
          numbers = rows[i : min(i + BATCH, last)] - start
          yield name, numbers, _selected(split, numbers)
          bar.update(len(numbers))
        start += len(split)


def _selected(split, numbers: np.ndarray) -> dict[str, list]:
  """Rows of a split by column; those that lie side by side are quicker."""
  first, last = int(numbers[0]), int(numbers[-1])
  if last - first + 1 == len(numbers):
    return split[first : last + 1]
  return split[numbers.tolist()]
