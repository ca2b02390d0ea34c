"""per_client.csv or .parquet: a row for each evaluated client, with its id.

Rows are written a piece at a time, so that a million of them take no more
memory than their numbers do.
"""

from __future__ import annotations

import csv
import io
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from fedms_jax.persistence import files

MANY = 100_000  # clients from which on a table is Parquet, if nothing is said
_PIECE = 20_000  # rows written together
SUFFIXES = ('.csv', '.parquet')


def kind(wanted: str, clients: int) -> str:
  """'csv' or 'parquet'. wanted: one of them, or 'auto'."""
  if wanted != 'auto':
    return wanted
  return 'parquet' if clients >= MANY else 'csv'


def write(
  folder: str | os.PathLike,
  columns: Mapping[str, Sequence[float | None] | np.ndarray],
  wanted: str = 'auto',
) -> pathlib.Path:
  """Writes columns [n], 'client' first, as a file of the folder, whole or not
  at all; an older one of the other format goes. What is None or not finite is
  an empty cell. Gives the file's path.

  Raises:
    ValueError: Parquet is wanted, and pyarrow is not installed.
  """
  count = len(columns['client'])
  made = kind(wanted, count)
  path = pathlib.Path(folder) / f'per_client.{made}'
  how: Callable[[BinaryIO], Any] = {
    'csv': lambda file: _csv(file, columns, count),
    'parquet': lambda file: _parquet(file, columns, count),
  }[made]
  files.write_whole(path, how)
  for suffix in SUFFIXES:
    if path.suffix != suffix:
      path.with_suffix(suffix).unlink(missing_ok=True)
  return path


def _pieces(columns, count: int) -> Iterator[dict[str, list]]:
  """A few rows at a time, as plain values."""
  for start in range(0, count, _PIECE):
    piece = {}
    for name, values in columns.items():
      some = values[start : start + _PIECE]
      some = some.tolist() if isinstance(some, np.ndarray) else list(some)
      whole = all(isinstance(x, int) for x in some)
      piece[name] = some if whole else [_finite(x) for x in some]
    yield piece


def _finite(value: float | None) -> float | None:
  return value if value is not None and np.isfinite(value) else None


def _csv(file: BinaryIO, columns, count: int) -> None:
  text = io.TextIOWrapper(
    file, encoding='utf-8', newline='', write_through=True
  )
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(columns)
  for piece in _pieces(columns, count):
    writer.writerows(zip(*piece.values(), strict=True))
  text.detach()  # the file is closed by who opened it


def _parquet(file: BinaryIO, columns, count: int) -> None:
  try:
    import pyarrow  # lazy: a table of few clients needs none
    import pyarrow.parquet
  except ImportError as e:
    raise ValueError(
      f'a table in Parquet needs the package pyarrow ({e}). Install it, or set '
      '`table`=csv.'
    ) from e
  whole = ('client', 'train_rows', 'test_rows')
  schema = pyarrow.schema(
    [
      (name, pyarrow.int64() if name in whole else pyarrow.float64())
      for name in columns
    ]
  )
  with pyarrow.parquet.ParquetWriter(file, schema) as writer:
    for piece in _pieces(columns, count):
      writer.write_table(pyarrow.table(piece, schema=schema))
