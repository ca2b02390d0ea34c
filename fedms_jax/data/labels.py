"""Labels of `datasets` splits as numbers, by one map for all splits.

Classes are matched by name. What would only show as a low score is refused
here or warned of: labels that a split does not really have, classes that are
tested and never trained on, data of one class.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedms_jax.data import names

# What spreadsheets and CSV readers write for a cell without a value.
ABSENT = frozenset(
  '#n/a|#na|n/a|na|nan|null|none|nil|<na>|-nan|-'.split('|')
)  # fmt: skip
UNKNOWN = '-1'  # the label of rows without one in test splits of GLUE
SHOWN = 10  # names in a message


def read(
  splits: Mapping[str, Any], column: str, learned: bool = True
) -> tuple[np.ndarray, tuple[str, ...]]:
  """int32 [M] labels of all splits, the training split first, and their names.

  learned: the labels are what is learned; else they only say which rows are
  of a kind, and may be anything.

  Raises:
    ValueError: rows have no label, or splits have no class in common.
  """
  import datasets

  found = {name: _named(name, split, column) for name, split in splits.items()}
  (first, train), *others = found.items()
  for name, part in others:
    found[name] = _matched(column, first, train, name, part)
    if learned:
      _check_unknown(column, first, train, name, found[name])
  everything = [value for part in found.values() for value in part]
  ordered = sorted(set(everything), key=lambda v: (isinstance(v, str), v))
  feature = splits[first].features[column]
  if isinstance(feature, datasets.ClassLabel):
    # The declared order, and classes without rows too.
    declared = feature.names
    ordered = [*declared, *(v for v in ordered if v not in declared)]
  if learned:
    _check_alone(column, first, train)
    _check_trained(first, train, {k: v for k, v in found.items() if k != first})
  code = {value: i for i, value in enumerate(ordered)}
  numbers = np.fromiter((code[v] for v in everything), np.int32)
  return numbers, tuple(str(value) for value in ordered)


def values(split: Any, column: str) -> list:
  """One column of a split."""
  return list(split.select_columns(column)[:][column])


def _named(name: str, split: Any, column: str) -> list:
  """The labels of a split: names where it declares them, else its values."""
  import datasets

  part, feature = values(split, column), split.features[column]
  if isinstance(feature, datasets.ClassLabel):
    part = [None if v in (None, -1) else feature.names[v] for v in part]
  missing = [i for i, value in enumerate(part) if value is None]
  words = [] if missing else _absent(part)
  if missing or words:
    row = (missing or words)[0]
    said = f' (it says {part[row]!r}, the others are numbers)' if words else ''
    raise ValueError(
      f'row {row} of the {name} split has no {column!r}{said} '
      f'({len(missing or words)} such rows). Use a split with labels: '
      f'`{name}_split`.'
    )
  wrong = [v for v in part if not isinstance(v, (int, str))]
  if wrong:
    raise ValueError(
      f'column {column!r} has values like {wrong[0]!r}, which are no labels; '
      'allowed: whole numbers, booleans or strings. Name another: '
      '`label_column`.'
    )
  return part


def _absent(part: list) -> list[int]:
  """Rows of which the label is a word for none, among numbers. A class may be
  called NA where the others have names, too."""
  strings = {v for v in part if isinstance(v, str)}
  words = {v for v in strings if v.strip().lower() in ABSENT}
  if not words or words == strings or not all(map(_whole, strings - words)):
    return []
  return [i for i, value in enumerate(part) if value in words]


def _whole(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _matched(column, first, train: list, name, part: list) -> list:
  """Labels of another split in the words of the training split."""
  kinds = [{isinstance(v, str) for v in some} for some in (train, part)]
  if not all(kinds) or kinds[0] == kinds[1]:
    return part
  by_text = {str(value): value for value in train}
  lacking = sorted({str(v) for v in part} - set(by_text))
  if lacking:
    raise ValueError(
      f'column {column!r} has labels such as {train[0]!r} in the {first} split '
      f'and such as {part[0]!r} in the {name} split, so that nobody knows '
      f'which belong together ({_listed(lacking)} of the {name} split is none '
      f'of {_listed(by_text)}). Write the same names into both, or leave the '
      f'{name} split out, with an empty `{name}_split`.'
    )
  return [by_text[str(value)] for value in part]


def _check_unknown(column, first, train: list, name, part: list) -> None:
  """Refuses labels of a split to test that cannot be right."""
  trained, tested = set(map(str, train)), set(map(str, part))
  if UNKNOWN in tested - trained:
    count = sum(str(value) == UNKNOWN for value in part)
    raise ValueError(
      f'column {column!r} of the {name} split is -1 in {count} of {len(part)} '
      f'rows and never in the {first} split: so data sets mark rows without a '
      f'label. Name a split with labels, or none: `{name}_split`.'
    )
  if trained and tested and not trained & tested:
    raise ValueError(
      f'column {column!r} has no label of the {first} split '
      f'({_listed(trained)}) in the {name} split ({_listed(tested)}): nothing '
      f'that is learned is tested. Name another: `{name}_split`, '
      '`label_column`.'
    )


def _check_trained(first, train: list, others: Mapping[str, list]) -> None:
  """Warns of classes that are tested, and that no training row has."""
  for name, part in others.items():
    new = set(part) - set(train)
    if new and train:
      count = sum(value in new for value in part)
      warnings.warn(
        f'{count} of {len(part)} rows of the {name} split have labels that no '
        f'row of the {first} split has, and count as wrong: {_listed(new)}.',
        names.DataWarning,
        stacklevel=2,
      )


def _check_alone(column, first, train: list) -> None:
  """Warns of data of one class."""
  if train and len(set(train)) == 1:
    warnings.warn(
      f'all {len(train)} rows of the {first} split have the same {column!r}, '
      f'{train[0]!r}: there is nothing to tell apart, and every score is '
      '100 %.',
      names.DataWarning,
      stacklevel=2,
    )


def _listed(found: Sequence | set | dict) -> str:
  """Some names, and how many there are beside."""
  shown = sorted(map(str, found))
  more = len(shown) - SHOWN
  return ', '.join(map(repr, shown[:SHOWN])) + (
    f' and {more} more' if more > 0 else ''
  )
