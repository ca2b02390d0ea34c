"""A division of rows in a file, and back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from fedms_jax.core.types import Federation, Partition, Table

_PARTITIONS = ('train', 'validation', 'test', 'unseen')
_LISTS = ('pooled', 'public')


def fingerprint(table: Table) -> str:
  """Tells tables of different size, order or labels apart."""
  digest = hashlib.sha256('\0'.join(table.label_names).encode())
  digest.update(np.asarray(table.columns['labels'], np.int32).tobytes())
  return digest.hexdigest()


def save(path: str, federation: Federation) -> None:
  """Writes who has which rows, but not the rows, to an .npz file."""
  arrays: dict[str, Any] = {  # numpy takes one of its options by name, too
    'fingerprint': np.asarray(fingerprint(federation.table))
  }
  for name in _PARTITIONS:
    part = getattr(federation, name)
    arrays |= {f'{name}_offsets': part.offsets, f'{name}_rows': part.rows}
  for name in _LISTS:
    arrays[name] = getattr(federation, name)
  target = pathlib.Path(path).expanduser()
  if target.exists() and not target.is_file():
    raise ValueError(
      f'`save`={path} cannot be written: a folder or a device is '
      'there, which no file can replace. Name a file.'
    )
  target = pathlib.Path(os.path.realpath(target))  # not the link to it
  partial = target.with_name(f'.{target.name}.{os.getpid()}')
  try:
    with partial.open('wb') as file:
      np.savez(file, **arrays)
    partial.replace(target)
  except OSError as error:
    raise ValueError(
      f'`save`={path} cannot be written: {error.strerror}. Name a '
      'file in a folder that exists and is writable.'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      partial.unlink()


def _partition(offsets: np.ndarray, rows: np.ndarray) -> Partition:
  rows, offsets = _rows(rows), _rows(offsets)
  ends = offsets.tolist()
  if ends[:1] != [0] or ends[-1] != len(rows) or ends != sorted(ends):
    raise ValueError('its offsets are not those of its rows')
  return Partition(offsets.astype(np.int64), rows)


def _rows(numbers: np.ndarray) -> np.ndarray:
  if numbers.ndim != 1 or numbers.dtype.kind not in 'iu':
    raise ValueError(f'it has {numbers.dtype} values of {numbers.ndim} axes')
  if len(numbers) and not 0 <= numbers.min() <= numbers.max() < 2**31:
    raise ValueError(f'it has the number {numbers.min()} or {numbers.max()}')
  return numbers


def load(path: str, table: Table) -> Federation:
  """The division in a file made by `save`, of the same rows.

  Raises `ValueError` if the file is missing, broken, or of other data.
  """
  try:
    with np.load(pathlib.Path(path).expanduser()) as file:
      saved = str(file['fingerprint'])
      parts: dict[str, Any] = {
        name: _partition(file[f'{name}_offsets'], file[f'{name}_rows'])
        for name in _PARTITIONS
      }
      parts |= {name: _rows(file[name]) for name in _LISTS}
  except FileNotFoundError as error:
    raise ValueError(
      f'`load`={path}: no such file. Make it with `save`.'
    ) from error
  except Exception as error:  # a broken zip fails in many ways
    raise ValueError(
      f'`load`={path} is no whole partition file ({error}). Make it '
      'again with `save`.'
    ) from error
  if saved != fingerprint(table):
    raise ValueError(
      f'`load`={path} divides other data than this: the number, '
      'order or labels of the rows differ. Use the data and the `seed` that '
      'it was made with, or make it again with `save`.'
    )
  return Federation(table=table, **parts)
