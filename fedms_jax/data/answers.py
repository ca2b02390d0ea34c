"""What is learned of rows where it is no class: numbers, tags, levels.

Rows are dealt to clients by labels, so numbers and tags get strata beside
them: tenths of the numbers, and each row's rarest tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedms_jax.core.types import Outputs
from fedms_jax.data import labels

KINDS = ('classes', 'levels', 'tags', 'values')
_TENTHS = 10
NONE = '(none)'  # the stratum of rows without a tag


class Answers(NamedTuple):
  """columns: 'labels' and what is learned beside them, see `Table.columns`.
  names: of the labels. outputs: see `Table.outputs`."""

  columns: dict[str, np.ndarray]
  names: tuple[str, ...]
  outputs: Outputs | None = None


def read(splits: Mapping[str, Any], column: str, kind: str) -> Answers:
  """The answers of all splits, the training split first.

  kind: one of `KINDS` but classes.

  Raises:
    ValueError: the column holds no such answers.
  """
  if kind == 'levels':
    return levels(*labels.read(splits, column), _declared(splits, column))
  rows = {name: labels.values(split, column) for name, split in splits.items()}
  first = len(next(iter(rows.values())))
  if kind == 'values':
    found = [_numbers(part, name, column) for name, part in rows.items()]
    if len({part.shape[1] for part in found}) > 1:
      raise ValueError(
        f'column {column!r} has different counts of numbers in different '
        'splits. Write as many of each row.'
      )
    return values(np.concatenate(found), first)
  names = _tag_names(splits, column)
  tagged = [
    _tags(row, i, name, column)
    for name, part in rows.items()
    for i, row in enumerate(part)
  ]
  if names is not None:  # a ClassLabel is read as its number
    tagged = [[names[tag] for tag in row] for row in tagged]
  return tags(tagged, first, names)


def _declared(splits, column: str) -> bool:
  """Whether the data itself says in which order labels come."""
  import datasets

  feature = next(iter(splits.values())).features[column]
  return isinstance(feature, datasets.ClassLabel)


def levels(
  numbers: np.ndarray, names: tuple[str, ...], declared: bool = True
) -> Answers:
  """Levels in the order of their names: declared, or numbers.

  Raises:
    ValueError: nothing says in which order they come, or there is one alone.
  """
  if not declared:
    try:
      order = np.argsort([float(name) for name in names], kind='stable')
    except ValueError:
      raise ValueError(
        f'labels such as {names[0]!r} are names, and nothing says in which '
        'order they come. Write numbers, or a ClassLabel with the names in '
        'their order, or name another `label_column`.'
      ) from None
    place = np.argsort(order, kind='stable').astype(np.int32)
    numbers, names = place[numbers], tuple(names[i] for i in order)
  if len(names) == 1:
    raise ValueError(
      f'all rows have the one level {names[0]!r}: there is no order to learn. '
      'Name another `label_column`.'
    )
  outputs = Outputs('levels', tuple(f'over {name}' for name in names[:-1]))
  return Answers({'labels': numbers}, names, outputs)


def values(numbers: np.ndarray, train: int) -> Answers:
  """Numbers float64 [M, C], of which the first `train` rows are trained on:
  their mean and standard deviation are the zero and the unit of what is
  learned.

  Raises:
    ValueError: a number of all these rows is the same.
  """
  center = numbers[:train].mean(axis=0)
  spread = numbers[:train].std(axis=0)
  if not (spread > 0).all():
    which = int(np.argmin(spread > 0))
    raise ValueError(
      f'all {train} training rows have the same value {center[which]:g}: there '
      'is nothing to learn. Name another `label_column`.'
    )
  scaled = ((numbers - center) / spread).astype(np.float32)
  kept = numbers[:, 0]
  inner = np.quantile(kept[:train], np.arange(1, _TENTHS) / _TENTHS)
  cuts = np.unique(inner)
  strata = np.searchsorted(cuts, kept, side='right').astype(np.int32)
  ends = [f'{cut:.4g}' for cut in cuts]
  names = [f'{a} to {b}' for a, b in zip(ends, ends[1:], strict=False)]
  names = [f'under {ends[0]}', *names, f'from {ends[-1]}']
  outputs = Outputs(
    'values',
    tuple(f'value {i}' for i in range(numbers.shape[1])),
    tuple(center.tolist()),
    tuple(spread.tolist()),
  )
  return Answers({'labels': strata, 'values': scaled}, tuple(names), outputs)


def tags(
  rows: list[list], train: int, known: tuple[str, ...] | None = None
) -> Answers:
  """Tags of rows: names or numbers. known: all there are, in their order; None:
  those that occur. Of the first `train` rows the counts say which tag of a row
  is the rarest."""
  if known is None:
    found = {tag for row in rows for tag in row}
    ordered = sorted(found, key=lambda v: (isinstance(v, str), v))
    known = tuple(map(str, ordered))
  code = {name: i for i, name in enumerate(known)}
  table = np.zeros((len(rows), len(known)), np.uint8)
  for i, row in enumerate(rows):
    table[i, [code[str(tag)] for tag in row]] = 1
  if not table[:train].any():
    raise ValueError(
      'no training row has a tag: there is nothing to learn. Name another '
      '`label_column`.'
    )
  counts = table[:train].sum(axis=0, dtype=np.int64)
  rarity = np.where(table > 0, counts, np.iinfo(np.int64).max)
  strata = rarity.argmin(axis=1).astype(np.int32)
  bare, names = ~table.any(axis=1), known
  if bare.any():
    strata[bare] = len(known)
    names = (*known, NONE)
  return Answers(
    {'labels': strata, 'tags': table}, names, Outputs('tags', known)
  )


def _numbers(part: list, split: str, column: str) -> np.ndarray:
  """Numbers float64 [n, C] of a split."""
  for row, value in enumerate(part):
    each = value if isinstance(value, (list, tuple)) else [value]
    if not each or not all(_is_number(x) for x in each):
      raise ValueError(
        f'row {row} of the {split} split has {value!r} in {column!r}; allowed: '
        'a finite number, or a list of as many for each row. Remove such rows, '
        'or name another column: `label_column`.'
      )
  found = [np.ravel(np.asarray(value, np.float64)) for value in part]
  sizes = {len(x) for x in found}
  if len(sizes) > 1:
    raise ValueError(
      f'rows of the {split} split have {min(sizes)} to {max(sizes)} numbers in '
      f'{column!r}; allowed: as many in each.'
    )
  return np.stack(found) if found else np.zeros((0, 1))


def _is_number(value: Any) -> bool:
  kind = isinstance(value, (int, float)) and not isinstance(value, bool)
  return kind and abs(value) < 1e30 and value == value


def _tag_names(splits, column: str) -> tuple[str, ...] | None:
  """The declared names of tags; None: there are none."""
  import datasets

  feature = next(iter(splits.values())).features[column]
  inner = getattr(feature, 'feature', None)
  if isinstance(inner, datasets.ClassLabel):
    return tuple(inner.names)
  return None


def _tags(row: Any, number: int, split: str, column: str) -> list:
  """The tags of a row."""
  if not isinstance(row, list) or not all(
    isinstance(tag, (str, int)) and not isinstance(tag, bool) for tag in row
  ):
    raise ValueError(
      f'row {number} of the {split} split has {row!r} in {column!r}; allowed: '
      'a list of tags, which are names or whole numbers. Write lists (in JSON '
      'lines or Parquet), or name another column: `label_column`.'
    )
  return row


def of_array(values: np.ndarray, where: str) -> np.ndarray | list | None:
  """Answers of an array's rows: floats [M] or [M, C] as they are; of 0 and 1
  [M, C] the places of the ones; None: it holds one label a row.

  Raises:
    ValueError: it holds several whole numbers a row that are no tags.
  """
  single = values.ndim == 1 or values.shape[1:] == (1,)
  if values.dtype.kind == 'f' and values.ndim in (1, 2):
    found = values.astype(np.float64)
    return found.ravel() if single else found.tolist()
  if values.ndim != 2 or single or values.dtype.kind not in 'iub':
    return None
  if not np.isin(values, (0, 1)).all():
    raise ValueError(
      f'{where} has the shape {values.shape} and numbers beside 0 and 1; '
      'allowed: one label a row, or 0 or 1 for each tag'
    )
  return [np.flatnonzero(row).tolist() for row in values]
